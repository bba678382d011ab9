package kube

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// balancerAddresses gives Services of type LoadBalancer an address of their own
// in each of their families. Like ClusterIPs the addresses follow from the
// Service's name, so that they are the same after a restart; spec.loadBalancerIP
// asks for a certain one.
type balancerAddresses struct {
	cidrs []netip.Prefix
	used  map[netip.Addr]Name
}

// take returns the address for a Service in one family, or none: the ranges are
// full, or what the Service asks for is not theirs to give.
func (b *balancerAddresses) take(svc *corev1.Service, f corev1.IPFamily, had []netip.Addr) (netip.Addr, bool) {
	name := nameOf(svc)
	if want, err := netip.ParseAddr(svc.Spec.LoadBalancerIP); err == nil && familyOf(want) == f {
		return want, b.reserve(want, name)
	}
	for _, a := range had {
		if familyOf(a) == f && b.reserve(a, name) {
			return a, true
		}
	}
	for _, p := range b.cidrs {
		if familyOf(p.Addr()) != f {
			continue
		}
		size := uint64(1) << min(p.Addr().BitLen()-p.Bits(), 32)
		h := hash(name.Namespace, name.Name, "loadBalancer")
		for i := range size {
			if a := nth(p, (h+i)%size); b.reserve(a, name) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

func (b *balancerAddresses) reserve(a netip.Addr, by Name) bool {
	if owner, ok := b.used[a]; ok && owner != by {
		return false
	}
	if !slices.ContainsFunc(b.cidrs, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return false
	}
	b.used[a] = by
	return true
}

// release gives back what a Service's status names.
func (b *balancerAddresses) release(svc *corev1.Service) {
	for _, a := range balancerStatus(svc) {
		if b.used[a] == nameOf(svc) {
			delete(b.used, a)
		}
	}
}

func balancerStatus(svc *corev1.Service) (all []netip.Addr) {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(in.IP); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// balance makes the status of a Service of type LoadBalancer. An address of
// mode VIP is one that the cluster answers for; one of mode Proxy is where the
// host listens, as at every loopback address: what arrives has been through a
// listener.
func (s *Store) balance(svc, old *corev1.Service) (st corev1.ServiceStatus) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return st
	}
	add := func(a netip.Addr, mode corev1.LoadBalancerIPMode) {
		st.LoadBalancer.Ingress = append(st.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	if len(s.cfg.LoadBalancerCIDRs) == 0 {
		for _, a := range s.cfg.PublishedIPs {
			add(a, corev1.LoadBalancerIPModeProxy)
		}
		return st
	}
	var had []netip.Addr
	if old != nil {
		had = balancerStatus(old)
	}
	for _, f := range svc.Spec.IPFamilies {
		a, ok := s.alloc.balancers.take(svc, f, had)
		switch {
		case !ok:
		case a.IsLoopback():
			add(a, corev1.LoadBalancerIPModeProxy)
		default:
			add(a, corev1.LoadBalancerIPModeVIP)
		}
	}
	return st
}
