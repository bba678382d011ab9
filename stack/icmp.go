package stack

import (
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// icmp handles what is not an ordinary ICMP packet of a flow, and says whether
// it did: errors, neighbour discovery, and pings for the gateway itself, which
// are answered here rather than by the local stack to spare them two hand-offs.
func (w *worker) icmp(in *port, p *packet.Packet) bool {
	switch {
	case p.ICMPError():
		w.icmpError(in, p)
		return true
	case p.IsND():
		w.nd(in, p)
		return true
	case p.EchoRequest() && !in.Local && (p.Dst == w.snap.gateway(p.Dst) || w.snap.gateways[p.Dst] != nil) && len(p.Frame) <= ownFrame:
		w.echo(in, p)
		return true
	}
	return false
}

// echo answers a ping for the gateway. The node is exempt from policies.
func (w *worker) echo(in *port, p *packet.Packet) {
	if !w.snap.mayUse(in.attachment, p.Src) {
		w.drop(in, p, SpoofedIP)
		return
	}
	if p.DstMAC() != w.snap.gatewayMAC {
		w.drop(in, p, WrongMAC)
		return
	}
	if f := packet.BuildEchoReply(w.made.next(), p); f != nil {
		w.answer(in, EchoAnswered, f)
	}
}

// icmpError passes an error along the flow whose packet it quotes. The quote is
// as its receiver saw it, so the reversed quote is the tuple that receiver
// sends with: the key of the leg that the error itself travels on. No policy is
// asked: the flow was allowed.
func (w *worker) icmpError(in *port, p *packet.Packet) {
	if !in.Local && !w.snap.mayUse(in.attachment, p.Src) {
		w.drop(in, p, SpoofedIP)
		return
	}
	q := &w.inner
	if fault := p.Inner(q); fault != packet.OK {
		w.drop(in, p, fromFault(fault))
		return
	}
	if q.LaterFragment() && !w.quotedFragment(q) {
		w.drop(in, p, ICMPErrorUnmatched)
		return
	}
	f, leg := w.flows.Lookup(&flow.Key{Tuple: q.Tuple.Reverse(), Port: in.id}, w.now)
	if f == nil || w.endorse(f) != endorsed {
		w.drop(in, p, ICMPErrorUnmatched)
		return
	}
	out, rw := w.ports[leg.Out], &leg.Rewrite
	if p.DstMAC() != rw.DstMAC || !switched(in, rw, out) {
		if rw.DecTTL && p.TTL <= 1 {
			w.drop(in, p, TTLExpired)
			return
		}
		rw.ApplyError(p, q)
	}
	w.send(out, p.Frame)
}

// quotedFragment gives the quote of a later fragment, which has no ports, those
// of its datagram as its receiver saw them, if that is remembered.
func (w *worker) quotedFragment(q *packet.Packet) bool {
	k, ok := w.frags.quoted(q.Frag.ID, w.now)
	if !ok {
		return false
	}
	_, leg := w.flows.Lookup(&k, w.now)
	if leg == nil {
		return false
	}
	t := leg.Rewrite.Tuple()
	if t.Src != q.Src || t.Dst != q.Dst {
		return false
	}
	q.Tuple = t
	return true
}
