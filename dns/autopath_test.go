package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestAutopath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deny, err := dns.NewRR("example. 60 IN SOA ns.example. host.example. 1 2 3 4 60")
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]bool{}
		s := NewServer(Config{
			Told: func(client netip.Addr, name string, addrs []netip.Addr, _ time.Duration) {
				told[fmt.Sprint(client, " ", name, " ", addrs)] = true
			},
			Autopath: true, Upstreams: []netip.AddrPort{up1},
			Search: func(client netip.Addr) []string {
				if client == testClient {
					return []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}
				}
				return nil
			},
			Exchange: func(ctx context.Context, _, _ string, q *dns.Msg) (*dns.Msg, error) {
				switch name := q.Question[0].Name; {
				case name == "www.example.com." && q.Question[0].Qtype == dns.TypeA, name == "printer.corp.example.":
					return says(name+" 20 IN A 192.0.2.80")("", q)
				case name == "www.example.com.":
					return says("example. 60 IN SOA ns.example. host.example. 1 2 3 4 60")("", q)
				case strings.HasPrefix(name, "slow."):
					<-time.After(3 * time.Second)
					return nil, ctx.Err()
				case strings.HasPrefix(name, "broken."):
					return nil, errors.New("no route")
				}
				m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
				m.Ns = []dns.RR{deny}
				return m, nil
			},
		})
		s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
		fast := s.Responder()
		ask := func(from netip.Addr, name string, qtype uint16) string {
			wire, err := question(name, qtype).Pack()
			if err != nil {
				t.Fatal(err)
			}
			out := make([]byte, 4096)
			if n := fast.Answer(out, wire, from); n > 0 {
				var m dns.Msg
				if err := m.Unpack(out[:n]); err != nil || m.Rcode == dns.RcodeNameError {
					t.Errorf("%s: the fast path says %v, %v", name, &m, err)
				}
			}
			b, later := s.respond(from, wire, nil, true)
			if later != nil {
				b = later()
			}
			var m dns.Msg
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			parts := []string{dns.RcodeToString[m.Rcode]}
			for _, rr := range m.Answer {
				f := strings.Fields(rr.String())
				parts = append(parts, fmt.Sprint(f[0], " ", f[1], " ", f[3], " ", f[4]))
			}
			return strings.Join(parts, " | ")
		}
		other := netip.MustParseAddr("10.244.0.9")
		for _, test := range []struct {
			from  netip.Addr
			name  string
			qtype uint16
			want  string
		}{
			{testClient, "Www.example.com.shop.svc.cluster.local.", dns.TypeA, "NOERROR | Www.example.com.shop.svc.cluster.local. 20 CNAME Www.example.com. | Www.example.com. 20 A 192.0.2.80"},
			{testClient, "www.example.com.shop.svc.cluster.local.", dns.TypeAAAA, "NOERROR | www.example.com.shop.svc.cluster.local. 30 CNAME www.example.com."},
			{testClient, "web.shop.shop.svc.cluster.local.", dns.TypeA, "NOERROR | web.shop.shop.svc.cluster.local. 30 CNAME web.shop.svc.cluster.local. | web.shop.svc.cluster.local. 30 A 10.96.0.20"},
			{testClient, "printer.shop.svc.cluster.local.", dns.TypeA, "NOERROR | printer.shop.svc.cluster.local. 20 CNAME printer.corp.example. | printer.corp.example. 20 A 192.0.2.80"},
			{testClient, "gone.example.com.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
			{testClient, "broken.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
			{testClient, "slow.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
			{testClient, "www.example.com.shop.svc.cluster.local.", dns.TypeTXT, "NXDOMAIN"},
			{testClient, "www.example.com.svc.cluster.local.", dns.TypeA, "NXDOMAIN"}, // not the first of the list
			{other, "www.example.com.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
			{testClient, "web.shop.svc.cluster.local.", dns.TypeA, "NOERROR | web.shop.svc.cluster.local. 30 A 10.96.0.20"},
		} {
			for range 2 { // the second is known
				start := time.Now()
				if got := ask(test.from, test.name, test.qtype); got != test.want {
					t.Errorf("%s %s: got %s, want %s", test.name, dns.TypeToString[test.qtype], got, test.want)
				}
				if took := time.Since(start); took > pathPatience {
					t.Errorf("%s: took %v", test.name, took)
				}
			}
		}
		if want := "10.244.0.4 Www.example.com. [192.0.2.80]"; !told[want] {
			t.Errorf("policies are told %v, want %s among it", told, want)
		}
		s.Shutdown(context.Background())
	})
}
