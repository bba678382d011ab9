package dns

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"podgate/kube"
)

// An upstream that asks the server what the server asks it is named once; names
// fail meanwhile without a storm, and it is asked again when it is well.
func TestForwardingLoopIsNamedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *Server
		var asked atomic.Int32
		var mended atomic.Bool
		back := &upstream{answer: func(n string, q *dns.Msg) (*dns.Msg, error) {
			asked.Add(1)
			if mended.Load() {
				return says("www.example.com. 30 IN A 192.0.2.80")(n, q)
			}
			wire, err := q.Pack()
			if err != nil {
				return nil, err
			}
			b, later := s.respond(up1.Addr(), wire, nil, true)
			if later != nil {
				done := make(chan []byte, 1)
				go func() { done <- later() }()
				select {
				case b = <-done:
				case <-time.After(2 * time.Second):
					return nil, context.DeadlineExceeded
				}
			}
			m := new(dns.Msg)
			return m, m.Unpack(b)
		}}
		var log bytes.Buffer
		s = NewServer(Config{
			Upstreams: []netip.AddrPort{up1}, Exchange: exchangeWith(map[string]*upstream{up1.String(): back}),
			Log: slog.New(slog.NewTextHandler(&log, nil)), CacheTTL: -1,
		})
		s.SetZone(Compile(nil, &kube.State{}, testConfig))
		for range 5 {
			m, options := optionsOf(t, s, question("www.example.com.", dns.TypeA), true)
			if m.Rcode != dns.RcodeServerFailure || len(options) != 1 {
				t.Errorf("got %v", m)
			}
			pass(time.Second)
		}
		if n := asked.Load(); n > 12 {
			t.Errorf("the upstream was asked %d times", n)
		}
		if got := strings.Count(log.String(), "forwarding loop\""); got != 1 {
			t.Errorf("the loop is named %d times:\n%s", got, &log)
		}
		mended.Store(true)
		pass(2 * loopCheck)
		if m := resolveNow(t, s, question("www.example.com.", dns.TypeA)); len(m.Answer) != 1 {
			t.Errorf("after the loop: got %v", m)
		}
		s.Shutdown(context.Background())
	})
}

// With 0x20 an answer in another case is not believed over UDP.
func TestRandomCase(t *testing.T) {
	var networks []string
	fold := false
	s := NewServer(Config{
		Upstreams: []netip.AddrPort{up1}, RandomCase: true, CacheTTL: -1,
		Exchange: func(_ context.Context, network, _ string, q *dns.Msg) (*dns.Msg, error) {
			networks = append(networks, network)
			if name := q.Question[0].Name; network == "udp" && name == strings.ToLower(name) {
				t.Errorf("%s is in lower case", name)
			}
			m, err := says(q.Question[0].Name+" 30 IN A 192.0.2.80")("", q)
			if fold {
				m.Question[0].Name = strings.ToLower(m.Question[0].Name)
			}
			return m, err
		},
	})
	s.SetZone(Compile(nil, &kube.State{}, testConfig))
	const name = "a-name-that-is-long-enough-to-have-both-cases.Example.com."
	for _, want := range []string{"udp", "udp tcp"} {
		networks = nil
		m := resolveNow(t, s, question(name, dns.TypeA))
		if got := strings.Join(networks, " "); got != want || len(m.Answer) != 1 || m.Answer[0].Header().Name != name {
			t.Errorf("asked over %s, want %s; got %v", got, want, m)
		}
		fold = true
	}
}
