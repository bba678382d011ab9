package policy

import (
	"fmt"
	"net/netip"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/kube"
	"podgate/stack/packet"
)

// compileCluster turns the text of one ClusterNetworkPolicy into rules. What is
// broken in it fails closed, as the API asks: an Accept rule that cannot be read
// matches nothing, a Deny or Pass rule denies everything.
func (e *edit) compileCluster(cnp *policyv1alpha2.ClusterNetworkPolicy) *compiled {
	c := &compiled{Policy: &Policy{Name: kube.Name{Name: cnp.Name}, Audit: audit(cnp), priority: cnp.Spec.Priority}}
	b := &builder{edit: e, compiled: c}
	switch cnp.Spec.Tier {
	case policyv1alpha2.AdminTier:
	case policyv1alpha2.BaselineTier:
		c.Tier = Baseline
	default:
		b.problem("spec.tier", "Unsupported value: %q: supported values: \"Admin\", \"Baseline\"", cnp.Spec.Tier)
	}
	subject, ok := b.pods("spec.subject", cnp.Spec.Subject.Namespaces, cnp.Spec.Subject.Pods)
	if !ok {
		subject = &selector{namespaces: labels.Everything(), pods: labels.Everything()}
	}
	c.subject = e.intern(subject)
	for i, r := range cnp.Spec.Ingress {
		var to []policyv1alpha2.ClusterNetworkPolicyEgressPeer
		for _, p := range r.From {
			to = append(to, policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		b.clusterRule(&Rule{Direction: Ingress, Index: i, Name: r.Name}, "from", r.Action, to, r.Protocols)
	}
	for i, r := range cnp.Spec.Egress {
		b.clusterRule(&Rule{Direction: Egress, Index: i, Name: r.Name}, "to", r.Action, r.To, r.Protocols)
	}
	b.finish()
	return c
}

func (b *builder) clusterRule(r *Rule, word string, action policyv1alpha2.ClusterNetworkPolicyRuleAction, peers []policyv1alpha2.ClusterNetworkPolicyEgressPeer, protocols []policyv1alpha2.ClusterNetworkPolicyProtocol) {
	r.Policy, r.anyPort = b.Name, protocols == nil
	b.Policy.types[r.Direction] = true
	field := fmt.Sprintf("spec.%s[%d]", r.Direction, r.Index)
	broken := len(b.problems)
	switch action {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
	case policyv1alpha2.ClusterNetworkPolicyRuleActionDeny:
		r.Action = Deny
	case policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
		r.Action = Pass
	default:
		r.Action = Deny
		b.problem(field+".action", "Unsupported value: %q: supported values: \"Accept\", \"Deny\", \"Pass\"", action)
	}
	for i := range protocols {
		b.clusterPort(r, fmt.Sprintf("%s.protocols[%d]", field, i), &protocols[i])
	}
	if len(peers) == 0 {
		b.problem(field+"."+word, "Required value: must contain at least one item")
	}
	for i := range peers {
		b.clusterPeer(r, fmt.Sprintf("%s.%s[%d]", field, word, i), &peers[i])
	}
	if len(b.problems) > broken {
		if r.Action == Accept {
			return
		}
		*r = Rule{Policy: r.Policy, Direction: r.Direction, Index: r.Index, Name: r.Name, Action: Deny, anyPort: true, anyPeer: true}
	}
	b.add(r)
}

func (b *builder) clusterPort(r *Rule, field string, p *policyv1alpha2.ClusterNetworkPolicyProtocol) {
	out := portRange{}
	var port *policyv1alpha2.Port
	n := 0
	if p.TCP != nil {
		out.proto, port = packet.TCP, p.TCP.DestinationPort
		n++
	}
	if p.UDP != nil {
		out.proto, port = packet.UDP, p.UDP.DestinationPort
		n++
	}
	if p.SCTP != nil {
		out.proto, port = packet.SCTP, p.SCTP.DestinationPort
		n++
	}
	if p.DestinationNamedPort != "" {
		out.named, out.name = true, unique.Make(p.DestinationNamedPort)
		n++
	}
	first, last := int32(0), int32(65535)
	switch {
	case n != 1:
		b.problem(field, "Invalid value: exactly one field must be set")
		return
	case port == nil:
	case port.Range != nil:
		first, last = port.Range.Start, port.Range.End
	default:
		first, last = port.Number, port.Number
	}
	if port != nil && first < 1 || last > 65535 || last < first || port != nil && port.Range != nil && port.Number != 0 {
		b.problem(field, "Invalid value: %d-%d: must be between 1 and 65535, inclusive", first, last)
		return
	}
	out.first, out.last = uint16(first), uint16(last)
	r.ports = append(r.ports, out)
}

func (b *builder) clusterPeer(r *Rule, field string, p *policyv1alpha2.ClusterNetworkPolicyEgressPeer) {
	n := 0
	for _, set := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, p.Networks != nil, p.DomainNames != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		b.problem(field, "Invalid value: exactly one field must be set")
		return
	}
	switch {
	case p.Nodes != nil:
		if sel, ok := b.selector(field+".nodes", p.Nodes); ok {
			for _, node := range b.inputs.nodes {
				r.nodes = r.nodes || sel.Matches(labels.Set(node.Labels))
			}
		}
	case p.Networks != nil:
		for i, c := range p.Networks {
			cidr, err := netip.ParsePrefix(string(c))
			if err != nil {
				b.problem(fmt.Sprintf("%s.networks[%d]", field, i), "Invalid value: %q: Invalid CIDR format provided", c)
				continue
			}
			r.ranges = append(r.ranges, rangesOf(cidr)...)
		}
	case p.DomainNames != nil:
		if r.Action != Accept {
			b.problem(field+".domainNames", "Forbidden: domainNames is only supported for Accept rules")
		}
		for _, n := range p.DomainNames {
			r.domains = append(r.domains, domainOf(string(n)))
		}
	default:
		if s, ok := b.pods(field, p.Namespaces, p.Pods); ok {
			r.selectors = append(r.selectors, b.intern(s).id)
		}
	}
}

// pods is the selector of a subject or peer of which exactly one field is set.
func (b *builder) pods(field string, namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod) (s *selector, ok bool) {
	s = &selector{pods: labels.Everything()}
	switch {
	case (namespaces == nil) == (pods == nil):
		b.problem(field, "Invalid value: exactly one field must be set")
		return nil, false
	case namespaces != nil:
		s.namespaces, ok = b.selector(field+".namespaces", namespaces)
		return s, ok
	}
	var podsOK bool
	s.namespaces, ok = b.selector(field+".pods.namespaceSelector", &pods.NamespaceSelector)
	s.pods, podsOK = b.selector(field+".pods.podSelector", &pods.PodSelector)
	return s, ok && podsOK
}
