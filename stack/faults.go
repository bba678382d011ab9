package stack

import (
	"fmt"
	"hash/fnv"
	"slices"

	"podgate/stack/link"
)

// A port with faults has a link.Faulty before its device. The worker brings it
// the time with every round, and sleeps no longer than until its next frame is
// due. Ports without faults are as they always were.

// SetFaults makes the link of every interface of a pod, named "namespace/name",
// bad from now on; no faults make it good again.
func (p *Plane) SetFaults(pod string, f link.Faults) error {
	found := false
	p.do(func(w *worker) {
		for _, pt := range w.ports {
			if pt != nil && !pt.Local && pt.label() == pod {
				w.setFaults(pt, f)
				found = true
			}
		}
	})
	if !found {
		return fmt.Errorf("no port of %s is attached", pod)
	}
	p.cfg.Log.Info("faults", "pod", pod, "faults", f.String())
	return nil
}

func (w *worker) setFaults(pt *port, f link.Faults) {
	switch {
	case pt.faulty != nil && f.None():
		pt.dev = pt.faulty.Unwrap()
		w.countLost(pt)
		pt.faulty = nil
		w.faulty = slices.DeleteFunc(slices.Clone(w.faulty), func(o *port) bool { return o == pt })
	case pt.faulty != nil:
		pt.faulty.SetFaults(f)
	case !f.None():
		seed := fnv.New64a() // the same faults to the same pod, run after run
		seed.Write([]byte(pt.label()))
		pt.faulty = link.NewFaulty(pt.dev, f, seed.Sum64(), w.now)
		pt.dev = pt.faulty
		w.faulty = append(slices.Clone(w.faulty), pt)
	}
}

// advance brings the time to the bad links, and takes what has come over them.
// It returns how many frames that were.
func (w *worker) advance() int {
	n := 0
	for _, pt := range w.faulty {
		pt.faulty.Advance(w.now)
		if pt.faulty.Readable() {
			n += w.receive(pt)
		}
		w.countLost(pt)
	}
	return n
}

func (w *worker) countLost(pt *port) {
	if n := pt.faulty.Lost(); n != 0 {
		w.reasons[FaultInjected].add(n)
		pt.lost.add(n)
	}
}

// patience is how long, in milliseconds, the worker may sleep.
func (w *worker) patience() int {
	if w.spins() {
		return 0
	}
	ms := idleWait
	if len(w.byHand) > 0 {
		ms = 1
	}
	for _, pt := range w.faulty {
		if at, any := pt.faulty.Next(); any {
			ms = min(ms, int(max(0, at-w.now+1e6-1)/1e6))
		}
	}
	return ms
}
