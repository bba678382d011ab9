package flow

import (
	"encoding/binary"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"podgate/stack/packet"
)

// legs are those of the n-th flow of a protocol from port, with backend
// addresses of their own, so that both keys differ from every other's.
func legs(proto packet.Proto, port PortID, n int) (orig, reply Leg) {
	t := packet.Tuple{
		Src:     packet.Addr{10: 0xff, 11: 0xff, 12: 10, 13: byte(port)},
		Dst:     packet.Addr{10: 0xff, 11: 0xff, 12: 10, 13: 96, 15: 10},
		SrcPort: uint16(n) | 1, DstPort: 80, Proto: proto,
	}
	binary.BigEndian.PutUint16(t.Src[14:], uint16(n>>16|n&1<<15))
	to := t
	to.Dst = packet.Addr{10: 0xff, 11: 0xff, 12: 10, 13: 244, 15: 9}
	to.DstPort = 8080
	orig = Leg{Key: Key{t, port}, Rewrite: packet.NewRewrite(t, to), Out: 2}
	reply = Leg{Key: Key{to.Reverse(), 2}, Rewrite: packet.NewRewrite(to.Reverse(), t.Reverse()), Out: port}
	return orig, reply
}

func mustInsert(t testing.TB, table *Table, proto packet.Proto, n int, now int64) *Flow {
	t.Helper()
	return insertAt(t, table, proto, 1, n, now)
}

func insertAt(t testing.TB, table *Table, proto packet.Proto, port PortID, n int, now int64) *Flow {
	t.Helper()
	o, r := legs(proto, port, n)
	f, res := table.Insert(&o, &r, now)
	if res != Inserted {
		t.Fatalf("flow %d: %v", n, res)
	}
	return f
}

// establish takes f past what may be evicted.
func establish(table *Table, f *Flow) {
	if f.Orig.Proto == packet.TCP {
		table.Hit(f, &f.Orig, packet.ACK, 40, f.LastSeen)
	} else {
		table.Hit(f, &f.Orig, 0, 40, f.LastSeen)
	}
	table.Hit(f, &f.Reply, packet.ACK, 40, f.LastSeen)
}

func TestLookupFindsBothLegs(t *testing.T) {
	table := New(Config{})
	f := mustInsert(t, table, packet.TCP, 1, 0)
	o, r := legs(packet.TCP, 1, 1)
	for _, want := range []*Leg{&f.Orig, &f.Reply} {
		k := want.Key
		if got, l := table.Lookup(&k, 0); got != f || l != want {
			t.Errorf("got %p %p, want %p %p", got, l, f, want)
		}
	}
	if f.Orig.Reply || !f.Reply.Reply {
		t.Error("legs do not know which they are")
	}
	if f.Orig.Rewrite != o.Rewrite || f.Reply.Rewrite != r.Rewrite || f.Orig.Out != 2 || f.Reply.Out != 1 {
		t.Error("legs are not the ones inserted")
	}
	// The same tuple at another port is another's.
	k := o.Key
	k.Port = 7
	if got, _ := table.Lookup(&k, 0); got != nil {
		t.Error("found at a port where it does not arrive")
	}
}

func TestInsertBothLegsOrNeither(t *testing.T) {
	table := New(Config{})
	mustInsert(t, table, packet.TCP, 1, 0)
	o, r := legs(packet.TCP, 1, 1)
	o2, r2 := legs(packet.TCP, 1, 3)
	for name, c := range map[string][2]*Leg{
		"both": {&o, &r}, "orig": {&o, &r2}, "reply": {&o2, &r}, "crossed": {&r, &o2}, "itself": {&o2, &o2},
	} {
		if _, got := table.Insert(c[0], c[1], 0); got != Duplicate {
			t.Errorf("%s: got %v, want %v", name, got, Duplicate)
		}
	}
	for _, l := range []*Leg{&o2, &r2} {
		if f, _ := table.Lookup(&l.Key, 0); f != nil {
			t.Error("half a flow was inserted")
		}
	}
	if table.Len() != 1 || table.PortLen(1) != 1 {
		t.Errorf("got %d flows", table.Len())
	}
}

func TestInsertTakesThePlaceOfAnExpiredFlow(t *testing.T) {
	var causes []Cause
	table := New(Config{Removed: func(_ *Flow, c Cause) { causes = append(causes, c) }})
	mustInsert(t, table, packet.UDP, 1, 0)
	mustInsert(t, table, packet.UDP, 1, int64(time.Minute))
	if !slices.Equal(causes, []Cause{TimedOut}) || table.Len() != 1 {
		t.Errorf("got %v, %d flows", causes, table.Len())
	}
}

func TestHitCounts(t *testing.T) {
	table := New(Config{})
	f := mustInsert(t, table, packet.UDP, 1, 5)
	table.Hit(f, &f.Orig, 0, 100, 6)
	table.Hit(f, &f.Orig, 0, 50, 7)
	table.Hit(f, &f.Reply, 0, 1000, 8)
	if f.Orig.Packets != 2 || f.Orig.Bytes != 150 || f.Reply.Packets != 1 || f.Reply.Bytes != 1000 {
		t.Errorf("got %+v, %+v", f.Orig, f.Reply)
	}
	if f.LastSeen != 8 || f.Created != 5 {
		t.Errorf("last seen %d, created %d", f.LastSeen, f.Created)
	}
}

func TestDepsGoWithTheFlow(t *testing.T) {
	var last any
	table := New(Config{})
	table.cfg.Removed = func(f *Flow, _ Cause) { last = table.Deps(f) }
	f := mustInsert(t, table, packet.UDP, 1, 0)
	d := &struct{ x int }{1}
	table.SetDeps(f, d)
	if table.Deps(f) != any(d) {
		t.Error("dependencies are not remembered")
	}
	table.Remove(f)
	if last != any(d) {
		t.Error("Removed does not see the dependencies")
	}
	if f = mustInsert(t, table, packet.UDP, 3, 0); table.Deps(f) != nil {
		t.Error("a new flow has another's dependencies")
	}
}

// Full table: a result, after the embryonic went first, oldest first, and then
// those that are over.
func TestFullTableEvictsEmbryonicFirst(t *testing.T) {
	var evicted []uint16
	table := New(Config{MaxFlows: 4, PortShare: 1, Removed: func(f *Flow, c Cause) {
		if c == Evicted {
			evicted = append(evicted, f.Orig.SrcPort)
		}
	}})
	over := mustInsert(t, table, packet.TCP, 1, 0)
	table.Hit(over, &over.Orig, packet.RST, 40, 0)
	establish(table, mustInsert(t, table, packet.TCP, 3, 0))
	mustInsert(t, table, packet.UDP, 5, 0)
	mustInsert(t, table, packet.UDP, 7, 0)
	for n := 9; n < 15; n += 2 {
		establish(table, mustInsert(t, table, packet.TCP, n, 0))
	}
	if want := []uint16{5, 7, 1}; !slices.Equal(evicted, want) {
		t.Errorf("evicted %v, want %v", evicted, want)
	}
	o, r := legs(packet.TCP, 1, 99)
	if f, got := table.Insert(&o, &r, 0); got != TableFull || f != nil {
		t.Errorf("got %v, want %v", got, TableFull)
	}
	if table.Len() != 4 {
		t.Errorf("got %d flows", table.Len())
	}
}

// One pod cannot take more than its share; at its limit it loses its own
// embryonic flows, and nobody else's.
func TestPortShare(t *testing.T) {
	var evicted []PortID
	table := New(Config{MaxFlows: 8, PortShare: 0.25, Removed: func(f *Flow, _ Cause) { evicted = append(evicted, f.Orig.Port) }})
	insertAt(t, table, packet.UDP, 5, 1, 0)
	insertAt(t, table, packet.UDP, 6, 1, 0)
	insertAt(t, table, packet.UDP, 6, 3, 0)
	establish(table, insertAt(t, table, packet.UDP, 6, 5, 0))
	establish(table, insertAt(t, table, packet.UDP, 6, 7, 0))
	if want := []PortID{6, 6}; !slices.Equal(evicted, want) {
		t.Errorf("evicted flows of ports %v, want %v", evicted, want)
	}
	o, r := legs(packet.UDP, 6, 9)
	if _, got := table.Insert(&o, &r, 0); got != PortFull {
		t.Errorf("got %v, want %v", got, PortFull)
	}
	if table.PortLen(6) != 2 || table.PortLen(5) != 1 || table.PortLen(400) != 0 {
		t.Errorf("ports have %d, %d", table.PortLen(6), table.PortLen(5))
	}
	insertAt(t, table, packet.UDP, 5, 3, 0) // others go on
}

func TestSweepGoesRoundAndRound(t *testing.T) {
	table := New(Config{})
	const n = 1000
	for i := range n {
		mustInsert(t, table, packet.UDP, i*2, int64(i%2)*int64(time.Hour))
	}
	visited, timedOut := 0, 0
	for range n / 10 * 2 {
		timedOut += table.Sweep(int64(time.Hour), 10, func(*Flow) { visited++ })
	}
	if timedOut != n/2 || table.Len() != n/2 {
		t.Errorf("%d timed out, %d are left", timedOut, table.Len())
	}
	if visited < n/2 || visited > n {
		t.Errorf("visited %d survivors in two rounds", visited)
	}
	for range n {
		table.Sweep(int64(time.Hour), 10, table.Remove)
	}
	if table.Len() != 0 {
		t.Errorf("%d are left", table.Len())
	}
}

func TestIterationAllowsRemovalAndInsertion(t *testing.T) {
	table := New(Config{})
	const n = 600
	var flows []*Flow
	for i := range n {
		flows = append(flows, mustInsert(t, table, packet.UDP, i*2, 0))
	}
	seen := map[uint16]int{}
	for f := range table.All() {
		seen[f.Orig.SrcPort]++
		// Remove itself and its partner, seen or not.
		i := int(f.Orig.SrcPort) / 2
		table.Remove(f)
		if p := flows[n-1-i]; p != f && p.id != 0 && int(p.Orig.SrcPort)/2 == n-1-i {
			table.Remove(p)
		}
		if i%7 == 0 {
			mustInsert(t, table, packet.UDP, 2*(n+i), 0)
		}
	}
	for p, c := range seen {
		if c != 1 {
			t.Errorf("flow %d was seen %d times", p, c)
		}
	}
	for range table.All() {
		break // leaving early is fine
	}
}

func TestRemovingTwicePanics(t *testing.T) {
	table := New(Config{})
	f := mustInsert(t, table, packet.UDP, 1, 0)
	table.Remove(f)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	table.Remove(f)
}

// After a flood the memory goes back.
func TestMemoryIsGivenBack(t *testing.T) {
	table := New(Config{MaxFlows: 1 << 16, PortShare: 1})
	for i := range 40000 {
		mustInsert(t, table, packet.UDP, i*2, 0)
	}
	keep := mustInsert(t, table, packet.UDP, 1<<17, int64(time.Hour))
	for range 2 {
		table.Sweep(int64(time.Hour), 1<<16, nil)
	}
	touched, slots := 0, 0
	for _, r := range table.store.regions {
		if r.touched {
			touched++
		}
	}
	for i := range table.index.segments {
		slots += len(table.index.segments[i].slots)
	}
	if touched != 1 || slots > 2*numSegments*minSlots {
		t.Errorf("one flow is left in %d regions and %d slots", touched, slots)
	}
	if f, _ := table.Lookup(&keep.Orig.Key, int64(time.Hour)); f != keep {
		t.Error("it is not found")
	}
}

// A flow costs at most 400 bytes, all told, and the collector scans little of
// it.
func TestFlowsAreSmall(t *testing.T) {
	if n := unsafe.Sizeof(Flow{}); n > 320 || n%64 != 0 {
		t.Errorf("a Flow takes %d bytes", n)
	}
	if n := regionLen * int(unsafe.Sizeof(Flow{})); n%hugePage != 0 {
		t.Errorf("a region of %d bytes is not made of huge pages", n)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 100_000
	table := New(Config{PortShare: 1})
	for i := range n {
		f := mustInsert(t, table, packet.UDP, i*2, 0)
		table.SetDeps(f, table)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc)/n + float64(unsafe.Sizeof(Flow{}))
	if per > 400 {
		t.Errorf("a flow takes %.0f bytes", per)
	}
	t.Logf("a flow takes %.0f bytes", per)
	runtime.KeepAlive(table)
}

func TestHitDoesNotAllocate(t *testing.T) {
	table := New(Config{})
	f := mustInsert(t, table, packet.TCP, 1, 0)
	k := f.Orig.Key
	miss := k
	miss.Port = 99
	if n := testing.AllocsPerRun(100, func() {
		f, l := table.Lookup(&k, 1)
		table.Hit(f, l, packet.ACK, 40, 1)
		table.Lookup(&miss, 1)
		table.Sweep(1, 10, nil)
	}); n != 0 {
		t.Errorf("allocates %v times", n)
	}
	o, r := legs(packet.UDP, 1, 3)
	if n := testing.AllocsPerRun(100, func() {
		f, _ := table.Insert(&o, &r, 0)
		table.Remove(f)
	}); n != 0 {
		t.Errorf("insert and remove allocate %v times", n)
	}
}

// Wherever Warm has found a leg, or another one was since, LookupAt finds what
// Lookup finds.
func TestLookupAtAnyPlace(t *testing.T) {
	const n = 200
	table := New(Config{MaxFlows: n})
	var keys []Key
	for i := range n / 2 {
		f := mustInsert(t, table, packet.UDP, 2*i, 0)
		keys = append(keys, f.Orig.Key, f.Reply.Key)
		if i%3 == 0 {
			table.Remove(f)
		}
	}
	keys = append(keys, Key{})
	hashes := make([]uint64, MaxWarm)
	refs := make([]Ref, MaxWarm)
	for i, k := range keys {
		want, wantLeg := table.Lookup(&k, 1)
		h := table.Hash(&k)
		for at := range Ref(n) {
			if f, l := table.LookupAt(at, &k, h, 1); f != want || l != wantLeg {
				t.Fatalf("key %d at %d: another leg than Lookup's", i, at)
			}
		}
		hashes[i%MaxWarm] = h
		table.Warm(hashes[:i%MaxWarm+1], refs)
		if f, l := table.at(uint32(refs[i%MaxWarm])); want != nil && (f != want || l != wantLeg) {
			t.Errorf("Warm does not find key %d", i)
		}
	}
}
