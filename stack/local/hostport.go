package local

import (
	"net/netip"

	"podgate/stack/packet"
)

// HostPort is a port of the gateway's own address behind which is a process of
// the host: a pod with hostNetwork.
type HostPort struct {
	Addr  netip.AddrPort // of the gateway
	Proto packet.Proto   // packet.TCP or packet.UDP
}

// SetHostPorts says which ports of the gateway's own addresses continue at the
// same port of the host's loopback; all others of the host stay out of reach.
// The Stack takes the slice. Conversations that have begun go on.
func (s *Stack) SetHostPorts(all []HostPort) {
	set := make(map[HostPort]bool, len(all))
	for _, p := range all {
		set[p] = true
	}
	s.hostPorts.Store(&set)
}

// hostSide is where on the host a conversation with one of the gateway's own
// addresses continues.
func (s *Stack) hostSide(to netip.AddrPort, proto packet.Proto) (netip.AddrPort, bool) {
	set := s.hostPorts.Load()
	if set == nil || !(*set)[HostPort{to, proto}] {
		return netip.AddrPort{}, false
	}
	if to.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port()), true
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), to.Port()), true
}
