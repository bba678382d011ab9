package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// framed is a message as TCP carries it.
func framed(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// read reads one message from a connection.
func read(t *testing.T, c net.Conn) *dns.Msg {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	m, err := (&dns.Conn{Conn: c}).ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// RFC 7766: queries come in any pieces, answers in any order, each of a
// connection's queries is answered, and what is none does no harm.
func TestStreams(t *testing.T) {
	release := make(chan struct{})
	_, addr := serve(t, Config{
		Upstreams: []netip.AddrPort{up1},
		Exchange: func(ctx context.Context, _, _ string, q *dns.Msg) (*dns.Msg, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return says("www.example.com. 30 IN A 192.0.2.80")("", q)
		},
	}, loadState(t, "testdata/cluster.yaml"))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	slow, quick := question("www.example.com.", dns.TypeA), question("web.shop.svc.cluster.local.", dns.TypeA)
	answer := new(dns.Msg).SetReply(quick)
	for _, b := range append(framed(t, quick), 0, 0) { // byte for byte, and an empty message
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	var all []byte
	all = append(all, 0, 3, 'b', 'a', 'd')  // too short for a header: no answer
	all = append(all, framed(t, answer)...) // an answer: none either
	all = append(all, framed(t, slow)...)   // waits
	all = append(all, framed(t, quick)...)  // overtakes
	all = append(all, 0, 13, 0x12, 0x34, 1) // one question, which is cut
	all = append(all, make([]byte, 10)...)  //
	binary.BigEndian.PutUint16(all[len(all)-9:], 1)
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil { // it still listens
		t.Fatal(err)
	}
	for i := range 2 {
		if m := read(t, c); m.Id != quick.Id || len(m.Answer) != 1 {
			t.Fatalf("answer %d: got %v", i, m)
		}
	}
	if m := read(t, c); m.Id != 0x1234 || m.Rcode != dns.RcodeFormatError {
		t.Errorf("a broken query: got %v", m)
	}
	close(release)
	if m := read(t, c); m.Id != slow.Id || len(m.Answer) != 1 {
		t.Errorf("the slow answer: got %v", m)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the last answer: %d bytes, %v; want the end", n, err)
	}
}

// Names that cannot be read are FORMERR, whatever they do.
func TestBrokenNames(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	header := "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	for what, name := range map[string]string{
		"a pointer to itself":        "\xc0\x0c",
		"two that point to another":  "\xc0\x0e\xc0\x0c",
		"a pointer past the end":     "\xc0\xff",
		"a label of a reserved kind": "\x41a\x00",
		"a label that is cut":        "\x3fabc",
		"no end":                     "\x03www",
		"more than 255 bytes":        strings.Repeat("\x3f"+strings.Repeat("a", 63), 5) + "\x00",
	} {
		wire := []byte(header + name + "\x00\x01\x00\x01")
		out := make([]byte, 4096)
		if n := s.Responder().Answer(out, wire, testClient); n > 0 {
			t.Errorf("%s: the fast path says % x", what, out[:n])
		}
		b, later := s.respond(testClient, wire, nil, true)
		if later != nil || len(b) < headerSize || b[0] != 0x12 || b[3]&0xf != dns.RcodeFormatError {
			t.Errorf("%s: got % x, want FORMERR", what, b)
		}
	}
}

// Headers that count more than there is are FORMERR.
func TestLyingCounts(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	good, err := question("web.shop.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for at := 5; at < headerSize; at += 2 {
		wire := append([]byte(nil), good...)
		wire[at]++
		out := make([]byte, 4096)
		if n := s.Responder().Answer(out, wire, testClient); n > 0 {
			t.Errorf("count at %d: the fast path says % x", at, out[:n])
		}
		if b, _ := s.respond(testClient, wire, nil, true); len(b) < headerSize || b[3]&0xf != dns.RcodeFormatError {
			t.Errorf("count at %d: got % x, want FORMERR", at, b)
		}
	}
	for n := headerSize + 1; n < len(good); n++ {
		if b, _ := s.respond(testClient, good[:n], nil, true); len(b) < headerSize || b[3]&0xf != dns.RcodeFormatError {
			t.Errorf("cut after %d bytes: got % x, want FORMERR", n, b)
		}
	}
}

// What is not there is said with the SOA of the zone, which is to be remembered
// for as long as the zone's records.
func TestDenialsCarryTheSOA(t *testing.T) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig))
	for _, test := range []struct {
		name, zone string
		qtype      uint16
		rcode      int
	}{
		{"gone.shop.svc.cluster.local.", "cluster.local.", dns.TypeA, dns.RcodeNameError},
		{"gone.shop.svc.cluster.local.", "cluster.local.", dns.TypeMX, dns.RcodeNameError},
		{"web.shop.svc.cluster.local.", "cluster.local.", dns.TypeMX, dns.RcodeSuccess},
		{"shop.svc.cluster.local.", "cluster.local.", dns.TypeA, dns.RcodeSuccess},
		{"a.gone.svc.cluster.local.", "cluster.local.", dns.TypeAAAA, dns.RcodeNameError},
		{"9.9.96.10.in-addr.arpa.", "96.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError},
		{"cluster.local.", "cluster.local.", dns.TypeA, dns.RcodeSuccess},
	} {
		m := resolveNow(t, s, question(test.name, test.qtype))
		if m.Rcode != test.rcode || len(m.Answer) != 0 || len(m.Ns) != 1 || !m.Authoritative {
			t.Errorf("%s %s: got %v", test.name, dns.TypeToString[test.qtype], m)
			continue
		}
		soa, ok := m.Ns[0].(*dns.SOA)
		if !ok || soa.Hdr.Name != test.zone || soa.Hdr.Ttl != 30 || soa.Minttl != 30 {
			t.Errorf("%s: got %v, want the SOA of %s", test.name, m.Ns[0], test.zone)
		}
	}
}
