package kube

import (
	"hash/maphash"
	"iter"
	"maps"
)

// Map is a map of which successive versions share what they have in common: the
// first change after Done copies a list of shards, and a change one shard of it, so
// that it costs the same however much there is. A Map is written to by who has it
// alone; from Done on it is immutable, and may be copied by assignment. The zero
// Map is empty.
type Map[K comparable, V any] struct {
	shards []map[K]V
	len    int
	own    []bool // shards that were copied since Done; nil: not even the list was
}

const shards = 1 << 10

var shardSeed = maphash.MakeSeed()

func shardOf[K comparable](k K) int {
	return int(maphash.Comparable(shardSeed, k) % shards)
}

// MapOf is a Map of what m has.
func MapOf[K comparable, V any](m map[K]V) Map[K, V] {
	var s Map[K, V]
	for k, v := range m {
		s.Set(k, v)
	}
	s.Done()
	return s
}

// Get returns the zero value for what is not there.
func (m *Map[K, V]) Get(k K) V {
	if m.shards == nil {
		var none V
		return none
	}
	return m.shards[shardOf(k)][k]
}

// Len is how much there is.
func (m *Map[K, V]) Len() int { return m.len }

// All iterates in no particular order.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, s := range m.shards {
			for k, v := range s {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// With is m, which is done, with k; m stays as it is.
func (m Map[K, V]) With(k K, v V) Map[K, V] {
	m.Set(k, v)
	m.Done()
	return m
}

// Set enters k.
func (m *Map[K, V]) Set(k K, v V) {
	s := m.mutable(shardOf(k))
	before := len(s)
	s[k] = v
	m.len += len(s) - before
}

// Delete takes k out, and says whether it was there.
func (m *Map[K, V]) Delete(k K) bool {
	if m.shards == nil {
		return false
	}
	i := shardOf(k)
	if _, ok := m.shards[i][k]; !ok {
		return false
	}
	delete(m.mutable(i), k)
	m.len--
	return true
}

// Same says whether m and o are one version.
func (m *Map[K, V]) Same(o *Map[K, V]) bool {
	return len(m.shards) == len(o.shards) && (len(m.shards) == 0 || &m.shards[0] == &o.shards[0])
}

// Done ends the changes to this version.
func (m *Map[K, V]) Done() { m.own = nil }

func (m *Map[K, V]) mutable(i int) map[K]V {
	if m.own == nil {
		m.own = make([]bool, shards)
		list := make([]map[K]V, shards)
		copy(list, m.shards)
		m.shards = list
	}
	if !m.own[i] {
		m.own[i] = true
		if m.shards[i] = maps.Clone(m.shards[i]); m.shards[i] == nil {
			m.shards[i] = map[K]V{}
		}
	}
	return m.shards[i]
}

// DiffMap is Diff for what is a Map: its cost is that of the shards that differ.
func DiffMap[K comparable, V any](old, now *Map[K, *V], f func(k K, old, now *V)) {
	if old.Same(now) {
		return
	}
	for i := range shards {
		diff(old.shard(i), now.shard(i), f)
	}
}

func (m *Map[K, V]) shard(i int) map[K]V {
	if m.shards == nil {
		return nil
	}
	return m.shards[i]
}
