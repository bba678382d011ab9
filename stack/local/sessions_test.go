package local

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSessionsEndWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var evicted counter
		table := newSessions[int, string](10, &evicted)
		closed := 0
		s := table.add(1, "one", 30*time.Second, func() { closed++ })
		advance(20 * time.Second)
		s.touch()
		advance(20 * time.Second)
		synctest.Wait()
		if v, ok := table.get(1); !ok || v != "one" || closed != 0 {
			t.Fatalf("20 s after a datagram: %q, %v, closed %d times", v, ok, closed)
		}
		s.idle.Store(int64(120 * time.Second))
		advance(90 * time.Second)
		synctest.Wait()
		if _, ok := table.get(1); !ok {
			t.Fatal("the longer idle time was not granted")
		}
		advance(31 * time.Second)
		synctest.Wait()
		if _, ok := table.get(1); ok || closed != 1 {
			t.Fatalf("still there: %v; closed %d times, want once", ok, closed)
		}
	})
}

func TestSessionsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var evicted counter
		table := newSessions[int, int](4, &evicted)
		var closed []int
		for i := range 5 {
			table.add(i, i, time.Minute, func() { closed = append(closed, i) })
			advance(time.Second)
		}
		if len(closed) != 1 || closed[0] != 0 || evicted.Load() != 1 || table.len() != 4 {
			t.Errorf("closed %v, evicted %d, left %d; want the oldest gone", closed, evicted.Load(), table.len())
		}
		// The same key again replaces.
		s := table.add(4, 40, time.Minute, func() { closed = append(closed, 40) })
		if closed[1] != 4 || table.len() != 4 {
			t.Errorf("closed %v, left %d", closed, table.len())
		}
		table.remove(4, s)
		table.remove(4, s)
		table.close()
		if len(closed) != 6 || table.len() != 0 {
			t.Errorf("closed %v, left %d; want each once", closed, table.len())
		}
		if table.add(9, 9, time.Minute, func() {}) != nil {
			t.Error("added after close")
		}
	})
}

// advance lets the bubble's clock go on.
func advance(d time.Duration) { <-time.After(d) }
