package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// allocator is what a control plane hands out to Services.
type allocator struct {
	families  []corev1.IPFamily // the cluster's, its default first
	addresses map[corev1.IPFamily]*serviceAddresses
	ports     *nodePorts
	balancers *balancerAddresses
}

func newAllocator(cfg Config) *allocator {
	a := &allocator{
		addresses: map[corev1.IPFamily]*serviceAddresses{},
		ports:     &nodePorts{cfg.NodePortMin, cfg.NodePortMax, map[uint16]Name{}},
		balancers: &balancerAddresses{cfg.LoadBalancerCIDRs, map[netip.Addr]Name{}},
	}
	for _, p := range cfg.ServiceCIDRs {
		f := familyOf(p.Addr())
		a.families = append(a.families, f)
		a.addresses[f] = &serviceAddresses{p, map[netip.Addr]Name{}}
	}
	return a
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func nameOf(o interface {
	GetNamespace() string
	GetName() string
}) Name {
	return Name{o.GetNamespace(), o.GetName()}
}

// release gives back all that a Service has.
func (a *allocator) release(svc *corev1.Service) {
	a.eachAddress(svc, func(s *serviceAddresses, addr netip.Addr, _ *field.Path) error {
		s.release(addr, nameOf(svc))
		return nil
	})
	for _, p := range svc.Spec.Ports {
		a.ports.release(uint16(p.NodePort), nameOf(svc))
	}
	a.ports.release(uint16(svc.Spec.HealthCheckNodePort), nameOf(svc))
	a.balancers.release(svc)
}

// allocate gives a Service what its spec asks for and fills in the rest, as the
// API server's storage does. A refused Service has got nothing.
func (a *allocator) allocate(svc *corev1.Service) field.ErrorList {
	errs := a.fillFamilies(svc)
	if len(errs) == 0 {
		errs = append(errs, a.allocateAddresses(svc)...)
	}
	if len(errs) == 0 {
		errs = append(errs, a.allocatePorts(svc)...)
	}
	if len(errs) > 0 {
		a.release(svc)
	}
	return errs
}

func isHeadless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// fillFamilies decides ipFamilies.
func (a *allocator) fillFamilies(svc *corev1.Service) (errs field.ErrorList) {
	spec, path := &svc.Spec, field.NewPath("spec")
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	policy := corev1.IPFamilyPolicySingleStack
	switch {
	case spec.IPFamilyPolicy != nil:
		policy = *spec.IPFamilyPolicy
	case isHeadless(svc) && len(spec.Selector) == 0:
		policy = corev1.IPFamilyPolicyRequireDualStack
		if len(a.families) < 2 {
			policy = corev1.IPFamilyPolicySingleStack
		}
	}
	if policy == corev1.IPFamilyPolicySingleStack {
		why := "must be 'RequireDualStack' or 'PreferDualStack' when multiple %s are specified"
		if len(spec.ClusterIPs) == 2 {
			errs = append(errs, field.Invalid(path.Child("ipFamilyPolicy"), policy, fmt.Sprintf(why, "cluster IPs")))
		}
		if len(spec.IPFamilies) == 2 {
			errs = append(errs, field.Invalid(path.Child("ipFamilyPolicy"), policy, fmt.Sprintf(why, "IP families")))
		}
	}
	for i, s := range spec.ClusterIPs {
		addr, err := netip.ParseAddr(s)
		if err != nil || i < len(spec.IPFamilies) {
			continue // None, or checked by validation
		}
		f := familyOf(addr)
		if a.addresses[f] == nil {
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(i), spec.ClusterIPs, string(f)+" is not configured on this cluster"))
			continue
		}
		spec.IPFamilies = append(spec.IPFamilies, f)
	}
	if len(errs) > 0 {
		return errs
	}
	spec.IPFamilyPolicy = &policy
	selectorless := isHeadless(svc) && len(spec.Selector) == 0
	if policy == corev1.IPFamilyPolicyRequireDualStack && len(a.families) < 2 && !selectorless {
		errs = append(errs, field.Invalid(path.Child("ipFamilyPolicy"), policy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range spec.IPFamilies {
		if a.addresses[f] == nil && !selectorless {
			errs = append(errs, field.Invalid(path.Child("ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{a.families[0]}
	}
	if policy != corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) == 1 {
		for _, f := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			if f != spec.IPFamilies[0] && (a.addresses[f] != nil || selectorless) {
				spec.IPFamilies = append(slices.Clip(spec.IPFamilies), f)
			}
		}
	}
	return nil
}

func (a *allocator) allocateAddresses(svc *corev1.Service) (errs field.ErrorList) {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName || isHeadless(svc) {
		return nil
	}
	a.eachAddress(svc, func(s *serviceAddresses, addr netip.Addr, at *field.Path) error {
		if err := s.reserve(addr, nameOf(svc)); err != nil {
			errs = append(errs, field.Invalid(at, spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %v", addr, err)))
		}
		return nil
	})
	for i := len(spec.ClusterIPs); i < len(spec.IPFamilies) && len(errs) == 0; i++ {
		addr, err := a.addresses[spec.IPFamilies[i]].take(nameOf(svc))
		if err != nil {
			errs = append(errs, field.InternalError(field.NewPath("spec", "clusterIPs"), fmt.Errorf("failed to allocate a serviceIP: %w", err)))
			break
		}
		spec.ClusterIPs = append(slices.Clip(spec.ClusterIPs), addr.String())
	}
	if len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	return errs
}

func (a *allocator) eachAddress(svc *corev1.Service, f func(*serviceAddresses, netip.Addr, *field.Path) error) {
	for _, s := range svc.Spec.ClusterIPs {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			continue // None
		}
		if pool := a.addresses[familyOf(addr)]; pool != nil {
			_ = f(pool, addr, field.NewPath("spec", "clusterIPs"))
		}
	}
}

// wantsNodePorts says whether a Service is given node ports that it did not name.
func wantsNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}

// allocatePorts lets two protocols on one port share its node port.
func (a *allocator) allocatePorts(svc *corev1.Service) (errs field.ErrorList) {
	spec, name := &svc.Spec, nameOf(svc)
	byPort := map[int32]int32{}
	for i, p := range spec.Ports {
		if p.NodePort == 0 {
			continue
		}
		if err := a.ports.reserve(uint16(p.NodePort), name); err != nil {
			errs = append(errs, field.Invalid(field.NewPath("spec", "ports").Index(i).Child("nodePort"), p.NodePort, err.Error()))
		}
		byPort[p.Port] = p.NodePort
	}
	if wantsNodePorts(svc) && len(errs) == 0 {
		given := map[[2]any]bool{}
		for _, p := range spec.Ports {
			given[[2]any{p.NodePort, p.Protocol}] = true
		}
		for i := range spec.Ports {
			p := &spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			shared := byPort[p.Port]
			if shared == 0 || given[[2]any{shared, p.Protocol}] {
				port, err := a.ports.take(name, fmt.Sprint(p.Port, p.Name))
				if err != nil {
					return append(errs, field.InternalError(field.NewPath("spec", "ports").Index(i).Child("nodePort"), fmt.Errorf("failed to allocate a nodePort: %w", err)))
				}
				shared = int32(port)
			}
			p.NodePort, byPort[p.Port] = shared, shared
			given[[2]any{shared, p.Protocol}] = true
		}
	}
	if !needsHealthCheckPort(svc) {
		return errs
	}
	at := field.NewPath("spec", "healthCheckNodePort")
	if p := spec.HealthCheckNodePort; p != 0 {
		err := a.ports.reserve(uint16(p), name)
		if hasNodePort(svc, p) {
			err = errPortAllocated
		}
		if err != nil {
			errs = append(errs, field.Invalid(at, p, "failed to allocate requested HealthCheck NodePort: "+err.Error()))
		}
	} else if port, err := a.ports.take(name, "healthCheckNodePort"); err != nil {
		errs = append(errs, field.InternalError(at, err))
	} else {
		spec.HealthCheckNodePort = int32(port)
	}
	return errs
}

func needsHealthCheckPort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// carryOver copies what was allocated for a Service into its new version, where
// that leaves it open: what is applied again without numbers keeps those that it
// has. asked is what the old version was given by its author.
func carryOver(svc, old, asked *corev1.Service) {
	carryAddresses(svc, old)
	if hasNodePorts(svc) && hasNodePorts(old) {
		carryNodePorts(svc, old, asked)
	}
	if needsHealthCheckPort(svc) && needsHealthCheckPort(old) {
		defaulted(&svc.Spec.HealthCheckNodePort, old.Spec.HealthCheckNodePort)
	}
}

func carryAddresses(svc, old *corev1.Service) {
	if old.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	spec, was := &svc.Spec, &old.Spec
	if spec.ClusterIP == "" || spec.ClusterIP == was.ClusterIP && len(spec.ClusterIPs) == 1 {
		spec.ClusterIP, spec.ClusterIPs = was.ClusterIP, slices.Clone(was.ClusterIPs)
	}
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = was.IPFamilyPolicy
	}
	if p := spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicySingleStack { // the second is to go
		if slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
			spec.ClusterIPs = spec.ClusterIPs[:min(1, len(spec.ClusterIPs))]
		}
		if slices.Equal(spec.IPFamilies, was.IPFamilies) {
			spec.IPFamilies = spec.IPFamilies[:min(1, len(spec.IPFamilies))]
		}
	}
	if len(spec.IPFamilies) == 0 && !isHeadless(svc) {
		spec.IPFamilies = slices.Clone(was.IPFamilies[:min(len(spec.ClusterIPs), len(was.IPFamilies))])
	}
}

// carryNodePorts: a port without a number keeps the one that it had, under its name
// or, if that changed, its port. Where none is to be allocated, a number that
// somebody had asked for, and does not any more, goes.
func carryNodePorts(svc, old, asked *corev1.Service) {
	for _, same := range []func(a, b *corev1.ServicePort) bool{
		func(a, b *corev1.ServicePort) bool { return a.Name == b.Name },
		func(a, b *corev1.ServicePort) bool { return a.Port == b.Port && a.Protocol == b.Protocol },
	} {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			for j := range old.Spec.Ports {
				o := &old.Spec.Ports[j]
				if p.NodePort == 0 && same(p, o) && !hasNodePort(svc, o.NodePort) && (wantsNodePorts(svc) || !hasNodePort(asked, o.NodePort)) {
					p.NodePort = o.NodePort
				}
			}
		}
	}
}

func hasNodePort(svc *corev1.Service, number int32) bool {
	return slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == number })
}

func hasNodePorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// forgetUnneeded takes out of a Service what its new type has no use for and what
// is still as the old one had it: who changes the type need not know of everything
// that goes with it. What is not as it was is for validation to refuse.
func forgetUnneeded(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	if spec.Type == corev1.ServiceTypeExternalName && was.Type != corev1.ServiceTypeExternalName {
		if spec.ClusterIP == was.ClusterIP && (len(spec.ClusterIPs) == 1 || slices.Equal(spec.ClusterIPs, was.ClusterIPs)) {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		if slices.Equal(spec.IPFamilies, was.IPFamilies) {
			spec.IPFamilies = nil
		}
		forgetSame(&spec.IPFamilyPolicy, was.IPFamilyPolicy)
	}
	if hasNodePorts(old) && !hasNodePorts(svc) && !slices.ContainsFunc(spec.Ports, func(p corev1.ServicePort) bool {
		return p.NodePort != 0 && !hasNodePort(old, p.NodePort)
	}) {
		for i := range spec.Ports {
			spec.Ports[i].NodePort = 0
		}
	}
	if needsHealthCheckPort(old) && !needsHealthCheckPort(svc) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && spec.Type != corev1.ServiceTypeLoadBalancer {
		forgetSame(&spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts)
		forgetSame(&spec.LoadBalancerClass, was.LoadBalancerClass)
	}
	if isExternal(old) && !isExternal(svc) && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
}

func forgetSame[T comparable](now **T, was *T) {
	if *now != nil && was != nil && **now == *was {
		*now = nil
	}
}

// isExternal says whether a Service can be reached from outside.
func isExternal(svc *corev1.Service) bool {
	return hasNodePorts(svc) || svc.Spec.Type == corev1.ServiceTypeClusterIP && len(svc.Spec.ExternalIPs) > 0
}
