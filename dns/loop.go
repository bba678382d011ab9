package dns

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Loops
//
// An upstream that asks us what we ask it would have every query wait for
// itself: equal queries join, so that there is no storm, but no answer either.
// Such a query looks like two clients that ask for the same. So when one has
// waited for an equal one for a while, and when an upstream is down, the upstream
// is asked for a name that nobody else knows. If that name arrives here the
// upstream leads back: that is said once, and it is not asked anything else until
// such a name does not arrive any more.

const (
	loopZone    = ".loop.podgate.invalid." // RFC 6761: nobody has names there
	loopPatient = 500 * time.Millisecond   // how long an equal query waits without suspicion
	loopAgain   = 30 * time.Second         // between two suspicions of one upstream
	loopCheck   = 5 * time.Second          // between two tries of one that leads back
)

var errLoop = errors.New("forwarding loop: the upstream server asks this one")

// loops are the names that upstreams are being asked for to see whether they arrive here.
type loops struct {
	mu    sync.Mutex
	names map[string]bool // whether it arrived
}

// seen says whether a lower-case name is one of them, and notes that it arrived.
func (l *loops) seen(name string) bool {
	if !strings.HasSuffix(name, loopZone) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ours := l.names[name]; !ours {
		return false
	}
	l.names[name] = true
	return true
}

// begin makes a name; end says whether it arrived.
func (l *loops) begin() (name string, end func() bool) {
	name = strings.ToLower(rand.Text()) + loopZone
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names == nil {
		l.names = map[string]bool{}
	}
	l.names[name] = false
	return name, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		defer delete(l.names, name)
		return l.names[name]
	}
}

// try asks an upstream for a name of its own. Any answer will do.
func (f *forwarder) try(ctx context.Context, u *upstreamState) (answers, loop bool) {
	name, end := f.loops.begin()
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	network := "udp"
	if f.tcp {
		network = "tcp"
	}
	q := question(name, dns.TypeHINFO)
	m, err := f.send(ctx, u, network, q)
	return err == nil && m != nil, end()
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

// suspect finds out whether an upstream leads back, unless that was done lately.
func (f *forwarder) suspect(u *upstreamState) {
	now := f.now().UnixNano()
	last := u.suspected.Load()
	if f.background == nil || last != 0 && now-last < int64(loopAgain) || !u.suspected.CompareAndSwap(last, now) {
		return
	}
	f.background(func() {
		if _, loop := f.try(f.ctx, u); loop {
			f.leadsBack(u, true)
			f.watch(u)
		}
	})
}

// leadsBack notes whether an upstream does, and says so once.
func (f *forwarder) leadsBack(u *upstreamState, loop bool) {
	switch was := u.loop.Swap(loop); {
	case loop && !was:
		f.cfg.Log.Warn("upstream DNS server leads back here: a forwarding loop", "upstream", u.String())
	case was && !loop:
		f.cfg.Log.Info("upstream DNS server does not lead back here any more", "upstream", u.String())
	}
}

// watch probes an upstream that is down, or leads back, until it answers.
func (f *forwarder) watch(u *upstreamState) {
	if !u.probing.CompareAndSwap(false, true) {
		return
	}
	defer u.probing.Store(false)
	for every := f.check; ; {
		select {
		case <-f.ctx.Done():
			return
		case <-time.After(every):
		}
		answers, loop := f.try(f.ctx, u)
		f.leadsBack(u, loop)
		switch {
		case loop:
			every = max(f.check, loopCheck)
		case answers:
			if u.fails.Swap(0) >= int32(f.maxFails) {
				f.cfg.Log.Info("upstream DNS server answers again", "upstream", u.String())
			}
			return
		default:
			every = f.check
		}
	}
}
