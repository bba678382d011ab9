package nat

import (
	"hash/maphash"
	"iter"
	"maps"
)

// sharded is a map of which successive versions share what they have in
// common: a change copies one shard and the list of shards. Versions are
// immutable once their edit is over. The zero value is an empty map.
type sharded[K comparable, V any] struct {
	shards []map[K]V
	own    []bool // shards that this edit has copied; nil outside an edit
}

const shards = 1 << 10

var shardSeed = maphash.MakeSeed()

func shardOf[K comparable](k K) int {
	return int(maphash.Comparable(shardSeed, k) % shards)
}

// edit returns a version of s to be changed with set and remove until done.
func (s sharded[K, V]) edit() sharded[K, V] {
	e := sharded[K, V]{shards: make([]map[K]V, shards), own: make([]bool, shards)}
	copy(e.shards, s.shards)
	return e
}

// done ends an edit.
func (s *sharded[K, V]) done() { s.own = nil }

func (s *sharded[K, V]) get(k K) V {
	if s.shards == nil {
		var none V
		return none
	}
	return s.shards[shardOf(k)][k]
}

func (s *sharded[K, V]) set(k K, v V) { s.mutable(k)[k] = v }

func (s *sharded[K, V]) remove(k K) { delete(s.mutable(k), k) }

func (s *sharded[K, V]) mutable(k K) map[K]V {
	i := shardOf(k)
	if !s.own[i] {
		s.own[i] = true
		if s.shards[i] = maps.Clone(s.shards[i]); s.shards[i] == nil {
			s.shards[i] = map[K]V{}
		}
	}
	return s.shards[i]
}

// all iterates in no particular order.
func (s *sharded[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, m := range s.shards {
			for k, v := range m {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}
