// Package ingress is the HTTP(S) front door: it compiles Ingress v1 objects to
// Routes and proxies requests by them, straight to the endpoints.
//
// Goroutines: one for each connection of a client, or those of net/http where the
// connection is given to it, and its own for connections to endpoints; one that
// accepts for each ServeTLS, those of HTTP/3 (quic.go), one for each connection whose TLS is passed through,
// one for each mirrored request. Shutdown ends them all, closing what has been
// upgraded (WebSocket) too.
package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Server proxies requests by the Routes last set.
type Server struct {
	cfg        Config
	live       atomic.Pointer[Routes]
	http       *http.Server
	selfSigned func() (*tls.Certificate, error)
	buffers    bufferPool
	errorLog   *log.Logger
	tls        *tls.Config   // of ServeTLS; net/http has a copy, which it changes
	askTLS     *tls.Config   // of hosts whose clients are asked for a certificate
	mirrors    chan struct{} // as many as are under way
	asides     sync.WaitGroup

	ctx    context.Context // of every request; ends with Shutdown
	cancel context.CancelFunc

	requests, retries, unrouted, unavailable, failed atomic.Uint64

	handed  *handover // what net/http serves
	handing sync.Once // starts that
	lanes   sync.WaitGroup
	closing atomic.Bool // Shutdown has begun

	mu        sync.Mutex
	tlsPorts  map[netip.Addr]uint16 // where ServeTLS listens
	listeners map[net.Listener]bool
	onLane    map[*lane]bool
	quics     atomic.Pointer[[]*QUIC] // changed under mu
	quicConns atomic.Int64
}

const (
	clientIdle       = 75 * time.Second // between requests of a client
	endpointIdle     = 60 * time.Second // between requests to an endpoint
	maxIdle          = 256              // idle connections to an endpoint
	maxRequestHeader = 64 << 10         // bytes
	maxFields        = 256              // of a request header
)

// NewServer makes a Server without Routes: it answers 404.
func NewServer(cfg Config) *Server {
	s := &Server{
		cfg:        cfg.withDefaults(),
		selfSigned: sync.OnceValues(selfSigned),
		tlsPorts:   map[netip.Addr]uint16{},
		handed:     newHandover(),
		listeners:  map[net.Listener]bool{},
		onLane:     map[*lane]bool{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mirrors = make(chan struct{}, mirrorsAtOnce)
	s.errorLog = slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		IdleTimeout:       clientIdle,
		MaxHeaderBytes:    maxRequestHeader,
		ErrorLog:          s.errorLog,
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if g, ok := c.(*given); ok && g.tls != nil {
				ctx = context.WithValue(ctx, encryptedKey{}, g.tls)
			}
			return context.WithValue(ctx, entranceKey{}, entranceOf(c))
		},
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: s.certificate,
			GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				if l := s.live.Load().listenerOf(hello); l != nil {
					return l.config(s.tls)
				}
				if s.live.Load().asks(matchHost(hello.ServerName)) {
					return s.askTLS, nil
				}
				return nil, nil
			},
			// Said here, as Serve before ServeTLS would leave net/http's HTTP/2 unset.
			NextProtos: []string{"h2", "http/1.1"},
		},
	}
	s.http.Protocols = new(http.Protocols)
	s.http.Protocols.SetHTTP1(true)
	s.http.Protocols.SetHTTP2(true)
	s.http.Protocols.SetUnencryptedHTTP2(true)
	s.tls = s.http.TLSConfig.Clone()
	s.askTLS = s.tls.Clone()
	s.askTLS.GetConfigForClient, s.askTLS.ClientAuth = nil, tls.RequestClientCert
	s.live.Store(&Routes{})
	s.quics.Store(new([]*QUIC))
	return s
}

// SetRoutes replaces the Routes; requests in progress keep theirs, and so do
// connections to endpoints that stay.
func (s *Server) SetRoutes(r *Routes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.live.Load()
	s.live.Store(r)
	for k, e := range old.reached {
		if r.reached[k] != e {
			e.disconnect(true)
		}
	}
}

// encryptedKey is where a request's context says how its connection is encrypted,
// if net/http did not do that itself.
type encryptedKey struct{}

// transport returns the connections to an endpoint.
func (s *Server) transport(e *endpoint) *http.Transport {
	if t := e.pool.Load(); t != nil {
		return t
	}
	e.pool.CompareAndSwap(nil, s.newPool(e.poolKey, netip.Addr{}))
	return e.pool.Load()
}

// newPool makes the connections to one endpoint, none yet; from the address of a
// client if there is one.
func (s *Server) newPool(k poolKey, client netip.Addr) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, cmp.Or(k.wire.connect, s.cfg.DialTimeout))
			defer cancel()
			dial := s.dial
			if client.IsValid() {
				dial = func(ctx context.Context, _ string, k poolKey) (net.Conn, error) {
					return s.cfg.DialAs(ctx, client, k.addr)
				}
			}
			c, err := dial(ctx, network, k)
			if err != nil {
				return nil, &dialError{err}
			}
			return c, nil
		},
		DisableCompression:    true, // the client's Accept-Encoding is what counts
		MaxIdleConnsPerHost:   maxIdle,
		IdleConnTimeout:       endpointIdle,
		ResponseHeaderTimeout: cmp.Or(k.wire.answer, s.cfg.AnswerTimeout),
		ExpectContinueTimeout: time.Second,
		Protocols:             new(http.Protocols),
	}
	switch k.wire.protocol {
	case h2c:
		t.Protocols.SetUnencryptedHTTP2(true)
	case h2:
		t.Protocols.SetHTTP2(true)
		t.TLSClientConfig = k.wire.tls.config()
	case https:
		t.Protocols.SetHTTP1(true)
		t.TLSClientConfig = k.wire.tls.config()
	default:
		t.Protocols.SetHTTP1(true)
	}
	return t
}

// dial connects to an endpoint in the cluster, or outside.
func (s *Server) dial(ctx context.Context, network string, k poolKey) (net.Conn, error) {
	if k.name == "" {
		return s.cfg.Dial(ctx, network, k.String())
	}
	if s.cfg.DialOut == nil {
		return nil, fmt.Errorf("there is no way out to %s", k)
	}
	return s.cfg.DialOut(ctx, network, k.String())
}

// config is what a connection to an endpoint does. An endpoint is an address: its
// certificate is for the name that proxy-ssl-name says, or for any.
func (k tlsKey) config() *tls.Config {
	c := &tls.Config{MinVersion: cmp.Or(k.version, tls.VersionTLS12), InsecureSkipVerify: true}
	for name := range strings.FieldsSeq(k.ciphers) {
		c.CipherSuites = append(c.CipherSuites, opensslSuites[name])
	}
	if k.sni {
		c.ServerName = k.name
	} else {
		c.ServerName = "0.0.0.0" // an address is not sent as SNI
	}
	if k.pair != nil {
		c.Certificates = []tls.Certificate{*k.pair.cert}
	}
	if k.roots != nil {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, cert := range cs.PeerCertificates[1:] {
				between.AddCert(cert)
			}
			leaf, name := cs.PeerCertificates[0], k.name
			if k.names != "" {
				name = ""
			}
			chains, err := leaf.Verify(x509.VerifyOptions{Roots: k.roots, Intermediates: between, DNSName: name})
			if err != nil {
				return err
			}
			if k.depth > 0 && !withinDepth(chains, k.depth) {
				return errors.New("the certificate's chain is longer than proxy-ssl-verify-depth")
			}
			return hasName(leaf, k.names)
		}
	}
	return c
}

func (p protocol) encrypted() bool { return p == https || p == h2 }

func (e *endpoint) scheme() string {
	if e.wire.protocol.encrypted() {
		return "https"
	}
	return "http"
}

// dialError is that of an endpoint which nothing was sent to.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// certificate chooses by SNI.
func (s *Server) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	routes := s.live.Load()
	if l := routes.listenerOf(hello); l != nil {
		return l.certificate(hello), nil
	}
	if e, _ := hello.Context().Value(entranceKey{}).(entrance); !e.ingress() {
		return nil, fmt.Errorf("no listener of a Gateway is for %q", hello.ServerName)
	}
	if e := routes.certs.find(matchHost(hello.ServerName)); e != nil && e.pair != nil {
		return e.pair, nil
	}
	return s.selfSigned()
}

// Serve answers HTTP on l, which it owns. It returns nil after Shutdown.
func (s *Server) Serve(l net.Listener) error { return s.accept(l, nil) }

// ServeTLS answers HTTPS (HTTP/1.1 and HTTP/2) on l, which it owns. It returns
// nil after Shutdown. Redirects from HTTP lead to the port of l where l has the
// address that the request came to.
func (s *Server) ServeTLS(l net.Listener) error {
	by, _ := l.(entrance)
	if ap, err := netip.ParseAddrPort(l.Addr().String()); err == nil && by.ingress() {
		s.mu.Lock()
		s.tlsPorts[ap.Addr().Unmap()] = ap.Port()
		s.mu.Unlock()
	}
	sn := newSniffer(s, l)
	defer sn.wg.Wait()
	return s.accept(sn, s.tls)
}

// tlsPort is where HTTPS is at the address that a request came to: 443 unless a
// listener says otherwise.
func (s *Server) tlsPort(local netip.Addr) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, addr := range []netip.Addr{local, netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if port, ok := s.tlsPorts[addr]; ok {
			return port
		}
	}
	return 443
}

// Shutdown stops listening and waits for the requests in progress, at most until
// ctx ends; then it cuts those that are left, and what has been upgraded.
func (s *Server) Shutdown(ctx context.Context) error {
	ended := make(chan error, 1)
	s.closing.Store(true)
	go func() { ended <- s.endQUIC(ctx) }()
	s.endLanes(ctx)
	err := errors.Join(s.http.Shutdown(ctx), <-ended)
	s.cancel()
	if err != nil {
		s.http.Close()
		err = fmt.Errorf("shut down ingress: %w", err)
	}
	s.lanes.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.live.Load().reached {
		e.disconnect(true)
	}
	s.asides.Wait()
	return err
}

// Counters are the totals since the start, by name.
func (s *Server) Counters() map[string]uint64 {
	return map[string]uint64{
		"ingress_requests_total":            s.requests.Load(),
		"ingress_retries_total":             s.retries.Load(),
		"ingress_unrouted_total":            s.unrouted.Load(),
		"ingress_backend_unavailable_total": s.unavailable.Load(),
		"ingress_backend_errors_total":      s.failed.Load(),
	}
}
