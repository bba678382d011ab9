package kube

import "reflect"

// Diff calls f for each key whose value is not the same pointer in both maps;
// the missing value is nil. Maps that a State shares with the one before cost nothing.
func Diff[K comparable, V any](old, now map[K]*V, f func(k K, old, now *V)) {
	if reflect.ValueOf(old).UnsafePointer() == reflect.ValueOf(now).UnsafePointer() {
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
