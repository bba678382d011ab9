package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// sniffer gives away connections whose TLS is an endpoint's (ssl-passthrough)
// before TLS is ours. While no Ingress wants that it reads nothing.
//
// Goroutines: one that accepts, and one for each connection that is looked into
// or given away; the end of the server ends them, and ServeTLS waits.
type sniffer struct {
	net.Listener
	s     *Server
	entry entrance // what Listener is, if a Gateway's
	conns chan accepted
	ctx   context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup
}

type accepted struct {
	net.Conn
	err error
}

func newSniffer(s *Server, l net.Listener) *sniffer {
	sn := &sniffer{Listener: l, s: s, conns: make(chan accepted)}
	sn.entry, _ = l.(entrance)
	sn.ctx, sn.end = context.WithCancel(s.ctx)
	sn.wg.Go(sn.run)
	return sn
}

func (sn *sniffer) run() {
	for {
		c, err := sn.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			sn.end()
			return
		case err != nil || !sn.s.live.Load().passes(sn.entry):
			sn.hand(accepted{c, err})
		default:
			sn.wg.Go(func() { sn.look(c) })
		}
	}
}

func (sn *sniffer) hand(a accepted) {
	select {
	case sn.conns <- a:
	case <-sn.ctx.Done():
		if a.err == nil {
			a.Close()
		}
	}
}

// Accept returns the connections that are ours.
func (sn *sniffer) Accept() (net.Conn, error) {
	select {
	case a := <-sn.conns:
		return a.Conn, a.err
	case <-sn.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close stops accepting; connections that were given away go on until the server ends.
func (sn *sniffer) Close() error {
	sn.end()
	return sn.Listener.Close()
}

// look reads the client's hello and gives the connection to whom it is for.
func (sn *sniffer) look(c net.Conn) {
	name, read := hello(c, sn.s.cfg.HeaderTimeout)
	b := sn.s.live.Load().passed(sn.entry, matchHost(name))
	ours := &replayed{Conn: c, first: read}
	switch {
	case b == nil:
		sn.hand(accepted{Conn: ours})
		return
	case len(b.endpoints) == 0:
		c.Close()
		return
	}
	defer c.Close()
	for range min(3, len(b.endpoints)) {
		e := b.endpoints[int(b.next.Add(1)-1)%len(b.endpoints)]
		ctx, cancel := context.WithTimeout(sn.s.ctx, sn.s.cfg.DialTimeout)
		to, err := sn.s.dial(ctx, "tcp", e.poolKey)
		cancel()
		if err == nil {
			join2(sn.s.ctx, ours, to)
			return
		}
	}
}

// hello reads the name that a TLS client asks for, and returns what it read.
func hello(c net.Conn, within time.Duration) (name string, read []byte) {
	c.SetDeadline(time.Now().Add(within))
	defer c.SetDeadline(time.Time{})
	var b bytes.Buffer
	enough := errors.New("enough")
	tls.Server(listening{c, io.TeeReader(c, &b)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name = h.ServerName
			return nil, enough
		},
	}).Handshake()
	return name, b.Bytes()
}

// listening is a connection that is only read.
type listening struct {
	net.Conn
	r io.Reader
}

func (l listening) Read(p []byte) (int, error)  { return l.r.Read(p) }
func (l listening) Write(p []byte) (int, error) { return len(p), nil }

// replayed is a connection whose first bytes were read already.
type replayed struct {
	net.Conn
	first []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// join2 copies both ways until both are done or ctx ends, and closes b.
func join2(ctx context.Context, a *replayed, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		a.Conn.Close()
		b.Close()
	})
	defer stop()
	defer b.Close()
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		} else {
			to.Close()
		}
	}
	wg.Go(func() { one(b, a) })
	one(a.Conn, b)
	wg.Wait()
}
