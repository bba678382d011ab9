package stack

import (
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Theory of operation
//
// A gateway that was started again does not know the conversations that go on.
// Where the client speaks first it finds the same backend as before, as the
// choice is a hash. Where the server does, its segment looks like one of a
// conversation with the pod itself. If it was one through a Service, the client,
// who knows its peer by the Service's address, resets what it does not know; that
// reset must not reach the server. So
//
//	server: segment without SYN, of no flow   -> a picked-up flow, as it is
//	client: reset of such a flow, whose server
//	        is an endpoint of Services        -> held back, the flow forgotten, and
//	                                             the client asked under the address of
//	                                             each Service (packet.BuildProbe)
//	client: acknowledgment to one of those    -> opens the flow as it had been
//	client: reset to one of those             -> of no flow: dropped
//
// and the server's next segment finds its flow. If there is none by then, and the
// client resets again, it is meant. A reset that belongs to no flow is dropped in
// any case, as conntrack does: there is nothing that it could end.

// disownedFor is how long, in ns, resets of one conversation are held back, from
// the first one: what the server had under way may still come.
const disownedFor = 1e9

// disowned holds back a reset by which in's pod disowns a conversation that an
// endpoint of a Service was found in, and asks it about the Service's addresses.
func (w *worker) disowned(in *port, p *packet.Packet, f *flow.Flow) bool {
	if in.Local || w.snap.services == nil || f.Orig.Rewrite.Tuple() != f.Orig.Tuple {
		return false
	}
	since, known := w.strangers[f.Orig.Tuple]
	if known && w.now-since >= disownedFor {
		return false
	}
	if !known {
		fronts := w.snap.services.FrontsOf(f.Orig.Src, packet.TCP, f.Orig.SrcPort)
		if len(fronts) == 0 {
			return false
		}
		if len(w.strangers) < maxStrangers {
			w.strangers[f.Orig.Tuple] = w.now
		}
		for _, at := range fronts {
			w.probe(in, p, at.Addr, at.Port)
		}
	}
	w.flows.Remove(f)
	w.drop(in, p, ResetUnmatched)
	return true
}

// maxStrangers is how many conversations are remembered as disowned, until the
// tick after a minute: further ones are asked about again each time.
const maxStrangers = 4096

const strangersFor = 60e9 // ns

// probe asks the sender of p, a reset, whether it knows the conversation that it
// reset under another address of the peer.
func (w *worker) probe(in *port, p *packet.Packet, addr packet.Addr, port uint16) {
	if addr.Is4() != p.Src.Is4() || !in.errors.take(w.now, w.cfg.ErrorRate) {
		return
	}
	t := p.Tuple.Reverse()
	t.Src, t.SrcPort = addr, port
	f := packet.BuildProbe(w.made.next(), p, t)
	copy(f.Eth(), in.MAC[:])
	copy(f.Eth()[6:], w.snap.gatewayMAC[:])
	w.send(in, f)
}

// forgetStrangers ends the memory of conversations that were disowned.
func (w *worker) forgetStrangers() {
	for t, since := range w.strangers {
		if w.now-since >= strangersFor {
			delete(w.strangers, t)
		}
	}
}
