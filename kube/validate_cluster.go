package kube

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// ClusterNetworkPolicy is validated as by its CustomResourceDefinition, in the
// experimental channel: it has all peers.

const maxClusterItems = 25 // rules of a direction, and items of each list in them

// domainName is the definition's, also where it says A-z: labels may begin with _.
var domainName = regexp.MustCompile(`^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

func validateClusterNetworkPolicy(o *policyv1alpha2.ClusterNetworkPolicy, spec *field.Path) (errs field.ErrorList) {
	s, limit := &o.Spec, limitOf(o)
	if why := misnamed(o); why != "" {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), o.Name, why))
	}
	errs = append(errs, oneOf(s.Tier, spec.Child("tier"), policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier)...)
	if s.Priority < 0 || s.Priority > 1000 {
		errs = append(errs, field.Invalid(spec.Child("priority"), s.Priority, "must be between 0 and 1000, inclusive"))
	}
	errs = append(errs, exactlyOne(spec.Child("subject"), s.Subject.Namespaces != nil, s.Subject.Pods != nil)...)
	errs = append(errs, validatePodsPeer(s.Subject.Namespaces, s.Subject.Pods, spec.Child("subject"))...)
	errs = append(errs, atMost(limit, len(s.Ingress), spec.Child("ingress"))...)
	for i, r := range s.Ingress {
		at := spec.Child("ingress").Index(i)
		errs = append(errs, validateClusterRule(limit, r.Name, r.Action, r.Protocols, at)...)
		errs = append(errs, oneTo(limit, len(r.From), at.Child("from"))...)
		for j, p := range r.From {
			at := at.Child("from").Index(j)
			errs = append(errs, exactlyOne(at, p.Namespaces != nil, p.Pods != nil)...)
			errs = append(errs, validatePodsPeer(p.Namespaces, p.Pods, at)...)
		}
	}
	errs = append(errs, atMost(limit, len(s.Egress), spec.Child("egress"))...)
	for i, r := range s.Egress {
		at := spec.Child("egress").Index(i)
		errs = append(errs, validateClusterRule(limit, r.Name, r.Action, r.Protocols, at)...)
		errs = append(errs, oneTo(limit, len(r.To), at.Child("to"))...)
		named := false
		for _, p := range r.Protocols {
			named = named || p.DestinationNamedPort != ""
		}
		for j := range r.To {
			errs = append(errs, validateEgressPeer(&r.To[j], r.Action, named, at.Child("to").Index(j))...)
		}
	}
	return errs
}

func validateEgressPeer(p *policyv1alpha2.ClusterNetworkPolicyEgressPeer, action policyv1alpha2.ClusterNetworkPolicyRuleAction, named bool, at *field.Path) field.ErrorList {
	errs := exactlyOne(at, p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, p.Networks != nil, p.DomainNames != nil)
	errs = append(errs, validatePodsPeer(p.Namespaces, p.Pods, at)...)
	if p.Nodes != nil {
		errs = append(errs, validateSelector(p.Nodes, at.Child("nodes"))...)
	}
	if p.Networks != nil {
		errs = append(errs, oneTo(maxClusterItems, len(p.Networks), at.Child("networks"))...)
	}
	errs = append(errs, unique(p.Networks, at.Child("networks"))...)
	for i, n := range p.Networks {
		if cidr, err := netip.ParsePrefix(string(n)); err != nil || cidr.Addr().Is4In6() {
			errs = append(errs, field.Invalid(at.Child("networks").Index(i), n, "Invalid CIDR format provided"))
		}
	}
	if p.DomainNames != nil {
		errs = append(errs, oneTo(maxClusterItems, len(p.DomainNames), at.Child("domainNames"))...)
		if action != policyv1alpha2.ClusterNetworkPolicyRuleActionAccept {
			errs = append(errs, field.Forbidden(at.Child("domainNames"), "domainNames is only supported for Accept rules"))
		}
	}
	errs = append(errs, unique(p.DomainNames, at.Child("domainNames"))...)
	for i, n := range p.DomainNames {
		if !domainName.MatchString(string(n)) {
			errs = append(errs, field.Invalid(at.Child("domainNames").Index(i), n, "must be a domain name, of which the first label may be *"))
		}
	}
	if named && (p.Nodes != nil || p.Networks != nil || p.DomainNames != nil) {
		errs = append(errs, field.Forbidden(at, "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames"))
	}
	return errs
}

func validatePodsPeer(namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod, at *field.Path) (errs field.ErrorList) {
	if namespaces != nil {
		errs = append(errs, validateSelector(namespaces, at.Child("namespaces"))...)
	}
	if pods != nil {
		errs = append(errs, validateSelector(&pods.NamespaceSelector, at.Child("pods", "namespaceSelector"))...)
		errs = append(errs, validateSelector(&pods.PodSelector, at.Child("pods", "podSelector"))...)
	}
	return errs
}

func validateClusterRule(limit int, name string, action policyv1alpha2.ClusterNetworkPolicyRuleAction, protocols []policyv1alpha2.ClusterNetworkPolicyProtocol, at *field.Path) (errs field.ErrorList) {
	if utf8.RuneCountInString(name) > 100 {
		errs = append(errs, field.TooLong(at.Child("name"), "", 100))
	}
	errs = append(errs, oneOf(action, at.Child("action"), policyv1alpha2.ClusterNetworkPolicyRuleActionAccept,
		policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)...)
	if protocols != nil {
		errs = append(errs, oneTo(limit, len(protocols), at.Child("protocols"))...)
	}
	for i, p := range protocols {
		at := at.Child("protocols").Index(i)
		errs = append(errs, exactlyOne(at, p.TCP != nil, p.UDP != nil, p.SCTP != nil, p.DestinationNamedPort != "")...)
		switch {
		case p.TCP != nil:
			errs = append(errs, validateClusterPort(p.TCP.DestinationPort, at.Child("tcp"))...)
		case p.UDP != nil:
			errs = append(errs, validateClusterPort(p.UDP.DestinationPort, at.Child("udp"))...)
		case p.SCTP != nil:
			errs = append(errs, validateClusterPort(p.SCTP.DestinationPort, at.Child("sctp"))...)
		}
	}
	return errs
}

func validateClusterPort(p *policyv1alpha2.Port, at *field.Path) field.ErrorList {
	if p == nil {
		return field.ErrorList{field.Invalid(at, "", "should have at least 1 properties")}
	}
	at = at.Child("destinationPort")
	errs := exactlyOne(at, p.Number != 0, p.Range != nil)
	if p.Number != 0 {
		errs = append(errs, validatePortNumber(p.Number, at.Child("number"))...)
	}
	if r := p.Range; r != nil {
		errs = append(errs, validatePortNumber(r.Start, at.Child("range", "start"))...)
		errs = append(errs, validatePortNumber(r.End, at.Child("range", "end"))...)
		if r.Start >= r.End {
			errs = append(errs, field.Invalid(at.Child("range"), fmt.Sprintf("%d-%d", r.Start, r.End), "Start port must be less than End port"))
		}
	}
	return errs
}

func exactlyOne(at *field.Path, set ...bool) field.ErrorList {
	n := 0
	for _, s := range set {
		if s {
			n++
		}
	}
	switch {
	case n == 0:
		return field.ErrorList{field.Required(at, "exactly one field must be set")}
	case n > 1:
		return field.ErrorList{field.Forbidden(at, "exactly one field must be set")}
	}
	return nil
}

// unique says which items of a list that is a set are there twice.
func unique[T ~string](list []T, at *field.Path) (errs field.ErrorList) {
	for i, s := range list {
		if slices.Contains(list[:i], s) {
			errs = append(errs, field.Duplicate(at.Index(i), s))
		}
	}
	return errs
}

func atMost(limit, n int, at *field.Path) field.ErrorList {
	if n > limit {
		return field.ErrorList{field.TooMany(at, n, limit)}
	}
	return nil
}

func oneTo(limit, n int, at *field.Path) field.ErrorList {
	if n == 0 {
		return field.ErrorList{field.Required(at, "must contain at least one item")}
	}
	return atMost(limit, n, at)
}
