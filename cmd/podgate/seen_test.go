package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podgate/ingress"
	"podgate/stack/link/nstest"
)

func TestAccessLogAndMetrics(t *testing.T) {
	nstest.Need(t, "curl")
	s := newShell(t)
	file := filepath.Join(t.TempDir(), "access.log")
	f := write(t, "app.yaml", goodPod+"apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i, annotations: {nginx.ingress.kubernetes.io/temporal-redirect: 'https://new.example'}}\n"+
		"spec: {rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: gone, port: {number: 80}}}}]}}]}\n")
	s.must("podgate up --detach " + f + " --set metrics.listen=127.0.0.1:9090 --set ingress.access-log=" + file + " --set ingress.access-log-format=json")
	t.Cleanup(func() { s.run("podgate down") })
	s.must("curl -s -H 'Host: a.example' http://127.0.0.1:8080/x")
	const want = `nginx_ingress_controller_requests{ingress="i",namespace="default",service="gone",method="GET",status="302"} 1`
	until(t, want, func() bool { return strings.Contains(s.must("curl -s http://127.0.0.1:9090/metrics"), want) }) // counted after the answer
	if out := s.must("podgate status"); !strings.Contains(out, "127.0.0.1:9090") {
		t.Errorf("status does not tell of the metrics' listener:\n%s", out)
	}
	s.must("podgate down")
	line, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var a ingress.Access
	if err := json.Unmarshal(line, &a); err != nil || a.Status != 302 || a.Target != "/x" || a.Ingress != "default/i" {
		t.Errorf("%v: %s", err, line)
	}
}
