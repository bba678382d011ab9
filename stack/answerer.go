package stack

import (
	"net/netip"

	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Answerer answers datagrams in the worker itself, without the hand-offs to the
// gateway's own stack and back. It sees a query only after all that happens to
// any packet did: the source is the pod's own, the Service is translated, the
// policies allow it, and there is a flow.
type Answerer interface {
	// Answer writes the answer to the client's query into out, which has room
	// for MaxAnswer bytes, and returns its length; 0 leaves the query to whoever
	// listens in the gateway's own stack. The worker calls it, one query at a
	// time: it must not block, and keeps neither argument.
	Answer(out, query []byte, client netip.Addr) int
}

// MaxAnswer is the longest answer of an Answerer, in bytes.
const MaxAnswer = 1232

// answerHeaders are the bytes of the IP and UDP headers of an answer, at most.
const answerHeaders = 48

// answering is the Config's Answerer as the worker uses it.
//
// Of a pod that asks much, several queries of one socket come in one batch. Their
// answers, where they are of one length, leave as one super-frame, which the
// pod's kernel takes apart where they are read: a frame costs more than an answer.
type answering struct {
	Answerer
	at     []packet.Addr
	buf    [MaxAnswer]byte
	trains [4]train // of this batch
	oldest int      // of trains
}

// train is a frame in a port's queue that answers of the same flow may join.
type train struct {
	flow  *flow.Flow
	place int // in the queue
	roomy bool
}

const (
	busy      = 8        // frames in a batch from which on answers leave together
	trainRoom = 16 << 10 // bytes
)

func newAnswering(cfg *Config) *answering {
	if cfg.Answerer == nil {
		return nil
	}
	a := &answering{Answerer: cfg.Answerer}
	for _, addr := range cfg.AnswerAt {
		a.at = append(a.at, packet.AddrFrom(addr.Addr()))
	}
	return a
}

// answered says whether the Answerer answered p, a packet of f on leg, instead
// of the listener that the flow leads to.
func (w *worker) answered(in *port, p *packet.Packet, f *flow.Flow, leg *flow.Leg) bool {
	a := w.answering
	if a == nil || p.Proto != packet.UDP || leg != &f.Orig || in.Local || !w.ports[leg.Out].Local {
		return false
	}
	served := false
	for i, addr := range a.at {
		served = served || addr == f.Reply.Src && w.cfg.AnswerAt[i].Port() == f.Reply.SrcPort
	}
	if !served || p.DstMAC() != w.snap.gatewayMAC && p.DstMAC() != leg.Rewrite.DstMAC || p.TTL <= 1 {
		return false
	}
	query := p.UDPData()
	if query == nil {
		return false
	}
	n := a.Answer(a.buf[:], query, p.Src.Netip())
	if n == 0 || n+answerHeaders > in.MTU {
		return false
	}
	w.flows.Hit(f, &f.Reply, 0, int(p.Payload-p.L3)+n, w.now)
	w.reasons[DNSAnswered].add(1)
	if w.crowd < busy || len(w.captures) != 0 || !w.joined(in, f, a.buf[:n]) {
		a.trains[a.oldest] = train{flow: f, place: len(in.out)}
		a.oldest = (a.oldest + 1) % len(a.trains)
		w.send(in, packet.BuildUDPReply(w.made.next(), p, a.buf[:n]))
	}
	return true
}

// joined puts an answer into a frame for f that waits in in's queue.
func (w *worker) joined(in *port, f *flow.Flow, answer []byte) bool {
	for i := range w.answering.trains {
		t := &w.answering.trains[i]
		if t.flow != f {
			continue
		}
		frame := in.out[t.place]
		if !t.roomy {
			frame = append(packet.Frame(w.made.take(trainRoom))[:0], frame...)
			t.roomy = true
		}
		longer := packet.AppendUDP(frame, answer)
		if longer == nil {
			t.flow = nil
			return false
		}
		in.out[t.place] = longer
		return true
	}
	return false
}

// depart lets nothing join the frames of this batch any more.
func (a *answering) depart() { a.trains = [len(a.trains)]train{} }
