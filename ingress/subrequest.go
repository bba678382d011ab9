package ingress

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Requests of our own that a client's request causes: auth-url, mirror-target
// and custom-http-errors.

// ask sends a request to a backend; the caller closes the answer's body.
func (q *request) ask(ctx context.Context, b *backend, out *http.Request) (*http.Response, error) {
	if len(b.endpoints) == 0 {
		return nil, fmt.Errorf("%s: %s", b, b.why)
	}
	e := b.endpoints[int(b.next.Add(1)-1)%len(b.endpoints)]
	out.URL.Scheme, out.URL.Host = e.scheme(), e.String()
	if _, named := out.Header["User-Agent"]; !named {
		out.Header.Set("User-Agent", "") // not net/http's
	}
	return q.transport(e).RoundTrip(out.WithContext(ctx))
}

// ask sends a request to where a URL leads: a backend, or a host of our own, whose
// rules answer it as they would answer a client.
func (r *remote) ask(ctx context.Context, q *request, out *http.Request) (*http.Response, error) {
	if r.backend != nil {
		return q.ask(ctx, r.backend, out)
	}
	if q.in.Context().Value(asideKey{}) != nil {
		return nil, fmt.Errorf("%s leads back here", out.Host)
	}
	if out.URL.Scheme = "http"; r.encrypted {
		out.TLS = &tls.ConnectionState{ServerName: matchHost(out.Host)}
	}
	ctx = context.WithValue(ctx, encryptedKey{}, nil)
	for _, key := range []any{entranceKey{}, http.LocalAddrContextKey} {
		ctx = context.WithValue(ctx, key, q.in.Context().Value(key))
	}
	out = out.WithContext(context.WithValue(ctx, asideKey{}, true))
	out.RemoteAddr, out.RequestURI, out.Body = q.in.RemoteAddr, out.URL.RequestURI(), http.NoBody
	answer := &unread{held{header: http.Header{}}}
	q.serve(answer, out)
	return &http.Response{StatusCode: cmp.Or(answer.status, http.StatusOK), Header: answer.header, Body: http.NoBody}, nil
}

// unread is an answer whose body nobody wants.
type unread struct{ held }

func (u *unread) Write(p []byte) (int, error) { return len(p), nil }

// asideKey marks the context of a request that another one causes.
type asideKey struct{}

// copied is a request like the client's, without what is between client and us.
func (q *request) copied(method string, r *remote) (*http.Request, error) {
	host := cmp.Or(r.host, q.in.Host)
	out, err := http.NewRequest(method, "http://"+host+r.uri.String(q), nil)
	if err != nil {
		return nil, err
	}
	out.Header = q.in.Header.Clone()
	removeHopByHop(out.Header)
	q.forwarded(out.Header)
	out.Host = host
	return out, nil
}

// removeHopByHop removes the fields that are for the next hop only (RFC 9110, section 7.6.1).
func removeHopByHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// mirror sends copies of requests to another Service; nobody reads the answers.
type mirror struct {
	*remote
	body  bool
	share *[2]int // numerator and denominator of the requests that are copied; nil: all
}

// takes reports whether a request is copied.
func (m *mirror) takes(dice func(n int) int) bool {
	return m.share == nil || dice(m.share[1]) < m.share[0]
}

const (
	mirrorBody    = 1 << 20 // bytes of a body that is copied at most
	mirrorsAtOnce = 64
	mirrorTimeout = 60 * time.Second
)

// copy sends one, unless too many are under way or its body is too large to hold.
func (m *mirror) copy(q *request) {
	var body []byte
	if m.body && q.in.ContentLength != 0 {
		if q.in.ContentLength < 0 || q.in.ContentLength > mirrorBody {
			return
		}
		var err error
		if body, err = io.ReadAll(q.in.Body); err != nil {
			return // whoever reads on gets the error again
		}
		q.in.Body = struct {
			io.Reader
			io.Closer
		}{bytes.NewReader(body), q.in.Body}
	}
	out, err := q.copied(q.in.Method, m.remote)
	if err != nil {
		return
	}
	out.Header.Del("Content-Length")
	q.route.options.requestEdits.apply(out.Header)
	out.ContentLength = int64(len(body))
	if len(body) > 0 {
		out.Body = io.NopCloser(bytes.NewReader(body))
	}
	select {
	case q.mirrors <- struct{}{}:
	default:
		return
	}
	copied := *q // the original goes on
	q.asides.Go(func() {
		defer func() { <-q.mirrors }()
		ctx, cancel := context.WithTimeout(copied.ctx, mirrorTimeout)
		defer cancel()
		if answer, err := copied.ask(ctx, m.backend, out); err == nil {
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
	})
}

// errorPage asks the default backend, the Ingress's or that of all, for the page
// of a status that is intercepted; nil if it has none to give.
func (q *request) errorPage(status int) *http.Response {
	o := q.route.options
	b := o.fallback
	if all := q.live.fallback; b == nil && all != nil && all.of != "" {
		b = all.backend
	}
	if !o.intercept[status] || q.intercepted || b == nil {
		return nil
	}
	q.intercepted = true
	out, _ := http.NewRequest(http.MethodGet, "http://"+q.host+"/", nil)
	out.Host, out.Header = q.in.Host, q.in.Header.Clone()
	removeHopByHop(out.Header)
	for _, name := range ofThisRequest {
		out.Header.Del(name)
	}
	q.forwarded(out.Header)
	q.explain(out.Header, status)
	out.Header.Set("X-Original-Uri", q.in.URL.RequestURI())
	answer, err := q.ask(q.in.Context(), b, out)
	if err != nil {
		return nil
	}
	removeHopByHop(answer.Header)
	return answer
}

// ofThisRequest are fields about a body, or a copy, that the page has not got.
var ofThisRequest = []string{
	"Content-Length", "Content-Type", "Content-Encoding", "Expect", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range",
}

// explain says to a default backend why it is asked.
func (q *request) explain(h http.Header, status int) {
	for name, v := range map[string]string{
		"X-Code": strconv.Itoa(status), "X-Format": q.in.Header.Get("Accept"), "X-Namespace": q.route.ingress.Namespace, "X-Ingress-Name": q.route.ingress.Name,
		"X-Service-Name": q.route.backend.service.Name, "X-Service-Port": q.route.backend.port, "X-Request-Id": q.id(),
	} {
		h.Set(name, v)
	}
}

// write answers with what errorPage returned.
func writeAnswer(w http.ResponseWriter, answer *http.Response) {
	defer answer.Body.Close()
	h := w.Header()
	for name, v := range answer.Header {
		h[name] = slices.Clone(v)
	}
	w.WriteHeader(answer.StatusCode)
	io.Copy(w, answer.Body)
}
