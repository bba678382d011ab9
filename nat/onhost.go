package nat

import (
	"net/netip"
	"slices"

	"podgate/stack/packet"
)

// HostEndpoints are the endpoints of Services that are pods with hostNetwork:
// the node's addresses with the ports that stand for processes of the host.
func (t *Table) HostEndpoints() (all []HostEndpoint) {
	for o := range t.onHost {
		for _, sp := range t.services.Get(o).Ports {
			for i := range sp.Endpoints {
				if e := &sp.Endpoints[i]; t.isOnHost(e) {
					all = append(all, HostEndpoint{e.AddrPort(), sp.Proto})
				}
			}
		}
	}
	return all
}

// HostEndpoint is one of them.
type HostEndpoint struct {
	Addr  netip.AddrPort
	Proto packet.Proto
}

func (t *Table) isOnHost(e *Endpoint) bool {
	pod := t.inputs.pods[e.Pod]
	return pod != nil && pod.Spec.HostNetwork && slices.Contains(t.nodes, e.Addr)
}

func (t *Table) anyOnHost(s *Service) bool {
	for _, sp := range s.Ports {
		for i := range sp.Endpoints {
			if t.isOnHost(&sp.Endpoints[i]) {
				return true
			}
		}
	}
	return false
}
