package flow

// The index has numSegments hash tables that grow and shrink each for itself,
// between minSlots and as much as it takes, and are at most two thirds full.
const (
	numSegments  = 256
	segmentShift = 64 - 8
	minSlots     = 16
)

type index struct {
	segments [numSegments]segment
}

// segment is an open-addressing table with linear probing. It has no
// tombstones: a removal moves up what had been pushed past it.
type segment struct {
	slots []slot // a power of two
	live  int
}

// slot refers to a leg: id<<1 | leg, or 0 for none. tag is the low half of the
// leg's hash; its low bits are the slot that it would like to have.
type slot struct {
	tag, ref uint32
}

func (x *index) init() {
	for i := range x.segments {
		x.segments[i].slots = make([]slot, minSlots)
	}
}

// add enters ref, which is not there yet.
func (x *index) add(hash uint64, ref uint32) {
	s := &x.segments[hash>>segmentShift]
	if s.live++; s.live*3 > len(s.slots)*2 {
		s.resize(len(s.slots) * 2)
	}
	s.place(slot{uint32(hash), ref})
}

func (s *segment) place(e slot) {
	mask := uint32(len(s.slots) - 1)
	i := e.tag & mask
	for s.slots[i].ref != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = e
}

func (s *segment) resize(n int) {
	old := s.slots
	s.slots = make([]slot, n)
	for _, e := range old {
		if e.ref != 0 {
			s.place(e)
		}
	}
}

// remove takes out ref, which is there.
func (x *index) remove(hash uint64, ref uint32) {
	s := &x.segments[hash>>segmentShift]
	mask := uint32(len(s.slots) - 1)
	i := uint32(hash) & mask
	for s.slots[i].ref != ref {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; s.slots[j].ref != 0; j = (j + 1) & mask {
		// The entry at j may move up to the hole at i unless the slot that it
		// would like to have lies after the hole.
		if home := s.slots[j].tag & mask; (j-home)&mask >= (j-i)&mask {
			s.slots[i] = s.slots[j]
			i = j
		}
	}
	s.slots[i] = slot{}
	if s.live--; len(s.slots) > minSlots && s.live*8 < len(s.slots) {
		s.resize(len(s.slots) / 2)
	}
}
