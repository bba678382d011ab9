package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// HTTP/3
//
// What HTTPS is at a port by TCP, HTTP/3 is at the same port by UDP: the same
// certificates, the same questions to clients, the same routes, by the handler
// that net/http has too. QUIC is the library's; ours is who may come in, and how
// it ends:
//
//   - A client says first that it has its address (Retry, RFC 9000, section 8.1.2)
//     while many come at a time, and is refused while too many are there.
//   - A connection of which no request is answered for as long as clients may be
//     idle is closed, whatever it keeps sending: requests whose header never ends
//     hold nothing.
//   - Data of a client that comes before its handshake is complete (0-RTT) could be
//     repeated by others, and is not taken.
//   - TLS of hosts with ssl-passthrough is an endpoint's, which speaks TCP: it is refused.
//   - The end is announced (GOAWAY). Connections are closed a moment after their
//     last answer, and all when the time is over.
//
// Clients learn of it by Alt-Svc in the answers of HTTPS (RFC 7838).
//
// Goroutines: one that accepts, those of the library, and two while it ends; end
// waits for all.

const (
	maxStreams  = 100                    // requests of a connection at a time, as for HTTP/2
	maxQUIC     = 4096                   // connections
	maxUnproved = 100                    // connections in a second whose clients need not prove their address
	altSvcAge   = 24 * time.Hour         // how long clients remember
	quicLinger  = 300 * time.Millisecond // from the last answer to the end of a connection when all ends
)

// QUIC is a UDP socket at which HTTP/3 is answered.
type QUIC struct {
	s         *Server
	by        entrance
	at        netip.AddrPort
	altSvc    string
	listener  *quic.Listener
	transport *quic.Transport
	http      *http3.Server
	done      chan struct{} // nobody accepts any more
	once      sync.Once

	mu       sync.Mutex
	conns    map[*quicConn]bool
	second   int64 // that unproved is of
	unproved int
}

// quicConn is a client's connection.
type quicConn struct {
	*quic.Conn
	mu    sync.Mutex
	open  int // requests that are answered
	since time.Time
	timer *time.Timer
}

type quicConnKey struct{}

// ServeQUIC answers HTTP/3 at pc, which it owns, until Close or Shutdown. It is
// for an entrance as [At] makes it. TLS is that of ServeTLS.
func (s *Server) ServeQUIC(pc net.PacketConn, door netip.AddrPort, ingress bool) (*QUIC, error) {
	at, err := netip.ParseAddrPort(pc.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	// The library would write to standard error that a bigger buffer needs privilege.
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	q := &QUIC{
		s: s, by: entrance{door: door, both: ingress}, at: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()),
		done: make(chan struct{}), conns: map[*quicConn]bool{},
		altSvc: fmt.Sprintf(`h3=":%d"; ma=%d`, at.Port(), int(altSvcAge.Seconds())),
	}
	q.transport = &quic.Transport{Conn: pc, ConnContext: q.admit, VerifySourceAddress: q.doubts}
	q.http = &http3.Server{
		Handler: http.HandlerFunc(q.serve), MaxHeaderBytes: maxRequestHeader, ConnContext: q.enter, Logger: s.cfg.Log,
	}
	if !s.noteQUIC(q) {
		pc.Close()
		return nil, net.ErrClosed
	}
	q.listener, err = q.transport.Listen(http3.ConfigureTLSConfig(q.tls()), &quic.Config{
		HandshakeIdleTimeout: s.cfg.HeaderTimeout, MaxIdleTimeout: clientIdle,
		MaxIncomingStreams: maxStreams, MaxIncomingUniStreams: 8, // control, two of QPACK, and some to ignore
		MaxStreamReceiveWindow: 4 << 20, MaxConnectionReceiveWindow: 8 << 20,
	})
	if err != nil {
		s.forgetQUIC(q)
		pc.Close()
		return nil, fmt.Errorf("listen for QUIC: %w", err)
	}
	go func() {
		defer close(q.done)
		q.http.ServeListener(q.listener)
	}()
	return q, nil
}

// tls is the Server's, without those hosts whose TLS is not ours.
func (q *QUIC) tls() *tls.Config {
	cfg := q.s.tls.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if q.s.live.Load().passed(q.by, matchHost(hello.ServerName)) != nil {
			return nil, fmt.Errorf("TLS of %q is passed through, by TCP", hello.ServerName)
		}
		return q.s.tls.GetConfigForClient(hello)
	}
	return cfg
}

// admit decides about a connection that begins.
func (q *QUIC) admit(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	if q.s.quicConns.Add(1) > maxQUIC {
		q.s.quicConns.Add(-1)
		return nil, errors.New("too many connections")
	}
	context.AfterFunc(ctx, func() { q.s.quicConns.Add(-1) })
	return context.WithValue(ctx, entranceKey{}, q.by), nil
}

// doubts reports whether a client has to prove its address.
func (q *QUIC) doubts(net.Addr) bool { return q.doubtsAt(time.Now().Unix()) }

func (q *QUIC) doubtsAt(now int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now != q.second {
		q.second, q.unproved = now, 0
	}
	q.unproved++
	return q.unproved > maxUnproved
}

// enter notes a connection whose handshake is complete.
func (q *QUIC) enter(ctx context.Context, conn *quic.Conn) context.Context {
	c := &quicConn{Conn: conn, since: time.Now()}
	c.timer = time.AfterFunc(clientIdle, func() { c.closeAfter(clientIdle) })
	q.mu.Lock()
	q.conns[c] = true
	q.mu.Unlock()
	context.AfterFunc(conn.Context(), func() {
		c.timer.Stop()
		q.mu.Lock()
		delete(q.conns, c)
		q.mu.Unlock()
	})
	return context.WithValue(ctx, quicConnKey{}, c)
}

// serve answers a request.
func (q *QUIC) serve(w http.ResponseWriter, in *http.Request) {
	c, _ := in.Context().Value(quicConnKey{}).(*quicConn)
	c.count(1)
	defer c.count(-1)
	if in.Trailer != nil {
		in.Body = &trailed{in.Body, in, in.Trailer}
	}
	q.s.serve(w, in)
}

// trailed is the body of a request with trailers. The library replaces the map of
// those that were announced, where net/http fills it.
type trailed struct {
	io.ReadCloser
	in        *http.Request
	announced http.Header
}

func (b *trailed) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		for name := range b.announced {
			b.announced[name] = b.in.Trailer[name]
		}
	}
	return n, err
}

func (c *quicConn) count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += n
	if c.since = time.Now(); c.open == 0 {
		c.timer.Reset(clientIdle)
	} else {
		c.timer.Stop()
	}
}

// closeAfter closes a connection that has been idle for so long.
func (c *quicConn) closeAfter(idle time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == 0 && time.Since(c.since) >= idle {
		c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	}
}

// Close ends connections as Shutdown does, within a second. The port is free
// when it returns.
func (q *QUIC) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	q.end(ctx)
	return nil
}

// end says GOAWAY, and closes connections when their requests have been answered,
// at the latest when ctx ends. It returns when nothing is left.
func (q *QUIC) end(ctx context.Context) (err error) {
	q.once.Do(func() {
		q.s.forgetQUIC(q)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			err = q.http.Shutdown(ctx)
		}()
		q.dismiss(gone)
		q.listener.Close()
		q.transport.Close()
		q.transport.Conn.Close()
	})
	<-q.done
	return err
}

// dismiss closes connections that have been idle for a moment, until gone.
func (q *QUIC) dismiss(gone <-chan struct{}) {
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return
		case <-tick.C:
		}
		if time.Since(began) < quicLinger {
			continue // requests may have been on their way
		}
		q.mu.Lock()
		var conns []*quicConn
		for c := range q.conns {
			conns = append(conns, c)
		}
		q.mu.Unlock()
		for _, c := range conns {
			c.closeAfter(quicLinger)
		}
	}
}

// noteQUIC has it announced, and ended by Shutdown; false if that has begun.
func (s *Server) noteQUIC(q *QUIC) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	all := append(slices.Clone(*s.quics.Load()), q)
	s.quics.Store(&all)
	return true
}

func (s *Server) forgetQUIC(q *QUIC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(*s.quics.Load()), func(other *QUIC) bool { return other == q })
	s.quics.Store(&all)
}

// altSvc is what answers of HTTPS that came to an address say of HTTP/3; "" where
// there is none.
func (s *Server) altSvc(local netip.AddrPort) string {
	for _, q := range *s.quics.Load() {
		if q.at == local || q.at.Port() == local.Port() && q.at.Addr().IsUnspecified() {
			return q.altSvc
		}
	}
	return ""
}

// endQUIC ends HTTP/3 wherever it is.
func (s *Server) endQUIC(ctx context.Context) error {
	s.mu.Lock()
	all := *s.quics.Load()
	s.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, q := range all {
		wg.Go(func() { errs[i] = q.end(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
