package dns

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstreamOnLoopback answers each query that comes over UDP with the messages that
// say makes of it, in their order, and any over TCP with an address. Before it,
// somebody at another port answers.
func upstreamOnLoopback(t *testing.T, say func(q *dns.Msg) [][]byte) netip.AddrPort {
	t.Helper()
	l, pc := listenBoth(t)
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	servers := []*dns.Server{
		{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			other.WriteTo(wireOf(t, q, "203.0.113.67"), w.RemoteAddr())
			for _, b := range say(q) {
				w.Write(b)
			}
		})},
		{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { w.Write(wireOf(t, q, "192.0.2.81")) })},
	}
	for _, s := range servers {
		began, done := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(began) }
		go func() { done <- s.ActivateAndServe() }()
		<-began
		t.Cleanup(func() {
			s.Shutdown()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return netip.MustParseAddrPort(l.Addr().String())
}

// wireOf is the answer to q that holds an address.
func wireOf(t *testing.T, q *dns.Msg, addr string, edits ...func(*dns.Msg)) []byte {
	m := new(dns.Msg).SetReply(q)
	rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN A %s", q.Question[0].Name, addr))
	if err != nil {
		t.Error(err)
		return nil
	}
	m.Answer = []dns.RR{rr}
	for _, edit := range edits {
		edit(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

// What an upstream sends that is no answer to the query is left and counted, and
// said once; names of the cluster are known whatever it does.
func TestWhatUpstreamsSend(t *testing.T) {
	const good, lie = "192.0.2.80", "203.0.113.66"
	right := func(q *dns.Msg) []byte { return wireOf(t, q, good) }
	truncated := func(m *dns.Msg) { m.Truncated, m.Answer = true, nil }
	for _, test := range []struct {
		what   string
		say    func(q *dns.Msg) [][]byte
		want   string // an address, or a code
		strays uint64
	}{
		{"another id first", func(q *dns.Msg) [][]byte {
			return [][]byte{wireOf(t, q, lie, func(m *dns.Msg) { m.Id++ }), right(q)}
		}, good, 1},
		{"another name first", func(q *dns.Msg) [][]byte {
			return [][]byte{wireOf(t, q, lie, func(m *dns.Msg) { m.Question[0].Name = "www.example.net." }), right(q)}
		}, good, 1},
		{"another type first", func(q *dns.Msg) [][]byte {
			return [][]byte{wireOf(t, q, lie, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }), right(q)}
		}, good, 1},
		{"no question first", func(q *dns.Msg) [][]byte {
			return [][]byte{wireOf(t, q, lie, func(m *dns.Msg) { m.Question = nil }), right(q)}
		}, good, 1},
		{"the query itself first", func(q *dns.Msg) [][]byte {
			return [][]byte{wireOf(t, q, lie, func(m *dns.Msg) { m.Response = false }), right(q)}
		}, good, 1},
		{"rubbish first", func(q *dns.Msg) [][]byte {
			b := right(q)
			return [][]byte{{1, 2, 3}, b[:len(b)-5], right(q)}
		}, good, 2},
		{"truncated", func(q *dns.Msg) [][]byte { return [][]byte{wireOf(t, q, lie, truncated)} }, "192.0.2.81", 0},
		{"an answer cut off", func(q *dns.Msg) [][]byte { b := right(q); return [][]byte{b[:len(b)-5]} }, "SERVFAIL", 1},
		{"nothing", func(*dns.Msg) [][]byte { return nil }, "SERVFAIL", 0},
	} {
		var log bytes.Buffer
		timeout := 20 * time.Second
		if test.want == "SERVFAIL" {
			timeout = time.Second
		}
		s := NewServer(Config{
			Upstreams: []netip.AddrPort{upstreamOnLoopback(t, test.say)}, Timeout: timeout, CacheTTL: -1, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
		m := resolveNow(t, s, question("www.example.com.", dns.TypeA))
		got := dns.RcodeToString[m.Rcode]
		if len(m.Answer) == 1 {
			got = m.Answer[0].(*dns.A).A.String()
		}
		if got != test.want {
			t.Errorf("%s: got %s, want %s", test.what, got, test.want)
		}
		if n := s.Counters()["dns_forward_strays_total"]; n != test.strays && (test.want == good || (n > 0) != (test.strays > 0)) {
			t.Errorf("%s: %d strays, want %d", test.what, n, test.strays)
		}
		if failures, failed := s.Counters()["dns_forward_failures_total"], test.want == "SERVFAIL"; (failures == 1) != failed {
			t.Errorf("%s: %d failures", test.what, failures)
		}
		if said := strings.Count(log.String(), "what was not asked for"); said != int(min(test.strays, 1)) {
			t.Errorf("%s: said %d times:\n%s", test.what, said, &log)
		}
		if m := resolveNow(t, s, question("web.shop.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 1 {
			t.Errorf("%s: a name of the cluster: %v", test.what, m)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
