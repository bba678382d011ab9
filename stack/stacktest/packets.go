package stacktest

import (
	"encoding/binary"

	"podgate/stack/packet"
)

// Packet describes a frame to be built: a correct one, unless a field says
// otherwise. It is a value; tests change what they want to be wrong.
type Packet struct {
	packet.Tuple
	SrcMAC, DstMAC packet.MAC

	TTL      uint8 // 64 when 0
	TCPFlags uint8 // ACK when 0
	Seq, Ack uint32
	Payload  []byte
	MSS      int    // option of TCP, at an odd byte; 0: none
	Options  []byte // other options of TCP, a multiple of 4 bytes

	ID           uint16 // of the datagram
	DontFragment bool
	ICMPType     uint8 // echo request, or echo reply if only DstPort is set, when 0
	ICMPCode     uint8

	Partial bool // leave the transport checksum to the receiver (NEEDS_CSUM)
	GSOSize int  // make it a super-frame; implies Partial

	NoChecksum bool // UDP over IPv4 without checksum
}

// Frame builds the frame.
func (p Packet) Frame() packet.Frame {
	l4 := p.transport()
	hdr := 40
	if p.Src.Is4() {
		hdr = 20
	}
	f := make(packet.Frame, packet.VnetHdrLen+14+hdr+len(l4))
	p.ip(f, hdr, len(l4))
	copy(f.Eth()[14+hdr:], l4)
	p.finish(f, hdr)
	return f
}

func (p Packet) transport() []byte {
	switch p.Proto {
	case packet.TCP:
		h := make([]byte, 20, 28+len(p.Payload))
		binary.BigEndian.PutUint16(h, p.SrcPort)
		binary.BigEndian.PutUint16(h[2:], p.DstPort)
		binary.BigEndian.PutUint32(h[4:], p.Seq)
		binary.BigEndian.PutUint32(h[8:], p.Ack)
		h[12], h[13] = 5<<4, p.TCPFlags
		if p.TCPFlags == 0 {
			h[13] = packet.ACK
		}
		binary.BigEndian.PutUint16(h[14:], 65535)
		if p.MSS != 0 {
			h[12] = 7 << 4
			h = append(h, 1, 2, 4, byte(p.MSS>>8), byte(p.MSS), 1, 1, 0)
		}
		h[12] += byte(len(p.Options)) << 2
		return append(append(h, p.Options...), p.Payload...)
	case packet.UDP, packet.UDPLite: // of the latter all is covered
		h := make([]byte, 8, 8+len(p.Payload))
		binary.BigEndian.PutUint16(h, p.SrcPort)
		binary.BigEndian.PutUint16(h[2:], p.DstPort)
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(p.Payload)))
		return append(h, p.Payload...)
	case packet.SCTP:
		h := make([]byte, 12, 12+len(p.Payload))
		binary.BigEndian.PutUint16(h, p.SrcPort)
		binary.BigEndian.PutUint16(h[2:], p.DstPort)
		return append(h, p.Payload...)
	case packet.ICMP, packet.ICMPv6:
		h := make([]byte, 8, 8+len(p.Payload))
		h[0], h[1] = p.icmpType(), p.ICMPCode
		binary.BigEndian.PutUint16(h[4:], p.SrcPort|p.DstPort)
		return append(h, p.Payload...)
	}
	return p.Payload
}

func (p Packet) icmpType() uint8 {
	reply := p.DstPort != 0 && p.SrcPort == 0
	switch {
	case p.ICMPType != 0:
		return p.ICMPType
	case p.Proto == packet.ICMP && reply:
		return packet.ICMPEchoReply
	case p.Proto == packet.ICMP:
		return packet.ICMPEcho
	case reply:
		return packet.ICMPv6EchoReply
	}
	return packet.ICMPv6Echo
}

// ip writes the Ethernet and IP headers for n bytes of payload.
func (p Packet) ip(f packet.Frame, hdr, n int) {
	eth := f.Eth()
	copy(eth, p.DstMAC[:])
	copy(eth[6:], p.SrcMAC[:])
	ttl := p.TTL
	if ttl == 0 {
		ttl = 64
	}
	h := eth[14:]
	if hdr == 40 {
		binary.BigEndian.PutUint16(eth[12:], packet.EtherIPv6)
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[4:], uint16(n))
		h[6], h[7] = byte(p.Proto), ttl
		copy(h[8:], p.Src[:])
		copy(h[24:], p.Dst[:])
		return
	}
	binary.BigEndian.PutUint16(eth[12:], packet.EtherIPv4)
	h[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(h[2:], uint16(20+n))
	binary.BigEndian.PutUint16(h[4:], p.ID)
	if p.DontFragment {
		h[6] = 0x40
	}
	h[8], h[9] = ttl, byte(p.Proto)
	copy(h[12:], p.Src[12:])
	copy(h[16:], p.Dst[12:])
	binary.BigEndian.PutUint16(h[10:], packet.Checksum(h[:20]))
}

// finish sets the transport checksum and the vnet header.
func (p Packet) finish(f packet.Frame, hdr int) {
	at := map[packet.Proto]int{packet.TCP: 16, packet.UDP: 6, packet.UDPLite: 6, packet.ICMP: 2, packet.ICMPv6: 2}[p.Proto]
	if at == 0 || p.NoChecksum {
		return
	}
	var d packet.Packet
	if packet.Decode(&d, f) != packet.OK {
		return // it is wrong on purpose
	}
	field := f.Eth()[14+hdr+at:]
	if !p.Partial && p.GSOSize == 0 {
		binary.BigEndian.PutUint16(field, d.TransportChecksum())
		return
	}
	binary.BigEndian.PutUint16(field, d.PseudoSum())
	v := packet.VnetHdr{Flags: packet.NeedsCsum, CsumStart: uint16(14 + hdr), CsumOffset: uint16(at)}
	if p.GSOSize != 0 {
		v.GSOSize, v.HdrLen = uint16(p.GSOSize), uint16(d.Payload)
		switch {
		case p.Proto == packet.UDP:
			v.GSOType = packet.GSOUDPL4
		case hdr == 40:
			v.GSOType = packet.GSOTCP6
		default:
			v.GSOType = packet.GSOTCP4
		}
	}
	f.SetVnet(v)
}

// Fragments cuts a frame without offload into fragments of at most n bytes of
// IP payload, n being a multiple of 8, as a sender's kernel does. What is
// malformed or has offload stays whole.
func Fragments(f packet.Frame, id uint32, n int) []packet.Frame {
	var p packet.Packet
	if packet.Decode(&p, f) != packet.OK || p.EtherType == packet.EtherARP || p.Partial {
		return []packet.Frame{f}
	}
	eth := f.Eth()
	data := eth[p.L4:p.End]
	var out []packet.Frame
	for at := 0; at < len(data); at += n {
		part := data[at:min(at+n, len(data))]
		more := at+n < len(data)
		out = append(out, fragment(eth[:p.L4], part, id, at, more, p.EtherType == packet.EtherIPv6))
	}
	return out
}

func fragment(headers, part []byte, id uint32, at int, more, v6 bool) packet.Frame {
	g := make(packet.Frame, packet.VnetHdrLen, packet.VnetHdrLen+len(headers)+8+len(part))
	g = append(g, headers...)
	h := g.Eth()[14:]
	if !v6 {
		g = append(g, part...)
		h = g.Eth()[14:]
		word := uint16(at / 8)
		if more {
			word |= 0x2000
		}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(part)))
		binary.BigEndian.PutUint16(h[4:], uint16(id))
		binary.BigEndian.PutUint16(h[6:], word)
		h[10], h[11] = 0, 0
		binary.BigEndian.PutUint16(h[10:], packet.Checksum(h[:20]))
		return g
	}
	word := uint16(at)
	if more {
		word |= 1
	}
	ext := make([]byte, 8)
	ext[0] = h[6]
	binary.BigEndian.PutUint16(ext[2:], word)
	binary.BigEndian.PutUint32(ext[4:], id)
	h[6] = 44
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(part)))
	return append(append(g, ext...), part...)
}
