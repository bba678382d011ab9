package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

// serve starts a Server on loopback and returns its UDP and TCP address.
func serve(t *testing.T, cfg Config, st *kube.State) (s *Server, addr string) {
	t.Helper()
	s = NewServer(cfg)
	s.SetZone(Compile(nil, st, testConfig))
	l, pc := listenBoth(t)
	addr = l.Addr().String()
	var serving sync.WaitGroup
	for _, f := range []func() error{func() error { return s.ServeUDP(pc) }, func() error { return s.ServeTCP(l) }} {
		serving.Go(func() {
			if err := f(); err != nil && !errors.Is(err, net.ErrClosed) { // shut down before it began
				t.Errorf("serve: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return s, addr
}

// listenBoth takes a port that is free for TCP and UDP.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc
		}
		l.Close()
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil, nil
}

func ask(t *testing.T, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 65535}
	m, _, err := c.Exchange(q, addr)
	if err != nil {
		t.Fatalf("%s over %s: %v", q.Question[0].Name, network, err)
	}
	return m
}

// testClient asks where it matters who does.
var testClient = netip.MustParseAddr("10.244.0.4")

func TestServeOverUDPAndTCP(t *testing.T) {
	_, addr := serve(t, Config{}, loadState(t, "testdata/cluster.yaml"))
	for _, network := range []string{"udp", "tcp"} {
		m := ask(t, network, addr, question("wEb.shop.svc.cluster.local.", dns.TypeA))
		if !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired || m.Rcode != 0 {
			t.Errorf("%s: flags: %v", network, m.MsgHdr)
		}
		if got, want := fmt.Sprint(m.Answer), "[wEb.shop.svc.cluster.local.\t30\tIN\tA\t10.96.0.20]"; got != want {
			t.Errorf("%s: got %s, want %s", network, got, want)
		}
		m = ask(t, network, addr, question("gone.shop.svc.cluster.local.", dns.TypeA))
		if m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || m.Ns[0].Header().Name != "cluster.local." {
			t.Errorf("%s: no such name: %v", network, m)
		}
	}
}

func TestServeManyQueriesOnOneConnection(t *testing.T) {
	_, addr := serve(t, Config{}, loadState(t, "testdata/cluster.yaml"))
	c, err := dns.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 20
	for i := range n {
		q := question("web.shop.svc.cluster.local.", dns.TypeA)
		q.Id = uint16(i)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		m, err := c.ReadMsg()
		if err != nil || int(m.Id) != i || len(m.Answer) != 1 {
			t.Fatalf("answer %d: %v, %v", i, m, err)
		}
	}
}

// headlessOf is a State with one headless Service of n endpoints.
func headlessOf(n int) *kube.State {
	port, name := int32(80), "http"
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "big", Name: "h-a", Labels: map[string]string{discoveryv1.LabelServiceName: "h"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for i := range n {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", i/200, 10+i%200)}})
	}
	return &kube.State{
		Namespaces:     map[string]*corev1.Namespace{"big": {}},
		EndpointSlices: kube.MapOf(map[kube.Name]*discoveryv1.EndpointSlice{{Namespace: "big", Name: "h-a"}: es}),
		Services: map[kube.Name]*corev1.Service{{Namespace: "big", Name: "h"}: {
			ObjectMeta: metav1.ObjectMeta{Namespace: "big", Name: "h"}, Spec: corev1.ServiceSpec{ClusterIP: "None"},
		}},
	}
}

func TestAnswersFitTheClient(t *testing.T) {
	const n = 60 // A records take 16 bytes each
	_, addr := serve(t, Config{}, headlessOf(n))
	for _, test := range []struct {
		network   string
		size      uint16 // 0: no EDNS
		qtype     uint16
		limit     int
		truncated bool
	}{
		{"udp", 0, dns.TypeA, 512, true},
		{"udp", 100, dns.TypeA, 512, true}, // RFC 6891: less than 512 is 512
		{"udp", 700, dns.TypeA, 700, true},
		{"udp", 4096, dns.TypeA, 1232, false},
		{"udp", 4096, dns.TypeSRV, 1232, true},
		{"tcp", 0, dns.TypeA, 65535, false},
		{"tcp", 0, dns.TypeSRV, 65535, false},
	} {
		q := question("h.big.svc.cluster.local.", test.qtype)
		if test.size > 0 {
			q.SetEdns0(test.size, false)
		}
		m := ask(t, test.network, addr, q)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		m.Compress = true
		if m.Len() > test.limit || m.Truncated != test.truncated || !test.truncated && len(m.Answer) != n {
			t.Errorf("%+v: %d bytes (%d compressed), %d answers, TC %v", test, len(b), m.Len(), len(m.Answer), m.Truncated)
		}
		if opt := m.IsEdns0(); (opt != nil) != (test.size > 0) {
			t.Errorf("%+v: OPT record: %v", test, opt)
		}
	}
}

// Additional records are a courtesy: they go before answers do, without TC.
func TestAdditionalRecordsGoFirst(t *testing.T) {
	_, addr := serve(t, Config{}, headlessOf(20))
	q := question("h.big.svc.cluster.local.", dns.TypeSRV)
	q.SetEdns0(1232, false)
	m := ask(t, "udp", addr, q)
	if len(m.Answer) != 20 || m.Truncated || len(m.Extra) != 1 {
		t.Errorf("%d answers, %d additional, TC %v", len(m.Answer), len(m.Extra), m.Truncated)
	}
}

func TestAddressesRotate(t *testing.T) {
	_, addr := serve(t, Config{}, headlessOf(4))
	first := map[string]bool{}
	for range 200 {
		m := ask(t, "udp", addr, question("h.big.svc.cluster.local.", dns.TypeA))
		if len(m.Answer) != 4 {
			t.Fatalf("got %v", m.Answer)
		}
		first[m.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 4 {
		t.Errorf("addresses that came first: %v, want all four", first)
	}
}

// What is refused, and how.
func TestRefusals(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	const name = "web.shop.svc.cluster.local."
	for _, test := range []struct {
		what string
		edit func(m *dns.Msg)
		want int
	}{
		{"a query", func(m *dns.Msg) {}, dns.RcodeSuccess},
		{"CHAOS", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{"class ANY", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }, dns.RcodeRefused},
		{"AXFR", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		{"IXFR", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }, dns.RcodeRefused},
		{"NOTIFY", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		{"UPDATE", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		{"no question", func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		{"two OPT records", func(m *dns.Msg) { m.SetEdns0(1232, false); m.Extra = append(m.Extra, m.Extra[0]) }, dns.RcodeFormatError},
		{"EDNS version 1", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
	} {
		q := question(name, dns.TypeA)
		test.edit(q)
		wire, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b, later := s.respond(netip.Addr{}, wire, nil, true)
		var m dns.Msg
		if err := m.Unpack(b); err != nil || later != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		if m.Rcode != test.want || m.Id != q.Id || !m.Response || m.Opcode != q.Opcode || !m.RecursionDesired {
			t.Errorf("%s: got %v, want %s", test.what, m.MsgHdr, dns.RcodeToString[test.want])
		}
	}
	broken := append(make([]byte, 12), 0xc0)
	broken[5] = 1 // one question, which is cut
	if b, _ := s.respond(netip.Addr{}, broken, nil, true); len(b) != 12 || b[3]&0xf != dns.RcodeFormatError {
		t.Errorf("cut question: got % x, want FORMERR", b)
	}
	answer, _ := question(name, dns.TypeA).SetReply(question(name, dns.TypeA)).Pack()
	for what, wire := range map[string][]byte{"a response": answer, "less than a header": make([]byte, 11), "nothing": nil} {
		if b, later := s.respond(netip.Addr{}, wire, nil, true); b != nil || later != nil {
			t.Errorf("%s: got % x, want no answer", what, b)
		}
	}
}

func TestNoZoneYetIsRefused(t *testing.T) {
	wire, _ := question("web.shop.svc.cluster.local.", dns.TypeA).Pack()
	b, _ := NewServer(Config{}).respond(netip.Addr{}, wire, nil, true)
	if len(b) < 12 || b[3]&0xf != dns.RcodeRefused {
		t.Errorf("got % x, want REFUSED", b)
	}
}

// upstream is a stand-in for one server that is asked.
type upstream struct {
	answer func(network string, q *dns.Msg) (*dns.Msg, error)
	asked  atomic.Int64
}

// exchangeWith makes Config.Exchange of stand-ins, by address.
func exchangeWith(all map[string]*upstream) func(context.Context, string, string, *dns.Msg) (*dns.Msg, error) {
	return func(_ context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
		u := all[server]
		u.asked.Add(1)
		return u.answer(network, q)
	}
}

// says makes an answer of records in text; "NXDOMAIN" and other codes set it.
func says(records ...string) func(string, *dns.Msg) (*dns.Msg, error) {
	return func(_ string, q *dns.Msg) (*dns.Msg, error) {
		m := new(dns.Msg).SetReply(q)
		for _, r := range records {
			if code, ok := dns.StringToRcode[r]; ok {
				m.Rcode = code
				continue
			}
			rr, err := dns.NewRR(r)
			if err != nil {
				return nil, err
			}
			if rr.Header().Rrtype == dns.TypeSOA {
				m.Ns = append(m.Ns, rr)
			} else {
				m.Answer = append(m.Answer, rr)
			}
		}
		return m, nil
	}
}

var (
	up1 = netip.MustParseAddrPort("192.0.2.53:53")
	up2 = netip.MustParseAddrPort("198.51.100.53:53")
)

// resolveNow asks s as a client would and waits.
func resolveNow(t *testing.T, s *Server, q *dns.Msg) *dns.Msg {
	t.Helper()
	wire, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	b, later := s.respond(netip.Addr{}, wire, nil, true)
	if later != nil {
		b = later()
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestForward(t *testing.T) {
	const good = "www.example.com. 300 IN A 192.0.2.80"
	refuse := func(string, *dns.Msg) (*dns.Msg, error) { return nil, errors.New("connection refused") }
	for _, test := range []struct {
		what          string
		first, second func(string, *dns.Msg) (*dns.Msg, error)
		rcode         int
		answers       int
		asked         [2]int64
	}{
		{"the first upstream is asked", says(good), says(good), 0, 1, [2]int64{1, 0}},
		{"no answer: the next", refuse, says(good), 0, 1, [2]int64{1, 1}},
		{"SERVFAIL: the next", says("SERVFAIL"), says(good), 0, 1, [2]int64{1, 1}},
		{"REFUSED: the next", says("REFUSED"), says(good), 0, 1, [2]int64{1, 1}},
		{"NXDOMAIN is an answer", says("NXDOMAIN"), says(good), dns.RcodeNameError, 0, [2]int64{1, 0}},
		{"nobody answers", refuse, refuse, dns.RcodeServerFailure, 0, [2]int64{1, 1}},
		{"nobody knows", says("REFUSED"), refuse, dns.RcodeRefused, 0, [2]int64{1, 1}},
		{"another id", func(_ string, q *dns.Msg) (*dns.Msg, error) {
			m, err := says(good)("", q)
			m.Id++
			return m, err
		}, says(good), 0, 1, [2]int64{1, 1}},
		{"another question", func(_ string, q *dns.Msg) (*dns.Msg, error) {
			return says(good)("", question("www.example.org.", dns.TypeA))
		}, says(good), 0, 1, [2]int64{1, 1}},
		{"a query for an answer", func(_ string, q *dns.Msg) (*dns.Msg, error) { return q, nil }, says(good), 0, 1, [2]int64{1, 1}},
		{"TC over UDP: TCP", func(network string, q *dns.Msg) (*dns.Msg, error) {
			m, err := says(good)("", q)
			m.Truncated = network == "udp"
			return m, err
		}, refuse, 0, 1, [2]int64{2, 0}},
		{"no EDNS: again without", func(_ string, q *dns.Msg) (*dns.Msg, error) {
			if q.IsEdns0() != nil {
				return says("FORMERR")("", q)
			}
			return says(good)("", q)
		}, refuse, 0, 1, [2]int64{2, 0}},
	} {
		first, second := &upstream{answer: test.first}, &upstream{answer: test.second}
		s := NewServer(Config{
			Upstreams: []netip.AddrPort{up1, up2},
			Exchange:  exchangeWith(map[string]*upstream{up1.String(): first, up2.String(): second}),
		})
		s.SetZone(Compile(nil, &kube.State{}, testConfig))
		m := resolveNow(t, s, question("www.Example.com.", dns.TypeA))
		if m.Rcode != test.rcode || len(m.Answer) != test.answers || m.Authoritative {
			t.Errorf("%s: got %v", test.what, m)
		}
		for _, rr := range m.Answer {
			if rr.Header().Name != "www.Example.com." {
				t.Errorf("%s: owner %q, want the name as asked", test.what, rr.Header().Name)
			}
		}
		if got := [2]int64{first.asked.Load(), second.asked.Load()}; got != test.asked {
			t.Errorf("%s: asked %v times, want %v", test.what, got, test.asked)
		}
	}
}

func TestForwardStaysWithTheUpstreamThatAnswers(t *testing.T) {
	dead := &upstream{answer: func(string, *dns.Msg) (*dns.Msg, error) { return nil, errors.New("timeout") }}
	alive := &upstream{answer: says("NXDOMAIN")}
	s := NewServer(Config{
		Upstreams: []netip.AddrPort{up1, up2},
		Exchange:  exchangeWith(map[string]*upstream{up1.String(): dead, up2.String(): alive}),
	})
	s.SetZone(Compile(nil, &kube.State{}, testConfig))
	for range 5 {
		resolveNow(t, s, question("www.example.com.", dns.TypeA))
	}
	if dead.asked.Load() != 1 || alive.asked.Load() != 5 {
		t.Errorf("asked %d and %d times, want 1 and 5", dead.asked.Load(), alive.asked.Load())
	}
}

func TestExternalNameIsCompletedByAnUpstream(t *testing.T) {
	u := &upstream{answer: says("www.example.com. 300 IN CNAME edge.example.net.", "edge.example.net. 300 IN A 192.0.2.80")}
	s := NewServer(Config{Upstreams: []netip.AddrPort{up1}, Exchange: exchangeWith(map[string]*upstream{up1.String(): u})})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	m := resolveNow(t, s, question("outside.shop.svc.cluster.local.", dns.TypeA))
	want := []string{"CNAME www.example.com.", "CNAME edge.example.net.", "A 192.0.2.80"}
	if got := values(m.Answer); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNoUpstreamIsSaid(t *testing.T) {
	var log bytes.Buffer
	s := NewServer(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	s.SetZone(Compile(nil, &kube.State{}, testConfig))
	for range 3 {
		q := question("www.example.com.", dns.TypeA)
		q.SetEdns0(1232, false)
		m := resolveNow(t, s, q)
		if m.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %v, want SERVFAIL", m.MsgHdr)
		}
		opt := m.IsEdns0()
		if opt == nil || len(opt.Option) != 1 || !strings.Contains(opt.Option[0].String(), "no upstream") {
			t.Errorf("got OPT %v, want an extended error", opt)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("logged %d lines, want 1:\n%s", n, log.String())
	}
}

func TestCache(t *testing.T) {
	u := &upstream{}
	s := NewServer(Config{Upstreams: []netip.AddrPort{up1}, Exchange: exchangeWith(map[string]*upstream{up1.String(): u})})
	s.SetZone(Compile(nil, &kube.State{}, testConfig))
	now := time.Now()
	s.forward.now = func() time.Time { return now }
	const soa = "example.com. 300 IN SOA ns.example.com. h.example.com. 1 2 3 4 12"
	for i, test := range []struct {
		what    string
		answer  func(string, *dns.Msg) (*dns.Msg, error)
		expires time.Duration // 0: not cached
	}{
		{"its own TTL", says("x.example.com. 7 IN A 192.0.2.1"), 7 * time.Second},
		{"at most 30 s", says("x.example.com. 3600 IN A 192.0.2.1"), 30 * time.Second},
		{"the least TTL", says("x.example.com. 20 IN CNAME y.example.com.", "y.example.com. 5 IN A 192.0.2.1"), 5 * time.Second},
		{"NXDOMAIN as the SOA says", says("NXDOMAIN", soa), 12 * time.Second},
		{"NODATA as the SOA says", says(soa), 12 * time.Second},
		{"NXDOMAIN without SOA", says("NXDOMAIN"), 0},
		{"TTL 0", says("x.example.com. 0 IN A 192.0.2.1"), 0},
		{"SERVFAIL", says("SERVFAIL"), 0},
	} {
		u.answer = test.answer
		name := fmt.Sprintf("x%d.example.com.", i)
		asked := func(want int64) {
			t.Helper()
			u.asked.Store(0)
			resolveNow(t, s, question(name, dns.TypeA))
			if got := u.asked.Load(); got != want {
				t.Errorf("%s: asked %d times, want %d", test.what, got, want)
			}
		}
		asked(1)
		if test.expires == 0 {
			asked(1)
			continue
		}
		now = now.Add(test.expires - time.Millisecond)
		asked(0)
		now = now.Add(2 * time.Millisecond)
		asked(1)
	}

	u.answer = says("t.example.com. 3600 IN A 192.0.2.1")
	resolveNow(t, s, question("t.example.com.", dns.TypeA))
	now = now.Add(12 * time.Second)
	m := resolveNow(t, s, question("T.example.com.", dns.TypeA))
	if h := m.Answer[0].Header(); h.Ttl != 18 || h.Name != "T.example.com." {
		t.Errorf("after 12 of 30 s: got %v, want TTL 18 under the name as asked", h)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := cache{size: 100, max: time.Minute}
	now := time.Now()
	hot := cacheKey{name: "hot.", qtype: dns.TypeA}
	m, _ := says("hot. 60 IN A 192.0.2.1")("", question("hot.", dns.TypeA))
	c.put(hot, m, now)
	for i := range 1000 {
		c.put(cacheKey{name: fmt.Sprintf("n%d.", i), qtype: dns.TypeA}, m, now)
		if _, _, ok := c.get(hot, now); !ok {
			t.Fatalf("an answer in use was dropped after %d others", i)
		}
		if n := len(c.young) + len(c.old); n > c.size {
			t.Fatalf("%d answers, want at most %d", n, c.size)
		}
	}
}

func TestEqualQueriesJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		u := &upstream{answer: func(_ string, q *dns.Msg) (*dns.Msg, error) {
			<-release
			return says("www.example.com. 0 IN A 192.0.2.80")("", q)
		}}
		s := NewServer(Config{Upstreams: []netip.AddrPort{up1}, Exchange: exchangeWith(map[string]*upstream{up1.String(): u})})
		s.SetZone(Compile(nil, &kube.State{}, testConfig))
		var answered sync.WaitGroup
		for i := range 10 {
			name := []string{"www.example.com.", "WWW.example.com."}[i%2]
			answered.Go(func() {
				m := resolveNow(t, s, question(name, dns.TypeA))
				if len(m.Answer) != 1 || m.Answer[0].Header().Name != name {
					t.Errorf("got %v", m)
				}
			})
		}
		synctest.Wait()
		close(release)
		answered.Wait()
		if n := u.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

// A real upstream over loopback: an answer too long for UDP comes by TCP, and
// the client is told to come by TCP as well.
func TestForwardBySockets(t *testing.T) {
	_, far := serve(t, Config{}, headlessOf(120))
	upstreamAddr := netip.MustParseAddrPort(far)
	_, addr := serve(t, Config{Upstreams: []netip.AddrPort{upstreamAddr}}, &kube.State{})
	// The near server's zone is asked by its own domain; make it another one.
	near, nearAddr := serve(t, Config{Upstreams: []netip.AddrPort{upstreamAddr}}, &kube.State{})
	cfg := testConfig
	cfg.Domain = "other.test"
	near.SetZone(Compile(nil, &kube.State{}, cfg))
	q := question("h.big.svc.cluster.local.", dns.TypeA)
	if m := ask(t, "udp", nearAddr, q); !m.Truncated {
		t.Errorf("over UDP: TC is not set: %d answers", len(m.Answer))
	}
	if m := ask(t, "tcp", nearAddr, q); len(m.Answer) != 120 || m.Truncated || m.Authoritative {
		t.Errorf("over TCP: %d answers, TC %v, AA %v", len(m.Answer), m.Truncated, m.Authoritative)
	}
	if m := ask(t, "udp", addr, q); m.Rcode != dns.RcodeNameError {
		t.Errorf("a name of the own domain was forwarded: %v", m)
	}
}

func TestShutdownEndsWaitingQueries(t *testing.T) {
	waiting := make(chan struct{})
	s := NewServer(Config{
		Upstreams: []netip.AddrPort{up1},
		Timeout:   time.Hour,
		Exchange: func(ctx context.Context, _, _ string, _ *dns.Msg) (*dns.Msg, error) {
			close(waiting)
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	s.SetZone(Compile(nil, &kube.State{}, testConfig))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeTCP(l) }()
	c, err := dns.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteMsg(question("www.example.com.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-waiting
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("ServeTCP: %v", err)
	}
	if err := s.ServeTCP(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServeTCP after Shutdown: %v, want %v", err, net.ErrClosed)
	}
}

func TestConnectionWithLyingLengthIsClosed(t *testing.T) {
	_, addr := serve(t, Config{}, &kube.State{})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(binary.BigEndian.AppendUint16(nil, 400))
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("got %d bytes, %v; want the connection closed", len(b), err)
	}
}

func FuzzServe(f *testing.F) {
	for _, test := range zoneTests {
		wire, _ := question(test.name, test.qtype).Pack()
		f.Add(wire)
	}
	q := question("web.shop.svc.cluster.local.", dns.TypeA)
	q.SetEdns0(512, true)
	wire, _ := q.Pack()
	f.Add(wire)
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01")) // a name that points to itself
	u := &upstream{answer: says("x.example. 60 IN TXT x")}
	s := NewServer(Config{Upstreams: []netip.AddrPort{up1}, Exchange: exchangeWith(map[string]*upstream{up1.String(): u})})
	s.SetZone(Compile(nil, loadState(f, "testdata/cluster.yaml"), testConfig))
	f.Fuzz(func(t *testing.T, wire []byte) {
		for _, udp := range []bool{true, false} {
			b, later := s.respond(netip.Addr{}, wire, nil, udp)
			if later != nil {
				b = later()
			}
			if b == nil {
				if len(wire) >= headerSize && wire[2]&0x80 == 0 {
					t.Fatal("a query without an answer")
				}
				continue
			}
			var m dns.Msg
			if err := m.Unpack(b); err != nil {
				t.Fatalf("the answer cannot be read: %v\n% x", err, b)
			}
			if !m.Response || b[0] != wire[0] || b[1] != wire[1] {
				t.Fatalf("no answer to the query: %v", m.MsgHdr)
			}
			if udp && len(b) > 1232 {
				t.Fatalf("%d bytes over UDP", len(b))
			}
		}
	})
}
