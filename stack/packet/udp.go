package packet

import "encoding/binary"

// UDPData is what the datagram p carries, or nil if p is no whole one that is
// intact: another protocol, a fragment, a super-frame, a wrong length or checksum.
func (p *Packet) UDPData() []byte {
	if p.Proto != UDP || p.Fragment() || p.GSOSize != 0 || p.End-p.L4 < udpLen {
		return nil
	}
	b := p.Frame.Eth()[p.L4:p.End]
	if int(binary.BigEndian.Uint16(b[4:])) != len(b) {
		return nil
	}
	if sum := binary.BigEndian.Uint16(b[6:]); !p.Partial && p.Frame.Vnet().Flags&DataValid == 0 {
		if sum == 0 && p.EtherType == EtherIPv6 || sum != 0 && sum != p.TransportChecksum() {
			return nil
		}
	}
	return b[udpLen:]
}

// BuildUDPReply writes into buf the datagram with data that answers p, from p's
// destination to its source. buf has room for the headers (MaxBuilt without the
// data is enough) and overlaps neither p's frame nor data.
func BuildUDPReply(buf []byte, p *Packet, data []byte) Frame {
	return BuildUDP(buf, p.DstMAC(), p.SrcMAC(), p.Tuple.Reverse(), data)
}

// BuildUDP writes into buf a datagram with data. buf is as for BuildUDPReply.
func BuildUDP(buf []byte, src, dst MAC, t Tuple, data []byte) Frame {
	f, b := newIP(buf, src, dst, t, 64, udpLen+len(data))
	binary.BigEndian.PutUint16(b, t.SrcPort)
	binary.BigEndian.PutUint16(b[2:], t.DstPort)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	copy(b[udpLen:], data)
	c := ^sum(pseudo(&t.Src, &t.Dst, UDP, len(b)), b)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], c)
	return f
}
