package kube

import (
	"fmt"
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateNetworkPolicy(s *networkingv1.NetworkPolicySpec, spec *field.Path) field.ErrorList {
	errs := validateSelector(&s.PodSelector, spec.Child("podSelector"))
	for i, r := range s.Ingress {
		at := spec.Child("ingress").Index(i)
		errs = append(errs, validatePolicyRule(r.Ports, at.Child("ports"), r.From, at.Child("from"))...)
	}
	for i, r := range s.Egress {
		at := spec.Child("egress").Index(i)
		errs = append(errs, validatePolicyRule(r.Ports, at.Child("ports"), r.To, at.Child("to"))...)
	}
	if len(s.PolicyTypes) > 2 {
		return append(errs, field.Invalid(spec.Child("policyTypes"), s.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range s.PolicyTypes {
		errs = append(errs, oneOf(t, spec.Child("policyTypes").Index(i), networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress)...)
	}
	return errs
}

func validatePolicyRule(ports []networkingv1.NetworkPolicyPort, portsAt *field.Path, peers []networkingv1.NetworkPolicyPeer, peersAt *field.Path) (errs field.ErrorList) {
	for i, p := range ports {
		errs = append(errs, validatePolicyPort(p, portsAt.Index(i))...)
	}
	for i, p := range peers {
		errs = append(errs, validatePolicyPeer(p, peersAt.Index(i))...)
	}
	return errs
}

func validatePolicyPort(p networkingv1.NetworkPolicyPort, at *field.Path) field.ErrorList {
	errs := validateProtocol(*p.Protocol, at.Child("protocol"))
	if p.Port != nil {
		errs = append(errs, validatePort(*p.Port, at.Child("port"))...)
	}
	if p.EndPort == nil {
		return errs
	}
	end := at.Child("endPort")
	switch {
	case p.Port == nil:
		return append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is not specified"))
	case p.Port.Type != 0:
		return append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is non-numeric"))
	case *p.EndPort < p.Port.IntVal:
		errs = append(errs, field.Invalid(end, *p.EndPort, "must be greater than or equal to `port`"))
	}
	return append(errs, validatePortNumber(*p.EndPort, end)...)
}

func validatePolicyPeer(p networkingv1.NetworkPolicyPeer, at *field.Path) (errs field.ErrorList) {
	if p.PodSelector != nil {
		errs = append(errs, validateSelector(p.PodSelector, at.Child("podSelector"))...)
	}
	if p.NamespaceSelector != nil {
		errs = append(errs, validateSelector(p.NamespaceSelector, at.Child("namespaceSelector"))...)
	}
	if p.IPBlock != nil {
		errs = append(errs, validateIPBlock(p.IPBlock, at.Child("ipBlock"))...)
	}
	switch {
	case p.PodSelector == nil && p.NamespaceSelector == nil && p.IPBlock == nil:
		errs = append(errs, field.Required(at, "must specify a peer"))
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		errs = append(errs, field.Forbidden(at, "may not specify both ipBlock and another peer"))
	}
	return errs
}

func validateIPBlock(b *networkingv1.IPBlock, at *field.Path) (errs field.ErrorList) {
	const cidr = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
	if b.CIDR == "" {
		return field.ErrorList{field.Required(at.Child("cidr"), "")}
	}
	outer, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return field.ErrorList{field.Invalid(at.Child("cidr"), b.CIDR, cidr)}
	}
	for i, e := range b.Except {
		at := at.Child("except").Index(i)
		inner, err := netip.ParsePrefix(e)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at, e, cidr))
		case !outer.Contains(inner.Addr()) || inner.Bits() <= outer.Bits():
			errs = append(errs, field.Invalid(at, e, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}

func validateIngress(o *networkingv1.Ingress) (errs field.ErrorList) {
	spec, s := field.NewPath("spec"), &o.Spec
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		errs = append(errs, field.Invalid(spec, s.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if s.DefaultBackend != nil {
		errs = append(errs, validateIngressBackend(s.DefaultBackend, spec.Child("defaultBackend"))...)
	}
	for i, r := range s.Rules {
		at := spec.Child("rules").Index(i)
		errs = append(errs, validateIngressHost(r.Host, at.Child("host"))...)
		if r.HTTP == nil {
			continue
		}
		if len(r.HTTP.Paths) == 0 {
			errs = append(errs, field.Required(at.Child("http", "paths"), ""))
		}
		for j, p := range r.HTTP.Paths {
			errs = append(errs, validateIngressPath(p, at.Child("http", "paths").Index(j))...)
		}
	}
	for i, t := range s.TLS {
		at := spec.Child("tls").Index(i)
		for j, h := range t.Hosts {
			errs = append(errs, validateDNSName(h, at.Child("hosts").Index(j))...)
		}
		if t.SecretName != "" {
			errs = append(errs, invalid(at.Child("secretName"), t.SecretName, validation.NameIsDNSSubdomain(t.SecretName, false))...)
		}
	}
	if c := s.IngressClassName; c != nil {
		errs = append(errs, invalid(spec.Child("ingressClassName"), *c, validation.NameIsDNSSubdomain(*c, false))...)
		if a := o.Annotations["kubernetes.io/ingress.class"]; a != "" {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations").Child("kubernetes.io/ingress.class"), a, "can not be set when the class field is also set"))
		}
	}
	return errs
}

func validateIngressHost(host string, at *field.Path) field.ErrorList {
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return field.ErrorList{field.Invalid(at, host, "must be a DNS name, not an IP address")}
	}
	return validateDNSName(host, at)
}

// validateDNSName allows for a wildcard in the first label.
func validateDNSName(name string, at *field.Path) field.ErrorList {
	if strings.Contains(name, "*") {
		return invalid(at, name, utilvalidation.IsWildcardDNS1123Subdomain(name))
	}
	return invalid(at, name, utilvalidation.IsDNS1123Subdomain(name))
}

func validateIngressPath(p networkingv1.HTTPIngressPath, at *field.Path) (errs field.ErrorList) {
	path := at.Child("path")
	switch {
	case p.PathType == nil:
		errs = append(errs, field.Required(at.Child("pathType"), "pathType must be specified"))
	case *p.PathType == networkingv1.PathTypeImplementationSpecific:
		if p.Path != "" && !strings.HasPrefix(p.Path, "/") {
			errs = append(errs, field.Invalid(path, p.Path, "must be an absolute path"))
		}
	case *p.PathType == networkingv1.PathTypeExact, *p.PathType == networkingv1.PathTypePrefix:
		if !strings.HasPrefix(p.Path, "/") {
			errs = append(errs, field.Invalid(path, p.Path, "must be an absolute path"))
		}
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, bad) {
				errs = append(errs, field.Invalid(path, p.Path, fmt.Sprintf("must not contain '%s'", bad)))
			}
		}
		for _, bad := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, bad) {
				errs = append(errs, field.Invalid(path, p.Path, fmt.Sprintf("cannot end with '%s'", bad)))
			}
		}
	default:
		errs = append(errs, oneOf(*p.PathType, at.Child("pathType"), networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix)...)
	}
	return append(errs, validateIngressBackend(&p.Backend, at.Child("backend"))...)
}

func validateIngressBackend(b *networkingv1.IngressBackend, at *field.Path) (errs field.ErrorList) {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(at, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		if b.Resource.Name == "" {
			errs = append(errs, field.Required(at.Child("resource", "name"), "name is required"))
		}
		if b.Resource.Kind == "" {
			errs = append(errs, field.Required(at.Child("resource", "kind"), "kind is required"))
		}
		return errs
	case b.Service == nil:
		return field.ErrorList{field.Required(at, "resource or service backend is required")}
	}
	service, port := at.Child("service"), b.Service.Port
	if b.Service.Name == "" {
		errs = append(errs, field.Required(service.Child("name"), ""))
	} else {
		errs = append(errs, invalid(service.Child("name"), b.Service.Name, validation.NameIsDNS1035Label(b.Service.Name, false))...)
	}
	switch {
	case port.Name != "" && port.Number != 0:
		errs = append(errs, field.Invalid(at, "", "cannot set both port name & port number"))
	case port.Name != "":
		errs = append(errs, invalid(service.Child("port", "name"), port.Name, utilvalidation.IsValidPortName(port.Name))...)
	case port.Number != 0:
		errs = append(errs, validatePortNumber(port.Number, service.Child("port", "number"))...)
	default:
		errs = append(errs, field.Required(at, "port name or number is required"))
	}
	return errs
}
