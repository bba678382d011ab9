package nat

import (
	"net/netip"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

// HealthCheck is a healthCheckNodePort: load balancers ask it whether this node
// has endpoints of the Service.
type HealthCheck struct {
	Service kube.Name
	Port    uint16
	Hosts   []netip.Addr // where the host listens, of the Service's families
	Nodes   []netip.Addr // the node's addresses of these families
	Local   int          // ready endpoints on this node, by address
}

// HealthChecks are those of Services of type LoadBalancer with
// externalTrafficPolicy Local, sorted by Service.
func (t *Table) HealthChecks() []HealthCheck {
	all := make([]HealthCheck, 0, len(t.checked))
	for o := range t.checked {
		s := t.services.get(o)
		h := HealthCheck{Service: o.Name, Port: s.healthPort, Local: s.localReady()}
		for _, is4 := range []bool{true, false} {
			if !slices.ContainsFunc(s.Ports, func(sp *ServicePort) bool { return sp.ClusterIP.Is4() == is4 }) {
				continue
			}
			h.Hosts = append(h.Hosts, t.hostIPs(is4)...)
			if node, ok := t.node(is4); ok {
				h.Nodes = append(h.Nodes, node)
			}
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b HealthCheck) int { return owner{Name: a.Service}.compare(owner{Name: b.Service}) })
	return all
}

// localReady counts what kube-proxy counts: addresses of ready endpoints on
// this node, over all ports.
func (s *Service) localReady() int {
	seen := map[packet.Addr]bool{}
	for _, sp := range s.Ports {
		for i := range sp.Endpoints {
			if e := &sp.Endpoints[i]; e.Ready && e.Local {
				seen[e.Addr] = true
			}
		}
	}
	return len(seen)
}
