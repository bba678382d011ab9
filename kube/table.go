package kube

import "maps"

// table is a map that is shared with States: it is copied before the first change
// after each.
type table[K comparable, V any] struct {
	m     map[K]V
	dirty bool // m is a copy of what the last State has, and differs
	news  bool // it changed since subscribers were last woken
}

func (t *table[K, V]) own() {
	t.news = true
	if t.dirty {
		return
	}
	t.dirty = true
	if t.m == nil {
		t.m = map[K]V{}
	} else {
		t.m = maps.Clone(t.m)
	}
}

func (t *table[K, V]) set(k K, v V) {
	t.own()
	t.m[k] = v
}

func (t *table[K, V]) delete(k K) {
	if _, ok := t.m[k]; ok {
		t.own()
		delete(t.m, k)
	}
}

// share returns the map, which is then copied before it changes again.
func (t *table[K, V]) share() map[K]V {
	t.dirty = false
	if t.m == nil {
		t.m = map[K]V{}
	}
	return t.m
}

// labelIndex finds the objects of a namespace that carry a label.
type labelIndex map[labelKey]map[Name]struct{}

type labelKey struct{ namespace, key, value string }

func (x labelIndex) add(n Name, key, value string) {
	k := labelKey{n.Namespace, key, value}
	if x[k] == nil {
		x[k] = map[Name]struct{}{}
	}
	x[k][n] = struct{}{}
}

func (x labelIndex) remove(n Name, key, value string) {
	k := labelKey{n.Namespace, key, value}
	delete(x[k], n)
	if len(x[k]) == 0 {
		delete(x, k)
	}
}

// rarest is the label of a selector that the fewest objects carry.
func (x labelIndex) rarest(namespace string, selector map[string]string) map[Name]struct{} {
	var best map[Name]struct{}
	first := true
	for k, v := range selector {
		if found := x[labelKey{namespace, k, v}]; first || len(found) < len(best) {
			best, first = found, false
		}
	}
	return best
}

// selects says whether a map selector picks labels. An empty one picks nothing:
// that is how Services read it.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}
