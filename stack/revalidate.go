package stack

import (
	"podgate/nat"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Theory of operation
//
// A flow rests on one decision, endorsed by the snapshot of its generation. A
// newer snapshot endorses it again if nothing that the decision rested on
// changed, which is a matter of pointers (deps). Otherwise the decision is made
// again, from the flow's first tuple and with its backend offered:
//
//	the same answer        endorsed, for the drain time of its Service if its endpoint left
//	another one            moved: forgotten, the next packet opens it anew
//	none                   cut
//
// That happens on the flow's next packet, or when the sweep comes by, so that a
// change costs what it concerns. Only what is denied by now is looked for at
// once: where more than Services changed, or a Service that counts its conversations
// or ends them by the clock, Publish walks the table (audit) before it returns.
//
// A flow that was cut stays in the table as a tombstone, of generation 0, for
// as long as it would have: a late answer could otherwise open the conversation
// from the other side, and so get around the policy.

// cookie is what the plane remembers with a flow. It is not changed: flows that
// rest on the same share one (remember), so that it costs next to nothing.
type cookie struct {
	deps
	audited bool      // noted already: see judged
	by      *passage  // nil: by no mapping
	holds   *load     // that this conversation is counted in; nil: none
	drained int64     // when it ends because its endpoint left; 0: not so
	cut     *decision // the refusal that ended the flow; nil while it lives
}

func (w *worker) cookie(f *flow.Flow) *cookie { return w.flows.Deps(f).(*cookie) }

// maxCookies is how many cookies wait to be shared. They are forgotten with each
// snapshot, so that they keep nothing of an old one.
const maxCookies = 4096

// remember replaces the cookie of f.
func (w *worker) remember(f *flow.Flow, c cookie) {
	if c.by != nil || c.cut != nil { // one of a kind
		own := c
		w.flows.SetDeps(f, &own)
		return
	}
	shared := w.cookies[c]
	if shared == nil {
		if w.cookies == nil || len(w.cookies) >= maxCookies {
			w.cookies = map[cookie]*cookie{}
		}
		own := c // on the heap only here
		shared = &own
		w.cookies[c] = shared
	}
	w.flows.SetDeps(f, shared)
}

// standing is how a flow fares with the present snapshot.
type standing uint8

const (
	endorsed standing = iota
	moved             // f is no more
	cut               // f is a tombstone
)

// attend handles the packets that the hit path does not: without a flow, or
// with one that an older snapshot endorsed. It returns the flow and leg to
// replay, or nil after the packet was dropped.
func (w *worker) attend(in *port, p *packet.Packet, f *flow.Flow, leg *flow.Leg) (*flow.Flow, *flow.Leg) {
	if f == nil {
		if p.TCPFlags&packet.RST != 0 && !in.Local {
			w.drop(in, p, ResetUnmatched)
			return nil, nil
		}
		return w.open(in, p, nil)
	}
	switch w.endorse(f) {
	case endorsed:
		return f, leg
	case moved:
		return w.open(in, p, nil)
	}
	if opens := p.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN; opens || !leg.Reply {
		return w.open(in, p, f)
	}
	if p.Proto == packet.TCP {
		f.LastSeen = w.now // as long as the other side keeps trying
	}
	d := *w.cookie(f).cut
	d.to, d.verdict = p.Tuple, d.reason.refusal(in.attachment)
	w.refuse(in, p, &d)
	if out := w.ports[leg.Out]; out.Local {
		w.abort(out, p, leg)
	}
	return nil, nil
}

// endorse asks the present snapshot about f.
func (w *worker) endorse(f *flow.Flow) standing {
	s, c := w.snap, w.cookie(f)
	if c.cut != nil {
		return cut
	}
	if c.drained != 0 && w.now >= c.drained {
		w.reasons[FlowDrained].add(1)
		w.flows.Remove(f)
		return moved
	}
	if f.Gen == s.Generation {
		return endorsed
	}
	to := f.Orig.Rewrite.Tuple()
	if s.unchanged(f, c, to) {
		f.Gen = s.Generation
		return endorsed
	}
	q := query{Tuple: f.Orig.Tuple, port: s.port(f.Orig.Port), dstMAC: s.gatewayMAC}
	d := s.decide(q, w.view(c.backend, to.DstPort), nil)
	switch {
	case d.verdict == Forward && d.out.id == f.Orig.Out &&
		d.to.Src == to.Src && d.to.Dst == to.Dst && d.to.DstPort == to.DstPort:
		next := *c
		next.deps = d.deps
		f.Gen = s.Generation
		if c.holds == nil {
			next.holds = w.loads.hold(&d.deps)
		}
		if f.Orig.Proto == packet.TCP {
			next.drain(w.now)
		}
		next.audited = c.audited || w.judged(q.port, q.Tuple, &d)
		w.remember(f, next)
		return endorsed
	case d.verdict == Forward || d.reason >= ServiceNoEndpoints && d.reason <= ServiceUnallocated:
		w.reasons[FlowMoved].add(1)
		w.flows.Remove(f)
		return moved
	case d.reason == PolicyEgressDenied || d.reason == PolicyIngressDenied:
		w.reasons[FlowCutByPolicy].add(1)
	default:
		w.reasons[FlowCutByRoute].add(1)
	}
	last, ended := d, *c // on the heap only here
	ended.cut = &last
	w.remember(f, ended)
	f.Gen = 0
	return cut
}

// unchanged says whether everything that f's decision rested on is as it was.
func (s *Snapshot) unchanged(f *flow.Flow, c *cookie, to packet.Tuple) bool {
	o := &f.Orig
	sp, _ := s.lookup(o.Tuple)
	if sp != c.service || s.policyPod(o.Src) != c.srcPod || s.policyPod(to.Dst) != c.dstPod {
		return false
	}
	out, owner := s.port(o.Out), s.owner[to.Dst]
	if behind, known := s.via(to.Dst); known && owner == nil {
		return behind == out
	}
	return owner == out || owner == nil && out.Local && c.egress == s.egress && !s.isPods(to.Dst)
}

// lookup is Table.Lookup where there may be no table.
func (s *Snapshot) lookup(t packet.Tuple) (*nat.ServicePort, nat.Outcome) {
	if s.services == nil {
		return nil, nat.NotService
	}
	return s.services.Lookup(t.Dst, t.Proto, t.DstPort)
}

// policyPod is Table.Pod where there may be no table.
func (s *Snapshot) policyPod(a packet.Addr) *policy.Pod {
	if s.policies == nil {
		return nil
	}
	return s.policies.Pod(a)
}

// auditChunk is how many places of the flow table the worker looks at between
// two rounds of frames: some tenths of a millisecond.
const auditChunk = 4096

// audit asks the present snapshot about the flows from c on, and returns where
// to go on, 0 after the last.
func (w *worker) audit(c flow.Cursor) flow.Cursor {
	return w.flows.Scan(c, auditChunk, func(f *flow.Flow) { w.endorse(f) })
}

// sweep forgets flows whose time is up, and asks the present snapshot about
// idle ones: a part of the table at a time.
func (w *worker) sweep() {
	w.flows.Sweep(w.now, auditChunk, func(f *flow.Flow) { w.endorse(f) })
}

// forgetPort ends the flows of a port that is gone.
func (w *worker) forgetPort(id flow.PortID) {
	for f := range w.flows.All() {
		if f.Orig.Port == id || f.Orig.Out == id {
			w.flows.Remove(f)
			w.reasons[FlowCutByDetach].add(1)
		}
	}
}
