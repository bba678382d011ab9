package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
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

// request is one on its way to a backend.
type request struct {
	*Server
	live     *Routes
	in       *http.Request        // nil on the lane, where nobody asks for more than the rest
	tls      *tls.ConnectionState // the client's; nil: it is not encrypted
	path     string               // escaped, clean
	match    string               // the path as compared
	host     string               // as matched
	client   netip.Addr
	entry    entrance       // the listener that it came by
	local    netip.AddrPort // where it arrived
	trust    bool           // the client is a trusted proxy
	listener *listener      // of a Gateway; nil: none
	table    *host          // nil: no rule is for the host
	route    *route         // nil: no route

	began       time.Time
	requestID   string
	unverified  error         // why the client's certificate is not to be believed, where that may be
	session     string        // key of a new session, see sticky.go
	user        string        // who the password was right for
	granted     http.Header   // what auth-url gives to the endpoint
	cookies     []string      // and to the client
	backend     *backend      // the route's, its canary or its fallback
	endpoint    *endpoint     // that answered
	waited      time.Duration // until its header
	standsIn    bool          // backend is the default backend, as the route's has no endpoints
	intercepted bool          // an error page was asked for
	slow        *unhurried    // the request's body; nil: it has none, or time
}

func (s *Server) serve(w http.ResponseWriter, in *http.Request) {
	s.requests.Add(1)
	if encrypted, ok := in.Context().Value(encryptedKey{}).(*tls.ConnectionState); ok {
		in.TLS = encrypted
	}
	q := &request{Server: s, live: s.live.Load(), in: in, tls: in.TLS, host: matchHost(in.Host), path: cleanPath(in.URL.EscapedPath()), began: time.Now()}
	if client, err := netip.ParseAddrPort(in.RemoteAddr); err == nil {
		q.client = client.Addr().Unmap().WithZone("")
	}
	if addr, ok := in.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		q.local = localAddr(addr)
	}
	if in.Host == "" { // HTTP/1.0, or a client that knows an address only: that is the host
		in.Host = q.local.String()
		q.host = matchHost(in.Host)
	}
	q.entry, _ = in.Context().Value(entranceKey{}).(entrance)
	q.trust = q.trusted(q.client)
	a := &answer{ResponseWriter: w}
	if in.TLS != nil && in.ProtoMajor < 3 {
		a.elsewhere = s.altSvc(q.local)
	}
	defer q.seen(a)
	if in.Method == http.MethodConnect || !strings.HasPrefix(q.path, "/") {
		q.page(a, http.StatusBadRequest, nil)
		return
	}
	if !q.live.blocked.nobody() && q.live.blocked.has(q) {
		q.page(a, http.StatusForbidden, nil)
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
	q.share()
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

// answer does what a route wants.
func (q *request) answer(w http.ResponseWriter) {
	own, done := q.judge()
	if done != nil {
		defer done()
	}
	if own != nil {
		own(w)
		return
	}
	o := q.route.options
	if o.bodySize > 0 {
		if q.in.ContentLength > o.bodySize {
			if q.in.ProtoMajor < 3 { // there, it is not allowed
				w.Header().Set("Connection", "close")
			}
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

// decoded is the path as nginx's $uri has it.
func (q *request) decoded() string { return decoded(q.match) }

// refer sends the client elsewhere.
func (q *request) refer(w http.ResponseWriter, status int, location string) {
	q.dress(w.Header())
	w.Header().Set("Location", location)
	w.WriteHeader(status)
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
	q.refer(w, q.route.options.code, target)
}

func (q *request) proxy(w http.ResponseWriter) {
	// What has a length is sent as buffers fill; events and what has none as it comes.
	proxy := httputil.ReverseProxy{
		Rewrite:    q.rewrite,
		Transport:  q,
		BufferPool: &q.buffers,
		ErrorLog:   q.errorLog,
		ModifyResponse: func(answer *http.Response) error {
			if isGRPC(q.in) {
				answer.Body = &excused{ReadCloser: answer.Body, q: q, answer: answer}
			}
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
	if o.originalURI {
		h.Set("X-Original-Uri", in.URL.RequestURI())
	}
	if o.basic != nil {
		h.Del("Authorization") // it was for us
	}
	if q.standsIn {
		q.explain(h, http.StatusServiceUnavailable)
	}
	if o.rewrite != "" && o.prefix != "" {
		h.Set("X-Forwarded-Prefix", o.prefix)
	}
	out.Host = q.hostFor(in.Host)
	if o.client != nil {
		o.client.tell(q.tls, q.unverified, h)
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

// hostFor is the Host that endpoints get: the route's, if what the route says is a
// host for this request, else the client's.
func (q *request) hostFor(asked string) string {
	if t := q.route.options.host; t != nil {
		if host := t.String(q); host != "" && plainHost([]byte(host)) {
			return host
		}
	}
	return asked
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
	path = expand(path, groups)
	for i := range groups {
		groups[i] = queryEscape(groups[i])
	}
	query = expand(query, groups)
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

// queryEscape encodes what would not be part of one parameter's value, as nginx
// does with groups after a question mark.
func queryEscape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "%2F", "/")
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

// complete makes the answer that the client gets. On the lane nobody has read the
// request for it, unless the route reads.
func (q *request) complete(answer *http.Response) {
	o := q.route.options
	if o.pace.rate > 0 && answer.StatusCode != http.StatusSwitchingProtocols {
		answer.Body = &slowed{ReadCloser: answer.Body, pace: o.pace, ctx: q.in.Context()}
	}
	if !o.ownErrors {
		q.intercept(answer)
	}
	h := answer.Header
	for _, name := range o.hidden {
		h.Del(name)
	}
	o.location.applyTo(h)
	o.cookies.apply(h)
	o.answerEdits.apply(h)
	q.dress(h)
	if o.auth != nil && o.auth.shows(answer.StatusCode) {
		for _, c := range q.cookies {
			h.Add("Set-Cookie", c)
		}
	}
	if o.sticky != nil && q.endpoint != nil {
		o.sticky.set(q, q.backend, q.endpoint, h)
	}
}

// intercept replaces an endpoint's answer by a page for its status, if there is one.
func (q *request) intercept(answer *http.Response) {
	if page := q.errorPage(answer.StatusCode); page != nil {
		answer.Body.Close()
		answer.StatusCode, answer.Status, answer.Header = page.StatusCode, page.Status, page.Header
		answer.Body, answer.ContentLength, answer.Trailer = page.Body, page.ContentLength, nil
	}
}

// dress adds the fields that all answers of a route have: the endpoints' and,
// as in ingress-nginx, redirects, refusals and errors of our own. Without them a
// browser would not show a script of another origin that it has to log in.
func (q *request) dress(h http.Header) {
	o := q.route.options
	for name, v := range o.responseHeaders {
		h[name] = v
	}
	if o.hsts != "" && q.secure() {
		h.Set("Strict-Transport-Security", o.hsts)
	}
	if o.cors != nil {
		o.cors.set(q.in, h)
	}
}
