package stack

import (
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
	serviceCIDRs []netip.Prefix

	segments    []*segment               // the cluster's own first
	gateways    map[packet.Addr]*segment // the gateway's addresses in the others
	lastSegment uint16                   // number

	ports []*attachment               // by PortID; nil: none
	local *attachment                 // nil: nothing goes out
	owner map[packet.Addr]*attachment // who has an address; the gateway's own are absent while there is no local port
	own   map[packet.Addr]bool        // Config.LocalAddrs

	awaited map[packet.Addr]bool // Input.Awaited

	static []Route // Input.Routes
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
	id      flow.PortID
	segment uint16
	addrs   []packet.Addr
}

// has says whether the port may use the source address a.
func (at *attachment) has(a packet.Addr) bool { return slices.Contains(at.addrs, a) }

// addrOf is the port's address of a's family, zero when it has none.
func (at *attachment) addrOf(a packet.Addr) packet.Addr {
	for _, own := range at.addrs {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return packet.Addr{}
}

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

// title is the label with the name of a further interface: "default/web:net1".
func (spec *PortSpec) title() string {
	if spec.Secondary {
		return spec.label() + ":" + spec.Name
	}
	return spec.label()
}

func newSnapshot(cfg *Config) *Snapshot {
	s := &Snapshot{
		Generation:   1,
		gatewayMAC:   cfg.GatewayMAC,
		serviceCIDRs: cfg.ServiceCIDRs,
		segments:     []*segment{newSegment(0, Segment{Prefixes: cfg.PodCIDRs, Gateways: cfg.GatewayAddrs})},
		ports:        make([]*attachment, 1),
		owner:        map[packet.Addr]*attachment{},
		own:          map[packet.Addr]bool{},
	}
	for _, a := range slices.Concat(cfg.GatewayAddrs, cfg.LocalAddrs) {
		s.own[packet.AddrFrom(a)] = true
	}
	return s
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
	next.awaited = map[packet.Addr]bool{}
	for _, a := range in.Awaited {
		next.awaited[packet.AddrFrom(a)] = true
	}
	next.setSegments(in.Segments)
	next.resolveRoutes(in.Routes)
	if in.EgressOff != s.egressOff || !slices.Equal(in.Forbidden, s.forbidden) {
		next.forbidden = slices.Clone(in.Forbidden)
		next.egressOff = in.EgressOff
		next.egress = next.Generation
	}
	return next
}

// denies says whether next, which follows s, may deny what s let pass: not if
// nothing but Services changed.
func (s *Snapshot) denies(next *Snapshot) bool {
	return !next.policies.Same(s.policies) || !slices.Equal(next.segments, s.segments) ||
		!slices.Equal(next.routes, s.routes) || next.egress != s.egress
}

func (s *Snapshot) withPort(at *attachment) *Snapshot {
	next := s.succeed()
	next.ports = slices.Clone(s.ports)
	for len(next.ports) <= int(at.id) {
		next.ports = append(next.ports, nil)
	}
	next.ports[at.id] = at
	next.owner = maps.Clone(s.owner)
	if at.Local {
		next.local = at
		for a := range s.own {
			next.owner[a] = at
		}
	}
	for _, a := range at.addrs {
		next.owner[a] = at
	}
	next.resolveRoutes(s.static)
	return next
}

func (s *Snapshot) withoutPort(at *attachment) *Snapshot {
	next := s.succeed()
	next.ports = slices.Clone(s.ports)
	next.ports[at.id] = nil
	next.owner = maps.Clone(s.owner)
	maps.DeleteFunc(next.owner, func(_ packet.Addr, o *attachment) bool { return o == at })
	next.resolveRoutes(s.static)
	if next.local == at {
		next.local = nil
	}
	return next
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
