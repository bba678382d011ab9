package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateService(o *corev1.Service) (errs field.ErrorList) {
	spec, s := field.NewPath("spec"), &o.Spec
	errs = append(errs, oneOf(s.Type, spec.Child("type"), corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	if len(s.Ports) == 0 && !isHeadless(o) && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(spec.Child("ports"), ""))
	}
	switch s.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if isHeadless(o) {
			errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(0), s.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", s.Type)))
		}
	case corev1.ServiceTypeExternalName:
		errs = append(errs, validateExternalName(s, spec)...)
	}
	errs = append(errs, validateServicePorts(s, spec.Child("ports"))...)
	errs = append(errs, metavalidation.ValidateLabels(s.Selector, spec.Child("selector"))...)
	errs = append(errs, oneOf(s.SessionAffinity, spec.Child("sessionAffinity"), corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	if c := s.SessionAffinityConfig; s.SessionAffinity == corev1.ServiceAffinityClientIP {
		const most = 86400
		if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > most {
			errs = append(errs, field.Invalid(spec.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), t, fmt.Sprintf("must be greater than 0 and less than %d", most)))
		}
	}
	errs = append(errs, validateClusterIPs(o, spec)...)
	for i, ip := range s.ExternalIPs {
		errs = append(errs, validateOrdinaryIP(ip, spec.Child("externalIPs").Index(i))...)
	}
	errs = append(errs, validateTrafficPolicies(s, spec)...)
	onlyLoadBalancers := "may only be used when `type` is 'LoadBalancer'"
	if s.Type != corev1.ServiceTypeLoadBalancer {
		if s.AllocateLoadBalancerNodePorts != nil {
			errs = append(errs, field.Forbidden(spec.Child("allocateLoadBalancerNodePorts"), onlyLoadBalancers))
		}
		if s.LoadBalancerClass != nil {
			errs = append(errs, field.Forbidden(spec.Child("loadBalancerClass"), onlyLoadBalancers))
		}
	} else if c := s.LoadBalancerClass; c != nil {
		errs = append(errs, invalid(spec.Child("loadBalancerClass"), *c, utilvalidation.IsQualifiedName(*c))...)
	}
	ranges, at := SourceRanges(o)
	if len(ranges) > 0 && s.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(at, onlyLoadBalancers))
	}
	for i, r := range ranges {
		if len(s.LoadBalancerSourceRanges) > 0 {
			errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(at.Index(i), r, true, nil)...)
		} else {
			errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(at, r, true, nil)...)
		}
	}
	return errs
}

// SourceRanges are whom a load balancer lets in, and the field that says so:
// spec.loadBalancerSourceRanges or, where that is empty, the annotation from before
// there was the field. Both may have spaces around ranges.
func SourceRanges(svc *corev1.Service) ([]string, *field.Path) {
	at := field.NewPath("spec", "loadBalancerSourceRanges")
	ranges := slices.Clone(svc.Spec.LoadBalancerSourceRanges)
	if len(ranges) == 0 {
		at = field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
		if text := strings.TrimSpace(svc.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]); text != "" {
			ranges = strings.Split(text, ",")
		}
	}
	for i := range ranges {
		ranges[i] = strings.TrimSpace(ranges[i])
	}
	return ranges, at
}

func validateExternalName(s *corev1.ServiceSpec, spec *field.Path) (errs field.ErrorList) {
	why := "may not be set for ExternalName services"
	if len(s.ClusterIPs) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("clusterIPs"), why))
	}
	if len(s.IPFamilies) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("ipFamilies"), why))
	}
	if s.IPFamilyPolicy != nil {
		errs = append(errs, field.Forbidden(spec.Child("ipFamilyPolicy"), why))
	}
	name := s.ExternalName
	if n := len(name); n > 0 && name[n-1] == '.' {
		name = name[:n-1]
	}
	if name == "" {
		return append(errs, field.Required(spec.Child("externalName"), ""))
	}
	return append(errs, invalid(spec.Child("externalName"), name, utilvalidation.IsDNS1123Subdomain(name))...)
}

func validateServicePorts(s *corev1.ServiceSpec, path *field.Path) (errs field.ErrorList) {
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	names, ports, nodePorts := map[string]bool{}, map[number]bool{}, map[number]bool{}
	for i, p := range s.Ports {
		at := path.Index(i)
		switch {
		case p.Name == "" && len(s.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), ""))
		case p.Name != "":
			errs = append(errs, invalid(at.Child("name"), p.Name, utilvalidation.IsDNS1123Label(p.Name))...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		errs = append(errs, validatePortNumber(p.Port, at.Child("port"))...)
		errs = append(errs, validateProtocol(p.Protocol, at.Child("protocol"))...)
		if !(p.TargetPort.Type == 0 && p.TargetPort.IntVal == p.Port) { // a copy by default is not said to be wrong again
			errs = append(errs, validatePort(p.TargetPort, at.Child("targetPort"))...)
		}
		if ports[number{p.Protocol, p.Port}] {
			errs = append(errs, field.Duplicate(at, fmt.Sprintf("%s port %d", p.Protocol, p.Port)))
		}
		ports[number{p.Protocol, p.Port}] = true
		errs = append(errs, validateAppProtocol(p.AppProtocol, at)...)
		if p.NodePort == 0 {
			continue
		}
		if s.Type == corev1.ServiceTypeClusterIP {
			errs = append(errs, field.Forbidden(at.Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
		}
		errs = append(errs, validatePortNumber(p.NodePort, at.Child("nodePort"))...)
		if nodePorts[number{p.Protocol, p.NodePort}] {
			errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
		}
		nodePorts[number{p.Protocol, p.NodePort}] = true
	}
	return errs
}

func validateClusterIPs(o *corev1.Service, spec *field.Path) (errs field.ErrorList) {
	s, at := &o.Spec, spec.Child("clusterIPs")
	if s.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	for i, f := range s.IPFamilies {
		errs = append(errs, oneOf(f, spec.Child("ipFamilies").Index(i), corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		if slices.Contains(s.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(spec.Child("ipFamilies").Index(i), f))
		}
	}
	if p := s.IPFamilyPolicy; p != nil {
		errs = append(errs, oneOf(*p, spec.Child("ipFamilyPolicy"), corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)...)
	}
	if len(s.ClusterIPs) > 0 && s.ClusterIP != s.ClusterIPs[0] {
		errs = append(errs, field.Invalid(at, s.ClusterIPs, "first value must match `clusterIP`"))
	}
	if len(s.ClusterIPs) > 2 {
		errs = append(errs, field.Invalid(at, s.ClusterIPs, "may only hold up to 2 values"))
	}
	var addrs []netip.Addr
	for i, ip := range s.ClusterIPs {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(s.ClusterIPs) > 1 {
				errs = append(errs, field.Invalid(at, s.ClusterIPs, "'None' must be the first and only value"))
			}
			continue
		}
		a, bad := validateIP(ip, at.Index(i))
		errs = append(errs, bad...)
		addrs = append(addrs, a)
		if len(bad) == 0 && i < len(s.IPFamilies) && familyOf(a) != s.IPFamilies[i] {
			errs = append(errs, field.Invalid(at.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", s.IPFamilies[i], i)))
		}
	}
	if len(errs) == 0 && len(addrs) == 2 && addrs[0].Is4() == addrs[1].Is4() {
		errs = append(errs, field.Invalid(at, s.ClusterIPs, "may specify no more than one IP for each IP family"))
	}
	return errs
}

func validateTrafficPolicies(s *corev1.ServiceSpec, spec *field.Path) (errs field.ErrorList) {
	at := spec.Child("externalTrafficPolicy")
	external := s.Type == corev1.ServiceTypeLoadBalancer || s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
	switch {
	case external:
		errs = append(errs, oneOf(s.ExternalTrafficPolicy, at, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	case s.ExternalTrafficPolicy != "":
		errs = append(errs, field.Invalid(at, s.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	}
	if p := s.HealthCheckNodePort; p != 0 {
		at := spec.Child("healthCheckNodePort")
		if s.Type != corev1.ServiceTypeLoadBalancer || s.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			errs = append(errs, field.Invalid(at, p, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
		errs = append(errs, validatePortNumber(p, at)...)
	}
	if p := s.InternalTrafficPolicy; p != nil {
		errs = append(errs, oneOf(*p, spec.Child("internalTrafficPolicy"), corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if d := s.TrafficDistribution; d != nil {
		errs = append(errs, oneOf(*d, spec.Child("trafficDistribution"), corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameNode, corev1.ServiceTrafficDistributionPreferSameZone)...)
	}
	return errs
}

// validateServiceUpdate: a Service keeps the addresses that it has, and gives the
// second one up only if it is said to be of a single stack; a load balancer keeps
// its class and where its health is asked for.
func validateServiceUpdate(o, old *corev1.Service) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if a, b := o.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass; o.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == o.Spec.Type &&
		!(a == nil && b == nil || a != nil && b != nil && *a == *b) {
		errs = append(errs, field.Invalid(spec.Child("loadBalancerClass"), a, "may not change once set"))
	}
	if p := o.Spec.HealthCheckNodePort; needsHealthCheckPort(o) && needsHealthCheckPort(old) && p != 0 && p != old.Spec.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(spec.Child("healthCheckNodePort"), "field is immutable"))
	}
	if old.Spec.Type == corev1.ServiceTypeExternalName || o.Spec.Type == corev1.ServiceTypeExternalName {
		return errs
	}
	policy := o.Spec.IPFamilyPolicy
	if policy == nil {
		policy = old.Spec.IPFamilyPolicy
	}
	if n := len(o.Spec.IPFamilies); n > 0 && n < len(old.Spec.IPFamilies) && policy != nil && *policy != corev1.IPFamilyPolicySingleStack {
		errs = append(errs, field.Invalid(spec.Child("ipFamilyPolicy"), *policy, "must be 'SingleStack' to release the secondary IP family"))
	}
	had, wants := old.Spec.ClusterIPs, o.Spec.ClusterIPs
	for i := range min(len(had), len(wants)) {
		if had[i] != wants[i] {
			errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(i), wants, "may not change once set"))
		}
	}
	if isHeadless(o) || isHeadless(old) {
		return errs
	}
	if had, wants := old.Spec.IPFamilies, o.Spec.IPFamilies; len(had) > 0 && len(wants) > 0 && had[0] != wants[0] {
		errs = append(errs, field.Invalid(spec.Child("ipFamilies").Index(0), wants[0], "may not change once set"))
	}
	return errs
}

func validateEndpointSlice(o *discoveryv1.EndpointSlice) field.ErrorList {
	errs := oneOf(o.AddressType, field.NewPath("addressType"), discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	endpoints, ports := field.NewPath("endpoints"), field.NewPath("ports")
	if len(o.Endpoints) > 1000 {
		errs = append(errs, field.TooMany(endpoints, len(o.Endpoints), 1000))
	}
	for i, e := range o.Endpoints {
		at := endpoints.Index(i)
		switch n := len(e.Addresses); {
		case n == 0:
			errs = append(errs, field.Required(at.Child("addresses"), "must contain at least 1 address"))
		case n > 100:
			errs = append(errs, field.TooMany(at.Child("addresses"), n, 100))
		}
		for j, a := range e.Addresses {
			at := at.Child("addresses").Index(j)
			if slices.Contains(e.Addresses[:j], a) {
				errs = append(errs, field.Duplicate(at, a))
			}
			errs = append(errs, validateEndpointAddress(o.AddressType, a, at)...)
		}
		if h := e.Hostname; h != nil && *h != "" {
			errs = append(errs, invalid(at.Child("hostname"), *h, utilvalidation.IsDNS1123Label(*h))...)
		}
		errs = append(errs, validateNodeName(e.NodeName, at)...)
		if h := e.Hints; h != nil {
			errs = append(errs, validateHints(h.ForZones, func(z discoveryv1.ForZone) string { return z.Name }, at.Child("hints", "forZones"))...)
			errs = append(errs, validateHints(h.ForNodes, func(n discoveryv1.ForNode) string { return n.Name }, at.Child("hints", "forNodes"))...)
		}
	}
	names := map[string]bool{}
	for i, p := range o.Ports {
		at := ports.Index(i)
		if *p.Name != "" {
			errs = append(errs, invalid(at.Child("name"), *p.Name, utilvalidation.IsDNS1123Label(*p.Name))...)
		}
		if names[*p.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), *p.Name))
		}
		names[*p.Name] = true
		errs = append(errs, validateProtocol(*p.Protocol, at.Child("protocol"))...)
		errs = append(errs, validateAppProtocol(p.AppProtocol, at)...)
		if p.Port != nil {
			errs = append(errs, validatePortNumber(*p.Port, at.Child("port"))...)
		}
	}
	return errs
}

func validateAppProtocol(p *string, port *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	return invalid(port.Child("appProtocol"), *p, utilvalidation.IsQualifiedName(*p))
}

func validateNodeName(name *string, endpoint *field.Path) field.ErrorList {
	if name == nil {
		return nil
	}
	return invalid(endpoint.Child("nodeName"), *name, utilvalidation.IsDNS1123Subdomain(*name))
}

// validateHints: an endpoint is meant for at most 8 zones or nodes, each once.
func validateHints[T any](hints []T, name func(T) string, at *field.Path) (errs field.ErrorList) {
	if len(hints) > 8 {
		return field.ErrorList{field.TooMany(at, len(hints), 8)}
	}
	for i, h := range hints {
		if slices.ContainsFunc(hints[:i], func(o T) bool { return name(o) == name(h) }) {
			errs = append(errs, field.Duplicate(at.Index(i).Child("name"), name(h)))
		}
	}
	return errs
}

func validateEndpointAddress(t discoveryv1.AddressType, s string, at *field.Path) field.ErrorList {
	if t == discoveryv1.AddressTypeFQDN {
		return utilvalidation.IsFullyQualifiedDomainName(at, s)
	}
	a, errs := validateIP(s, at)
	switch {
	case len(errs) > 0:
		return errs
	case t == discoveryv1.AddressTypeIPv4 && !a.Is4():
		return field.ErrorList{field.Invalid(at, s, "must be an IPv4 address")}
	case t == discoveryv1.AddressTypeIPv6 && (a.Is4() || a.Is4In6()):
		return field.ErrorList{field.Invalid(at, s, "must be an IPv6 address")}
	}
	if errs = utilvalidation.IsValidIP(at, s); len(errs) > 0 {
		return errs
	}
	return validateOrdinaryIP(s, at)
}
