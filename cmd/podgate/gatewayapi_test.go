package main

import (
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/stack/link/nstest"
)

const liveGateway = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, image: podgate.dev/workload, args: [http, --port, "8000"], readinessProbe: {httpGet: {path: /readyz, port: 8000}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: podgate
  listeners:
  - {name: own, port: 8200, protocol: HTTP}
  - {name: shared, port: 8080, protocol: HTTP, hostname: shared.example}
  - {name: inside, port: 80, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: front}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`

// TestGatewayAPI: a Gateway in a running instance, from its manifest to its end.
func TestGatewayAPI(t *testing.T) {
	nstest.Need(t, "curl")
	s := newShell(t)
	s.up(write(t, "gw.yaml", liveGateway))

	status := func(name string) gatewayv1.GatewayStatus {
		t.Helper()
		var g gatewayv1.Gateway
		if err := json.Unmarshal([]byte(s.must("podgate get gateway "+name+" -o json")), &g); err != nil {
			t.Fatal(err)
		}
		return g.Status
	}
	if g := status("front"); !meta.IsStatusConditionTrue(g.Conditions, "Programmed") || g.Addresses[0].Value != "127.0.0.1" || g.Listeners[0].AttachedRoutes != 1 {
		t.Errorf("status %+v", g)
	}
	for _, ok := range []string{
		"curl -sf http://127.0.0.1:8200/hostname | grep web",
		"curl -sf -H 'Host: shared.example' http://127.0.0.1:8080/hostname | grep web",
		"podgate exec web -- curl -sf http://10.244.0.3/hostname | grep web",
		"podgate exec web -- curl -sf http://10.244.0.3:8200/hostname | grep web",
		"podgate status | grep '127.0.0.1:8200/tcp *Gateway default/front listener own'",
		"podgate get httproute web | grep front",
		"podgate get gatewayclasses | grep 'podgate *podgate.dev/gateway-controller *True'",
		"podgate trace http://127.0.0.1:8200/x | grep 'of HTTPRoute default/web, spec.rules\\[0\\]'",
	} {
		s.must(ok)
	}
	if code := s.must("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/"); code != "404" {
		t.Errorf("another host at the shared door: %s", code)
	}

	// A second Gateway for the same port, with a backend that is not there.
	second := write(t, "second.yaml", strings.NewReplacer("name: front", "name: second", "name: web", "name: other").Replace(liveGateway[strings.Index(liveGateway, "apiVersion: gateway"):]))
	out := s.must("podgate apply -f " + second)
	if !strings.Contains(out, "gateway.gateway.networking.k8s.io/second created") {
		t.Error(out)
	}
	if g := status("second"); g.Addresses[0].Value != "127.0.0.2" {
		t.Errorf("addresses %+v", g.Addresses)
	}
	if code := s.must("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.2:8200/"); code != "500" {
		t.Errorf("a Service that is not there: %s", code)
	}
	if out := s.must("podgate status"); !strings.Contains(out, `HTTPRoute default/other: warning: spec.rules[0].backendRefs[0]: BackendNotFound: no Service "other" in namespace "default"`) {
		t.Error(out)
	}
	s.must("podgate delete -f " + second)
	if r := s.run("curl -s http://127.0.0.2:8200/"); r.code != 7 {
		t.Errorf("the door of a Gateway that is gone: exit code %d", r.code)
	}
	s.must("curl -sf http://127.0.0.1:8200/hostname | grep web")
}

func TestGatewayPortInUse(t *testing.T) {
	nstest.Need(t, "curl")
	s := newShell(t)
	s.up("--set metrics.listen=127.0.0.1:8200 " + write(t, "gw.yaml", liveGateway))
	out := s.must("podgate get gateway front -o yaml")
	if !strings.Contains(out, "reason: PortUnavailable") || !strings.Contains(out, "cannot listen at 127.0.0.1:8200: address already in use") {
		t.Error(out)
	}
	s.must("curl -sf -H 'Host: shared.example' http://127.0.0.1:8080/hostname | grep web")
}
