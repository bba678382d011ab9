package stack

import (
	"net/netip"

	"podgate/stack/packet"
)

// Theory of operation
//
// Pods never hear each other's questions for a link-layer address. The gateway
// answers them from what it knows, about the segment that they are asked in: a
// pod's address with the pod's own MAC (the frame then goes straight to that
// port), its own addresses with its own MAC.
// Announcements tell it nothing new and are swallowed; what a pod says about an
// address that is not its own is spoofed.

// arp handles address resolution for IPv4 (RFC 826, RFC 5227).
func (w *worker) arp(in *port, p *packet.Packet) {
	var a packet.ARP
	if fault := p.ARP(&a); fault != packet.OK {
		w.drop(in, p, fromFault(fault))
		return
	}
	probe := a.SenderIP.IsUnspecified()
	switch {
	case !in.Local && (a.SenderMAC != in.MAC || !probe && !w.snap.mayUse(in.attachment, a.SenderIP)):
		w.drop(in, p, SpoofedARP)
	case a.Op != packet.ARPRequest || a.SenderIP == a.TargetIP || in.has(a.TargetIP):
		w.drop(in, p, ARPIgnored)
	default:
		mac, ok := w.macOf(in, a.TargetIP)
		if !ok {
			w.drop(in, p, ARPUnknown)
			return
		}
		w.answer(in, ARPAnswered, packet.BuildARPReply(w.made.next(), &a, mac))
	}
}

// nd handles neighbour discovery (RFC 4861). A pod's kernel uses its link-local
// address here too, and only here.
func (w *worker) nd(in *port, p *packet.Packet) {
	var n packet.ND
	if p.ICMPType == packet.ICMPv6RA || p.ICMPType == packet.ICMPv6Redirect {
		w.drop(in, p, SpoofedND)
		return
	}
	if fault := p.ND(&n); fault != packet.OK {
		w.drop(in, p, fromFault(fault))
		return
	}
	mine := func(a packet.Addr) bool { return in.Local || w.snap.mayUse(in.attachment, a) || a == linkLocal(in.MAC) }
	switch {
	case !p.Src.IsUnspecified() && !mine(p.Src),
		n.HasLinkAddr && !in.Local && n.LinkAddr != in.MAC,
		n.Type == packet.ICMPv6NA && !mine(n.Target):
		w.drop(in, p, SpoofedND)
	case n.Type == packet.ICMPv6RS && w.advertise(in, p):
	case n.Type != packet.ICMPv6NS || mine(n.Target) && !in.Local:
		w.drop(in, p, NDIgnored)
	default:
		mac, ok := w.macOf(in, n.Target)
		if !ok {
			w.drop(in, p, NDUnknown)
			return
		}
		router := mac == w.snap.gatewayMAC
		w.answer(in, NDAnswered, packet.BuildNA(w.made.next(), p, &n, mac, router))
	}
}

// macOf is the link-layer address that in should use for a.
func (w *worker) macOf(in *port, a packet.Addr) (packet.MAC, bool) {
	at := w.snap.owner[a]
	switch {
	case a == linkLocal(w.snap.gatewayMAC) && !in.Local, // who advertises
		w.snap.own[a] && !in.Local && in.segment == 0, w.snap.gateways[a] != nil && w.snap.gateways[a].id == in.segment:
		return w.snap.gatewayMAC, true
	case at == nil || at.id == in.id || at.Local || at.segment != in.segment && !in.Local:
		return packet.MAC{}, false
	default:
		return at.MAC, true
	}
}

// linkLocal is the address that a kernel gives an interface by its MAC
// (RFC 4291, appendix A).
func linkLocal(m packet.MAC) packet.Addr { return packet.EUI64(linkLocalNet, m) }

var linkLocalNet = netip.MustParseAddr("fe80::")
