package ingress

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// authRequest is auth-url: somebody is asked whether a request may pass.
type authRequest struct {
	*remote
	method   string
	redirect template    // what they are told as X-Auth-Request-Redirect
	told     http.Header // what else they are told
	signin   template    // where clients without are sent
	param    string      // of signin: where they wanted to go
	fields   []string    // of their answer, for the endpoint
	always   bool        // their cookies go to the client whatever the endpoint answers
	cache    *decisions  // nil: they are asked every time
}

// decision is what they said.
type decision struct {
	status    int
	granted   http.Header // fields for the endpoint
	cookies   []string
	challenge []string // WWW-Authenticate
	until     time.Time
}

// refuses asks, and returns how a request is refused; nil: it may pass.
func (a *authRequest) refuses(q *request) ownAnswer {
	v, err := a.ask(q)
	if err != nil {
		return func(w http.ResponseWriter) {
			q.page(w, http.StatusInternalServerError, fmt.Errorf("auth-url: %w", err))
		}
	}
	switch {
	case v.status >= 200 && v.status < 300:
		q.granted, q.cookies = v.granted, v.cookies
		return nil
	case v.status == http.StatusUnauthorized && a.signin != nil:
		return func(w http.ResponseWriter) {
			w.Header()["Set-Cookie"] = v.cookies
			q.refer(w, http.StatusFound, a.signinFor(q))
		}
	case v.status == http.StatusUnauthorized || v.status == http.StatusForbidden:
		return func(w http.ResponseWriter) {
			if v.challenge != nil {
				w.Header()["Www-Authenticate"] = v.challenge
			}
			q.page(w, v.status, fmt.Errorf("auth-url answered %d", v.status))
		}
	}
	return func(w http.ResponseWriter) {
		q.page(w, http.StatusInternalServerError, fmt.Errorf("auth-url answered %d", v.status))
	}
}

// signinFor is where the client of a request signs in.
func (a *authRequest) signinFor(q *request) string {
	to := a.signin.String(q)
	if u, err := url.Parse(to); err == nil && !u.Query().Has(a.param) {
		sep := "?"
		if u.RawQuery != "" {
			sep = "&"
		}
		to += sep + a.param + "=" + url.QueryEscape(q.scheme()+"://"+q.in.Host+q.in.URL.RequestURI())
	}
	return to
}

// ask asks, or remembers.
func (a *authRequest) ask(q *request) (*decision, error) {
	key := ""
	if a.cache != nil {
		key = a.cache.key.String(q)
		if v := a.cache.get(key, q.now()); v != nil {
			return v, nil
		}
	}
	out, err := q.copied(a.method, a.remote)
	if err != nil {
		return nil, err
	}
	h := out.Header
	h.Del("Content-Length")
	h.Set("X-Original-Url", q.scheme()+"://"+q.in.Host+q.in.URL.RequestURI())
	h.Set("X-Original-Method", q.in.Method)
	h.Set("X-Sent-From", "nginx-ingress-controller")
	h.Set("X-Auth-Request-Redirect", q.in.URL.RequestURI())
	if a.redirect != nil {
		h.Set("X-Auth-Request-Redirect", a.redirect.String(q))
	}
	for name, v := range a.told {
		h[name] = v
	}
	ctx, cancel := context.WithTimeout(q.in.Context(), q.cfg.AnswerTimeout)
	defer cancel()
	answer, err := a.remote.ask(ctx, q, out)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
	v := &decision{status: answer.StatusCode, granted: http.Header{}, cookies: answer.Header["Set-Cookie"], challenge: answer.Header["Www-Authenticate"]}
	for _, name := range a.fields {
		v.granted[name] = answer.Header.Values(name)
	}
	if a.cache != nil {
		a.cache.put(key, v, q.now())
	}
	return v, nil
}

// shows reports whether the client gets the cookies with an answer of this status:
// where nginx adds fields at all.
func (a *authRequest) shows(status int) bool {
	switch status {
	case 200, 201, 204, 206, 301, 302, 303, 304, 307, 308:
		return true
	}
	return a.always
}

// decisions are those that auth-cache-key has remembered.
type decisions struct {
	key   template
	valid map[int]time.Duration // by status; 0 any

	mu   sync.Mutex
	kept map[string]*decision
}

const maxDecisions = 8192 // of an Ingress

func (c *decisions) get(key string, now time.Time) *decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.kept[key]; v != nil && now.Before(v.until) {
		return v
	}
	return nil
}

func (c *decisions) put(key string, v *decision, now time.Time) {
	d, ok := c.valid[v.status]
	if !ok {
		d = c.valid[0]
	}
	if d == 0 || key == "" {
		return
	}
	v.until = now.Add(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, old := range c.kept {
		if len(c.kept) < maxDecisions {
			break
		}
		if !now.Before(old.until) {
			delete(c.kept, k)
		}
	}
	for k := range c.kept {
		if len(c.kept) < maxDecisions {
			break
		}
		delete(c.kept, k)
	}
	c.kept[key] = v
}
