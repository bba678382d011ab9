package policy

import (
	"bytes"
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
	v.Isolated = len(set.isolating) > 0
	if set.empty() || slices.Contains(subject.addrs, with) {
		v.Allowed = true
		return v
	}
	q := question{table: t, subject: subject, peer: with, proto: proto, port: dstPort, now: now, dir: dir}
	q.node = slices.Contains(t.nodes, with)
	var far *Pod
	if p := t.peers[with]; p != nil {
		far, q.selectors = p.pod, p.selectors
	}
	q.named = subject
	if dir == Egress {
		q.named = far
	}
	if q.tier(set.admin, &v) {
		return v
	}
	if len(set.isolating) > 0 || len(set.auditing) > 0 {
		if v.By = q.admits(set.isolating); v.By == nil {
			v.By = q.admits(set.auditing)
		}
		switch {
		case q.node || v.By != nil:
			v.Allowed = true
			return v
		case len(set.isolating) > 0:
			v.Denying = set.isolating
			return v
		}
		v.audit(set.auditing)
	}
	if !q.tier(set.baseline, &v) {
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
	dir       Direction
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
func (q *question) tier(policies []*Policy, v *Verdict) bool {
	for _, p := range policies {
		for _, r := range p.rules[q.dir] {
			switch {
			case !q.matches(r):
			case r.Action == Pass:
				return false
			case r.Action == Accept:
				v.Allowed, v.By = true, r
				return true
			case p.Audit:
				v.audit(r.by)
			default:
				v.Denying, v.By = r.by, r
				return true
			}
		}
	}
	return false
}

// admits returns the first rule of NetworkPolicies that allows.
func (q *question) admits(policies []*Policy) *Rule {
	for _, p := range policies {
		for _, r := range p.rules[q.dir] {
			if q.matches(r) {
				return r
			}
		}
	}
	return nil
}

func (q *question) matches(r *Rule) bool {
	return r.admitsPort(q.named, q.proto, q.port) && (r.admitsPeer(q.peer, q.selectors) || r.nodes && q.node ||
		len(r.domains) > 0 && q.table.names.resolves(q.subject, q.peer, r.domains, q.now))
}

func (r *Rule) admitsPort(destination *Pod, proto packet.Proto, port uint16) bool {
	if r.anyPort {
		return true
	}
	for i := range r.ports {
		p := &r.ports[i]
		switch {
		case p.proto != proto && (p.proto != 0 || !p.named):
		case !p.named:
			if p.first <= port && port <= p.last {
				return true
			}
		case destination != nil:
			if slices.Contains(destination.ports, namedPort{p.name, proto, port}) {
				return true
			}
		}
	}
	return false
}

// admitsPeer wants the peer's selectors ascending.
func (r *Rule) admitsPeer(a packet.Addr, selectors []selectorID) bool {
	return r.anyPeer || intersect(r.selectors, selectors) || contains(r.ranges, a)
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

// contains looks a up in ascending, disjoint ranges.
func contains(ranges []addrRange, a packet.Addr) bool {
	lo, hi := 0, len(ranges)
	for lo < hi {
		m := (lo + hi) / 2
		if bytes.Compare(ranges[m].last[:], a[:]) < 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo < len(ranges) && bytes.Compare(ranges[lo].first[:], a[:]) <= 0
}
