package main

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"podgate/stack/link/nstest"
)

const policyPods = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}}
spec: {containers: [{name: c, image: podgate.dev/workload, args: [http, --port, "80"], ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: demo, labels: {app: job}}
spec: {containers: [{name: c, image: pause}]}
`

const policyDeny = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: demo}
spec:
  podSelector: {matchLabels: {app: web}}
`

// What `podgate policy` answers, the verdict log, and rules by domain name from
// the name server to the packet.
func TestPolicyCommands(t *testing.T) {
	nstest.Need(t, "curl", "ip")
	// A host outside, and the server that knows its name.
	outside := newShell(t)
	outside.must("ip addr add 192.0.2.7/32 dev lo && ip addr add 192.0.2.8/32 dev lo")
	t.Cleanup(func() { outside.run("ip addr del 192.0.2.7/32 dev lo; ip addr del 192.0.2.8/32 dev lo") })
	for _, a := range []string{"192.0.2.7:8000", "192.0.2.8:8000"} {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					bufio.NewReader(c).ReadString('\n')
					c.Write([]byte("HTTP/1.0 200 OK\r\n\r\noutside\n"))
				}()
			}
		}()
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &mdns.Server{PacketConn: pc, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == mdns.TypeA && q.Question[0].Name == "api.example.com." {
			rr, _ := mdns.NewRR("api.example.com. 300 IN A 192.0.2.7")
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })

	s := newShell(t)
	pods, deny := write(t, "pods.yaml", policyPods), write(t, "deny.yaml", policyDeny)
	log := filepath.Join(t.TempDir(), "verdicts.json")
	s.up("--set ingress.http= --set ingress.https= --set policy.log=" + log + " --set policy.log-verdicts=all --set dns.upstreams=" + pc.LocalAddr().String() +
		" --set egress.allow=192.0.2.7/32,192.0.2.8/32 " + pods)
	ip := strings.Fields(s.must("podgate exec -n demo web -- hostname -I"))[0]
	ask := "podgate exec -n demo job -- curl -s -m 20 http://" + ip + "/hostname"
	until(t, "web answers", func() bool { return s.run(ask).code == 0 })

	t.Run("test says what a policy would change, and changes nothing", func(t *testing.T) {
		s := s.in(t)
		var res policyTest
		if err := json.Unmarshal([]byte(s.must("podgate policy test -o json -f "+deny)), &res); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, p := range res.Pairs {
			found = found || p.From == "demo/job" && p.To == "demo/web" && p.Port == 80 && p.Before && !p.After
		}
		if !found {
			t.Errorf("job to web on port 80 is not among %+v", res.Pairs)
		}
		if len(res.Flows) == 0 || res.Flows[0].Policies[0] != "demo/closed" {
			t.Errorf("conversations that would be cut: %+v", res.Flows)
		}
		s.must(ask)
		if r := s.run("podgate policy test -f " + pods); r.code != 1 || !strings.Contains(r.errOut, "is no policy") {
			t.Errorf("of pods: exit code %d: %s", r.code, r.errOut)
		}
	})
	t.Run("matrix, denials and the log agree with what happens", func(t *testing.T) {
		s := s.in(t)
		reaches := func() string {
			for _, line := range strings.Split(s.must("podgate policy matrix -n demo --port 80"), "\n") {
				if f := strings.Fields(line); len(f) == 3 && f[0] == "demo/job" {
					return f[2]
				}
			}
			return "?"
		}
		if got := reaches(); got != "yes" {
			t.Errorf("before: %s", got)
		}
		s.must("podgate apply -f " + deny)
		if got := reaches(); got != "-" {
			t.Errorf("under the policy: %s", got)
		}
		if r := s.run(strings.Replace(ask, "-m 20", "-m 2", 1)); r.code != 28 {
			t.Errorf("curl: exit code %d, want 28 (timeout)", r.code)
		}
		if out := s.must("podgate policy denials"); !strings.Contains(out, "default deny by demo/closed") || !strings.Contains(out, "demo/job") {
			t.Errorf("denials:\n%s", out)
		}
		until(t, "the log has the denial", func() bool {
			data, _ := os.ReadFile(log)
			return strings.Contains(string(data), `"verdict":"deny","direction":"ingress","proto":"tcp"`) && strings.Contains(string(data), `"policies":["demo/closed"]`)
		})
		s.must("podgate delete -f " + deny)
		s.must(ask)
	})
	t.Run("a rule by domain name follows what DNS told the pod", func(t *testing.T) {
		s := s.in(t)
		f := write(t, "names.yaml", `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: demo}}}
  egress:
  - {action: Accept, to: [{domainNames: ["*.example.com"]}]}
  - {action: Accept, to: [{namespaces: {}}]}
  - {action: Deny, to: [{networks: [0.0.0.0/0, "::/0"]}]}
`)
		if got := s.must("podgate apply -f " + f); got != "clusternetworkpolicy.policy.networking.k8s.io/names created\n" {
			t.Errorf("apply said %q", got)
		}
		get := "podgate exec -n demo job -- curl -4 -s -m 20 http://"
		denied := strings.Replace(get, "-m 20", "-m 2", 1)
		if r := s.run(denied + "192.0.2.7:8000"); r.code != 28 {
			t.Errorf("before it was told: exit code %d, want 28 (timeout)", r.code)
		}
		if got := s.must(get + "api.example.com:8000"); got != "outside\n" {
			t.Errorf("by name: %q", got)
		}
		until(t, "the log has the rule that allowed", func() bool {
			data, _ := os.ReadFile(log)
			return strings.Contains(string(data), `"verdict":"allow"`) && strings.Contains(string(data), `"rules":["cluster policy names rule egress[0]"]`)
		})
		s.must(get + "192.0.2.7:8000")
		if r := s.run(denied + "192.0.2.8:8000"); r.code != 28 {
			t.Errorf("an address without that name: exit code %d, want 28 (timeout)", r.code)
		}
		if r := s.run("podgate exec -n demo web -- curl -s -m 1 http://192.0.2.7:8000"); r.code != 28 {
			t.Errorf("another pod: exit code %d, want 28 (timeout)", r.code)
		}
		if out := s.must("podgate get cnp"); !strings.Contains(out, "Admin") {
			t.Errorf("get: %s", out)
		}
	})
}
