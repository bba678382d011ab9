// Package policy turns NetworkPolicy objects into per-pod rule tables: a pure
// compile step from kube.State, and verdicts that the data path asks for once a flow.
//
// A Table is immutable and shares with its predecessor every Pod whose rules
// did not change: the same pointer means that no verdict about the pod can have
// changed. Verdicts are about the connection's first packet, on pod addresses:
// after a Service was translated, before any masquerade; replies need none.
//
// The package starts no goroutines.
package policy

import (
	"fmt"
	"net/netip"
	"unique"

	"podgate/kube"
	"podgate/stack/packet"
)

// Direction is that of a policy rule, seen from the pod that it selects.
type Direction uint8

const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Config is what the policies leave to the node. The zero value works.
type Config struct {
	NodeAddrs []netip.Addr // traffic from and to these is never denied
}

// Verdict is the answer of Table.Judge.
type Verdict struct {
	Allowed  bool
	Isolated bool  // some policy selects the subject in this direction; who: Pod.Isolating
	By       *Rule // the rule that allows, or nil: not isolated, the node, or the pod itself
}

// Pod is what policies say about one pod. The same pointer in the next Table
// means that nothing that concerns the pod changed: neither its policies nor
// the sets of peers that they refer to, nor its named ports.
type Pod struct {
	Name kube.Name

	addrs    []packet.Addr
	policies [2][]*Policy // that isolate the pod, by Direction, sorted by name
	ports    []namedPort
}

// Isolating returns the policies that select p in direction d, sorted by name;
// empty means that p is not isolated. The caller must not change it.
func (p *Pod) Isolating(d Direction) []*Policy {
	if p == nil {
		return nil
	}
	return p.policies[d]
}

// Policy is one compiled NetworkPolicy.
type Policy struct {
	Name kube.Name

	rules [2][]*Rule
	types [2]bool
}

// Rule is one entry of spec.ingress or spec.egress.
type Rule struct {
	Policy    kube.Name
	Direction Direction
	Index     int

	ports     []portRange // empty with anyPort false: nothing
	anyPort   bool        // no ports given: every protocol and port
	anyPeer   bool        // no peers given: everybody
	selectors []selectorID
	ranges    []addrRange
}

// String names the rule as in "policy shop/allow-web rule ingress[0]".
func (r *Rule) String() string {
	return fmt.Sprintf("policy %s rule %s[%d]", r.Policy, r.Direction, r.Index)
}

// selectorID names an interned selector; peers carry the ids of the selectors
// that match them.
type selectorID uint32

// namedPort is a named container port of a pod.
type namedPort struct {
	name  unique.Handle[string]
	proto packet.Proto
	port  uint16
}

// portRange is one entry of a rule's ports: a range of numbers, or a name that
// is resolved on the destination pod.
type portRange struct {
	proto       packet.Proto
	named       bool
	first, last uint16
	name        unique.Handle[string]
}

// addrRange is an inclusive range of addresses.
type addrRange struct{ first, last packet.Addr }
