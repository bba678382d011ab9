package kube

import "maps"

// table is a map that is shared with States: it is copied before the first change
// after each.
type table[K comparable, V any] struct {
	m     map[K]V
	dirty bool // m is a copy of what the last State has, and differs
	news  bool // it changed since subscribers were last woken

	last    map[K]V // what the last State has, while dirty
	touched []K     // since then; more than maxTouched are not counted
}

// step is how a map came from that of the State before: only keys may differ.
type step[K comparable, V any] struct {
	from map[K]V
	keys []K
}

// maxTouched is up to how many keys it is worth while to remember.
const maxTouched = 1000

func (t *table[K, V]) own(k K) {
	t.news = true
	if t.dirty {
		if len(t.touched) <= maxTouched {
			t.touched = append(t.touched, k)
		}
		return
	}
	t.dirty, t.last, t.touched = true, t.m, []K{k}
	if t.m == nil {
		t.m = map[K]V{}
	} else {
		t.m = maps.Clone(t.m)
	}
}

func (t *table[K, V]) set(k K, v V) {
	t.own(k)
	t.m[k] = v
}

func (t *table[K, V]) delete(k K) {
	if _, ok := t.m[k]; ok {
		t.own(k)
		delete(t.m, k)
	}
}

// share returns the map, which is then copied before it changes again, and how it
// came about, if that is known.
func (t *table[K, V]) share() (map[K]V, *step[K, V]) {
	var s *step[K, V]
	if t.dirty && len(t.touched) <= maxTouched {
		s = &step[K, V]{t.last, t.touched}
	}
	t.dirty, t.last, t.touched = false, nil, nil
	if t.m == nil {
		t.m = map[K]V{}
	}
	return t.m, s
}

// mapTable is a table of what changes most, and is as many as there are Services.
type mapTable[K comparable, V any] struct {
	m           Map[K, V]
	dirty, news bool // as in table
}

func (t *mapTable[K, V]) set(k K, v V) {
	t.dirty, t.news = true, true
	t.m.Set(k, v)
}

func (t *mapTable[K, V]) delete(k K) {
	if t.m.Delete(k) {
		t.dirty, t.news = true, true
	}
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
