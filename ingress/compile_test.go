package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"podgate/kube"
)

// state makes a State of YAML documents, as an API server would serve them.
func state(t testing.TB, docs ...string) *kube.State {
	t.Helper()
	st := &kube.State{
		Services:       map[kube.Name]*corev1.Service{},
		Ingresses:      map[kube.Name]*networkingv1.Ingress{},
		IngressClasses: map[string]*networkingv1.IngressClass{},
		Secrets:        map[kube.Name]*corev1.Secret{},
		ConfigMaps:     map[kube.Name]*corev1.ConfigMap{},
	}
	for _, doc := range strings.Split(strings.Join(docs, "\n---\n"), "\n---\n") {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		switch head.Kind {
		case "Ingress":
			o := decode[networkingv1.Ingress](t, doc)
			st.Ingresses[kube.Name{Namespace: o.Namespace, Name: o.Name}] = o
		case "IngressClass":
			o := decode[networkingv1.IngressClass](t, doc)
			st.IngressClasses[o.Name] = o
		case "Service":
			o := decode[corev1.Service](t, doc)
			st.Services[kube.Name{Namespace: o.Namespace, Name: o.Name}] = o
		case "EndpointSlice":
			o := decode[discoveryv1.EndpointSlice](t, doc)
			st.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: o.Namespace, Name: o.Name}, o)
		case "":
		default:
			t.Fatalf("kind %q\n%s", head.Kind, doc)
		}
	}
	return st
}

func decode[T any](t testing.TB, doc string) *T {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	return o
}

// withService adds a Service ns/name, port http 80, with these ready endpoints.
func withService(st *kube.State, name string, endpoints ...netip.AddrPort) {
	of := kube.Name{Namespace: "ns", Name: name}
	meta := metav1.ObjectMeta{Namespace: of.Namespace, Name: of.Name, Labels: map[string]string{discoveryv1.LabelServiceName: name}}
	st.Services[of] = &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
	for i, ep := range endpoints {
		port, portName := int32(ep.Port()), "http"
		m := meta
		m.Name = fmt.Sprintf("%s-%d", name, i)
		st.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: "ns", Name: m.Name}, &discoveryv1.EndpointSlice{
			ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4,
			Ports:     []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ep.Addr().String()}}},
		})
	}
}

// rule is one path of an Ingress of the tests: "host|Type|path|service".
type rule string

// ingress writes an Ingress ns/name with these rules, in YAML.
func ingress(name string, rules ...rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kind: Ingress\nmetadata: {name: %s, namespace: ns}\nspec:\n  rules:\n", name)
	for _, r := range rules {
		f := strings.Split(string(r), "|")
		fmt.Fprintf(&b, "  - {host: %q, http: {paths: [{pathType: %s, path: %q, backend: {service: {name: %s, port: {number: 80}}}}]}}\n", f[0], f[1], f[2], f[3])
	}
	return b.String()
}

// routed says where a request goes: "service", or "default service", or "404".
func routed(r *Routes, hostname, path string) string {
	_, rt := r.match(matchHost(hostname), matchPath(cleanPath(path)))
	switch {
	case rt == nil:
		return "404"
	case rt.kind == defaultBackend:
		return "default " + rt.backend.service.Name
	}
	return rt.backend.service.Name
}

// The table "Examples" of the Ingress documentation, all rows.
func TestPathTypesOfTheAPI(t *testing.T) {
	for _, row := range []struct {
		paths   []string // type and path; the backend is named by both
		request []string
		want    string
	}{
		{[]string{"Prefix /"}, []string{"/", "/foo", "/foo/bar", "//", "/foo/"}, "Prefix /"},
		{[]string{"Exact /foo"}, []string{"/foo"}, "Exact /foo"},
		{[]string{"Exact /foo"}, []string{"/bar"}, "404"},
		{[]string{"Exact /foo"}, []string{"/foo/"}, "404"},
		{[]string{"Exact /foo/"}, []string{"/foo"}, "404"},
		{[]string{"Prefix /foo"}, []string{"/foo", "/foo/"}, "Prefix /foo"},
		{[]string{"Prefix /foo/"}, []string{"/foo", "/foo/"}, "Prefix /foo/"},
		{[]string{"Prefix /aaa/bb"}, []string{"/aaa/bbb"}, "404"},
		{[]string{"Prefix /aaa/bbb"}, []string{"/aaa/bbb"}, "Prefix /aaa/bbb"},
		{[]string{"Prefix /aaa/bbb/"}, []string{"/aaa/bbb"}, "Prefix /aaa/bbb/"},
		{[]string{"Prefix /aaa/bbb"}, []string{"/aaa/bbb/"}, "Prefix /aaa/bbb"},
		{[]string{"Prefix /aaa/bbb"}, []string{"/aaa/bbb/ccc"}, "Prefix /aaa/bbb"},
		{[]string{"Prefix /aaa/bbb"}, []string{"/aaa/bbbxyz"}, "404"},
		{[]string{"Prefix /", "Prefix /aaa"}, []string{"/aaa/ccc"}, "Prefix /aaa"},
		{[]string{"Prefix /", "Prefix /aaa", "Prefix /aaa/bbb"}, []string{"/aaa/bbb"}, "Prefix /aaa/bbb"},
		{[]string{"Prefix /", "Prefix /aaa", "Prefix /aaa/bbb"}, []string{"/ccc"}, "Prefix /"},
		{[]string{"Prefix /aaa"}, []string{"/ccc"}, "404"}, // "uses default backend"
		{[]string{"Prefix /foo", "Exact /foo"}, []string{"/foo"}, "Exact /foo"},

		// What the table leaves to its text.
		{[]string{"Prefix /foo", "Exact /foo"}, []string{"/foo/", "/foo/x"}, "Prefix /foo"},
		{[]string{"ImplementationSpecific /foo"}, []string{"/foo", "/foo/", "/foo/bar"}, "ImplementationSpecific /foo"},
		{[]string{"ImplementationSpecific "}, []string{"/", "/foo"}, "ImplementationSpecific "},
		{[]string{"Prefix /FOO"}, []string{"/foo"}, "404"},
		{[]string{"Prefix /a/b/c", "Prefix /a"}, []string{"/a/b", "/a/b/cc", "/a/x/y/z/q"}, "Prefix /a"},
		{[]string{"Prefix /a/b/c", "Prefix /a"}, []string{"/a/b/c", "/a/b/c/d/e/f/g"}, "Prefix /a/b/c"},

		// The paths that podgate takes as its package says.
		{[]string{"Prefix /", "Prefix /admin"}, []string{"/x/../admin", "/x/%2e%2e/admin/y", "/./admin"}, "Prefix /admin"},
		{[]string{"Prefix /", "Prefix /admin"}, []string{"//admin", "/admin/..", "/x%2F..%2Fadmin", "/admin%2Fx"}, "Prefix /"},
		{[]string{"Prefix /a b"}, []string{"/a%20b/c"}, "Prefix /a b"},
	} {
		ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "i"}}
		var paths []networkingv1.HTTPIngressPath
		for i, p := range row.paths {
			kind, path, _ := strings.Cut(p, " ")
			pathType := networkingv1.PathType(kind)
			paths = append(paths, networkingv1.HTTPIngressPath{Path: path, PathType: &pathType, Backend: networkingv1.IngressBackend{
				Service: &networkingv1.IngressServiceBackend{Name: fmt.Sprint(i), Port: networkingv1.ServiceBackendPort{Number: 80}},
			}})
		}
		ing.Spec.Rules = []networkingv1.IngressRule{{IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: paths}}}}
		st := state(t)
		st.Ingresses[kube.Name{Namespace: "ns", Name: "i"}] = ing
		r, _ := Compile(nil, st, Config{})
		for _, request := range row.request {
			got := routed(r, "any.example", request)
			for i, p := range row.paths {
				if got == fmt.Sprint(i) {
					got = p
				}
			}
			if got != row.want {
				t.Errorf("%v, request %s: got %q, want %q", row.paths, request, got, row.want)
			}
		}
	}
}

func TestPrecedence(t *testing.T) {
	const old = "kind: Ingress\nmetadata: {name: z-old, namespace: ns, creationTimestamp: 2020-01-01T00:00:00Z}\nspec: {rules: [{host: tie.example, http: {paths: [{pathType: Prefix, path: /, backend: {service: {name: old, port: {number: 80}}}}]}}]}"
	const fallback = `kind: Ingress
metadata: {name: c, namespace: ns}
spec:
  defaultBackend: {service: {name: own, port: {number: 80}}}
  rules:
  - {host: def.example, http: {paths: [{pathType: Prefix, path: /a, backend: {service: {name: a, port: {number: 80}}}}]}}
  - {host: bare.example}`
	const global = "kind: Ingress\nmetadata: {name: zz, namespace: ns}\nspec: {defaultBackend: {service: {name: global, port: {number: 80}}}}"
	hosts := ingress("a",
		"shop.example|Prefix|/|exact",
		"*.foo.com|Prefix|/|wildcard",
		"a.foo.com|Prefix|/only|exact-foo",
		"*.bar.foo.com|Prefix|/|deeper",
		"SHOP2.example|Exact|/x|upper",
	)
	any := ingress("b", "|Prefix|/any|any")
	newer := strings.Replace(ingress("a-new", "tie.example|Prefix|/|new"), "namespace: ns}", "namespace: ns, creationTimestamp: 2021-01-01T00:00:00Z}", 1)
	for _, test := range []struct {
		says       string
		docs       []string
		host, path string
		want       string
	}{
		{"host", []string{hosts}, "shop.example", "/", "exact"},
		{"host, any case and with port", []string{hosts}, "Shop.Example:8080", "/", "exact"},
		{"rule in capitals", []string{hosts}, "shop2.example", "/x", "upper"},
		{"no such host", []string{hosts}, "other.example", "/", "404"},
		{"wildcard: one label", []string{hosts}, "bar.foo.com", "/", "wildcard"},
		{"wildcard: not two labels", []string{hosts}, "baz.qux.foo.com", "/", "404"},
		{"wildcard: not none", []string{hosts}, "foo.com", "/", "404"},
		{"wildcard: not an empty one", []string{hosts}, ".foo.com", "/", "404"},
		{"wildcard: below another", []string{hosts}, "x.bar.foo.com", "/", "deeper"},
		{"exact host before wildcard", []string{hosts}, "a.foo.com", "/only", "exact-foo"},
		{"the host is evaluated first", []string{hosts}, "a.foo.com", "/other", "404"},
		{"no host: any", []string{hosts, any}, "other.example", "/any/x", "any"},
		{"no host: not for hosts with rules", []string{hosts, any}, "a.foo.com", "/any", "404"},
		{"the oldest wins a tie", []string{old, newer}, "tie.example", "/", "old"},
		{"then the first by name", []string{ingress("b2", "t.example|Prefix|/|second"), ingress("b1", "t.example|Prefix|/|first")}, "t.example", "/", "first"},
		{"then the first in the Ingress", []string{ingress("a", "t.example|Prefix|/|one", "t.example|Prefix|/|two")}, "t.example", "/", "one"},
		{"longest path across Ingresses", []string{ingress("a", "t.example|Prefix|/x|short"), ingress("b", "t.example|Prefix|/x/y|long")}, "t.example", "/x/y/z", "long"},
		{"Exact before Prefix across Ingresses", []string{ingress("a", "t.example|Prefix|/x|prefix"), ingress("b", "t.example|Exact|/x|exact")}, "t.example", "/x", "exact"},
		{"the longer spelling of a prefix", []string{ingress("a", "t.example|Prefix|/x|short"), ingress("b", "t.example|Prefix|/x/|long")}, "t.example", "/x", "long"},
		{"default backend: no rule matches in it", []string{fallback}, "def.example", "/b", "default own"},
		{"default backend: a rule matches", []string{fallback}, "def.example", "/a", "a"},
		{"default backend: a rule without http", []string{fallback}, "bare.example", "/b", "default own"},
		{"default backend: no host matches", []string{fallback}, "other.example", "/b", "default own"},
		{"default backend: an Ingress without rules is for all hosts", []string{fallback, global}, "other.example", "/", "default global"},
		{"default backend: the Ingress's own comes first", []string{fallback, global}, "def.example", "/", "default own"},
		{"default backend: for hosts that have none", []string{hosts, global}, "a.foo.com", "/other", "default global"},
		{"nothing at all", []string{""}, "x.example", "/", "404"},
	} {
		r, _ := Compile(nil, state(t, test.docs...), Config{})
		if got := routed(r, test.host, test.path); got != test.want {
			t.Errorf("%s: %s%s: got %s, want %s", test.says, test.host, test.path, got, test.want)
		}
	}
}

// No rule among a thousand is looked at that does not concern the request.
func TestRoutingCostsTheLongestRule(t *testing.T) {
	var rules []rule
	for i := range 1000 {
		rules = append(rules, rule(fmt.Sprintf("t.example|Prefix|/p%d/x|s%d", i, i)))
	}
	r, _ := Compile(nil, state(t, ingress("many", rules...)), Config{})
	if got := routed(r, "t.example", "/p617/x/y"); got != "s617" {
		t.Errorf("got %s, want s617", got)
	}
	long := strings.Repeat("/", 60_000)
	if n := testing.AllocsPerRun(10, func() { r.match("t.example", long) }); n > 0 {
		t.Errorf("matching allocates %v times", n)
	}
	if h := r.exact["t.example"]; h.depth != 2 {
		t.Errorf("depth: got %d, want 2", h.depth)
	}
}

func class(name, controller, annotations string) string {
	return fmt.Sprintf("kind: IngressClass\nmetadata: {name: %s, annotations: {%s}}\nspec: {controller: %s}", name, annotations, controller)
}

func TestClasses(t *testing.T) {
	const ours, heir, theirs = "podgate.dev/ingress", "k8s.io/ingress-nginx", "example.com/other"
	const isDefault = `ingressclass.kubernetes.io/is-default-class: "true"`
	plain := ingress("i", "t.example|Prefix|/|s")
	named := func(class string) string {
		return strings.Replace(plain, "spec:", "spec:\n  ingressClassName: "+class, 1)
	}
	annotated := func(class string) string {
		return strings.Replace(plain, "namespace: ns}", "namespace: ns, annotations: {kubernetes.io/ingress.class: "+class+"}}", 1)
	}
	for _, test := range []struct {
		says string
		docs []string
		note string // "" served
	}{
		{"no classes at all: served", []string{plain}, ""},
		{"no classes at all: ingress-nginx's name", []string{named("nginx")}, ""},
		{"no classes at all: our name in the annotation", []string{annotated("podgate")}, ""},
		{"no classes at all: nobody's name", []string{named("traefik")},
			`ns/i: spec.ingressClassName: ignored: there is no IngressClass "traefik"`},
		{"no classes at all: nobody's name in the annotation", []string{annotated("traefik")},
			`ns/i: metadata.annotations[kubernetes.io/ingress.class]: ignored: there is no IngressClass "traefik"`},
		{"ours", []string{named("podgate"), class("podgate", ours, "")}, ""},
		{"ours under another name", []string{named("edge"), class("edge", ours, "")}, ""},
		{"ingress-nginx's", []string{named("web"), class("web", heir, "")}, ""},
		{"name nginx, claimed by nobody", []string{named("nginx"), class("other", theirs, "")}, ""},
		{"name podgate, claimed by nobody", []string{named("podgate"), class("other", theirs, "")}, ""},
		{"name nginx, claimed", []string{named("nginx"), class("nginx", theirs, "")},
			`ns/i: spec.ingressClassName: ignored: class "nginx" belongs to controller "example.com/other"`},
		{"another's", []string{named("other"), class("other", theirs, "")},
			`ns/i: spec.ingressClassName: ignored: class "other" belongs to controller "example.com/other"`},
		{"nobody's", []string{named("typo"), class("podgate", ours, "")},
			`ns/i: spec.ingressClassName: ignored: there is no IngressClass "typo"`},
		{"no class, no default", []string{plain, class("podgate", ours, "")},
			`ns/i: spec.ingressClassName: ignored: it names no class, and no IngressClass has the annotation ingressclass.kubernetes.io/is-default-class: "true"`},
		{"no class, default ours", []string{plain, class("podgate", ours, isDefault)}, ""},
		{"no class, default another's", []string{plain, class("other", theirs, isDefault), class("podgate", ours, "")},
			`ns/i: spec.ingressClassName: ignored: class "other" belongs to controller "example.com/other"`},
		{"annotation, ours", []string{annotated("podgate"), class("other", theirs, isDefault)}, ""},
		{"annotation, nginx", []string{annotated("nginx"), class("other", theirs, isDefault)}, ""},
		{"annotation, another's", []string{annotated("other"), class("other", theirs, "")},
			`ns/i: metadata.annotations[kubernetes.io/ingress.class]: ignored: class "other" belongs to controller "example.com/other"`},
		{"the annotation is stronger", []string{
			strings.Replace(annotated("nginx"), "spec:", "spec:\n  ingressClassName: other", 1), class("other", theirs, "")}, ""},
		{"the annotation is stronger, also against ours", []string{
			strings.Replace(annotated("other"), "spec:", "spec:\n  ingressClassName: podgate", 1), class("other", theirs, ""), class("podgate", ours, "")},
			`ns/i: metadata.annotations[kubernetes.io/ingress.class]: ignored: class "other" belongs to controller "example.com/other"`},
		{"two defaults: the newest", []string{plain,
			strings.Replace(class("a", theirs, isDefault), "{name: a,", "{name: a, creationTimestamp: 2020-01-01T00:00:00Z,", 1),
			strings.Replace(class("b", ours, isDefault), "{name: b,", "{name: b, creationTimestamp: 2021-01-01T00:00:00Z,", 1)}, ""},
	} {
		st := state(t, test.docs...)
		withService(st, "s")
		r, problems := Compile(nil, st, Config{})
		want := "s"
		if test.note != "" {
			want = "404"
		}
		if got := routed(r, "t.example", "/"); got != want {
			t.Errorf("%s: got %s, want %s", test.says, got, want)
		}
		if got := notes(problems); got != test.note {
			t.Errorf("%s: got note\n%s\nwant\n%s", test.says, got, test.note)
		}
	}
}

// notes are problems as text.
func notes(problems []kube.Problem) string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, fmt.Sprintf("%s: %s: %s", p.Object, p.Field, p.Err))
	}
	return strings.Join(lines, "\n")
}

func TestBackends(t *testing.T) {
	const services = `kind: Service
metadata: {name: web, namespace: ns}
spec: {clusterIP: 10.96.0.1, ipFamilies: [IPv4, IPv6], ports: [{name: http, port: 80, appProtocol: kubernetes.io/h2c}, {name: admin, port: 9000}]}
---
kind: EndpointSlice
metadata: {name: web-4, namespace: ns, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: admin, port: 9001}]
endpoints:
- {addresses: [10.244.0.5], conditions: {ready: true}}
- {addresses: [10.244.0.4]}
- {addresses: [10.244.0.6], conditions: {ready: false, serving: true, terminating: true}}
---
kind: EndpointSlice
metadata: {name: web-6, namespace: ns, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ["fd00::5"]}]
---
kind: Service
metadata: {name: draining, namespace: ns}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: d, namespace: ns, labels: {kubernetes.io/service-name: draining}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.0.6], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.0.7], conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.244.0.8], conditions: {ready: false, serving: false}}
---
kind: Service
metadata: {name: starting, namespace: ns}
spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: s, namespace: ns, labels: {kubernetes.io/service-name: starting}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.8], conditions: {ready: false, serving: false}}]
---
kind: Service
metadata: {name: empty, namespace: ns}
spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}
---
kind: Service
metadata: {name: early, namespace: ns}
spec: {clusterIP: None, publishNotReadyAddresses: true, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: e, namespace: ns, labels: {kubernetes.io/service-name: early}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.9], conditions: {ready: false}}]
---
kind: Service
metadata: {name: elsewhere, namespace: ns}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}`
	for _, test := range []struct {
		backend string
		want    string
		problem string
		h2c     bool
	}{
		{"service: {name: web, port: {number: 80}}", "10.244.0.4:8080, 10.244.0.5:8080", "", true},
		{"service: {name: web, port: {name: http}}", "10.244.0.4:8080, 10.244.0.5:8080", "", true},
		{"service: {name: web, port: {name: admin}}", "10.244.0.4:9001, 10.244.0.5:9001", "", false},
		{"service: {name: web, port: {number: 8080}}", "Service ns/web has no port 8080", `ns/i: spec.defaultBackend.service.port.number: Service "web" has no port 8080`, false},
		{"service: {name: web, port: {name: nope}}", "Service ns/web has no port nope", `ns/i: spec.defaultBackend.service.port.name: Service "web" has no port named "nope"`, false},
		{"service: {name: gone, port: {number: 80}}", "Service ns/gone does not exist", `ns/i: spec.defaultBackend.service.name: no Service "gone" in namespace "ns"`, false},
		{"service: {name: draining, port: {number: 80}}", "10.244.0.6:8080", "", false},
		{"service: {name: starting, port: {number: 80}}", "none of its 1 endpoints is ready", "", false},
		{"service: {name: empty, port: {number: 80}}", "it has no endpoints", "", false},
		{"service: {name: early, port: {number: 80}}", "10.244.0.9:8080", "", false},
		{"service: {name: elsewhere, port: {number: 80}}", "a Service of type ExternalName has no endpoints, and example.com is not in the cluster", "", false},
		{"resource: {apiGroup: k8s.example.com, kind: Bucket, name: b}", "podgate serves Services only", `ns/i: spec.defaultBackend.resource: backend is a resource: podgate serves Services only`, false},
	} {
		st := state(t, services, fmt.Sprintf("kind: Ingress\nmetadata: {name: i, namespace: ns}\nspec: {defaultBackend: {%s}}", test.backend))
		r, problems := Compile(nil, st, Config{})
		b := r.fallback.backend
		got := b.why
		if got == "" {
			got = join(b.endpoints, 9)
		}
		if got != test.want || (b.wire.protocol == h2c) != test.h2c || notes(problems) != test.problem {
			t.Errorf("%s: got %s, h2c %v, problems %q", test.backend, got, (b.wire.protocol == h2c), notes(problems))
		}
	}
}

func TestAnnotationsWithoutEffectAreReported(t *testing.T) {
	doc := strings.Replace(ingress("i", "t.example|Prefix|/|s"), "namespace: ns}",
		`namespace: ns, annotations: {nginx.ingress.kubernetes.io/server-snippet: x, nginx.ingress.kubernetes.io/ssl-redirect: "false", team: a}}`, 1)
	st := state(t, doc)
	withService(st, "s")
	_, problems := Compile(nil, st, Config{})
	want := "ns/i: metadata.annotations[nginx.ingress.kubernetes.io/server-snippet]: has no effect: podgate reads none of nginx's own configuration"
	if got := notes(problems); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestCompileShares(t *testing.T) {
	st := state(t, ingress("i", "t.example|Prefix|/a|a", "t.example|Prefix|/b|b"))
	withService(st, "a", netip.MustParseAddrPort("10.244.0.5:80"))
	withService(st, "b", netip.MustParseAddrPort("10.244.0.6:80"))
	before, _ := Compile(nil, st, Config{})
	other := *st
	other.Generation++
	if again, _ := Compile(before, &other, Config{}); again != before {
		t.Error("nothing changed, but the Routes did")
	}
	next := *st
	withService(&next, "b", netip.MustParseAddrPort("10.244.0.7:80"))
	next.Services = maps.Clone(st.Services)
	after, _ := Compile(before, &next, Config{})
	key := func(name string) backendKey { return backendKey{kube.Name{Namespace: "ns", Name: name}, "80", wire{}} }
	if after.backends[key("a")] != before.backends[key("a")] {
		t.Error("an unchanged backend is not shared")
	}
	if a, b := after.backends[key("b")], before.backends[key("b")]; a == b || a.next != b.next {
		t.Error("a changed backend does not go on in turn")
	}
	if diff := cmp.Diff("10.244.0.7:80", join(after.backends[key("b")].endpoints, 9)); diff != "" {
		t.Error(diff)
	}
}

// secret makes a TLS Secret ns/name that is valid for these names.
func secret(t testing.TB, st *kube.State, name string, names ...string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	st.Secrets[kube.Name{Namespace: "ns", Name: name}] = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Type:       corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		},
	}
	return cert
}

func TestTLSProblems(t *testing.T) {
	doc := ingress("i", "t.example|Prefix|/|s") + `  tls:
  - {hosts: [missing.example], secretName: missing}
  - {hosts: [broken.example], secretName: broken}
  - {hosts: [empty.example], secretName: empty}
  - {hosts: [other.example, "*.good.example"], secretName: good}
  - {hosts: [none.example]}`
	st := state(t, doc)
	withService(st, "s")
	secret(t, st, "good", "*.good.example")
	st.Secrets[kube.Name{Namespace: "ns", Name: "broken"}] = &corev1.Secret{Data: map[string][]byte{"tls.crt": []byte("x"), "tls.key": []byte("y")}}
	st.Secrets[kube.Name{Namespace: "ns", Name: "empty"}] = &corev1.Secret{}
	r, problems := Compile(nil, st, Config{})
	want := strings.Join([]string{
		`ns/i: spec.tls[0].secretName: no Secret "missing" in namespace "ns"`,
		`ns/i: spec.tls[1].secretName: Secret "broken" is no certificate with its key: tls: failed to find any PEM data in certificate input`,
		`ns/i: spec.tls[2].secretName: Secret "empty" has no tls.crt and tls.key`,
		`ns/i: spec.tls[3]: the certificate of Secret "good" is not valid for host "other.example"`,
	}, "\n")
	if diff := cmp.Diff(want, notes(problems)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, usable := range map[string]bool{"missing.example": false, "x.good.example": true, "none.example": false} {
		if e := r.certs.listed(name); e == nil || (e.pair != nil) != usable {
			t.Errorf("%s: got %+v, want a certificate: %v", name, e, usable)
		}
	}
	if r.certs.listed("x.y.good.example") != nil {
		t.Error("a wildcard certificate for two labels")
	}
}

func TestTrace(t *testing.T) {
	st := state(t, ingress("i", "shop.example|Prefix|/cart|cart", "shop.example|Exact|/|gone")+"  tls: [{hosts: [shop.example], secretName: s}]\n")
	withService(st, "cart", netip.MustParseAddrPort("10.244.0.5:8080"))
	secret(t, st, "s", "shop.example")
	r, _ := Compile(nil, st, Config{})
	for _, test := range []struct {
		host, path string
		tls        bool
		want       []string
	}{
		{"shop.example:8443", "/x/../cart/1", true, []string{
			"request https://shop.example:8443/x/../cart/1",
			"path is taken as /cart/1",
			"certificate: of Secret ns/s",
			`host "shop.example": rules of its own`,
			`path "/cart/1": Prefix "/cart" of Ingress ns/i, spec.rules[0].http.paths[0]`,
			`not Exact "/" of Ingress ns/i: the path is another`,
			"backend Service ns/cart port 80: 1 endpoints in turn: 10.244.0.5:8080",
		}},
		{"shop.example", "/cart", false, []string{
			"request http://shop.example/cart",
			`host "shop.example": rules of its own`,
			`path "/cart": Prefix "/cart" of Ingress ns/i, spec.rules[0].http.paths[0]`,
			`not Exact "/" of Ingress ns/i: the path is another`,
			`answered 308 by podgate: redirect to https, as the host has TLS (annotation ssl-redirect: "false" turns it off)`,
		}},
		{"shop.example", "/", true, []string{
			"request https://shop.example/",
			"certificate: of Secret ns/s",
			`host "shop.example": rules of its own`,
			`path "/": Exact "/" of Ingress ns/i, spec.rules[1].http.paths[0]`,
			`not Prefix "/cart" of Ingress ns/i: the path is not below it`,
			"backend Service ns/gone port 80: Service ns/gone does not exist",
			"answered 503 by podgate",
		}},
		{"other.example", "/", false, []string{
			"request http://other.example/",
			`host "other.example": no rule is for it`,
			`path "/": no rule matches and no Ingress has a default backend`,
			"answered 404 by podgate",
		}},
	} {
		if diff := cmp.Diff(test.want, r.Trace(test.host, test.path, test.tls).Lines); diff != "" {
			t.Errorf("%s%s (-want +got):\n%s", test.host, test.path, diff)
		}
	}
}

func TestExternalNameOfTheClusterIsFollowed(t *testing.T) {
	st := state(t, ingress("i", "t.example|Prefix|/|alias"), "kind: Service\nmetadata: {name: alias, namespace: ns}\nspec: {type: ExternalName, externalName: web.ns.svc.cluster.local}")
	withService(st, "web", netip.MustParseAddrPort("10.244.0.5:8080"))
	r, problems := Compile(nil, st, Config{})
	_, rt := r.match("t.example", "/")
	if got := join(rt.backend.endpoints, 9); got != "10.244.0.5:8080" || len(problems) != 0 {
		t.Errorf("got %q, %q, %v", got, rt.backend.why, problems)
	}
}
