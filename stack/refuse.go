package stack

import (
	"time"

	"podgate/nat"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// drop counts a frame that goes nowhere; p is nil when it could not be decoded.
func (w *worker) drop(in *port, p *packet.Packet, r Reason) {
	w.count(in, p, r, nil)
}

// answer counts a frame that the gateway answered itself.
func (w *worker) answer(in *port, r Reason, reply packet.Frame) {
	w.reasons[r].add(1)
	w.send(in, reply)
}

// reject drops, and tells the sender.
func (w *worker) reject(in *port, p *packet.Packet, r Reason) {
	w.count(in, p, r, nil)
	w.tell(in, p, r, 0)
}

// refuse does what a decision that is not to forward says.
func (w *worker) refuse(in *port, p *packet.Packet, d *decision) {
	w.count(in, p, d.reason, d)
	if d.verdict == Reject {
		w.tell(in, p, d.reason, 0)
	}
}

func (w *worker) count(in *port, p *packet.Packet, r Reason, d *decision) {
	w.reasons[r].add(1)
	in.dropped.add(1)
	e := w.drops.next()
	*e = dropEntry{seq: w.drops.n, at: w.now, in: in.attachment, reason: r}
	if p != nil && p.EtherType != packet.EtherARP {
		e.tuple = p.Tuple
	}
	if d != nil {
		e.to, e.service, e.denying = d.to, d.service, d.denying()
		if e.denying != nil {
			w.tally(r, e.denying, d)
			w.verdicts.say(w, in.attachment, e.tuple, d, r)
		}
	}
}

// abort resets the half that the gateway's own stack has of a conversation that
// was cut, when the pod speaks in it: a request that was on its way is over. A
// reset that is not where the stack is, is asked for again, and refused exactly.
func (w *worker) abort(out *port, p *packet.Packet, leg *flow.Leg) {
	if !out.errors.take(w.now, w.cfg.ErrorRate) {
		w.reasons[ErrorsLimited].add(1)
		return
	}
	if f := packet.BuildAbort(w.made.next(), p, leg.Rewrite.Tuple()); f != nil {
		copy(f.Eth(), out.MAC[:])
		copy(f.Eth()[6:], w.snap.gatewayMAC[:])
		w.send(out, f)
	}
}

// tell sends the sender what its Reason says: a reset or an ICMP error, from
// the gateway's address. How often is limited; it still counts as rejected.
func (w *worker) tell(in *port, p *packet.Packet, r Reason, mtu int) {
	if !p.MayAnswer() {
		return
	}
	if !in.errors.take(w.now, w.cfg.ErrorRate) {
		w.reasons[ErrorsLimited].add(1)
		return
	}
	var f packet.Frame
	said := r.say()
	if p.Proto == packet.TCP && said < sayTTL {
		f = packet.BuildRST(w.made.next(), p)
	} else {
		from := w.snap.gatewayOf(in.attachment, p.Dst)
		if from == p.Src || from == (packet.Addr{}) {
			from = p.Dst
		}
		kind := said.icmp(p.Dst.Is4())
		f = packet.BuildICMPError(w.made.next(), p, from, kind[0], kind[1], uint32(mtu))
	}
	if f != nil {
		copy(f.Eth(), in.MAC[:])
		copy(f.Eth()[6:], w.snap.gatewayMAC[:])
		w.send(in, f)
	}
}

// icmp is the type and code that say it.
func (s say) icmp(v4 bool) [2]uint8 {
	if v4 {
		switch s {
		case sayHost:
			return [2]uint8{packet.ICMPUnreachable, packet.ICMPHostUnreachable}
		case sayNet:
			return [2]uint8{packet.ICMPUnreachable, packet.ICMPNetUnreachable}
		case sayProhibited:
			return [2]uint8{packet.ICMPUnreachable, packet.ICMPAdminProhibited}
		case sayTTL:
			return [2]uint8{packet.ICMPTimeExceeded, 0}
		case sayTooBig:
			return [2]uint8{packet.ICMPUnreachable, packet.ICMPFragmentationNeeds}
		}
		return [2]uint8{packet.ICMPUnreachable, packet.ICMPPortUnreachable}
	}
	switch s {
	case sayHost:
		return [2]uint8{packet.ICMPv6Unreachable, packet.ICMPv6AddressUnreachable}
	case sayNet:
		return [2]uint8{packet.ICMPv6Unreachable, packet.ICMPv6NoRoute}
	case sayProhibited:
		return [2]uint8{packet.ICMPv6Unreachable, packet.ICMPv6AdminProhibited}
	case sayTTL:
		return [2]uint8{packet.ICMPv6TimeExceeded, 0}
	case sayTooBig:
		return [2]uint8{packet.ICMPv6TooBig, 0}
	}
	return [2]uint8{packet.ICMPv6Unreachable, packet.ICMPv6PortUnreachable}
}

// dropRing remembers the last frames that were not forwarded.
type dropRing struct {
	entries [1024]dropEntry
	n       uint64 // ever written
}

type dropEntry struct {
	seq     uint64
	at      int64
	in      *attachment
	tuple   packet.Tuple // as it arrived; zero when it was not decoded
	to      packet.Tuple // as it would have left
	reason  Reason
	service *nat.ServicePort
	denying []*policy.Policy
}

func (r *dropRing) next() *dropEntry {
	e := &r.entries[r.n%uint64(len(r.entries))]
	r.n++
	return e
}

// last returns the last n, oldest first.
func (r *dropRing) last(n int) []*dropEntry {
	have := min(r.n, uint64(len(r.entries)), uint64(max(n, 0)))
	list := make([]*dropEntry, have)
	for i := range have {
		list[i] = &r.entries[(r.n-have+i)%uint64(len(r.entries))]
	}
	return list
}

func (e *dropEntry) record(s *Snapshot) DropRecord {
	rec := DropRecord{
		Seq:     e.seq,
		Time:    time.Unix(0, e.at),
		Port:    e.in.title(),
		Service: serviceName(e.service),
		Verdict: e.reason.refusal(e.in).String(),
		Reason:  e.reason.String(),
	}
	for _, p := range e.denying {
		rec.Policies = append(rec.Policies, p.Name.String())
	}
	if e.tuple == (packet.Tuple{}) {
		return rec
	}
	rec.Proto = protoName(e.tuple.Proto)
	rec.Src, rec.Dst = ends(e.tuple)
	rec.SrcPod = s.podAt(e.tuple.Src)
	dst := e.tuple.Dst
	if e.to.Dst != (packet.Addr{}) {
		dst = e.to.Dst
	}
	rec.DstPod = s.podAt(dst)
	return rec
}
