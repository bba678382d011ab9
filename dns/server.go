// Package dns answers for the cluster's names: the Kubernetes DNS-Based Service
// Discovery specification 1.1, with what CoreDNS's kubernetes plugin adds to it
// as kubeadm configures it. All other names are forwarded.
//
// Goroutines: ServeUDP runs a few readers and ServeTCP one goroutine for each
// connection; both return after Shutdown closed what they serve. A query that
// waits for an upstream has a goroutine of its own, which Shutdown cancels and
// waits for. Names of the cluster are answered by the reader itself.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Server answers queries from the Zone last set and asks its upstreams the rest.
type Server struct {
	cfg     Config
	zone    atomic.Pointer[Zone]
	forward *forwarder // where the Config leads
	rules   atomic.Pointer[rules]

	ctx    context.Context // of queries that wait; ends with Shutdown
	cancel context.CancelFunc
	conns  chan struct{} // bounds the TCP connections
	slots  chan struct{} // bounds the queries that wait

	requests, local, fast, refused, malformed, autopathed atomic.Uint64

	tally    tally
	measures measures
	clients  clients
	misses   misses
	cookies  cookieSecret

	retired atomic.Bool

	mu     sync.Mutex
	open   map[io.Closer]struct{}
	closed bool
	work   sync.WaitGroup // what Shutdown waits for; added to under mu while not closed
}

const (
	maxConns     = 512              // TCP connections at a time
	maxWaiting   = 1000             // queries that wait for upstreams at a time (kubeadm's max_concurrent)
	idleTimeout  = 10 * time.Second // of a TCP connection (RFC 7766, section 6.2.3)
	writeTimeout = 5 * time.Second  // of one answer over TCP
)

// NewServer makes a Server that refuses every question until SetZone.
func NewServer(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg:     cfg,
		forward: newForwarder(cfg, plainUpstreams(cfg.Upstreams)),
		conns:   make(chan struct{}, maxConns),
		slots:   make(chan struct{}, maxWaiting),
		cookies: newCookieSecret(),
		open:    map[io.Closer]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.forward.ctx, s.forward.background = s.ctx, s.wait
	s.SetCorefile(nil)
	return s
}

func plainUpstreams(at []netip.AddrPort) (ups []Upstream) {
	for _, a := range at {
		ups = append(ups, Upstream{Addr: a})
	}
	return ups
}

// SetZone replaces the Zone; queries that are being answered keep theirs.
func (s *Server) SetZone(z *Zone) { s.zone.Store(z) }

// Counters are the totals since the start, by name.
func (s *Server) Counters() map[string]uint64 {
	return map[string]uint64{
		"dns_requests_total":         s.requests.Load(),
		"dns_zone_answers_total":     s.local.Load(),
		"dns_fast_answers_total":     s.fast.Load(),
		"dns_refused_total":          s.refused.Load(),
		"dns_malformed_total":        s.malformed.Load(),
		"dns_autopath_answers_total": s.autopathed.Load(),
		"dns_forward_requests_total": s.forward.exchanges.Load(),
		"dns_forward_failures_total": s.forward.failures.Load(),
		"dns_forward_strays_total":   s.forward.strays.Load(),
		"dns_forward_joined_total":   s.forward.joined.Load(),
		"dns_cache_hits_total":       s.forward.hits.Load(),
	}
}

// ServeUDP answers what arrives at pc, which it owns. It returns nil after
// Shutdown and the reason when pc cannot be read any more.
func (s *Server) ServeUDP(pc net.PacketConn) error {
	if !s.own(pc) {
		return net.ErrClosed
	}
	defer s.disown(pc)
	errs := make(chan error)
	readers := min(4, runtime.GOMAXPROCS(0))
	for range readers {
		go func() { errs <- s.readUDP(pc) }()
	}
	err := <-errs
	pc.Close()
	for range readers - 1 {
		<-errs
	}
	return err
}

func (s *Server) readUDP(pc net.PacketConn) error {
	in, out := make([]byte, 64<<10), make([]byte, 4<<10)
	fast := s.Responder()
	for {
		n, from, err := pc.ReadFrom(in)
		if err != nil {
			return s.ended(err)
		}
		client, start := addrOf(from), time.Now()
		if k := fast.Answer(out, in[:n], client); k > 0 {
			pc.WriteTo(out[:k], from)
			continue
		}
		send := func(answer []byte) {
			s.told(client, answer)
			s.measures.add(true, n, len(answer), time.Since(start))
			pc.WriteTo(answer, from)
		}
		answer, later := s.respond(client, in[:n], out, true)
		if later != nil {
			s.wait(func() { send(later()) })
		} else if answer != nil {
			send(answer)
		}
	}
}

// addrOf is the address of whoever is at the other end, the zero Addr if it has none.
func addrOf(at net.Addr) netip.Addr {
	switch at := at.(type) {
	case *net.UDPAddr:
		return at.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return at.AddrPort().Addr().Unmap()
	}
	of, _ := netip.ParseAddrPort(at.String())
	return of.Addr().Unmap()
}

// ServeTCP answers what arrives at l, which it owns. It returns nil after
// Shutdown and the reason when l cannot accept any more.
func (s *Server) ServeTCP(l net.Listener) error {
	if !s.own(l) {
		return net.ErrClosed
	}
	defer s.disown(l)
	for {
		c, err := l.Accept()
		if err != nil {
			return s.ended(err)
		}
		select {
		case s.conns <- struct{}{}:
		default:
			c.Close()
			continue
		}
		if !s.own(c) {
			return nil
		}
		go func() {
			defer func() { <-s.conns }()
			defer s.disown(c)
			s.serveConn(c)
		}()
	}
}

// serveConn answers the queries of one connection, those that wait for an
// upstream out of order (RFC 7766, section 6.2.1.1).
func (s *Server) serveConn(c net.Conn) {
	client := addrOf(c.RemoteAddr())
	var mu sync.Mutex // one answer at a time
	write := func(answer []byte, asked int, start time.Time) {
		mu.Lock()
		defer mu.Unlock()
		s.told(client, answer)
		s.measures.add(false, asked, len(answer), time.Since(start))
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer)))
		if _, err := c.Write(append(framed, answer...)); err != nil {
			c.Close()
		}
	}
	var waiting sync.WaitGroup
	defer waiting.Wait()
	in, out := make([]byte, 64<<10), make([]byte, 4<<10)
	for {
		c.SetReadDeadline(time.Now().Add(idleTimeout))
		if _, err := io.ReadFull(c, in[:2]); err != nil {
			return
		}
		n := binary.BigEndian.Uint16(in)
		if _, err := io.ReadFull(c, in[:n]); err != nil {
			return
		}
		start := time.Now()
		answer, later := s.respond(client, in[:n], out, false)
		if later != nil {
			waiting.Add(1)
			if !s.wait(func() { defer waiting.Done(); write(later(), int(n), start) }) {
				return
			}
		} else if answer != nil {
			write(answer, int(n), start)
		}
	}
}

// wait runs f, which waits for an upstream and frees a slot; false after Shutdown.
func (s *Server) wait(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Go(f)
	return true
}

// own registers what Shutdown is to close; after Shutdown it closes c and returns false.
func (s *Server) own(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.open[c] = struct{}{}
	s.work.Add(1)
	return true
}

func (s *Server) disown(c io.Closer) {
	c.Close()
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	s.work.Done()
}

// ended is what a serve function returns when reading failed with err.
func (s *Server) ended(err error) error {
	if s.ctx.Err() != nil {
		return nil
	}
	return err
}

// Shutdown ends ServeUDP and ServeTCP, cancels the queries that wait for an
// upstream, and returns when all of them have ended or ctx has.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.cancel()
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("shut down DNS"), ctx.Err())
	}
}
