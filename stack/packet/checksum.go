package packet

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// Checksum is the Internet checksum of b (RFC 1071), complemented, as header
// fields hold it.
func Checksum(b []byte) uint16 { return ^sum(0, b) }

// UpdateChecksum is the complemented checksum c after its bytes changed by the
// delta (RFC 1624, equation 3).
func UpdateChecksum(c, delta uint16) uint16 { return ^add(^c, delta) }

// Delta is what a checksum changes by where bytes old become new; both have
// the same even length and start at an even offset.
func Delta(old, new []byte) uint16 { return add(^sum(0, old), sum(0, new)) }

// TransportChecksum is the finished checksum of p's transport segment, computed
// from scratch as though its field were 0. Of UDP and UDP-Lite a 0 is given as
// 0xffff, 0 meaning none. p must be whole and of TCP, UDP, UDP-Lite, ICMP or
// ICMPv6.
func (p *Packet) TransportChecksum() uint16 {
	eth := p.Frame.Eth()
	at := checksumOffset(p.Proto)
	seg := eth[p.L4:p.End]
	covered := seg
	length := len(seg)
	switch p.Proto {
	case UDP:
		length = int(binary.BigEndian.Uint16(seg[4:]))
		covered = seg[:length]
	case UDPLite:
		if n := int(binary.BigEndian.Uint16(seg[4:])); n != 0 {
			covered = seg[:n]
		}
	}
	var s uint16
	if p.Proto != ICMP {
		s = pseudo(&p.Src, &p.Dst, p.Proto, length)
	}
	s = sum(s, covered[:at])
	c := ^sum(s, covered[at+2:])
	if c == 0 && (p.Proto == UDP || p.Proto == UDPLite) {
		c = 0xffff
	}
	return c
}

// PseudoSum is the uncomplemented sum of the pseudo-header of p's transport
// segment: what its checksum field holds while Partial.
func (p *Packet) PseudoSum() uint16 {
	return pseudo(&p.Src, &p.Dst, p.Proto, p.End-p.L4)
}

// pseudo sums a pseudo-header; the constant part of v4-mapped addresses is
// twice 0xffff, which is 0.
func pseudo(src, dst *Addr, proto Proto, length int) uint16 {
	s := add(sum(0, src[:]), sum(0, dst[:]))
	return add(add(s, uint16(proto)), uint16(length))
}

// add is one's complement addition: 0 only when both are.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// sum adds the big-endian 16-bit words of b to s, an odd last byte padded with
// zero, eight bytes at a time (RFC 1071, 2: parallel summation).
func sum(s uint16, b []byte) uint16 {
	acc, carry := uint64(s), uint64(0)
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), 0)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), carry)
		acc += carry
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(last[:]), 0)
		acc += carry
	}
	return fold(acc)
}

// sum20 is sum for an IPv4 header without options.
func sum20(h []byte) uint16 {
	_ = h[19]
	acc, carry := bits.Add64(binary.BigEndian.Uint64(h), binary.BigEndian.Uint64(h[8:]), 0)
	acc, carry = bits.Add64(acc, uint64(binary.BigEndian.Uint32(h[16:])), carry)
	return fold(acc + carry)
}

func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc>>16 + acc&0xffff)
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeros      [4096]byte
)

// SCTPChecksum is the CRC32c of an SCTP packet as though its field were 0
// (RFC 9260, appendix A), in the byte order of binary.LittleEndian.
func SCTPChecksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:8])
	c = crc32.Update(c, castagnoli, zeros[:4])
	return crc32.Update(c, castagnoli, b[12:])
}

// crcDelta is what the CRC32c of n bytes changes by when diff is exclusive-ored
// into its first bytes. CRC is linear, so a wrong checksum stays wrong by as
// much, where recomputing would make damage look whole.
func crcDelta(diff []byte, n int) uint32 {
	// Update complements on the way in and out; doing so again outside
	// leaves the plain linear remainder.
	c := ^crc32.Update(^uint32(0), castagnoli, diff)
	for n -= len(diff); n > 0; n -= len(zeros) {
		c = ^crc32.Update(^c, castagnoli, zeros[:min(n, len(zeros))])
	}
	return c
}
