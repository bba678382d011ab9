package ingress

import (
	"fmt"
	"net/http"
)

// Who may come in, in nginx's order: client certificates, limits, then addresses,
// passwords and whoever auth-url asks: all of these, or with "satisfy: any" one.

// ownAnswer answers a request that does not go to an endpoint.
type ownAnswer func(w http.ResponseWriter)

// admit asks the guards; no is how a request is answered that is not to go on.
// done is to be called when the request has ended; it may be nil.
func (q *request) admit() (no ownAnswer, done func()) {
	o := q.route.options
	if o.client != nil {
		if no = o.client.refuses(q); no != nil {
			return no, nil
		}
	}
	if o.limit != nil {
		var status int
		if done, status = o.limit.take(q.origin(), q.now()); status != 0 {
			return q.refusal(status, "a limit of this Ingress is exceeded"), nil
		}
	}
	if no = q.refused(); no != nil && done != nil {
		done()
		done = nil
	}
	return no, done
}

// refused asks the guards that are there.
func (q *request) refused() (no ownAnswer) {
	o := q.route.options
	for _, g := range []struct {
		there   bool
		refuses func() ownAnswer
	}{
		{len(o.allow)+len(o.deny) > 0, q.addressRefused},
		{o.basic != nil && !q.route.open, q.passwordRefused},
		{o.auth != nil && !q.route.open, func() ownAnswer { return o.auth.refuses(q) }},
	} {
		if !g.there {
			continue
		}
		no = g.refuses()
		if (no == nil) == o.satisfyAny {
			return no
		}
	}
	return no
}

func (q *request) addressRefused() ownAnswer {
	o := q.route.options
	switch {
	case contains(o.deny, q.origin()):
		return q.refusal(http.StatusForbidden, "denylist-source-range has the client's address")
	case len(o.allow) > 0 && !contains(o.allow, q.origin()):
		return q.refusal(http.StatusForbidden, "whitelist-source-range does not have the client's address")
	}
	return nil
}

func (q *request) passwordRefused() ownAnswer {
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

func (q *request) refusal(status int, why string) ownAnswer {
	return func(w http.ResponseWriter) { q.page(w, status, fmt.Errorf("%s", why)) }
}
