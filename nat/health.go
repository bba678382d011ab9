package nat

import (
	"net/netip"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

// HealthCheck is a healthCheckNodePort: load balancers ask it whether this node
// has endpoints of the Service. Each family of a Service has its own, as its
// addresses are probed apart.
type HealthCheck struct {
	Service kube.Name
	Is4     bool
	Port    uint16
	Hosts   []netip.Addr // where the host listens
	Nodes   []netip.Addr // the node's addresses
	Local   int          // ready endpoints on this node, by address
}

// HealthChecks are those of Services of type LoadBalancer with
// externalTrafficPolicy Local, sorted by Service, IPv4 first.
func (t *Table) HealthChecks() []HealthCheck {
	all := make([]HealthCheck, 0, len(t.checked))
	for o := range t.checked {
		s := t.services.Get(o)
		for _, is4 := range []bool{true, false} {
			if !slices.ContainsFunc(s.Ports, func(sp *ServicePort) bool { return sp.ClusterIP.Is4() == is4 }) {
				continue
			}
			h := HealthCheck{Service: o.Name, Is4: is4, Port: s.healthPort, Hosts: t.hostIPs(is4), Local: s.localReady(is4)}
			if node, ok := t.node(is4); ok {
				h.Nodes = append(h.Nodes, node)
			}
			all = append(all, h)
		}
	}
	slices.SortStableFunc(all, func(a, b HealthCheck) int { return owner{Name: a.Service}.compare(owner{Name: b.Service}) })
	return all
}

// localReady counts what kube-proxy counts: addresses of ready endpoints of a
// family on this node, over all ports.
func (s *Service) localReady(is4 bool) int {
	seen := map[packet.Addr]bool{}
	for _, sp := range s.Ports {
		for i := range sp.Endpoints {
			if e := &sp.Endpoints[i]; e.Ready && e.Local && e.Addr.Is4() == is4 {
				seen[e.Addr] = true
			}
		}
	}
	return len(seen)
}
