package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"podgate/stack/link/nstest"
)

const dnsPods = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  hostname: web-0
  subdomain: heads
  containers: [{name: c, image: podgate.dev/workload, args: [http, --port, "8000"], ports: [{name: http, containerPort: 8000}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.77, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: heads, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: shop}
spec: {ipFamilies: [IPv6], ipFamilyPolicy: SingleStack, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Pod
metadata: {name: first, namespace: shop}
spec:
  hostAliases: [{ip: 203.0.113.7, hostnames: [alias.example]}]
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
---
apiVersion: v1
kind: Pod
metadata: {name: few, namespace: shop}
spec:
  dnsConfig: {options: [{name: ndots, value: "1"}], searches: [extra.example]}
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
---
apiVersion: v1
kind: Pod
metadata: {name: nodes, namespace: shop}
spec:
  dnsPolicy: Default
  dnsConfig: {searches: [extra.example]}
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec:
  hostNetwork: true
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
---
apiVersion: v1
kind: Pod
metadata: {name: host-first, namespace: shop}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: shop}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [10.96.0.10], searches: [svc.cluster.local]}
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [198.51.100.53]}
  containers: [{name: c, image: podgate.dev/workload, args: [pause]}]
`

// internetNames serves names outside the cluster on loopback and returns where.
func internetNames(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	soa, err := mdns.NewRR("example.com. 20 IN SOA ns.example.com. host.example.com. 1 2 3 4 20")
	if err != nil {
		t.Fatal(err)
	}
	s := &mdns.Server{PacketConn: pc, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		switch name := strings.ToLower(q.Question[0].Name); {
		case name != "www.example.com." && name != "printer.extra.example.":
			m.Rcode, m.Ns = mdns.RcodeNameError, []mdns.RR{soa}
		case q.Question[0].Qtype == mdns.TypeA:
			a := &mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 80)}
			m.Answer = []mdns.RR{a}
		default:
			m.Ns = []mdns.RR{soa}
		}
		w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		s.Shutdown()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return pc.LocalAddr().String()
}

// muslResolver is a program that looks a name up with musl's resolver, which asks
// for A and AAAA at once and stops where a name has no data.
const muslResolver = `
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *a;
	int err = getaddrinfo(argv[1], 0, &hints, &a);
	if (err) { printf("%s\n", gai_strerror(err)); return 1; }
	for (; a; a = a->ai_next) {
		char text[64];
		void *at = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr : (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
		printf("%s\n", inet_ntop(a->ai_family, at, text, sizeof text));
	}
	return 0;
}
`

func buildMuslResolver(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	exe := filepath.Join(dir, "lookup")
	if err := os.WriteFile(exe+".c", []byte(muslResolver), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("musl-gcc", "-static", "-o", exe, exe+".c").CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
	return exe
}

// What the resolvers that people have get, from pods with every kind of resolv.conf.
func TestResolversInPods(t *testing.T) {
	nstest.Need(t, "dig", "nslookup", "curl", "busybox", "musl-gcc")
	musl := buildMuslResolver(t)
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= --set dns.upstreams=" + internetNames(t) + " " + write(t, "dns.yaml", dnsPods))
	for _, c := range []struct {
		pod, cmd string
		code     int
		want     string // a line, or what one begins with
	}{
		{"first", "dig +short +search web", 0, "10.96.0.77"},
		{"first", "dig +short web.shop.svc.cluster.local", 0, "10.96.0.77"},
		{"first", "dig +short +tcp web.shop.svc.cluster.local", 0, "10.96.0.77"},
		{"first", "dig +short -x 10.96.0.77", 0, "web.shop.svc.cluster.local."},
		{"first", "dig +short SRV _http._tcp.heads.shop.svc.cluster.local", 0, "0 100 8000 web-0.heads.shop.svc.cluster.local."},
		{"first", "dig +short TXT dns-version.cluster.local", 0, `"1.1.0"`},
		{"first", "dig +noall +comments WEB.shop.svc.cluster.local", 0, ";; ->>HEADER<<- opcode: QUERY, status: NOERROR"},
		{"first", "dig +noall +comments gone.shop.svc.cluster.local", 0, ";; ->>HEADER<<- opcode: QUERY, status: NXDOMAIN"},
		{"first", "dig +noall +comments CH TXT version.bind", 0, ";; ->>HEADER<<- opcode: QUERY, status: REFUSED"},
		{"first", "dig +cookie +noall +comments web.shop.svc.cluster.local", 0, "; COOKIE: "},
		{"first", "dig +short away.shop.svc.cluster.local", 0, "192.0.2.80"},
		{"first", "dig +short @fd00:10:96::a www.example.com", 0, "192.0.2.80"},
		{"first", "nslookup web", 0, "Name:\tweb.shop.svc.cluster.local"},
		{"first", "nslookup gone.shop", 1, "** server can't find gone.shop: NXDOMAIN"},
		{"first", "getent ahostsv4 web", 0, "10.96.0.77"},
		{"first", "getent hosts web-0.heads", 0, "10.244."},
		{"first", "getent ahostsv4 away", 0, "192.0.2.80"},
		{"first", "getent hosts alias.example", 0, "203.0.113.7"},
		{"first", "getent hosts gone", 2, ""},
		{"first", "curl -s -m 20 http://web/hostname", 0, "web-0"},
		{"first", "curl -s -m 20 http://web-0.heads.shop.svc.cluster.local:8000/hostname", 0, "web-0"},
		{"first", "curl -s -m 20 http://10.244.0.2:8080/health", 0, "OK"},
		{"first", "curl -s -m 20 http://10.244.0.2:8181/ready", 0, "OK"},
		{"first", "curl -s -m 20 http://kube-dns.kube-system:9153/metrics", 0, `coredns_dns_requests_total{server="dns://:53",zone=".",view="",proto="udp",family="1",type="A"}`},
		{"first", "curl -gs -m 20 http://[fd00:10:244::2]:9153/metrics", 0, `coredns_dns_responses_total{server="dns://:53",zone=".",view="",rcode="NXDOMAIN",plugin="kubernetes"}`},
		{"first", "busybox nslookup web.shop.svc.cluster.local", 0, "Address: 10.96.0.77"},
		{"first", "busybox wget -q -O - http://web/hostname", 0, "web-0"},
		{"few", "busybox wget -q -O - http://web.shop/hostname", 0, "web-0"},
		{"own", "busybox wget -q -O - http://web.shop/hostname", 0, "web-0"},
		{"first", "busybox nslookup 10.96.0.77", 0, "77.0.96.10.in-addr.arpa\tname = web.shop.svc.cluster.local"},
		{"first", musl + " web", 0, "10.96.0.77"},
		{"first", musl + " web.shop", 0, "10.96.0.77"},
		{"first", musl + " www.example.com", 0, "192.0.2.80"},
		{"first", musl + " gone", 1, "Name does not resolve"},
		{"first", "dig +short AAAA six.shop.svc.cluster.local", 0, "fd00:10:96::"},
		{"first", "getent ahostsv6 six", 0, "fd00:10:96::"},
		{"first", "curl -6 -s -m 20 http://six/hostname", 0, "web-0"},
		{"first", "busybox wget -q -O - http://six.shop/hostname", 0, "web-0"},
		{"nodes", "grep -c cluster.local /etc/resolv.conf", 1, "0"},
		{"nodes", "grep extra.example /etc/resolv.conf", 0, "search "},
		{"nodes", "dig +short @10.96.0.10 web.shop.svc.cluster.local", 0, "10.96.0.77"},
		{"host", "grep -c cluster.local /etc/resolv.conf", 1, "0"},
		{"host-first", "cat /etc/resolv.conf", 0, "search shop.svc.cluster.local svc.cluster.local cluster.local"},
		{"host-first", "cat /etc/resolv.conf", 0, "nameserver 10.96.0.10"},
		{"host-first", "grep ndots:5 /etc/resolv.conf", 0, "options "},
		{"few", "getent ahostsv4 web.shop", 0, "10.96.0.77"}, // asked for as it is first
		{"few", "getent ahostsv4 printer", 0, "192.0.2.80"},
		{"few", musl + " printer", 0, "192.0.2.80"},
		{"own", "getent ahostsv4 web.shop", 0, "10.96.0.77"},
		{"own", "getent ahostsv4 web", 2, ""},
		{"own", musl + " web.shop.svc.cluster.local", 0, "10.96.0.77"},
	} {
		r := s.run("podgate exec -n shop " + c.pod + " -- " + c.cmd)
		lines := strings.Split(r.out, "\n")
		if r.code != c.code || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, c.want) }) {
			t.Errorf("%s: %s: exit code %d, want %d and %q\n%s%s", c.pod, c.cmd, r.code, c.code, c.want, r.out, r.errOut)
		}
	}
	t.Run("what a search list costs is counted", func(t *testing.T) { countsOfSearches(s.in(t)) })
	t.Run("dns query walks as the resolver does", func(t *testing.T) { explainedQueries(s.in(t)) })
	t.Run("a Corefile takes effect when it is applied", func(t *testing.T) { appliedCorefile(s.in(t)) })
}

// asked are the counts of a pod.
func (s *shell) asked(pod string) (queries, missing uint64) {
	s.t.Helper()
	var all []dnsRecord
	if err := json.Unmarshal([]byte(s.must("podgate get dns "+pod+" -o json")), &all); err != nil {
		s.t.Fatal(err)
	}
	for _, r := range all {
		if r.Asked != nil {
			queries, missing = queries+r.Queries, missing+r.Missing
		}
	}
	return queries, missing
}

func countsOfSearches(s *shell) {
	for _, c := range []struct {
		pod, name string
		least     uint64 // names of the list that do not exist
		most      uint64
	}{
		{"first", "www.example.com", 3, 9}, // the node's own list may come after the cluster's
		{"first", "www.example.com.", 0, 0},
		{"few", "www.example.com", 0, 0},
		{"own", "web.shop.svc.cluster.local", 0, 0}, // ndots is 1 without options
	} {
		_, before := s.asked(c.pod)
		s.must("podgate exec -n shop " + c.pod + " -- getent ahostsv4 " + c.name)
		if _, after := s.asked(c.pod); after-before < c.least || after-before > c.most {
			s.t.Errorf("%s in %s: %d names did not exist, want %d to %d", c.name, c.pod, after-before, c.least, c.most)
		}
	}
	if out := s.must("podgate get dns"); !strings.Contains(out, "www.example.com.shop.svc.cluster.local.") || !strings.Contains(out, "shop/first") {
		s.t.Errorf("got\n%s", out)
	}
}

func explainedQueries(s *shell) {
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"first web", 0, []string{"web.shop.svc.cluster.local. A: NOERROR", "zone       cluster.local.", "Service shop/web", "A 10.96.0.77"}},
		{"first www.example.com", 0, []string{"www.example.com.svc.cluster.local. A: NXDOMAIN", "there is no Namespace com", "cache      known for", "from       data path"}},
		{"first 10.96.0.77", 0, []string{"77.0.96.10.in-addr.arpa. PTR: NOERROR", "10.96.0.77 is web.shop.svc.cluster.local."}},
		{"first alias.example", 0, []string{"203.0.113.7, from the pod's /etc/hosts"}},
		{"first heads SRV", 0, []string{"web-0.heads.shop.svc.cluster.local.", "Service shop/heads"}},
		{"few web.shop", 0, []string{"web.shop. A: NXDOMAIN", "web.shop.svc.cluster.local. A: NOERROR"}},
		{"own gone", 1, []string{"search svc.cluster.local; ndots 1", "gone. A: NXDOMAIN"}},
		{"elsewhere web", 1, []string{"not the cluster's"}},
		{"nobody web", 1, []string{`pods "nobody" not found in namespace "shop"`}},
		{"first web NONE", 2, []string{`"NONE" is no type of records`}},
		{"first a..b", 2, []string{`"a..b" is no domain name`}},
	} {
		if strings.HasSuffix(c.args, "www.example.com") {
			s.must("podgate exec -n shop first -- getent ahostsv4 www.example.com") // known for half a minute
		}
		r := s.run("podgate dns query -n shop " + c.args)
		for _, want := range c.want {
			if r.code != c.code || !strings.Contains(r.out+r.errOut, want) {
				s.t.Errorf("%s: exit code %d, want %d and %q\n%s%s", c.args, r.code, c.code, want, r.out, r.errOut)
			}
		}
	}
	var a dnsAnswer
	if err := json.Unmarshal([]byte(s.must("podgate dns query -n shop first web -o json")), &a); err != nil || len(a.Steps) != 1 || !a.Steps[0].Found || a.Ndots != 5 {
		s.t.Errorf("got %+v, %v", a, err)
	}
}

const gateCorefile = `apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        %s
        hosts {
            %s gate.example
            fallthrough
        }
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            pods insecure
            ttl 7
        }
        cache 30
    }
`

func appliedCorefile(s *shell) {
	dig := "podgate exec -n shop first -- dig +short gate.example"
	for _, addr := range []string{"192.0.2.10", "192.0.2.11"} {
		s.must("podgate apply -f " + write(s.t, "corefile.yaml", fmt.Sprintf(gateCorefile, "errors", addr)))
		if got := s.must(dig); got != addr+"\n" {
			s.t.Errorf("got %q, want %s", got, addr)
		}
	}
	if got := s.must("podgate exec -n shop first -- dig +noall +answer web.shop.svc.cluster.local"); !strings.Contains(got, " 7\tIN") {
		s.t.Errorf("the TTL is not the Corefile's: %s", got)
	}
	if r := s.run("podgate exec -n shop first -- curl -s -m 20 http://10.244.0.2:8080/health"); r.code != 7 {
		s.t.Errorf("health is served though the Corefile has none: %+v", r)
	}
	s.must("podgate apply -f " + write(s.t, "corefile.yaml", fmt.Sprintf(gateCorefile, "health :8088", "192.0.2.11")))
	s.must("podgate exec -n shop first -- curl -s -m 20 http://10.244.0.2:8088/health")
	s.must("podgate apply -f " + write(s.t, "corefile.yaml", fmt.Sprintf(gateCorefile, "whoami", "192.0.2.12")))
	if got := s.must(dig); got != "192.0.2.12\n" {
		s.t.Errorf("beside a directive that is not supported: got %q", got)
	}
	if out := s.must("podgate status"); !strings.Contains(out, "kube-system/coredns") || !strings.Contains(out, "line 2: whoami") {
		s.t.Errorf("status does not name the directive:\n%s", out)
	}
	s.must("podgate delete -f " + write(s.t, "corefile.yaml", fmt.Sprintf(gateCorefile, "errors", "192.0.2.12")))
	if got := s.must(dig); got != "" {
		s.t.Errorf("without the Corefile: got %q", got)
	}
}

// While the health directive's lameduck lasts, names are answered and /ready says no.
func TestLameduckPutsTheEndOff(t *testing.T) {
	nstest.Need(t, "dig", "curl")
	file := write(t, "Corefile", ".:53 {\n health {\n lameduck 40s\n }\n ready\n hosts {\n 192.0.2.10 gate.example\n }\n}\n")
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= --set dns.corefile=" + file + " " + write(t, "app.yaml", goodPod))
	pid, end := s.status().PID, make(chan result)
	go func() { end <- s.run("podgate down") }()
	until(t, "it is not ready any more", func() bool {
		return s.must("podgate exec ok -- curl -s -m 20 -o /dev/null -w %{http_code} http://10.244.0.2:8181/ready") == "503"
	})
	if got := s.must("podgate exec ok -- dig +short gate.example"); got != "192.0.2.10\n" {
		t.Errorf("a name: got %q", got)
	}
	if got := s.must("podgate exec ok -- curl -s -m 20 http://10.244.0.2:8080/health"); got != "OK" {
		t.Errorf("health: got %q", got)
	}
	s.must(fmt.Sprint("kill ", pid)) // has had enough
	if r := <-end; r.code != 0 {
		t.Errorf("down: %+v", r)
	}
}

// The file of dns.corefile is read again when it changes, and a broken one says so.
func TestCorefileFileIsFollowed(t *testing.T) {
	nstest.Need(t, "dig")
	file := write(t, "Corefile", ".:53 {\n hosts {\n 192.0.2.10 gate.example\n }\n}\n")
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= --set dns.corefile=" + file + " " + write(t, "app.yaml", goodPod))
	dig := "podgate exec ok -- dig +short gate.example"
	says := func(cmd, want string) {
		t.Helper()
		until(t, cmd+" says "+want, func() bool { return strings.Contains(s.must(cmd), want) })
	}
	says(dig, "192.0.2.10")
	for _, c := range []struct{ text, want, cmd string }{
		{".:53 {\n hosts {\n 192.0.2.11 gate.example\n }\n}\n", "192.0.2.11", dig},
		{".:53 {\n hosts {\n 192.0.2.12 gate.example\n }\n", "a closing brace is missing", "podgate status"},
		{".:53 {\n hosts {\n 192.0.2.13 gate.example\n }\n}\n", "192.0.2.13", dig},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		says(c.cmd, c.want)
	}
}
