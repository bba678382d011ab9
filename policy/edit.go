package policy

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

// How Compile works. Every selector that a policy has, as subject or as peer,
// is interned under a number, and every pod carries the numbers of the
// selectors that match it. So a selector is evaluated when a pod's labels or a
// policy change, and a verdict compares numbers.
//
// A Table remembers the objects that it was made from. The next Compile
//
//  1. compiles the policies whose text changed, and interns their selectors,
//  2. makes members of the pods that changed, matches them against the
//     selectors, and the other pods against new selectors: selectors whose set
//     of pods changed are dirty,
//  3. indexes the policies of each subject that has one that is new, changed or
//     gone, and renews what has dirty peers, as it now means something else,
//  4. makes a Pod anew for pods that changed themselves or are selected by a
//     subject of 3; it stays the same pointer if its policies and named ports
//     came out the same,
//  5. enters what changed in the map of addresses.
//
// Maps are copied when first written to; what is in them is immutable.

// member is a pod as policies see it: a subject, a peer, or (host) a node address.
type member struct {
	name      kube.Name
	labels    map[string]string
	host      bool // in the node's network: no subject, and always let through
	addrs     []packet.Addr
	ports     []namedPort
	selectors []selectorID // that match it, ascending
	pod       *Pod         // nil if host
}

// same compares what a pod's object says, not what follows from it.
func (m *member) same(o *member) bool {
	return m != nil && o != nil && m.host == o.host && maps.Equal(m.labels, o.labels) &&
		slices.Equal(m.addrs, o.addrs) && slices.Equal(m.ports, o.ports)
}

// edit is the making of one Table.
type edit struct {
	*Table
	prev *Table
	st   *kube.State

	added   []*selector                // interned by this edit
	removed []selectorID               // no policy has them any more, ascending
	dirty   []selectorID               // their sets of pods changed
	changed map[selectorID][]*compiled // subjects of policies that are new, changed or gone, and the former
	touched []selectorID               // subjects whose groups are new, gone or renewed, ascending
	fresh   map[kube.Name]bool         // pods that changed themselves
	known   matchers                   // all selectors; made when first asked for
	written map[kube.Name]bool         // entries of inputs.members; nil: the map is still prev's
}

// intern returns the one selector that is like s.
func (e *edit) intern(s *selector) *selector {
	key := s.key()
	if known := e.inputs.selectors[key]; known != nil {
		return known
	}
	if len(e.added) == 0 {
		e.inputs.selectors = cloneOf(e.inputs.selectors)
	}
	e.inputs.lastID++
	s.id = e.inputs.lastID
	e.inputs.selectors[key] = s
	e.added = append(e.added, s)
	return s
}

// sweep forgets the selectors that no policy has any more.
func (e *edit) sweep() {
	used := map[selectorID]bool{}
	for _, c := range e.inputs.compiled {
		used[c.subject.id] = true
		for _, id := range c.peers {
			used[id] = true
		}
	}
	for key, s := range e.inputs.selectors {
		if !used[s.id] {
			if len(e.added) == 0 && len(e.removed) == 0 {
				e.inputs.selectors = cloneOf(e.inputs.selectors)
			}
			delete(e.inputs.selectors, key)
			e.removed = append(e.removed, s.id)
		}
	}
	slices.Sort(e.removed)
}

func (e *edit) setMember(n kube.Name, m *member) {
	if e.written == nil {
		e.inputs.members, e.written = cloneOf(e.inputs.members), map[kube.Name]bool{}
	}
	e.written[n] = true
	if m == nil {
		delete(e.inputs.members, n)
	} else {
		e.inputs.members[n] = m
	}
}

func cloneOf[K comparable, V any](m map[K]V) map[K]V {
	if c := maps.Clone(m); c != nil {
		return c
	}
	return map[K]V{}
}

// refresh makes a member of a pod that changed. Again says that it is to be
// matched even if the pod itself is as it was.
func (e *edit) refresh(n kube.Name, m *member, again bool) {
	old := e.inputs.members[n]
	if m == nil && old == nil || m.same(old) && !again {
		return
	}
	e.fresh[n] = true
	e.contest(old, m)
	if m == nil {
		e.dirty = append(e.dirty, old.selectors...)
		e.setMember(n, nil)
		return
	}
	if !m.host {
		m.selectors = e.matching(m)
	}
	switch {
	case old == nil:
		e.dirty = append(e.dirty, m.selectors...)
	case slices.Equal(m.addrs, old.addrs) && slices.Equal(m.ports, old.ports):
		e.dirty = append(e.dirty, difference(m.selectors, old.selectors)...)
		e.dirty = append(e.dirty, difference(old.selectors, m.selectors)...)
	default:
		e.dirty = append(append(e.dirty, m.selectors...), old.selectors...)
	}
	if old != nil && !m.host {
		m.pod = old.pod
	}
	e.setMember(n, m)
}

// contest marks the selectors of others that claim the same addresses: who is
// seen there may change.
func (e *edit) contest(members ...*member) {
	for _, m := range members {
		if m == nil || m.host {
			continue
		}
		for _, a := range m.addrs {
			for p := e.prev.peers[a]; p != nil; p = p.next {
				if p.name != m.name {
					e.dirty = append(e.dirty, p.selectors...)
				}
			}
		}
	}
}

// rematch brings the pods that did not change up to date with the selectors
// that came and went.
func (e *edit) rematch() {
	if len(e.added) == 0 && len(e.removed) == 0 {
		return
	}
	news := matchersBy(e.added)
	for n, m := range e.inputs.members {
		if e.fresh[n] || m.host {
			continue
		}
		list := difference(m.selectors, e.removed)
		list = append(list, news.match(e.st, m)...)
		slices.Sort(list)
		if !slices.Equal(list, m.selectors) {
			c := *m
			c.selectors = list
			e.setMember(n, &c)
		}
	}
}

// setCompiled enters a policy (nil: none) and notes whom it selects and selected.
func (e *edit) setCompiled(n kube.Name, c *compiled) {
	if e.changed == nil {
		e.inputs.compiled, e.changed = cloneOf(e.inputs.compiled), map[selectorID][]*compiled{}
	}
	if old := e.inputs.compiled[n]; old != nil {
		e.changed[old.subject.id] = append(e.changed[old.subject.id], nil)
	}
	if c == nil {
		delete(e.inputs.compiled, n)
		return
	}
	e.changed[c.subject.id] = append(e.changed[c.subject.id], c)
	e.inputs.compiled[n] = c
}

// group is the policies that have the same subject.
type group struct {
	list  []*compiled  // in their order
	sides [3][2]*side  // by Tier and Direction; nil: none
	peers []selectorID // in any rule, ascending
}

// regroup makes the groups of subjects whose policies changed, and renews those
// whose peers are not who they were.
func (e *edit) regroup() {
	e.inputs.groups = maps.Clone(e.inputs.groups)
	if e.inputs.groups == nil {
		e.inputs.groups = map[selectorID]*group{}
	}
	slices.Sort(e.dirty)
	e.dirty = slices.Compact(e.dirty)
	for id, g := range e.inputs.groups {
		if e.changed[id] == nil && intersect(g.peers, e.dirty) {
			e.inputs.groups[id] = g.renewed()
			e.touched = append(e.touched, id)
		}
	}
	for id, added := range e.changed {
		var list []*compiled
		if old := e.inputs.groups[id]; old != nil {
			list = slices.Clone(old.list)
		}
		list = slices.DeleteFunc(append(list, added...), func(c *compiled) bool {
			return c == nil || e.inputs.compiled[c.Name] != c
		})
		if len(list) > 0 {
			e.inputs.groups[id] = groupOf(list)
		} else {
			delete(e.inputs.groups, id)
		}
		e.touched = append(e.touched, id)
	}
	slices.Sort(e.touched)
}

// groupOf takes list, most of which is in order already.
func groupOf(list []*compiled) *group {
	g := &group{list: list}
	var tiers [3][]*Policy
	slices.SortFunc(list, func(a, b *compiled) int { return comparePolicies(a.Policy, b.Policy) })
	for _, c := range list {
		tiers[c.Tier] = append(tiers[c.Tier], c.Policy)
		g.peers = append(g.peers, c.peers...)
	}
	slices.Sort(g.peers)
	g.peers = slices.Compact(g.peers)
	for t, policies := range tiers {
		for _, d := range [...]Direction{Ingress, Egress} {
			g.sides[t][d] = sideOf(policies, d)
		}
	}
	return g
}

// renewed is g with other pointers.
func (g *group) renewed() *group {
	anew := *g
	for t := range anew.sides {
		for d, s := range anew.sides[t] {
			if s != nil {
				c := *s
				anew.sides[t][d] = &c
			}
		}
	}
	return &anew
}

// rebuild makes the Pods that may have changed; all of them anew if the node's
// addresses did.
func (e *edit) rebuild() {
	all := !slices.Equal(e.nodes, e.prev.nodes)
	if !all && len(e.fresh) == 0 && len(e.touched) == 0 {
		return
	}
	for n, m := range e.inputs.members {
		if m.host {
			continue
		}
		was := e.prev.inputs.members[n]
		if !all && !e.fresh[n] && !intersect(m.selectors, e.touched) && (was == m || !intersect(was.selectors, e.touched)) {
			continue
		}
		pod := &Pod{Name: n, addrs: m.addrs, ports: m.ports}
		for _, id := range m.selectors {
			g := e.inputs.groups[id]
			if g == nil {
				continue
			}
			for t := range g.sides {
				for d, s := range g.sides[t] {
					if s != nil {
						pod.sets[d].add(Tier(t), s)
					}
				}
			}
		}
		if !all && pod.same(m.pod) {
			continue
		}
		c := *m
		c.pod = pod
		e.setMember(n, &c)
	}
}

func (p *Pod) same(o *Pod) bool {
	return o != nil && slices.Equal(p.addrs, o.addrs) && p.sets[Ingress].same(&o.sets[Ingress]) &&
		p.sets[Egress].same(&o.sets[Egress]) && slices.Equal(p.ports, o.ports)
}

// locate finds the addresses that always pass: the node's, and those of pods
// in its network.
func (e *edit) locate(own []packet.Addr) {
	for _, m := range e.inputs.members {
		if m.host {
			own = append(own, m.addrs...)
		}
	}
	slices.SortFunc(own, compareAddrs)
	e.nodes = slices.Compact(own)
}

// enter brings the map of addresses up to date with the members.
func (e *edit) enter() {
	if len(e.written) == 0 {
		return
	}
	e.peers = cloneOf(e.peers)
	for n := range e.written {
		old, now := e.prev.inputs.members[n], e.inputs.members[n]
		if old != nil && !old.host {
			for _, a := range old.addrs {
				if list := e.peers[a].without(old); list != nil {
					e.peers[a] = list
				} else {
					delete(e.peers, a)
				}
			}
		}
		if now != nil && !now.host {
			for _, a := range now.addrs {
				e.peers[a] = e.peers[a].with(now)
			}
		}
	}
}

// with and without return new lists: peers are shared with other Tables.
func (p *peer) with(m *member) *peer {
	if p == nil || compareNames(m.name, p.name) < 0 {
		return &peer{m, p}
	}
	return &peer{p.member, p.next.with(m)}
}

func (p *peer) without(m *member) *peer {
	if p == nil {
		return nil
	}
	if p.member == m {
		return p.next
	}
	return &peer{p.member, p.next.without(m)}
}

// difference returns what ascending a has and ascending b has not, as a new list.
func difference(a, b []selectorID) []selectorID {
	var out []selectorID
	for _, id := range a {
		if _, found := slices.BinarySearch(b, id); !found {
			out = append(out, id)
		}
	}
	return out
}

func compareNames(a, b kube.Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareAddrs(a, b packet.Addr) int { return bytes.Compare(a[:], b[:]) }

// faults are the problems of all policies.
func (e *edit) faults() []kube.Problem {
	var ps []kube.Problem
	for _, c := range e.inputs.compiled {
		ps = append(ps, c.problems...)
	}
	slices.SortFunc(ps, func(a, b kube.Problem) int {
		return cmp.Or(compareNames(a.Object, b.Object), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Err, b.Err))
	})
	return ps
}
