package policy

import (
	"reflect"
	"slices"

	"podgate/stack/packet"
)

// A Table holds what all policies say. It is immutable; the zero Table knows
// no pod and allows everything. Make one with Compile.
type Table struct {
	peers map[packet.Addr]*peer
	nodes []packet.Addr // of the node, and of pods in its network
	names *Names

	inputs inputs
}

// Same says whether t and o, which may be nil, judge alike: nothing changed from
// one to the other.
func (t *Table) Same(o *Table) bool {
	if t == nil || o == nil {
		return t == o
	}
	same := reflect.ValueOf(t.peers).Pointer() == reflect.ValueOf(o.peers).Pointer()
	return same && t.names == o.names && slices.Equal(t.nodes, o.nodes)
}

// peer is what stands at an address: a pod that is no hostNetwork one, and so
// the selectors that match it. A verdict costs one look at the peer and then
// small integers.
type peer struct {
	*member
	next *peer // further claimants of the address, by name
}

// Pod returns the pod at an address, or nil: not a pod, or one that policies do
// not concern (hostNetwork, completed).
func (t *Table) Pod(a packet.Addr) *Pod {
	if p := t.peers[a]; p != nil {
		return p.pod
	}
	return nil
}

// Judge says whether subject may open a conversation with peer: with Ingress
// the peer is the client, with Egress it is the server. Proto and dstPort are
// those of the first packet; named ports are looked up on the destination pod.
// A protocol without ports (ICMP among them) is matched by rules without ports
// only. Now, in nanoseconds, is compared with the time of what pods learned from
// DNS. A nil subject is no pod and may do everything. Judge does not allocate.
func (t *Table) Judge(dir Direction, subject *Pod, with packet.Addr, proto packet.Proto, dstPort uint16, now int64) (v Verdict) {
	if subject == nil {
		return Verdict{Allowed: true}
	}
	set := &subject.sets[dir]
	v.Isolated = set.isolating.n > 0
	if set.empty() || slices.Contains(subject.addrs, with) {
		v.Allowed = true
		return v
	}
	q := question{table: t, subject: subject, peer: with, proto: proto, port: dstPort, now: now}
	_, q.node = slices.BinarySearchFunc(t.nodes, with, compareAddrs)
	var far *Pod
	if p := t.peers[with]; p != nil {
		far, q.selectors = p.pod, p.selectors
	}
	q.named = subject
	if dir == Egress {
		q.named = far
	}
	if q.tier(set.tiers[Admin], &v) {
		return v
	}
	if sides := set.tiers[Namespaced]; len(sides) > 0 {
		if v.By = q.first(sides, strict); v.By == nil {
			v.By = q.first(sides, audited)
		}
		switch {
		case q.node || v.By != nil:
			v.Allowed = true
			return v
		case v.Isolated:
			v.Denying = set.isolating.all()
			return v
		}
		v.audit(set.auditing.all())
	}
	if !q.tier(set.tiers[Baseline], &v) {
		v.Allowed = true
	}
	return v
}

// audit notes who would have denied: the first to do so, as it would have been final.
func (v *Verdict) audit(by []*Policy) {
	if v.Audited == nil {
		v.Audited = by
	}
}

// question is one that rules are asked.
type question struct {
	table     *Table
	subject   *Pod
	peer      packet.Addr
	selectors []selectorID // that match the peer, ascending
	named     *Pod         // where named ports are looked up, or nil
	node      bool         // the peer is the node
	proto     packet.Proto
	port      uint16
	now       int64
}

// tier asks the policies of one tier of ClusterNetworkPolicies. True says that
// the verdict is final.
func (q *question) tier(sides []*side, v *Verdict) bool {
	r, would := q.first(sides, strict), q.first(sides, audited)
	if would != nil && (r == nil || would.before(r)) {
		v.audit(would.by.self)
	}
	switch {
	case r == nil || r.Action == Pass:
		return false
	case r.Action == Accept:
		v.Allowed, v.By = true, r
	default:
		v.Denying, v.By = r.by.self, r
	}
	return true
}

// first returns the first rule of one kind that matches, or nil.
func (q *question) first(sides []*side, kind int) (first *Rule) {
	for _, s := range sides {
		if r := s.rules[kind].first(q); r != nil && (first == nil || r.before(first)) {
			first = r
		}
	}
	return first
}

// intersect says whether two ascending lists have an element in common.
func intersect(a, b []selectorID) bool {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] < b[0]:
			a = a[1:]
		case a[0] > b[0]:
			b = b[1:]
		default:
			return true
		}
	}
	return false
}
