package stack

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"podgate/nat"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Snapshot is everything that a decision rests on, immutable from the moment
// that it is current. A batch of frames sees one snapshot, never a mix of two.
type Snapshot struct {
	Generation uint64

	gatewayMAC   packet.MAC
	gateway4     packet.Addr // zero when the gateway has no address of the family
	gateway6     packet.Addr
	podCIDRs     []netip.Prefix
	serviceCIDRs []netip.Prefix

	ports []*attachment               // by PortID; nil: none
	local *attachment                 // nil: nothing goes out
	owner map[packet.Addr]*attachment // who has an address; the gateway's own are absent while there is no local port
	own   map[packet.Addr]bool        // Config.LocalAddrs

	static []Route // Config.Routes
	routes []via   // with the ports of now

	services  *nat.Table
	policies  *policy.Table
	forbidden []netip.Prefix
	egressOff bool
	egress    uint64 // the generation that changed forbidden or egressOff
}

// attachment is a port as decisions see it: no device, no counters.
type attachment struct {
	PortSpec
	id    flow.PortID
	addrs []packet.Addr
}

// has says whether the port may use the source address a.
func (at *attachment) has(a packet.Addr) bool { return slices.Contains(at.addrs, a) }

// label names a port for people: its pod, or its interface.
func (spec *PortSpec) label() string {
	switch {
	case spec.Local:
		return "local"
	case spec.Pod.Name != "":
		return spec.Pod.String()
	default:
		return spec.Name
	}
}

func newSnapshot(cfg *Config) *Snapshot {
	s := &Snapshot{
		Generation:   1,
		gatewayMAC:   cfg.GatewayMAC,
		podCIDRs:     cfg.PodCIDRs,
		serviceCIDRs: cfg.ServiceCIDRs,
		ports:        make([]*attachment, 1),
		owner:        map[packet.Addr]*attachment{},
		own:          map[packet.Addr]bool{},
		static:       cfg.Routes,
	}
	s.resolveRoutes(s.static)
	for _, a := range cfg.GatewayAddrs {
		s.own[packet.AddrFrom(a)] = true
		if a.Is4() {
			s.gateway4 = packet.AddrFrom(a)
		} else {
			s.gateway6 = packet.AddrFrom(a)
		}
	}
	for _, a := range cfg.LocalAddrs {
		s.own[packet.AddrFrom(a)] = true
	}
	return s
}

// gateway is the node's address of a's family, zero when there is none.
func (s *Snapshot) gateway(a packet.Addr) packet.Addr {
	if a.Is4() {
		return s.gateway4
	}
	return s.gateway6
}

func (s *Snapshot) port(id flow.PortID) *attachment {
	if int(id) < len(s.ports) {
		return s.ports[id]
	}
	return nil
}

// succeed is the snapshot that follows s, to be changed before it is current.
func (s *Snapshot) succeed() *Snapshot {
	next := *s
	next.Generation++
	return &next
}

func (s *Snapshot) withInput(in Input) *Snapshot {
	next := s.succeed()
	next.services = in.Services
	next.policies = in.Policies
	if in.EgressOff != s.egressOff || !slices.Equal(in.Forbidden, s.forbidden) {
		next.forbidden = slices.Clone(in.Forbidden)
		next.egressOff = in.EgressOff
		next.egress = next.Generation
	}
	return next
}

func (s *Snapshot) withPort(at *attachment) *Snapshot {
	next := s.succeed()
	next.ports = slices.Clone(s.ports)
	for len(next.ports) <= int(at.id) {
		next.ports = append(next.ports, nil)
	}
	next.ports[at.id] = at
	next.resolveRoutes(next.static)
	next.owner = maps.Clone(s.owner)
	if at.Local {
		next.local = at
		for a := range s.own {
			next.owner[a] = at
		}
		return next
	}
	for _, a := range at.addrs {
		next.owner[a] = at
	}
	return next
}

func (s *Snapshot) withoutPort(at *attachment) *Snapshot {
	next := s.succeed()
	next.ports = slices.Clone(s.ports)
	next.ports[at.id] = nil
	next.resolveRoutes(next.static)
	next.owner = maps.Clone(s.owner)
	maps.DeleteFunc(next.owner, func(_ packet.Addr, o *attachment) bool { return o == at })
	if next.local == at {
		next.local = nil
	}
	return next
}

// broadcast says whether a is the last address of an IPv4 pod CIDR.
func (s *Snapshot) broadcast(a packet.Addr) bool {
	for _, p := range s.podCIDRs {
		if p.Addr().Is4() && a.Is4() && p.Contains(a.Netip()) {
			host := ^uint32(0) >> p.Bits()
			return binary.BigEndian.Uint32(a[12:])&host == host
		}
	}
	return false
}

// podAt names the pod that has an address; "local" for the gateway's own.
func (s *Snapshot) podAt(a packet.Addr) string {
	if at := s.owner[a]; at != nil {
		return at.label()
	}
	return ""
}

func contains(prefixes []netip.Prefix, a packet.Addr) bool {
	ip := a.Netip()
	for _, p := range prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
