package ingress

import (
	"cmp"
	"maps"
	"net/http"
)

// What becomes of a request that has a route, whichever way it came: what nginx
// does in its phases, redirects, then guards, then the backend. Nothing is
// written here: the lane and net/http do that each in its way.

// judge returns how a request is answered without an endpoint, or nil: then its
// backend is set. done is to be called when the request has ended; it may be nil.
func (q *request) judge() (own ownAnswer, done func()) {
	if own = q.atOnce(); own != nil {
		return own, nil
	}
	if own, done = q.admit(); own != nil {
		return own, nil
	}
	return q.choose(), done
}

// atOnce is the answer of a route that asks nobody.
func (q *request) atOnce() ownAnswer {
	o := q.route.options
	switch {
	case o.denied != "":
		return q.refusal(http.StatusServiceUnavailable, o.denied)
	case o.appRoot != "" && q.path == "/":
		return func(w http.ResponseWriter) { q.refer(w, http.StatusFound, q.scheme()+"://"+q.in.Host+o.appRoot) }
	case o.redirect != nil:
		return func(w http.ResponseWriter) { q.refer(w, o.redirect.code, o.redirect.to.String(q)) }
	}
	if o.cors != nil {
		if h := (http.Header{}); o.cors.preflight(q.in, h) {
			return func(w http.ResponseWriter) {
				maps.Copy(w.Header(), h)
				w.WriteHeader(http.StatusNoContent)
			}
		}
	}
	if !q.secure() && q.live.redirects(q.route, q.host) {
		return q.redirect
	}
	return nil
}

// choose sets the backend: the route's, its canary, or what stands in for them.
func (q *request) choose() ownAnswer {
	o := q.route.options
	q.backend = q.route.backend
	if c := q.route.canary; c != nil && len(c.backend.endpoints) > 0 && q.takesCanary(c) {
		q.backend = c.backend
	}
	if len(q.backend.endpoints) == 0 && o.fallback != nil && !o.intercept[http.StatusServiceUnavailable] {
		q.backend, q.standsIn = o.fallback, true
	}
	if len(q.backend.endpoints) == 0 {
		q.unavailable.Add(1)
		return func(w http.ResponseWriter) { q.page(w, cmp.Or(q.backend.status, http.StatusServiceUnavailable), nil) }
	}
	return nil
}
