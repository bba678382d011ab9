package stack

import (
	"encoding/binary"
	"unsafe"

	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Theory of operation
//
// A receiver of super-frames acknowledges nearly each of them, so that of the
// frames of a fast stream two in five carry nothing but an acknowledgment, and a
// batch holds several of one conversation, each of which says all that the one
// before it said (acknowledgments are cumulative, RFC 9293, 3.4). So within a
// batch, and nowhere else, such a frame takes the place of the one before it that
// still waits to be written: each that goes less is a read, a write and a wake-up
// less for the sender. RFC 3449, 5.2.1, calls this ACK filtering.
//
// Both must be bare: the ACK flag alone, no payload, no fragment, no mark of
// congestion in the IP header, no option but timestamps in the usual layout, so
// that no SACK, no ECN and nothing unknown is touched. The later one must
// acknowledge more, be of the same sequence number, and have no older timestamp.
// The earlier one must have acknowledged more than what came before it: duplicates
// (RFC 5681, 2), which senders count, and window updates are neither dropped nor
// passed over. Where any other packet of the same leg
// came between, nothing is dropped, so that the order of what remains is kept.

// lastAck is the last bare acknowledgment of a leg.
type lastAck struct {
	leg    *flow.Leg
	ack    bareAck
	batch  uint64 // when it came
	out    *port
	place  int  // in out's queue, if that is this batch
	moved  bool // it acknowledged more than the one before it
	stands bool // nothing else of the leg came since
}

// acks remembers two legs of each class of hashes; one that is pushed out by
// others is unknown.
type acks [64][2]lastAck

// of is where leg is remembered, or may be.
func (a *acks) of(leg *flow.Leg, hash uint64) *lastAck {
	class := &a[hash%uint64(len(a))]
	if class[1].leg == leg || class[0].leg != leg && class[1].batch < class[0].batch {
		return &class[1]
	}
	return &class[0]
}

// thin sees each TCP packet that was put at the end of out's queue.
func (w *worker) thin(out *port, p *packet.Packet, leg *flow.Leg, hash uint64) {
	last := w.acks.of(leg, hash)
	ack, bare := readBareAck(p)
	known := last.leg == leg
	if !bare {
		if known {
			last.stands = false
		}
		return
	}
	end := len(out.out) - 1
	if end < 0 || unsafe.SliceData(out.out[end]) != unsafe.SliceData(p.Frame) {
		*last = lastAck{} // it went another way
		return
	}
	moved := known && last.stands && ack.follows(&last.ack)
	if moved && last.moved && last.batch == w.batches && last.out == out {
		out.out[last.place] = out.out[end]
		out.out = out.out[:end]
		w.reasons[AckSuperseded].add(1)
		end = last.place
	}
	*last = lastAck{leg: leg, ack: ack, batch: w.batches, out: out, place: end, moved: moved, stands: true}
}

// bareAck is what a TCP packet says that says nothing but what has arrived.
type bareAck struct {
	seq, ack, time uint32
	stamped        bool
}

// follows says whether a says all that o said, and acknowledges more.
func (a *bareAck) follows(o *bareAck) bool {
	return int32(a.ack-o.ack) > 0 && a.seq == o.seq && a.stamped == o.stamped && int32(a.time-o.time) >= 0
}

func readBareAck(p *packet.Packet) (a bareAck, ok bool) {
	const plain, withTime = 5 << 4, 8 << 4 // data offset; the other bits are reserved, or ECN's
	if p.TCPFlags != packet.ACK || p.Payload != p.End || p.Fragment() || p.ECN() != 0 {
		return a, false
	}
	be := binary.BigEndian
	h := p.Frame.Eth()[p.L4:p.Payload]
	switch h[12] {
	case plain:
	case withTime:
		if be.Uint32(h[20:]) != 0x0101080a { // two no-operations, timestamps (RFC 7323, appendix A)
			return a, false
		}
		a.stamped, a.time = true, be.Uint32(h[24:])
	default:
		return a, false
	}
	a.seq, a.ack = be.Uint32(h[4:]), be.Uint32(h[8:])
	return a, true
}
