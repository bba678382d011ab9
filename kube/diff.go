package kube

import (
	"reflect"
	"unsafe"
)

// Diff calls f, once for each key, where old and now, which is a map of st, have
// not the same pointer; the missing value is nil. Maps that a State shares with the
// one before cost nothing, and where old is the map of the State before, the cost
// is that of the change.
func Diff[K comparable, V any](st *State, old, now map[K]*V, f func(k K, old, now *V)) {
	if identity(old) == identity(now) {
		return
	}
	if s, ok := st.steps[identity(now)].(*step[K, *V]); ok && identity(s.from) == identity(old) {
		seen := make(map[K]bool, len(s.keys))
		for _, k := range s.keys {
			if o, n := old[k], now[k]; o != n && !seen[k] {
				seen[k] = true
				f(k, o, n)
			}
		}
		return
	}
	diff(old, now, f)
}

func diff[K comparable, V any](old, now map[K]*V, f func(k K, old, now *V)) {
	if identity(old) == identity(now) {
		return
	}
	kept := 0
	for k, v := range now {
		o, ok := old[k]
		if ok {
			kept++
		}
		if o != v {
			f(k, o, v)
		}
	}
	if kept == len(old) {
		return
	}
	for k, o := range old {
		if _, ok := now[k]; !ok {
			f(k, o, nil)
		}
	}
}

// identity is the same for a map and its copies by assignment alone.
func identity[K comparable, V any](m map[K]V) unsafe.Pointer {
	return reflect.ValueOf(m).UnsafePointer()
}
