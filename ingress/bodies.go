package ingress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Bodies on their way, each with the one thing that is to be known of it: how
// long it takes, whether it was begun, whether it has ended.

// paced is a body whose reads, or the times between them, are limited.
type paced struct {
	io.ReadCloser
	limit   time.Duration // 0 none
	between bool
	timer   *time.Timer
	late    *time.Timer // of the whole body; nil: none
	cancel  context.CancelCauseFunc
}

func (p *paced) Read(b []byte) (int, error) {
	if p.limit == 0 {
		return p.ReadCloser.Read(b)
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(p.limit, func() { p.cancel(context.DeadlineExceeded) })
	} else {
		p.timer.Reset(p.limit)
	}
	if p.between {
		p.timer.Stop()
	} else {
		defer p.timer.Stop()
	}
	n, err := p.ReadCloser.Read(b)
	if p.between && err == nil {
		p.timer.Reset(p.limit)
	}
	return n, err
}

// Close ends an answer; the body of a request may be closed before its answer comes.
func (p *paced) Close() error {
	for _, t := range []*time.Timer{p.timer, p.late} {
		if t != nil {
			t.Stop()
		}
	}
	err := p.ReadCloser.Close()
	if !p.between {
		p.cancel(nil)
	}
	return err
}

func (p *paced) Write(b []byte) (int, error) { return writeTo(p.ReadCloser, b) }

// writeTo writes to a connection that was upgraded.
func writeTo(c io.Closer, p []byte) (int, error) {
	w, ok := c.(io.Writer)
	if !ok {
		return 0, errors.New("the connection was not upgraded")
	}
	return w.Write(p)
}

// unhurried is a request's body of which some has to come within each limit.
type unhurried struct {
	io.ReadCloser
	control *http.ResponseController
	limit   time.Duration
	late    atomic.Bool
}

func (u *unhurried) Read(p []byte) (int, error) {
	u.control.SetReadDeadline(time.Now().Add(u.limit))
	n, err := u.ReadCloser.Read(p)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		u.late.Store(true)
		err = errSlowBody // the deadline stays: net/http would wait for the rest
	case err != nil:
		u.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (u *unhurried) Close() error {
	if !u.late.Load() {
		u.control.SetReadDeadline(time.Time{})
	}
	return u.ReadCloser.Close()
}

var errSlowBody = errors.New("the client was too slow with the request's body")

// counted is an answer's body; while it is open its endpoint has something to do.
type counted struct {
	io.ReadCloser
	e    *endpoint
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.e.open.Add(-1) })
	return c.ReadCloser.Close()
}

func (c *counted) Write(p []byte) (int, error) { return writeTo(c.ReadCloser, p) }

// excused is the body of an answer to a call of gRPC. Where the endpoint is cut off
// its trailers say so, as a reset of the stream would be an INTERNAL error.
type excused struct {
	io.ReadCloser
	q      *request
	answer *http.Response
}

func (x *excused) Read(p []byte) (int, error) {
	n, err := x.ReadCloser.Read(p)
	ctx := x.q.in.Context()
	if err == nil || err == io.EOF || errors.Is(ctx.Err(), context.Canceled) {
		return n, err
	}
	x.q.failed.Add(1)
	code, message := grpcCodes[http.StatusBadGateway], "the endpoint was cut off"
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		code, message = grpcCodes[http.StatusGatewayTimeout], "the deadline of the route has passed"
	}
	x.answer.Trailer = http.Header{"Grpc-Status": {code}, "Grpc-Message": {message}}
	return n, io.EOF
}

// untouched is a request body that knows whether some of it was read. Closing
// is left to the one who made the request, as it may be sent a second time.
type untouched struct {
	io.ReadCloser
	read atomic.Bool
}

func (b *untouched) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.ReadCloser.Read(p)
}

func (b *untouched) Close() error { return nil }

// bufferPool lends the buffers that bodies are copied through.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10 // bytes

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return make([]byte, bufferSize)
}

func (p *bufferPool) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }
