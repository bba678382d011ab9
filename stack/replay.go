package stack

import (
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// replay is the hit path: what was decided for the flow happens to the packet.
//
// A frame that a pod addressed to its neighbour's MAC, and that no Service
// translates, is switched: it leaves as it came, TTL untouched. Everything else
// is routed: new MACs, TTL less one. It returns whether the packet is on its way.
func (w *worker) replay(in *port, p *packet.Packet, leg *flow.Leg) bool {
	out := w.ports[leg.Out]
	rw := &leg.Rewrite
	dst := p.DstMAC()
	if p.SegmentLen() > out.MTU {
		return w.cut(in, p, leg)
	}
	if dst == rw.DstMAC && switched(in, rw, out) {
		w.send(out, p.Frame)
		return true
	}
	if dst != w.snap.gatewayMAC && !neighbour(in, dst, rw, out) {
		w.drop(in, p, WrongMAC)
		return false
	}
	if rw.DecTTL && p.TTL <= 1 {
		w.reject(in, p, TTLExpired)
		return false
	}
	rw.Apply(p)
	w.send(out, p.Frame)
	return true
}

// switched says whether a frame that is addressed to out's MAC stays as it is.
func switched(in *port, rw *packet.Rewrite, out *port) bool {
	return !out.Local && in.segment == out.segment && !rw.Translates()
}

// neighbour says whether in may address a frame to dst: out's own MAC, within a
// segment.
func neighbour(in *port, dst packet.MAC, rw *packet.Rewrite, out *port) bool {
	return in.Local || dst == rw.DstMAC && in.segment == out.segment
}
