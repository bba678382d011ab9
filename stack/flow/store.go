package flow

import "math/bits"

// chunkLen is how many flows are allocated together.
const chunkLen = 256

// store owns the memory of flows. Ids start at 1; id i is flow (i-1)%chunkLen
// of chunk (i-1)/chunkLen.
type store struct {
	chunks []chunk
	// space has a bit for each chunk that has a free place.
	space []uint64
	live  int
	// spare is an empty chunk kept for the next need, so that a table at a
	// chunk's edge does not allocate and release it over and over.
	spare chunk
}

// chunk is chunkLen flows, and apart from them, because they alone have
// pointers, their dependencies. A chunk that was given back is zero.
type chunk struct {
	flows *[chunkLen]Flow
	deps  *[chunkLen]any
	live  int
	// used has a bit for each flow that is live.
	used [chunkLen / 64]uint64
}

func (s *store) at(id uint32) *Flow {
	return &s.chunks[(id-1)/chunkLen].flows[(id-1)%chunkLen]
}

func (s *store) deps(id uint32) *any {
	return &s.chunks[(id-1)/chunkLen].deps[(id-1)%chunkLen]
}

// take is a zero flow with an id, from the lowest chunk that has one.
func (s *store) take() *Flow {
	n := s.lowest()
	c := &s.chunks[n]
	if c.flows == nil {
		*c = s.fresh()
	}
	i := 0
	for c.used[i>>6] == ^uint64(0) {
		i += 64
	}
	i += bits.TrailingZeros64(^c.used[i>>6])
	c.used[i>>6] |= 1 << (i & 63)
	if c.live++; c.live == chunkLen {
		s.space[n>>6] &^= 1 << (n & 63)
	}
	s.live++
	f := &c.flows[i]
	f.id = uint32(n*chunkLen + i + 1)
	return f
}

// lowest is the first chunk with a free place, a new one if none has.
func (s *store) lowest() int {
	for w, b := range s.space {
		if b != 0 {
			return w<<6 + bits.TrailingZeros64(b)
		}
	}
	n := len(s.chunks)
	s.chunks = append(s.chunks, chunk{})
	if n>>6 == len(s.space) {
		s.space = append(s.space, 0)
	}
	s.space[n>>6] |= 1 << (n & 63)
	return n
}

func (s *store) fresh() chunk {
	if c := s.spare; c.flows != nil {
		s.spare = chunk{}
		return c
	}
	return chunk{flows: new([chunkLen]Flow), deps: new([chunkLen]any)}
}

// give takes f back.
func (s *store) give(f *Flow) {
	n, i := int(f.id-1)/chunkLen, (f.id-1)%chunkLen
	c := &s.chunks[n]
	*f = Flow{}
	c.deps[i] = nil
	c.used[i>>6] &^= 1 << (i & 63)
	s.space[n>>6] |= 1 << (n & 63)
	s.live--
	if c.live--; c.live == 0 {
		s.spare, *c = *c, chunk{}
	}
}

// Cursor is a place in a walk over all flows; 0 is the start.
type Cursor uint32

// Scan visits the flows in up to n places from c on and returns where to go on:
// 0 after the last. visit may remove any flow and insert others: flows that are
// there from a walk's start to its end are visited once, others at most once.
func (t *Table) Scan(c Cursor, n int, visit func(*Flow)) Cursor {
	for ; n > 0; n-- {
		at := int(c) / chunkLen
		if at >= len(t.store.chunks) {
			return 0
		}
		k := &t.store.chunks[at]
		if k.live == 0 {
			c = Cursor(at+1) * chunkLen
			continue
		}
		i := c % chunkLen
		c++
		if k.used[i>>6]&(1<<(i&63)) != 0 {
			visit(&k.flows[i])
		}
	}
	return c
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
// a batch it keeps memory bounded without a pause that anyone notices.
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
	return timedOut
}
