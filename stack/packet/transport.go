package packet

import "encoding/binary"

// decodeTransport sets ports, flags and Payload from the header at p.L4, and
// proves the fragment fields.
func (p *Packet) decodeTransport(b []byte) Fault {
	b = b[:p.End]
	if p.Fragment() {
		if fault := p.checkFragment(); fault != OK {
			return fault
		}
		if p.LaterFragment() {
			p.Payload = p.L4
			return OK
		}
	}
	h := b[p.L4:]
	if len(h) < headerLen(p.Proto) {
		if p.Frag.More {
			return TinyFragment
		}
		return ShortTransport
	}
	switch p.Proto {
	case TCP:
		return p.decodeTCP(h)
	case UDP, UDPLite:
		return p.decodeUDP(h)
	case SCTP:
		p.Payload = p.L4 + sctpLen
		p.SrcPort = binary.BigEndian.Uint16(h)
		p.DstPort = binary.BigEndian.Uint16(h[2:])
		if p.SrcPort == 0 || p.DstPort == 0 {
			return PortZero
		}
	case ICMP, ICMPv6:
		if (p.Proto == ICMP) != (p.EtherType == EtherIPv4) {
			return WrongFamily
		}
		p.decodeICMP(h)
		if p.Proto == ICMP && p.ICMPType == ICMPRedirect || p.Proto == ICMPv6 && p.ICMPType == ICMPv6Redirect {
			return Redirect
		}
	default:
		p.Payload = p.L4
	}
	return OK
}

// headerLen is the least length of a transport header.
func headerLen(proto Proto) int {
	switch proto {
	case TCP:
		return tcpLen
	case UDP, UDPLite, ICMP, ICMPv6:
		return udpLen
	case SCTP:
		return sctpLen
	}
	return 0
}

// checksumOffset is where in a transport header its checksum is, or -1 if the
// protocol has none that is known here.
func checksumOffset(proto Proto) int {
	switch proto {
	case TCP:
		return 16
	case UDP, UDPLite:
		return 6
	case SCTP:
		return 8
	case ICMP, ICMPv6:
		return 2
	}
	return -1
}

// checkFragment refuses fragments that cannot be put together or that are made
// to slip past a filter. A later fragment that starts within the transport
// header would overwrite what was judged (RFC 1858, 4.2; RFC 3128).
func (p *Packet) checkFragment() Fault {
	n := p.End - p.L4
	whole := p.L4 - p.L3 + int(p.Frag.Offset) + n
	if p.EtherType == EtherIPv6 {
		whole -= ip6Len + 8 // the length field counts neither (RFC 8200, 4.5)
	}
	if whole > 65535 || p.Frag.More && n&7 != 0 {
		return BadFragment
	}
	if n == 0 {
		if p.LaterFragment() {
			return BadFragment
		}
		return TinyFragment
	}
	if p.LaterFragment() && int(p.Frag.Offset) < headerLen(p.Proto) {
		return TinyFragment
	}
	return OK
}

func (p *Packet) decodeTCP(h []byte) Fault {
	n := int(h[12]>>4) << 2
	if n < tcpLen {
		return BadTCPHeader
	}
	if n > len(h) {
		if p.Frag.More {
			return TinyFragment
		}
		return BadTCPHeader
	}
	p.Payload = p.L4 + n
	p.SrcPort = binary.BigEndian.Uint16(h)
	p.DstPort = binary.BigEndian.Uint16(h[2:])
	p.TCPFlags = h[13]
	// PSH, ECE and CWR go with anything, URG with what has SYN or ACK.
	switch h[13] &^ (PSH | ECE | CWR) {
	case SYN, SYN | URG, SYN | ACK, RST, RST | ACK, ACK, ACK | URG, FIN | ACK, FIN | ACK | URG:
	default:
		return BadTCPFlags
	}
	if p.SrcPort == 0 || p.DstPort == 0 {
		return PortZero
	}
	return OK
}

func (p *Packet) decodeUDP(h []byte) Fault {
	p.Payload = p.L4 + udpLen
	p.SrcPort = binary.BigEndian.Uint16(h)
	p.DstPort = binary.BigEndian.Uint16(h[2:])
	n := int(binary.BigEndian.Uint16(h[4:]))
	// The length of UDP-Lite is its checksum's coverage, 0 meaning all. A
	// first fragment's length is that of the whole datagram.
	if n < udpLen && !(p.Proto == UDPLite && n == 0) || n > len(h) && !p.Frag.More {
		return BadUDPLength
	}
	if p.DstPort == 0 {
		return PortZero
	}
	return OK
}

func (p *Packet) decodeICMP(h []byte) {
	p.Payload = p.L4 + icmpLen
	p.ICMPType, p.ICMPCode = h[0], h[1]
	switch {
	case p.EchoRequest():
		p.SrcPort = binary.BigEndian.Uint16(h[4:])
	case p.EchoReply():
		p.DstPort = binary.BigEndian.Uint16(h[4:])
	}
}
