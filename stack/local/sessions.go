package local

import (
	"sync"
	"sync/atomic"
	"time"
)

// sessions remembers datagram conversations by key, which nobody ends: each is
// closed when it has been idle, or, when there are too many, the least
// recently used of a sample makes room.
type sessions[K comparable, V any] struct {
	limit   int
	evicted *counter

	mu     sync.Mutex
	closed bool
	m      map[K]entry[V]
}

type entry[V any] struct {
	*session
	v V
}

// session is one conversation. touch is called for each of its datagrams.
type session struct {
	used  atomic.Int64 // UnixNano of the last datagram
	idle  atomic.Int64 // nanoseconds after which it is over
	timer *time.Timer
	close func() // releases it; called once, may be called under sessions.mu
}

func (s *session) touch() { s.used.Store(time.Now().UnixNano()) }

func newSessions[K comparable, V any](limit int, evicted *counter) *sessions[K, V] {
	return &sessions[K, V]{limit: limit, evicted: evicted, m: make(map[K]entry[V])}
}

// sample is how many sessions compete to be evicted: Go's maps are walked from
// a random place, so that this is close to LRU at no cost per datagram.
const sample = 16

// add enters a session, which takes close; nil after close. A session of the
// same key is closed.
func (t *sessions[K, V]) add(k K, v V, idle time.Duration, close func()) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	if old, ok := t.m[k]; ok {
		t.drop(k, old.session)
	}
	if len(t.m) >= t.limit {
		t.evict()
	}
	s := &session{close: close}
	s.idle.Store(int64(idle))
	s.touch()
	t.m[k] = entry[V]{s, v}
	s.timer = time.AfterFunc(idle, func() { t.expire(k, s) })
	return s
}

// get finds the session of k.
func (t *sessions[K, V]) get(k K) (v V, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[k]
	return e.v, ok
}

// remove closes s if it is still remembered.
func (t *sessions[K, V]) remove(k K, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[k].session == s {
		t.drop(k, s)
	}
}

func (t *sessions[K, V]) expire(k K, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[k].session != s {
		return
	}
	left := s.idle.Load() - (time.Now().UnixNano() - s.used.Load())
	if left > 0 {
		s.timer.Reset(time.Duration(left))
		return
	}
	t.drop(k, s)
}

// drop is called with mu held.
func (t *sessions[K, V]) drop(k K, s *session) {
	delete(t.m, k)
	s.timer.Stop()
	s.close()
}

// evict is called with mu held.
func (t *sessions[K, V]) evict() {
	var oldest K
	var s *session
	n := 0
	for k, c := range t.m {
		if s == nil || c.used.Load() < s.used.Load() {
			oldest, s = k, c.session
		}
		if n++; n == sample {
			break
		}
	}
	if s != nil {
		t.drop(oldest, s)
		t.evicted.Add(1)
	}
}

// close ends all sessions; none can be added any more.
func (t *sessions[K, V]) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.removeAll(func(K) bool { return true })
}

// removeAll closes the sessions whose key matches.
func (t *sessions[K, V]) removeAll(matches func(K) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, e := range t.m {
		if matches(k) {
			t.drop(k, e.session)
		}
	}
}

func (t *sessions[K, V]) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}
