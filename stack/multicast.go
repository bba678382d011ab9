package stack

import (
	"podgate/policy"
	"podgate/stack/packet"
)

// UDP ports of DHCP: see autoconf.go. That of IPv6 is not served.
const (
	dhcpServer, dhcpClient     = 67, 68
	dhcpv6Server, dhcpv6Client = 547, 546
	igmp                       = packet.Proto(2)
)

// group handles a frame for a multicast or broadcast MAC: it is flooded within
// the segment (mDNS and the like), as often as Config.FloodRate allows, to
// every pod that the policies of both ends let it reach. It never goes back out
// of the port that it came from, nor into another segment: there are no loops.
// The gateway itself is no member.
func (w *worker) group(in *port, p *packet.Packet) {
	if p.IsND() {
		w.nd(in, p)
		return
	}
	if p.Proto == packet.UDP && p.DstPort == dhcpServer && p.Dst.IsBroadcast() && !in.Local && !p.Fragment() {
		w.dhcp(in, p)
		return
	}
	if r := w.mayFlood(in, p); r != None {
		w.drop(in, p, r)
		return
	}
	src := p.Src
	if src == linkLocal(in.MAC) {
		src = in.addrOf(p.Dst) // policies know that one
	}
	q, v := query{Tuple: p.Tuple, port: in.attachment}, w.view(nil, 0)
	var denied decision
	sent := false
	for _, out := range w.ports {
		if out == nil || out.Local || out == in || out.segment != in.segment || p.SegmentLen() > out.MTU {
			continue
		}
		for _, a := range out.addrs {
			if a.Is4() != p.Dst.Is4() {
				continue
			}
			d := decision{to: p.Tuple}
			d.to.Src, d.to.Dst = src, a
			r := w.snap.judge(policy.Egress, &q, &v, &d)
			if r == None {
				r = w.snap.judge(policy.Ingress, &q, &v, &d)
			}
			if r == None {
				w.send(out, p.Frame)
				sent = true
			} else {
				d.refuse(in.attachment, r)
				denied = d
			}
			break
		}
	}
	if !sent && denied.reason != None {
		w.refuse(in, p, &denied)
	}
}

func (w *worker) mayFlood(in *port, p *packet.Packet) Reason {
	if in.Local {
		return MulticastNotServed
	}
	switch {
	case in.has(p.Src):
	case p.Src.IsUnspecified():
		return MulticastNotServed
	case p.Src != linkLocal(in.MAC):
		return SpoofedIP
	case in.addrOf(p.Dst) == packet.Addr{}:
		return MulticastNotServed
	}
	if !p.Dst.IsMulticast() && !p.Dst.IsBroadcast() && !w.snap.segment(in.segment).broadcast(p.Dst) {
		return WrongMAC
	}
	if p.Fragment() || p.Proto == igmp || p.IsMLD() {
		return MulticastNotServed
	}
	if p.Proto == packet.UDP {
		switch p.DstPort {
		case dhcpServer, dhcpClient, dhcpv6Server, dhcpv6Client:
			return MulticastNotServed
		}
	}
	if !in.floods.take(w.now, w.cfg.FloodRate) {
		return MulticastLimited
	}
	return None
}
