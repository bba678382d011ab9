package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// Connections, from the listeners to the lane and from there to net/http.

// accept takes the connections of a listener until it ends.
func (s *Server) accept(l net.Listener, cfg *tls.Config) error {
	if !s.listen(l) {
		return nil
	}
	defer s.unlisten(l)
	by := cameBy(l)
	s.handing.Do(func() { s.lanes.Go(func() { s.http.Serve(s.handed) }) })
	for pause := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.lanes.Go(func() { s.take(c, cfg, by) })
		case s.closing.Load():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, say
			pause = min(cmp.Or(2*pause, 5*time.Millisecond), time.Second)
			s.cfg.Log.Warn("ingress cannot accept", "error", err)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
		}
	}
}

// listen notes a listener, so that Shutdown closes it.
func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		l.Close()
		return false
	}
	s.listeners[l] = true
	return true
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	l.Close()
}

// enter notes a connection on the lane.
func (s *Server) enter(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.onLane[l] = true
	return true
}

func (s *Server) leave(l *lane) {
	s.mu.Lock()
	delete(s.onLane, l)
	s.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	if !l.left {
		l.conn.Close()
	}
}

// endLanes closes listeners and idle connections, and waits until those that
// are answered have been, or ctx ends.
func (s *Server) endLanes(ctx context.Context) {
	s.mu.Lock()
	s.closing.Store(true)
	for l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		left := len(s.onLane)
		for l := range s.onLane {
			if !l.busy.Load() || ctx.Err() != nil {
				l.raw.SetReadDeadline(time.Unix(1, 0))
			}
			if ctx.Err() != nil {
				l.raw.Close()
			}
		}
		s.mu.Unlock()
		if left == 0 || ctx.Err() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// given is a connection of which something was read already.
type given struct {
	replayed
	tls *tls.ConnectionState
	by  entrance
}

// CloseWrite says that no more follows; net/http gives clients time to read then.
func (g *given) CloseWrite() error {
	if half, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// handover is the listener that net/http serves.
type handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// give returns false if net/http takes no more.
func (h *handover) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return &net.TCPAddr{} }
