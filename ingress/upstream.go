package ingress

import (
	"bufio"
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Connections to endpoints that speak HTTP/1.1 without TLS, for the lane.
//
// One that is idle is watched by nobody: before it is used again it is asked
// whether it has ended or something is to be read from it, which no request
// asked for. One that ends between that question and the request's arrival is
// replaced by a new one, if the request may be repeated (RFC 9110, section 9.2.2).

// upstream is a connection to an endpoint, used by one at a time.
type upstream struct {
	net.Conn
	in    *bufio.Reader
	since time.Time // idle, in the pool
	used  bool      // has carried a request before
}

const upstreamBuffer = 8 << 10 // bytes of a response's header, and of what is read with it

// idle are the connections to an endpoint that nobody uses; the last used is first.
type idle struct {
	mu     sync.Mutex
	conns  []*upstream
	sweep  *time.Timer
	closed bool // the endpoint is gone
}

// get takes a connection that can be used, nil if there is none.
func (p *idle) get() *upstream {
	for {
		p.mu.Lock()
		n := len(p.conns)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		u := p.conns[n-1]
		p.conns = p.conns[:n-1]
		p.mu.Unlock()
		if readable, _ := stirs(u.Conn); !readable {
			return u
		}
		u.Close()
	}
}

// put gives back a connection that waits for a request.
func (p *idle) put(u *upstream, now time.Time) {
	u.since, u.used = now, true
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= maxIdle {
		u.Close()
		return
	}
	p.conns = append(p.conns, u)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(endpointIdle, p.expire)
	}
}

// expire closes what was idle for too long.
func (p *idle) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := 0
	for old < len(p.conns) && time.Since(p.conns[old].since) >= endpointIdle {
		p.conns[old].Close()
		old++
	}
	p.conns = append(p.conns[:0], p.conns[old:]...)
	if p.sweep = nil; len(p.conns) > 0 {
		p.sweep = time.AfterFunc(endpointIdle-time.Since(p.conns[0].since), p.expire)
	}
}

// end closes what is idle; what is used ends with its request if closed.
func (p *idle) end(closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.conns {
		u.Close()
	}
	p.conns, p.closed = nil, closed
	if p.sweep != nil {
		p.sweep.Stop()
		p.sweep = nil
	}
}

// connect opens a connection to an endpoint.
func (s *Server) connect(e *endpoint) (*upstream, error) {
	ctx, cancel := context.WithTimeout(s.ctx, e.dialTimeout(s.cfg))
	defer cancel()
	c, err := s.dial(ctx, "tcp", e.poolKey)
	if err != nil {
		return nil, &dialError{err}
	}
	return &upstream{Conn: c, in: bufio.NewReaderSize(c, upstreamBuffer)}, nil
}

// stirs reports whether there is something to read from a connection, its end
// included, and whether its peer will send no more.
func stirs(c net.Conn) (readable, hungUp bool) {
	if over, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = over.NetConn()
	}
	if by, ok := c.(entered); ok {
		c = by.Conn
	}
	if own, ok := c.(interface {
		Stirs() (readable, hungUp bool)
	}); ok {
		return own.Stirs()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true, true
	}
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
		if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
			readable, hungUp = true, fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
		}
	})
	return readable || err != nil, hungUp || err != nil
}
