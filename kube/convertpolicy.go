package kube

import (
	"encoding/json"
	"fmt"
	"strings"

	policyv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// AdminNetworkPolicy and BaselineAdminNetworkPolicy, policy.networking.k8s.io/v1alpha1,
// are what ClusterNetworkPolicy comes from: the tiers are kinds, Accept is called
// Allow, and protocols are called ports. Subjects and peers are the same, field
// by field. An object of theirs becomes a ClusterNetworkPolicy that is named
// after both it and its kind, and may have their longer lists.

// convertedFrom is the annotation that names the former kind.
const convertedFrom = "podgate.dev/converted-from"

const (
	adminPolicy    = "AdminNetworkPolicy"
	baselinePolicy = "BaselineAdminNetworkPolicy"
)

// convertedName is that of a ClusterNetworkPolicy which was a policy of kind.
func convertedName(name, kind string) string { return name + "." + strings.ToLower(kind) }

func fromAdminPolicy(in *policyv1alpha1.AdminNetworkPolicy) *policyv1alpha2.ClusterNetworkPolicy {
	out := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: in.ObjectMeta}
	out.Spec.Priority = in.Spec.Priority
	return convertPolicy(out, adminPolicy, policyv1alpha2.AdminTier, in.Spec)
}

func fromBaselinePolicy(in *policyv1alpha1.BaselineAdminNetworkPolicy) *policyv1alpha2.ClusterNetworkPolicy {
	return convertPolicy(&policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: in.ObjectMeta}, baselinePolicy, policyv1alpha2.BaselineTier, in.Spec)
}

// oldRule is a rule of either kind and direction.
type oldRule struct {
	Name   string                                           `json:"name"`
	Action string                                           `json:"action"`
	From   []policyv1alpha2.ClusterNetworkPolicyIngressPeer `json:"from"`
	To     []policyv1alpha2.ClusterNetworkPolicyEgressPeer  `json:"to"`
	Ports  *[]policyv1alpha1.AdminNetworkPolicyPort         `json:"ports"`
}

func convertPolicy(out *policyv1alpha2.ClusterNetworkPolicy, kind string, tier policyv1alpha2.Tier, spec any) *policyv1alpha2.ClusterNetworkPolicy {
	var old struct {
		Subject policyv1alpha2.ClusterNetworkPolicySubject `json:"subject"`
		Ingress []oldRule                                  `json:"ingress"`
		Egress  []oldRule                                  `json:"egress"`
	}
	js, err := json.Marshal(spec)
	if err == nil {
		err = json.Unmarshal(js, &old)
	}
	if err != nil {
		panic("kube: v1alpha1 policies and v1alpha2 are not alike: " + err.Error())
	}
	out.Name = convertedName(out.Name, kind)
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	out.Annotations[convertedFrom] = kind
	out.Spec.Tier, out.Spec.Subject = tier, old.Subject
	for _, r := range old.Ingress {
		out.Spec.Ingress = append(out.Spec.Ingress, policyv1alpha2.ClusterNetworkPolicyIngressRule{Name: r.Name, Action: r.action(kind), From: r.From, Protocols: r.protocols()})
	}
	for _, r := range old.Egress {
		out.Spec.Egress = append(out.Spec.Egress, policyv1alpha2.ClusterNetworkPolicyEgressRule{Name: r.Name, Action: r.action(kind), To: r.To, Protocols: r.protocols()})
	}
	return out
}

// action is the one that validation takes, or what it will say no to.
func (r *oldRule) action(kind string) policyv1alpha2.ClusterNetworkPolicyRuleAction {
	a := policyv1alpha2.ClusterNetworkPolicyRuleAction(r.Action)
	switch {
	case r.Action == "Allow":
		return policyv1alpha2.ClusterNetworkPolicyRuleActionAccept
	case a == policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
		return a + " (here it is Allow)"
	case a == policyv1alpha2.ClusterNetworkPolicyRuleActionPass && kind == baselinePolicy:
		return a + " (not in a " + baselinePolicy + ")"
	}
	return a
}

func (r *oldRule) protocols() []policyv1alpha2.ClusterNetworkPolicyProtocol {
	if r.Ports == nil {
		return nil
	}
	out := []policyv1alpha2.ClusterNetworkPolicyProtocol{}
	for _, p := range *r.Ports {
		var to policyv1alpha2.ClusterNetworkPolicyProtocol
		port := &policyv1alpha2.Port{}
		protocol := ""
		if n := p.PortNumber; n != nil {
			protocol, port.Number = string(n.Protocol), n.Port
		}
		if n := p.PortRange; n != nil {
			protocol, port.Range = string(n.Protocol), &policyv1alpha2.PortRange{Start: n.Start, End: n.End}
		}
		if p.NamedPort != nil {
			to.DestinationNamedPort = *p.NamedPort
		}
		switch {
		case p.PortNumber == nil && p.PortRange == nil:
		case protocol == "TCP" || protocol == "":
			to.TCP = &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		case protocol == "UDP":
			to.UDP = &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case protocol == "SCTP":
			to.SCTP = &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		}
		out = append(out, to)
	}
	return out
}

// limitOf is how long the lists of rules, peers and protocols of a policy may be.
func limitOf(p *policyv1alpha2.ClusterNetworkPolicy) int {
	switch p.Annotations[convertedFrom] {
	case adminPolicy, baselinePolicy:
		return 100
	}
	return maxClusterItems
}

// misnamed says that a policy must have another name, if so.
func misnamed(p *policyv1alpha2.ClusterNetworkPolicy) string {
	if p.Annotations[convertedFrom] == baselinePolicy && p.Name != convertedName("default", baselinePolicy) {
		return fmt.Sprintf("Only one baseline admin network policy with metadata.name=%q can be created in the cluster", "default")
	}
	return ""
}
