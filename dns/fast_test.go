package dns

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fastQueries are questions for every name that the test zone has, and misses,
// with and without EDNS.
func fastQueries() (qs []*dns.Msg) {
	names := []string{"h.big.svc.cluster.local.", "gone.shop.svc.cluster.local.", "www.example.com.shop.svc.cluster.local.", "www.example.com.cluster.local.",
		"x.dns.cluster.local.", "hostmaster.cluster.local.", "nope.cluster.local.", "a.b.c.web.shop.svc.cluster.local."}
	for _, c := range zoneTests {
		names = append(names, c.name)
	}
	for _, name := range names {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT} {
			for _, size := range []uint16{0, 512, 1232, 4096} {
				for _, rd := range []bool{true, false} {
					q := question(name, qtype)
					q.RecursionDesired, q.CheckingDisabled = rd, !rd
					if size > 0 {
						q.SetEdns0(size, size == 4096)
					}
					qs = append(qs, q)
				}
			}
		}
	}
	return qs
}

func TestFastAnswersAreTheServers(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	fast := s.Responder()
	fast.rand = func(int) int { return 0 }
	out, answered := make([]byte, 4096), 0
	big := headlessOf(100)
	st := loadState(t, "testdata/cluster.yaml")
	maps.Copy(st.Services, big.Services)
	for n, es := range big.EndpointSlices.All() {
		st.EndpointSlices = st.EndpointSlices.With(n, es)
	}
	s.SetZone(Compile(nil, st, testConfig))
	for _, q := range fastQueries() {
		wire, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		n := fast.Answer(out, wire, testClient)
		if n == 0 {
			continue
		}
		answered++
		got := bytes.Clone(out[:n])
		// Addresses begin at a random one: as many tries as it takes to see the same.
		same := false
		for range 3000 {
			want, later := s.respond(netip.Addr{}, wire, out, true)
			if later != nil {
				t.Fatalf("%v: the server would forward", q.Question)
			}
			if same = strings.EqualFold(string(got), string(want)); same {
				break
			}
		}
		if !same {
			want, _ := s.respond(netip.Addr{}, wire, out, true)
			t.Errorf("%v: got\n%x, want\n%x", q.Question, got, want)
		}
	}
	if answered < 200 {
		t.Errorf("only %d answers were fast", answered)
	}
}

func TestFastAnswersRotate(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, headlessOf(5), testConfig))
	fast, out := s.Responder(), make([]byte, 4096)
	wire, err := question("h.big.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for turn := range 5 {
		fast.rand = func(int) int { return turn }
		var m dns.Msg
		if err := m.Unpack(out[:fast.Answer(out, wire, testClient)]); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, rr := range m.Answer {
			got = append(got, rr.(*dns.A).A.String())
		}
		var want []string
		for i := range 5 {
			want = append(want, fmt.Sprintf("10.244.0.%d", 10+(turn+i)%5))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("turn %d: got %v, want %v", turn, got, want)
		}
	}
}

func TestFastAnswersDoNotAllocate(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	fast, out := s.Responder(), make([]byte, 4096)
	for _, name := range []string{"web.shop.svc.cluster.local.", "gone.shop.svc.cluster.local.", "WEB.shop.svc.cluster.local."} {
		wire, err := question(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			if fast.Answer(out, wire, testClient) == 0 {
				t.Fatal("no answer")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzFastAnswer(f *testing.F) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(f, "testdata/cluster.yaml"), testConfig))
	fast := s.Responder()
	fast.rand = func(int) int { return 0 }
	for i, q := range fastQueries() {
		if wire, err := q.Pack(); err == nil && i%7 == 0 {
			f.Add(wire)
		}
	}
	out, want := make([]byte, 4096), make([]byte, 4096)
	f.Fuzz(func(t *testing.T, wire []byte) {
		n := fast.Answer(out, wire, testClient)
		if n == 0 {
			return
		}
		answer, later := s.respond(netip.Addr{}, wire, want, true)
		if later != nil {
			t.Fatalf("%x: got %x, the server does not answer at once", wire, out[:n])
		}
		// Lengths may differ: the server compresses names of one case only.
		var a, b dns.Msg
		if a.Unpack(out[:n]) != nil || b.Unpack(answer) != nil || a.Rcode != b.Rcode || len(a.Answer) != len(b.Answer) || len(a.Extra) != len(b.Extra) {
			t.Fatalf("%x: got %v, the server says %v", wire, &a, &b)
		}
	})
}

func TestFastForwardedAnswersAreTheServers(t *testing.T) {
	now := time.Now()
	for _, up := range []func(string, *dns.Msg) (*dns.Msg, error){
		says("www.example.com. 300 IN A 192.0.2.80"),
		says("www.example.com. 300 IN CNAME web.example.net.", "web.example.net. 200 IN A 192.0.2.80"),
		says("NXDOMAIN", "example.com. 60 IN SOA ns.example.com. host.example.com. 1 2 3 4 60"),
		says("example.com. 60 IN SOA ns.example.com. host.example.com. 1 2 3 4 60"),
	} {
		s := NewServer(Config{Upstreams: []netip.AddrPort{up1}, CacheTTL: time.Minute, Exchange: exchangeWith(map[string]*upstream{up1.String(): {answer: up}})})
		s.SetZone(Compile(nil, manyServices(1), testConfig))
		s.forward.now = func() time.Time { return now }
		fast, out := s.Responder(), make([]byte, 4096)
		for _, name := range []string{"www.example.com.", "WWW.example.com."} {
			for _, size := range []uint16{0, 1232} {
				q := question(name, dns.TypeA)
				if size > 0 {
					q.SetEdns0(size, false)
				}
				wire, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				resolveNow(t, s, q)
				now = now.Add(3 * time.Second)
				n := fast.Answer(out, wire, testClient)
				if n == 0 {
					if name == "www.example.com." {
						t.Errorf("%v: not from the cache", q.Question)
					}
					continue
				}
				want, later := s.respond(netip.Addr{}, wire, nil, true)
				if later != nil || !strings.EqualFold(string(out[:n]), string(want)) {
					t.Errorf("%v: got\n%x, want\n%x", q.Question, out[:n], want)
				}
			}
		}
	}
}
