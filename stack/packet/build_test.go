package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// The test's own arithmetic: 16 bits at a time, from scratch.

func naiveSum(s uint32, b []byte) uint32 {
	for i, c := range b {
		if i&1 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
		s = s&0xffff + s>>16
	}
	return s
}

func naivePseudo(t Tuple, length int) uint32 {
	src, dst := t.Src.Netip().AsSlice(), t.Dst.Netip().AsSlice()
	s := naiveSum(naiveSum(0, src), dst) + uint32(t.Proto) + uint32(length)
	return s&0xffff + s>>16
}

// naiveChecksum is the transport checksum of seg, whose field must be 0.
func naiveChecksum(t Tuple, seg []byte) uint16 {
	s := uint32(0)
	if t.Proto != ICMP {
		s = naivePseudo(t, len(seg))
	}
	c := ^uint16(naiveSum(s, seg))
	if c == 0 && (t.Proto == UDP || t.Proto == UDPLite) {
		c = 0xffff
	}
	return c
}

var (
	macA = MAC{0x0a, 0x58, 10, 244, 0, 5}
	macB = MAC{0x0a, 0x58, 10, 244, 0, 9}
)

func addr(s string) Addr { return AddrFrom(netip.MustParseAddr(s)) }

func tuple(proto Proto, src, dst string) Tuple {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return Tuple{AddrFrom(s.Addr()), AddrFrom(d.Addr()), s.Port(), d.Port(), proto}
}

// segment is a transport segment of t, finished. For ICMP it is an echo.
func segment(t Tuple, payload []byte) []byte {
	n := headerLen(t.Proto)
	b := make([]byte, n, n+len(payload))
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b, t.SrcPort)
	binary.BigEndian.PutUint16(b[2:], t.DstPort)
	switch t.Proto {
	case TCP:
		b[12], b[13] = 5<<4, ACK
	case UDP, UDPLite:
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	case ICMP, ICMPv6:
		clear(b[:8])
		b[0] = map[bool]byte{true: ICMPEcho, false: ICMPEchoReply}[t.DstPort == 0]
		if t.Proto == ICMPv6 {
			b[0] = map[bool]byte{true: ICMPv6Echo, false: ICMPv6EchoReply}[t.DstPort == 0]
		}
		binary.BigEndian.PutUint16(b[4:], t.SrcPort|t.DstPort)
	case SCTP:
		binary.LittleEndian.PutUint32(b[8:], SCTPChecksum(b))
		return b
	}
	binary.BigEndian.PutUint16(b[checksumOffset(t.Proto):], naiveChecksum(t, b))
	return b
}

// wrap puts the segment or message seg of t into a frame.
func wrap(t Tuple, seg []byte) Frame {
	f, b := newIP(make([]byte, 65535+ethLen+VnetHdrLen+ip6Len), macA, macB, t, 64, len(seg))
	copy(b, seg)
	return f
}

// full is a finished frame of t.
func full(t Tuple, payload string) Frame { return wrap(t, segment(t, []byte(payload))) }

// partial is a frame of t whose transport checksum is left to be finished.
func partial(t Tuple, payload string) Frame {
	f := full(t, payload)
	p := must(f)
	at := checksumOffset(t.Proto)
	f.SetVnet(VnetHdr{Flags: NeedsCsum, CsumStart: uint16(p.L4), CsumOffset: uint16(at)})
	binary.BigEndian.PutUint16(f.Eth()[p.L4+at:], uint16(naivePseudo(t, p.End-p.L4)))
	return f
}

// gso is a super-frame of t with payload of n bytes in segments of size.
func gso(t Tuple, n, size int) Frame {
	f := partial(t, string(make([]byte, n)))
	h := f.Vnet()
	switch {
	case t.Proto == UDP:
		h.GSOType = GSOUDPL4
	case t.Src.Is4():
		h.GSOType = GSOTCP4
	default:
		h.GSOType = GSOTCP6
	}
	h.GSOSize = uint16(size)
	f.SetVnet(h)
	return f
}

// fragment4 makes f, of IPv4, the piece at offset bytes.
func fragment4(f Frame, id uint16, offset int, more bool) Frame {
	h := f.Eth()[ethLen:]
	binary.BigEndian.PutUint16(h[4:], id)
	at := uint16(offset >> 3)
	if more {
		at |= 0x2000
	}
	binary.BigEndian.PutUint16(h[6:], at)
	return fixIP(f)
}

// fixIP makes an IPv4 header's checksum right again.
func fixIP(f Frame) Frame {
	h := f.Eth()[ethLen:]
	h[10], h[11] = 0, 0
	n := int(h[0]&0xf) << 2
	binary.BigEndian.PutUint16(h[10:], ^uint16(naiveSum(0, h[:min(n, len(h))])))
	return f
}

// wrap6 is an IPv6 frame of t with extension headers exts, each whole but for
// its next header, the first of which is kinds[0].
func wrap6(t Tuple, kinds []byte, exts [][]byte, seg []byte) Frame {
	var b []byte
	for i, e := range exts {
		e = append([]byte(nil), e...)
		e[0] = byte(t.Proto)
		if i+1 < len(kinds) {
			e[0] = kinds[i+1]
		}
		b = append(b, e...)
	}
	f := wrap(t, append(b, seg...))
	if len(kinds) > 0 {
		f.Eth()[ethLen+6] = kinds[0]
	}
	return f
}

// fragHdr is an IPv6 fragment header.
func fragHdr(id uint32, offset int, more bool) []byte {
	b := make([]byte, 8)
	at := uint16(offset)
	if more {
		at |= 1
	}
	binary.BigEndian.PutUint16(b[2:], at)
	binary.BigEndian.PutUint32(b[4:], id)
	return b
}

// must decodes f, which is fine.
func must(f Frame) *Packet {
	p := new(Packet)
	if fault := Decode(p, f); fault != OK {
		panic("test frame does not decode: " + fault.String())
	}
	return p
}

// checkSums fails unless every checksum of f is what it is from scratch.
func checkSums(t testing.TB, f Frame) {
	t.Helper()
	p := new(Packet)
	if fault := Decode(p, f); fault != OK { // the IPv4 header's is among it
		t.Fatalf("frame does not decode: %v", fault)
	}
	if p.Fragment() {
		return
	}
	at := checksumOffset(p.Proto)
	if at < 0 {
		return
	}
	seg := append([]byte(nil), p.Frame.Eth()[p.L4:p.End]...)
	if p.Proto == SCTP {
		if got, want := binary.LittleEndian.Uint32(seg[8:]), SCTPChecksum(seg); got != want && !p.Partial {
			t.Errorf("SCTP checksum %#08x, want %#08x", got, want)
		}
		return
	}
	got := binary.BigEndian.Uint16(seg[at:])
	seg[at], seg[at+1] = 0, 0
	want := naiveChecksum(p.Tuple, seg)
	switch {
	case p.Partial:
		want = uint16(naivePseudo(p.Tuple, len(seg)))
	case got == 0 && (p.Proto == UDP || p.Proto == UDPLite):
		return
	case p.Proto == ICMP && got|want == 0xffff && got&want == 0:
		return // the two zeros of ones' complement
	}
	if got != want {
		t.Errorf("%v checksum %#04x, want %#04x (partial %v)", p.Proto, got, want, p.Partial)
	}
}
