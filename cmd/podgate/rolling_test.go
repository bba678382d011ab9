package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const rolling = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: podgate.dev/workload
        args: [http, --port, "80"]
        env: [{name: VERSION, value: "%d"}]
        readinessProbe: {httpGet: {port: 80, path: /readyz}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30999}]}
---
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec: {containers: [{name: c, image: x}]}
`

// A Deployment that is scaled and rolled under load loses no request, through
// its ClusterIP nor through its node port.
func TestRollingLosesNoRequest(t *testing.T) {
	s := newShell(t)
	settled := func(replicas, version int) {
		t.Helper()
		s.must("podgate apply -f " + write(t, "web.yaml", fmt.Sprintf(rolling, replicas, version)))
		want := fmt.Sprintf("%d/%d %d %d", replicas, replicas, replicas, replicas)
		until(t, "rolled out", func() bool {
			f := strings.Fields(s.must("podgate get deployment web --no-headers"))
			pods := strings.Count(s.must("podgate get pods -l app=web -o name"), "\n")
			return strings.Join(f[1:4], " ") == want && pods == replicas
		})
	}
	s.up("--set ingress.http= --set ingress.https= " + write(t, "web.yaml", fmt.Sprintf(rolling, 2, 1)))
	settled(2, 1)
	// Asks until it is told to stop, by a file; says how often, and on stderr what failed.
	load := func(url string) string {
		return `n=0; while [ ! -e $XDG_RUNTIME_DIR/stop ]; do n=$((n+1)); curl -s -f -o /dev/null -m 20 -w "%{onerror}%{stderr}request $n: %{exitcode} %{errormsg}, status %{http_code}, %{remote_ip}:%{local_port}, seconds: name %{time_namelookup} connect %{time_connect} total %{time_total}\n" ` + url + `; done; echo $n`
	}
	results := make(chan result, 2)
	go func() { results <- s.run(load("http://127.0.0.1:30999/")) }()
	go func() {
		results <- s.run("podgate exec asks -- env XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR sh -c '" + load("http://web.default.svc.cluster.local/") + "'")
	}()
	start := time.Now()
	settled(4, 1)
	settled(1, 1)
	settled(2, 2)
	s.must("touch $XDG_RUNTIME_DIR/stop")
	for range 2 {
		if r := <-results; r.code != 0 || r.errOut != "" || r.out == "0\n" {
			t.Errorf("in %v, of %s requests failed, with exit code %d:\n%s", time.Since(start), strings.TrimSpace(r.out), r.code, r.errOut)
		}
	}
}
