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
// A protocol without ports (ICMP among them) is allowed by rules without ports
// only. A nil subject is no pod and may do everything. Judge does not allocate.
func (t *Table) Judge(dir Direction, subject *Pod, with packet.Addr, proto packet.Proto, dstPort uint16) Verdict {
	policies := subject.Isolating(dir)
	if len(policies) == 0 {
		return Verdict{Allowed: true}
	}
	if slices.Contains(t.nodes, with) || slices.Contains(subject.addrs, with) {
		return Verdict{Allowed: true, Isolated: true}
	}
	var selectors []selectorID
	var far *Pod
	if p := t.peers[with]; p != nil {
		far, selectors = p.pod, p.selectors
	}
	named := subject
	if dir == Egress {
		named = far
	}
	for _, p := range policies {
		for _, r := range p.rules[dir] {
			if r.admitsPort(named, proto, dstPort) && r.admitsPeer(with, selectors) {
				return Verdict{Allowed: true, Isolated: true, By: r}
			}
		}
	}
	return Verdict{Isolated: true}
}

func (r *Rule) admitsPort(destination *Pod, proto packet.Proto, port uint16) bool {
	if r.anyPort {
		return true
	}
	for i := range r.ports {
		p := &r.ports[i]
		switch {
		case p.proto != proto:
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
