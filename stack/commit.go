package stack

import (
	"podgate/nat"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// view is what a decision of this worker may look at.
// For a flow that exists serving is its backend, and arrives the port there.
func (w *worker) view(serving *nat.Backend, arrives uint16) view {
	return view{now: w.now, affinity: w.affinity, loads: w.loads, mappings: w.mappings, serving: serving, arrives: arrives}
}

// open decides about a packet that belongs to no flow and, if it may pass,
// makes the flow, in place of tomb if there is one.
func (w *worker) open(in *port, p *packet.Packet, tomb *flow.Flow) (*flow.Flow, *flow.Leg) {
	q := query{Tuple: p.Tuple, port: in.attachment, dstMAC: p.DstMAC()}
	v := w.view(nil, 0)
	if tomb != nil && tomb.Orig.Tuple == p.Tuple {
		v = w.view(w.cookie(tomb).backend, tomb.Orig.Rewrite.Tuple().DstPort)
	}
	d := w.snap.decide(q, v, nil)
	if d.verdict != Forward {
		w.refuse(in, p, &d)
		return nil, nil
	}
	if tomb != nil {
		w.flows.Remove(tomb)
	}
	f, r := w.commit(&q, &d)
	if r != None {
		w.drop(in, p, r)
		return nil, nil
	}
	if w.judged(in.attachment, p.Tuple, &d) {
		c := *w.cookie(f)
		c.audited = true
		w.remember(f, c)
	}
	w.verdicts.allowed(w, in.attachment, p.Tuple, &d)
	return f, &f.Orig
}

// commit makes the flow of a decision to forward: it claims a source port where
// one is needed and inserts both legs, or neither.
//
// The reply leg is found by the translated tuple reversed, at the port that
// the packet leaves by. Where that key is taken (two conversations that look
// alike behind a Service, or a hairpin) another source port tells them apart.
func (w *worker) commit(q *query, d *decision) (*flow.Flow, Reason) {
	to := d.to
	by := passage{to: d.mapping}
	if d.independent(q) {
		if by.from = w.mapping(q, to.Src, d.uplink); by.from == nil {
			return nil, SourcePortsExhausted
		}
		to.SrcPort = by.from.outer.port
	} else if d.masquerade || w.taken(to, d.out) {
		port, ok := w.claim(to, d)
		if !ok {
			return nil, SourcePortsExhausted
		}
		to.SrcPort = port
	}
	orig := flow.Leg{
		Key:     flow.Key{Tuple: q.Tuple, Port: q.port.id},
		Rewrite: w.rewrite(q.Tuple, to, d.out),
		Out:     d.out.id,
	}
	reply := flow.Leg{
		Key:     flow.Key{Tuple: to.Reverse(), Port: d.out.id},
		Rewrite: w.rewrite(to.Reverse(), q.Tuple.Reverse(), q.port),
		Out:     q.port.id,
	}
	// What the gateway itself sends or receives is not routed.
	orig.Rewrite.DecTTL = !q.port.Local && (d.backend != nil || !w.snap.own[to.Dst])
	reply.Rewrite.DecTTL = !d.out.Local && (d.backend != nil || !w.snap.own[q.Src])
	f, result := w.flows.Insert(&orig, &reply, w.now)
	switch result {
	case flow.Inserted:
	case flow.PortFull:
		return nil, FlowShareFull
	case flow.TableFull:
		return nil, FlowTableFull
	default:
		return nil, PortLoop
	}
	f.Gen = w.snap.Generation
	c := cookie{deps: d.deps, holds: w.loads.hold(&d.deps)}
	if by != (passage{}) {
		c.by = &by
		by.hold()
	}
	w.remember(f, c)
	if d.service != nil && d.service.AffinityTimeout > 0 {
		w.affinity.record(q.Src, d.service, d.backend, w.now)
	}
	return f, None
}

func (w *worker) rewrite(from, to packet.Tuple, out *attachment) packet.Rewrite {
	r := packet.NewRewrite(from, to)
	r.SetMAC, r.SrcMAC, r.DstMAC = true, w.snap.gatewayMAC, out.MAC
	if to.Proto == packet.TCP && w.snap.beyond(to.Dst, out) {
		r.MSS = packet.MSS(out.MTU, to.Dst.Is4())
	}
	return r
}

// taken says whether answers to the tuple to would be those of another flow. One
// that begins with such an answer, of which nobody has said that it knows it, is
// this one's (pickedup.go).
func (w *worker) taken(to packet.Tuple, out *attachment) bool {
	f, leg := w.flows.Lookup(&flow.Key{Tuple: to.Reverse(), Port: out.id}, w.now)
	if f != nil && !leg.Reply && f.State() == flow.PickedUp {
		w.flows.Remove(f)
		return false
	}
	return f != nil
}

// independent says whether the conversation's source has a mapping of its own.
func (d *decision) independent(q *query) bool {
	return d.uplink != nil && d.uplink.Masquerade.IndependentMapping && hasPorts(q.Proto) && q.SrcPort != 0
}

// claim finds a source port that makes to's reply key unique.
func (w *worker) claim(to packet.Tuple, d *decision) (uint16, bool) {
	if !hasPorts(to.Proto) { // one pod at a time for each peer
		return 0, d.uplink != nil && !w.taken(to, d.out)
	}
	var m *Masquerade
	if d.uplink != nil {
		m = d.uplink.Masquerade
	}
	pool, from := to, to
	pool.SrcPort = 0
	return w.pick(pool, from, m, func(port uint16) bool {
		to.SrcPort = port
		return !w.taken(to, d.out)
	})
}

// pick finds a free port. Outside (m is not nil) that of the conversation is kept
// where it can be (RFC 4787, 4.2.1). The search starts at a place that the
// conversation gives, so that claims do not crowd; of a pool that was found
// exhausted the next search is not before the next tick, as it costs as much as
// thousands of packets.
func (w *worker) pick(pool, from packet.Tuple, m *Masquerade, free func(uint16) bool) (uint16, bool) {
	if m != nil && m.keeps(from.SrcPort) && free(from.SrcPort) {
		return from.SrcPort, true
	}
	if w.exhausted[pool] {
		return 0, false
	}
	ports := w.cfg.MasqueradePorts
	if m != nil && m.Ports != [2]uint16{} {
		ports = m.Ports
	}
	n := uint32(ports[1]-ports[0]) + 1
	start := uint32(from.Hash(0) >> 32)
	for i := range n {
		if port := ports[0] + uint16((start+i)%n); free(port) {
			return port, true
		}
	}
	w.exhausted[pool] = true
	return 0, false
}

func hasPorts(p packet.Proto) bool {
	switch p {
	case packet.TCP, packet.UDP, packet.SCTP, packet.UDPLite, packet.ICMP, packet.ICMPv6:
		return true
	}
	return false
}
