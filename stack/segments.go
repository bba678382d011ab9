package stack

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"podgate/kube"
	"podgate/policy"
	"podgate/stack/packet"
)

// Theory of operation
//
// A segment is a pod network. Ports of one segment are neighbours: they hear
// each other's multicast, resolve each other's addresses, and what one sends to
// another's MAC is switched. Everything else is routed: a frame for the gateway's
// MAC, which is the same in every segment, may leave by any port.
//
// Segment 0 is the cluster's own pod network (Config.PodCIDRs); the gateway's
// stack lives there. Further ones come and go with Publish. The gateway answers
// pings at its addresses in them and nothing else.
//
// Addresses are unique in all segments together, so that an address is enough to
// route by; MACs are unique in each.
//
// NetworkPolicy is about a pod's own interface, the one that its addresses in the
// Kubernetes API are of. A further interface (PortSpec.Secondary) is outside of
// it for what stays within its segment, as with any CNI. What is routed is judged
// at both ends whatever the interfaces are: the way around through another
// segment is closed.

// Segment is a pod network beside the cluster's own.
type Segment struct {
	Name     string         // "namespace/name"; not empty
	Prefixes []netip.Prefix // at most one a family, apart from every other segment's
	Gateways []netip.Addr   // the gateway's own addresses in it, at most one a family
}

// SegmentsOf are the segments that the networks of a State ask for, and the routes
// by way of their pods.
func SegmentsOf(st *kube.State) (segments []Segment, routes []Route) {
	for _, n := range st.Networks {
		segments = append(segments, Segment{Name: n.Name.String(), Prefixes: n.Prefixes(), Gateways: n.Gateways()})
		for _, r := range n.Routes {
			if r.Via.IsValid() {
				routes = append(routes, Route{Prefix: r.Dst, Via: r.Via})
			}
		}
	}
	slices.SortFunc(segments, func(a, b Segment) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(routes, func(a, b Route) int { return cmp.Or(a.Prefix.Compare(b.Prefix), a.Via.Compare(b.Via)) })
	return segments, routes
}

// segment is a Segment with its number, which is its own for the plane's life.
type segment struct {
	Segment
	id                 uint16
	gateway4, gateway6 packet.Addr // zero when the gateway has no address of the family
}

func newSegment(id uint16, s Segment) *segment {
	seg := &segment{Segment: s, id: id}
	for _, a := range s.Gateways {
		if a.Is4() {
			seg.gateway4 = packet.AddrFrom(a)
		} else {
			seg.gateway6 = packet.AddrFrom(a)
		}
	}
	return seg
}

// gateway is the gateway's address of a's family, zero when there is none.
func (seg *segment) gateway(a packet.Addr) packet.Addr {
	if a.Is4() {
		return seg.gateway4
	}
	return seg.gateway6
}

// broadcast says whether a is the last address of the segment's IPv4 prefix.
func (seg *segment) broadcast(a packet.Addr) bool {
	for _, p := range seg.Prefixes {
		if p.Addr().Is4() && a.Is4() && p.Contains(a.Netip()) {
			host := ^uint32(0) >> p.Bits()
			return binary.BigEndian.Uint32(a[12:])&host == host
		}
	}
	return false
}

// setSegments makes these the further segments. A segment that was there keeps
// its number, and one that did not change its pointer.
func (s *Snapshot) setSegments(further []Segment) {
	was := map[string]*segment{}
	for _, seg := range s.segments[1:] {
		was[seg.Name] = seg
	}
	s.segments = append([]*segment(nil), s.segments[0])
	s.gateways = map[packet.Addr]*segment{}
	for _, f := range further {
		seg := was[f.Name]
		switch {
		case seg == nil:
			s.lastSegment++
			seg = newSegment(s.lastSegment, f)
		case !reflect.DeepEqual(seg.Segment, f):
			seg = newSegment(seg.id, f)
		}
		s.segments = append(s.segments, seg)
		for _, a := range f.Gateways {
			s.gateways[packet.AddrFrom(a)] = seg
		}
	}
}

// segment is the one of that number, segment 0 if it is gone.
func (s *Snapshot) segment(id uint16) *segment {
	for _, seg := range s.segments {
		if seg.id == id {
			return seg
		}
	}
	return s.segments[0]
}

// segmentNamed is the number of a segment; "" is the cluster's own.
func (s *Snapshot) segmentNamed(name string) (uint16, error) {
	for _, seg := range s.segments {
		if seg.Name == name {
			return seg.id, nil
		}
	}
	return 0, fmt.Errorf("there is no network %s", name)
}

// gateway is the node's address of a's family, zero when there is none.
func (s *Snapshot) gateway(a packet.Addr) packet.Addr { return s.segments[0].gateway(a) }

// gatewayOf is the address of a's family by which a port knows the gateway: that
// of its segment, or else the node's.
func (s *Snapshot) gatewayOf(at *attachment, a packet.Addr) packet.Addr {
	if gw := s.segment(at.segment).gateway(a); gw != (packet.Addr{}) {
		return gw
	}
	return s.gateway(a)
}

// isOwn says whether a is one of the gateway's addresses, in any segment.
func (s *Snapshot) isOwn(a packet.Addr) bool { return s.own[a] || s.gateways[a] != nil }

// isPods says whether a is in the range of a segment.
func (s *Snapshot) isPods(a packet.Addr) bool {
	for _, seg := range s.segments {
		if contains(seg.Prefixes, a) {
			return true
		}
	}
	return false
}

// behind is the port by which a is reached, nil if it is outside.
func (s *Snapshot) behind(a packet.Addr) *attachment {
	if at := s.owner[a]; at != nil {
		return at
	}
	out, _ := s.via(a)
	return out
}

// exempt says whether policies of that direction leave alone what from sends to
// dst: between further interfaces of one segment.
func (s *Snapshot) exempt(dir policy.Direction, from *attachment, dst packet.Addr) bool {
	if len(s.segments) == 1 || dir == policy.Egress && !from.Secondary {
		return false
	}
	out := s.behind(dst)
	return out != nil && out.segment == from.segment && (dir == policy.Egress || out.Secondary)
}
