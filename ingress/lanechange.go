package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
)

// What routes change, on the lane
//
// The request line, the Host and the fields that are ours are written anew for
// every request; the rest is passed on as it came. Where a route changes other
// fields, of requests or of answers, they are read as net/http reads them and
// changed by what changes them in net/http's way: rewrite and complete. Then
// written are names that are tokens and values without control characters, and of
// the fields that say how a message is framed only the lane's own: whatever
// templates, patterns and filters make of a header, an endpoint reads one request
// and a client one answer.

// lean reports whether the lane can serve a route, whichever of its backends a
// request is for.
func (r *route) lean() bool {
	if r.split != nil {
		return !slices.ContainsFunc(r.split.routes, func(part *route) bool { return !part.lean() })
	}
	return r.options.lean() && r.backend.lean() && (r.canary == nil || r.canary.backend.lean())
}

// lean reports whether these options leave to the lane what it can do: one
// request to one endpoint after the other, without anybody else's word.
func (o *options) lean() bool {
	return o.auth == nil && len(o.mirrors) == 0 && len(o.intercept) == 0 && o.fallback == nil && o.pace.rate == 0 &&
		o.within == 0 && o.attempt == 0 && !o.retry.same
}

// lean reports whether the lane can speak to these endpoints.
func (b *backend) lean() bool {
	return len(b.endpoints) == 0 || b.wire.protocol == http1 && !b.wire.asClient
}

// reads reports whether more of a request has to be known than its line and Host.
func (r *route) reads() bool {
	o := r.options
	return o.cors != nil || o.sticky != nil || o.hash != nil || o.basic != nil || !o.host.fixed() || o.changesFields() ||
		r.canary != nil && r.canary.header+r.canary.cookie != ""
}

// changesFields reports whether endpoints get other fields than clients send.
func (o *options) changesFields() bool {
	return o.client != nil || o.originalURI || len(o.requestHeaders) > 0 || o.requestEdits != nil
}

// changesAnswers reports whether clients get other fields than endpoints send.
func (o *options) changesAnswers() bool {
	return o.cors != nil || o.sticky != nil || len(o.hidden) > 0 || o.cookies != nil || o.location != nil || len(o.responseHeaders) > 0 || o.answerEdits != nil
}

// parsed is the request in hand as net/http knows it; nil if it does not.
func (l *lane) parsed() *http.Request {
	from := bytes.NewReader(l.buf[:l.in.size+int(l.in.length)])
	if l.again == nil {
		l.again = bufio.NewReaderSize(from, 1<<10)
	} else {
		l.again.Reset(from)
	}
	in, err := http.ReadRequest(l.again)
	if err != nil {
		return nil
	}
	in.RemoteAddr, in.TLS = l.conn.RemoteAddr().String(), l.tls
	return in
}

var errNoRequest = errors.New("what the route makes of this request is no request")

// begin begins the request that endpoints get, in l.out.
func (l *lane) begin(target, host string) error {
	for i := range len(target) {
		if target[i] <= ' ' || target[i] >= 0x7f {
			return errNoRequest
		}
	}
	b := append(append(l.out[:0], l.in.method...), ' ')
	b = append(append(b, target...), " HTTP/1.1\r\nHost: "...)
	l.out = append(append(b, host...), "\r\n"...)
	return nil
}

// finish ends its header and appends the body.
func (l *lane) finish() {
	l.out = append(l.out, "\r\n"...)
	l.out = append(l.out, l.buf[l.in.size:l.in.size+int(l.in.length)]...)
}

// compose makes the request that endpoints get, in l.out.
func (l *lane) compose(query string) error {
	q, o := &l.q, l.q.route.options
	target, host := "", string(l.in.host)
	if o.rewrite != "" || o.path != nil {
		u := url.URL{RawQuery: strings.TrimPrefix(query, "?"), ForceQuery: query == "?"}
		setPath(&u, q.path)
		q.rewritePath(&u)
		o.path.apply(q, &u)
		target = u.RequestURI()
	} else {
		target = q.path + query
	}
	host = q.hostFor(host)
	if err := l.begin(target, host); err != nil {
		return err
	}
	b := l.out
	for _, f := range l.in.fields {
		if c := f.name[0] | 0x20; (c == 'x' || c == 'f' || c == 'p') && impersonates(string(f.name)) || o.basic != nil && fold(f.name, "authorization") {
			continue
		}
		b = append(b, f.line...)
	}
	b = append(b, l.from...)
	b = append(append(b, "X-Forwarded-Host: "...), l.in.host...)
	b = append(append(b, "\r\nX-Request-Id: "...), q.id()...)
	b = append(b, "\r\n"...)
	if o.rewrite != "" && o.prefix != "" {
		b = appendField(b, "X-Forwarded-Prefix", o.prefix)
	}
	l.out = b
	l.finish()
	return nil
}

// recompose makes the request that endpoints get of a route that changes its
// fields, in l.out.
func (l *lane) recompose(string) error {
	q := &l.q
	u := *q.in.URL
	out := &http.Request{Method: q.in.Method, URL: &u, Header: q.in.Header.Clone()}
	removeHopByHop(out.Header)
	q.rewrite(&httputil.ProxyRequest{In: q.in, Out: out})
	if err := l.begin(u.RequestURI(), out.Host); err != nil {
		return err
	}
	b := appendHeader(l.out, out.Header, framing)
	if l.in.length > 0 || q.in.Header["Content-Length"] != nil {
		b = fmt.Appendf(b, "Content-Length: %d\r\n", l.in.length)
	}
	l.out = b
	l.finish()
	return nil
}

// change does to an answer what its route wants. How it is framed stays.
func (l *lane) change(res *http.Response) {
	if !l.q.route.options.changesAnswers() {
		return
	}
	length, long := res.Header["Content-Length"]
	l.q.complete(res)
	for name := range framing {
		delete(res.Header, name)
	}
	if long {
		res.Header["Content-Length"] = length
	}
}

// framing are the fields that say how a message is framed, or what its connection
// is for: no route changes these.
var framing = func() map[string]bool {
	all := map[string]bool{"Content-Length": true, "Host": true}
	for _, name := range hopByHop {
		all[name] = true
	}
	return all
}()

// appendHeader appends the fields of a header in order of their names, but for
// some.
func appendHeader(b []byte, h http.Header, but map[string]bool) []byte {
	names := make([]string, 0, 24)
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if but[name] {
			continue
		}
		for _, v := range h[name] {
			b = appendField(b, name, v)
		}
	}
	return b
}

// appendField appends a field, unless its name is none; what would end its line
// is a space, as net/http writes it.
func appendField(b []byte, name, value string) []byte {
	if !isToken(name) {
		return b
	}
	b = append(append(b, name...), ": "...)
	from := len(b)
	b = append(b, value...)
	for i, c := range b[from:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			b[from+i] = ' '
		}
	}
	return append(b, "\r\n"...)
}

func isToken(name string) bool {
	for i := range len(name) {
		if !tokens[name[i]] {
			return false
		}
	}
	return name != ""
}
