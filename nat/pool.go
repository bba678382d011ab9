package nat

import (
	"bytes"
	"cmp"
	"math"
	"slices"
)

// A pool spreads hashes over backends, consistently: when one of n backends
// goes, its share moves and hardly anything else.
//
// Few backends are compared one by one (rendezvous hashing: the highest score
// of hash and backend wins). That needs no memory beside a seed for each, moves
// exactly the share of the backend that went, and is as fast as the cache miss
// that a table costs. Many backends fill a Maglev table (Eisenbud et al., NSDI
// 2016, 3.4) of one fixed prime size, so that growth and shrinkage of a pool
// stay consistent, at 1 KiB an endpoint at most.
//
// Weights, where they differ, multiply a backend's turns in the table, and its
// chance to score highest (weighted rendezvous: the score is weight / -ln(hash)).
type pool struct {
	group
	seeds []uint64 // of backends
	table []uint16 // index of backends, for more than tableFrom; else nil
}

// group is whom a pool is made of.
type group struct {
	backends []*Backend // sorted by compareBackends
	weights  []uint8    // of backends; nil: all the same
	leaving  bool       // they terminate, and still serve
}

func (g *group) add(e *Endpoint) {
	g.backends = append(g.backends, e.Backend)
	if g.weights == nil && e.Weight != 1 {
		g.weights = slices.Repeat([]uint8{1}, len(g.backends)-1)
	}
	if g.weights != nil {
		g.weights = append(g.weights, e.Weight)
	}
}

func (g *group) equal(o *group) bool {
	return g.leaving == o.leaving && slices.Equal(g.backends, o.backends) && slices.Equal(g.weights, o.weights)
}

const (
	tableFrom = 128
	tableSize = 65537
)

// newPool makes the pool of a group (taken), or returns the one of known that
// has just these. No backends: nil.
func newPool(g group, known ...*pool) *pool {
	if len(g.backends) == 0 {
		return nil
	}
	for _, k := range known {
		if k != nil && k.equal(&g) {
			return k
		}
	}
	p := &pool{group: g, seeds: make([]uint64, len(g.backends))}
	for i, b := range g.backends {
		p.seeds[i] = hashClient(b.Addr, uint64(b.Port))
	}
	// Beyond half the table's size shares would be crude: compare instead.
	if n := len(g.backends); n > tableFrom && n <= tableSize/2 {
		p.table = maglev(p.seeds, g.weights)
	}
	return p
}

// pick returns the backend for the hash h.
func (p *pool) pick(h uint64) *Backend {
	if p.table != nil {
		return p.backends[p.table[h%tableSize]]
	}
	if p.weights != nil {
		return p.pickWeighted(h)
	}
	var best int
	var high uint64
	for i, s := range p.seeds {
		if score := mix(h^s, s^seed2); score > high {
			best, high = i, score
		}
	}
	return p.backends[best]
}

// pickLeast returns the backend with the fewest conversations for its weight, of
// several the one that h prefers.
func (p *pool) pickLeast(h uint64, load func(*Backend) int) *Backend {
	var best int
	var high uint64
	least := math.Inf(1)
	for i, s := range p.seeds {
		l, score := float64(load(p.backends[i])+1), mix(h^s, s^seed2)
		if p.weights != nil {
			l /= float64(p.weights[i])
		}
		if l < least || l == least && score > high {
			best, high, least = i, score, l
		}
	}
	return p.backends[best]
}

func (p *pool) pickWeighted(h uint64) *Backend {
	var best int
	high := -1.0
	for i, s := range p.seeds {
		u := (float64(mix(h^s, s^seed2)>>11) + 0.5) / (1 << 53) // in (0, 1)
		if score := float64(p.weights[i]) / -math.Log(u); score > high {
			best, high = i, score
		}
	}
	return p.backends[best]
}

// find returns the pool's own Backend for the endpoint that b names, or nil.
func (p *pool) find(b *Backend) *Backend {
	i, ok := slices.BinarySearchFunc(p.backends, b, compareBackends)
	if !ok {
		return nil
	}
	return p.backends[i]
}

func compareBackends(a, b *Backend) int {
	if c := bytes.Compare(a.Addr[:], b.Addr[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Port, b.Port)
}

// maglev fills a table: each backend in turn takes the next free slot of its
// own permutation of the slots, as many as its weight says.
func maglev(seeds []uint64, weights []uint8) []uint16 {
	next := make([]uint32, len(seeds))
	skip := make([]uint32, len(seeds))
	for i, s := range seeds {
		next[i] = uint32(mix(s, seed0) % tableSize)
		skip[i] = uint32(mix(s, seed1)%(tableSize-1)) + 1
	}
	const free = ^uint16(0)
	table := make([]uint16, tableSize)
	for i := range table {
		table[i] = free
	}
	for filled := 0; ; {
		for i := range seeds {
			turns := uint8(1)
			if weights != nil {
				turns = weights[i]
			}
			for range turns {
				for table[next[i]] != free {
					next[i] = (next[i] + skip[i]) % tableSize
				}
				table[next[i]] = uint16(i)
				if filled++; filled == tableSize {
					return table
				}
			}
		}
	}
}
