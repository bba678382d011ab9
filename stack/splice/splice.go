// Package splice ends TCP connections of pods and continues each with a socket of
// the host, on the thread of the worker that carries their frames: no goroutine,
// no timer and no queue between a frame and its socket.
//
// It starts no goroutines.
package splice

// Theory of operation
//
// A connection is a TCP endpoint towards the pod (RFC 9293) and a nonblocking
// socket. Whatever happens is one of three calls, each under the Splicer's lock:
//
//	Deliver   a segment of the pod: acknowledges, is written to the socket at once
//	Poll      what the sockets and the clock have to say: one edge-triggered
//	          epoll has all sockets, a timer and an event to be woken by
//	Emit      frames for the pod, of the connections that are ready: the socket is
//	          read only when the pod has room, straight into what will be sent
//
//	pod's SYN --> socket connects --> SYN-ACK --> bytes both ways --> FIN, each way
//	                 |                                                 by itself
//	                 +--> fails: the owner says whether that is a reset
//
// What one side does the other gets to see: an end of data (FIN) after everything
// before it, and a reset or any failure as a reset.
//
//	from the pod   Bytes that the socket does not take are held, at most the window
//	               that the pod was told, which is open as far as nothing is held.
//	               Segments after a gap are kept and reported by SACK.
//	to the pod     A read of up to 64 KiB is one segment, kept until it is
//	               acknowledged, and one super-frame. Loss is noticed by duplicate
//	               acknowledgments or by silence (RFC 5681, 6582, 6298), and slows
//	               down: a pod's link may be made bad, or have a rate.
//
// An acknowledgment rides on data where the outside has been answering within
// ackDelay, as a request and its answer do; else it goes at once.

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// Config says who the Splicer is on the pods' network.
type Config struct {
	// MAC is the source of every frame and GatewayMAC the destination.
	MAC, GatewayMAC packet.MAC
	// MTU of the segment in bytes, without Ethernet header.
	MTU int
	// KeepaliveIdle is how long a pod may be silent before it is asked whether it
	// is still there, then every KeepaliveInterval; 0: a minute, 15 seconds.
	KeepaliveIdle, KeepaliveInterval time.Duration
	// DialTimeout is how long a socket may take to connect; 0: 30 seconds.
	DialTimeout time.Duration
	// Making is how many connections may be in the making, MakingPerSource how
	// many of one pod's address, Connections how many there may be at all; 0: any
	// number.
	Making, MakingPerSource, Connections int
}

// Splicer has the connections. Poll and Emit are called by one goroutine.
type Splicer struct {
	cfg   Config
	epoch time.Time

	epoll, event, timer int
	events              [128]unix.EpollEvent
	woken               atomic.Bool // event has been written and not been seen

	mu     sync.Mutex
	closed bool
	conns  map[packet.Tuple]*conn // by the pod's tuple
	byFD   []*conn
	making int                 // how many have not completed their handshakes
	makers map[packet.Addr]int // by pod
	ready  []*conn             // with something to emit, perhaps; the oldest first
	spare  []*conn             // ready's memory
	alarms alarms
	armed  int64 // when timer fires; 0: it does not
	now    int64 // of this call, in nanoseconds since epoch
}

// New makes a Splicer without connections.
func New(cfg Config) (*Splicer, error) {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&cfg.KeepaliveIdle, time.Minute}, {&cfg.KeepaliveInterval, 15 * time.Second}, {&cfg.DialTimeout, 30 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	s := &Splicer{cfg: cfg, epoch: time.Now(), epoll: -1, event: -1, timer: -1, conns: make(map[packet.Tuple]*conn), makers: make(map[packet.Addr]int)}
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return s, nil
}

func (s *Splicer) open() (err error) {
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if s.event, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return err
	}
	if s.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return err
	}
	// Edges need no reading: neither is ever emptied.
	for _, fd := range []int{s.event, s.timer} {
		if err := s.watch(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	return nil
}

func (s *Splicer) watch(fd int, events uint32) error {
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(fd)})
}

// FD is readable while Poll or Emit has something to do; -1 once closed.
func (s *Splicer) FD() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoll
}

// one is what an eventfd counts; it is never read, and never full.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// Wake makes FD readable until the next Poll. It may be called from any goroutine.
func (s *Splicer) Wake() {
	if !s.woken.Swap(true) {
		unix.Write(s.event, one)
	}
}

// Admits says whether there is a connection of the pod's tuple t already, and
// whether the limits leave room for one.
func (s *Splicer) Admits(t packet.Tuple) (known, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full := func(n, limit int) bool { return limit > 0 && n >= limit }
	return s.conns[t] != nil, !s.closed &&
		!full(s.making, s.cfg.Making) && !full(s.makers[t.Src], s.cfg.MakingPerSource) && !full(len(s.conns), s.cfg.Connections)
}

// Len is how many connections there are, those in the making included.
func (s *Splicer) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Poll looks at the sockets and the clock.
func (s *Splicer) Poll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	n, _ := unix.EpollWait(s.epoll, s.events[:], 0) // interrupted: they will be there the next time
	s.woken.Store(false)
	s.tick()
	for _, ev := range s.events[:max(n, 0)] {
		switch fd := int(ev.Fd); {
		case fd == s.event:
		case fd == s.timer:
			s.armed = 0
			s.expire()
		case fd < len(s.byFD) && s.byFD[fd] != nil:
			s.byFD[fd].stirs(ev.Events)
		}
	}
	s.arm()
}

// tick reads the clock for the present call.
func (s *Splicer) tick() { s.now = int64(time.Since(s.epoch)) }

// Emit fills bufs, each of at least link.MaxFrame, from the front and returns how
// many frames there are.
func (s *Splicer) Emit(bufs []packet.Frame) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	turns := s.ready
	s.ready = s.spare[:0]
	for i, c := range turns {
		if n == len(bufs) {
			s.ready = append(s.ready, turns[i:]...)
			break
		}
		c.queued = false
		n += c.emit(bufs[n:])
	}
	clear(turns)
	s.spare = turns[:0]
	if len(s.ready) > 0 {
		s.Wake()
	}
	s.arm()
	return n
}

// Close resets every connection's socket and releases the descriptors.
func (s *Splicer) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for _, c := range s.conns {
		if c.state == dialing {
			c.done(c.fd, unix.ECANCELED)
		}
		c.abort()
		s.remove(c)
	}
	for _, fd := range []*int{&s.timer, &s.event, &s.epoll} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// push has c emit.
func (s *Splicer) push(c *conn) {
	if !c.queued {
		c.queued = true
		s.ready = append(s.ready, c)
	}
}

// remove forgets c, whose socket is closed.
func (s *Splicer) remove(c *conn) {
	c.release()
	c.made()
	c.state = gone
	if s.conns[c.tuple] == c {
		delete(s.conns, c.tuple)
	}
	if c.place >= 0 {
		heap.Remove(&s.alarms, c.place)
	}
}

// alarms is a heap of connections by when each wants to be looked at, at the
// latest: a time that moves away is noticed when it has come.
type alarms []*conn

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].wake < a[j].wake }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}
func (a *alarms) Push(c any) {
	c.(*conn).place = len(*a)
	*a = append(*a, c.(*conn))
}
func (a *alarms) Pop() any {
	last := len(*a) - 1
	c := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	c.place = -1
	return c
}

// schedule has c looked at when it is due.
func (s *Splicer) schedule(c *conn) {
	at := c.due()
	switch {
	case c.place < 0:
		c.wake = at
		heap.Push(&s.alarms, c)
	case at < c.wake:
		c.wake = at
		heap.Fix(&s.alarms, c.place)
	}
}

// expire looks at the connections whose time has come.
func (s *Splicer) expire() {
	for len(s.alarms) > 0 && s.alarms[0].wake <= s.now {
		c := s.alarms[0]
		if c.due() <= s.now {
			c.late()
		}
		if c.place >= 0 {
			c.wake = max(c.due(), s.now+1)
			heap.Fix(&s.alarms, c.place)
		}
	}
}

// arm sets the timer for the next alarm, if it would come too late.
func (s *Splicer) arm() {
	if s.closed || len(s.alarms) == 0 || s.armed != 0 && s.armed <= s.alarms[0].wake {
		return
	}
	s.armed = s.alarms[0].wake
	in := max(s.armed-int64(time.Since(s.epoch)), 1)
	unix.TimerfdSettime(s.timer, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(in)}, nil)
}
