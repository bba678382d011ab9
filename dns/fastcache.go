package dns

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// packedReply is an upstream's answer as the fast path gives it: what follows
// the question, with the places of the TTLs, which grow less as it ages.
type packedReply struct {
	body                 []byte
	ttls                 []int // offsets in body
	answers, auth, extra uint16
	rcode                uint16
	authenticated        bool
}

// packReply packs an answer to the question k; nil: it is for the server only.
func packReply(k cacheKey, m *dns.Msg) *packedReply {
	p := &packedReply{
		answers: uint16(len(m.Answer)), auth: uint16(len(m.Ns)), extra: uint16(len(m.Extra)),
		rcode: uint16(m.Rcode), authenticated: m.AuthenticatedData,
	}
	addresses := 0
	for _, rr := range m.Answer {
		if isAddress(rr) {
			addresses++
		}
	}
	if k.dnssec || k.subnet.asked || addresses > 1 || m.Rcode > 0xf {
		return nil
	}
	c := &dns.Msg{
		Compress: true, Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}},
		Answer: m.Answer, Ns: m.Ns, Extra: m.Extra,
	}
	b, err := c.Pack()
	if err != nil {
		return nil
	}
	question := headerSize + len(k.name) + 1 + 4
	if len(b) < question {
		return nil
	}
	at := question
	for range int(p.answers) + int(p.auth) + int(p.extra) {
		_, next, err := dns.UnpackDomainName(b, at)
		if err != nil || next+10 > len(b) {
			return nil
		}
		p.ttls = append(p.ttls, next+4-question)
		at = next + 10 + int(binary.BigEndian.Uint16(b[next+8:]))
	}
	p.body = b[question:]
	return p
}

// packed returns a young answer that is neither stale nor about to be asked for
// again, and its age; the rest is for get.
func (c *cache) packed(k cacheKey, now time.Time) (*packedReply, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.young[k]
	if !ok || e.packed == nil || !now.Before(e.to) || c.prefetch > 0 && e.to.Sub(now) <= e.to.Sub(e.from)/10 {
		return nil, 0
	}
	e.use.hits++
	return e.packed, now.Sub(e.from)
}

// forwarded answers from what an upstream said before, 0 if that takes the server.
func (r *Responder) forwarded(out, wire []byte, q *plain, rules *rules) int {
	b := rules.match(q.name)
	if b == nil || b.hosts != nil || len(b.templates) > 0 || len(b.rewrites) > 0 || b.log || q.do || strings.HasSuffix(q.name, ".arpa.") {
		return 0
	}
	f := b.route(q.name)
	if f == nil {
		return 0
	}
	p, age := f.cache.packed(cacheKey{name: q.name, qtype: q.qtype, unproven: wire[3]&0x10 != 0}, f.now())
	if p == nil || q.edns && p.extra > 0 || q.mixed && (p.answers > 1 || p.auth > 0 || p.extra > 0) {
		return 0
	}
	at := q.begin(out, wire, p.rcode, p.answers, p.auth, p.extra, len(p.body))
	if at == 0 {
		return 0
	}
	out[2] &^= 4 // it is not ours to say
	if p.authenticated {
		out[3] |= 0x20
	}
	body := out[at : at+copy(out[at:], p.body)]
	for _, ttl := range p.ttls {
		left := binary.BigEndian.Uint32(body[ttl:])
		binary.BigEndian.PutUint32(body[ttl:], left-min(left, uint32(age/time.Second)))
	}
	f.hits.Add(1)
	return q.opt(out, at+len(body), r.s.cfg.MaxUDP)
}
