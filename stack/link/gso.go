package link

import (
	"encoding/binary"
	"sync"

	"podgate/stack/packet"
)

// A super-frame is one set of headers over up to 64 KiB of payload, with a
// partial checksum; whoever cuts it gives every piece a copy of the headers:
//
//	            first piece     between      last piece
//	IP length   its own         its own      its own
//	IPv4 id     as it was       +1 each      +1
//	TCP seq     as it was       + payload before
//	CWR         as it was       clear        clear
//	FIN, PSH    clear           clear        as they were
//	checksums   complete        complete     complete
//
// For UDP (segmentation offload, not fragmentation) every piece is a datagram
// of its own, of gso_size bytes but for the last.

// TCP flags that only one end of a super-frame keeps.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

var scratch = sync.Pool{New: func() any { return new([MaxFrame]byte) }}

// Segment cuts a super-frame into plain frames with complete checksums, none
// of whose IP packets is longer than mtu bytes (0: no such bound), and hands
// each to emit, which borrows it until it returns. TCP segments are made
// shorter than gso_size where mtu asks for it; datagrams cannot be. A frame
// without GSO is emitted once, its checksum completed. f is not changed.
//
// It returns false, with nothing emitted, if f cannot be decoded, is of
// another kind (UDP fragmentation offload), or the pieces cannot be as short
// as mtu.
func Segment(f packet.Frame, mtu int, emit func(packet.Frame)) bool {
	var p packet.Packet
	if len(f) > MaxFrame || packet.Decode(&p, f) != packet.OK {
		return false
	}
	mem := scratch.Get().(*[MaxFrame]byte)
	defer scratch.Put(mem)
	size, ok := pieceSize(&p, mtu)
	switch {
	case !ok:
		return false
	case size == 0:
		whole := packet.Frame(mem[:copy(mem[:], f)])
		if !CompleteChecksum(whole) {
			return false
		}
		emit(whole)
		return true
	}
	for at, nth := p.Payload, 0; ; nth++ {
		end := min(at+size, p.End)
		emit(piece(mem[:], &p, at, end, nth))
		if at = end; at == p.End {
			return true
		}
	}
}

// OnWire hands over what f is on a wire: cut up, with complete checksums. A frame
// that makes no sense is handed over as it is.
func OnWire(f packet.Frame, emit func(packet.Frame)) {
	if len(f) < packet.VnetHdrLen {
		return
	}
	if !Segment(f, 0, emit) {
		emit(f)
	}
}

// pieceSize is how many payload bytes a piece of p gets; 0 means that p is one
// frame already.
func pieceSize(p *packet.Packet, mtu int) (size int, ok bool) {
	size = int(p.GSOSize)
	switch p.Frame.Vnet().GSOType &^ packet.GSOECN {
	case packet.GSONone:
		return 0, mtu == 0 || p.Len() <= mtu
	case packet.GSOUDP:
		return 0, false
	}
	if mtu == 0 || p.SegmentLen() <= mtu {
		return size, true
	}
	size = mtu - (p.Payload - p.L3)
	return size, p.Proto == packet.TCP && size > 0
}

// piece builds, in buf, the nth piece of p: the bytes from at to end of its
// Ethernet frame behind a copy of its headers.
func piece(buf packet.Frame, p *packet.Packet, at, end, nth int) packet.Frame {
	f := buf[:packet.VnetHdrLen+p.Payload+end-at]
	f.SetVnet(packet.VnetHdr{})
	eth := f.Eth()
	copy(eth, p.Frame.Eth()[:p.Payload])
	copy(eth[p.Payload:], p.Frame.Eth()[at:end])

	be := binary.BigEndian
	ip, l4 := eth[p.L3:], eth[p.L4:]
	if p.EtherType == packet.EtherIPv4 {
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[4:], be.Uint16(ip[4:])+uint16(nth))
		be.PutUint16(ip[10:], 0)
		be.PutUint16(ip[10:], packet.Checksum(ip[:p.L4-p.L3]))
	} else {
		be.PutUint16(ip[4:], uint16(len(ip)-40))
	}
	field := l4[6:]
	if p.Proto == packet.TCP {
		field = l4[16:]
		be.PutUint32(l4[4:], be.Uint32(l4[4:])+uint32(at-p.Payload))
		if nth > 0 {
			l4[13] &^= tcpCWR
		}
		if end < p.End {
			l4[13] &^= tcpFIN | tcpPSH
		}
	} else {
		be.PutUint16(l4[4:], uint16(len(l4)))
	}
	whole := *p
	whole.Frame, whole.End = f, len(eth)
	be.PutUint16(field, whole.TransportChecksum())
	return f
}

// CompleteChecksum turns the partial checksum of a frame without GSO into a
// complete one, in place; a frame without a partial checksum stays as it is. It
// returns false if the frame's header points outside of it.
func CompleteChecksum(f packet.Frame) bool {
	h, eth := f.Vnet(), f.Eth()
	if h.Flags&packet.NeedsCsum == 0 {
		return true
	}
	start, field := int(h.CsumStart), int(h.CsumStart)+int(h.CsumOffset)
	if h.GSOType != packet.GSONone || field+2 > len(eth) {
		return false
	}
	var p packet.Packet
	if h.CsumOffset == 8 && packet.Decode(&p, f) == packet.OK && p.Proto == packet.SCTP {
		binary.LittleEndian.PutUint32(eth[field:], packet.SCTPChecksum(eth[p.L4:p.End]))
	} else {
		// The field holds the sum of the pseudo-header, and so takes part itself.
		sum := packet.Checksum(eth[start:])
		if sum == 0 {
			sum = 0xffff // the same number, and UDP takes 0 for none
		}
		binary.BigEndian.PutUint16(eth[field:], sum)
	}
	h.Flags &^= packet.NeedsCsum
	h.CsumStart, h.CsumOffset = 0, 0
	f.SetVnet(h)
	return true
}
