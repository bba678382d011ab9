package stack

import (
	"slices"

	"podgate/stack/flow"
	"podgate/stack/packet"
)

// How much may wait for its first fragment, and for how long. A fragment for
// which there is no room is an orphan at once.
const (
	earlyExpiry   = 1e9
	maxEarly      = 1 << 20   // bytes, of all ports
	maxEarlyShare = 128 << 10 // bytes, of one
)

// early holds copies of fragments that came before what they need.
type early struct {
	waiting map[datagramKey]*waiting
	perPort map[flow.PortID]int // bytes
	bytes   int
}

type waiting struct {
	frames []packet.Frame
	first  bool // the first fragment is among them, at the front
	total  int  // length of the datagram's data, once the last is among them
	until  int64
}

func newEarly() early {
	return early{waiting: map[datagramKey]*waiting{}, perPort: map[flow.PortID]int{}}
}

// wait says whether p has to wait, and has kept a copy of it then. Otherwise p
// goes on now, and those that waited for it follow.
func (fs *fragments) wait(k datagramKey, p *packet.Packet, now int64) bool {
	if p.Frag.Total != 0 {
		return false
	}
	if p.LaterFragment() {
		if d := fs.datagrams[k]; d != nil && now < d.until {
			return false
		}
	} else if p.Proto != packet.SCTP {
		return false
	}
	e := fs.early.waiting[k]
	if e == nil {
		e = &waiting{until: now + earlyExpiry}
	}
	if !p.Frag.More {
		e.total = int(p.Frag.Offset) + p.End - p.L4
	}
	if !p.LaterFragment() && e.total != 0 {
		p.Frag.Total = uint16(e.total)
		return false
	}
	return fs.early.keep(k, e, p)
}

// keep copies p, if there is room.
func (e *early) keep(k datagramKey, to *waiting, p *packet.Packet) bool {
	n := len(p.Frame)
	if e.bytes+n > maxEarly || e.perPort[k.port]+n > maxEarlyShare {
		return false
	}
	e.bytes += n
	e.perPort[k.port] += n
	e.waiting[k] = to
	f := slices.Clone(p.Frame)
	if p.LaterFragment() {
		to.frames = append(to.frames, f)
	} else {
		to.frames, to.first = slices.Insert(to.frames, 0, f), true
	}
	return true
}

// whole is the length of a datagram of which both the first and the last
// fragment wait, else 0.
func (e *early) whole(k datagramKey) int {
	if to := e.waiting[k]; to != nil && to.first {
		return to.total
	}
	return 0
}

// take ends the waiting of a datagram's fragments, in the order of their coming.
func (e *early) take(k datagramKey) []packet.Frame {
	to := e.waiting[k]
	if to == nil {
		return nil
	}
	delete(e.waiting, k)
	for _, f := range to.frames {
		e.bytes -= len(f)
		e.perPort[k.port] -= len(f)
	}
	if e.perPort[k.port] == 0 {
		delete(e.perPort, k.port)
	}
	return to.frames
}

func (e *early) expire(now int64, orphan func(flow.PortID, packet.Frame)) {
	for k, to := range e.waiting {
		if now >= to.until {
			for _, f := range e.take(k) {
				orphan(k.port, f)
			}
		}
	}
}
