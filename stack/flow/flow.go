// Package flow is the memory of conversations: keys, legs, flows and the table
// that finds them. It has no goroutines and no locks: a Table and everything in
// it belongs to the one worker that calls it, which also brings the time, as
// nanoseconds of a clock that never goes back.
package flow

import "podgate/stack/packet"

// Leg is one direction of a flow: how its packets are recognised, what is done
// to them and where they leave. But for its counters it is immutable: a change
// removes the flow and inserts another.
type Leg struct {
	Key
	Rewrite packet.Rewrite
	// Out is the port that the packets leave by.
	Out PortID
	// Reply says that this is the Reply leg of its flow.
	Reply bool
	hash  uint64
	// Packets counts frames, a super-frame once; Bytes counts IP bytes.
	Packets, Bytes uint64
}

// Flow is a conversation: both its legs, and how far it has come. It lives in
// its Table's memory: a *Flow or *Leg is good until the flow is removed, which
// Insert (by eviction), Lookup (by expiry) and Sweep may do too, and is then
// used again for another; after its Table is gone it must not be touched. It has
// no pointers and the garbage collector does not know of it; what the owner
// wants to remember besides is in Table.Deps.
type Flow struct {
	Orig, Reply Leg
	// LastSeen is when the last packet of either leg passed, Created when the
	// flow was inserted, in ns of the owner's clock.
	LastSeen, Created int64
	// Gen is the generation of the configuration that endorsed this flow
	// last; the owner's to set and compare.
	Gen uint64

	timeout int64 // ns after LastSeen
	id      uint32
	// Places in the lists of what can be evicted, 0 being none.
	all, port links
	state     State
	class     class
	fins      uint8   // bit 0: Orig sent a FIN; bit 1: Reply did
	lastFin   uint8   // the leg whose FIN is yet to be acknowledged
	_         [8]byte // legs start at a cache line
}

type links struct{ prev, next uint32 }

// State is how far the conversation has come.
func (f *Flow) State() State { return f.state }

// Expires is when the flow is forgotten if no packet comes, in ns.
func (f *Flow) Expires() int64 { return f.LastSeen + f.timeout }

// Expired says whether the flow is over at the time now.
func (f *Flow) Expired(now int64) bool { return now-f.LastSeen >= f.timeout }

// Established says whether both sides have spoken and neither is done.
func (f *Flow) Established() bool { return f.state == Established || f.state == Replied }
