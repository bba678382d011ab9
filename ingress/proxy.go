package ingress

import (
	"bytes"
	"cmp"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
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
// An endpoint that cannot be connected to, or fails before it answers, is replaced
// by another as proxy-next-upstream says, if nothing of the request's body has
// been read. POST, PATCH and LOCK requests that may have reached an endpoint are
// not sent again unless the Ingress says non_idempotent.

// request is one on its way to a backend.
type request struct {
	*Server
	live     *Routes
	in       *http.Request
	path     string // escaped, clean
	match    string // the path as compared
	host     string // as matched
	client   netip.Addr
	entry    entrance       // the listener that it came by
	local    netip.AddrPort // where it arrived
	trust    bool           // the client is a trusted proxy
	listener *listener      // of a Gateway; nil: none
	table    *host          // nil: no rule is for the host
	route    *route         // nil: no route

	began       time.Time
	requestID   string
	user        string        // who the password was right for
	granted     http.Header   // what auth-url gives to the endpoint
	cookies     []string      // and to the client
	backend     *backend      // the route's, its canary or its fallback
	endpoint    *endpoint     // that answered
	waited      time.Duration // until its header
	intercepted bool          // an error page was asked for
	slow        *unhurried    // the request's body; nil: it has none, or time
}

func (s *Server) serve(w http.ResponseWriter, in *http.Request) {
	s.requests.Add(1)
	if encrypted, ok := in.Context().Value(encryptedKey{}).(*tls.ConnectionState); ok {
		in.TLS = encrypted
	}
	q := &request{Server: s, live: s.live.Load(), in: in, host: matchHost(in.Host), path: cleanPath(in.URL.EscapedPath()), began: time.Now()}
	if client, err := netip.ParseAddrPort(in.RemoteAddr); err == nil {
		q.client = client.Addr().Unmap().WithZone("")
	}
	if addr, ok := in.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		q.local = localAddr(addr)
	}
	q.entry, _ = in.Context().Value(entranceKey{}).(entrance)
	q.trust = q.trusted(q.client)
	a := &answer{ResponseWriter: w}
	defer q.seen(a)
	if in.Method == http.MethodConnect || !strings.HasPrefix(q.path, "/") {
		q.page(a, http.StatusBadRequest, nil)
		return
	}
	fields := 0
	for _, vs := range in.Header {
		fields += len(vs)
	}
	if fields > maxFields {
		q.page(a, http.StatusRequestHeaderFieldsTooLarge, nil)
		return
	}
	q.match = matchPath(q.path)
	status := q.find()
	if q.route == nil {
		s.unrouted.Add(1)
		q.page(a, status, nil)
		return
	}
	if q.route.split != nil {
		q.route = q.route.split.choose(rand.IntN)
	}
	if within := q.route.options.within; within > 0 {
		ctx, cancel := context.WithTimeout(in.Context(), within)
		defer cancel()
		q.in = in.WithContext(ctx)
	}
	q.answer(a)
}

func localAddr(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort()
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// answer does for a route what nginx does in its phases: redirects, then guards,
// then the backend.
func (q *request) answer(w http.ResponseWriter) {
	o := q.route.options
	switch {
	case o.denied != "":
		q.page(w, http.StatusServiceUnavailable, errors.New(o.denied))
		return
	case o.appRoot != "" && q.path == "/":
		w.Header().Set("Location", q.scheme()+"://"+q.in.Host+o.appRoot)
		w.WriteHeader(http.StatusFound)
		return
	case o.redirect != nil:
		w.Header().Set("Location", o.redirect.to.String(q))
		w.WriteHeader(o.redirect.code)
		return
	case o.cors != nil && o.cors.preflight(q.in, w):
		return
	case !q.secure() && q.live.redirects(q.route, q.host):
		q.redirect(w)
		return
	}
	done, ok := q.admit(w)
	if done != nil {
		defer done()
	}
	if !ok {
		return
	}
	q.backend = q.route.backend
	if c := q.route.canary; c != nil && len(c.backend.endpoints) > 0 && c.takes(q.in, rand.IntN) {
		q.backend = c.backend
	}
	if len(q.backend.endpoints) == 0 && o.fallback != nil && !o.intercept[http.StatusServiceUnavailable] {
		q.backend = o.fallback
	}
	if len(q.backend.endpoints) == 0 {
		q.unavailable.Add(1)
		q.page(w, cmp.Or(q.backend.status, http.StatusServiceUnavailable), nil)
		return
	}
	if o.bodySize > 0 {
		if q.in.ContentLength > o.bodySize {
			w.Header().Set("Connection", "close")
			q.page(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than proxy-body-size"))
			return
		}
		q.in.Body = http.MaxBytesReader(w, q.in.Body, o.bodySize)
	}
	if q.in.ContentLength != 0 && !strings.HasPrefix(q.in.Header.Get("Content-Type"), "application/grpc") {
		q.slow = &unhurried{ReadCloser: q.in.Body, control: http.NewResponseController(w), limit: q.cfg.BodyTimeout}
		q.in = q.in.WithContext(q.in.Context()) // net/http looks at its own request's body
		q.in.Body = q.slow
	}
	for _, m := range o.mirrors {
		if m.takes(rand.IntN) {
			m.copy(q)
		}
	}
	q.proxy(w)
}

func (q *request) now() time.Time { return q.began }

// scheme is the client's.
func (q *request) scheme() string {
	if q.secure() {
		return "https"
	}
	return "http"
}

// decoded is the path as nginx's $uri has it.
func (q *request) decoded() string { return decoded(q.match) }

// id names the request, to the endpoint and in logs.
func (q *request) id() string {
	if q.requestID == "" {
		if had := q.in.Header.Get("X-Request-Id"); q.trust && had != "" {
			q.requestID = had
		} else {
			q.requestID = requestID()
		}
	}
	return q.requestID
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
	w.WriteHeader(q.route.options.code)
}

func (q *request) proxy(w http.ResponseWriter) {
	// What has a length is sent as buffers fill; events and what has none as it comes.
	proxy := httputil.ReverseProxy{
		Rewrite:    q.rewrite,
		Transport:  q,
		BufferPool: &q.buffers,
		ErrorLog:   q.errorLog,
		ModifyResponse: func(answer *http.Response) error {
			q.complete(answer)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if q.slow != nil && q.slow.late.Load() {
				err = errSlowBody // for which net/http ends the request's context
			} else if errors.Is(err, context.Canceled) && errors.Is(q.in.Context().Err(), context.Canceled) {
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
	case errors.Is(err, errSlowBody):
		return http.StatusRequestTimeout
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// rewrite makes the request that the endpoint gets.
func (q *request) rewrite(p *httputil.ProxyRequest) {
	in, out := q.in, p.Out
	out.Host = in.Host
	out.Trailer = in.Trailer           // the same map: it is filled when the body has been read
	out.URL.RawQuery = in.URL.RawQuery // ours to pass on, not to read
	if q.path != in.URL.EscapedPath() {
		out.URL.Path, _ = url.PathUnescape(q.path)
		out.URL.RawPath = q.path
	}
	o := q.route.options
	q.rewritePath(out.URL)
	o.path.apply(q, out.URL)
	h := out.Header
	q.forwarded(h)
	if o.rewrite != "" && o.prefix != "" {
		h.Set("X-Forwarded-Prefix", o.prefix)
	}
	if o.host != nil {
		out.Host = o.host.String(q)
	}
	if o.client != nil {
		o.client.tell(in, h)
	}
	for name, v := range q.granted {
		if h.Del(name); len(v) > 0 {
			h[name] = v
		}
	}
	for name, v := range o.requestHeaders {
		h[name] = v
	}
	o.requestEdits.apply(h)
	if w := q.backend.wire.protocol; w == h2c || w == h2 {
		h.Set("Te", "trailers") // gRPC insists
	}
}

// rewritePath applies rewrite-target, as nginx's "rewrite" does: the groups are
// those of the decoded path, and the query is kept.
func (q *request) rewritePath(u *url.URL) {
	r, target := q.route, q.route.options.rewrite
	if target == "" || target == r.path || r.pattern == nil {
		return
	}
	groups := r.pattern.FindStringSubmatch(q.decoded())
	path, query, has := strings.Cut(target, "?")
	path, query = expand(path, groups), expand(query, groups)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	u.Path, u.RawPath = path, ""
	if has && query != "" {
		if u.RawQuery != "" {
			query += "&" + u.RawQuery
		}
		u.RawQuery = query
	}
}

// expand puts the groups of a pattern where "$1" to "$9" stand.
func expand(target string, groups []string) string {
	var b strings.Builder
	for i := 0; i < len(target); i++ {
		if c := target[i]; c != '$' || i+1 == len(target) || target[i+1] < '0' || target[i+1] > '9' {
			b.WriteByte(c)
			continue
		}
		i++
		if n := int(target[i] - '0'); n < len(groups) {
			b.WriteString(groups[n])
		}
	}
	return b.String()
}

// forwarded says in the fields of a request where it came from.
func (q *request) forwarded(h http.Header) {
	in := q.in
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
	h.Set("X-Request-Id", q.id())
	h.Set("X-Real-Ip", q.origin().String())
}

// complete makes the answer that the client gets.
func (q *request) complete(answer *http.Response) {
	o := q.route.options
	if page := q.errorPage(answer.StatusCode); page != nil {
		answer.Body.Close()
		answer.StatusCode, answer.Status, answer.Header = page.StatusCode, page.Status, page.Header
		answer.Body, answer.ContentLength, answer.Trailer = page.Body, page.ContentLength, nil
	}
	h := answer.Header
	for name, v := range o.responseHeaders {
		h[name] = v
	}
	o.answerEdits.apply(h)
	if o.hsts != "" && q.secure() {
		h.Set("Strict-Transport-Security", o.hsts)
	}
	if o.cors != nil {
		o.cors.set(q.in, h)
	}
	for _, c := range q.cookies {
		h.Add("Set-Cookie", c)
	}
	if o.sticky != nil && q.endpoint != nil {
		o.sticky.set(q, q.backend, q.endpoint, h)
	}
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
	crand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// RoundTrip sends the request to the endpoint that is chosen for it, or to
// others as proxy-next-upstream says.
func (q *request) RoundTrip(out *http.Request) (*http.Response, error) {
	o := q.route.options
	out, renew := q.renewable(out)
	var tried []*endpoint
	for attempts := 1; ; attempts++ {
		if o.retry.same && len(tried) == len(q.backend.endpoints) {
			tried = nil
		}
		e := q.backend.pick(q, tried)
		tried = append(tried, e)
		out.URL.Scheme, out.URL.Host = e.scheme(), e.String()
		e.open.Add(1)
		sent := time.Now()
		answer, err := q.send(e, out)
		q.endpoint, q.waited = e, time.Since(sent)
		var dial *dialError
		dialled := !errors.As(err, &dial)
		e.connected(dialled, sent)
		again := (o.retry.same || len(tried) < len(q.backend.endpoints)) && (o.retry.tries == 0 || attempts < o.retry.tries) &&
			out.Context().Err() == nil && (o.retry.timeout == 0 || time.Since(q.began) < o.retry.timeout)
		if again {
			out, again = renew()
		}
		if err == nil {
			e.answered(q.waited)
			if again && o.retry.wants(answer.StatusCode) && q.repeatable(o.retry) {
				answer.Body.Close()
				e.open.Add(-1)
				q.retries.Add(1)
				o.retry.wait(out.Context())
				continue
			}
			answer.Body = &counted{ReadCloser: answer.Body, e: e}
			return answer, nil
		}
		e.open.Add(-1)
		if !again || o.retry.on&reasonOf(err) == 0 || dialled && !q.repeatable(o.retry) {
			return nil, err
		}
		q.retries.Add(1)
		o.retry.wait(out.Context())
	}
}

// send is one attempt, within the times that the Ingress allows.
func (q *request) send(e *endpoint, out *http.Request) (*http.Response, error) {
	o := q.route.options
	if o.attempt == 0 && o.read == 0 && (o.send == 0 || out.Body == nil) {
		return q.transport(e).RoundTrip(out)
	}
	ctx, cancel := context.WithCancelCause(out.Context())
	timed := out.WithContext(ctx)
	if o.send > 0 && out.Body != nil {
		timed.Body = &paced{ReadCloser: out.Body, limit: o.send, between: true, cancel: cancel}
	}
	var late *time.Timer
	if o.attempt > 0 {
		late = time.AfterFunc(o.attempt, func() { cancel(context.DeadlineExceeded) })
	}
	answer, err := q.transport(e).RoundTrip(timed)
	if err != nil {
		if late != nil {
			late.Stop()
		}
		if cause := context.Cause(ctx); errors.Is(err, context.Canceled) && errors.Is(cause, context.DeadlineExceeded) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	body := &paced{ReadCloser: answer.Body, limit: o.read, late: late, cancel: cancel}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		body.limit = 0
		if late != nil {
			late.Stop()
		}
	}
	answer.Body = body
	return answer, nil
}

// paced is a body whose reads, or the times between them, are limited.
type paced struct {
	io.ReadCloser
	limit   time.Duration // 0 none
	between bool
	timer   *time.Timer
	late    *time.Timer // of the whole body; nil: none
	cancel  context.CancelCauseFunc
}

func (p *paced) Read(b []byte) (int, error) {
	if p.limit == 0 {
		return p.ReadCloser.Read(b)
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(p.limit, func() { p.cancel(context.DeadlineExceeded) })
	} else {
		p.timer.Reset(p.limit)
	}
	if p.between {
		p.timer.Stop()
	} else {
		defer p.timer.Stop()
	}
	n, err := p.ReadCloser.Read(b)
	if p.between && err == nil {
		p.timer.Reset(p.limit)
	}
	return n, err
}

// Close ends an answer; the body of a request may be closed before its answer comes.
func (p *paced) Close() error {
	for _, t := range []*time.Timer{p.timer, p.late} {
		if t != nil {
			t.Stop()
		}
	}
	err := p.ReadCloser.Close()
	if !p.between {
		p.cancel(nil)
	}
	return err
}

func (p *paced) Write(b []byte) (int, error) { return writeTo(p.ReadCloser, b) }

// writeTo writes to a connection that was upgraded.
func writeTo(c io.Closer, p []byte) (int, error) {
	w, ok := c.(io.Writer)
	if !ok {
		return 0, errors.New("the connection was not upgraded")
	}
	return w.Write(p)
}

// unhurried is a request's body of which some has to come within each limit.
type unhurried struct {
	io.ReadCloser
	control *http.ResponseController
	limit   time.Duration
	late    atomic.Bool
}

func (u *unhurried) Read(p []byte) (int, error) {
	u.control.SetReadDeadline(time.Now().Add(u.limit))
	n, err := u.ReadCloser.Read(p)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		u.late.Store(true)
		err = errSlowBody // the deadline stays: net/http would wait for the rest
	case err != nil:
		u.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (u *unhurried) Close() error {
	if !u.late.Load() {
		u.control.SetReadDeadline(time.Time{})
	}
	return u.ReadCloser.Close()
}

var errSlowBody = errors.New("the client was too slow with the request's body")

// counted is an answer's body; while it is open its endpoint has something to do.
type counted struct {
	io.ReadCloser
	e    *endpoint
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.e.open.Add(-1) })
	return c.ReadCloser.Close()
}

func (c *counted) Write(p []byte) (int, error) { return writeTo(c.ReadCloser, p) }

// renewable is a request that may be sent more than once. renew makes the next
// one of it, and reports whether there can be one: if nothing of the body has
// been read, or it was small and is kept because the route asks for repetitions.
func (q *request) renewable(out *http.Request) (first *http.Request, renew func() (*http.Request, bool)) {
	if !q.route.options.retry.same {
		if out.Body == nil {
			return out, func() (*http.Request, bool) { return out, true }
		}
		body := &untouched{ReadCloser: out.Body}
		out.Body = body
		return out, func() (*http.Request, bool) { return out, !body.read.Load() }
	}
	var kept []byte
	if out.Body != nil {
		n := q.in.ContentLength
		if n < 0 || n > maxKept {
			return out, func() (*http.Request, bool) { return out, false }
		}
		var err error
		if kept, err = io.ReadAll(out.Body); err != nil {
			out.Body = io.NopCloser(io.MultiReader(bytes.NewReader(kept), failing{err}))
			return out, func() (*http.Request, bool) { return out, false }
		}
	}
	next := func() (*http.Request, bool) {
		again := out.Clone(out.Context())
		if out.Body != nil {
			again.Body = io.NopCloser(bytes.NewReader(kept))
		}
		return again, true
	}
	first, _ = next()
	return first, next
}

const maxKept = 64 << 10 // bytes of a body that is kept for repetitions

// failing is the end of a body that could not be read.
type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// wants reports whether an answer of this status is another try's reason.
func (r *retry) wants(status int) bool {
	return r.on&statusConditions[status] != 0 || r.codes[status]
}

// wait lets the time between two attempts pass.
func (r *retry) wait(ctx context.Context) {
	if r.backoff == 0 {
		return
	}
	t := time.NewTimer(r.backoff)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// repeatable reports whether a request that may have reached an endpoint can be
// sent to another.
func (q *request) repeatable(r retry) bool {
	switch q.in.Method {
	case http.MethodPost, http.MethodPatch, "LOCK":
		return r.on&nonIdempotent != 0
	}
	return true
}

// reasonOf is the condition that an error is.
func reasonOf(err error) condition {
	switch {
	case errors.Is(err, context.Canceled):
		return 0
	case statusOf(err) == http.StatusGatewayTimeout:
		return onTimeout
	case strings.Contains(err.Error(), "malformed HTTP"):
		return onInvalidHeader
	}
	return onError
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
