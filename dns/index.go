package dns

import "hash/maphash"

// index is an immutable map in pieces, so that a copy with a few changes costs
// the pieces that it touches and shares the others.
type index[K comparable, V any] struct {
	pieces *[indexPieces]map[K]V // nil: empty
}

const indexPieces = 256

var indexSeed = maphash.MakeSeed()

func (x index[K, V]) get(k K) (v V, ok bool) {
	if x.pieces == nil {
		return v, false
	}
	v, ok = x.pieces[maphash.Comparable(indexSeed, k)%indexPieces][k]
	return v, ok
}

// edit begins a changed copy of x, which stays as it is.
func (x index[K, V]) edit() *indexEdit[K, V] {
	e := &indexEdit[K, V]{}
	if x.pieces != nil {
		e.pieces = *x.pieces
	}
	return e
}

// indexEdit is the one owner of an index in the making.
type indexEdit[K comparable, V any] struct {
	pieces [indexPieces]map[K]V
	copied [indexPieces]bool
}

func (e *indexEdit[K, V]) get(k K) V {
	return e.pieces[maphash.Comparable(indexSeed, k)%indexPieces][k]
}

func (e *indexEdit[K, V]) set(k K, v V) { e.own(k)[k] = v }

func (e *indexEdit[K, V]) remove(k K) { delete(e.own(k), k) }

// own returns the piece of k as a map that nobody else reads.
func (e *indexEdit[K, V]) own(k K) map[K]V {
	i := maphash.Comparable(indexSeed, k) % indexPieces
	if !e.copied[i] {
		old := e.pieces[i]
		e.pieces[i] = make(map[K]V, len(old)+1)
		for k, v := range old {
			e.pieces[i][k] = v
		}
		e.copied[i] = true
	}
	return e.pieces[i]
}

// done ends the edit; e must not be used after it.
func (e *indexEdit[K, V]) done() index[K, V] { return index[K, V]{&e.pieces} }
