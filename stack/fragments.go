package stack

import (
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Theory of operation
//
// Only the first fragment of a datagram has ports. It makes an entry, and the
// later ones take theirs from it, so that all of them find the same flow and
// the same verdict; nothing is put together here. A sender's kernel sends the
// first one first and one thread keeps the order, so that hardly any comes
// before its first: it waits for it, for a second at most (early.go). An SCTP
// datagram waits until its first and its last are there, because its checksum
// cannot follow a change of ports without the whole length.
//
// Fragments that overlap are how filters get fooled (RFC 1858, RFC 5722): what
// overlaps is dropped, so that no receiver ever has to choose. A new first
// fragment starts a new datagram of that id, as identifications wrap within a
// second at high rates.

const (
	maxDatagrams   = 1024     // in flight, of all ports
	maxPerPort     = 128      // of one
	maxSpans       = 64       // holes that one datagram may have
	fragmentExpiry = 30 * 1e9 // RFC 791 asks 15 s, RFC 8200 60 s; Linux takes 30
)

type fragments struct {
	datagrams map[datagramKey]*datagram
	perPort   map[flow.PortID]int
	early     early
	recent    [256]quotable // by the identification's low bits
}

// quotable is what an ICMP error about a later fragment is recognised by; it
// outlives the datagram's entry.
type quotable struct {
	id    uint32
	flow  flow.Key // as it was sent
	until int64
}

type datagramKey struct {
	packet.FragKey
	port flow.PortID
}

type datagram struct {
	proto            packet.Proto
	srcPort, dstPort uint16
	until            int64
	spans            []span // sorted, apart from each other
	end              int    // known once the last fragment came
}

type span struct{ from, to int }

func newFragments() *fragments {
	return &fragments{datagrams: map[datagramKey]*datagram{}, perPort: map[flow.PortID]int{}, early: newEarly()}
}

// fragment handles one fragment of a unicast packet.
func (w *worker) fragment(in *port, p *packet.Packet) {
	k := datagramKey{p.FragKey(), in.id}
	if w.frags.wait(k, p, w.now) {
		if total := w.frags.early.whole(k); total != 0 {
			w.followers(in, k, total)
		}
		return
	}
	if r := w.frags.follow(in.id, p, w.now); r != None {
		w.drop(in, p, r)
		return
	}
	first := !p.LaterFragment()
	w.unicast(in, p, w.flows.Hash(&flow.Key{Tuple: p.Tuple, Port: in.id}), 0)
	if first {
		w.followers(in, k, 0)
	}
}

// followers lets the fragments go on that waited, because their first has left
// or, of a datagram of that total length, is among them.
func (w *worker) followers(in *port, k datagramKey, total int) {
	for _, f := range w.frags.early.take(k) {
		var a arrival
		a.fault = packet.Decode(&a.pkt, f)
		a.pkt.Frag.Total = uint16(total)
		w.frame(in, &a)
	}
}

// remember makes ICMP errors about later fragments, with that identification, of
// a packet with that key find its flow.
func (fs *fragments) remember(id uint32, k flow.Key, now int64) {
	fs.recent[id%uint32(len(fs.recent))] = quotable{id, k, now + fragmentExpiry}
}

// quoted is the key that remember was told.
func (fs *fragments) quoted(id uint32, now int64) (flow.Key, bool) {
	q := &fs.recent[id%uint32(len(fs.recent))]
	return q.flow, q.id == id && now < q.until
}

// follow gives the fragment p the ports of its datagram, or a Reason to drop it.
func (fs *fragments) follow(in flow.PortID, p *packet.Packet, now int64) Reason {
	k := datagramKey{p.FragKey(), in}
	d := fs.datagrams[k]
	if !p.LaterFragment() {
		if d == nil {
			if len(fs.datagrams) >= maxDatagrams || fs.perPort[in] >= maxPerPort {
				return FragmentsFull
			}
			d = new(datagram)
			fs.datagrams[k] = d
			fs.perPort[in]++
		}
		*d = datagram{proto: p.Proto, srcPort: p.SrcPort, dstPort: p.DstPort, until: now + fragmentExpiry}
		fs.remember(k.ID, flow.Key{Tuple: p.Tuple, Port: in}, now)
	} else if d == nil || now >= d.until {
		return FragmentOrphan
	}
	// Offsets count from the end of the unfragmentable part, which is where the
	// first fragment's transport header and the later ones' data start.
	from := int(p.Frag.Offset)
	to := from + p.End - p.L4
	if !d.take(span{from, to}) {
		return FragmentOverlap
	}
	if !p.Frag.More {
		d.end = to
	}
	p.Proto, p.SrcPort, p.DstPort = d.proto, d.srcPort, d.dstPort
	if d.end > 0 && len(d.spans) == 1 && d.spans[0] == (span{0, d.end}) {
		fs.forget(k)
	}
	return None
}

// take adds s, unless it overlaps what is there or leaves too many holes.
func (d *datagram) take(s span) bool {
	i := 0
	for i < len(d.spans) && d.spans[i].to <= s.from {
		i++
	}
	if i < len(d.spans) && d.spans[i].from < s.to || s.from >= s.to {
		return false
	}
	before := i > 0 && d.spans[i-1].to == s.from
	after := i < len(d.spans) && d.spans[i].from == s.to
	switch {
	case before && after:
		d.spans[i-1].to = d.spans[i].to
		d.spans = append(d.spans[:i], d.spans[i+1:]...)
	case before:
		d.spans[i-1].to = s.to
	case after:
		d.spans[i].from = s.from
	case len(d.spans) == maxSpans:
		return false
	default:
		d.spans = append(d.spans, span{})
		copy(d.spans[i+1:], d.spans[i:])
		d.spans[i] = s
	}
	return true
}

func (fs *fragments) forget(k datagramKey) {
	delete(fs.datagrams, k)
	if fs.perPort[k.port]--; fs.perPort[k.port] == 0 {
		delete(fs.perPort, k.port)
	}
}

// expire forgets the datagrams that never became whole, and hands over the
// frames that waited for a first fragment in vain.
func (fs *fragments) expire(now int64, orphan func(flow.PortID, packet.Frame)) {
	for k, d := range fs.datagrams {
		if now >= d.until {
			fs.forget(k)
		}
	}
	fs.early.expire(now, orphan)
}
