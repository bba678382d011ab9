package flow

import (
	"math/rand/v2"
	"runtime"

	"podgate/stack/packet"
)

// Theory of operation. Flows live in one array, never move and have no pointers;
// a flow's id is its place. An index finds legs: an open-addressing hash table
// whose slots hold 32 bits of hash and a reference (id and leg), so that probing
// and growing read the index alone, and a hit costs one line of the index and
// the three lines of leg and flow. The index is cut into numSegments by the
// hash's high bits and each grows on its own: no packet waits for a million
// entries to be moved.
//
// With many flows a hit is nothing but the memory it waits for: hence the
// array outside of the heap, in huge pages (memory.go), and Warm.
//
// What may be evicted is in lists, oldest first, for the table and for each
// port: an insertion into a full table takes the head of one.

// DefaultMaxFlows is as many as the kernel's conntrack holds on a machine with
// more than 4 GiB.
const DefaultMaxFlows = 1 << 18

// MaxWarm is the longest batch that Warm takes.
const MaxWarm = 64

// defaultPortShare lets one busy pod use half of the table.
const defaultPortShare = 0.5

// Config says how a Table is to behave. The zero value works.
type Config struct {
	// MaxFlows is how many flows the table holds, at most 1<<24; 0 is
	// DefaultMaxFlows.
	MaxFlows int
	// PortShare is the part of MaxFlows that flows with the same Orig.Port may
	// take, over 0 up to 1; 0 is one half.
	PortShare float64
	Timeouts  Timeouts
	// Seed makes hashes differ; 0 is a random one.
	Seed uint64
	// Removed, if not nil, is told of every flow before it is forgotten: the
	// one place to release what was claimed for it. It must not call the
	// table but for Deps and SetDeps.
	Removed func(*Flow, Cause)
	// Finished, if not nil, is told of a conversation that has ended, while its
	// flow is remembered on. It must not call the table but for Deps and SetDeps.
	Finished func(*Flow)
}

func (c Config) withDefaults() Config {
	if c.MaxFlows <= 0 {
		c.MaxFlows = DefaultMaxFlows
	}
	c.MaxFlows = min(c.MaxFlows, 1<<24)
	if c.PortShare <= 0 || c.PortShare > 1 {
		c.PortShare = defaultPortShare
	}
	c.Timeouts = c.Timeouts.withDefaults()
	for c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.Removed == nil {
		c.Removed = func(*Flow, Cause) {}
	}
	if c.Finished == nil {
		c.Finished = func(*Flow) {}
	}
	return c
}

// Table finds flows by either of their keys.
type Table struct {
	cfg       Config
	portLimit int
	index     index
	store     store
	evictable [numClasses]list
	ports     []port // by PortID, of Orig.Port
	cursor    Cursor // of Sweep
	warmed    int64  // makes the reads of Warm be done
}

// port is what one attachment has in the table.
type port struct {
	flows     int
	evictable [numClasses]list
}

// Result is what became of an insertion.
type Result uint8

const (
	// Inserted: both legs are there.
	Inserted Result = iota
	// Duplicate: a flow with one of the keys exists.
	Duplicate
	// TableFull: there is no room and nothing that may be evicted.
	TableFull
	// PortFull: the port has its share, and nothing that may be evicted.
	PortFull
)

func (r Result) String() string {
	return [...]string{"inserted", "duplicate", "table-full", "port-full"}[r]
}

// Cause is why a flow was forgotten.
type Cause uint8

const (
	// Removed by its owner.
	Removed Cause = iota
	// TimedOut: no packet came for as long as its state allows.
	TimedOut
	// Evicted in favour of a new flow.
	Evicted
)

func (c Cause) String() string {
	return [...]string{"removed", "timed-out", "evicted"}[c]
}

// New makes an empty table.
func New(cfg Config) *Table {
	cfg = cfg.withDefaults()
	t := &Table{
		cfg:       cfg,
		portLimit: max(1, int(float64(cfg.MaxFlows)*cfg.PortShare)),
	}
	t.index.init()
	t.store.init(cfg.MaxFlows)
	runtime.AddCleanup(t, release, t.store.memory)
	return t
}

// Len is how many flows there are.
func (t *Table) Len() int { return t.store.live }

// MaxFlows is how many there may be.
func (t *Table) MaxFlows() int { return t.cfg.MaxFlows }

// PortLen is how many flows have Orig.Port id.
func (t *Table) PortLen(id PortID) int {
	if int(id) >= len(t.ports) {
		return 0
	}
	return t.ports[id].flows
}

// Lookup finds the leg with key k and its flow, or nil. A flow whose time is up
// is not found: it is removed on the way.
func (t *Table) Lookup(k *Key, now int64) (*Flow, *Leg) {
	return t.LookupAt(0, k, t.Hash(k), now)
}

// Hash is what LookupAt and Warm know k by.
func (t *Table) Hash(k *Key) uint64 { return k.Hash(t.cfg.Seed) }

// Ref is where Warm found a leg, and none if it found none.
type Ref uint32

// LookupAt is Lookup for a key whose Hash is known, and which Warm may have found.
func (t *Table) LookupAt(at Ref, k *Key, hash uint64, now int64) (*Flow, *Leg) {
	// Whatever happened since, a leg with this key is the leg.
	f, l := t.at(uint32(at))
	if f.id == 0 || !l.Key.is(k) {
		f, l = t.find(k, hash)
	}
	if f != nil && f.Expired(now) {
		t.remove(f, TimedOut)
		return nil, nil
	}
	return f, l
}

// Warm says where LookupAt will probably find the keys of these hashes, of a batch
// of at most MaxWarm, and reads what it will read: the index for all of them, then
// the flows of all. Within each of the two nothing waits for anything else, so that
// the processor has the batch's cache misses under way together, where one lookup
// after the other would wait for each.
func (t *Table) Warm(hashes []uint64, refs []Ref) {
	hashes = hashes[:min(len(hashes), MaxWarm)]
	refs = refs[:len(hashes)]
	read := int64(0)
	for _, h := range hashes {
		s := &t.index.segments[h>>segmentShift]
		read += int64(s.slots[uint32(h)&uint32(len(s.slots)-1)].ref)
	}
	// With those lines here it is cheap to look for the leg: a quarter of them
	// were pushed on from the slot that they would like to have.
	for i, h := range hashes {
		s := &t.index.segments[h>>segmentShift]
		mask := uint32(len(s.slots) - 1)
		at := uint32(h) & mask
		for s.slots[at].ref != 0 && s.slots[at].tag != uint32(h) {
			at = (at + 1) & mask
		}
		refs[i] = Ref(s.slots[at].ref)
	}
	for _, ref := range refs {
		// Id 0 is nobody's place, and may be read.
		f, l := t.at(uint32(ref))
		read += int64(l.Port) + int64(l.Bytes) + f.LastSeen
	}
	t.warmed = read
}

// at is the leg that a slot refers to.
func (t *Table) at(ref uint32) (*Flow, *Leg) {
	f := t.store.at(ref >> 1)
	if ref&1 != 0 {
		return f, &f.Reply
	}
	return f, &f.Orig
}

// find is Lookup at any time.
func (t *Table) find(k *Key, hash uint64) (*Flow, *Leg) {
	s := &t.index.segments[hash>>segmentShift]
	mask := uint32(len(s.slots) - 1)
	for i := uint32(hash) & mask; ; i = (i + 1) & mask {
		e := s.slots[i]
		if e.ref == 0 {
			return nil, nil
		}
		if e.tag != uint32(hash) {
			continue
		}
		if f, l := t.at(e.ref); l.Key.is(k) {
			return f, l
		}
	}
}

// Hit takes note of a packet of n IP bytes on leg l of f: its counters, time and
// state; flags are its TCP flags, 0 of other protocols. The packet that made the
// flow is told by Hit too. It returns false, and has done nothing, if f is over
// and the packet opens a new conversation under the same key: the owner removes
// f and decides anew.
func (t *Table) Hit(f *Flow, l *Leg, flags uint8, n int, now int64) bool {
	if s := f.next(l.Reply, flags); s != f.state {
		t.setState(f, s)
	} else if s >= TimeWait && flags&(packet.SYN|packet.ACK) == packet.SYN {
		return false
	}
	l.Packets++
	l.Bytes += uint64(n)
	f.LastSeen = now
	return true
}

// Insert makes a flow of copies of both legs, or of neither. Their Reply fields
// and counters are set here; Hit is still to be told of the first packet. A flow
// that goes where it came from (orig.Key == reply.Key) is a Duplicate of itself.
func (t *Table) Insert(orig, reply *Leg, now int64) (*Flow, Result) {
	ho, hr := orig.Key.Hash(t.cfg.Seed), reply.Key.Hash(t.cfg.Seed)
	if orig.Key == reply.Key || t.taken(&orig.Key, ho, now) || t.taken(&reply.Key, hr, now) {
		return nil, Duplicate
	}
	p := t.port(orig.Port)
	if t.portLimit < t.cfg.MaxFlows && p.flows >= t.portLimit && !t.evict(&p.evictable) {
		return nil, PortFull
	}
	if t.store.live >= t.cfg.MaxFlows && !t.evict(&t.evictable) {
		return nil, TableFull
	}
	f := t.store.take()
	f.Orig, f.Reply = *orig, *reply
	f.Orig.start(ho, false)
	f.Reply.start(hr, true)
	f.LastSeen, f.Created = now, now
	f.class = kept
	t.setState(f, Fresh)
	p.flows++
	t.index.add(ho, f.id<<1)
	t.index.add(hr, f.id<<1|1)
	return f, Inserted
}

func (l *Leg) start(hash uint64, reply bool) {
	l.hash, l.Reply, l.Packets, l.Bytes = hash, reply, 0, 0
}

// taken says whether a live flow has key k; one whose time is up makes room.
func (t *Table) taken(k *Key, hash uint64, now int64) bool {
	f, _ := t.find(k, hash)
	if f != nil && f.Expired(now) {
		t.remove(f, TimedOut)
		f = nil
	}
	return f != nil
}

// Remove forgets f, and tells Config.Removed.
func (t *Table) Remove(f *Flow) { t.remove(f, Removed) }

func (t *Table) remove(f *Flow, why Cause) {
	if f.id == 0 {
		panic("flow: removed twice")
	}
	t.cfg.Removed(f, why)
	t.unlist(f)
	t.ports[f.Orig.Port].flows--
	t.index.remove(f.Orig.hash, f.id<<1)
	t.index.remove(f.Reply.hash, f.id<<1|1)
	t.store.give(f)
}

// setState moves f to s: its timeout, and what list it is in.
func (t *Table) setState(f *Flow, s State) {
	f.state = s
	f.timeout = int64(t.cfg.Timeouts.of(f.Orig.Proto, s))
	if c := s.class(); c != f.class {
		t.unlist(f)
		f.class = c
		t.enlist(f)
		if c == finished {
			t.cfg.Finished(f)
		}
	}
}

// port is the account of id.
func (t *Table) port(id PortID) *port {
	for int(id) >= len(t.ports) {
		t.ports = append(t.ports, port{})
	}
	return &t.ports[id]
}
