package dns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The asker of a name is said to know the addresses at the end of its aliases,
// and nothing else that an answer has.
func TestToldIsTheEndOfTheChain(t *testing.T) {
	rr := func(text string) dns.RR {
		r, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, tt := range []struct {
		name, want string
		rcode      int
		answer     []dns.RR
	}{
		{"addresses", "10.244.0.4 Www.example.com. [192.0.2.1 192.0.2.2] 20s", 0,
			[]dns.RR{rr("www.example.com. 30 IN A 192.0.2.1"), rr("WWW.example.com. 20 IN A 192.0.2.2")}},
		{"a chain, in any order, ends with its first record", "10.244.0.4 Www.example.com. [2001:db8::1] 5s", 0,
			[]dns.RR{rr("edge.example.net. 60 IN AAAA 2001:db8::1"), rr("mid.example.net. 5 IN CNAME edge.example.net."), rr("www.example.com. 30 IN CNAME mid.example.net.")}},
		{"another name's address", "", 0, []dns.RR{rr("bank.example.com. 30 IN A 192.0.2.1")}},
		{"a loop", "", 0, []dns.RR{rr("www.example.com. 30 IN CNAME www.example.com.")}},
		{"no such name", "", dns.RcodeNameError, []dns.RR{rr("www.example.com. 30 IN A 192.0.2.1")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			s := NewServer(Config{Told: func(client netip.Addr, name string, addrs []netip.Addr, ttl time.Duration) {
				got = fmt.Sprint(client, " ", name, " ", addrs, " ", ttl)
			}})
			m := new(dns.Msg)
			m.SetQuestion("Www.example.com.", dns.TypeA)
			m.Response, m.Rcode, m.Answer = true, tt.rcode, tt.answer
			wire, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			s.told(testClient, wire)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
