package splice

import (
	"encoding/binary"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// piece is what came after a gap.
type piece struct {
	seq  uint32
	data []byte
}

func (p piece) end() uint32 { return p.seq + uint32(len(p.data)) }

// Kinds of TCP options (RFC 9293, 7323, 2018).
const (
	optEnd = iota
	optNOP
	optMSS
	optScale
	optSACKPermitted
	optSACK
)

// each goes through options, as far as they make sense.
func each(o []byte) iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for len(o) > 0 && o[0] != optEnd {
			if o[0] == optNOP {
				o = o[1:]
				continue
			}
			if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) || !yield(o[0], o[2:o[1]]) {
				return
			}
			o = o[o[1]:]
		}
	}
}

// gapAfter says whether a segment that acknowledges ack tells of data after a gap
// (RFC 2018), and not of some that came twice (RFC 2883).
func gapAfter(ack uint32, options []byte) bool {
	for kind, v := range each(options) {
		if kind == optSACK && len(v) >= 8 {
			return int32(binary.BigEndian.Uint32(v)-ack) > 0
		}
	}
	return false
}

// negotiate reads the options of the pod's SYN.
func (c *conn) negotiate(options []byte) {
	v4 := c.tuple.Src.Is4()
	c.mss = 536 // RFC 9293, 3.7.1
	if !v4 {
		c.mss = 1220
	}
	for kind, v := range each(options) {
		switch {
		case kind == optMSS && len(v) == 2:
			c.mss = int(binary.BigEndian.Uint16(v))
		case kind == optScale && len(v) == 1:
			c.scale, c.shift = true, min(v[0], 14)
		case kind == optSACKPermitted:
			c.sack = true
		}
	}
	c.mss = max(min(c.mss, int(packet.MSS(c.s.cfg.MTU, v4))), 64)
	c.cwnd, c.calm = uint32(max(10*c.mss, maxSuper)), 1<<30
}

// DeliverPacket is Deliver for a whole packet as it came, which may be wrong.
func (s *Splicer) DeliverPacket(p *packet.Packet) bool {
	eth := p.Frame.Eth()
	tcp := eth[p.L4:p.Payload]
	be := binary.BigEndian
	return s.deliver(&Segment{
		Tuple: p.Tuple, Seq: be.Uint32(tcp[4:]), Ack: be.Uint32(tcp[8:]), Flags: p.TCPFlags,
		Window: be.Uint16(tcp[14:]), Options: tcp[tcpLen:], Data: eth[p.Payload:p.End],
	}, func() bool {
		const vouched = packet.NeedsCsum | packet.DataValid
		return p.Frame.Vnet().Flags&vouched != 0 || p.TransportChecksum() == be.Uint16(tcp[16:])
	})
}

// Deliver takes a segment, which it borrows. False: it is for no connection here.
func (s *Splicer) Deliver(seg *Segment) bool {
	return s.deliver(seg, func() bool { return true })
}

func (s *Splicer) deliver(seg *Segment, valid func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conns[seg.Tuple]
	if c == nil {
		return false
	}
	if !valid() {
		return true
	}
	s.tick()
	taken := c.deliver(seg)
	if len(s.ready) > 0 {
		s.Wake()
	}
	s.arm()
	return taken
}

func (c *conn) deliver(seg *Segment) bool {
	const kinds = packet.SYN | packet.RST | packet.ACK
	switch {
	case c.state == dialing:
		if seg.Flags&packet.RST != 0 && seg.Seq == c.rcv {
			c.failed(unix.ECANCELED)
		}
		return true
	case c.state == dead:
		return true
	case seg.Flags&packet.RST != 0:
		c.reset(seg)
		return true
	case seg.Flags&kinds == packet.SYN && c.state == waiting:
		c.s.remove(c) // the port is used again
		return false
	case seg.Flags&packet.SYN != 0:
		c.repair = c.repair || c.state == opening
		c.ackNow = true // RFC 5961, 4
	case seg.Flags&packet.ACK == 0:
		return true
	case c.state == waiting:
		c.ackNow = true
	default:
		c.heard, c.asked = c.s.now, 0
		if c.state == opening && !c.opened(seg) {
			return true
		}
		c.acknowledged(seg)
		c.receive(seg)
		c.settle()
		if c.state == gone || c.state == dead {
			return true
		}
		c.s.schedule(c)
	}
	if c.wants() {
		c.s.push(c)
	}
	return true
}

// opened completes the handshake.
func (c *conn) opened(seg *Segment) bool {
	if seg.Ack != c.nxt {
		return false
	}
	c.state, c.una = open, c.nxt
	c.made()
	if c.retries == 0 {
		c.measure(c.s.now - (c.rtoAt - firstRTO))
	}
	c.rtoAt, c.retries = 0, 0
	return true
}

// reset is a RST of the pod's. One that is not exactly where it should be is
// asked for again (RFC 5961, 3).
func (c *conn) reset(seg *Segment) {
	if seg.Seq != c.rcv {
		if int32(seg.Seq-c.rcv) > 0 && int32(seg.Seq-c.edge) < 0 {
			c.ackNow = true
			c.s.push(c)
		}
		return
	}
	c.abort()
	c.s.remove(c)
}

// receive takes the data and the FIN of a segment.
func (c *conn) receive(seg *Segment) {
	seq, data, fin := seg.Seq, seg.Data, seg.Flags&packet.FIN != 0
	switch ahead := int32(seq - c.rcv); {
	case len(data) == 0 && !fin:
		if ahead != 0 { // a keepalive, or a probe of the window
			c.ackNow = true
		}
		return
	case c.podEnd:
		c.ackNow = true
		return
	case ahead > 0:
		c.ackNow = true
		c.keep(piece{seq, data})
		return
	case ahead < 0:
		old := int(-ahead)
		if old > len(data) || old == len(data) && !fin {
			c.ackNow = true
			return
		}
		data = data[old:]
	}
	if promised := int(max(int32(c.edge-c.rcv), 0)); len(data) > promised {
		data, fin = data[:promised], false
		c.ackNow = true
	}
	c.take(data)
	c.fill()
	if fin && len(c.gaps) == 0 {
		c.rcv++
		c.podEnd = true
	}
	c.unacked += len(data)
	if c.unacked >= ackBytes || !c.patient {
		c.ackNow = true
	} else if c.ackAt == 0 {
		c.ackAt = c.s.now + ackDelay
	}
}

// room is how many bytes may come after rcv; those after gaps are within.
func (c *conn) room() int { return max(windowLimit-len(c.held), 0) }

// take is for bytes in order.
func (c *conn) take(data []byte) {
	c.rcv += uint32(len(data))
	if len(c.held) > 0 || !c.writable {
		c.held = append(c.held, data...)
		return
	}
	c.held = append(c.held, data[c.write(data):]...)
}

// write gives the socket what it takes.
func (c *conn) write(data []byte) (n int) {
	for len(data) > 0 && c.state == open {
		n, err := unix.Write(c.fd, data)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			c.writable = false
			return 0
		case err != nil:
			c.die()
			return len(data)
		}
		// The socket wants for room: epoll will tell when it has some.
		c.writable = n == len(data)
		return n
	}
	return len(data)
}

// drain gives the socket what is held, and tells the pod when there is room again.
func (c *conn) drain() {
	if len(c.held) == 0 || !c.writable {
		return
	}
	held := c.held
	if held = held[c.write(held):]; len(held) == 0 {
		held = nil
	}
	c.held = held
	if grown := int32(c.rcv + uint32(c.room()) - c.edge); grown >= windowLimit/4 {
		c.ackNow = true
	}
}

// keep holds on to what came after a gap.
func (c *conn) keep(p piece) {
	if !c.sack || len(p.data) == 0 || int32(p.end()-c.edge) > 0 || len(c.gaps) == maxSegments {
		return
	}
	at := len(c.gaps)
	for at > 0 && int32(c.gaps[at-1].seq-p.seq) > 0 {
		at--
	}
	if at > 0 && int32(c.gaps[at-1].end()-p.seq) > 0 || at < len(c.gaps) && int32(p.end()-c.gaps[at].seq) > 0 {
		return // overlaps: once is enough
	}
	c.gaps = slices.Insert(c.gaps, at, piece{p.seq, slices.Clone(p.data)})
}

// fill takes what has come into order.
func (c *conn) fill() {
	for len(c.gaps) > 0 && int32(c.gaps[0].seq-c.rcv) <= 0 {
		p := c.gaps[0]
		c.gaps = c.gaps[1:]
		c.ackNow = true
		if int32(p.end()-c.rcv) > 0 {
			c.take(p.data[c.rcv-p.seq:])
		}
	}
	if len(c.gaps) == 0 {
		c.gaps = nil
	}
}
