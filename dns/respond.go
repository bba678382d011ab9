package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// One query
//
// What cannot be a query (too short for a header, or an answer) gets nothing,
// so that two servers never talk to each other. What has a header but cannot be
// read is FORMERR; so are two questions (RFC 9619) or two OPT records. Other
// opcodes are NOTIMP, other EDNS versions BADVERS, other classes than IN, zone
// transfers, and everything before the first Zone REFUSED.
//
// An answer longer than its transport and client can take loses its additional
// records first, without a mark; when that is not enough it is truncated and
// says so, and the client comes back over TCP.

const (
	headerSize = 12 // bytes
	maxTCP     = dns.MaxMsgSize
)

// query is one that is worth an answer.
type query struct {
	*dns.Msg
	opt *dns.OPT // nil: no EDNS
	options
	udp  bool
	from netip.Addr

	rewritten string     // the name that was asked for instead; "": the question's
	back      []reversal // of the answer, in the order of the rules

	maker  int  // who answers
	path   bool // by autopath
	silent bool // it is not counted
}

// respond answers the query in wire, which it borrows, either at once, in a
// buffer that may be out, or by later, which waits for an upstream. Neither: no
// answer is due.
func (s *Server) respond(from netip.Addr, wire, out []byte, udp bool) (answer []byte, later func() []byte) {
	if len(wire) < headerSize || wire[2]&0x80 != 0 {
		return nil, nil
	}
	s.requests.Add(1)
	q := &query{Msg: new(dns.Msg), udp: udp, from: from}
	err := q.Unpack(wire)
	if opcode := int(wire[2] >> 3 & 0xf); opcode != dns.OpcodeQuery {
		return s.refuse(q, wire, dns.RcodeNotImplemented), nil
	}
	opts := 0
	for _, rr := range q.Extra {
		if opt, ok := rr.(*dns.OPT); ok {
			q.opt = opt
			opts++
		}
	}
	if q.opt != nil && q.opt.Version() != 0 && err == nil && opts == 1 {
		return s.pack(q, s.reply(q, dns.RcodeBadVers), out), nil
	}
	good := false
	q.options, good = readOptions(q.opt)
	cookieOnly := len(q.Question) == 0 && q.cookie != nil
	if err != nil || !whole(q.Msg, wire) || len(q.Question) != 1 && !cookieOnly || opts > 1 || !good {
		return s.refuse(q, wire, dns.RcodeFormatError), nil
	}
	if cookieOnly {
		return s.pack(q, s.reply(q, s.cookieCode(q)), out), nil
	}
	return s.decide(q, out)
}

// whole says whether a message has all that its header counts, which Unpack does
// not insist on.
func whole(m *dns.Msg, wire []byte) bool {
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if int(binary.BigEndian.Uint16(wire[4+2*i:])) != n {
			return false
		}
	}
	return len(m.Question) == 0 || m.Question[0].Qtype != dns.TypeNone && m.Question[0].Qclass != 0
}

// decide answers a sound query.
func (s *Server) decide(q *query, out []byte) ([]byte, func() []byte) {
	z, r, question := s.zone.Load(), s.rules.Load(), q.Question[0]
	lower := strings.ToLower(question.Name)
	b := r.match(lower)
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR || z == nil || b == nil {
		s.refused.Add(1)
		return s.pack(q, s.reply(q, dns.RcodeRefused), out), nil
	}
	if s.forward.loops.seen(lower) {
		return s.pack(q, s.fail(q, answer{}, errLoop), out), nil
	}
	name := question.Name
	if len(b.rewrites) > 0 {
		if name, q.back = b.rewritten(name); name != question.Name {
			q.rewritten = name
		}
	}
	if b.log {
		s.cfg.Log.Info("query", "name", question.Name, "type", dns.TypeToString[question.Qtype], "id", q.Id)
	}
	a := b.lookup(z, name, question.Qtype)
	if a.denied() && b.autopath && q.rewritten == "" {
		if names := s.pathOf(q, lower); names != nil {
			return s.walk(q, a, z, r, names, out)
		}
	}
	if a.chase == "" {
		return s.pack(q, s.say(q, a), out), nil
	}
	f := r.route(a.chase)
	if f == nil {
		return s.pack(q, s.fail(q, a, errNoUpstream), out), nil
	}
	return s.respondForwarded(f, q, a, out)
}

// say is an answer that needs no upstream.
func (s *Server) say(q *query, a answer) *dns.Msg {
	s.local.Add(1)
	q.maker = byZone
	m := s.reply(q, a.rcode)
	m.Authoritative = true
	m.Answer = rotate(a.records)
	m.Extra = append(m.Extra, a.extra...)
	m.Ns = a.authority
	if a.soa != nil {
		m.Ns = []dns.RR{a.soa}
	}
	if opt := m.IsEdns0(); opt != nil && a.why != nil {
		opt.Option = append(opt.Option, a.why)
	}
	return m
}

// keyOf is what an upstream's answer to name depends on.
func (q *query) keyOf(name string) cacheKey {
	return cacheKey{
		name:     strings.ToLower(name),
		qtype:    q.Question[0].Qtype,
		dnssec:   q.opt != nil && q.opt.Do(),
		unproven: q.CheckingDisabled,
		subnet:   q.subnet,
	}
}

// respondForwarded answers what only an upstream knows to the end: at once from
// the cache, else later.
func (s *Server) respondForwarded(f *forwarder, q *query, a answer, out []byte) ([]byte, func() []byte) {
	k := q.keyOf(a.chase)
	if up := f.cached(s.ctx, a.chase, k); up != nil {
		q.maker = byCache
		return s.pack(q, s.complete(q, a, up), out), nil
	}
	free := s.slot(f)
	if free == nil {
		return s.pack(q, s.fail(q, a, errTooMany), out), nil
	}
	q.maker = byUpstream
	return nil, func() []byte {
		defer free()
		up, err := f.resolve(s.ctx, a.chase, k)
		if err != nil {
			return s.pack(q, s.fail(q, a, err), nil)
		}
		return s.pack(q, s.complete(q, a, up), nil)
	}
}

// slot takes a place among the queries that wait, and returns what frees it, nil
// if there is none left.
func (s *Server) slot(f *forwarder) func() {
	slots := s.slots
	if f.slots != nil {
		slots = f.slots
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }
	default:
		return nil
	}
}

// complete is the answer that an upstream's completes; it takes up.
func (s *Server) complete(q *query, a answer, up *dns.Msg) *dns.Msg {
	m := s.reply(q, up.Rcode)
	m.Authoritative = len(a.records) > 0
	m.AuthenticatedData = up.AuthenticatedData && !m.Authoritative
	m.Answer = append(a.records, rotate(up.Answer)...)
	m.Ns = up.Ns
	for _, rr := range up.Extra {
		if opt, ok := rr.(*dns.OPT); !ok {
			m.Extra = append(m.Extra, rr)
		} else if own := m.IsEdns0(); own != nil {
			own.Option = append(own.Option, opt.Option...) // how far the answer holds
		}
	}
	return m
}

// fail is the answer where no upstream's completes it, with the reason for
// clients that understand it (RFC 8914).
func (s *Server) fail(q *query, a answer, err error) *dns.Msg {
	m := s.reply(q, dns.RcodeServerFailure)
	m.Authoritative = len(a.records) > 0
	m.Answer = a.records
	if opt := m.IsEdns0(); opt != nil {
		code := dns.ExtendedErrorCodeNoReachableAuthority
		switch {
		case errors.Is(err, errTooMany) || errors.Is(err, errNoUpstream):
			code = dns.ExtendedErrorCodeNotReady
		case errors.Is(err, errLoop):
			code = dns.ExtendedErrorCodeOther
		}
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: err.Error()})
	}
	return m
}

var errTooMany = fmt.Errorf("%d queries are waiting for upstreams", maxWaiting)

// reply is an answer without records.
func (s *Server) reply(q *query, rcode int) *dns.Msg {
	m := &dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: q.Id, Response: true, Opcode: q.Opcode, Rcode: rcode,
			RecursionDesired: q.RecursionDesired, RecursionAvailable: true, CheckingDisabled: q.CheckingDisabled,
		},
		Compress: true,
		Question: q.Question,
	}
	if q.opt != nil {
		m.SetEdns0(uint16(s.cfg.MaxUDP), q.opt.Do())
	}
	return m
}

// pack writes an answer as long as the client can take, into out if that is
// large enough.
func (s *Server) pack(q *query, m *dns.Msg, out []byte) []byte {
	if q.rewritten != "" {
		q.turnBack(m)
	}
	s.answerOptions(q, m)
	s.noted(q, m.Rcode)
	limit := maxTCP
	if q.udp {
		limit = dns.MinMsgSize
		if q.opt != nil {
			limit = min(max(limit, int(q.opt.UDPSize())), s.cfg.MaxUDP)
		}
	}
	b, err := m.PackBuffer(out)
	if err == nil && len(b) <= limit {
		return b
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
	m.Truncate(limit)
	if b, err = m.PackBuffer(out); err == nil {
		return b
	}
	// An upstream's records that cannot be written again.
	m.Answer, m.Ns, m.Rcode, m.Truncated = nil, nil, dns.RcodeServerFailure, false
	if b, err = m.PackBuffer(out); err == nil {
		return b
	}
	return nil
}

// noted counts what became of a query.
func (s *Server) noted(q *query, rcode int) {
	if q.silent {
		return
	}
	name, qtype := "", uint16(0)
	if len(q.Question) > 0 {
		name, qtype = strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	}
	s.count(q.from, q.udp, qtype, name, q.maker, rcode)
}

// refuse answers a query by its header alone, as nothing else of it is
// understood. The answer has no question.
func (s *Server) refuse(q *query, wire []byte, rcode int) []byte {
	if rcode == dns.RcodeFormatError {
		s.malformed.Add(1)
	} else {
		s.refused.Add(1)
	}
	s.count(q.from, q.udp, 0, "", byNobody, rcode)
	b := make([]byte, headerSize)
	copy(b, wire[:2])
	flags := binary.BigEndian.Uint16(wire[2:])
	const response, kept = 1 << 15, 0x7900 // opcode and RD stay as asked
	binary.BigEndian.PutUint16(b[2:], response|flags&kept|uint16(rcode))
	return b
}

// rotate returns the records with those addresses that form one set beginning
// at a random one, so that clients which take the first are spread (CoreDNS's
// loadbalance). The argument, which may be shared, is left as it is.
func rotate(rrs []dns.RR) []dns.RR {
	first := slices.IndexFunc(rrs, isAddress)
	if first < 0 {
		return rrs
	}
	n := len(rrs) - first
	if n < 2 || slices.ContainsFunc(rrs[first:], func(rr dns.RR) bool { return !isAddress(rr) }) {
		return rrs
	}
	out := make([]dns.RR, len(rrs))
	copy(out, rrs[:first])
	at := rand.IntN(n)
	copy(out[first:], rrs[first+at:])
	copy(out[first+n-at:], rrs[first:first+at])
	return out
}

func isAddress(rr dns.RR) bool {
	t := rr.Header().Rrtype
	return t == dns.TypeA || t == dns.TypeAAAA
}
