package dns

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// cacheKey is what an upstream's answer depends on.
type cacheKey struct {
	name     string // lower case
	qtype    uint16
	dnssec   bool // DO
	unproven bool // CD
	subnet   subnet
}

// cached is an upstream's answer; the message is shared and never written.
type cached struct {
	msg      *dns.Msg
	from, to time.Time
	use      *cachedUse
	packed   *packedReply // nil: it is for the server only
}

// cachedUse is what happened to an answer since it came.
type cachedUse struct {
	hits  int
	again bool // it is being asked for again
}

// cache remembers upstreams' answers for as long as their TTL allows, at most
// size of them. It is two halves: when the young one is full it becomes the old
// one and the old one goes; what is asked for moves back to the young.
type cache struct {
	size      int
	max       time.Duration
	maxDenial time.Duration // of negative answers; 0: max
	stale     time.Duration // how long an answer is given after its time; 0: not at all
	prefetch  int           // hits that make an answer be asked for again near its end; 0: never
	noHits    []string      // zones whose answers are not kept, positive and negative
	noDenial  []string

	mu         sync.Mutex
	young, old map[cacheKey]cached
}

// get returns an answer, and once whether it is to be asked for again.
func (c *cache) get(k cacheKey, now time.Time) (m *dns.Msg, again, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.young[k]
	if !ok {
		if e, ok = c.old[k]; ok {
			c.insert(k, e)
		}
	}
	if !ok || !now.Before(e.to.Add(c.stale)) {
		return nil, false, false
	}
	e.use.hits++
	stale := !now.Before(e.to)
	ending := c.prefetch > 0 && e.use.hits >= c.prefetch && e.to.Sub(now) <= e.to.Sub(e.from)/10
	if (stale || ending) && !e.use.again {
		e.use.again, again = true, true
	}
	return aged(e.msg, now.Sub(e.from)), again, true
}

// put takes m, whose records have a TTL of at most c.max afterwards.
func (c *cache) put(k cacheKey, m *dns.Msg, now time.Time) {
	ttl, ok := lifetime(m)
	if !ok || c.max < 0 {
		c.retry(k)
		return
	}
	ttl = min(ttl, c.max)
	off := c.noHits
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
		off = c.noDenial
		if c.maxDenial > 0 {
			ttl = min(ttl, c.maxDenial)
		}
	}
	if inZones(k.name, off) {
		return
	}
	for _, set := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range set {
			h := rr.Header()
			if h.Rrtype == dns.TypeOPT { // its TTL is none
				continue
			}
			h.Ttl = min(h.Ttl, uint32(c.max/time.Second))
		}
	}
	if ttl < time.Second {
		return
	}
	e := cached{m, now, now.Add(ttl), &cachedUse{}, packReply(k, m)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.insert(k, e)
}

// retry lets the answer to k be asked for again: the last try told nothing.
func (c *cache) retry(k cacheKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, half := range []map[cacheKey]cached{c.young, c.old} {
		if e, ok := half[k]; ok {
			e.use.again = false
		}
	}
}

func (c *cache) insert(k cacheKey, e cached) {
	if c.young == nil || len(c.young) >= (c.size+1)/2 {
		c.young, c.old = map[cacheKey]cached{}, c.young
	}
	c.young[k] = e
}

// lifetime is how long an answer is good: the least TTL of its records, or for
// one without what the SOA says (RFC 2308, section 5).
func lifetime(m *dns.Msg) (time.Duration, bool) {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0, false
	}
	var ttl uint32
	found := false
	shortest := func(v uint32) {
		if !found || v < ttl {
			ttl, found = v, true
		}
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			shortest(min(soa.Hdr.Ttl, soa.Minttl))
		}
	}
	negative := m.Rcode == dns.RcodeNameError || len(m.Answer) == 0
	if negative && !found {
		return 0, false
	}
	for _, rr := range m.Answer {
		shortest(rr.Header().Ttl)
	}
	return time.Duration(ttl) * time.Second, found
}

// aged is a copy of m whose TTLs are smaller by age.
func aged(m *dns.Msg, age time.Duration) *dns.Msg {
	m = m.Copy()
	s := uint32(age / time.Second)
	for _, set := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range set {
			if h := rr.Header(); h.Rrtype == dns.TypeOPT {
				continue
			} else if h.Ttl > s {
				h.Ttl -= s
			} else {
				h.Ttl = 0
			}
		}
	}
	return m
}

// respell gives the records of the name asked its spelling.
func respell(m *dns.Msg, name string) {
	for _, rr := range m.Answer {
		if h := rr.Header(); h.Name != name && strings.EqualFold(h.Name, name) {
			h.Name = name
		}
	}
}
