package main

import (
	"regexp"
	"strings"
	"testing"
)

const forwarded = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: podgate.dev/workload
        args: [http, --port, "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {port: http, path: /readyz}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: www, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: heads}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: own}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

// Ports of a pod are reached from the host by port-forward, in kubectl's words,
// under a policy that denies everything, and after the pod was replaced.
func TestPortForward(t *testing.T) {
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= " + write(t, "web.yaml", forwarded))
	// forwarding runs a port-forward, then the line that it is for, which finds its
	// address as $at, and returns what both said.
	forwarding := func(args, line string) (said string, r result) {
		t.Helper()
		r = s.run(`cd $XDG_RUNTIME_DIR; rm -f pipe; mkfifo pipe
			podgate port-forward ` + args + ` > pipe 2>&1 & pid=$!
			exec 3< pipe; read -r first <&3; at=${first#Forwarding from }; at=${at%% -> *}
			` + line + `
			code=$?; kill $pid; wait $pid; { echo "$first"; cat <&3; } > said; exit $code`)
		return s.must("cat $XDG_RUNTIME_DIR/said"), r
	}
	for _, c := range []struct{ args, want string }{
		{"svc/web :80", `Forwarding from 127\.0\.0\.1:(\d+) -> 8080\nForwarding from \[::1\]:(\d+) -> 8080\nHandling connection for (\d+)\n`},
		{"service/web :www", `127\.0\.0\.1:\d+ -> 8080\n`},
		{"svc/heads 8080", `127\.0\.0\.1:8080 -> 8080\n`},
		{"deployment/web 18080:http", `127\.0\.0\.1:18080 -> 8080\n`},
		{"--address 127.0.0.2,::1 deploy/web :8080", `Forwarding from 127\.0\.0\.2:\d+ -> 8080\nForwarding from \[::1\]`},
		{"$(podgate get pods -l app=web -o name | head -n 1) :http", `127\.0\.0\.1:\d+ -> 8080\n`},
	} {
		said, r := forwarding(c.args, "curl -s -S -f -m 60 http://$at/")
		if r.code != 0 || !strings.Contains(r.out, "127.0.0.1") {
			t.Errorf("port-forward %s: curl's exit code %d\n%s%s", c.args, r.code, r.out, r.errOut)
		}
		if !regexp.MustCompile(c.want).MatchString(said) {
			t.Errorf("port-forward %s said\n%swant\n%s", c.args, said, c.want)
		}
	}
	said, r := forwarding("svc/web :80", `
		pod=$(podgate exec svc/web -- hostname) && curl -s -f -m 60 http://$at/ > /dev/null &&
		podgate get pod $pod -o yaml > $XDG_RUNTIME_DIR/pod.yaml && podgate delete -f $XDG_RUNTIME_DIR/pod.yaml && curl -s -S -f -m 60 http://$at/`)
	if r.code != 0 || !strings.Contains(said, "is not there any more, forwarding to web-") {
		t.Errorf("after its pod was deleted: exit code %d\n%s%s\nport-forward said\n%s", r.code, r.out, r.errOut, said)
	}
	if said, r := forwarding("deploy/web 8081:1", "curl -s -m 60 http://127.0.0.1:8081/"); r.code != 56 && r.code != 52 || !strings.Contains(said, "connection refused") {
		t.Errorf("to a port where nobody listens: curl's exit code %d\nport-forward said\n%s", r.code, said)
	}
	for args, want := range map[string]string{
		"web":                               "name a pod, or TYPE/NAME, and at least one port",
		"web-0 80":                          `pods "web-0" not found in namespace "default"`,
		"svc/none 80":                       `services "none" not found in namespace "default"`,
		"svc/own 80":                        "Service is defined without a selector",
		"svc/nobody 80":                     `services "nobody" in namespace "default" has no running pod`,
		"svc/web 81":                        "no port 81 in Service default/web",
		"svc/web 53":                        "port 53 of Service default/web is not TCP",
		"svc/heads 80":                      "no port 80 in Service default/heads",
		"deploy/web :grpc":                  `has no TCP port "grpc"`,
		"ingress/web 80":                    "ingresses have no pods",
		"table/web 80":                      `"table/web" is of no kind that has pods`,
		"svc/web 80:":                       `"80:" is not [LOCAL:]REMOTE`,
		"svc/web 65536:80":                  `"65536:80" is not [LOCAL:]REMOTE`,
		"svc/web 0":                         `"0" is not [LOCAL:]REMOTE`,
		"svc/web 80 --address here":         "--address here: want an IP address or localhost",
		"svc/web :80 --address 203.0.113.9": "203.0.113.9",
		"-n kube-system svc/kube-dns 53":    "part of the gateway itself",
	} {
		if r := s.run("podgate port-forward " + args); r.code == 0 || !strings.Contains(r.errOut, want) {
			t.Errorf("port-forward %s: exit code %d, %q; want %q", args, r.code, r.errOut, want)
		}
	}
	if got := s.must("podgate logs deploy/web --tail 1"); got == "" {
		t.Error("logs of a Deployment are empty")
	}
}
