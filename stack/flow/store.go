package flow

import (
	"math/bits"
	"unsafe"
)

const (
	// regionLen is how many flows fill whole huge pages: what can be given
	// back to the kernel.
	regionLen = 5 * hugePage / int(unsafe.Sizeof(Flow{}))
	// depsLen is how many dependencies are allocated together.
	depsLen = 256
)

// store owns the places of flows. A flow's id is its index in flows; 0 is never
// used. The lowest free place is taken first, so that after a flood the high
// regions empty.
type store struct {
	memory []byte // what flows lie in, for release
	flows  []Flow
	// used has a bit for each live flow, full one for each word of used that
	// has no free place.
	used, full []uint64
	// lowest is at or before the first word of full that is not all ones.
	lowest int
	live   int
	// regions is how many flows are live in each region, and whether it was
	// touched since it was last given back.
	regions []region
	// deps are apart from the flows because they have pointers; nil where no
	// flow ever had any.
	deps []*[depsLen]any
}

type region struct {
	live    int
	touched bool
}

func (s *store) init(maxFlows int) {
	n := (maxFlows + regionLen) / regionLen * regionLen // with room for id 0
	s.memory, s.flows = reserve(n)
	s.used = make([]uint64, n/64)
	s.full = make([]uint64, n/64/64)
	s.regions = make([]region, n/regionLen)
	s.deps = make([]*[depsLen]any, n/depsLen)
	s.used[0] = 1
}

func (s *store) at(id uint32) *Flow { return &s.flows[id] }

// take is a zero flow with an id. There is room: the caller has counted.
func (s *store) take() *Flow {
	for s.full[s.lowest] == ^uint64(0) {
		s.lowest++
	}
	w := s.lowest<<6 + bits.TrailingZeros64(^s.full[s.lowest])
	id := w<<6 + bits.TrailingZeros64(^s.used[w])
	s.used[w] |= 1 << (id & 63)
	if s.used[w] == ^uint64(0) {
		s.full[w>>6] |= 1 << (w & 63)
	}
	r := &s.regions[id/regionLen]
	r.live++
	r.touched = true
	s.live++
	f := &s.flows[id]
	f.id = uint32(id)
	return f
}

// give takes f back.
func (s *store) give(f *Flow) {
	id := int(f.id)
	*f = Flow{}
	if d := s.deps[id/depsLen]; d != nil {
		d[id%depsLen] = nil
	}
	w := id >> 6
	s.used[w] &^= 1 << (id & 63)
	s.full[w>>6] &^= 1 << (w & 63)
	s.lowest = min(s.lowest, w>>6)
	s.regions[id/regionLen].live--
	s.live--
}

// trim gives back what no flow is in.
func (s *store) trim() {
	for i := range s.regions {
		r := &s.regions[i]
		if r.live != 0 || !r.touched {
			continue
		}
		r.touched = false
		if s.memory != nil {
			giveBack(s.flows[i*regionLen : (i+1)*regionLen])
		}
		clear(s.deps[i*regionLen/depsLen : (i+1)*regionLen/depsLen])
	}
}

// Deps is what the owner's decision about f rested on, as SetDeps was told.
func (t *Table) Deps(f *Flow) any {
	if d := t.store.deps[f.id/depsLen]; d != nil {
		return d[f.id%depsLen]
	}
	return nil
}

// SetDeps remembers d with f until f is removed. It is kept apart from the
// flow, because a hit does not need it.
func (t *Table) SetDeps(f *Flow, d any) {
	at := &t.store.deps[f.id/depsLen]
	if *at == nil {
		*at = new([depsLen]any)
	}
	(*at)[f.id%depsLen] = d
}

// Cursor is a place in a walk over all flows; 0 is the start.
type Cursor uint32

// Scan visits the flows in up to n places from c on, where 64 places without a
// flow count as one, and returns where to go on: 0 after the last. visit may
// remove any flow and insert others: flows that are there from a walk's start to
// its end are visited once, others at most once.
func (t *Table) Scan(c Cursor, n int, visit func(*Flow)) Cursor {
	s := &t.store
	for at := max(int(c), 1); at < len(s.flows); n-- {
		if n <= 0 {
			return Cursor(at)
		}
		if at%regionLen == 0 && s.regions[at/regionLen].live == 0 {
			at += regionLen
			continue
		}
		left := s.used[at>>6] >> (at & 63)
		if left == 0 {
			at = (at | 63) + 1
			continue
		}
		at += bits.TrailingZeros64(left)
		visit(&s.flows[at])
		at++
	}
	return 0
}

// All is every flow; the loop's body may remove any and insert others.
func (t *Table) All() func(yield func(*Flow) bool) {
	return func(yield func(*Flow) bool) {
		more := true
		for c := Cursor(0); ; {
			c = t.Scan(c, 1, func(f *Flow) { more = yield(f) })
			if c == 0 || !more {
				return
			}
		}
	}
}

// Sweep goes on, round and round, from where the last Sweep ended: in up to n
// places it removes the flows whose time is up and shows the others to visit
// (nil: to nobody), which may remove what it is shown and nothing else. It
// returns how many timed out. Called with n a few times the number of frames of
// a batch it keeps memory bounded without a pause that anyone notices. After
// each round memory that nobody uses goes back to the kernel.
func (t *Table) Sweep(now int64, n int, visit func(*Flow)) (timedOut int) {
	t.cursor = t.Scan(t.cursor, n, func(f *Flow) {
		switch {
		case f.Expired(now):
			t.remove(f, TimedOut)
			timedOut++
		case visit != nil:
			visit(f)
		}
	})
	if t.cursor == 0 {
		t.store.trim()
	}
	return timedOut
}
