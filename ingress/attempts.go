package ingress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// Attempts
//
// An endpoint that cannot be connected to, or fails before it answers, is replaced
// by another as proxy-next-upstream says, if nothing of the request's body has
// been read. POST, PATCH and LOCK requests that may have reached an endpoint are
// not sent again unless the Ingress says non_idempotent.

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
		e.connected(dialled || e.wire.asClient, sent) // one client that is denied is no reason for others
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
		return q.through(e).RoundTrip(out)
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
	answer, err := q.through(e).RoundTrip(timed)
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
