package ingress

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Bytes that may go at a rate of 10,000 bytes a second.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		first, sent int64
		since       time.Duration
		n           int64
		wait        time.Duration
	}{
		{0, 0, 0, 10000, 0},
		{0, 10000, 0, 0, 409600 * time.Microsecond},
		{0, 10000, time.Second, 10000, 0},
		{0, 15000, time.Second, 5000, 0},
		{0, 16000, time.Second, 0, 9600 * time.Microsecond},
		{50000, 50000, 0, 10000, 0},
		{50000, 0, 0, 60000, 0},
	} {
		n, wait := pace{rate: 10000, first: c.first}.allowed(c.sent, c.since)
		if n != c.n || wait != c.wait {
			t.Errorf("%+v: got %d, %v", c, n, wait)
		}
	}
}

func TestLimitRate(t *testing.T) {
	body := strings.Repeat("b", 40<<10)
	long := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
	f := annotatedFront(t, map[int]http.Handler{1: long}, "limit-rate: 100", "limit-rate-after: 10")
	if _, got := get(t, client(t, f.plain), "http://shop.example/"); got != body {
		t.Errorf("got %d bytes", len(got))
	}
	began := time.Now()
	f = annotatedFront(t, map[int]http.Handler{1: long}, "limit-rate: 30")
	if _, got := get(t, client(t, f.plain), "http://shop.example/"); got != body || time.Since(began) < 200*time.Millisecond {
		t.Errorf("got %d bytes in %v, want them after a third of a second", len(got), time.Since(began))
	}
}
