package packet

import "encoding/binary"

// ICMP types and codes that the data plane sends or looks at.
const (
	ICMPEchoReply    = 0
	ICMPUnreachable  = 3
	ICMPRedirect     = 5
	ICMPEcho         = 8
	ICMPTimeExceeded = 11
	ICMPParameter    = 12

	ICMPNetUnreachable     = 0 // codes of ICMPUnreachable
	ICMPHostUnreachable    = 1
	ICMPPortUnreachable    = 3
	ICMPFragmentationNeeds = 4
	ICMPAdminProhibited    = 13

	ICMPv6Unreachable  = 1
	ICMPv6TooBig       = 2
	ICMPv6TimeExceeded = 3
	ICMPv6Parameter    = 4
	ICMPv6Echo         = 128
	ICMPv6EchoReply    = 129
	ICMPv6MLDQuery     = 130
	ICMPv6MLDDone      = 132
	ICMPv6RS           = 133
	ICMPv6RA           = 134
	ICMPv6NS           = 135
	ICMPv6NA           = 136
	ICMPv6Redirect     = 137
	ICMPv6MLDv2Report  = 143

	ICMPv6NoRoute            = 0 // codes of ICMPv6Unreachable
	ICMPv6AdminProhibited    = 1
	ICMPv6AddressUnreachable = 3
	ICMPv6PortUnreachable    = 4
)

// Lengths in bytes that an ICMP error is not to exceed, IP header included:
// RFC 1812, 4.3.2.3, and RFC 4443, 2.4 (c).
const (
	maxError4 = 576
	maxError6 = 1280
)

// EchoRequest says whether p is a ping.
func (p *Packet) EchoRequest() bool {
	return p.Proto == ICMP && p.ICMPType == ICMPEcho || p.Proto == ICMPv6 && p.ICMPType == ICMPv6Echo
}

// EchoReply says whether p answers a ping.
func (p *Packet) EchoReply() bool {
	return p.Proto == ICMP && p.ICMPType == ICMPEchoReply && !p.LaterFragment() ||
		p.Proto == ICMPv6 && p.ICMPType == ICMPv6EchoReply
}

// ICMPError says whether p is an ICMP error, which quotes a packet: one that
// belongs to the flow of its quote and has none of its own.
func (p *Packet) ICMPError() bool {
	if p.LaterFragment() {
		return false
	}
	switch p.Proto {
	case ICMP:
		switch p.ICMPType {
		case ICMPUnreachable, 4, ICMPTimeExceeded, ICMPParameter:
			return true
		}
	case ICMPv6:
		return p.ICMPType < ICMPv6Echo
	}
	return false
}

// Inner fills in from the packet that p, an ICMP error, quotes. in borrows p's
// frame: its offsets are into p.Frame.Eth() too, and its End is where the quote
// ends. Ports and the echo identifier are there or the quote is bad.
func (p *Packet) Inner(in *Packet) Fault {
	*in = Packet{Frame: p.Frame, EtherType: p.EtherType, L3: p.Payload}
	if p.Fragment() {
		return BadQuote // what lies past its end is in other fragments
	}
	b := p.Frame.Eth()[:p.End]
	var fault Fault
	if p.EtherType == EtherIPv4 {
		fault = in.decodeIPv4(b, true)
	} else {
		fault = in.decodeIPv6(b, true)
	}
	if fault != OK {
		return BadQuote
	}
	return in.quoteTuple(b)
}

// MayAnswer says whether an ICMP error or a reset may be sent about p
// (RFC 1122, 3.2.2; RFC 1812, 4.3.2.7; RFC 4443, 2.4 (e)): never about ICMP
// errors, redirects and unknown ICMP types, never about multicast or broadcast
// on either layer, never about later fragments, and never to a source that is
// not one host.
func (p *Packet) MayAnswer() bool {
	if p.EtherType == EtherARP || p.LaterFragment() ||
		p.DstMAC().Group() || p.Dst.IsMulticast() || p.Dst.IsBroadcast() ||
		p.Src.IsUnspecified() {
		return false
	}
	switch p.Proto {
	case ICMP:
		switch p.ICMPType {
		case ICMPEchoReply, ICMPEcho, 13, 14, 15, 16, 17, 18:
			return true
		}
		return false
	case ICMPv6:
		return p.ICMPType >= ICMPv6Echo && p.ICMPType != ICMPv6Redirect
	}
	return true
}

// BuildICMPError writes into buf the ICMP error of that type and code about p
// to p's sender, from the address from, and returns it, or nil where MayAnswer
// forbids one. from is of p's family. mtu is what ICMPv6TooBig and
// ICMPFragmentationNeeds tell in bytes, or the pointer of a parameter problem
// in IPv6; else 0. p's own bytes must still be as they arrived. buf is at least
// MaxBuilt bytes and does not overlap p's frame.
func BuildICMPError(buf []byte, p *Packet, from Addr, typ, code uint8, mtu uint32) Frame {
	if !p.MayAnswer() {
		return nil
	}
	quote := p.Frame.Eth()[p.L3:p.End]
	if p.EtherType == EtherIPv4 {
		quote = quote[:min(len(quote), maxError4-ip4Len-icmpLen)]
	} else {
		quote = quote[:min(len(quote), maxError6-ip6Len-icmpLen)]
	}
	t := Tuple{Src: from, Dst: p.Src, Proto: icmpOf(p)}
	f, b := newIP(buf, p.DstMAC(), p.SrcMAC(), t, 64, icmpLen+len(quote))
	b[0], b[1] = typ, code
	// In IPv4 the next-hop MTU is the low half of the word (RFC 1191, 4).
	binary.BigEndian.PutUint32(b[4:], mtu)
	copy(b[icmpLen:], quote)
	finishICMP(&t, b)
	return f
}

// icmpOf is the ICMP of p's family.
func icmpOf(p *Packet) Proto {
	if p.EtherType == EtherIPv4 {
		return ICMP
	}
	return ICMPv6
}

// BuildEchoReply writes into buf the answer to p, which must be an unfragmented
// echo request to a unicast address, and returns it, or nil if p is not one. buf
// is at least as long as p's frame and does not overlap it.
func BuildEchoReply(buf []byte, p *Packet) Frame {
	if !p.EchoRequest() || p.Fragment() || p.Dst.IsMulticast() || p.Dst.IsBroadcast() || p.Src.IsUnspecified() {
		return nil
	}
	t := Tuple{Src: p.Dst, Dst: p.Src, Proto: p.Proto}
	f, b := newIP(buf, p.DstMAC(), p.SrcMAC(), t, 64, p.End-p.L4)
	copy(b, p.Frame.Eth()[p.L4:p.End])
	b[0] = ICMPEchoReply
	if p.Proto == ICMPv6 {
		b[0] = ICMPv6EchoReply
	}
	finishICMP(&t, b)
	return f
}
