package ingress

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// world is a store that objects of the Gateway API are applied to, one second
// after the other.
type world struct {
	t     testing.TB
	store *kube.Store
	now   time.Time
	prev  *Routes
	cfg   Config
	notes []kube.Problem
}

func newWorld(t testing.TB, docs ...string) *world {
	w := &world{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.store = kube.NewStore(kube.Config{}, func() time.Time { return w.now })
	w.cfg.Now = func() time.Time { return w.now }
	w.apply(docs...)
	return w
}

func (w *world) load(doc string) []kube.Object {
	w.t.Helper()
	m, problems := kube.LoadBytes("test.yaml", []byte(doc))
	if len(problems) > 0 {
		w.t.Fatalf("%v\n%s", problems, doc)
	}
	return m.Objects
}

func (w *world) apply(docs ...string) {
	w.t.Helper()
	for _, doc := range docs {
		for _, one := range strings.Split(doc, "\n---\n") {
			w.now = w.now.Add(time.Second)
			for _, c := range w.store.Apply(w.load(one)) {
				if c.Action == kube.Rejected {
					w.t.Fatalf("%s\n%s", c, one)
				}
			}
		}
	}
}

// service makes a Service of a namespace whose port 80 is endpoint 192.0.2.n:80.
func (w *world) service(namespace, name string, n int, more ...string) {
	w.t.Helper()
	w.apply(fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %[2]s, namespace: %[1]s}\nspec: {ports: [{name: http, port: 80%[3]s}]}\n", namespace, name, strings.Join(more, "")))
	if n > 0 {
		w.apply(fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %[2]s-1, namespace: %[1]s, labels: {kubernetes.io/service-name: %[2]s}}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [192.0.2.%[3]d]}]\n", namespace, name, n))
	}
}

// secret makes a Secret with a self-signed certificate.
func (w *world) secret(namespace, name string, hosts ...string) *x509.Certificate {
	w.t.Helper()
	st := &kube.State{Secrets: map[kube.Name]*corev1.Secret{}}
	cert := secret(w.t, st, name, hosts...)
	o := st.Secrets[kube.Name{Namespace: "ns", Name: name}]
	o.Namespace, o.APIVersion, o.Kind = namespace, "v1", "Secret"
	if c := w.store.Apply([]kube.Object{{API: o}}); c[0].Action == kube.Rejected {
		w.t.Fatal(c)
	}
	return cert
}

func (w *world) compile() *Routes {
	w.prev, w.notes = Compile(w.prev, w.store.State(), w.cfg)
	return w.prev
}

// gw writes a Gateway of namespace default; each listener is one in flow style.
func gw(name string, listeners ...string) string {
	return gwIn("default", name, "", listeners...)
}

func gwIn(namespace, name, spec string, listeners ...string) string {
	return fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: %s, namespace: %s}\nspec: {gatewayClassName: podgate, %s listeners: [%s]}\n", name, namespace, spec, strings.Join(listeners, ", "))
}

const http80 = "{name: http, port: 80, protocol: HTTP}"

// route writes an HTTPRoute of namespace default for Gateway gw.
func httpRoute(name, spec string) string {
	return routeIn("default", "HTTPRoute", name, "parentRefs: [{name: gw}], "+spec)
}

func routeIn(namespace, kind, name, spec string) string {
	return fmt.Sprintf("apiVersion: gateway.networking.k8s.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", kind, name, namespace, spec)
}

func to(service string) string { return "backendRefs: [{name: " + service + ", port: 80}]" }

// said is a condition as text: "True Accepted".
func said(all []metav1.Condition, kind any) string {
	c := meta.FindStatusCondition(all, fmt.Sprint(kind))
	if c == nil {
		return "none"
	}
	return string(c.Status) + " " + c.Reason
}

// parent is a condition of the first parent of an HTTPRoute of namespace default.
func (w *world) parent(route, kind string) string {
	s := w.compile().Statuses().HTTPRoutes[kube.Name{Namespace: "default", Name: route}]
	if s == nil || len(s.Parents) == 0 {
		return "no parents"
	}
	return said(s.Parents[0].Conditions, kind)
}

func (w *world) gateway(name string) *gatewayv1.GatewayStatus {
	w.t.Helper()
	s := w.compile().Statuses().Gateways[kube.Name{Namespace: "default", Name: name}]
	if s == nil {
		w.t.Fatalf("no status for Gateway %s", name)
	}
	return s
}

func (w *world) listener(gateway, name string) gatewayv1.ListenerStatus {
	w.t.Helper()
	for _, l := range w.gateway(gateway).Listeners {
		if string(l.Name) == name {
			return l
		}
	}
	w.t.Fatalf("no listener %s", name)
	return gatewayv1.ListenerStatus{}
}

// goes says where a request goes: "object rule backend", or "404".
func (w *world) goes(target string, fields ...string) string {
	w.t.Helper()
	return w.goesBy(netip.MustParseAddrPort("127.0.0.1:80"), target, fields...)
}

func (w *world) goesBy(door netip.AddrPort, target string, fields ...string) string {
	w.t.Helper()
	method, url, ok := strings.Cut(target, " ")
	if !ok {
		method, url = "GET", target
	}
	in, err := http.NewRequest(method, "http://"+url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		in.Header.Add(name, value)
	}
	r := w.compile()
	d := r.doors[door]
	if d == nil {
		return "closed"
	}
	host := matchHost(in.Host)
	l := d.listeners.first(host)
	if l == nil {
		return "404"
	}
	_, rt := l.match(host, matchPath(cleanPath(in.URL.EscapedPath())), in)
	if rt == nil {
		return "404"
	}
	return rt.ingress.Name + " " + strings.TrimPrefix(rt.field, "spec.") + " " + rt.backend.service.Name
}

func TestGatewayClassStatus(t *testing.T) {
	w := newWorld(t, "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: other}\nspec: {controllerName: example.com/c}\n",
		"apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: params}\nspec: {controllerName: podgate.dev/gateway-controller, parametersRef: {group: example.com, kind: Thing, name: x}}\n")
	s := w.compile().Statuses().GatewayClasses
	if s["other"] != nil {
		t.Error("another controller's class has a status of ours")
	}
	if got := said(s["podgate"].Conditions, "Accepted"); got != "True Accepted" {
		t.Error(got)
	}
	if got := said(s["params"].Conditions, "Accepted"); got != "False InvalidParameters" {
		t.Error(got)
	}
	names := s["podgate"].SupportedFeatures
	for i := range names[1:] {
		if names[i].Name >= names[i+1].Name {
			t.Errorf("features are not sorted: %s before %s", names[i].Name, names[i+1].Name)
		}
	}
}

func TestGatewaysOfOtherClassesAreLeftAlone(t *testing.T) {
	w := newWorld(t, "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: other}\nspec: {controllerName: example.com/c}\n",
		strings.Replace(gw("gw", http80), "podgate", "other", 1), httpRoute("r", "rules: [{"+to("a")+"}]"))
	s := w.compile().Statuses()
	if len(s.Gateways)+len(s.HTTPRoutes) != 0 || len(w.prev.doors) != 0 {
		t.Errorf("%v %v %v", s.Gateways, s.HTTPRoutes, w.prev.doors)
	}
}

// TestListeners: what is said about listeners, by the rules that the
// specification has for them.
func TestListeners(t *testing.T) {
	const tls = "tls: {certificateRefs: [{name: cert}]}"
	for _, c := range []struct {
		name      string
		listeners []string
		want      string // of each: Accepted, Programmed, ResolvedRefs, Conflicted, kinds
		gateway   string // Accepted, Programmed, ResolvedRefs
	}{
		{"HTTP", []string{http80}, "a: True Accepted, True Programmed, True ResolvedRefs, False NoConflicts [HTTPRoute GRPCRoute]", "True Accepted, True Programmed, True ResolvedRefs"},
		{"one hostname twice at another protocol", []string{"{name: a, port: 443, protocol: HTTPS, hostname: x.y, " + tls + "}", "{name: b, port: 443, protocol: TLS, hostname: x.y, tls: {mode: Passthrough}}"},
			"a: False HostnameConflict, False Invalid, True ResolvedRefs, True HostnameConflict [HTTPRoute GRPCRoute]\nb: False HostnameConflict, False Invalid, True ResolvedRefs, True HostnameConflict [TLSRoute]", "False ListenersNotValid, False Invalid, True ResolvedRefs"},
		{"two protocols at a port", []string{"{name: a, port: 80, protocol: HTTP}", "{name: b, port: 80, protocol: HTTPS, " + tls + "}", "{name: c, port: 81, protocol: HTTP}"},
			"a: False ProtocolConflict, False Invalid, True ResolvedRefs, True ProtocolConflict [HTTPRoute GRPCRoute]\nb: False ProtocolConflict, False Invalid, True ResolvedRefs, True ProtocolConflict [HTTPRoute GRPCRoute]\nc: True Accepted, True Programmed, True ResolvedRefs, False NoConflicts [HTTPRoute GRPCRoute]", "True ListenersNotValid, True Programmed, True ResolvedRefs"},
		{"unsupported protocol", []string{"{name: a, port: 53, protocol: UDP}"}, "a: False UnsupportedProtocol, False Invalid, True ResolvedRefs, False NoConflicts []", "False ListenersNotValid, False Invalid, True ResolvedRefs"},
		{"unsupported protocol beside another", []string{http80, "{name: b, port: 80, protocol: TCP}"},
			"a: True Accepted, True Programmed, True ResolvedRefs, False NoConflicts [HTTPRoute GRPCRoute]\nb: False UnsupportedProtocol, False Invalid, True ResolvedRefs, False NoConflicts []", "True ListenersNotValid, True Programmed, True ResolvedRefs"},
		{"TLS terminated", []string{"{name: a, port: 443, protocol: TLS, " + tls + "}"}, "a: False UnsupportedValue, False Invalid, True ResolvedRefs, False NoConflicts []", "False ListenersNotValid, False Invalid, True ResolvedRefs"},
		{"TLS passed through", []string{"{name: a, port: 443, protocol: TLS, tls: {mode: Passthrough}}"}, "a: True Accepted, True Programmed, True ResolvedRefs, False NoConflicts [TLSRoute]", "True Accepted, True Programmed, True ResolvedRefs"},
		{"kinds", []string{"{name: a, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}"}, "a: True Accepted, True Programmed, True ResolvedRefs, False NoConflicts [GRPCRoute]", "True Accepted, True Programmed, True ResolvedRefs"},
		{"invalid kind", []string{"{name: a, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: Pigeon}]}}"}, "a: True Accepted, True Programmed, False InvalidRouteKinds, False NoConflicts []", "True Accepted, True Programmed, False ListenersNotResolved"},
		{"a valid and an invalid kind", []string{"{name: a, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: Pigeon}, {kind: HTTPRoute}]}}"}, "a: True Accepted, True Programmed, False InvalidRouteKinds, False NoConflicts [HTTPRoute]", "True Accepted, True Programmed, False ListenersNotResolved"},
		{"no certificate", []string{"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: none}]}}"}, "a: True Accepted, False Invalid, False InvalidCertificateRef, False NoConflicts [HTTPRoute GRPCRoute]", "True ListenersNotValid, False Invalid, False ListenersNotResolved"},
		{"a broken certificate", []string{"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: broken}]}}"}, "a: True Accepted, False Invalid, False InvalidCertificateRef, False NoConflicts [HTTPRoute GRPCRoute]", "True ListenersNotValid, False Invalid, False ListenersNotResolved"},
		{"a certificate of another kind", []string{"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{kind: Pigeon, name: cert}]}}"}, "a: True Accepted, False Invalid, False InvalidCertificateRef, False NoConflicts [HTTPRoute GRPCRoute]", "True ListenersNotValid, False Invalid, False ListenersNotResolved"},
		{"a certificate of another namespace", []string{"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert, namespace: other}]}}"}, "a: True Accepted, False Invalid, False RefNotPermitted, False NoConflicts [HTTPRoute GRPCRoute]", "True ListenersNotValid, False Invalid, False ListenersNotResolved"},
		{"a certificate of another namespace that allows it", []string{"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert, namespace: open}]}}"}, "a: True Accepted, True Programmed, True ResolvedRefs, False NoConflicts [HTTPRoute GRPCRoute]", "True Accepted, True Programmed, True ResolvedRefs"},
		{"another certificate of that namespace", []string{"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: shut, namespace: open}]}}"}, "a: True Accepted, False Invalid, False RefNotPermitted, False NoConflicts [HTTPRoute GRPCRoute]", "True ListenersNotValid, False Invalid, False ListenersNotResolved"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, gw("gw", c.listeners...),
				"apiVersion: v1\nkind: Secret\nmetadata: {name: broken}\nstringData: {tls.crt: some, tls.key: text}\ntype: kubernetes.io/tls\n",
				"apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: open}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}], to: [{group: '', kind: Secret, name: cert}]}\n")
			for _, ns := range []string{"default", "other", "open"} {
				w.secret(ns, "cert", "x.y")
			}
			w.secret("open", "shut", "x.y")
			s := w.gateway("gw")
			var lines []string
			for _, l := range s.Listeners {
				var kinds []string
				for _, k := range l.SupportedKinds {
					kinds = append(kinds, string(k.Kind))
				}
				name := l.Name
				if name == "http" {
					name = "a"
				}
				lines = append(lines, fmt.Sprintf("%s: %s, %s, %s, %s %v", name, said(l.Conditions, "Accepted"), said(l.Conditions, "Programmed"), said(l.Conditions, "ResolvedRefs"), said(l.Conditions, "Conflicted"), kinds))
			}
			if d := cmp.Diff(c.want, strings.Join(lines, "\n")); d != "" {
				t.Errorf("listeners (-want +got):\n%s", d)
			}
			got := said(s.Conditions, "Accepted") + ", " + said(s.Conditions, "Programmed") + ", " + said(s.Conditions, "ResolvedRefs")
			if got != c.gateway {
				t.Errorf("got Gateway %s, want %s", got, c.gateway)
			}
		})
	}
}

// TestAttachment: which listeners a route's parents are, and what is said if
// there is none.
func TestAttachment(t *testing.T) {
	const listeners = "{name: one, port: 80, protocol: HTTP, hostname: '*.example.com'}, {name: two, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}, {name: three, port: 82, protocol: HTTP, hostname: a.b, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: HTTPRoute}]}}"
	for _, c := range []struct{ name, namespace, kind, spec, want, attached string }{
		{"the whole Gateway", "default", "HTTPRoute", "parentRefs: [{name: gw}]", "True Accepted", "one three"},
		{"by name", "default", "HTTPRoute", "parentRefs: [{name: gw, sectionName: three}]", "True Accepted", "three"},
		{"by port", "default", "HTTPRoute", "parentRefs: [{name: gw, port: 80}]", "True Accepted", "one"},
		{"no such name", "default", "HTTPRoute", "parentRefs: [{name: gw, sectionName: none}]", "False NoMatchingParent", ""},
		{"no such port", "default", "HTTPRoute", "parentRefs: [{name: gw, port: 9}]", "False NoMatchingParent", ""},
		{"name and port apart", "default", "HTTPRoute", "parentRefs: [{name: gw, sectionName: one, port: 82}]", "False NoMatchingParent", ""},
		{"another namespace", "other", "HTTPRoute", "parentRefs: [{name: gw, namespace: default}]", "True Accepted", "three"},
		{"a namespace that is not allowed", "other", "HTTPRoute", "parentRefs: [{name: gw, namespace: default, sectionName: one}]", "False NotAllowedByListeners", ""},
		{"a namespace that is selected", "team-a", "HTTPRoute", "parentRefs: [{name: gw, namespace: default, sectionName: two}]", "True Accepted", "two"},
		{"a namespace that is not selected", "other", "HTTPRoute", "parentRefs: [{name: gw, namespace: default, sectionName: two}]", "False NotAllowedByListeners", ""},
		{"a kind that is not allowed", "default", "GRPCRoute", "parentRefs: [{name: gw, sectionName: three}]", "False NotAllowedByListeners", ""},
		{"hostnames", "default", "HTTPRoute", "parentRefs: [{name: gw}], hostnames: [x.example.com]", "True Accepted", "one"},
		{"hostnames elsewhere", "default", "HTTPRoute", "parentRefs: [{name: gw}], hostnames: [example.com]", "False NoMatchingListenerHostname", ""},
		{"several labels", "default", "HTTPRoute", "parentRefs: [{name: gw}], hostnames: [x.y.example.com]", "True Accepted", "one"},
		{"a wider wildcard", "default", "HTTPRoute", "parentRefs: [{name: gw}], hostnames: ['*.com']", "True Accepted", "one"},
		{"a wildcard for one host", "default", "HTTPRoute", "parentRefs: [{name: gw}], hostnames: ['*.b']", "True Accepted", "three"},
		{"no such Gateway", "default", "HTTPRoute", "parentRefs: [{name: none}]", "no parents", ""},
		{"a Service", "default", "HTTPRoute", "parentRefs: [{group: '', kind: Service, name: gw}]", "no parents", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: team-a, labels: {team: a}}\n", gw("gw", listeners), routeIn(c.namespace, c.kind, "r", c.spec))
			s := w.compile().Statuses()
			r := s.HTTPRoutes[kube.Name{Namespace: c.namespace, Name: "r"}]
			if c.kind == "GRPCRoute" {
				r = s.GRPCRoutes[kube.Name{Namespace: c.namespace, Name: "r"}]
			}
			got := "no parents"
			if r != nil {
				got = said(r.Parents[0].Conditions, "Accepted")
				if p := r.Parents[0]; p.ControllerName != kube.GatewayController || p.Conditions[0].ObservedGeneration != 1 {
					t.Errorf("parent %+v", p)
				}
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			var attached []string
			for _, l := range w.gateway("gw").Listeners {
				if l.AttachedRoutes > 0 {
					attached = append(attached, string(l.Name))
				}
			}
			if got := strings.Join(attached, " "); got != c.attached {
				t.Errorf("attached to %q, want %q", got, c.attached)
			}
		})
	}
}

// TestReferencesOfRoutes: what backends cannot be, and what is said of it.
func TestReferencesOfRoutes(t *testing.T) {
	for _, c := range []struct{ name, kind, spec, want string }{
		{"a Service", "HTTPRoute", to("a"), "True ResolvedRefs"},
		{"none", "HTTPRoute", "filters: []", "True ResolvedRefs"},
		{"no such Service", "HTTPRoute", to("none"), "False BackendNotFound"},
		{"no such port", "HTTPRoute", "backendRefs: [{name: a, port: 81}]", "False BackendNotFound"},
		{"another kind", "HTTPRoute", "backendRefs: [{name: a, kind: Pigeon, port: 80}]", "False InvalidKind"},
		{"another group", "HTTPRoute", "backendRefs: [{name: a, group: example.com, port: 80}]", "False InvalidKind"},
		{"another namespace", "HTTPRoute", "backendRefs: [{name: b, namespace: shut, port: 80}]", "False RefNotPermitted"},
		{"another namespace that does not exist", "HTTPRoute", "backendRefs: [{name: b, namespace: none, port: 80}]", "False RefNotPermitted"},
		{"a namespace that allows it", "HTTPRoute", "backendRefs: [{name: b, namespace: open, port: 80}]", "True ResolvedRefs"},
		{"a namespace that allows the other kind", "GRPCRoute", "backendRefs: [{name: b, namespace: open, port: 80}]", "False RefNotPermitted"},
		{"a mirror", "HTTPRoute", to("a") + ", filters: [{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}}]", "False BackendNotFound"},
		{"an ExternalName", "HTTPRoute", to("ext"), "False InvalidKind"},
		{"a filter of somebody else", "HTTPRoute", to("a") + ", filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: Thing, name: x}}]", "False InvalidKind"},
		{"gRPC over WebSocket", "GRPCRoute", to("ws"), "False UnsupportedProtocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, gw("gw", http80), routeIn("default", c.kind, "r", "parentRefs: [{name: gw}], rules: [{"+c.spec+"}]"),
				"apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: open}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}], to: [{group: '', kind: Service}]}\n",
				"apiVersion: v1\nkind: Service\nmetadata: {name: ext}\nspec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}\n")
			w.service("default", "a", 1)
			w.service("default", "ws", 1, ", appProtocol: kubernetes.io/ws")
			w.service("open", "b", 2)
			w.service("shut", "b", 2)
			s := w.compile().Statuses()
			r := s.HTTPRoutes[kube.Name{Namespace: "default", Name: "r"}]
			if c.kind == "GRPCRoute" {
				r = s.GRPCRoutes[kube.Name{Namespace: "default", Name: "r"}]
			}
			if got := said(r.Parents[0].Conditions, "ResolvedRefs"); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if got := said(r.Parents[0].Conditions, "Accepted"); got != "True Accepted" {
				t.Errorf("got %s: references decide nothing about attachment", got)
			}
			if problem := strings.HasPrefix(c.want, "False"); problem != strings.Contains(notes(w.notes), c.want[6:]) {
				t.Errorf("problems: %s", notes(w.notes))
			}
		})
	}
}

// TestOneKindOfRouteForAHostname: of an HTTPRoute and a GRPCRoute that share a
// hostname the older is accepted.
func TestOneKindOfRouteForAHostname(t *testing.T) {
	grpc := func(hosts string) string {
		return routeIn("default", "GRPCRoute", "g", "parentRefs: [{name: gw}], hostnames: ["+hosts+"]")
	}
	for hosts, want := range map[string]string{"a.b": "False HostnameConflict", "'*.b'": "False HostnameConflict", "a.c": "True Accepted", "": "False HostnameConflict"} {
		w := newWorld(t, gw("gw", http80), httpRoute("h", "hostnames: [a.b]"), grpc(hosts))
		s := w.compile().Statuses().GRPCRoutes[kube.Name{Namespace: "default", Name: "g"}]
		if got := said(s.Parents[0].Conditions, "Accepted"); got != want {
			t.Errorf("%q: got %s, want %s", hosts, got, want)
		}
		if got := w.parent("h", "Accepted"); got != "True Accepted" {
			t.Errorf("%q: the older route is %s", hosts, got)
		}
	}
}

func TestInvalidRules(t *testing.T) {
	const bad = "{matches: [{path: {type: RegularExpression, value: '('}}]}"
	w := newWorld(t, gw("gw", http80), httpRoute("all", "rules: ["+bad+"]"), httpRoute("some", "rules: ["+bad+", {matches: [{path: {value: /good}}]}]"))
	if got := w.parent("all", "Accepted"); got != "False UnsupportedValue" {
		t.Error(got)
	}
	if got := w.parent("some", "Accepted") + ", " + w.parent("some", "PartiallyInvalid"); got != "True Accepted, True UnsupportedValue" {
		t.Error(got)
	}
	if got := w.goes("h/good"); got != "some rules[1] " {
		t.Error(got)
	}
	if got := w.parent("all", "PartiallyInvalid"); got != "none" {
		t.Error(got)
	}
	if !strings.Contains(notes(w.notes), "Dropped Rule: spec.rules[0]: path") {
		t.Error(notes(w.notes))
	}
}

// TestConditionsKeepTheirTime: the time of a condition is that of its last change
// of status; the generation follows the object.
func TestConditionsKeepTheirTime(t *testing.T) {
	w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{"+to("a")+"}]"))
	before := w.compile().Statuses()
	w.now = w.now.Add(time.Hour)
	w.service("default", "unrelated", 1)
	if after := w.compile().Statuses(); after.Gateways[kube.Name{Namespace: "default", Name: "gw"}] != before.Gateways[kube.Name{Namespace: "default", Name: "gw"}] {
		t.Error("a status that did not change is another")
	}
	w.service("default", "a", 1)
	s := w.compile().Statuses().HTTPRoutes[kube.Name{Namespace: "default", Name: "r"}]
	old := before.HTTPRoutes[kube.Name{Namespace: "default", Name: "r"}].Parents[0].Conditions
	now := s.Parents[0].Conditions
	if now[0].LastTransitionTime != old[0].LastTransitionTime || !now[1].LastTransitionTime.After(old[1].LastTransitionTime.Time) {
		t.Errorf("got %v, before %v", now, old)
	}
	w.apply(httpRoute("r", "rules: [{"+to("a")+"}, {}]"))
	s = w.compile().Statuses().HTTPRoutes[kube.Name{Namespace: "default", Name: "r"}]
	if c := s.Parents[0].Conditions[0]; c.ObservedGeneration != 2 || c.LastTransitionTime != old[0].LastTransitionTime {
		t.Errorf("got %+v", c)
	}
}

func TestHTTPSListenersThatOverlapSaySo(t *testing.T) {
	const https = "port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}"
	w := newWorld(t, gw("gw", "{name: a, hostname: foo.example.com, "+https+"}", "{name: b, hostname: foo.example.org, "+https+"}", "{name: c, hostname: '*.example.com', "+https+"}"))
	w.secret("default", "cert", "foo.example.com")
	for name, want := range map[string]string{"a": "True OverlappingHostnames", "b": "none", "c": "True OverlappingHostnames"} {
		if got := said(w.listener("gw", name).Conditions, "OverlappingTLSConfig"); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestReferencesOfGateways(t *testing.T) {
	w := newWorld(t, gwIn("default", "gw", "tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}},",
		"{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert, namespace: x}]}}"),
		routeIn("default", "BackendTLSPolicy", "p", "targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.b, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}"))
	secrets, configMaps := References(w.store.State())
	if d := cmp.Diff([]kube.Name{{Namespace: "x", Name: "cert"}}, secrets); d != "" {
		t.Error(d)
	}
	for _, want := range []kube.Name{{Namespace: "default", Name: "ca"}, {Namespace: "default", Name: "roots"}} {
		found := false
		for _, n := range configMaps {
			found = found || n == want
		}
		if !found {
			t.Errorf("%s is not among %v", want, configMaps)
		}
	}
}
