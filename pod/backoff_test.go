package pod

import (
	"testing"
	"time"
)

func TestBackoffIsForgottenAfterTenQuietMinutes(t *testing.T) {
	at := time.Unix(1000, 0)
	var b backoff
	for _, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second} {
		if got := b.due(at).Sub(at); got != want {
			t.Errorf("due in %s, want %s", got, want)
		}
		at = b.due(at)
		b.restarted(at)
	}
	at = at.Add(10*time.Minute + time.Second) // it ran so long
	if got := b.due(at).Sub(at); got != 0 {
		t.Errorf("after a long run due in %s, want at once", got)
	}
	b.restarted(at)
	if got := b.due(at).Sub(at); got != 10*time.Second {
		t.Errorf("then due in %s, want 10 s", got)
	}
}
