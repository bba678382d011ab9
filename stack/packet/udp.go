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

// AppendUDP adds a datagram with data to f, which BuildUDP made or AppendUDP
// returned, and returns the super-frame of all of them, in f's memory (UDP
// segmentation offload). All datagrams of one are as long as the first, but for
// the last, which may be shorter. It returns nil, and leaves f, if data does not
// fit so, or not within f's capacity.
func AppendUDP(f Frame, data []byte) Frame {
	eth, hdr := f.Eth(), ip6Len
	if binary.BigEndian.Uint16(eth[12:]) == EtherIPv4 {
		hdr = ip4Len
	}
	l4 := ethLen + hdr
	h, have := f.Vnet(), len(eth)-l4-udpLen
	size := int(h.GSOSize)
	if h.GSOType == GSONone {
		size = have
	}
	if len(data) == 0 || len(data) > size || have%size != 0 || have/size >= maxUDPSegments ||
		len(data) > cap(f)-len(f) || len(eth)+len(data) > ethLen+65535 {
		return nil
	}
	f = append(f, data...)
	f.SetVnet(VnetHdr{
		Flags: NeedsCsum, GSOType: GSOUDPL4, GSOSize: uint16(size),
		HdrLen: uint16(l4 + udpLen), CsumStart: uint16(l4), CsumOffset: 6,
	})
	eth = f.Eth()
	ip, b := eth[ethLen:l4], eth[l4:]
	var s uint16
	if hdr == ip4Len {
		binary.BigEndian.PutUint16(ip[2:], uint16(ip4Len+len(b)))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
		s = sum(0, ip[12:])
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(b)))
		s = sum(0, ip[8:])
	}
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], add(add(s, uint16(UDP)), uint16(len(b))))
	return f
}
