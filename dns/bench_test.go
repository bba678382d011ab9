package dns

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func BenchmarkRespond(b *testing.B) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(b, "testdata/cluster.yaml"), testConfig))
	for _, bench := range []struct {
		name, question string
		qtype          uint16
	}{
		{"a", "web.shop.svc.cluster.local.", dns.TypeA},
		{"nxdomain", "web.shop.svc.cluster.local.shop.svc.cluster.local.", dns.TypeA},
		{"srv", "_sql._tcp.db.shop.svc.cluster.local.", dns.TypeSRV},
		{"ptr", "31.0.244.10.in-addr.arpa.", dns.TypePTR},
	} {
		wire, err := question(bench.question, bench.qtype).Pack()
		if err != nil {
			b.Fatal(err)
		}
		out := make([]byte, 4096)
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if answer, _ := s.respond(netip.Addr{}, wire, out, true); answer == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}
