package splice

import (
	"math"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// Segment is a TCP segment of a pod whose checksum is right.
type Segment struct {
	Tuple    packet.Tuple
	Seq, Ack uint32
	Flags    uint8  // packet.SYN and so on
	Window   uint16 // as it stands in the header
	Options  []byte
	Data     []byte
}

// Dialed hears once how the connecting of a socket ended, before the socket is
// used or closed: 0 for well. Of a failure it says whether the pod gets a reset.
// The Splicer must not be called from it.
type Dialed func(fd int, err unix.Errno) (reset bool)

// state of a conn:
//
//	dialing --> opening --> open --> waiting --> gone
//	   |           |          |  \_______________^
//	   |           |          +--> dead ---------^
//	   +-----------+---------------^
type state uint8

const (
	dialing state = iota // the socket connects, and the pod's SYN waits
	opening              // SYN-ACK sent
	open                 // the halves end each by itself
	waiting              // both have, ours first: TIME-WAIT, without a socket
	dead                 // a reset has to be sent, without a socket
	gone
)

const (
	windowLimit   = 1 << 20 // bytes of a pod that wait for the socket, or for a gap to be filled
	windowScale   = 7
	maxSegments   = 32 // on their way to the pod
	firstRTO      = int64(time.Second)
	minRTO        = int64(200 * time.Millisecond)
	maxRTO        = int64(time.Minute)
	persistEvery  = int64(time.Second)
	maxRetries    = 12 // of a segment, about 7 minutes from 200 ms on
	maxOpenings   = 5  // SYN-ACKs
	maxKeepalives = 9
	ackDelay      = int64(5 * time.Millisecond)
	ackBytes      = 4 << 10 // that are acknowledged at once
	timeWait      = int64(time.Second)
)

// conn is one connection. Sequence numbers are compared by the sign of their
// difference.
type conn struct {
	s      *Splicer
	tuple  packet.Tuple // of the pod's segments
	state  state
	fd     int // -1: none any more
	done   Dialed
	header header

	making bool // counted in Splicer.making
	queued bool // in Splicer.ready
	place  int  // in Splicer.alarms, or -1
	wake   int64

	// As far as is known the socket has something to read, takes something.
	readable, writable bool
	ending             bool // an end or an error is to be read, after the data

	// From the pod.
	rcv     uint32 // what comes next
	edge    uint32 // as far as the pod was told it may send
	held    []byte // the socket did not take it
	gaps    []piece
	podEnd  bool // FIN received
	shut    bool // and passed on
	unacked int  // bytes since the last acknowledgment
	ackNow  bool
	ackAt   int64 // when to acknowledge without data to ride on; 0: nothing to
	patient bool  // the last answer came within ackDelay
	scale   bool  // windows are scaled both ways
	sack    bool  // the pod understands selective acknowledgments
	heard   int64 // when the last segment came
	asked   int   // keepalives since

	// To the pod.
	una, nxt   uint32 // first unacknowledged, next to send
	window     uint32 // bytes from una that the pod takes
	widest     uint32 // window ever
	shift      uint8  // of its window field
	mss        int
	segs       []segment // from una to nxt
	next       int       // of segs, the first to be sent again, or len(segs)
	end        bool      // the socket's data has ended, FIN is in segs or acknowledged
	first      bool      // before the pod's
	repair     bool      // send the first segment again
	probe      bool      // ask the pod for an acknowledgment
	cwnd, calm uint32    // congestion window and slow start threshold, in bytes
	recover    uint32    // recovery lasts until this is acknowledged
	recovering bool
	dups       int
	rtt, vary  int64 // smoothed round trip time and variance; rtt 0: unknown
	retries    int
	rtoAt      int64 // when to send again, or to give up waiting; 0: not
}

// Open begins a connection for a SYN. fd is a nonblocking socket whose connect
// is under way or done, which the Splicer takes unless there is an error.
func (s *Splicer) Open(syn *Segment, fd int, done Dialed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return unix.ESHUTDOWN
	}
	if err := s.watch(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP); err != nil {
		return err
	}
	s.tick()
	c := &conn{s: s, tuple: syn.Tuple, fd: fd, done: done, place: -1, patient: true, heard: s.now}
	c.una = rand.Uint32()
	c.nxt = c.una + 1
	c.rcv, c.edge = syn.Seq+1, syn.Seq+1
	c.window = uint32(syn.Window)
	c.negotiate(syn.Options)
	c.header = newHeader(&s.cfg, syn.Tuple.Reverse())
	c.rtoAt = s.now + int64(s.cfg.DialTimeout)
	c.making = true
	s.making++
	s.makers[syn.Tuple.Src]++
	s.conns[syn.Tuple] = c
	for fd >= len(s.byFD) {
		s.byFD = append(s.byFD, nil)
	}
	s.byFD[fd] = c
	s.schedule(c)
	s.arm()
	return nil
}

// made ends the making of c.
func (c *conn) made() {
	if !c.making {
		return
	}
	c.making = false
	c.s.making--
	if c.s.makers[c.tuple.Src]--; c.s.makers[c.tuple.Src] == 0 {
		delete(c.s.makers, c.tuple.Src)
	}
}

// stirs is told what epoll says of the socket.
func (c *conn) stirs(events uint32) {
	const ends = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if c.state == dialing {
		c.connected(events)
	}
	if events&ends != 0 {
		c.ending = true
	}
	if events&(unix.EPOLLIN|ends) != 0 {
		c.readable = true
	}
	if events&unix.EPOLLOUT != 0 {
		c.writable = true
	}
	if c.state != open {
		return
	}
	if c.end && events&unix.EPOLLERR != 0 {
		c.die() // no read would tell
		return
	}
	c.drain()
	c.settle()
	if c.wants() {
		c.s.push(c)
	}
}

// connected ends dialing, one way or the other.
func (c *conn) connected(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	errno, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		errno = int(unix.EIO)
	}
	if errno != 0 {
		c.failed(unix.Errno(errno))
		return
	}
	c.done(c.fd, 0)
	c.state, c.repair = opening, true
	c.rtoAt = c.s.now + firstRTO
	c.s.schedule(c)
	c.s.push(c)
}

// failed ends a connection that never was.
func (c *conn) failed(errno unix.Errno) {
	reset := c.done(c.fd, errno)
	c.abort()
	if !reset {
		c.s.remove(c)
		return
	}
	c.state = dead
	c.s.push(c)
}

// die has the socket reset, and the pod once there is a frame for it.
func (c *conn) die() {
	c.abort()
	c.release()
	c.state = dead
	c.s.push(c)
}

// abort closes the socket with a reset.
func (c *conn) abort() {
	if c.fd >= 0 {
		unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		c.close()
	}
}

func (c *conn) close() {
	c.s.byFD[c.fd] = nil
	unix.Close(c.fd)
	c.fd = -1
}

// settle ends what both sides have ended.
func (c *conn) settle() {
	if c.state != open {
		return
	}
	if c.podEnd && !c.shut && len(c.held) == 0 {
		c.shut = true
		if unix.Shutdown(c.fd, unix.SHUT_WR) != nil {
			c.die() // reset meanwhile
			return
		}
	}
	if !c.shut || !c.end || len(c.segs) > 0 {
		return
	}
	c.close()
	if !c.first {
		c.s.remove(c)
		return
	}
	c.state, c.ackNow = waiting, true
	c.rtoAt = c.s.now + timeWait
	c.s.schedule(c)
}

// due is when c has to be looked at next.
func (c *conn) due() int64 {
	switch c.state {
	case dead:
		return math.MaxInt64
	case open:
	default:
		return c.rtoAt
	}
	at := c.heard + int64(c.s.cfg.KeepaliveIdle) + int64(c.asked)*int64(c.s.cfg.KeepaliveInterval)
	for _, t := range []int64{c.rtoAt, c.ackAt} {
		if t != 0 {
			at = min(at, t)
		}
	}
	return at
}

// late does what is due.
func (c *conn) late() {
	now := c.s.now
	switch c.state {
	case dialing:
		c.failed(unix.ETIMEDOUT)
		return
	case opening:
		if c.retries++; c.retries > maxOpenings {
			c.abort()
			c.s.remove(c)
			return
		}
		c.repair = true
		c.rtoAt = now + firstRTO<<c.retries
		c.s.push(c)
		return
	case open:
	default:
		c.s.remove(c)
		return
	}
	if c.ackAt != 0 && c.ackAt <= now {
		c.ackAt, c.ackNow, c.patient = 0, true, false
	}
	if c.rtoAt != 0 && c.rtoAt <= now && !c.timeout() {
		return
	}
	if idle := c.heard + int64(c.s.cfg.KeepaliveIdle) + int64(c.asked)*int64(c.s.cfg.KeepaliveInterval); idle <= now {
		if c.asked++; c.asked > maxKeepalives {
			c.die()
			return
		}
		c.probe = true
	}
	c.s.push(c)
}
