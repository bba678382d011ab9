package stack

import (
	"testing"

	"podgate/stack/flow"
	"podgate/stack/packet"
)

// piece is a fragment as Decode leaves it.
func piece(id uint32, from, to int, more bool) *packet.Packet {
	p := &packet.Packet{EtherType: packet.EtherIPv4, L3: 14, L4: 34, End: 34 + to - from}
	p.Proto = packet.UDP
	p.Frag = packet.Frag{ID: id, Offset: uint16(from), More: more}
	if from == 0 {
		p.SrcPort, p.DstPort = 1, 2
	}
	return p
}

func TestFragmentsInAnyOrderAfterTheFirst(t *testing.T) {
	fs := newFragments()
	for _, s := range [][2]int{{0, 8}, {24, 32}, {8, 16}, {16, 24}, {40, 44}, {32, 40}} {
		p := piece(1, s[0], s[1], s[1] != 44)
		if r := fs.follow(1, p, 0); r != None || p.SrcPort != 1 || p.DstPort != 2 {
			t.Fatalf("fragment %v: got %s with ports %d, %d", s, r, p.SrcPort, p.DstPort)
		}
	}
	if n := len(fs.datagrams) + len(fs.perPort); n != 0 {
		t.Errorf("%d entries are left of a whole datagram", n)
	}
}

func TestFragmentsThatOverlapAreDropped(t *testing.T) {
	for name, s := range map[string][2]int{
		"the same": {8, 16}, "into the front": {16, 32}, "from the middle": {12, 20},
		"around": {16, 48}, "into the first": {0, 8},
	} {
		fs := newFragments()
		fs.follow(1, piece(1, 0, 16, true), 0)
		fs.follow(1, piece(1, 24, 40, true), 0)
		if s[0] == 0 {
			// A first fragment is a new datagram, never an overlap.
			if r := fs.follow(1, piece(1, s[0], s[1], true), 0); r != None {
				t.Errorf("%s: got %s", name, r)
			}
			continue
		}
		if r := fs.follow(1, piece(1, s[0], s[1], true), 0); r != FragmentOverlap {
			t.Errorf("%s: got %s, want %s", name, r, FragmentOverlap)
		}
	}
}

func TestFragmentsAreBounded(t *testing.T) {
	fs := newFragments()
	refused := 0
	for port := range flow.PortID(20) {
		for id := range uint32(2 * maxPerPort) {
			if fs.follow(port, piece(id, 0, 8, true), 0) == FragmentsFull {
				refused++
			}
		}
	}
	if got := len(fs.datagrams); got != maxDatagrams {
		t.Errorf("datagrams: got %d, want %d", got, maxDatagrams)
	}
	if want := 20*2*maxPerPort - maxDatagrams; refused != want {
		t.Errorf("refused: got %d, want %d", refused, want)
	}
	fs.expire(fragmentExpiry, nil)
	if n := len(fs.datagrams) + len(fs.perPort); n != 0 {
		t.Errorf("%d entries are left after their time", n)
	}
	fs = newFragments()
	fs.follow(1, piece(1, 0, 8, true), 0)
	holes := 0
	for i := 2; i < 400; i += 2 {
		if fs.follow(1, piece(1, 8*i, 8*i+8, true), 0) == None {
			holes++
		}
	}
	if holes != maxSpans-1 {
		t.Errorf("holes in one datagram: got %d, want %d", holes, maxSpans-1)
	}
}

func TestBucketLimitsToItsRate(t *testing.T) {
	var b bucket
	count := func(now int64) (n int) {
		for b.take(now, 100) {
			n++
		}
		return n
	}
	if got := count(1e12); got != 100 {
		t.Errorf("burst: got %d, want 100", got)
	}
	if got := count(1e12 + 5e8); got != 50 {
		t.Errorf("half a second later: got %d, want 50", got)
	}
	if got := count(1e12 + 60e9); got != 100 {
		t.Errorf("after a minute: got %d, want 100", got)
	}
}
