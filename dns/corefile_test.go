package dns

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

// kubeadmCorefile is the one that kubeadm installs.
const kubeadmCorefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . 192.0.2.53 {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

func mustParse(t testing.TB, text string) *Corefile {
	t.Helper()
	c, problems := ParseCorefile(text, "cluster.local")
	if len(problems) > 0 {
		t.Fatalf("%v", problems)
	}
	return c
}

func TestKubeadmCorefileIsAccepted(t *testing.T) {
	c := mustParse(t, kubeadmCorefile)
	cfg := c.Options(Config{Pods: Verified})
	if cfg.TTL != 30*time.Second || cfg.Pods != Insecure {
		t.Errorf("got TTL %v, pods %v", cfg.TTL, cfg.Pods)
	}
	s := NewServer(Config{})
	s.SetCorefile(c)
	if s.rules.Load().slow {
		t.Error("names of the cluster do not take the fast path")
	}
}

func TestCorefileProblemsNameTheLine(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{".:53 {\n  whoami\n}", "Corefile line 2: whoami: this directive is not supported and does nothing"},
		{".:5353 {\n  errors\n}", "Corefile line 1: .:5353: podgate serves port 53 only"},
		{"tls://.:53 {\n}", "Corefile line 1: tls://.:53: podgate serves plain DNS only"},
		{".:53 {\n  forward . nowhere\n}", `Corefile line 2: forward: "nowhere" is not an upstream such as 192.0.2.53, 192.0.2.53:5353 or tls://192.0.2.53`},
		{".:53 {\n  forward . 192.0.2.1 {\n    policy best\n  }\n}", "Corefile line 3: forward: policy is one of random, round_robin, sequential"},
		{".:53 {\n  kubernetes {\n    pods some\n  }\n}", "Corefile line 3: kubernetes: pods is one of disabled, insecure, verified"},
		{".:53 {\n  errors", "Corefile line 2: a closing brace is missing"},
		{".:53 {\n  health localhost\n}", "Corefile line 2: health: an address such as :8080 is expected"},
		{".:53 {\n  ready 127.0.0.1:8181\n}", "Corefile line 2: ready: port 8181 is served at the DNS server's own address, not at 127.0.0.1"},
		{".:53 {\n  health {\n lameduck soon\n }\n}", "Corefile line 3: health: lameduck is a duration such as 5s, at most 45s"},
		{".:53 {\n  prometheus :9153 {\n runtime_metrics\n }\n}", "Corefile line 3: prometheus: option runtime_metrics is not supported and does nothing"},
		{".:53 {\n  rewrite class ANY IN\n}", "Corefile line 2: rewrite: only names are rewritten: `rewrite [stop|continue] name [exact|prefix|suffix|substring|regex] FROM TO [answer auto]`"},
		{".:53 {\n  hosts {\n    one two\n  }\n}", `Corefile line 3: hosts: "one two" is not an address with names`},
		{".:53 {\n  kubernetes other.local\n}", "Corefile line 2: kubernetes: zone other.local. is not served: the cluster's domain is cluster.local."},
		{"errors\n.:53 {\n}", "Corefile line 1: \"errors\": a server block such as `.:53 {` is expected"},
	} {
		_, problems := ParseCorefile(test.text, "cluster.local")
		if got := fmt.Sprint(problems); got != "["+test.want+"]" {
			t.Errorf("%q: got %s, want %s", test.text, got, test.want)
		}
	}
}

func FuzzCorefile(f *testing.F) {
	f.Add(kubeadmCorefile)
	f.Add("a.example:53, b.example {\n rewrite name regex (.*)\\.x\\. {1}.y.\n hosts {\n 192.0.2.1 a b\n fallthrough\n }\n}\n")
	f.Add(".:53 {\n template IN ANY example.com {\n match \"^(.*)[.]example[.]com[.]$\"\n answer \"{{ .Name }} 60 IN A 192.0.2.{{ len (index .Match 1) }}\"\n rcode NOERROR\n fallthrough\n }\n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "/") {
			return // files of this machine
		}
		c, _ := ParseCorefile(text, "cluster.local")
		s := NewServer(Config{Exchange: func(context.Context, string, string, *dns.Msg) (*dns.Msg, error) { return nil, errors.New("nobody") }})
		s.SetZone(Compile(nil, manyServices(1), c.Options(testConfig)))
		s.SetCorefile(c)
		for _, name := range []string{"s0.many.svc.cluster.local.", "www.example.com.", "."} {
			resolveNow(t, s, question(name, dns.TypeA))
		}
		s.Shutdown(context.Background())
	})
}

// corefileServer serves the test zone by a Corefile, with stand-in upstreams.
func corefileServer(t *testing.T, text string, all map[string]*upstream) *Server {
	t.Helper()
	c := mustParse(t, text)
	s := NewServer(Config{Exchange: exchangeWith(all)})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), c.Options(testConfig)))
	s.SetCorefile(c)
	t.Cleanup(func() { s.Shutdown(context.Background()) })
	return s
}

func TestStubDomainsHostsAndRewrites(t *testing.T) {
	all := map[string]*upstream{
		"192.0.2.53:53":    {answer: says("www.example.com. 300 IN A 192.0.2.80")},
		"198.51.100.53:53": {answer: says("db.corp.example. 300 IN A 198.51.100.80")},
	}
	s := corefileServer(t, `
.:53 {
    hosts {
        192.0.2.10 gate.example gate
        2001:db8::10 gate.example
        fallthrough
    }
    rewrite name exact old.example web.shop.svc.cluster.local
    rewrite name suffix .short .shop.svc.cluster.local
    rewrite name regex (.*)\.in\.(.*)\.test {1}.{2}.svc.cluster.local
    kubernetes cluster.local {
        pods verified
        ttl 30
    }
    forward . 192.0.2.53
    cache 30
}
corp.example:53 {
    forward . 198.51.100.53
}
`, all)
	for _, test := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"www.example.com.", dns.TypeA, "www.example.com.\t30\tIN\tA\t192.0.2.80"},
		{"db.corp.example.", dns.TypeA, "db.corp.example.\t300\tIN\tA\t198.51.100.80"},
		{"Gate.example.", dns.TypeA, "Gate.example.\t3600\tIN\tA\t192.0.2.10"},
		{"gate.example.", dns.TypeAAAA, "gate.example.\t3600\tIN\tAAAA\t2001:db8::10"},
		{"10.2.0.192.in-addr.arpa.", dns.TypePTR, "10.2.0.192.in-addr.arpa.\t3600\tIN\tPTR\tgate.example."},
		{"Old.example.", dns.TypeA, "Old.example.\t30\tIN\tA\t10.96.0.20"},
		{"web.short.", dns.TypeA, "web.short.\t30\tIN\tA\t10.96.0.20"},
		{"web.in.shop.test.", dns.TypeA, "web.in.shop.test.\t30\tIN\tA\t10.96.0.20"},
		{"web.shop.svc.cluster.local.", dns.TypeA, "web.shop.svc.cluster.local.\t30\tIN\tA\t10.96.0.20"},
	} {
		m := resolveNow(t, s, question(test.name, test.qtype))
		found := false
		for _, rr := range m.Answer {
			found = found || rr.String() == test.want
		}
		if !found {
			t.Errorf("%s %s: got %v, want %s", test.name, dns.TypeToString[test.qtype], m, test.want)
		}
	}
	if got := all["198.51.100.53:53"].asked.Load(); got != 1 {
		t.Errorf("the stub domain's server was asked %d times, want 1", got)
	}
}

func TestFallthroughOfReverseNames(t *testing.T) {
	all := map[string]*upstream{"192.0.2.53:53": {answer: says("9.9.244.10.in-addr.arpa. 300 IN PTR printer.example.")}}
	s := corefileServer(t, kubeadmCorefile, all)
	m := resolveNow(t, s, question("9.9.244.10.in-addr.arpa.", dns.TypePTR))
	if len(m.Answer) != 1 {
		t.Errorf("unknown address: %v", m)
	}
}

func TestNamesOfNoBlockAreRefused(t *testing.T) {
	s := corefileServer(t, "cluster.local:53 {\n kubernetes cluster.local\n}\n", nil)
	if m := resolveNow(t, s, question("www.example.com.", dns.TypeA)); m.Rcode != dns.RcodeRefused {
		t.Errorf("got %v", m)
	}
	if m := resolveNow(t, s, question("web.shop.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 5 {
		t.Errorf("CoreDNS's default TTL is 5 s: got %v", m)
	}
}

func TestPolicies(t *testing.T) {
	const first, second = "192.0.2.53:53", "198.51.100.53:53"
	for _, test := range []struct {
		policy        string
		first, second func(n uint64) bool
	}{
		{"sequential", func(n uint64) bool { return n == 100 }, func(n uint64) bool { return n == 0 }},
		{"round_robin", func(n uint64) bool { return n == 50 }, func(n uint64) bool { return n == 50 }},
		{"random", func(n uint64) bool { return n > 10 && n < 90 }, func(n uint64) bool { return n > 10 && n < 90 }},
	} {
		all := map[string]*upstream{first: {answer: says("NXDOMAIN")}, second: {answer: says("NXDOMAIN")}}
		s := corefileServer(t, ".:53 {\n forward . 192.0.2.53 198.51.100.53 {\n policy "+test.policy+"\n }\n}\n", all)
		for range 100 {
			resolveNow(t, s, question("www.example.com.", dns.TypeA))
		}
		if a, b := uint64(all[first].asked.Load()), uint64(all[second].asked.Load()); !test.first(a) || !test.second(b) {
			t.Errorf("%s: asked %d and %d", test.policy, a, b)
		}
	}
}

func TestUpstreamThatIsDownComesLastUntilItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		all := map[string]*upstream{
			"192.0.2.53:53": {answer: func(n string, q *dns.Msg) (*dns.Msg, error) {
				if down.Load() {
					return nil, errors.New("no route")
				}
				return says("www.example.com. 300 IN A 192.0.2.1")(n, q)
			}},
			"198.51.100.53:53": {answer: says("www.example.com. 300 IN A 192.0.2.2")},
		}
		s := corefileServer(t, ".:53 {\n forward . 192.0.2.53 198.51.100.53 {\n policy sequential\n }\n}\n", all)
		first := func() string {
			return resolveNow(t, s, question("www.example.com.", dns.TypeA)).Answer[0].(*dns.A).A.String()
		}
		for range 5 {
			if got := first(); got != "192.0.2.2" {
				t.Fatalf("got %s", got)
			}
		}
		if got := all["192.0.2.53:53"].asked.Load(); got != 2 {
			t.Errorf("the dead one was asked %d times, want 2", got)
		}
		down.Store(false)
		pass(time.Second)
		synctest.Wait()
		if got := first(); got != "192.0.2.1" {
			t.Errorf("after it came back: got %s", got)
		}
		s.Shutdown(context.Background())
	})
}

// pass lets d go by on the bubble's clock.
func pass(d time.Duration) { <-time.After(d) }

func TestServeStaleAndPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		up := &upstream{answer: func(n string, q *dns.Msg) (*dns.Msg, error) {
			if dead.Load() {
				return nil, errors.New("no route")
			}
			return says("www.example.com. 100 IN A 192.0.2.80")(n, q)
		}}
		s := corefileServer(t, ".:53 {\n forward . 192.0.2.53\n cache 100 {\n serve_stale 1h\n prefetch 2\n }\n}\n", map[string]*upstream{"192.0.2.53:53": up})
		ask := func() *dns.Msg { return resolveNow(t, s, question("www.example.com.", dns.TypeA)) }
		ask()
		ask()
		pass(95 * time.Second) // in the last tenth of its life
		ask()
		synctest.Wait()
		if got := up.asked.Load(); got != 2 {
			t.Errorf("asked %d times near the end, want 2: it is fetched again", got)
		}
		dead.Store(true)
		pass(10 * time.Minute)
		m := ask()
		if len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 0 {
			t.Errorf("stale: got %v", m)
		}
		synctest.Wait()
		pass(time.Hour)
		if m := ask(); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("too old: got %v", m)
		}
		s.Shutdown(context.Background())
	})
}

func TestCacheOffForAZone(t *testing.T) {
	up := &upstream{answer: says("www.example.com. 100 IN A 192.0.2.80")}
	s := corefileServer(t, ".:53 {\n forward . 192.0.2.53\n cache {\n disable success example.com\n }\n}\n", map[string]*upstream{"192.0.2.53:53": up})
	for range 3 {
		resolveNow(t, s, question("www.example.com.", dns.TypeA))
	}
	if got := up.asked.Load(); got != 3 {
		t.Errorf("asked %d times, want 3", got)
	}
}

func TestUpstreamOverTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"dns.example"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: l, Net: "tcp-tls", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m, _ := says("www.example.com. 300 IN A 192.0.2.80")("", q)
		w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	defer func() { server.Shutdown(); <-done }()
	at := netip.MustParseAddrPort(l.Addr().(*net.TCPAddr).String())
	for _, test := range []struct {
		name string
		want int
	}{{"dns.example", dns.RcodeSuccess}, {"other.example", dns.RcodeServerFailure}} {
		pool := x509.NewCertPool()
		pool.AddCert(cert)
		s := NewServer(Config{UpstreamCAs: pool})
		s.SetZone(Compile(nil, manyServices(1), testConfig))
		s.SetCorefile(mustParse(t, fmt.Sprintf(".:53 {\n forward . tls://%s {\n tls_servername %s\n }\n}\n", at, test.name)))
		if m := resolveNow(t, s, question("www.example.com.", dns.TypeA)); m.Rcode != test.want {
			t.Errorf("certificate for %s: got %v", test.name, m)
		}
		s.Shutdown(context.Background())
	}
}

func TestKubernetesOptions(t *testing.T) {
	st := headlessOf(3)
	es := st.EndpointSlices.Get(kube.Name{Namespace: "big", Name: "h-a"}).DeepCopy()
	st.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: "big", Name: "h-a"}, es)
	st.Services[kube.Name{Namespace: "big", Name: "h"}].Labels = map[string]string{"app": "web"}
	st.Namespaces["big"] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "big", Labels: map[string]string{"team": "a"}}}
	zones, pods := []string{"eu-1a", "corp.example", "eu-1a"}, []string{"web-7", strings.Repeat("x", 64), "a.b"}
	for i := range es.Endpoints {
		es.Endpoints[i].Zone, es.Endpoints[i].TargetRef = &zones[i], &corev1.ObjectReference{Name: pods[i]}
	}
	const all = "10.244.0.10 10.244.0.11 10.244.0.12"
	for _, test := range []struct {
		option, name string
		want         string
	}{
		{"", "h", all},
		{"noendpoints", "h", "NXDOMAIN"},
		{"namespaces other", "h", "NXDOMAIN"},
		{"namespaces big other", "h", all},
		{"labels app=web", "h", all},
		{"labels app in (web, api),!old", "h", all},
		{"labels app!=web", "h", "NXDOMAIN"},
		{"namespace_labels team=a", "h", all},
		{"namespace_labels team=b", "h", "NXDOMAIN"},
		{"endpoint_pod_names", "web-7.h", "10.244.0.10"},
		{"endpoint_pod_names", "10-244-0-11.h", "10.244.0.11"}, // its name is no label: too long
		{"endpoint_pod_names", "10-244-0-12.h", "10.244.0.12"}, // more than one label
		{"", "web-7.h", "NXDOMAIN"},
		{"", "eu-1a.pin._zone.h", "NXDOMAIN"},
		{"zonal", "EU-1a.pin._zone.h", "10.244.0.10 10.244.0.12"},
		{"zonal", "eu-1a.prefer._zone.h", "10.244.0.10 10.244.0.12"},
		{"zonal", "corp.example.pin._zone.h", "10.244.0.11"},
		{"zonal", "gone.pin._zone.h", ""},
		{"zonal", "gone.prefer._zone.h", all},
		{"zonal", "eu-1a.other._zone.h", "NXDOMAIN"},
		{"zonal", "h", all},
		{"ttl 0", "h", all},
	} {
		c := mustParse(t, ".:53 {\n kubernetes cluster.local {\n "+test.option+"\n }\n}\n")
		s := NewServer(Config{})
		s.SetZone(Compile(nil, st, c.Options(testConfig)))
		s.SetCorefile(c)
		m := resolveNow(t, s, question(test.name+".big.svc.cluster.local.", dns.TypeA))
		var got []string
		if m.Rcode != dns.RcodeSuccess {
			got = []string{dns.RcodeToString[m.Rcode]}
		}
		for _, rr := range m.Answer {
			got = append(got, rr.(*dns.A).A.String())
			if ttl := rr.Header().Ttl; ttl != 5 && test.option != "ttl 0" || ttl != 0 && test.option == "ttl 0" {
				t.Errorf("%s: TTL %d", test.option, ttl)
			}
		}
		slices.Sort(got)
		if text := strings.Join(got, " "); text != test.want {
			t.Errorf("%s: %s: got %q, want %q", test.option, test.name, text, test.want)
		}
	}
	c := mustParse(t, ".:53 {\n kubernetes cluster.local {\n zonal\n }\n}\n")
	s := NewServer(Config{})
	s.SetZone(Compile(nil, st, c.Options(testConfig)))
	s.SetCorefile(c)
	for _, test := range []struct {
		name    string
		answers int
	}{{"h", 3}, {"gone.prefer._zone.h", 3}, {"eu-1a.pin._zone.h", 2}} {
		wire, err := question(test.name+".big.svc.cluster.local.", dns.TypeSRV).Pack()
		if err != nil {
			t.Fatal(err)
		}
		var fast, slow dns.Msg
		out := make([]byte, 4096)
		answer, _ := s.respond(testClient, wire, nil, true)
		err1, err2 := fast.Unpack(out[:s.Responder().Answer(out, wire, testClient)]), slow.Unpack(answer)
		if err1 != nil || err2 != nil || fmt.Sprint(fast.Answer, fast.Extra) != fmt.Sprint(slow.Answer, slow.Extra) ||
			len(fast.Answer) != test.answers || len(fast.Extra) != test.answers || fast.Answer[0].(*dns.SRV).Weight != uint16(100/test.answers) {
			t.Errorf("%s SRV: got %v and %v", test.name, &fast, &slow)
		}
	}
}

func TestResolvConfAndHostsFiles(t *testing.T) {
	dir := t.TempDir()
	conf, table := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	for file, text := range map[string]string{conf: "nameserver 192.0.2.53\n", table: "192.0.2.10 gate.example # the gate\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := corefileServer(t, ".:53 {\n hosts "+table+" {\n fallthrough\n }\n forward . "+conf+"\n}\n",
		map[string]*upstream{"192.0.2.53:53": {answer: says("www.example.com. 300 IN A 192.0.2.80")}})
	for _, name := range []string{"gate.example.", "www.example.com."} {
		if m := resolveNow(t, s, question(name, dns.TypeA)); len(m.Answer) != 1 {
			t.Errorf("%s: got %v", name, m)
		}
	}
}
