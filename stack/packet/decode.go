package packet

import "encoding/binary"

// Theory of operation. Decode walks a frame once, from the outside in, and
// proves every length on the way: the Ethernet header, the IP header against
// the frame, the extension headers against the IP length, the transport header
// against what remains, the offload fields against all of them. What it leaves
// in the Packet are offsets that later code may index with, and the tuple in
// one shape for both families. Nobody looks at raw bytes before Decode said OK.
//
// Padding that Ethernet appends to short frames lies after Packet.End: it is
// carried along and never read.

// EtherTypes that Decode accepts.
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherIPv6 = 0x86dd
)

// Header lengths in bytes.
const (
	ethLen  = 14
	ip4Len  = 20
	ip6Len  = 40
	tcpLen  = 20
	udpLen  = 8
	icmpLen = 8
	sctpLen = 12
	arpLen  = 28
)

// IPv6 next header values that belong to the chain and not to a payload. AH
// and everything unknown end the chain and have no ports.
const (
	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extDestOpts = 60

	maxExtensions = 8
)

// Flags of Packet.TCPFlags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Packet is a decoded frame: offsets into Frame.Eth() that are proved to lie
// within it, and the fields that decisions need. It borrows the frame.
type Packet struct {
	Frame Frame
	Tuple
	// EtherType is EtherIPv4, EtherIPv6 or EtherARP; of ARP only Frame, L3 and
	// End are set besides.
	EtherType uint16
	// L3 is where the IP or ARP header starts, L4 the transport header (of a
	// later fragment: its data), Payload what the transport carries, and End
	// is one past the packet's last byte by its own length fields.
	L3, L4, Payload, End int
	// GSOSize is the payload of one segment of a super-frame, else 0.
	GSOSize uint16
	// TTL is the hop limit as it arrived.
	TTL uint8
	// TCPFlags is 0 unless Proto is TCP and this is not a later fragment;
	// ICMPType and ICMPCode likewise.
	TCPFlags           uint8
	ICMPType, ICMPCode uint8
	// Partial says that the transport checksum is unfinished (NeedsCsum).
	Partial bool
	Frag    Frag
}

// Frag is a packet's place in a fragmented datagram; a packet that is whole has
// Offset 0 and not More.
type Frag struct {
	ID uint32
	// Offset is in bytes.
	Offset uint16
	// Total is the length of the whole datagram's data in bytes, 0 as long as
	// nobody knows: Decode never does.
	Total uint16
	More  bool
}

// FragKey names a datagram in fragments. IPv6 does without the protocol, which
// later fragments need not repeat (RFC 8200, 4.5).
type FragKey struct {
	Src, Dst Addr
	ID       uint32
	Proto    Proto
}

// FragKey is the datagram that the fragment p belongs to.
func (p *Packet) FragKey() FragKey {
	k := FragKey{Src: p.Src, Dst: p.Dst, ID: p.Frag.ID}
	if p.EtherType == EtherIPv4 {
		k.Proto = p.Proto
	}
	return k
}

// Fragment says whether p is a part of a datagram. An IPv6 packet with a
// fragment header that holds it all is not (RFC 6946).
func (p *Packet) Fragment() bool { return p.Frag.More || p.Frag.Offset != 0 }

// LaterFragment says whether p is a fragment without the transport header.
func (p *Packet) LaterFragment() bool { return p.Frag.Offset != 0 }

// DstMAC is the frame's Ethernet destination.
func (p *Packet) DstMAC() MAC { return MAC(p.Frame[VnetHdrLen:]) }

// SrcMAC is the frame's Ethernet source.
func (p *Packet) SrcMAC() MAC { return MAC(p.Frame[VnetHdrLen+6:]) }

// Len is the length of the IP packet in bytes, padding not counted.
func (p *Packet) Len() int { return p.End - p.L3 }

// SegmentLen is the length in bytes of the longest IP packet that p becomes on
// a wire: what is compared with an MTU. Of a super-frame it is the headers and
// one segment.
func (p *Packet) SegmentLen() int {
	if n := p.Payload - p.L3 + int(p.GSOSize); p.GSOSize != 0 && n < p.Len() {
		return n
	}
	return p.Len()
}

// ECN is the codepoint of explicit congestion notification in the IP header (RFC
// 3168, 5): 0 for a packet that does not take part.
func (p *Packet) ECN() uint8 {
	h := p.Frame.Eth()[p.L3:]
	if p.EtherType == EtherIPv6 {
		return h[1] >> 4 & 3
	}
	return h[1] & 3
}

// DontFragment says whether a packet over the MTU must be answered with an
// error and not be fragmented: always in IPv6, by the flag in IPv4.
func (p *Packet) DontFragment() bool {
	return p.EtherType == EtherIPv6 || p.Frame.Eth()[p.L3+6]&0x40 != 0
}

// TransportPayload is what the transport carries, borrowed from the frame.
func (p *Packet) TransportPayload() []byte { return p.Frame.Eth()[p.Payload:p.End] }

// Decode fills p from f, which it borrows. Unless it returns OK the contents of
// p mean nothing.
func Decode(p *Packet, f Frame) Fault {
	*p = Packet{}
	p.Frame = f
	if len(f) < VnetHdrLen+ethLen {
		return ShortFrame
	}
	eth := f[VnetHdrLen:]
	if eth[6]&1 != 0 {
		return GroupSourceMAC
	}
	p.L3 = ethLen
	p.EtherType = binary.BigEndian.Uint16(eth[12:])
	var fault Fault
	switch p.EtherType {
	case EtherIPv4:
		fault = p.decodeIPv4(eth, false)
	case EtherIPv6:
		fault = p.decodeIPv6(eth, false)
	case EtherARP:
		if len(eth) < ethLen+arpLen {
			return BadARP
		}
		if f[0]&NeedsCsum|f[1] != 0 { // nothing in it can be offloaded
			return BadVnetHdr
		}
		p.L4, p.Payload, p.End = ethLen+arpLen, ethLen+arpLen, ethLen+arpLen
		return OK
	case 0x8100, 0x88a8, 0x9100:
		return VLANTag
	default:
		return UnknownEtherType
	}
	if fault != OK {
		return fault
	}
	if fault = p.decodeTransport(eth); fault != OK {
		return fault
	}
	if p.SrcPort == p.DstPort && p.Src == p.Dst {
		return Land
	}
	if f[0]&NeedsCsum|f[1] != 0 {
		return p.checkVnet()
	}
	return OK
}

// decodeIPv4 sets what the header at p.L3 says. A quote (of an ICMP error) may
// be shorter than its total length and have any header checksum.
func (p *Packet) decodeIPv4(b []byte, quote bool) Fault {
	if len(b)-p.L3 < ip4Len {
		return ShortIP
	}
	h := b[p.L3:]
	if h[0]>>4 != 4 {
		return BadVersion
	}
	n := int(h[0]&0xf) << 2
	if n < ip4Len {
		return BadIHL
	}
	if n > len(h) {
		return ShortIP
	}
	total := int(binary.BigEndian.Uint16(h[2:]))
	p.End = p.L3 + total
	if total < n {
		return LyingLength
	}
	if p.End > len(b) {
		if !quote {
			return LyingLength
		}
		p.End = len(b)
	}
	if !quote {
		if n == ip4Len {
			if sum20(h) != 0xffff {
				return BadHeaderChecksum
			}
		} else if fault := checkOptions(h[:n]); fault != OK {
			return fault
		}
	}
	p.L4 = p.L3 + n
	p.TTL = h[8]
	p.Proto = Proto(h[9])
	src, dst := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
	put4(&p.Src, src)
	put4(&p.Dst, dst)
	if frag := binary.BigEndian.Uint16(h[6:]); frag&0x3fff != 0 {
		p.Frag = Frag{
			ID:     uint32(binary.BigEndian.Uint16(h[4:])),
			Offset: frag & 0x1fff << 3,
			More:   frag&0x2000 != 0,
		}
	}
	if quote {
		return OK
	}
	return martian4(src, dst)
}

// put4 writes the v4-mapped form of v into a, which is zero.
func put4(a *Addr, v uint32) {
	binary.BigEndian.PutUint64(a[8:], 0xffff<<32|uint64(v))
}

// checkOptions proves an IPv4 header with options.
func checkOptions(h []byte) Fault {
	if sum(0, h) != 0xffff {
		return BadHeaderChecksum
	}
	for o := h[ip4Len:]; len(o) > 0; {
		switch o[0] {
		case 0: // end of list
			return OK
		case 1: // no operation
			o = o[1:]
			continue
		case 131, 137: // LSRR, SSRR
			return SourceRoute
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return BadOption
		}
		o = o[o[1]:]
	}
	return OK
}

// decodeIPv6 is decodeIPv4 for the other family, extension headers included.
func (p *Packet) decodeIPv6(b []byte, quote bool) Fault {
	if len(b)-p.L3 < ip6Len {
		return ShortIP
	}
	h := b[p.L3:]
	if h[0]>>4 != 6 {
		return BadVersion
	}
	length := int(binary.BigEndian.Uint16(h[4:]))
	p.End = p.L3 + ip6Len + length
	if p.End > len(b) {
		if !quote {
			return LyingLength
		}
		p.End = len(b)
	}
	if length == 0 && h[6] == extHopByHop {
		return Jumbogram
	}
	p.TTL = h[7]
	p.Src = Addr(h[8:])
	p.Dst = Addr(h[24:])
	// A v4-mapped address in IPv6 would be taken for the IPv4 one.
	if p.Src.Is4() {
		return MartianSource
	}
	if p.Dst.Is4() {
		return MartianDestination
	}
	if !quote {
		if fault := martian6(&p.Src, &p.Dst); fault != OK {
			return fault
		}
	}
	p.L4 = p.L3 + ip6Len
	p.Proto = Proto(h[6])
	switch p.Proto {
	case TCP, UDP, ICMPv6:
		return OK
	}
	return p.extensions(b[:p.End])
}

// extensions walks the chain of headers from p.L4 on to the transport header
// (RFC 8200, 4.1).
func (p *Packet) extensions(b []byte) Fault {
	fragmented := false
	for range maxExtensions {
		h := b[p.L4:]
		switch p.Proto {
		case extHopByHop, extRouting, extDestOpts, extFragment:
		default:
			return OK
		}
		if len(h) < 8 {
			return p.cutShort()
		}
		n := (int(h[1]) + 1) << 3
		switch p.Proto {
		case extHopByHop:
			if p.L4 != p.L3+ip6Len {
				return BadExtension
			}
		case extRouting:
			if h[2] == 0 || h[3] != 0 {
				return SourceRoute
			}
		case extFragment:
			if fragmented {
				return BadExtension
			}
			fragmented, n = true, 8
			at := binary.BigEndian.Uint16(h[2:])
			p.Frag = Frag{
				ID:     binary.BigEndian.Uint32(h[4:]),
				Offset: at &^ 7,
				More:   at&1 != 0,
			}
		}
		if n > len(h) {
			return p.cutShort()
		}
		p.Proto = Proto(h[0])
		p.L4 += n
		if p.Frag.Offset != 0 {
			return OK
		}
	}
	return BadExtension
}

// cutShort is the fault of a chain that the packet does not hold: the first
// fragment must have it all (RFC 7112).
func (p *Packet) cutShort() Fault {
	if p.Frag.More {
		return TinyFragment
	}
	return BadExtension
}

// martian4 refuses addresses that have no place on a wire (RFC 1812, 5.3.7).
// 240.0.0.0/4 is let through: clusters do use it.
func martian4(src, dst uint32) Fault {
	const broadcast = 1<<32 - 1
	switch {
	case dst>>24 == 0 || dst>>24 == 127:
		return MartianDestination
	case src == 0 && (dst>>28 == 14 || dst == broadcast): // DHCP
		return OK
	case src>>24 == 0 || src>>24 == 127 || src>>28 == 14 || src == broadcast:
		return MartianSource
	}
	return OK
}

// martian6 is martian4 for the other family (RFC 4291, 2.5).
func martian6(src, dst *Addr) Fault {
	switch {
	case dst[0] == 0 && (*dst == Addr{} || *dst == Addr{15: 1}):
		return MartianDestination
	case src[0] == 0xff || src[0] == 0 && *src == Addr{15: 1}:
		return MartianSource
	case src[0] == 0 && *src == Addr{} && dst[0] != 0xff: // else it looks for a duplicate
		return MartianSource
	}
	return OK
}
