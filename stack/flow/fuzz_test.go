package flow

import (
	"testing"
	"time"

	"podgate/stack/packet"
)

// model is the table as anyone would write it first: a plain slice, searched
// from the front. Only the meaning of TCP flags is shared with the real one.
type model struct {
	flows    []*modelFlow
	max      int
	share    int
	timeouts Timeouts
	serial   int
}

type modelFlow struct {
	Flow
	serial    int // when it entered its class
	pkts, oct [2]uint64
}

func (m *model) find(k Key) (*modelFlow, bool) {
	for _, f := range m.flows {
		if f.Orig.Key == k {
			return f, false
		}
		if f.Reply.Key == k {
			return f, true
		}
	}
	return nil, false
}

func (m *model) expired(f *modelFlow, now int64) bool {
	return now-f.LastSeen >= int64(m.timeouts.of(f.Orig.Proto, f.state))
}

func (m *model) lookup(k Key, now int64) (*modelFlow, bool) {
	f, reply := m.find(k)
	if f != nil && m.expired(f, now) {
		m.remove(f)
		return nil, false
	}
	return f, reply
}

func (m *model) remove(gone *modelFlow) {
	for i, f := range m.flows {
		if f == gone {
			m.flows = append(m.flows[:i], m.flows[i+1:]...)
			return
		}
	}
}

func (m *model) evict(port PortID) bool {
	for c := range kept {
		var oldest *modelFlow
		for _, f := range m.flows {
			if f.state.class() == c && (port == 0 || f.Orig.Port == port) && (oldest == nil || f.serial < oldest.serial) {
				oldest = f
			}
		}
		if oldest != nil {
			m.remove(oldest)
			return true
		}
	}
	return false
}

func (m *model) count(port PortID) (n int) {
	for _, f := range m.flows {
		if f.Orig.Port == port {
			n++
		}
	}
	return n
}

func (m *model) insert(o, r Leg, now int64) Result {
	if o.Key == r.Key {
		return Duplicate
	}
	for _, k := range []Key{o.Key, r.Key} {
		if f, _ := m.lookup(k, now); f != nil {
			return Duplicate
		}
	}
	if m.count(o.Port) >= m.share && !m.evict(o.Port) {
		return PortFull
	}
	if len(m.flows) >= m.max && !m.evict(0) {
		return TableFull
	}
	m.serial++
	m.flows = append(m.flows, &modelFlow{Flow: Flow{Orig: o, Reply: r, LastSeen: now}, serial: m.serial})
	return Inserted
}

func (m *model) hit(f *modelFlow, reply bool, flags uint8, n int, now int64) bool {
	before := f.state
	f.state = f.next(reply, flags)
	if f.state.class() != before.class() {
		m.serial++
		f.serial = m.serial
	}
	if f.state == before && before >= TimeWait && flags&(packet.SYN|packet.ACK) == packet.SYN {
		return false
	}
	f.pkts[leg(reply)]++
	f.oct[leg(reply)] += uint64(n)
	f.LastSeen = now
	return true
}

// FuzzTable drives the table and the model by the same steps: they agree on
// every result, and at the end on everything they hold.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0, 3, 4, 1, 1, 2, 1, 1, 0x82, 2, 1, 0, 3, 60, 0, 4, 0, 0})
	f.Add([]byte("0123456789 some steps that are only here to be changed 0123456789"))
	var many []byte
	for i := range byte(40) {
		many = append(many, 0, i, i/3, 1, i, 0x12, 3, i, 0)
	}
	f.Add(many)
	f.Fuzz(func(t *testing.T, steps []byte) {
		removed := 0
		table := New(Config{MaxFlows: 12, PortShare: 0.5, Seed: 1, Removed: func(*Flow, Cause) { removed++ }})
		m := &model{max: 12, share: 6, timeouts: Timeouts{}.withDefaults()}
		key := func(b byte) Key {
			proto := []packet.Proto{packet.TCP, packet.UDP, packet.ICMP, packet.TCP}[b>>4&3]
			return Key{packet.Tuple{SrcPort: uint16(b & 15), Proto: proto}, PortID(b>>6%3 + 1)}
		}
		now, inserted := int64(0), 0
		for ; len(steps) >= 3; steps = steps[3:] {
			a, b := steps[1], steps[2]
			switch steps[0] % 5 {
			case 0:
				o, r := Leg{Key: key(a)}, Leg{Key: key(b)}
				o.DstPort = 1
				r.Proto = o.Proto
				_, got := table.Insert(&o, &r, now)
				if want := m.insert(o, r, now); got != want {
					t.Fatalf("insert: got %v, want %v", got, want)
				} else if got == Inserted {
					inserted++
				}
			case 1:
				k := key(a)
				k.DstPort = uint16(b >> 7)
				got, l := table.Lookup(&k, now)
				want, reply := m.lookup(k, now)
				if (got == nil) != (want == nil) {
					t.Fatalf("lookup: got %v, want %v", got, want)
				}
				if got == nil {
					continue
				}
				if l.Reply != reply || l.Key != k {
					t.Fatalf("lookup: got the other leg")
				}
				if got, want := table.Hit(got, l, b&0x1f, int(a), now), m.hit(want, reply, b&0x1f, int(a), now); got != want {
					t.Fatalf("hit: got %v, want %v", got, want)
				}
			case 2:
				k := key(a)
				k.DstPort = uint16(b >> 7)
				if got, _ := table.Lookup(&k, now); got != nil {
					table.Remove(got)
				}
				if want, _ := m.lookup(k, now); want != nil {
					m.remove(want)
				}
			case 3:
				now += int64(a) * int64(time.Second)
			case 4:
				table.Sweep(now, 1<<20, nil)
				for _, f := range append([]*modelFlow(nil), m.flows...) {
					if m.expired(f, now) {
						m.remove(f)
					}
				}
			}
			if table.Len() != len(m.flows) {
				t.Fatalf("got %d flows, want %d", table.Len(), len(m.flows))
			}
		}
		for p := range PortID(4) {
			if got, want := table.PortLen(p), m.count(p); got != want {
				t.Errorf("port %d: got %d flows, want %d", p, got, want)
			}
		}
		n := 0
		for got := range table.All() {
			n++
			want, reply := m.find(got.Orig.Key)
			if want == nil || reply {
				t.Fatalf("holds %+v", got)
			}
			if got.Reply.Key != want.Reply.Key || got.State() != want.state || got.LastSeen != want.LastSeen ||
				[2]uint64{got.Orig.Packets, got.Reply.Packets} != want.pkts ||
				[2]uint64{got.Orig.Bytes, got.Reply.Bytes} != want.oct {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		if n != len(m.flows) || inserted-removed != n {
			t.Errorf("iterates over %d of %d flows; %d inserted, %d removed", n, len(m.flows), inserted, removed)
		}
	})
}
