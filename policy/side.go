package policy

import (
	"slices"
	"sync/atomic"
)

// side is the policies of one tier and direction that have the same subject. It
// is immutable, and the pods that the subject selects share it. The same pointer
// means that neither the policies changed nor the sets of pods that are their peers.
type side struct {
	rules               [2]*index // strict and audited
	isolating, auditing []*Policy // NetworkPolicies that are in force and that only report, by name
}

// What becomes of a rule that matches. A NetworkPolicy's rule is audited if its
// policy is in audit mode; a ClusterNetworkPolicy's only if it denies besides.
const (
	strict  = iota // it decides
	audited        // it allows, or says that it would have denied
)

// sideOf makes the side of policies of one tier, in their order; nil if none is
// about the direction.
func sideOf(policies []*Policy, d Direction) *side {
	s := &side{}
	var rules [2][]*Rule
	for _, p := range policies {
		if !p.types[d] {
			continue
		}
		if p.Audit {
			s.auditing = append(s.auditing, p)
		} else {
			s.isolating = append(s.isolating, p)
		}
		for _, r := range p.rules[d] {
			kind := strict
			if p.Audit && (p.Tier == Namespaced || r.Action == Deny) {
				kind = audited
			}
			rules[kind] = append(rules[kind], r)
		}
	}
	if len(s.isolating) == 0 && len(s.auditing) == 0 {
		return nil
	}
	s.rules = [2]*index{indexOf(rules[strict]), indexOf(rules[audited])}
	return s
}

// set is the policies that select a pod in one direction.
type set struct {
	tiers               [3][]*side // by Tier
	isolating, auditing roll       // NetworkPolicies
}

func (s *set) empty() bool {
	return len(s.tiers[Admin]) == 0 && len(s.tiers[Namespaced]) == 0 && len(s.tiers[Baseline]) == 0
}

func (s *set) same(o *set) bool {
	return slices.EqualFunc(s.tiers[:], o.tiers[:], slices.Equal)
}

func (s *set) add(t Tier, side *side) {
	s.tiers[t] = append(s.tiers[t], side)
	if t == Namespaced {
		s.isolating.add(side.isolating)
		s.auditing.add(side.auditing)
	}
}

// roll is a list of policies out of several; it is put into order when it is
// first asked for, which is when something is denied.
type roll struct {
	n      int
	lists  [][]*Policy // each in order, none empty
	sorted atomic.Pointer[[]*Policy]
}

func (r *roll) add(list []*Policy) {
	if len(list) > 0 {
		r.n += len(list)
		r.lists = append(r.lists, list)
	}
}

// all returns the policies by name. It is not to be changed.
func (r *roll) all() []*Policy {
	switch len(r.lists) {
	case 0:
		return nil
	case 1:
		return r.lists[0]
	}
	if all := r.sorted.Load(); all != nil {
		return *all
	}
	all := slices.Concat(r.lists...)
	slices.SortFunc(all, comparePolicies)
	r.sorted.Store(&all)
	return all
}
