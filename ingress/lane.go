package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The lane
//
// Most requests are HTTP/1.1, plain in their form (head.go), and for a route
// that asks for little. They are passed on as the bytes that they are: one
// goroutine a connection reads a request's header, finds its route, writes the
// header without what is between client and us and with what is known of the
// client, and does the same with the answer. What a route changes is changed by
// what net/http's way has for that, on headers that are read as net/http reads
// them (relane.go). The rest of what HTTP has is for net/http: a connection whose
// next request is not for the lane is given to the http.Server, with what was read
// of that request, and stays there. So nothing is decided here that net/http would
// decide otherwise, and what is malformed is refused there. Whether a request is
// for the lane is decided before anything is counted or chosen for it.
//
// Bodies of requests are sent on with the header: those that do not fit in the
// buffer are net/http's, as an endpoint may answer before it has read them. A
// body of an answer whose length is not said is read and framed anew.
//
// While an endpoint is waited for a timer looks whether the time is over or the
// client gone, and closes the connection to the endpoint, which ends the wait.

// lane is a client's connection.
type lane struct {
	*Server
	raw       net.Conn             // as accepted
	conn      net.Conn             // the same, decrypted
	tls       *tls.ConnectionState // nil: not encrypted
	by        entrance
	from      []byte        // fields that say who the client is, the same for all its requests
	elsewhere string        // where HTTP/3 is (Alt-Svc)
	buf       []byte        // what was read: of requests from the one in hand on
	again     *bufio.Reader // of the request in hand, for net/http's reader; nil: not needed yet
	out       []byte        // a header in the making
	in        head
	reply     head
	q         request
	left      bool // the connection is net/http's now
	busy      atomic.Bool

	mu     sync.Mutex
	timer  *time.Timer
	waits  *upstream // nil: nobody is waited for
	until  time.Time // zero: for ever
	failed error     // why the wait was ended
}

const (
	laneBuffer = 8 << 10 // bytes of a request's header and body
	peekEvery  = 500 * time.Millisecond
)

var (
	laneBuffers = sync.Pool{New: func() any { return new([laneBuffer]byte) }}
	errLeft     = fmt.Errorf("the client has left: %w", context.Canceled)
)

// take serves a connection that was accepted; tlsConfig is nil where it is not encrypted.
func (s *Server) take(c net.Conn, tlsConfig *tls.Config, by entrance) {
	l := &lane{Server: s, raw: c, conn: c, by: by}
	if !s.enter(l) {
		c.Close()
		return
	}
	defer s.leave(l)
	defer l.survive()
	if tlsConfig != nil && !l.handshake(tlsConfig) {
		return
	}
	client, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	l.q = request{Server: s, client: client.Addr().Unmap().WithZone(""), local: localAddr(c.LocalAddr())}
	proto := "http"
	if l.tls != nil {
		proto, l.elsewhere = "https", s.altSvc(l.q.local)
	}
	l.from = fmt.Appendf(nil, "X-Forwarded-For: %s\r\nX-Forwarded-Proto: %s\r\nX-Scheme: %[2]s\r\nX-Forwarded-Port: %[3]d\r\nX-Real-Ip: %[1]s\r\n",
		l.q.client, proto, l.q.local.Port())
	if s.trusted(l.q.client) {
		l.give()
		return
	}
	room := laneBuffers.Get().(*[laneBuffer]byte)
	defer laneBuffers.Put(room)
	l.buf = room[:0]
	l.serve()
}

// survive leaves a panic to the connection that had it, as net/http does.
func (l *lane) survive() {
	if v := recover(); v != nil {
		l.cfg.Log.Error("ingress: a request ended its connection", "client", l.raw.RemoteAddr(), "panic", v, "stack", string(debug.Stack()))
	}
}

// handshake begins TLS; what is not HTTP/1.1 goes to net/http.
func (l *lane) handshake(cfg *tls.Config) bool {
	conn := tls.Server(entered{l.conn, l.by}, cfg)
	conn.SetDeadline(time.Now().Add(l.cfg.HeaderTimeout))
	if err := conn.HandshakeContext(context.WithValue(l.ctx, entranceKey{}, l.by)); err != nil {
		var record tls.RecordHeaderError
		if errors.As(err, &record) && record.Conn != nil && bytes.ContainsAny(record.RecordHeader[:1], "GPHDOC") {
			io.WriteString(record.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nA plain HTTP request came to an HTTPS port.\n")
		}
		return false
	}
	conn.SetDeadline(time.Time{})
	state := conn.ConnectionState()
	l.conn, l.tls = conn, &state
	if state.NegotiatedProtocol == "h2" {
		l.left = l.handed.give(conn)
		return false
	}
	return true
}

// give hands the connection to net/http, with what was read of it.
func (l *lane) give() {
	l.conn.SetReadDeadline(time.Time{})
	l.left = l.handed.give(&given{replayed{l.conn, bytes.Clone(l.buf)}, l.tls, l.by})
}

// serve answers requests until the connection ends or is given away.
func (l *lane) serve() {
	for first := true; ; first = false {
		if !l.read(first) {
			return
		}
		again := l.one()
		l.busy.Store(false)
		if !again || l.closing.Load() {
			return
		}
	}
}

// read waits for a request and its body. It returns false if there is none, or
// none for the lane.
func (l *lane) read(first bool) bool {
	wait := clientIdle
	if first || len(l.buf) > 0 {
		wait = l.cfg.HeaderTimeout
	}
	f := unfinished
	for {
		if len(l.buf) > 0 {
			f = l.in.request(l.buf)
			size := l.in.size + int(min(l.in.length, laneBuffer))
			switch {
			case f == odd, f == unfinished && len(l.buf) == cap(l.buf), f == plainForm && size > cap(l.buf):
				l.give()
				return false
			case f == plainForm && len(l.buf) >= size:
				l.busy.Store(true)
				return true
			}
		}
		if wait > 0 {
			l.conn.SetReadDeadline(time.Now().Add(wait))
			wait = 0
		}
		if l.closing.Load() && len(l.buf) == 0 {
			return false
		}
		n, err := l.conn.Read(l.buf[len(l.buf):cap(l.buf)])
		if n > 0 && len(l.buf) == 0 && !first {
			wait = l.cfg.HeaderTimeout // begins with the first byte
		}
		l.buf = l.buf[:len(l.buf)+n]
		if err != nil {
			if f == plainForm && errors.Is(err, os.ErrDeadlineExceeded) {
				l.give() // a slow body
			}
			return false
		}
	}
}

// one answers the request in hand. It returns false if the connection is done for.
func (l *lane) one() bool {
	q := &l.q
	*q = request{Server: l.Server, live: l.live.Load(), tls: l.tls, client: q.client, local: q.local, entry: l.by, began: time.Now()}
	target := string(l.in.target)
	path, _, _ := strings.Cut(target, "?")
	q.host, q.path = matchHost(string(l.in.host)), cleanPath(path)
	q.match = matchPath(q.path)
	if q.conditional() {
		if q.in = l.parsed(); q.in == nil {
			return false
		}
	}
	if q.find(); q.route == nil || !q.route.lean() || !q.live.blocked.nobody() ||
		q.route.options.bodySize > 0 && l.in.length > q.route.options.bodySize {
		l.give()
		return false
	}
	l.requests.Add(1)
	q.share()
	if q.in == nil && (l.cfg.AccessLog != nil && !q.route.options.silent || q.route.reads()) {
		if q.in = l.parsed(); q.in == nil {
			return false // head and net/http are at odds: nobody's request
		}
	}
	a := answer{}
	again := l.answered(&a, target[len(path):])
	q.note(string(l.in.method), &a)
	rest := copy(l.buf[:cap(l.buf)], l.buf[l.in.size+int(l.in.length):])
	l.buf = l.buf[:rest]
	return again && !l.in.close
}

// answered answers the request, by an endpoint or as its route says.
func (l *lane) answered(a *answer, query string) bool {
	q := &l.q
	own, done := q.judge()
	if done != nil {
		defer done()
	}
	if own != nil {
		return l.say(a, own)
	}
	compose := l.compose
	if q.route.options.changesFields() {
		compose = l.recompose
	}
	if err := compose(query); err != nil {
		return l.fail(a, err)
	}
	return l.proxy(a)
}

// proxy sends the request to an endpoint, or to others as proxy-next-upstream says.
func (l *lane) proxy(a *answer) bool {
	q, o := &l.q, l.q.route.options
	var few [4]*endpoint
	tried := few[:0]
	for {
		e := q.backend.pick(q, tried)
		tried = append(tried, e)
		e.open.Add(1)
		sent := time.Now()
		u, err := l.attempt(e, a)
		q.endpoint, q.waited = e, time.Since(sent)
		var dial *dialError
		dialled := err == nil || !errors.As(err, &dial)
		e.connected(dialled, sent)
		again := len(tried) < len(q.backend.endpoints) && (o.retry.tries == 0 || len(tried) < o.retry.tries) &&
			(o.retry.timeout == 0 || time.Since(q.began) < o.retry.timeout)
		if err == nil {
			e.answered(q.waited)
			if again && o.retry.on&statusConditions[l.reply.status] != 0 && l.repeatable(o.retry) {
				u.Close()
				e.open.Add(-1)
				l.retries.Add(1)
				continue
			}
			ok := l.answer(u, e, a)
			e.open.Add(-1)
			return ok
		}
		e.open.Add(-1)
		if !again || o.retry.on&reasonOf(err) == 0 || dialled && !l.repeatable(o.retry) {
			return l.fail(a, err)
		}
		l.retries.Add(1)
	}
}

func (l *lane) repeatable(r retry) bool {
	switch string(l.in.method) {
	case http.MethodPost, http.MethodPatch, "LOCK":
		return r.on&nonIdempotent != 0
	}
	return true
}

// attempt sends the request to an endpoint and reads the answer's header, which
// is left in the buffer of the connection.
func (l *lane) attempt(e *endpoint, a *answer) (*upstream, error) {
	for fresh := false; ; fresh = true {
		u := (*upstream)(nil)
		if !fresh {
			u = e.idle.get()
		}
		if u == nil {
			var err error
			if u, err = l.connect(e); err != nil {
				return nil, err
			}
		}
		l.wait(u, e.answerTimeout(l.cfg))
		_, err := u.Write(l.out)
		silent := true
		if err == nil {
			silent, err = l.header(u, a)
		}
		late := l.done()
		if err == nil && late == nil {
			return u, nil
		}
		u.Close()
		switch {
		case late != nil:
			return nil, late
		case u.used && silent && l.in.length == 0 && l.repeatable(retry{}):
			continue // it ended while idle
		case err == io.EOF:
			err = errors.New("the endpoint closed the connection without an answer")
		}
		return nil, err
	}
}

// header reads headers of answers until one that is final. silent: nothing came.
func (l *lane) header(u *upstream, a *answer) (silent bool, err error) {
	for silent = true; ; {
		n := u.in.Buffered()
		b, _ := u.in.Peek(n)
		f := unfinished
		if n > 0 {
			silent = false
			f = l.reply.response(b)
		}
		switch {
		case f == unfinished && n < u.in.Size():
			if _, err := u.in.Peek(n + 1); err != nil {
				return silent, err
			}
		case f == plainForm && l.reply.status == http.StatusSwitchingProtocols:
			return false, errors.New("the endpoint switched protocols unasked")
		case f == plainForm && l.reply.status < 200:
			if l.reply.status != http.StatusContinue {
				if _, err := l.conn.Write(b[:l.reply.size]); err != nil {
					return false, errLeft
				}
			}
			u.in.Discard(l.reply.size)
		case f == plainForm:
			return false, nil
		default:
			l.reply.size = 0 // for net/http to read
			return false, nil
		}
	}
}

// wait lets a timer look after the connection to an endpoint that is waited for.
func (l *lane) wait(u *upstream, within time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waits, l.failed, l.until = u, nil, time.Time{}
	next := peekEvery
	if within > 0 {
		l.until = time.Now().Add(within)
		next = min(next, within)
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(next, l.look)
	} else {
		l.timer.Reset(next)
	}
}

func (l *lane) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waits == nil {
		return
	}
	next := peekEvery
	if _, gone := stirs(l.conn); gone {
		l.failed = errLeft
	} else if l.ctx.Err() != nil {
		l.failed = context.Canceled
	} else if !l.until.IsZero() {
		if next = min(next, time.Until(l.until)); next <= 0 {
			l.failed = context.DeadlineExceeded
		}
	}
	if l.failed != nil {
		l.waits.Close()
		return
	}
	l.timer.Reset(next)
}

// done ends a wait; the error is why it was cut short.
func (l *lane) done() error {
	l.timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waits = nil
	return l.failed
}

// fail answers for an endpoint that did not.
func (l *lane) fail(a *answer, err error) bool {
	if errors.Is(err, context.Canceled) {
		return false // the client is gone, or we are going
	}
	l.Server.failed.Add(1)
	return l.say(a, func(w http.ResponseWriter) { l.q.page(w, statusOf(err), err) })
}

// say answers with an answer of our own.
func (l *lane) say(a *answer, own ownAnswer) bool {
	if l.q.in == nil {
		if l.q.in = l.parsed(); l.q.in == nil {
			return false
		}
	}
	page := &held{header: http.Header{}}
	a.ResponseWriter = page
	own(a)
	return page.send(l) == nil && !l.ending()
}

// held is a short answer of our own.
type held struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (h *held) Header() http.Header         { return h.header }
func (h *held) WriteHeader(status int)      { h.status = status }
func (h *held) Write(p []byte) (int, error) { return h.body.Write(p) }

func (h *held) send(l *lane) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", h.status, http.StatusText(h.status))
	if h.header.Del("Content-Length"); h.status != http.StatusNoContent && string(l.in.method) != http.MethodHead {
		h.header.Set("Content-Length", strconv.Itoa(h.body.Len()))
	}
	h.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	if l.ending() {
		h.header.Set("Connection", "close")
	}
	h.header.Write(&b)
	b.WriteString("\r\n")
	b.Write(h.body.Bytes())
	_, err := l.conn.Write(b.Bytes())
	return err
}

// ending reports whether the client's connection ends with this answer.
func (l *lane) ending() bool { return l.in.close || l.closing.Load() }
