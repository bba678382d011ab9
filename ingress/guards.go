package ingress

import (
	"fmt"
	"net/http"
)

// Who may come in, in nginx's order: client certificates, limits, then addresses,
// passwords and whoever auth-url asks: all of these, or with "satisfy: any" one.

// refusal answers a request that is not to go on.
type refusal func(w http.ResponseWriter)

// admit answers, and returns false, if a request is not to go on. done is to be
// called when the request has ended; it may be nil.
func (q *request) admit(w http.ResponseWriter) (done func(), ok bool) {
	o := q.route.options
	if o.client != nil && !o.client.admits(q, w) {
		return nil, false
	}
	if o.limit != nil {
		var status int
		if done, status = o.limit.take(q.origin(), q.now()); status != 0 {
			q.page(w, status, fmt.Errorf("a limit of this Ingress is exceeded"))
			return nil, false
		}
	}
	if refuse := q.refused(); refuse != nil {
		if done != nil {
			done()
		}
		refuse(w)
		return nil, false
	}
	return done, true
}

// refused asks the guards that are there.
func (q *request) refused() (refuse refusal) {
	o := q.route.options
	for _, g := range []struct {
		there   bool
		refuses func() refusal
	}{
		{len(o.allow)+len(o.deny) > 0, q.addressRefused},
		{o.basic != nil && !q.route.open, q.passwordRefused},
		{o.auth != nil && !q.route.open, func() refusal { return o.auth.refuses(q) }},
	} {
		if !g.there {
			continue
		}
		refuse = g.refuses()
		if (refuse == nil) == o.satisfyAny {
			return refuse
		}
	}
	return refuse
}

func (q *request) addressRefused() refusal {
	o := q.route.options
	switch {
	case contains(o.deny, q.origin()):
		return q.refusal(http.StatusForbidden, "denylist-source-range has the client's address")
	case len(o.allow) > 0 && !contains(o.allow, q.origin()):
		return q.refusal(http.StatusForbidden, "whitelist-source-range does not have the client's address")
	}
	return nil
}

func (q *request) passwordRefused() refusal {
	basic := q.route.options.basic
	name, password, ok := q.in.BasicAuth()
	if ok && basic.verify(name, password) {
		q.user = name
		return nil
	}
	return func(w http.ResponseWriter) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", basic.realm))
		q.page(w, http.StatusUnauthorized, fmt.Errorf("auth-type basic wants a name and its password"))
	}
}

func (q *request) refusal(status int, why string) refusal {
	return func(w http.ResponseWriter) { q.page(w, status, fmt.Errorf("%s", why)) }
}
