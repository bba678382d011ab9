package ingress

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// One request
//
// The Routes are loaded once. The request is answered here (404, 308, 503) or
// copied to an endpoint as it is: method, Host, query and body as asked, path
// without dot elements, hop-by-hop fields removed, and what was known of the
// client before added. Fields that say where a request came from are made new
// unless the client is a trusted proxy, in any spelling that a backend could
// mistake for them.
//
// Endpoints are taken in turn. One that cannot be connected to is replaced once
// by the next, if nothing of the request's body has been read; a request that
// may have reached an endpoint is never sent again.

// request is one on its way to a backend.
type request struct {
	*Server
	live   *live
	in     *http.Request
	path   string // escaped, clean
	host   string // as matched
	client netip.Addr
	local  netip.AddrPort // where it arrived
	trust  bool           // the client is a trusted proxy
	table  *host          // nil: no rule is for the host
	route  *route         // nil: no route
}

func (s *Server) serve(w http.ResponseWriter, in *http.Request) {
	s.requests.Add(1)
	q := &request{Server: s, live: s.live.Load(), in: in, host: matchHost(in.Host), path: cleanPath(in.URL.EscapedPath())}
	if client, err := netip.ParseAddrPort(in.RemoteAddr); err == nil {
		q.client = client.Addr().Unmap().WithZone("")
	}
	if addr, ok := in.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		q.local, _ = netip.ParseAddrPort(addr.String())
	}
	q.trust = q.trusted(q.client)
	if in.Method == http.MethodConnect || !strings.HasPrefix(q.path, "/") {
		q.page(w, http.StatusBadRequest, nil)
		return
	}
	q.table, q.route = q.live.routes.match(q.host, matchPath(q.path))
	switch {
	case q.route == nil:
		s.unrouted.Add(1)
		q.page(w, http.StatusNotFound, nil)
	case !q.secure() && q.live.routes.redirects(q.route, q.host):
		q.redirect(w)
	case len(q.route.backend.endpoints) == 0:
		s.unavailable.Add(1)
		q.page(w, http.StatusServiceUnavailable, nil)
	default:
		q.proxy(w)
	}
}

// secure reports whether the client's connection is encrypted.
func (q *request) secure() bool {
	return q.in.TLS != nil || q.trust && strings.EqualFold(q.in.Header.Get("X-Forwarded-Proto"), "https")
}

// redirect sends the client to the same place by HTTPS. A client that named a
// port gets that of our TLS listener; one that did not came through port 80,
// whoever forwards it to us, and finds 443 there.
func (q *request) redirect(w http.ResponseWriter) {
	host := q.in.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		if strings.Contains(name, ":") {
			name = "[" + name + "]"
		}
		host = name
		if port := q.tlsPort(q.local.Addr().Unmap()); port != 443 {
			host += ":" + strconv.Itoa(int(port))
		}
	}
	target := "https://" + host + q.path
	if q.in.URL.RawQuery != "" || q.in.URL.ForceQuery {
		target += "?" + q.in.URL.RawQuery
	}
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusPermanentRedirect)
}

func (q *request) proxy(w http.ResponseWriter) {
	proxy := httputil.ReverseProxy{
		Rewrite:       q.rewrite,
		Transport:     q,
		FlushInterval: -1,
		BufferPool:    &q.buffers,
		ErrorLog:      q.errorLog,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(err, context.Canceled) && q.in.Context().Err() != nil {
				panic(http.ErrAbortHandler) // the client is gone, or we are going
			}
			q.failed.Add(1)
			q.page(w, statusOf(err), err)
		},
	}
	proxy.ServeHTTP(w, q.in)
}

func statusOf(err error) int {
	var timeout net.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// rewrite makes the request that the endpoint gets.
func (q *request) rewrite(p *httputil.ProxyRequest) {
	in, out := q.in, p.Out
	out.Host = in.Host
	out.Trailer = in.Trailer // the same map: it is filled when the body has been read
	out.URL.Scheme = "http"
	out.URL.RawQuery = in.URL.RawQuery // ours to pass on, not to read
	if q.path != in.URL.EscapedPath() {
		out.URL.Path, _ = url.PathUnescape(q.path)
		out.URL.RawPath = q.path
	}
	h := out.Header
	for name := range h {
		if !q.trust && impersonates(name) {
			delete(h, name)
		}
	}
	forwardedFor := q.client.String()
	proto, port := "http", q.local.Port()
	if in.TLS != nil {
		proto = "https"
	}
	set := func(name, value string) {
		if had := in.Header.Get(name); q.trust && had != "" {
			value = had
		}
		h.Set(name, value)
	}
	if had := in.Header.Values("X-Forwarded-For"); q.trust && len(had) > 0 {
		forwardedFor = strings.Join(had, ", ") + ", " + forwardedFor
	}
	h.Set("X-Forwarded-For", forwardedFor)
	set("X-Forwarded-Proto", proto)
	set("X-Forwarded-Host", in.Host)
	set("X-Forwarded-Port", strconv.Itoa(int(port)))
	set("X-Request-Id", requestID())
	h.Set("X-Real-Ip", q.origin().String())
}

// impersonates reports whether a field of this name, or one that CGI-like
// backends take for it, says where a request came from.
func impersonates(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.HasPrefix(name, "x-forwarded-") || name == "x-real-ip" || name == "x-request-id" || name == "forwarded"
}

// origin is the last address on the way that is no trusted proxy's.
func (q *request) origin() netip.Addr {
	addr := q.client
	if !q.trust {
		return addr
	}
	hops := strings.Split(strings.Join(q.in.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		next, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		if addr = next; !q.trusted(addr) {
			break
		}
	}
	return addr
}

func (s *Server) trusted(addr netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func requestID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// RoundTrip sends the request to the endpoint whose turn it is, or to the next
// one if that cannot be connected to.
func (q *request) RoundTrip(out *http.Request) (*http.Response, error) {
	endpoints := q.route.backend.endpoints
	turn := q.route.backend.next.Add(1) - 1
	var body *untouched
	if out.Body != nil {
		body = &untouched{ReadCloser: out.Body}
		out.Body = body
	}
	for attempt := range uint32(2) {
		k := poolKey{endpoints[(turn+attempt)%uint32(len(endpoints))], q.route.backend.h2c}
		out.URL.Host = k.addr.String()
		answer, err := q.live.pools[k].RoundTrip(out)
		var dial *dialError
		if err == nil || !errors.As(err, &dial) || attempt > 0 || len(endpoints) == 1 ||
			body != nil && body.read.Load() || out.Context().Err() != nil {
			return answer, err
		}
		q.retries.Add(1)
	}
	panic("unreachable")
}

// untouched is a request body that knows whether some of it was read. Closing
// is left to the one who made the request, as it may be sent a second time.
type untouched struct {
	io.ReadCloser
	read atomic.Bool
}

func (b *untouched) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.ReadCloser.Read(p)
}

func (b *untouched) Close() error { return nil }

// bufferPool lends the buffers that bodies are copied through.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10 // bytes

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return make([]byte, bufferSize)
}

func (p *bufferPool) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }
