package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const gatewayHead = "apiVersion: gateway.networking.k8s.io/v1\nkind: %s\nmetadata: {name: x}\nspec: %s"

// TestGatewayValidation: what the definitions of the Gateway API say of an
// object; nothing where want is empty.
func TestGatewayValidation(t *testing.T) {
	of := func(kind string) func(spec string) string {
		return func(spec string) string { return fmt.Sprintf(gatewayHead, kind, spec) }
	}
	gateway, class, grant := of("Gateway"), of("GatewayClass"), of("ReferenceGrant")
	route, grpc, tls, policy := of("HTTPRoute"), of("GRPCRoute"), of("TLSRoute"), of("BackendTLSPolicy")
	listener := func(l string) string {
		return gateway("{gatewayClassName: c, listeners: [{name: a, port: 80, " + l + "}]}")
	}
	rule := func(r string) string { return route("{rules: [{" + r + "}]}") }
	path := func(kind, p string) string {
		return rule("matches: [{path: {type: " + kind + ", value: '" + p + "'}}]")
	}
	filter := func(f string) string { return rule("filters: [{" + f + "}]") }

	for _, c := range []struct{ name, in, want string }{
		{"class", class("{controllerName: example.com/c}"), ""},
		{"class controller", class("{controllerName: c}"), "spec.controllerName: Invalid value: \"c\": spec.controllerName in body should match"},
		{"class without controller", class("{}"), "spec.controllerName: Required value"},
		{"gateway", listener("protocol: HTTP"), ""},
		{"no listeners", gateway("{gatewayClassName: c, listeners: []}"), "spec.listeners: Invalid value: 0: spec.listeners in body should have at least 1 items"},
		{"no class", gateway("{listeners: [{name: a, port: 80, protocol: HTTP}]}"), "spec.gatewayClassName: Required value"},
		{"listener name", gateway("{gatewayClassName: c, listeners: [{name: A, port: 80, protocol: HTTP}]}"), "spec.listeners[0].name: Invalid value: \"A\""},
		{"listener port", gateway("{gatewayClassName: c, listeners: [{name: a, port: 65536, protocol: HTTP}]}"), "spec.listeners[0].port: Invalid value: 65536: spec.listeners[0].port in body should be less than or equal to 65535"},
		{"listener without port", gateway("{gatewayClassName: c, listeners: [{name: a, protocol: HTTP}]}"), "spec.listeners[0].port: Invalid value: 0"},
		{"listener names", gateway("{gatewayClassName: c, listeners: [{name: a, port: 1, protocol: HTTP}, {name: a, port: 2, protocol: HTTP}]}"), `spec.listeners[1]: Duplicate value: {"name":"a"}`},
		{"same listener twice", gateway("{gatewayClassName: c, listeners: [{name: a, port: 1, protocol: HTTP}, {name: b, port: 1, protocol: HTTP}]}"), "Combination of port, protocol and hostname must be unique for each listener"},
		{"hostnames apart", gateway("{gatewayClassName: c, listeners: [{name: a, port: 1, protocol: HTTP}, {name: b, hostname: b.c, port: 1, protocol: HTTP}]}"), ""},
		{"listener hostname", listener("protocol: HTTP, hostname: 'a.*.b'"), "spec.listeners[0].hostname: Invalid value: \"a.*.b\""},
		{"tls of HTTP", listener("protocol: HTTP, tls: {certificateRefs: [{name: s}]}"), "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']"},
		{"HTTPS passed through", listener("protocol: HTTPS, tls: {mode: Passthrough}"), "tls mode must be Terminate for protocol HTTPS"},
		{"HTTPS without certificate", listener("protocol: HTTPS, tls: {}"), "certificateRefs or options must be specified when mode is Terminate"},
		{"TLS without mode", listener("protocol: TLS"), "tls mode must be set for protocol TLS"},
		{"TCP with hostname", listener("protocol: TCP, hostname: a.b"), "hostname must not be specified for protocols ['TCP', 'UDP']"},
		{"from", listener("protocol: HTTP, allowedRoutes: {namespaces: {from: Some}}"), `spec.listeners[0].allowedRoutes.namespaces.from: Unsupported value: "Some": supported values: "All", "Selector", "Same"`},
		{"address", gateway("{gatewayClassName: c, addresses: [{value: here}], listeners: [{name: a, port: 1, protocol: HTTP}]}"), "must be a valid IP address"},
		{"address twice", gateway("{gatewayClassName: c, addresses: [{value: 1.2.3.4}, {value: 1.2.3.4}], listeners: [{name: a, port: 1, protocol: HTTP}]}"), "IPAddress values must be unique"},
		{"route", route("{}"), ""},
		{"route hostname", route("{hostnames: [A.b]}"), "spec.hostnames[0]: Invalid value: \"A.b\": spec.hostnames[0] in body should match"},
		{"hostname with a star inside", route("{hostnames: ['a.*.b']}"), "spec.hostnames[0]: Invalid value"},
		{"wildcard", route("{hostnames: ['*.b']}"), ""},
		{"no rules", route("{rules: []}"), "spec.rules: Invalid value: 0: spec.rules in body should have at least 1 items"},
		{"17 rules", route("{rules: [" + strings.Repeat("{},", 16) + "{}]}"), "spec.rules: Too many: 17: must have at most 16 items"},
		{"rule names", route("{rules: [{name: a}, {name: a}]}"), "Rule name must be unique within the route"},
		{"too many matches", route("{rules: [" + strings.Repeat("{matches: ["+strings.Repeat("{},", 42)+"{}]},", 3) + "]}"), "the total number of matches across all rules in a route must be less than 128"},
		{"relative path", path("PathPrefix", "a"), "value must be an absolute path and start with '/'"},
		{"path with //", path("Exact", "/a//b"), "must not contain '//'"},
		{"path with dots", path("Exact", "/a/../b"), "must not contain '/../'"},
		{"path that ends in dots", path("PathPrefix", "/a/.."), "must not end with '/..'"},
		{"encoded slash", path("PathPrefix", "/a%2Fb"), "must not contain '%2F'"},
		{"fragment", path("PathPrefix", "/a#b"), "must not contain '#'"},
		{"characters", path("PathPrefix", "/a b"), "must only contain valid characters"},
		{"any regular expression", path("RegularExpression", "a//[b]"), ""},
		{"path type", path("Prefix", "/"), `spec.rules[0].matches[0].path.type: Unsupported value: "Prefix"`},
		{"method", rule("matches: [{method: get}]"), `spec.rules[0].matches[0].method: Unsupported value: "get"`},
		{"header twice", rule("matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}]"), `spec.rules[0].matches[0].headers[1]: Duplicate value: {"name":"a"}`},
		{"header name", rule("matches: [{headers: [{name: ':method', value: b}]}]"), "spec.rules[0].matches[0].headers[0].name: Invalid value"},
		{"header without value", rule("matches: [{headers: [{name: a}]}]"), "spec.rules[0].matches[0].headers[0].value: Required value"},
		{"backend without port", rule("backendRefs: [{name: a}]"), "Must have port for Service reference"},
		{"backend of another kind", rule("backendRefs: [{name: a, group: example.com, kind: Bucket}]"), ""},
		{"weight", rule("backendRefs: [{name: a, port: 1, weight: -1}]"), "spec.rules[0].backendRefs[0].weight: Invalid value: -1"},
		{"filter without its field", filter("type: URLRewrite"), "urlRewrite must be specified for URLRewrite filter.type"},
		{"filter with another's field", filter("type: URLRewrite, urlRewrite: {hostname: a.b}, requestRedirect: {hostname: a.b}"), "requestRedirect must be nil if the filter.type is not RequestRedirect"},
		{"filter type", filter("type: Rewrite"), `spec.rules[0].filters[0].type: Unsupported value: "Rewrite"`},
		{"filter twice", rule("filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}, {type: URLRewrite, urlRewrite: {hostname: a.b}}]"), "URLRewrite filter cannot be repeated"},
		{"redirect and rewrite", rule("filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}, {type: RequestRedirect, requestRedirect: {hostname: a.b}}]"), "May specify either"},
		{"redirect with backends", rule("filters: [{type: RequestRedirect, requestRedirect: {hostname: a.b}}], backendRefs: [{name: a, port: 1}]"), "RequestRedirect filter must not be used together with backendRefs"},
		{"redirect code", filter("type: RequestRedirect, requestRedirect: {statusCode: 300}"), "spec.rules[0].filters[0].requestRedirect.statusCode: Unsupported value: 300"},
		{"redirect scheme", filter("type: RequestRedirect, requestRedirect: {scheme: ftp}"), `requestRedirect.scheme: Unsupported value: "ftp"`},
		{"redirect host", filter("type: RequestRedirect, requestRedirect: {hostname: '*.a'}"), "requestRedirect.hostname: Invalid value"},
		{"modifier", filter("type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /}}"), "replaceFullPath must be specified for ReplaceFullPath type"},
		{"prefix of an exact path", rule("matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]"), "exactly one PathPrefix match must be specified"},
		{"prefix of the default path", filter("type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}"), ""},
		{"mirror", filter("type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, percent: 1, fraction: {numerator: 1}}"), "Only one of percent or fraction"},
		{"fraction", filter("type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, fraction: {numerator: 2, denominator: 1}}"), "numerator must be less than or equal to denominator"},
		{"origins", filter("type: CORS, cors: {allowOrigins: ['*', 'http://a']}"), "AllowOrigins cannot contain '*' alongside other origins"},
		{"origin", filter("type: CORS, cors: {allowOrigins: ['a.b']}"), "cors.allowOrigins[0]: Invalid value"},
		{"timeouts", rule("timeouts: {request: 1s, backendRequest: 2s}"), "backendRequest timeout cannot be longer than request timeout"},
		{"timeout", rule("timeouts: {request: 1.5s}"), "spec.rules[0].timeouts.request: Invalid value: \"1.5s\""},
		{"no timeout", rule("timeouts: {request: 0s, backendRequest: 2s}"), ""},
		{"retry", rule("retry: {codes: [200]}"), "spec.rules[0].retry.codes[0]: Invalid value: 200"},
		{"two parents", route("{parentRefs: [{name: a}, {name: a, sectionName: b}]}"), "sectionName or port must be specified when parentRefs includes 2 or more references to the same parent"},
		{"same parent twice", route("{parentRefs: [{name: a, sectionName: b}, {name: a, sectionName: b}]}"), "sectionName or port must be unique"},
		{"parents apart", route("{parentRefs: [{name: a, port: 1}, {name: a, port: 2}, {name: a, namespace: b}]}"), ""},
		{"grpc", grpc("{rules: [{matches: [{method: {service: a.B, method: C}}]}]}"), ""},
		{"grpc method", grpc("{rules: [{matches: [{method: {service: a/b}}]}]}"), "service must only contain valid characters"},
		{"grpc method of nothing", grpc("{rules: [{matches: [{method: {}}]}]}"), "One or both of 'service' or 'method' must be specified"},
		{"tls", tls("{hostnames: [a.b], rules: [{backendRefs: [{name: a, port: 443}]}]}"), ""},
		{"tls of an address", tls("{hostnames: ['1.2.3.4'], rules: [{backendRefs: [{name: a, port: 443}]}]}"), "Hostnames cannot contain an IP"},
		{"grant", grant("{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}"), ""},
		{"grant to nobody", grant("{from: [], to: [{group: '', kind: Service}]}"), "spec.from in body should have at least 1 items"},
		{"policy", policy("{targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.b, wellKnownCACertificates: System}}"), ""},
		{"policy that trusts nobody", policy("{targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.b}}"), "must specify either CACertificateRefs or WellKnownCACertificates"},
		{"unknown field", route("{rule: []}"), `unknown field "spec.rule" (did you mean "rules"?)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := checkText(t, c.in)
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// checkText is everything that is said against a manifest.
func checkText(t *testing.T, text string) string {
	t.Helper()
	m, problems := LoadBytes("x.yaml", []byte(text))
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	for _, c := range NewStore(Config{}, time.Now).Apply(m.Objects) {
		if c.Action == Rejected {
			fmt.Fprintln(&b, c)
		}
	}
	return b.String()
}

func TestGatewayDefaults(t *testing.T) {
	s := NewStore(Config{}, time.Now)
	m, problems := LoadBytes("x.yaml", []byte(fmt.Sprintf(gatewayHead, "Gateway", "{gatewayClassName: podgate, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: s}]}}]}")+
		"\n---\n"+fmt.Sprintf(gatewayHead, "HTTPRoute", "{parentRefs: [{name: x}], rules: [{filters: [{type: RequestRedirect, requestRedirect: {}}]}, {backendRefs: [{name: b, port: 1}]}]}")+
		"\n---\n"+strings.Replace(fmt.Sprintf(gatewayHead, "HTTPRoute", "{}"), "name: x", "name: empty", 1)))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s.Apply(m.Objects)
	st := s.State()
	l := st.Gateways[Name{"default", "x"}].Spec.Listeners[0]
	if *l.AllowedRoutes.Namespaces.From != gatewayv1.NamespacesFromSame || *l.TLS.Mode != gatewayv1.TLSModeTerminate || *l.TLS.CertificateRefs[0].Kind != "Secret" {
		t.Errorf("listener %+v", l)
	}
	r := st.HTTPRoutes[Name{"default", "x"}].Spec
	if p := r.ParentRefs[0]; *p.Kind != "Gateway" || *p.Group != gatewayv1.GroupName {
		t.Errorf("parent %+v", p)
	}
	if m := r.Rules[0].Matches[0].Path; *m.Type != gatewayv1.PathMatchPathPrefix || *m.Value != "/" || *r.Rules[0].Filters[0].RequestRedirect.StatusCode != 302 {
		t.Errorf("rule %+v", r.Rules[0])
	}
	if b := r.Rules[1].BackendRefs[0]; *b.Weight != 1 || *b.Kind != "Service" || *b.Group != "" {
		t.Errorf("backend %+v", b)
	}
	if got := st.HTTPRoutes[Name{"default", "empty"}].Spec.Rules; len(got) != 1 || *got[0].Matches[0].Path.Value != "/" {
		t.Errorf("rules %+v", got)
	}
}

// TestGatewayClassIsThere: without a manifest, and again after the manifest that
// took its place has gone.
func TestGatewayClassIsThere(t *testing.T) {
	s := NewStore(Config{}, time.Now)
	described := func() string { return *s.State().GatewayClasses["podgate"].Spec.Description }
	if got := described(); got != "podgate's front door" {
		t.Fatal(got)
	}
	m, _ := LoadBytes("x.yaml", []byte(strings.Replace(fmt.Sprintf(gatewayHead, "GatewayClass", "{controllerName: "+GatewayController+", description: mine}"), "name: x", "name: podgate", 1)))
	if c := s.Apply(m.Objects); c[0].Action != Configured || described() != "mine" {
		t.Fatal(c, described())
	}
	if c := s.Delete(m.Objects); c[0].Action != Deleted || described() != "podgate's front door" {
		t.Fatal(c, described())
	}
	if c := s.Delete(m.Objects); c[0].Action != Rejected {
		t.Fatal(c)
	}
	other, _ := LoadBytes("x.yaml", []byte(strings.Replace(fmt.Sprintf(gatewayHead, "GatewayClass", "{controllerName: example.com/c}"), "name: x", "name: podgate", 1)))
	if c := s.Apply(other.Objects); c[0].Action != Rejected || !strings.Contains(c[0].String(), "Value is immutable") {
		t.Fatal(c)
	}
}

func TestGatewayBetaVersions(t *testing.T) {
	for _, kind := range []string{"Gateway", "HTTPRoute", "GatewayClass", "ReferenceGrant"} {
		m, problems := LoadBytes("x.yaml", []byte("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: "+kind+"\nmetadata: {name: x}\n"))
		if len(problems) > 0 || len(m.Objects) != 1 {
			t.Errorf("%s: %v", kind, problems)
		}
	}
}
