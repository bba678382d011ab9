package dns

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Who asked, and for what in vain
//
// Every answer is counted by the client's address, those of the fast path too.
// Names that do not exist are counted in a table of fixed size, by space-saving
// (Metwally, Agrawal, El Abbadi 2005) within sets of a few: a name that is not in
// its set takes the place of the rarest there, and that one's count as what it
// may have missed. So a count is never too low, and what is common stays.

// asked is what became of one client's queries.
type asked struct {
	queries, fast, cached, forwarded, missing, failed atomic.Uint64
}

// maxClients bounds the clients that are told apart.
const maxClients = 4096

// clients counts by the address that asked.
type clients struct {
	mu     sync.RWMutex
	byAddr map[netip.Addr]*asked
	others asked // of those beyond maxClients
}

func (c *clients) of(client netip.Addr) *asked {
	c.mu.RLock()
	a := c.byAddr[client]
	c.mu.RUnlock()
	if a != nil {
		return a
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a = c.byAddr[client]; a != nil {
		return a
	}
	if len(c.byAddr) >= maxClients {
		return &c.others
	}
	if c.byAddr == nil {
		c.byAddr = map[netip.Addr]*asked{}
	}
	a = &asked{}
	c.byAddr[client] = a
	return a
}

// Forget takes a client's counts away: its address is another's from now on.
func (s *Server) Forget(client netip.Addr) {
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	delete(s.clients.byAddr, client)
}

// Asked are the counts of one client's queries since it is there.
type Asked struct {
	Client    netip.Addr `json:"client"` // the zero Addr: all others together
	Queries   uint64     `json:"queries"`
	Fast      uint64     `json:"fast"`      // answered in the data path
	Cached    uint64     `json:"cached"`    // answers of upstreams that were known already
	Forwarded uint64     `json:"forwarded"` // for which an upstream was asked
	Missing   uint64     `json:"nxdomain"`  // names that do not exist
	Failed    uint64     `json:"failed"`    // SERVFAIL and refusals
}

// Asked lists who asked, by address.
func (s *Server) Asked() (all []Asked) {
	add := func(client netip.Addr, a *asked) {
		if n := a.queries.Load(); n > 0 {
			all = append(all, Asked{client, n, a.fast.Load(), a.cached.Load(), a.forwarded.Load(), a.missing.Load(), a.failed.Load()})
		}
	}
	s.clients.mu.RLock()
	defer s.clients.mu.RUnlock()
	for client, a := range s.clients.byAddr {
		add(client, a)
	}
	slices.SortFunc(all, func(a, b Asked) int { return a.Client.Compare(b.Client) })
	add(netip.Addr{}, &s.clients.others)
	return all
}

const (
	missSets = 64
	missWays = 8
)

var missSeed = maphash.MakeSeed()

// misses are the names that were asked for in vain most often.
type misses struct {
	mu   sync.Mutex
	sets [missSets][missWays]miss
}

type miss struct {
	count, over uint64 // over: by how much count may be too high
	hash        uint64
	last        netip.Addr // who asked last
	n           uint8
	name        [255]byte // lower case
}

// add counts a lower-case name; it keeps nothing of it.
func (m *misses) add(name string, client netip.Addr) {
	if len(name) > len(miss{}.name) {
		return
	}
	h := maphash.String(missSeed, name)
	m.mu.Lock()
	defer m.mu.Unlock()
	set := &m.sets[h%missSets]
	least := 0
	for i := range set {
		e := &set[i]
		if e.count > 0 && e.hash == h && string(e.name[:e.n]) == name {
			e.count++
			e.last = client
			return
		}
		if e.count < set[least].count {
			least = i
		}
	}
	e := &set[least]
	e.over = e.count
	e.count++
	e.hash, e.last, e.n = h, client, uint8(copy(e.name[:], name))
}

// Miss is a name that was asked for and does not exist.
type Miss struct {
	Name  string     `json:"name"`
	Count uint64     `json:"count"` // at most
	Least uint64     `json:"least"` // at least
	Last  netip.Addr `json:"last"`  // the client that asked last
}

// Missing lists the n names that do not exist and were asked for most often.
func (s *Server) Missing(n int) (top []Miss) {
	m := &s.misses
	m.mu.Lock()
	for i := range m.sets {
		for _, e := range m.sets[i] {
			if e.count > 0 {
				top = append(top, Miss{string(e.name[:e.n]), e.count, e.count - e.over, e.last})
			}
		}
	}
	m.mu.Unlock()
	slices.SortFunc(top, func(a, b Miss) int {
		return cmp.Or(cmp.Compare(b.Least, a.Least), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Name, b.Name))
	})
	return top[:min(n, len(top))]
}

// count notes what became of a query; name is in lower case.
func (s *Server) count(client netip.Addr, udp bool, qtype uint16, name string, maker, rcode int) *asked {
	s.tally.add(udp, client, qtype, maker, rcode)
	a := s.clients.of(client)
	a.queries.Add(1)
	switch rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		a.missing.Add(1)
		s.misses.add(name, client)
	default:
		a.failed.Add(1)
	}
	switch maker {
	case byCache:
		a.cached.Add(1)
	case byUpstream:
		a.forwarded.Add(1)
	}
	return a
}
