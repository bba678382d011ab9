package nat

import (
	"bytes"
	"cmp"
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
type pool struct {
	backends []*Backend // sorted by compareBackends, never empty
	seeds    []uint64   // of backends
	table    []uint16   // index of backends, for more than tableFrom; else nil
}

const (
	tableFrom = 128
	tableSize = 65537
)

// newPool makes the pool of backends (sorted, taken), or returns the one of
// known that has just these. No backends: nil.
func newPool(backends []*Backend, known ...*pool) *pool {
	if len(backends) == 0 {
		return nil
	}
	for _, k := range known {
		if k != nil && slices.Equal(k.backends, backends) {
			return k
		}
	}
	p := &pool{backends: backends, seeds: make([]uint64, len(backends))}
	for i, b := range backends {
		p.seeds[i] = hashClient(b.Addr, uint64(b.Port))
	}
	// Beyond half the table's size shares would be crude: compare instead.
	if len(backends) > tableFrom && len(backends) <= tableSize/2 {
		p.table = maglev(p.seeds)
	}
	return p
}

// pick returns the backend for the hash h.
func (p *pool) pick(h uint64) *Backend {
	if p.table != nil {
		return p.backends[p.table[h%tableSize]]
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
// own permutation of the slots.
func maglev(seeds []uint64) []uint16 {
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
