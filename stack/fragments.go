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
// first one first and one thread keeps the order, so a fragment that comes
// before its first is an orphan and dropped.
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
	return &fragments{datagrams: map[datagramKey]*datagram{}, perPort: map[flow.PortID]int{}}
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

// expire forgets the datagrams that never became whole.
func (fs *fragments) expire(now int64) {
	for k, d := range fs.datagrams {
		if now >= d.until {
			fs.forget(k)
		}
	}
}
