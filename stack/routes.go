package stack

import (
	"net/netip"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

// Route leads to a network behind a pod: a VPN, a lab, another cluster. The pod
// forwards; the network's hosts may talk to pods as pods may talk to them. For
// policies they are addresses outside the cluster.
type Route struct {
	Prefix netip.Prefix
	Pod    kube.Name  // by its own interface; or
	Via    netip.Addr // by the interface of a pod that has this address
}

// via is a Route with its pod's port, nil while the pod is not attached.
type via struct {
	Route
	out *attachment
}

// resolveRoutes makes these the routes, with the ports of now, the longest prefix
// first.
func (s *Snapshot) resolveRoutes(routes []Route) {
	s.static, s.routes = routes, nil
	for _, r := range routes {
		v := via{Route: r}
		if r.Via.IsValid() {
			v.out = s.owner[packet.AddrFrom(r.Via)]
		} else {
			v.out = s.pod(r.Pod)
		}
		s.routes = append(s.routes, v)
	}
	slices.SortStableFunc(s.routes, func(a, b via) int { return b.Prefix.Bits() - a.Prefix.Bits() })
}

// via is the port behind which a network with the address a is, nil if its pod is
// not attached; known is false if no route leads there.
func (s *Snapshot) via(a packet.Addr) (out *attachment, known bool) {
	if len(s.routes) == 0 {
		return nil, false
	}
	ip := a.Netip()
	for _, v := range s.routes {
		if v.Prefix.Contains(ip) {
			return v.out, true
		}
	}
	return nil, false
}

// beyond says whether a is not an address of the port out, but of a host that out
// leads to.
func (s *Snapshot) beyond(a packet.Addr, out *attachment) bool {
	return len(s.routes) > 0 && !out.Local && s.owner[a] != out
}

// mayUse says whether a pod may send from the address a: one of its own, or of
// a network behind it. What a router forwards comes from anywhere.
func (s *Snapshot) mayUse(at *attachment, a packet.Addr) bool {
	if at.has(a) {
		return true
	}
	if at.Router && s.owner[a] == nil && !s.isOwn(a) && !s.isPods(a) && !forbidden(a) {
		return true
	}
	out, known := s.via(a)
	return known && out == at && s.owner[a] == nil && !s.isPods(a) && !s.isOwn(a)
}
