package dns

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// EDNS options
//
// A client's cookie is answered with the server's (RFC 7873), made as RFC 9018
// has it. A wrong or old one gets a new one and its answer all the same: that
// sources are true is the data path's doing, and a cookie proves nothing more.
// Only a query without a question, which asks for a cookie alone, is BADCOOKIE.
//
// A client's subnet (RFC 7871) goes with the query to upstreams. Their answer is
// kept for that very subnet, and says in the answer's option how far it holds.
// A connection is told how long it may idle (RFC 7828). Every other option is
// ignored, as RFC 6891 wants.

const (
	clientCookie = 8               // bytes
	serverCookie = 16              // bytes
	cookieOld    = time.Hour       // a server cookie of that age is not valid any more
	cookieAhead  = 5 * time.Minute // nor is one from that far in the future
)

// cookieSecret keys the server's cookies, as long as it runs.
type cookieSecret [2]uint64

func newCookieSecret() (s cookieSecret) {
	var b [16]byte
	rand.Read(b[:])
	return cookieSecretOf(b)
}

func cookieSecretOf(b [16]byte) cookieSecret {
	return cookieSecret{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
}

// cookie makes the server's cookie for a client's: version 1, the time, and a
// hash of these with both sides' names (RFC 9018, section 4).
func (s cookieSecret) cookie(client []byte, from netip.Addr, now uint32) []byte {
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, 40), client...), 1<<24)
	b = binary.BigEndian.AppendUint32(b, now)
	hash := sipHash24(s, append(b, from.AsSlice()...))
	return binary.LittleEndian.AppendUint64(b[:clientCookie+8], hash)[clientCookie:]
}

// valid says whether a server's cookie is ours, for this client, and recent.
func (s cookieSecret) valid(client, server []byte, from netip.Addr, now uint32) bool {
	if len(server) != serverCookie {
		return false
	}
	made := binary.BigEndian.Uint32(server[4:])
	age := time.Duration(int32(now-made)) * time.Second // serial arithmetic (RFC 1982)
	return age <= cookieOld && -age <= cookieAhead && slices.Equal(server, s.cookie(client, from, made))
}

// sipHash24 is SipHash-2-4.
func sipHash24(key [2]uint64, b []byte) uint64 {
	v0, v1 := key[0]^0x736f6d6570736575, key[1]^0x646f72616e646f6d
	v2, v3 := key[0]^0x6c7967656e657261, key[1]^0x7465646279746573
	rounds := func(n int) {
		for range n {
			v0 += v1
			v2 += v3
			v1, v3 = bits.RotateLeft64(v1, 13)^v0, bits.RotateLeft64(v3, 16)^v2
			v0 = bits.RotateLeft64(v0, 32)
			v2 += v1
			v0 += v3
			v1, v3 = bits.RotateLeft64(v1, 17)^v2, bits.RotateLeft64(v3, 21)^v0
			v2 = bits.RotateLeft64(v2, 32)
		}
	}
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		m := binary.LittleEndian.Uint64(b)
		v3 ^= m
		rounds(2)
		v0 ^= m
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	rounds(2)
	v0 ^= last
	v2 ^= 0xff
	rounds(4)
	return v0 ^ v1 ^ v2 ^ v3
}

// options are what a query's OPT record asks for.
type options struct {
	cookie []byte // of the client, then perhaps of the server; nil: none
	subnet subnet
	idle   bool // how long may a connection idle?
}

// readOptions reads the options that are known; false: one is malformed.
func readOptions(opt *dns.OPT) (o options, ok bool) {
	if opt == nil {
		return o, true
	}
	for _, option := range opt.Option {
		switch option := option.(type) {
		case *dns.EDNS0_COOKIE:
			b, err := hex.DecodeString(option.Cookie)
			if n := len(b); err != nil || n != clientCookie && (n < clientCookie+8 || n > clientCookie+32) {
				return o, false
			}
			if o.cookie == nil { // of several, the first counts
				o.cookie = b
			}
		case *dns.EDNS0_SUBNET:
			if of, ok := readSubnet(option); !ok {
				return o, false
			} else if !o.subnet.asked {
				o.subnet = of
			}
		case *dns.EDNS0_TCP_KEEPALIVE:
			o.idle = true
		}
	}
	return o, true
}

// subnet is a client's as a query says it, or as an answer holds for.
type subnet struct {
	asked bool
	addr  netip.Addr // without bits beyond the prefix; the zero Addr: of no family
	bits  uint8
}

// readSubnet reads what a client may send (RFC 7871, section 6): no scope, and no
// address bits beyond the prefix.
func readSubnet(o *dns.EDNS0_SUBNET) (s subnet, ok bool) {
	s = subnet{asked: true, bits: o.SourceNetmask}
	addr, _ := netip.AddrFromSlice(o.Address)
	switch o.Family {
	case 0:
		return s, s.bits == 0 && o.SourceScope == 0
	case 1:
		addr = addr.Unmap()
		if !addr.IsValid() {
			addr = netip.IPv4Unspecified()
		}
	case 2:
		if !addr.IsValid() {
			addr = netip.IPv6Unspecified()
		}
	}
	p, err := addr.Prefix(int(s.bits))
	s.addr = addr
	return s, err == nil && p.Addr() == addr && o.SourceScope == 0
}

// option is the subnet on the wire; scope is how far an answer holds.
func (s subnet) option(scope uint8) *dns.EDNS0_SUBNET {
	o := &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, SourceNetmask: s.bits, SourceScope: scope, Address: s.addr.AsSlice()}
	switch {
	case s.addr.Is4():
		o.Family = 1
	case s.addr.Is6():
		o.Family = 2
	}
	return o
}

// heldFor is what is left of an upstream's OPT record in an answer to a query
// with a subnet: the option, which says how far the answer holds. An upstream
// that says nothing did not look at it. false: it is not the query's subnet.
func (s subnet) heldFor(opt *dns.OPT) (*dns.OPT, bool) {
	scope := uint8(0)
	if opt != nil {
		for _, option := range opt.Option {
			o, ok := option.(*dns.EDNS0_SUBNET)
			if !ok {
				continue
			}
			bare := *o
			bare.SourceScope = 0
			if got, ok := readSubnet(&bare); !ok || got != s {
				return nil, false
			}
			scope = o.SourceScope
		}
	}
	return &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: []dns.EDNS0{s.option(scope)}}, true
}

// answerOptions adds to an answer what the query's options call for.
func (s *Server) answerOptions(q *query, m *dns.Msg) {
	opt := m.IsEdns0()
	if opt == nil {
		return
	}
	if q.cookie != nil {
		client := q.cookie[:clientCookie]
		server := s.cookies.cookie(client, q.from, uint32(time.Now().Unix()))
		opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(append(slices.Clip(client), server...))})
	}
	if q.idle && !q.udp {
		opt.Option = append(opt.Option, &dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE, Timeout: uint16(idleTimeout / (100 * time.Millisecond))})
	}
}

// cookieCode answers a query without a question, which asks for a cookie
// (RFC 7873, section 5.4).
func (s *Server) cookieCode(q *query) int {
	if server := q.cookie[clientCookie:]; len(server) > 0 && !s.cookies.valid(q.cookie[:clientCookie], server, q.from, uint32(time.Now().Unix())) {
		return dns.RcodeBadCookie
	}
	return dns.RcodeSuccess
}
