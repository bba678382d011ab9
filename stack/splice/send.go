package splice

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// maxSuper is the most data of one segment in bytes: an IPv6 packet of 64 KiB.
const maxSuper = 65535 - 40 - 20

// burst is how many frames of one connection go out before it is another's turn.
const burst = 8

var chunks = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// segment is what has been sent and not been acknowledged: data or the FIN.
type segment struct {
	seq   uint32
	data  []byte
	chunk *[1 << 16]byte // that data lies in
	fin   bool
	at    int64 // when it was sent
	again bool  // more than once, or another was while it was on its way
}

func (g *segment) end() uint32 {
	if g.fin {
		return g.seq + 1
	}
	return g.seq + uint32(len(g.data))
}

// release forgets what is on its way to the pod.
func (c *conn) release() {
	for i := range c.segs {
		c.segs[i].free()
	}
	c.segs, c.next, c.held, c.gaps = nil, 0, nil, nil
}

func (g *segment) free() {
	if g.chunk != nil {
		chunks.Put(g.chunk)
	}
}

// wants says whether c may have something to emit.
func (c *conn) wants() bool {
	return c.ackNow || c.repair || c.probe || c.next < len(c.segs) || c.readable && !c.end || c.state == dead
}

// emit writes what c has to say into bufs, which is not empty.
func (c *conn) emit(bufs []packet.Frame) (n int) {
	say := func(g *segment, flags uint8) {
		bufs[n] = c.frame(bufs[n], g.seq, flags, g.data)
		n++
	}
	switch c.state {
	case dead:
		say(&segment{seq: c.nxt}, packet.RST|packet.ACK)
		c.s.remove(c)
		return n
	case opening:
		if c.repair {
			c.repair = false
			say(&segment{seq: c.una}, packet.SYN|packet.ACK)
		}
		return n
	case waiting:
		if c.ackNow {
			say(&segment{seq: c.nxt}, packet.ACK)
		}
		return n
	case open:
	default:
		return 0
	}
	if c.repair && len(c.segs) > 0 && c.next > 0 {
		say(c.send(0))
	}
	c.repair = false
	for n < min(len(bufs), burst) && (c.next < len(c.segs) || c.fetch()) {
		if g := &c.segs[c.next]; c.next > 0 && g.end()-c.una > min(c.window, c.cwnd) {
			break
		}
		say(c.send(c.next))
		c.next++
		c.patient = true
	}
	if c.state == dead || n == min(len(bufs), burst) {
		c.s.push(c)
		return n
	}
	switch {
	case c.probe:
		say(&segment{seq: c.una - 1}, packet.ACK)
	case c.ackNow:
		say(&segment{seq: c.nxt}, packet.ACK)
	}
	c.probe = false
	if c.rtoAt == 0 && c.readable && !c.end && len(c.segs) == 0 {
		c.rtoAt = c.s.now + persistEvery // the window is closed, or almost
	}
	c.s.schedule(c)
	return n
}

// send readies the ith segment to go out, perhaps again.
func (c *conn) send(i int) (*segment, uint8) {
	g := &c.segs[i]
	if old := int32(c.una - g.seq); old > 0 { // a part has arrived
		g.seq, g.data = c.una, g.data[old:]
	}
	if g.at != 0 {
		// What is on its way is acknowledged after this one only, whenever it
		// arrived, and says nothing of the round trip time (RFC 6298, 3).
		for j := range c.segs {
			c.segs[j].again = true
		}
	}
	g.at = c.s.now
	if c.rtoAt == 0 || i == 0 {
		c.rtoAt = c.s.now + c.rto()
	}
	if g.fin {
		return g, packet.FIN | packet.ACK
	}
	return g, packet.PSH | packet.ACK
}

// fetch reads the socket, as far as the pod has room, into a new segment.
func (c *conn) fetch() bool {
	if !c.readable || c.end || len(c.segs) == maxSegments {
		return false
	}
	room := int(int32(c.una + min(c.window, c.cwnd) - c.nxt))
	if room <= 0 || room < min(c.mss, int(c.widest/2)) && !c.probe {
		return false // a sliver would stay one (RFC 9293, 3.8.6.2.1)
	}
	chunk := chunks.Get().(*[1 << 16]byte)
	want := min(room, max(maxSuper/c.mss, 1)*c.mss)
	for {
		n, err := unix.Read(c.fd, chunk[:want])
		if err == unix.EINTR {
			continue
		}
		c.readable = n == want || c.ending // less: epoll will tell of more
		if n > 0 {
			c.segs = append(c.segs, segment{seq: c.nxt, data: chunk[:n], chunk: chunk})
			c.nxt += uint32(n)
			return true
		}
		chunks.Put(chunk)
		switch err {
		case unix.EAGAIN:
			c.readable = false
			return false
		case nil:
			c.end, c.first, c.readable = true, !c.podEnd, false
			c.segs = append(c.segs, segment{seq: c.nxt, fin: true})
			c.nxt++
			return true
		}
		c.die()
		return false
	}
}

// acknowledged is what a segment of the pod says of ours.
func (c *conn) acknowledged(seg *Segment) {
	window := uint32(seg.Window)
	if c.scale {
		window <<= c.shift
	}
	switch fresh := int32(seg.Ack - c.una); {
	case int32(seg.Ack-c.nxt) > 0:
		c.ackNow = true
		return
	case fresh < 0:
		return
	case fresh > 0:
		c.advance(seg.Ack)
	case len(c.segs) > 0 && len(seg.Data) == 0 && seg.Flags&packet.FIN == 0 && (window == c.window || gapAfter(seg.Ack, seg.Options)):
		c.duplicate()
	}
	c.window = window
	c.widest = max(c.widest, window)
	if len(c.segs) == 0 {
		c.rtoAt, c.retries = 0, 0
	}
}

// advance is for a new acknowledgment.
func (c *conn) advance(ack uint32) {
	fresh := ack - c.una
	c.una = ack
	k := 0
	for ; k < len(c.segs) && int32(c.segs[k].end()-ack) <= 0; k++ {
		if g := &c.segs[k]; !g.again {
			c.measure(c.s.now - g.at)
		}
		c.segs[k].free()
	}
	c.segs = slices.Delete(c.segs, 0, k)
	c.next = max(c.next-k, 0)
	c.dups, c.retries = 0, 0
	switch {
	case c.recovering && int32(ack-c.recover) >= 0:
		c.recovering = false
		c.cwnd = c.calm
	case c.recovering:
		c.repair = true // the next gap (RFC 6582)
	case c.cwnd < c.calm:
		c.cwnd += fresh
	default:
		c.cwnd += max(uint32(c.mss)*fresh/c.cwnd, 1)
	}
	c.cwnd = min(c.cwnd, maxSegments<<16)
	c.rtoAt = 0
	if len(c.segs) > 0 {
		c.rtoAt = c.s.now + c.rto()
	}
}

// duplicate counts acknowledgments that say the same again.
func (c *conn) duplicate() {
	if c.dups++; c.dups == 3 && !c.recovering {
		c.slower()
		c.cwnd = c.calm
		c.recovering, c.recover = true, c.nxt
		c.repair = true
	}
}

// slower halves the threshold of slow start (RFC 5681, equation 4).
func (c *conn) slower() { c.calm = max((c.nxt-c.una)/2, uint32(2*c.mss)) }

// timeout does what silence asks for; false: the connection is over.
func (c *conn) timeout() bool {
	if len(c.segs) == 0 {
		c.probe = true
		c.rtoAt = 0
		return true
	}
	if c.retries++; c.retries > maxRetries {
		c.die()
		return false
	}
	c.slower()
	c.cwnd = uint32(c.mss)
	c.recovering, c.dups = false, 0
	c.next = 0
	c.rtoAt = c.s.now + c.rto()
	return true
}

// measure takes a round trip time into account (RFC 6298, 2).
func (c *conn) measure(d int64) {
	if c.rtt == 0 {
		c.rtt, c.vary = max(d, 1), d/2
		return
	}
	diff := d - c.rtt
	c.vary += (max(diff, -diff) - c.vary) / 4
	c.rtt = max(c.rtt+diff/8, 1)
}

// rto is how long to wait for an acknowledgment.
func (c *conn) rto() int64 {
	d := firstRTO
	if c.rtt != 0 {
		d = max(c.rtt+4*c.vary, minRTO)
	}
	return min(d<<c.retries, maxRTO)
}
