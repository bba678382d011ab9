package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// With preserve-client-address the pod's peer is the client of the Ingress, and
// NetworkPolicy judges the client; without, it is the front door.
func TestIngressPreservesTheClientsAddress(t *testing.T) {
	far := outsider(t)
	s := newShell(t)
	ingress := func(name, annotations string) string {
		return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: %s, annotations: {%s}}\nspec:\n  rules:\n"+
			"  - {host: %[1]s.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}\n---\n", name, annotations)
	}
	s.up("--set ingress.http=192.0.2.1:8080 --set ingress.https= " + write(t, "app.yaml", workloadPod("web", "http", "")+
		serviceOf("web", "web", "ports: [{port: 80, targetPort: 8080}]")+
		ingress("door", "")+ingress("client", `podgate.dev/preserve-client-address: "true", podgate.dev/proxy-read-timeout: "5"`)))
	ask := func(host string) (said string) {
		far.Do(func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 51, 100, 7)}, Timeout: 30 * time.Second}
			c, err := d.Dial("tcp", "192.0.2.1:8080")
			if err != nil {
				return nil
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(60 * time.Second))
			fmt.Fprintf(c, "GET /clientip HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
			data, _ := io.ReadAll(c)
			said = string(data)
			return nil
		})
		return said
	}
	for host, want := range map[string]string{"door.example": "10.244.0.3:", "client.example": "198.51.100.7:"} {
		until(t, host+" answers", func() bool { return strings.HasPrefix(ask(host), "HTTP/1.1 200") })
		if said := ask(host); !strings.Contains(said, want) {
			t.Errorf("%s: the pod saw %q, want %s", host, said, want)
		}
	}
	// The connection that the front door has kept is cut too: nothing comes by it.
	s.must("podgate apply -f " + write(t, "policy.yaml", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: door-only}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: podgate-system}}}]}]
`))
	if said := ask("client.example"); !strings.HasPrefix(said, "HTTP/1.1 502") && !strings.HasPrefix(said, "HTTP/1.1 504") {
		t.Errorf("the policy does not admit the client, and it got %q", said)
	}
	if said := ask("door.example"); !strings.HasPrefix(said, "HTTP/1.1 200") {
		t.Errorf("the policy admits the front door, and it got %q", said)
	}
}
