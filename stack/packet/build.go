package packet

import "encoding/binary"

// MaxBuilt is the length in bytes of the longest Frame that a Build function
// makes, BuildEchoReply excepted.
const MaxBuilt = VnetHdrLen + ethLen + maxError6

// newIP starts a frame in buf: Ethernet and IP headers for t, with n bytes of
// IP payload, which are returned too, zeroed.
func newIP(buf []byte, src, dst MAC, t Tuple, ttl uint8, n int) (Frame, []byte) {
	hdr := ip6Len
	if t.Src.Is4() {
		hdr = ip4Len
	}
	f := newFrame(buf, ethLen+hdr+n)
	eth := f.Eth()
	clear(eth)
	*(*MAC)(eth) = dst
	*(*MAC)(eth[6:]) = src
	h := eth[ethLen:]
	if hdr == ip6Len {
		binary.BigEndian.PutUint16(eth[12:], EtherIPv6)
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[4:], uint16(n))
		h[6] = uint8(t.Proto)
		h[7] = ttl
		*(*Addr)(h[8:]) = t.Src
		*(*Addr)(h[24:]) = t.Dst
		return f, h[ip6Len:]
	}
	binary.BigEndian.PutUint16(eth[12:], EtherIPv4)
	h[0] = 4<<4 | ip4Len>>2
	binary.BigEndian.PutUint16(h[2:], uint16(ip4Len+n))
	h[8] = ttl
	h[9] = uint8(t.Proto)
	copy(h[12:], t.Src[12:])
	copy(h[16:], t.Dst[12:])
	binary.BigEndian.PutUint16(h[10:], Checksum(h[:ip4Len]))
	return f, h[ip4Len:]
}

// finishICMP sets the checksum of the message b.
func finishICMP(t *Tuple, b []byte) {
	b[2], b[3] = 0, 0
	var s uint16
	if t.Proto == ICMPv6 {
		s = pseudo(&t.Src, &t.Dst, ICMPv6, len(b))
	}
	binary.BigEndian.PutUint16(b[2:], ^sum(s, b))
}

// BuildAbort builds the reset that ends the conversation of p, a TCP segment, for
// its receiver, who knows it as t: where p is, with its acknowledgment. nil if
// none may be sent.
func BuildAbort(buf []byte, p *Packet, t Tuple) Frame {
	if p.Proto != TCP || p.TCPFlags&RST != 0 || p.Fragment() || !p.MayAnswer() {
		return nil
	}
	f, b := newIP(buf, p.SrcMAC(), p.DstMAC(), t, 64, tcpLen)
	binary.BigEndian.PutUint16(b, t.SrcPort)
	binary.BigEndian.PutUint16(b[2:], t.DstPort)
	copy(b[4:12], p.Frame.Eth()[p.L4+4:p.L4+12])
	b[12] = tcpLen >> 2 << 4
	b[13] = RST | p.TCPFlags&ACK
	binary.BigEndian.PutUint16(b[16:], ^sum(pseudo(&t.Src, &t.Dst, TCP, tcpLen), b))
	return f
}

// BuildProbe writes into buf a segment of the conversation t with the sender of p,
// a reset that answered a segment with an acknowledgment. It acknowledges what that
// one did, from sequence number 0, which is hardly ever within a window: whoever has
// the conversation says where it is, everybody else resets (RFC 9293, 3.10.7.4).
// buf is at least MaxBuilt bytes and does not overlap p's frame.
func BuildProbe(buf []byte, p *Packet, t Tuple) Frame {
	f, b := newIP(buf, p.DstMAC(), p.SrcMAC(), t, 64, tcpLen)
	binary.BigEndian.PutUint16(b, t.SrcPort)
	binary.BigEndian.PutUint16(b[2:], t.DstPort)
	copy(b[8:12], p.Frame.Eth()[p.L4+4:p.L4+8])
	b[12] = tcpLen >> 2 << 4
	b[13] = ACK
	binary.BigEndian.PutUint16(b[16:], ^sum(pseudo(&t.Src, &t.Dst, TCP, tcpLen), b))
	return f
}

// BuildRST writes into buf the reset that a closed port answers p with
// (RFC 9293, 3.10.7.1) and returns it, or nil if none may be sent: p is no TCP,
// a reset itself, a fragment, or forbidden by MayAnswer. It comes from p's
// destination. buf is at least MaxBuilt bytes and does not overlap p's frame.
func BuildRST(buf []byte, p *Packet) Frame {
	if p.Proto != TCP || p.TCPFlags&RST != 0 || p.Fragment() || !p.MayAnswer() {
		return nil
	}
	t := p.Tuple.Reverse()
	f, b := newIP(buf, p.DstMAC(), p.SrcMAC(), t, 64, tcpLen)
	h := p.Frame.Eth()[p.L4:]
	binary.BigEndian.PutUint16(b, t.SrcPort)
	binary.BigEndian.PutUint16(b[2:], t.DstPort)
	b[12] = tcpLen >> 2 << 4
	if p.TCPFlags&ACK != 0 {
		copy(b[4:8], h[8:12]) // SEQ = SEG.ACK
		b[13] = RST
	} else {
		n := uint32(p.End - p.Payload) // SEG.LEN counts SYN and FIN
		if p.TCPFlags&SYN != 0 {
			n++
		}
		if p.TCPFlags&FIN != 0 {
			n++
		}
		binary.BigEndian.PutUint32(b[8:], binary.BigEndian.Uint32(h[4:])+n)
		b[13] = RST | ACK
	}
	binary.BigEndian.PutUint16(b[16:], ^sum(pseudo(&t.Src, &t.Dst, TCP, tcpLen), b))
	return f
}
