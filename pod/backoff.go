package pod

import "time"

// The kubelet's CrashLoopBackOff.
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 2 * backoffMax // without trouble for so long, all is forgotten
)

// backoff spaces the restarts of one container. The first restart is at once,
// then 10 s after the end, 20 s, and so on up to 5 min. The zero value is a
// container that was not restarted yet.
type backoff struct {
	delay time.Duration
	last  time.Time // of the last restart
}

// due is when a container that ended then may be started again.
func (b *backoff) due(ended time.Time) time.Time {
	if b.delay == 0 || ended.Sub(b.last) > backoffReset {
		return ended
	}
	return ended.Add(b.delay)
}

// restarted notes a restart.
func (b *backoff) restarted(now time.Time) {
	if b.delay == 0 || now.Sub(b.last) > backoffReset {
		b.delay = backoffFirst
	} else {
		b.delay = min(2*b.delay, backoffMax)
	}
	b.last = now
}
