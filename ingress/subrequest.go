package ingress

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
	return q.transport(e).RoundTrip(out.WithContext(ctx))
}

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

// authRequest is auth-url: a Service is asked whether a request may pass.
type authRequest struct {
	*remote
	method   string
	redirect template // what the Service is told as X-Auth-Request-Redirect
	signin   template // where clients without are sent
	param    string   // of signin: where they wanted to go
	fields   []string // of the Service's answer, for the endpoint
}

func (a *authRequest) admits(q *request, w http.ResponseWriter) bool {
	out, err := q.copied(a.method, a.remote)
	var answer *http.Response
	if err == nil {
		h := out.Header
		h.Del("Content-Length")
		h.Set("X-Original-Url", q.scheme()+"://"+q.in.Host+q.in.URL.RequestURI())
		h.Set("X-Original-Method", q.in.Method)
		h.Set("X-Auth-Request-Redirect", q.in.URL.RequestURI())
		if a.redirect != nil {
			h.Set("X-Auth-Request-Redirect", a.redirect.String(q))
		}
		ctx, cancel := context.WithTimeout(q.in.Context(), q.cfg.AnswerTimeout)
		defer cancel()
		answer, err = q.ask(ctx, a.backend, out)
	}
	if err != nil {
		q.page(w, http.StatusInternalServerError, fmt.Errorf("auth-url: %w", err))
		return false
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
	switch s := answer.StatusCode; {
	case s >= 200 && s < 300:
		q.granted = http.Header{}
		for _, name := range a.fields {
			q.granted[name] = answer.Header.Values(name)
		}
		q.cookies = answer.Header["Set-Cookie"]
		return true
	case s == http.StatusUnauthorized && a.signin != nil:
		to := a.signin.String(q)
		if u, err := url.Parse(to); err == nil && !u.Query().Has(a.param) {
			sep := "?"
			if u.RawQuery != "" {
				sep = "&"
			}
			to += sep + a.param + "=" + url.QueryEscape(q.scheme()+"://"+q.in.Host+q.in.URL.RequestURI())
		}
		w.Header()["Set-Cookie"] = answer.Header["Set-Cookie"]
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		if v := answer.Header["Www-Authenticate"]; v != nil {
			w.Header()["Www-Authenticate"] = v
		}
		q.page(w, s, fmt.Errorf("auth-url answered %d", s))
	default:
		q.page(w, http.StatusInternalServerError, fmt.Errorf("auth-url answered %d", s))
	}
	return false
}

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

// errorPage asks the default backend for the page of a status that is
// intercepted; nil if it has none to give.
func (q *request) errorPage(status int) *http.Response {
	o := q.route.options
	if !o.intercept[status] || q.intercepted || o.fallback == nil {
		return nil
	}
	q.intercepted = true
	out, _ := http.NewRequest(http.MethodGet, "http://"+q.host+"/", nil)
	format := q.in.Header.Get("Accept")
	out.Host = q.in.Host
	for name, v := range map[string]string{
		"X-Code": strconv.Itoa(status), "X-Format": format, "X-Original-Uri": q.in.URL.RequestURI(),
		"X-Namespace": q.route.ingress.Namespace, "X-Ingress-Name": q.route.ingress.Name,
		"X-Service-Name": q.route.backend.service.Name, "X-Service-Port": q.route.backend.port, "X-Request-Id": q.id(),
	} {
		out.Header.Set(name, v)
	}
	answer, err := q.ask(q.in.Context(), o.fallback, out)
	if err != nil {
		return nil
	}
	removeHopByHop(answer.Header)
	return answer
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
