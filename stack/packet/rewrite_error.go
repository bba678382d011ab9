package packet

import "encoding/binary"

// ApplyError rewrites p, an ICMP error that quotes a packet of the flow, for
// the endpoint that sent it. in is the quote, as p.Inner gave it, and r the leg
// whose tuple is in.Tuple.Reverse(): the direction in which the error itself
// travels. The quote goes the other way, so the leg acts on it with source and
// destination exchanged. The outer destination becomes the leg's; the outer
// source only if the quoted destination itself sent the error: a router on
// the way keeps its address, which is what traceroute shows (RFC 5508, 4.2).
//
// A quote is cut short: of its transport header only what is there is changed,
// and an SCTP checksum stays as it was (RFC 5508, 4.2: the receiver does not
// look at it).
func (r *Rewrite) ApplyError(p, in *Packet) {
	eth := p.Frame.Eth()
	r.applyMACs(eth)
	if r.DecTTL {
		decTTL(p, eth)
	}
	if !r.Translates() {
		return
	}
	// Everything that changes within the ICMP message lies in the quote's
	// headers; their sums before and after are what its checksum changes by.
	// The quote starts at an even offset.
	end := min(in.L4+tcpLen, in.End)
	before := sum(0, eth[in.L3:end])
	r.applyQuote(in, eth)
	delta := add(^before, sum(0, eth[in.L3:end]))

	src := p.Src
	if p.Src == in.Dst {
		src = r.src
	}
	outer := NewRewrite(
		Tuple{Src: p.Src, Dst: p.Dst, Proto: p.Proto},
		Tuple{Src: src, Dst: r.dst, Proto: p.Proto},
	)
	if outer.ops&opAddr != 0 {
		outer.applyAddrs(eth[p.L3:])
	}
	if p.Proto == ICMPv6 {
		delta = add(delta, outer.addrDelta)
	}
	updateFull(eth[p.L4+2:], delta)
}

// applyQuote applies the reversed leg to the quote.
func (r *Rewrite) applyQuote(in *Packet, eth []byte) {
	rev := *r
	rev.src, rev.dst = r.dst, r.src
	rev.srcPort, rev.dstPort = r.dstPort, r.srcPort
	if r.ops&opAddr != 0 {
		rev.applyAddrs(eth[in.L3:])
	}
	h := eth[in.L4:in.End]
	at := checksumOffset(r.proto)
	if in.Frag.Offset != 0 || at < 0 || len(h) < 8 {
		return
	}
	switch r.proto {
	case ICMP, ICMPv6:
		rev.applyEcho(in, h)
		return
	default:
		rev.applyPorts(h)
	}
	if len(h) < at+2 {
		return
	}
	switch r.proto {
	case TCP:
		updateFull(h[at:], r.fullDelta)
	case UDP, UDPLite:
		updateUDP(h[at:], r.fullDelta)
	}
}

// quoteTuple sets the ports of a quoted transport header, of which 8 bytes must
// be there (RFC 792).
func (p *Packet) quoteTuple(b []byte) Fault {
	h := b[p.L4:p.End]
	p.Payload = p.L4
	if p.LaterFragment() {
		return OK
	}
	if len(h) < 8 {
		return BadQuote
	}
	switch p.Proto {
	case TCP, UDP, UDPLite, SCTP:
		p.SrcPort = binary.BigEndian.Uint16(h)
		p.DstPort = binary.BigEndian.Uint16(h[2:])
	case ICMP, ICMPv6:
		if (p.Proto == ICMP) != (p.EtherType == EtherIPv4) {
			return BadQuote
		}
		p.decodeICMP(h)
	}
	return OK
}
