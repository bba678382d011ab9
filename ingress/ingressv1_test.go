package ingress

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// The rules that kubernetes-sigs/ingress-controller-conformance tests, each by a
// request over the wire: which Service answers, with what status, and that the
// request reached it as it was sent.
func TestIngressV1Conformance(t *testing.T) {
	const byDefault = `kind: Ingress
metadata: {name: default-backend, namespace: ns}
spec: {defaultBackend: {service: {name: a, port: {number: 80}}}}`
	paths := ingress("path-rules",
		"exact-path-rules|Exact|/foo|a",
		"prefix-path-rules|Prefix|/foo|a", "prefix-path-rules|Prefix|/aaa/bbb|b", "prefix-path-rules|Prefix|/aaa|c",
		"mixed-path-rules|Prefix|/foo|a", "mixed-path-rules|Exact|/foo|b",
		"trailing-slash-path-rules|Prefix|/aaa/bbb/|a", "trailing-slash-path-rules|Exact|/foo/|b",
		"mixed-slash|Prefix|/foo/|a", "mixed-slash|Exact|/foo|b", "mixed-slash|Exact|/foo/|c",
		"twice|Prefix|/foo|a", "twice|Prefix|/foo|b")
	hosts := ingress("host-rules", "*.foo.com|Prefix|/|a", "foo.bar.com|Prefix|/|b")
	for _, group := range []struct {
		doc   string
		cases [][4]string // method, host, path, service or status
	}{
		{byDefault, [][4]string{
			{"GET", "my-host", "/", "a"}, {"GET", "my-host", "/sub-path", "a"}, {"POST", "some-host", "/", "a"},
			{"PUT", "", "/resource", "a"}, {"DELETE", "some-host", "/resource", "a"}, {"PATCH", "my-host", "/resource", "a"},
		}},
		{paths, [][4]string{
			{"GET", "exact-path-rules", "/foo", "a"},
			{"GET", "exact-path-rules", "/foo/", "404"},
			{"GET", "exact-path-rules", "/FOO", "404"},
			{"GET", "exact-path-rules", "/bar", "404"},
			{"GET", "prefix-path-rules", "/foo", "a"},
			{"GET", "prefix-path-rules", "/foo/", "a"},
			{"GET", "prefix-path-rules", "/FOO", "404"},
			{"GET", "prefix-path-rules", "/aaa/bbb", "b"},
			{"GET", "prefix-path-rules", "/aaa/bbb/ccc", "b"},
			{"GET", "prefix-path-rules", "/aaa/ccc", "c"},
			{"GET", "prefix-path-rules", "/aaaccc", "404"},
			{"GET", "mixed-path-rules", "/foo", "b"},
			{"GET", "mixed-path-rules", "/foo/", "a"},
			{"GET", "mixed-path-rules", "/foo/x", "a"},
			{"GET", "trailing-slash-path-rules", "/aaa/bbb", "a"},
			{"GET", "trailing-slash-path-rules", "/aaa/bbb/", "a"},
			{"GET", "trailing-slash-path-rules", "/foo/", "b"},
			{"GET", "trailing-slash-path-rules", "/foo", "404"},
			{"GET", "mixed-slash", "/foo", "b"},
			{"GET", "mixed-slash", "/foo/", "c"},
			{"GET", "mixed-slash", "/foo/x", "a"},
			{"GET", "mixed-slash", "/foox", "404"},
			{"GET", "twice", "/foo", "a"},
			{"GET", "exact-path-rules", "/foo?q=/bar", "a"},
			{"GET", "another-host", "/foo", "404"},
		}},
		{hosts, [][4]string{
			{"GET", "foo.bar.com", "/", "b"},
			{"GET", "FOO.bar.com", "/", "b"},
			{"GET", "foo.bar.com:8080", "/", "b"},
			{"GET", "subdomain.bar.com", "/", "404"},
			{"GET", "bar.foo.com", "/", "a"},
			{"GET", "baz.bar.foo.com", "/", "404"},
			{"GET", "foo.com", "/", "404"},
		}},
	} {
		st := state(t, group.doc)
		backends := map[int]http.Handler{}
		for i, name := range []string{"a", "b", "c"} {
			withService(st, name, endpointAddr(i+1))
			backends[i+1] = tagged(name)
		}
		f := newFront(t, Config{}, st, backends)
		for protocol, c := range map[string]*http.Client{
			"HTTP/1.1": client(t, f.plain),
			"HTTP/2": client(t, f.plain, func(tr *http.Transport) {
				tr.Protocols = new(http.Protocols)
				tr.Protocols.SetUnencryptedHTTP2(true)
			}),
		} {
			for _, test := range group.cases {
				method, host, target, want := test[0], test[1], test[2], test[3]
				req, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1"+target, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = host
				answer, body := do(t, c, req)
				got := answer.Header.Get("X-Service")
				if got == "" {
					got = fmt.Sprint(answer.StatusCode)
				}
				if host == "" {
					host = "127.0.0.1"
				}
				if got != want || want != "404" && !strings.HasPrefix(body, fmt.Sprintf("%s %s HTTP/1.1\nhost: %s\n", method, target, host)) {
					t.Errorf("%s: %s %s%s: got %s, want %s; the endpoint saw %s", protocol, method, host, target, got, want, body)
				}
			}
		}
	}
}

// All pods of a Service answer.
func TestLoadIsShared(t *testing.T) {
	st := shop(t, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	backends := map[int]http.Handler{}
	for i := range 10 {
		backends[i+1] = named(fmt.Sprint(i))
	}
	c := client(t, newFront(t, Config{}, st, backends).plain)
	seen := map[string]int{}
	for range 100 {
		_, body := get(t, c, "http://shop.example/")
		seen[body]++
	}
	if len(seen) != 10 {
		t.Errorf("got %v", seen)
	}
}

// A port of TCP is meant where one of UDP has the same number.
func TestPortsAreThoseOfTCP(t *testing.T) {
	st := shop(t, 1)
	svc := st.Services[kube.Name{Namespace: "ns", Name: "web"}]
	svc.Spec.Ports = append([]corev1.ServicePort{{Name: "quic", Port: 80, Protocol: corev1.ProtocolUDP}}, svc.Spec.Ports...)
	r, problems := Compile(nil, st, Config{})
	if _, rt := r.match("shop.example", "/"); len(rt.backend.endpoints) != 1 || len(problems) > 0 {
		t.Errorf("got %d endpoints, %s", len(rt.backend.endpoints), notes(problems))
	}
}
