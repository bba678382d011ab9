package dns

import (
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Autopath
//
// A resolver in a pod asks for "www.example.com.shop.svc.cluster.local" first,
// is told that there is no such name, and goes on through its search list. With
// autopath the first question is answered with what the last of them would be:
// the names that the resolver would ask for are looked up here, in its order,
// and the first that exists answers, behind a CNAME to it (CoreDNS's autopath).
//
// Whoever asks for the long name itself gets that answer too, where the truth is
// that the name does not exist. The two cannot be told apart, which is why this
// is off unless it is asked for. In every other respect it is exact: the search
// list is that of the asking pod, known by its address; a name of the list that
// fails or is refused, or an upstream that is slow, leaves the plain answer, and
// the resolver goes on by itself.

// pathPatience is how long upstreams may take before the plain answer is given.
const pathPatience = time.Second

// pathOf lists the names that come after a lower-case one in the asker's search,
// nil if it is not the first name of one.
func (s *Server) pathOf(q *query, lower string) (names []string) {
	if qtype := q.Question[0].Qtype; qtype != dns.TypeA && qtype != dns.TypeAAAA || s.cfg.Search == nil {
		return nil
	}
	search := s.cfg.Search(q.from)
	if len(search) == 0 {
		return nil
	}
	base, ok := strings.CutSuffix(lower, "."+dns.CanonicalName(search[0]))
	if !ok || base == "" {
		return nil
	}
	base = q.Question[0].Name[:len(base)] + "."
	for _, in := range search[1:] {
		if in = dns.CanonicalName(in); in != "." {
			names = append(names, base+in)
		}
	}
	return append(names, base)
}

// walk answers for the first of names that exists, else what plain says.
func (s *Server) walk(q *query, plain answer, z *Zone, r *rules, names []string, out []byte) ([]byte, func() []byte) {
	for i, name := range names {
		m, ask := s.step(q, z, r, name)
		if ask == nil {
			if m != nil && m.Rcode == dns.RcodeNameError {
				continue
			}
			return s.arrive(q, plain, m, name, out), nil
		}
		free := s.slot(ask.f)
		if free == nil {
			break
		}
		q.maker = byUpstream
		return nil, func() []byte {
			defer free()
			return s.wander(q, plain, z, r, names[i:])
		}
	}
	return s.arrive(q, plain, nil, "", out), nil
}

// errand is a question for an upstream.
type errand struct {
	f *forwarder
	a answer
}

// step is what is known about a name, or the question that is to be asked about
// it; neither, where nobody is to be asked.
func (s *Server) step(q *query, z *Zone, r *rules, name string) (*dns.Msg, *errand) {
	b := r.match(strings.ToLower(name))
	if b == nil {
		return nil, nil
	}
	if to, _ := b.rewritten(name); to != name {
		return nil, nil // its answer would have to be turned back
	}
	a := b.lookup(z, name, q.Question[0].Qtype)
	if a.chase == "" {
		return s.say(q, a), nil
	}
	f := r.route(a.chase)
	if f == nil {
		return nil, nil
	}
	if up := f.cached(s.ctx, a.chase, q.keyOf(a.chase)); up != nil {
		q.maker = byCache
		return s.complete(q, a, up), nil
	}
	return nil, &errand{f, a}
}

// wander is walk for whoever may wait.
func (s *Server) wander(q *query, plain answer, z *Zone, r *rules, names []string) []byte {
	patience := time.After(pathPatience)
	for _, name := range names {
		m, ask := s.step(q, z, r, name)
		if ask != nil {
			said := make(chan *dns.Msg, 1)
			key := q.keyOf(ask.a.chase)
			if !s.wait(func() {
				up, _ := ask.f.resolve(s.ctx, ask.a.chase, key)
				said <- up
			}) {
				break
			}
			select {
			case up := <-said:
				if up != nil {
					m = s.complete(q, ask.a, up)
				}
			case <-patience:
			}
		}
		if m == nil || m.Rcode != dns.RcodeNameError {
			return s.arrive(q, plain, m, name, nil)
		}
	}
	return s.arrive(q, plain, nil, "", nil)
}

// arrive puts the way to a name before what it says, or gives the plain answer
// if it says nothing of use.
func (s *Server) arrive(q *query, plain answer, m *dns.Msg, name string, out []byte) []byte {
	if m == nil || m.Rcode != dns.RcodeSuccess {
		return s.pack(q, s.say(q, plain), out)
	}
	s.autopathed.Add(1)
	if !q.silent {
		s.teach(q.from, name, m.Answer) // the name that the pod is after, beside the one that it asked for
	}
	q.path = true
	ttl := pathTTL(m, plain.soa.Header().Ttl)
	way := &dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: name}
	m.Answer = append([]dns.RR{way}, m.Answer...)
	return s.pack(q, m, out)
}

// pathTTL is how long the way to a name may be remembered: as long as all that
// is said about it, and no longer than the zone's own names.
func pathTTL(m *dns.Msg, ttl uint32) uint32 {
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range rrs {
			ttl = min(ttl, rr.Header().Ttl)
		}
	}
	return ttl
}
