package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/stack/packet"
)

// tier evaluates one tier of ClusterNetworkPolicies as the comments of its API
// say; true is a final decision.
func (v naive) tier(tier policyv1alpha2.Tier, dir Direction, subject *corev1.Pod, peer netip.Addr, other, destination *corev1.Pod, proto packet.Proto, port uint16, a *answer) bool {
	var all []*policyv1alpha2.ClusterNetworkPolicy
	for _, p := range v.st.ClusterPolicies {
		s := p.Spec.Subject
		if p.Spec.Tier == tier && (s.Namespaces != nil && matches(s.Namespaces, v.st.Namespaces[subject.Namespace].Labels) || s.Pods != nil && v.podIn(s.Pods, subject)) {
			all = append(all, p)
		}
	}
	// "Policies with lower priority values have higher precedence"; of the same
	// priority "the implementation can apply any": here by name.
	slices.SortFunc(all, func(a, b *policyv1alpha2.ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range all {
		type match struct {
			action policyv1alpha2.ClusterNetworkPolicyRuleAction
			index  int
		}
		var found []match // rules that match, in order
		if dir == Ingress {
			for i, r := range p.Spec.Ingress {
				if v.protocols(r.Protocols, destination, proto, port) && slices.ContainsFunc(r.From, func(f policyv1alpha2.ClusterNetworkPolicyIngressPeer) bool {
					return other != nil && (f.Namespaces != nil && matches(f.Namespaces, v.st.Namespaces[other.Namespace].Labels) || f.Pods != nil && v.podIn(f.Pods, other))
				}) {
					found = append(found, match{r.Action, i})
				}
			}
		} else {
			for i, r := range p.Spec.Egress {
				if v.protocols(r.Protocols, destination, proto, port) && slices.ContainsFunc(r.To, func(f policyv1alpha2.ClusterNetworkPolicyEgressPeer) bool {
					return v.egressPeer(f, subject, peer, other)
				}) {
					found = append(found, match{r.Action, i})
				}
			}
		}
		for _, m := range found {
			by := fmt.Sprintf("cluster policy %s rule %s[%d]", p.Name, dir, m.index)
			switch {
			case m.action == "Pass":
				return false
			case m.action == "Accept":
				a.allowed, a.by = true, by
				return true
			case p.Annotations["podgate.dev/audit"] == "true":
				if a.audited == nil {
					a.audited = []string{p.Name}
				}
			default:
				a.denying, a.by = []string{p.Name}, by
				return true
			}
		}
	}
	return false
}

func (v naive) podIn(s *policyv1alpha2.NamespacedPod, pod *corev1.Pod) bool {
	return matches(&s.NamespaceSelector, v.st.Namespaces[pod.Namespace].Labels) && matches(&s.PodSelector, pod.Labels)
}

func (v naive) egressPeer(f policyv1alpha2.ClusterNetworkPolicyEgressPeer, subject *corev1.Pod, peer netip.Addr, other *corev1.Pod) bool {
	switch {
	case f.Namespaces != nil:
		return other != nil && matches(f.Namespaces, v.st.Namespaces[other.Namespace].Labels)
	case f.Pods != nil:
		return other != nil && v.podIn(f.Pods, other)
	case f.Nodes != nil: // the node's addresses; those of pods in its network are the same in a real cluster
		return (slices.Contains(v.nodes, peer) || v.podAt(peer, true) != nil) && matches(f.Nodes, v.st.Nodes["node"].Labels)
	case f.Networks != nil:
		return slices.ContainsFunc(f.Networks, func(c policyv1alpha2.CIDR) bool { return in(string(c), peer) })
	}
	for _, s := range v.told {
		mine := slices.ContainsFunc(subject.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == s.pod })
		if !mine || s.addr != peer.String() || s.until <= fuzzNow {
			continue
		}
		for _, d := range f.DomainNames {
			name, want := strings.Split(strings.ToLower(strings.Trim(s.name, ".")), "."), strings.Split(strings.ToLower(strings.Trim(string(d), ".")), ".")
			if want[0] == "*" && len(name) >= len(want) && slices.Equal(name[len(name)-len(want)+1:], want[1:]) || slices.Equal(name, want) {
				return true
			}
		}
	}
	return false
}

// "If unspecified, protocol-specific attributes will not be used to match traffic."
func (v naive) protocols(ps []policyv1alpha2.ClusterNetworkPolicyProtocol, destination *corev1.Pod, proto packet.Proto, port uint16) bool {
	if ps == nil {
		return true
	}
	for _, p := range ps {
		var want packet.Proto
		var at *policyv1alpha2.Port
		switch {
		case p.TCP != nil:
			want, at = packet.TCP, p.TCP.DestinationPort
		case p.UDP != nil:
			want, at = packet.UDP, p.UDP.DestinationPort
		case p.SCTP != nil:
			want, at = packet.SCTP, p.SCTP.DestinationPort
		default: // "selects a destination port on a pod based on the ContainerPort name"
			if destination == nil {
				continue
			}
			protos := map[corev1.Protocol]packet.Proto{"TCP": packet.TCP, "UDP": packet.UDP, "SCTP": packet.SCTP}
			for _, c := range running(destination) {
				for _, cp := range c.Ports {
					if cp.Name == p.DestinationNamedPort && protos[cp.Protocol] == proto && uint16(cp.ContainerPort) == port {
						return true
					}
				}
			}
			continue
		}
		if want == proto && (at.Number == int32(port) && at.Number != 0 || at.Range != nil && at.Range.Start <= int32(port) && int32(port) <= at.Range.End) {
			return true
		}
	}
	return false
}
