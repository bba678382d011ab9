package dns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// What common misses and clients are is known, within bounds, whoever asks for what.
func TestAsked(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	fast, out := s.Responder(), make([]byte, 4096)
	ask := func(client netip.Addr, name string) {
		wire, err := question(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if fast.Answer(out, wire, client) == 0 {
			t.Fatalf("%s: no fast answer", name)
		}
	}
	client := testClient
	for i := range maxClients + 100 {
		ask(client, fmt.Sprintf("gone-%d.shop.svc.cluster.local.", i))
		if i%4 == 0 {
			ask(testClient, "Common.shop.svc.cluster.local.")
		}
		client = client.Next()
	}
	resolveNow(t, s, question("web.shop.svc.cluster.local.", dns.TypeA))
	all := s.Asked()
	if len(all) != maxClients+1 {
		t.Errorf("%d clients are told apart, want %d and the others", len(all), maxClients)
	}
	if last := all[len(all)-1]; last.Client.IsValid() || last.Queries != 101 || last.Missing != 100 {
		t.Errorf("the others: got %+v", last)
	}
	if got, want := all[0], (Asked{Client: testClient, Queries: 1050, Fast: 1050, Missing: 1050}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	top := s.Missing(5)
	if len(top) != 5 || top[0].Name != "common.shop.svc.cluster.local." || top[0].Count < 1049 || top[0].Least > 1049 || top[0].Last != testClient {
		t.Errorf("got %+v", top)
	}
	s.Forget(testClient)
	if got := s.Asked(); got[0].Client == testClient {
		t.Error("a client that is forgotten is there")
	}
}
