package kube

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// Whatever is done to one version shows in none that was before, and their
// difference is what was done.
func TestMapVersionsAreApart(t *testing.T) {
	type version struct {
		m    Map[int, *int]
		want map[int]*int
	}
	var all []version
	var now version
	now.want = map[int]*int{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		for range r.IntN(200) {
			if k := r.IntN(5000); r.IntN(3) == 0 {
				if was := now.want[k] != nil; now.m.Delete(k) != was {
					t.Fatalf("Delete(%d): got %t, want %t", k, !was, was)
				}
				delete(now.want, k)
			} else {
				now.want[k] = new(int)
				now.m.Set(k, now.want[k])
			}
		}
		now.m.Done()
		all = append(all, version{now.m, maps.Clone(now.want)})
	}
	for i := range all {
		v := &all[i]
		if got := maps.Collect(v.m.All()); !maps.Equal(got, v.want) || v.m.Len() != len(v.want) {
			t.Errorf("version %d: got %d entries, Len %d, want %d", i, len(got), v.m.Len(), len(v.want))
		}
		for j := range all {
			o := &all[j]
			got := maps.Clone(o.want)
			DiffMap(&o.m, &v.m, func(k int, old, now *int) {
				if old == now || old != o.want[k] {
					t.Errorf("from version %d to %d: %d was said to change from %p to %p", j, i, k, old, now)
				}
				if got[k] = now; now == nil {
					delete(got, k)
				}
			})
			if !maps.Equal(got, v.want) {
				t.Errorf("from version %d to %d: the difference leads elsewhere", j, i)
			}
			if same := i == j; v.m.Same(&o.m) && !same && !maps.Equal(v.want, o.want) {
				t.Errorf("versions %d and %d are not the same", j, i)
			}
		}
	}
	var none Map[int, int]
	one := none.With(1, 2)
	if none.Get(1) != 0 || none.Delete(1) || none.Len() != 0 || one.Len() != 1 || one.Get(1) != 2 {
		t.Error("the zero Map is not empty, or did not stay so")
	}
}
