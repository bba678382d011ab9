package policy

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"podgate/stack/packet"
)

// Names is what pods learned from the answers that DNS gave them: which name has
// which address, until when. Rules by domain name match by it. A pod is known by
// its address, and knows only what it was told itself.
//
// Learn is called before an answer is sent, so that no connection comes before
// what it needs. Readers take no lock. The zero Names is empty.
type Names struct {
	mu   sync.Mutex // of who writes
	pods atomic.Pointer[map[packet.Addr]*told]
}

// told is what one pod was told. The maps are replaced, never changed.
type told struct {
	list atomic.Pointer[map[packet.Addr][]lesson]
}

// lesson is a name of an address, in lower case without final dot.
type lesson struct {
	name  string
	until int64 // nanoseconds
}

// maxLessons is how many addresses are remembered of one pod's answers; those
// that end first are forgotten first.
const maxLessons = 1024

// Learn notes that pod, known by any of its addresses, was told at now that name
// has addresses, until some time later, all in nanoseconds.
func (n *Names) Learn(pod packet.Addr, name string, addrs []packet.Addr, now, until int64) {
	name = canonical(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.of(pod)
	if t == nil {
		t = &told{}
		n.replace(func(m map[packet.Addr]*told) { m[pod] = t })
	}
	next := map[packet.Addr][]lesson{}
	if old := t.list.Load(); old != nil {
		for a, ls := range *old {
			for _, l := range ls {
				if l.until > now {
					next[a] = append(next[a], l)
				}
			}
		}
	}
	for _, a := range addrs {
		fresh := []lesson{{name, until}}
		for _, l := range next[a] {
			if l.name != name {
				fresh = append(fresh, l)
			} else {
				fresh[0].until = max(l.until, until)
			}
		}
		next[a] = fresh
	}
	for len(next) > maxLessons {
		var first packet.Addr
		soonest := int64(-1)
		for a, ls := range next {
			last := int64(0)
			for _, l := range ls {
				last = max(last, l.until)
			}
			if soonest < 0 || last < soonest {
				first, soonest = a, last
			}
		}
		delete(next, first)
	}
	t.list.Store(&next)
}

// Forget drops what a pod was told: its address is another's now.
func (n *Names) Forget(pod packet.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of(pod) != nil {
		n.replace(func(m map[packet.Addr]*told) { delete(m, pod) })
	}
}

func (n *Names) of(pod packet.Addr) *told {
	if m := n.pods.Load(); m != nil {
		return (*m)[pod]
	}
	return nil
}

// replace wants mu held.
func (n *Names) replace(change func(map[packet.Addr]*told)) {
	next := map[packet.Addr]*told{}
	if m := n.pods.Load(); m != nil {
		maps.Copy(next, *m)
	}
	change(next)
	n.pods.Store(&next)
}

// lessons returns what pod was told of address a, also what has ended by now.
func (n *Names) lessons(pod, a packet.Addr) []lesson {
	if n == nil {
		return nil
	}
	t := n.of(pod)
	if t == nil {
		return nil
	}
	list := t.list.Load()
	if list == nil {
		return nil
	}
	return (*list)[a]
}

// domain is a name, or with suffix everything below it.
type domain struct {
	name  string
	below bool // "*.name": one or more labels before it
}

func domainOf(s string) domain {
	s = canonical(s)
	if rest, ok := strings.CutPrefix(s, "*."); ok {
		return domain{rest, true}
	}
	return domain{s, false}
}

func canonical(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }
