package ingress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Answers on the lane.

// answer passes on the answer whose header was read. It returns false if the
// client's connection is done for.
func (l *lane) answer(u *upstream, e *endpoint, a *answer) bool {
	if l.reply.size == 0 || l.q.route.options.changesAnswers() {
		return l.reframe(u, e, a)
	}
	h := &l.reply
	bodiless := string(l.in.method) == http.MethodHead || h.status == http.StatusNoContent || h.status == http.StatusNotModified
	if h.length < 0 && !bodiless {
		return l.reframe(u, e, a)
	}
	b := append(append(l.out[:0], "HTTP/1.1 "...), h.reason...)
	if len(h.reason) == 3 {
		b = append(b, ' ')
	}
	b = append(b, "\r\n"...)
	hsts := l.tls != nil && l.q.route.options.hsts != ""
	for _, f := range h.fields {
		if !hsts || !fold(f.name, "strict-transport-security") {
			b = append(b, f.line...)
		}
	}
	b = l.own(b, h.date, l.elsewhere != "" && h.has("Alt-Svc"))
	b = append(b, "\r\n"...)
	keep := !h.close
	length := h.length
	if bodiless {
		length = 0
	}
	u.in.Discard(h.size)
	ready := int(min(length, int64(u.in.Buffered())))
	body, _ := u.in.Peek(ready)
	b = append(b, body...)
	u.in.Discard(ready)
	l.out = b
	a.status, a.bytes = h.status, int64(ready)
	if _, err := l.conn.Write(b); err != nil {
		u.Close()
		return false
	}
	if left := length - int64(ready); left > 0 {
		n, err := l.stream(u, left)
		if a.bytes += n; err != nil || n < left {
			u.Close()
			l.Server.failed.Add(1)
			return false
		}
	}
	l.release(u, e, keep)
	return !l.ending()
}

// own adds the fields that are ours to those of an answer, but for those that it
// has: Date, and Alt-Svc if it told where else it is.
func (l *lane) own(b []byte, dated, told bool) []byte {
	if !dated {
		b = append(append(append(b, "Date: "...), httpDate()...), "\r\n"...)
	}
	if o := l.q.route.options; o.hsts != "" && l.tls != nil {
		b = append(append(append(b, "Strict-Transport-Security: "...), o.hsts...), "\r\n"...)
	}
	if l.elsewhere != "" && !told {
		b = append(append(append(b, "Alt-Svc: "...), l.elsewhere...), "\r\n"...)
	}
	if l.ending() {
		b = append(b, "Connection: close\r\n"...)
	}
	return b
}

// release gives a connection back if nothing of the answer is left in it.
func (l *lane) release(u *upstream, e *endpoint, keep bool) {
	if !keep || u.in.Buffered() > 0 {
		u.Close()
		return
	}
	e.idle.put(u, time.Now())
}

const bulkSize = 128 << 10 // bytes

var bulks = sync.Pool{New: func() any { return new([bulkSize]byte) }}

// stream copies so many bytes of an answer's body, and says how many it could.
func (l *lane) stream(u *upstream, left int64) (n int64, err error) {
	buf := bulks.Get().(*[bulkSize]byte)
	defer bulks.Put(buf)
	l.wait(u, l.q.route.options.read)
	defer func() {
		if late := l.done(); late != nil {
			err = late
		}
	}()
	for n < left {
		got, err := u.Read(buf[:min(left-n, bulkSize)])
		if got > 0 {
			wrote, err := l.conn.Write(buf[:got])
			if n += int64(wrote); err != nil {
				return n, err
			}
			l.extend()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// extend begins the time for the next read anew.
func (l *lane) extend() {
	if limit := l.q.route.options.read; limit > 0 {
		l.mu.Lock()
		l.until = time.Now().Add(limit)
		l.mu.Unlock()
	}
}

// reframe passes on an answer that net/http has to read: chunked, until the end
// of the connection, or odd.
func (l *lane) reframe(u *upstream, e *endpoint, a *answer) bool {
	l.wait(u, e.answerTimeout(l.cfg))
	res, err := http.ReadResponse(u.in, &http.Request{Method: string(l.in.method)})
	if late := l.done(); late != nil {
		err = late
	}
	if err != nil {
		u.Close()
		return l.fail(a, fmt.Errorf("malformed HTTP response: %w", err))
	}
	if res.StatusCode < 200 {
		u.Close()
		return l.fail(a, fmt.Errorf("malformed HTTP response: status %d", res.StatusCode))
	}
	announced := res.Trailer
	removeHopByHop(res.Header)
	l.change(res)
	if l.q.route.options.hsts != "" && l.tls != nil {
		res.Header.Del("Strict-Transport-Security") // ours is
	}
	b := fmt.Appendf(l.out[:0], "HTTP/1.1 %03d %s\r\n", res.StatusCode, reasonPhrase(res))
	b = appendHeader(b, res.Header, nil)
	for name := range announced {
		b = append(append(append(b, "Trailer: "...), name...), "\r\n"...)
	}
	b = l.own(b, res.Header.Get("Date") != "", res.Header["Alt-Svc"] != nil)
	bodiless := string(l.in.method) == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
	chunked := res.ContentLength < 0 && !bodiless
	if chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	l.out = append(b, "\r\n"...)
	here := 0 // bytes of the body that have come and go with the header
	if !chunked && !bodiless && res.ContentLength <= int64(u.in.Buffered()) {
		at := len(l.out)
		l.out = slices.Grow(l.out, int(res.ContentLength))[:at+int(res.ContentLength)]
		here, _ = io.ReadFull(res.Body, l.out[at:])
	}
	a.status = res.StatusCode
	if _, err := l.conn.Write(l.out); err != nil {
		u.Close()
		return false
	}
	var to io.Writer = l.conn
	var chunks io.WriteCloser
	if chunked {
		chunks = httputil.NewChunkedWriter(l.conn)
		to = chunks
	}
	l.wait(u, l.q.route.options.read)
	n, err := l.copyBody(to, res.Body)
	late := l.done()
	a.bytes = int64(here) + n
	if err != nil || late != nil {
		u.Close()
		l.Server.failed.Add(1)
		return false
	}
	if chunked {
		chunks.Close()
		b = l.out[:0]
		for name, values := range res.Trailer {
			for _, v := range values {
				b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
			}
		}
		if _, err := l.conn.Write(append(b, "\r\n"...)); err != nil {
			u.Close()
			return false
		}
	}
	l.release(u, e, !res.Close)
	return !l.ending()
}

// copyBody copies what comes as it comes.
func (l *lane) copyBody(to io.Writer, body io.Reader) (n int64, err error) {
	buf := bulks.Get().(*[bulkSize]byte)
	defer bulks.Put(buf)
	for {
		got, err := body.Read(buf[:])
		if got > 0 {
			wrote, err := to.Write(buf[:got])
			if n += int64(wrote); err != nil {
				return n, err
			}
			l.extend()
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func reasonPhrase(res *http.Response) string {
	if len(res.Status) > 4 {
		return res.Status[4:]
	}
	return http.StatusText(res.StatusCode)
}

// httpDate is the present second as the field Date has it.
func httpDate() []byte {
	now := time.Now()
	if d := lastDate.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &date{now.Unix(), now.UTC().AppendFormat(nil, http.TimeFormat)}
	lastDate.Store(d)
	return d.text
}

type date struct {
	second int64
	text   []byte
}

var lastDate atomic.Pointer[date]
