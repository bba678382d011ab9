// Package policy turns NetworkPolicy and ClusterNetworkPolicy objects into
// per-pod rule tables: a pure compile step from kube.State, and verdicts that the
// data path asks for once a flow.
//
// Verdicts go through the tiers in the API's order, Admin, NetworkPolicy,
// Baseline, and end in "allowed". A policy with the annotation
// podgate.dev/audit: "true" never denies; what it would deny is said.
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

// AuditAnnotation on a policy, with the value "true", makes it report instead of
// deny: see Verdict.Audited.
const AuditAnnotation = "podgate.dev/audit"

// Config is what the policies leave to the node. The zero value works.
type Config struct {
	NodeAddrs []netip.Addr // NetworkPolicy never denies traffic from and to these
	FailOpen  bool         // policies that cannot be read are as if they were not there, instead of isolating whom they select
	Names     *Names       // what pods learned from DNS; nil: rules by domain name match nothing
}

// Tier is where a policy stands in the order of evaluation.
type Tier uint8

const (
	Admin      Tier = iota // ClusterNetworkPolicy of tier Admin
	Namespaced             // NetworkPolicy
	Baseline               // ClusterNetworkPolicy of tier Baseline
)

// Action is what a rule does with what it matches. Rules of NetworkPolicies accept.
type Action uint8

const (
	Accept Action = iota
	Deny
	Pass // to the next tier
)

func (a Action) String() string { return [...]string{"Accept", "Deny", "Pass"}[a] }

// Verdict is the answer of Table.Judge.
type Verdict struct {
	Allowed  bool
	Isolated bool      // some NetworkPolicy selects the subject in this direction; who: Pod.Isolating
	By       *Rule     // the rule that decides, or nil: no policy applies, the node, the pod itself, or isolated by Denying
	Denying  []*Policy // who denies: those that isolate the pod, or the one whose rule denies; not to be changed
	Audited  []*Policy // in audit mode, those that would have denied; not to be changed
}

// Pod is what policies say about one pod. The same pointer in the next Table
// means that nothing that concerns the pod changed: neither its policies nor
// the sets of peers that they refer to, nor its named ports.
type Pod struct {
	Name kube.Name

	addrs []packet.Addr
	sets  [2]set // by Direction
	ports []namedPort
}

// Isolating returns the NetworkPolicies that isolate p in direction d, sorted by
// name; empty means that p is not isolated. The caller must not change it.
func (p *Pod) Isolating(d Direction) []*Policy {
	if p == nil {
		return nil
	}
	return p.sets[d].isolating.all()
}

// Selected says whether a policy of any kind selects p in direction d.
func (p *Pod) Selected(d Direction) bool { return p != nil && !p.sets[d].empty() }

// Policy is one compiled NetworkPolicy or ClusterNetworkPolicy.
type Policy struct {
	Name  kube.Name // without namespace: a ClusterNetworkPolicy
	Tier  Tier
	Audit bool // it only reports

	priority int32
	rules    [2][]*Rule
	types    [2]bool
	self     []*Policy // the policy itself
}

// Rule is one entry of spec.ingress or spec.egress.
type Rule struct {
	Policy    kube.Name
	Direction Direction
	Index     int
	Action    Action
	Name      string // a ClusterNetworkPolicy's rule may have one

	by        *Policy
	ports     []portRange // empty with anyPort false: nothing
	anyPort   bool        // no ports given: every protocol and port
	anyPeer   bool        // no peers given: everybody
	nodes     bool        // the node's addresses are peers
	selectors []selectorID
	ranges    []addrRange
	domains   []domain
}

// String names the rule as in "policy shop/allow-web rule ingress[0]".
func (r *Rule) String() string {
	if r.Policy.Namespace != "" {
		return fmt.Sprintf("policy %s rule %s[%d]", r.Policy, r.Direction, r.Index)
	}
	s := fmt.Sprintf("cluster policy %s rule %s[%d]", r.Policy, r.Direction, r.Index)
	if r.Name != "" {
		s += fmt.Sprintf(" (%s)", r.Name)
	}
	return s
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
	proto       packet.Proto // 0 with a name: every protocol that has ports
	named       bool
	first, last uint16
	name        unique.Handle[string]
}

// addrRange is an inclusive range of addresses.
type addrRange struct{ first, last packet.Addr }
