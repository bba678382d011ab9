package kube

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Whatever happened between two States, the remembered step says the same as a
// comparison of the maps.
func TestDiffByStepsIsTheDifference(t *testing.T) {
	s := testStore(Config{})
	diff := func(st *State, old, now map[Name]*corev1.ConfigMap) []string {
		var out []string
		Diff(st, old, now, func(n Name, o, c *corev1.ConfigMap) { out = append(out, fmt.Sprintf("%s %p %p", n.Name, o, c)) })
		slices.Sort(out)
		return out
	}
	named := func(i int) string { return fmt.Sprintf("c%d", i) }
	many := func(first, n int, v string) (objs []Object) {
		for i := range n {
			objs = append(objs, load(t, configMap(named(first+i), v))...)
		}
		return objs
	}
	var states []*State
	for _, f := range []func(){
		func() {},
		func() { s.Apply(many(0, 20, "a")) },
		func() { s.Apply(many(3, 1, "b")); s.Apply(many(3, 1, "c")); s.Apply(many(4, 1, "b")) },
		func() {
			s.Delete(many(5, 2, "a"))
			s.Apply(many(6, 1, "new"))
			s.Apply(many(90, 1, "x"))
			s.Delete(many(90, 1, "x"))
		},
		func() { s.Apply(many(0, 20, "a")) },
		func() { s.Apply(many(100, maxTouched+5, "a")) },
		func() { s.Delete(many(100, 1, "a")) },
	} {
		f()
		states = append(states, s.State())
	}
	for i, now := range states {
		for j, old := range states {
			want := diff(&State{}, maps.Clone(old.ConfigMaps), now.ConfigMaps)
			if i == j {
				want = nil
			}
			if got := diff(now, old.ConfigMaps, now.ConfigMaps); !slices.Equal(got, want) {
				t.Errorf("from state %d to %d: got %d differences, want %d", j, i, len(got), len(want))
			}
		}
	}
	if n := len(states[2].steps); n != 1 {
		t.Errorf("%d maps changed, want 1", n)
	}
}
