package packet

import "encoding/binary"

// Theory of operation. A router that meets an IPv4 packet over the MTU which
// may be fragmented cuts it (RFC 791, 3.2; RFC 1812, 4.2.2.7): every piece but
// the last carries a multiple of 8 bytes, the first one has all options, the
// later ones those that ask to be copied. A piece of a piece keeps its place: it
// counts on from the offset that was there, and only the last piece of the last
// fragment ends the datagram.

// Fragment cuts p, an IPv4 packet without GSO that may be fragmented and whose
// checksums are complete, into packets of at most mtu bytes. Each is built in
// memory that buf gives for a length, and handed to emit. p's frame is not
// changed; its headers are taken as they stand in the frame now. It returns
// false, with nothing emitted, if mtu leaves no room for 8 bytes of data.
func Fragment(p *Packet, mtu int, buf func(n int) []byte, emit func(Frame)) bool {
	eth := p.Frame.Eth()
	first := eth[p.L3:p.L4]
	later := copiedOptions(first)
	data := eth[p.L4:p.End]
	if (mtu-len(first))&^7 <= 0 {
		return false
	}
	word := binary.BigEndian.Uint16(first[6:])
	offset, last := int(word&0x1fff)<<3, word&0x2000 == 0
	header := first
	if offset != 0 {
		header = later
	}
	for at := 0; at < len(data); {
		n := len(data) - at
		if room := mtu - len(header); n > room {
			n = room &^ 7
		}
		f := newFrame(buf(VnetHdrLen+p.L3+len(header)+n), p.L3+len(header)+n)
		b := f.Eth()
		copy(b, eth[:p.L3])
		h := b[p.L3:]
		copy(h, header)
		copy(h[len(header):], data[at:at+n])
		word := uint16((offset + at) >> 3)
		if at+n < len(data) || !last {
			word |= 0x2000
		}
		h[0] = 4<<4 | uint8(len(header)>>2)
		binary.BigEndian.PutUint16(h[2:], uint16(len(h)))
		binary.BigEndian.PutUint16(h[6:], word)
		binary.BigEndian.PutUint16(h[10:], 0)
		binary.BigEndian.PutUint16(h[10:], Checksum(h[:len(header)]))
		emit(f)
		at, header = at+n, later
	}
	return true
}

// IPv4ID is the identification of p, an IPv4 packet, whole or not.
func (p *Packet) IPv4ID() uint32 {
	return uint32(binary.BigEndian.Uint16(p.Frame.Eth()[p.L3+4:]))
}

// copiedOptions is the header of a later fragment: h with only those options
// that have the copied flag (RFC 791, 3.1), padded to whole words.
func copiedOptions(h []byte) []byte {
	if len(h) == ip4Len {
		return h
	}
	out := append(make([]byte, 0, len(h)), h[:ip4Len]...)
	for o := h[ip4Len:]; len(o) > 0 && o[0] != 0; {
		n := 1
		if o[0] != 1 {
			n = int(o[1])
			if o[0]&0x80 != 0 {
				out = append(out, o[:n]...)
			}
		}
		o = o[n:]
	}
	for len(out)&3 != 0 {
		out = append(out, 0)
	}
	return out
}
