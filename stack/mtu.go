package stack

import (
	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// Theory of operation
//
// A packet that is longer than the MTU of the port it leaves by is made shorter
// where its protocol lets a router do so, and answered otherwise:
//
//	TCP super-frame        into shorter segments: its bytes are a stream
//	IPv4 without DF        fragmented (RFC 791, RFC 1812, 4.2.2.7)
//	USO super-frame        its datagrams, each as above
//	IPv4 with DF, IPv6     too-big, with the MTU of the port
//
// Of a TCP super-frame that is a smaller gso_size: the device, or the kernel
// behind it, does the cutting. Its sender learns the MTU from the first single
// segment that is too long. What a rewrite does to a packet it has done before
// the packet is cut: fragments are of what leaves.

// leastSegment is TCP_MIN_GSO_SIZE, under which no kernel takes a super-frame.
const leastSegment = 8

// cut sends p, which is over the MTU of its way out, in pieces, or says why not.
// It returns whether p is on its way.
func (w *worker) cut(in *port, p *packet.Packet, leg *flow.Leg) bool {
	out, rw := w.ports[leg.Out], &leg.Rewrite
	vnet := p.Frame.Vnet()
	super := p.GSOSize != 0 && vnet.GSOType&^packet.GSOECN != packet.GSOUDP
	stream := super && p.Proto == packet.TCP
	if p.DontFragment() && !stream {
		w.count(in, p, TooBig, nil)
		w.tell(in, p, TooBig, out.MTU)
		return false
	}
	dst := p.DstMAC()
	if dst != rw.DstMAC || !switched(in, rw, out) {
		if dst != w.snap.gatewayMAC && !neighbour(in, dst, rw, out) {
			w.drop(in, p, WrongMAC)
			return false
		}
		if rw.DecTTL && p.TTL <= 1 {
			w.reject(in, p, TTLExpired)
			return false
		}
		rw.Apply(p)
	}
	if stream && out.MTU-(p.Payload-p.L3) >= leastSegment {
		vnet.GSOSize = uint16(out.MTU - (p.Payload - p.L3))
		p.Frame.SetVnet(vnet)
		w.send(out, p.Frame)
		return true
	}
	if !super && vnet.GSOType != packet.GSONone {
		vnet.GSOType, vnet.GSOSize = packet.GSONone, 0
		p.Frame.SetVnet(vnet) // one long datagram, for the kernel to fragment (UFO)
	}
	key := flow.Key{Tuple: p.Tuple, Port: in.id}
	done := link.Segment(p.Frame, 0, func(f packet.Frame) {
		var q packet.Packet
		if packet.Decode(&q, f) == packet.OK && q.Len() > out.MTU {
			w.frags.remember(q.IPv4ID(), key, w.now)
			packet.Fragment(&q, out.MTU, w.made.take, func(f packet.Frame) { w.send(out, f) })
			return
		}
		b := packet.Frame(w.made.take(len(f)))
		copy(b, f)
		w.send(out, b)
	})
	if !done {
		w.drop(in, p, TooBig)
	}
	return done
}
