package dns

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"podgate/kube"
)

// The examples of RFC 9018, appendix A.
func TestServerCookies(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, test := range []struct {
		client, secret, addr string
		now                  uint32
		want                 string
	}{
		{"2464c4abcf10c957", "e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", 1559731985, "010000005cf79f111f8130c3eee29480"},
		{"fc93fc62807ddb86", "e5e973e5a6b2a43f48e7dc849e37bfcf", "203.0.113.203", 1559734700, "010000005cf7a9acf73a7810aca2381e"},
		{"22681ab97d52c298", "445536bcd2513298075a5d379663c962", "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961, "010000005cf7c609a6bb79d16625507a"},
	} {
		secret, client, addr := cookieSecretOf([16]byte(unhex(test.secret))), unhex(test.client), netip.MustParseAddr(test.addr)
		got := secret.cookie(client, addr, test.now)
		if hex.EncodeToString(got) != test.want {
			t.Errorf("%s: got %x, want %s", test.client, got, test.want)
		}
		for _, v := range []struct {
			what string
			now  uint32
			from netip.Addr
			want bool
		}{
			{"at once", test.now, addr, true},
			{"after 59 minutes", test.now + 59*60, addr, true},
			{"after 61 minutes", test.now + 61*60, addr, false},
			{"4 minutes before", test.now - 4*60, addr, true},
			{"6 minutes before", test.now - 6*60, addr, false},
			{"for another client", test.now, netip.MustParseAddr("192.0.2.1"), false},
		} {
			if secret.valid(client, got, v.from, v.now) != v.want {
				t.Errorf("%s, %s: valid is %v", test.client, v.what, !v.want)
			}
		}
		got[15]++
		if secret.valid(client, got, addr, test.now) {
			t.Errorf("%s: a forged cookie is valid", test.client)
		}
	}
}

// optionsOf asks a question with options and returns the answer and its options.
func optionsOf(t *testing.T, s *Server, q *dns.Msg, udp bool, options ...dns.EDNS0) (*dns.Msg, []dns.EDNS0) {
	t.Helper()
	q.SetEdns0(1232, false)
	q.IsEdns0().Option = options
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b, later := s.respond(testClient, wire, nil, udp)
	if later != nil {
		b = later()
	}
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	if opt := m.IsEdns0(); opt != nil {
		return &m, opt.Option
	}
	return &m, nil
}

func TestOptions(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	web := func() *dns.Msg { return question("web.shop.svc.cluster.local.", dns.TypeA) }
	none := func() *dns.Msg { m := web(); m.Question = nil; return m }
	const mine = "2464c4abcf10c957"
	cookie := func(text string) dns.EDNS0 { return &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: text} }
	_, first := optionsOf(t, s, web(), true, cookie(mine))
	if len(first) != 1 {
		t.Fatalf("got options %v, want a cookie", first)
	}
	whole := first[0].(*dns.EDNS0_COOKIE).Cookie
	if !strings.HasPrefix(whole, mine) || len(whole) != 2*(8+16) {
		t.Errorf("got cookie %s", whole)
	}
	for _, test := range []struct {
		what    string
		q       *dns.Msg
		udp     bool
		option  dns.EDNS0
		rcode   int
		answers int
		cookie  bool
	}{
		{"a client's cookie over TCP", web(), false, cookie(mine), dns.RcodeSuccess, 1, true},
		{"our cookie", web(), true, cookie(whole), dns.RcodeSuccess, 1, true},
		{"a wrong cookie", web(), true, cookie(mine + strings.Repeat("ab", 16)), dns.RcodeSuccess, 1, true},
		{"a short cookie", web(), true, cookie("2464"), dns.RcodeFormatError, 0, false},
		{"half a server cookie", web(), true, cookie(mine + "0102"), dns.RcodeFormatError, 0, false},
		{"a cookie that is too long", web(), true, cookie(mine + strings.Repeat("ab", 33)), dns.RcodeFormatError, 0, false},
		{"only a cookie", none(), true, cookie(mine), dns.RcodeSuccess, 0, true},
		{"only our cookie", none(), true, cookie(whole), dns.RcodeSuccess, 0, true},
		{"only a wrong cookie", none(), true, cookie(mine + strings.Repeat("ab", 16)), dns.RcodeBadCookie, 0, true},
		{"an unknown option", web(), true, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}, dns.RcodeSuccess, 1, false},
		{"a subnet for a name of the cluster", web(), true, subnet{true, netip.MustParseAddr("192.0.2.0"), 24}.option(0), dns.RcodeSuccess, 1, false},
		{"a subnet with a scope", web(), true, subnet{true, netip.MustParseAddr("192.0.2.0"), 24}.option(24), dns.RcodeFormatError, 0, false},
		{"a subnet of no family", web(), true, subnet{asked: true}.option(0), dns.RcodeSuccess, 1, false},
	} {
		m, got := optionsOf(t, s, test.q, test.udp, test.option)
		if m.Rcode != test.rcode || len(m.Answer) != test.answers {
			t.Errorf("%s: got %s with %d answers, want %s with %d", test.what, dns.RcodeToString[m.Rcode], len(m.Answer), dns.RcodeToString[test.rcode], test.answers)
		}
		if cookie := len(got) == 1; cookie != test.cookie || cookie && !strings.HasPrefix(got[0].(*dns.EDNS0_COOKIE).Cookie, mine) {
			t.Errorf("%s: got options %v", test.what, got)
		}
	}
	keepalive := &dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}
	if _, got := optionsOf(t, s, web(), false, keepalive); len(got) != 1 || got[0].(*dns.EDNS0_TCP_KEEPALIVE).Timeout != 100 {
		t.Errorf("keepalive over TCP: got %v, want 10 s", got)
	}
	if _, got := optionsOf(t, s, web(), true, keepalive); len(got) != 0 {
		t.Errorf("keepalive over UDP: got %v", got)
	}
}

// A client's subnet goes to the upstream, the answer is kept for that subnet
// alone, and says how far it holds.
func TestSubnetsArePassedOn(t *testing.T) {
	asked := 0
	u := &upstream{answer: func(_ string, q *dns.Msg) (*dns.Msg, error) {
		asked++
		m, _ := says("www.example.com. 300 IN A 192.0.2.80")("", q)
		if opt := q.IsEdns0(); opt != nil && len(opt.Option) == 1 {
			of := *opt.Option[0].(*dns.EDNS0_SUBNET)
			m.Answer[0].(*dns.A).A = of.Address
			of.SourceScope = 16
			if of.Address[0] == 203 {
				of.Address = net.IPv4(198, 51, 100, 0) // a lie
			}
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&of}
		}
		return m, nil
	}}
	s := NewServer(Config{Upstreams: []netip.AddrPort{up1}, Exchange: exchangeWith(map[string]*upstream{up1.String(): u})})
	s.SetZone(Compile(nil, &kube.State{}, testConfig))
	for _, test := range []struct {
		subnet, answer, scope string
		asked                 int
	}{
		{"192.0.2.0/24", "192.0.2.0", "192.0.2.0/24/16", 1},
		{"192.0.2.0/24", "192.0.2.0", "192.0.2.0/24/16", 1},
		{"198.51.100.0/24", "198.51.100.0", "198.51.100.0/24/16", 2},
		{"2001:db8::/56", "2001:db8::", "[2001:db8::]/56/16", 3},
		{"203.0.113.0/24", "", "", 5}, // an answer for another subnet is none
	} {
		p := netip.MustParsePrefix(test.subnet)
		m, options := optionsOf(t, s, question("www.example.com.", dns.TypeA), true, subnet{true, p.Addr(), uint8(p.Bits())}.option(0))
		got, scope := "", ""
		if len(m.Answer) == 1 {
			got = m.Answer[0].(*dns.A).A.String()
			scope = fmt.Sprint(options[0])
		}
		if p.Addr().Is6() {
			got, scope = test.answer, test.scope // an A record cannot say it
		}
		if got != test.answer || scope != test.scope || asked != test.asked {
			t.Errorf("%s: got %q, %q after %d queries, want %q, %q after %d", test.subnet, got, scope, asked, test.answer, test.scope, test.asked)
		}
	}
	if m := resolveNow(t, s, question("www.example.com.", dns.TypeA)); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "192.0.2.80" {
		t.Errorf("without a subnet: got %v", m)
	}
}
