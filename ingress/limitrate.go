package ingress

import (
	"context"
	"io"
	"time"
)

// pace is limit-rate: how fast an answer's body is passed on.
type pace struct {
	rate  int64 // bytes per second
	first int64 // bytes that are not limited: limit-rate-after
}

// allowed is how many bytes may follow those that were sent, so long after the
// first one, or how long to wait until some may. As nginx does, a second's worth
// may go at once.
func (p pace) allowed(sent int64, since time.Duration) (n int64, wait time.Duration) {
	n = p.first + p.rate + int64(since.Seconds()*float64(p.rate)) - sent
	if least := min(p.rate, leastPaced); n < least {
		return 0, time.Duration(float64(least-n) / float64(p.rate) * float64(time.Second))
	}
	return n, 0
}

const leastPaced = 4 << 10 // bytes; fewer are not worth a wake-up

// slowed is a body that is read at a pace, until ctx ends.
type slowed struct {
	io.ReadCloser
	pace  pace
	ctx   context.Context
	began time.Time // of the first read
	sent  int64
}

func (s *slowed) Read(b []byte) (int, error) {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	n, wait := s.pace.allowed(s.sent, time.Since(s.began))
	for wait > 0 {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return 0, s.ctx.Err()
		}
		n, wait = s.pace.allowed(s.sent, time.Since(s.began))
	}
	got, err := s.ReadCloser.Read(b[:min(int64(len(b)), n)])
	s.sent += int64(got)
	return got, err
}
