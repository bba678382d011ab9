package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"unsafe"

	"github.com/miekg/dns"
)

// The fast path
//
// Most queries are plain: one question of class IN for a name of the cluster,
// perhaps with an OPT record without options. They are answered from bytes,
// without allocating and without a DNS library: what follows the question in an
// answer depends on the name and type only, because names are compressed to the
// question's own, and so keeps the case that was asked.
//
// A positive answer is packed by the ordinary path when it is first wanted and
// stays with its node, so it is gone when the Service changes. Negative answers
// are one SOA record, written here; answers of upstreams come from the cache
// (fastcache.go). Addresses that do not all fit are cut to those that do, and
// the answer says so. What is not plain, or not known, is left to the ordinary
// path, which gives the same bytes: a test asks both the same questions.

// packed is what follows the question in a positive answer, without OPT.
type packed struct {
	body    []byte
	answers uint16
	extra   uint16
	of      int // the length of each answer, if all are addresses, which are rotated; else 0
}

// The kinds of answers that a node keeps packed.
const (
	packedA = iota
	packedAAAA
	packedSRV
	packedKinds
)

func packedKind(qtype uint16) int {
	switch qtype {
	case dns.TypeA:
		return packedA
	case dns.TypeAAAA:
		return packedAAAA
	case dns.TypeSRV:
		return packedSRV
	}
	return packedKinds
}

const (
	optLen = 11               // bytes of an OPT record without options
	soaLen = 12 + 9 + 13 + 20 // bytes of the negative answer's SOA
)

// plain is a query that the fast path understands.
type plain struct {
	name  string // lower case; of the Responder's memory
	mixed bool   // it is not lower case as asked
	qtype uint16
	end   int // of the question
	edns  bool
	do    bool
	limit int // bytes of the answer
}

// Responder answers plain queries for one goroutine at a time. It is made by
// Server.Responder and may outlive none of its calls' arguments.
type Responder struct {
	s    *Server
	rand func(n int) int
	name [256]byte // the question's, in lower case
}

// Responder makes a Responder of the server's answers.
func (s *Server) Responder() *Responder { return &Responder{s: s, rand: rand.IntN} }

// Answer writes the answer to a client's UDP query into out and returns its length, or 0
// if the query is none that it answers: then the server itself is to be asked.
// It neither blocks nor allocates once an answer was asked for before.
func (r *Responder) Answer(out, wire []byte, client netip.Addr) int {
	n, q, cached := r.reply(out, wire)
	if n == 0 {
		return 0
	}
	r.s.requests.Add(1)
	r.s.fast.Add(1)
	r.s.measures.add(true, len(wire), n, 0)
	maker := byCache
	if !cached {
		r.s.local.Add(1)
		maker = byZone
	}
	r.s.count(client, true, q.qtype, q.name, maker, int(out[3]&0xf)).fast.Add(1)
	return n
}

// reply is Answer, uncounted; cached: it is an upstream's.
func (r *Responder) reply(out, wire []byte) (n int, q plain, cached bool) {
	z := r.s.zone.Load()
	rules := r.s.rules.Load()
	if z == nil || rules.slow {
		return 0, q, false
	}
	q, ok := r.parse(wire, r.s.cfg.MaxUDP)
	if !ok || len(out) < q.end {
		return 0, q, false
	}
	under, ok := strings.CutSuffix(q.name, z.domain)
	if !ok || under != "" && under[len(under)-1] != '.' {
		return r.forwarded(out, wire, &q, rules), q, true
	}
	under = strings.TrimSuffix(under, ".")
	if under == "pod" || strings.HasSuffix(under, ".pod") {
		return 0, q, false
	}
	switch node := z.findForward(under); {
	case node == nil:
		if !rules.path || q.qtype == dns.TypeSRV {
			n = z.packNegative(out, wire, &q, dns.RcodeNameError, r.s.cfg.MaxUDP)
		}
	case node.cname == nil && len(node.other) == 0:
		n = r.positive(out, wire, &q, z, node)
	}
	return n, q, false
}

// parse reads a plain query.
func (r *Responder) parse(wire []byte, maxUDP int) (q plain, ok bool) {
	// Not an answer, opcode QUERY, not truncated; one question, at most an OPT.
	if len(wire) < headerSize+5 || wire[2]&^1 != 0 ||
		binary.BigEndian.Uint32(wire[4:]) != 1<<16 || binary.BigEndian.Uint32(wire[8:]) > 1 {
		return q, false
	}
	n, at := 0, headerSize
	for {
		if at >= len(wire) {
			return q, false
		}
		l := int(wire[at])
		if l == 0 {
			break
		}
		if l > 63 || n+l+1 > len(r.name)-1 || at+1+l >= len(wire) {
			return q, false
		}
		for _, c := range wire[at+1 : at+1+l] {
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
				q.mixed = true
			}
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return q, false
			}
			r.name[n] = c
			n++
		}
		r.name[n] = '.'
		n++
		at += 1 + l
	}
	q.end = at + 5
	if n == 0 || len(wire) < q.end || binary.BigEndian.Uint16(wire[at+3:]) != dns.ClassINET {
		return q, false
	}
	q.name = unsafe.String(&r.name[0], n)
	q.qtype = binary.BigEndian.Uint16(wire[at+1:])
	switch q.qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV:
	default:
		return q, false
	}
	q.limit = dns.MinMsgSize
	switch opt := wire[q.end:]; {
	case wire[11] == 0:
		return q, len(opt) == 0
	case len(opt) != optLen || opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != dns.TypeOPT ||
		opt[6] != 0 || binary.BigEndian.Uint16(opt[9:]) != 0: // a version, options
		return q, false
	default:
		q.edns, q.do = true, opt[7]&0x80 != 0
		q.limit = min(max(q.limit, int(binary.BigEndian.Uint16(opt[3:]))), maxUDP)
		return q, true
	}
}

// begin writes the header and the question, and returns where it stopped; total
// is what the whole answer takes. 0: it does not fit.
func (q *plain) begin(out, wire []byte, rcode, answers, authority, extra uint16, body int) int {
	total := q.end + body
	if q.edns {
		extra++
		total += optLen
	}
	if total > q.limit || total > len(out) {
		return 0
	}
	copy(out[:q.end], wire)
	const response, authoritative, recursion = 1 << 15, 1 << 10, 1 << 7
	const kept = 1<<8 | 1<<4 // RD, CD
	flags := binary.BigEndian.Uint16(wire[2:])&kept | response | authoritative | recursion | rcode
	binary.BigEndian.PutUint16(out[2:], flags)
	binary.BigEndian.PutUint16(out[6:], answers)
	binary.BigEndian.PutUint16(out[8:], authority)
	binary.BigEndian.PutUint16(out[10:], extra)
	return q.end
}

// opt writes the OPT record if the query had one.
func (q *plain) opt(out []byte, at, maxUDP int) int {
	if !q.edns {
		return at
	}
	o := out[at : at+optLen]
	clear(o)
	binary.BigEndian.PutUint16(o[1:], dns.TypeOPT)
	binary.BigEndian.PutUint16(o[3:], uint16(maxUDP))
	if q.do {
		o[7] = 0x80
	}
	return at + optLen
}

// positive answers from a node, with NODATA if it has nothing of the type.
func (r *Responder) positive(out, wire []byte, q *plain, z *Zone, n *node) int {
	kind := packedKind(q.qtype)
	if len([packedKinds][]dns.RR{n.a, n.aaaa, n.srv}[kind]) == 0 {
		return z.packNegative(out, wire, q, dns.RcodeSuccess, r.s.cfg.MaxUDP)
	}
	p := n.packed[kind].Load()
	if p == nil {
		if p = r.s.packNode(n, strings.Clone(q.name), q.qtype); p == nil {
			return 0
		}
		n.packed[kind].Store(p)
	}
	if (q.edns || q.mixed) && p.extra > 0 {
		return 0 // an OPT record comes first and moves what names are compressed to; so does another case
	}
	if p.of == 0 {
		at := q.begin(out, wire, dns.RcodeSuccess, p.answers, 0, p.extra, len(p.body))
		if at == 0 {
			return 0
		}
		return q.opt(out, at+copy(out[at:], p.body), r.s.cfg.MaxUDP)
	}
	fit := min(int(p.answers), q.room(out)/p.of)
	at := q.begin(out, wire, dns.RcodeSuccess, uint16(fit), 0, 0, fit*p.of)
	if at == 0 {
		return 0
	}
	if fit < int(p.answers) {
		out[2] |= 2 // TC
	}
	turn, end := r.rand(int(p.answers))*p.of, at+fit*p.of
	at += copy(out[at:end], p.body[turn:])
	at += copy(out[at:end], p.body[:turn])
	return q.opt(out, at, r.s.cfg.MaxUDP)
}

// room is what an answer may have after the question, beside OPT, in bytes.
func (q *plain) room(out []byte) int {
	n := min(q.limit, len(out)) - q.end
	if q.edns {
		n -= optLen
	}
	return max(n, 0)
}

// packNode packs what a node says to a question without EDNS over TCP.
func (s *Server) packNode(n *node, name string, qtype uint16) *packed {
	q := &query{Msg: &dns.Msg{Question: []dns.Question{{Name: name, Qtype: qtype, Qclass: dns.ClassINET}}}}
	m := s.reply(q, dns.RcodeSuccess)
	m.Answer = n.appendTo(nil, name, qtype)
	if qtype == dns.TypeSRV {
		m.Extra = n.extra
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	question := headerSize + len(name) + 1 + 4
	p := &packed{body: b[question:], answers: uint16(len(m.Answer)), extra: uint16(len(m.Extra))}
	if n := len(m.Answer); n > 1 && qtype != dns.TypeSRV {
		p.of = len(p.body) / n
	}
	return p
}

// packNegative answers that there is no such name or no such data. The SOA's
// names are compressed to the end of the question.
func (z *Zone) packNegative(out, wire []byte, q *plain, rcode uint16, maxUDP int) int {
	suffix := headerSize + len(q.name) - len(z.domain)
	if suffix+len(z.domain) >= 1<<14 || strings.HasSuffix(q.name[:len(q.name)-len(z.domain)], "dns.") ||
		strings.HasSuffix(q.name[:len(q.name)-len(z.domain)], "hostmaster.") {
		return 0 // the SOA's names could be compressed further
	}
	at := q.begin(out, wire, rcode, 0, 1, 0, soaLen)
	if at == 0 {
		return 0
	}
	soa := z.static[""].soa()
	b := out[at : at : at+soaLen]
	pointer := uint16(0xc000 | suffix)
	b = binary.BigEndian.AppendUint16(b, pointer)
	b = binary.BigEndian.AppendUint16(b, dns.TypeSOA)
	b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
	b = binary.BigEndian.AppendUint32(b, soa.Hdr.Ttl)
	b = binary.BigEndian.AppendUint16(b, soaLen-12)
	b = append(b, "\x02ns\x03dns"...)
	b = binary.BigEndian.AppendUint16(b, pointer)
	b = append(b, "\x0ahostmaster"...)
	b = binary.BigEndian.AppendUint16(b, pointer)
	for _, v := range [...]uint32{soa.Serial, soa.Refresh, soa.Retry, soa.Expire, soa.Minttl} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return q.opt(out, at+len(b), maxUDP)
}
