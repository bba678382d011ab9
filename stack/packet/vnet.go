package packet

import "encoding/binary"

// VnetHdr is the struct virtio_net_hdr (virtio 1.2, 5.1.6) that opens a Frame.
type VnetHdr struct {
	Flags   uint8
	GSOType uint8
	// HdrLen is a hint of how many bytes the headers take.
	HdrLen uint16
	// GSOSize is the payload of one segment in bytes.
	GSOSize uint16
	// CsumStart and CsumOffset are where, from the start of the Ethernet
	// frame, an unfinished checksum starts to sum, and where from there its
	// result belongs.
	CsumStart, CsumOffset uint16
}

// Flags of a VnetHdr.
const (
	// NeedsCsum: the checksum field holds the uncomplemented sum of the
	// pseudo-header alone; whoever needs the rest computes it.
	NeedsCsum = 1
	// DataValid: the checksum is known to be right.
	DataValid = 2
)

// Values of VnetHdr.GSOType; GSOECN is a flag beside the TCP ones.
const (
	GSONone   = 0
	GSOTCP4   = 1
	GSOUDP    = 3
	GSOTCP6   = 4
	GSOUDPL4  = 5
	GSOECN    = 0x80
	gsoNoFlag = 0x7f
)

// Vnet is f's header; f must hold VnetHdrLen bytes.
func (f Frame) Vnet() VnetHdr {
	_ = f[VnetHdrLen-1]
	return VnetHdr{
		Flags:      f[0],
		GSOType:    f[1],
		HdrLen:     binary.NativeEndian.Uint16(f[2:]),
		GSOSize:    binary.NativeEndian.Uint16(f[4:]),
		CsumStart:  binary.NativeEndian.Uint16(f[6:]),
		CsumOffset: binary.NativeEndian.Uint16(f[8:]),
	}
}

// SetVnet writes f's header; f must hold VnetHdrLen bytes.
func (f Frame) SetVnet(h VnetHdr) {
	_ = f[VnetHdrLen-1]
	f[0], f[1] = h.Flags, h.GSOType
	binary.NativeEndian.PutUint16(f[2:], h.HdrLen)
	binary.NativeEndian.PutUint16(f[4:], h.GSOSize)
	binary.NativeEndian.PutUint16(f[6:], h.CsumStart)
	binary.NativeEndian.PutUint16(f[8:], h.CsumOffset)
}

// The least and the most that the kernel itself makes: TCP_MIN_GSO_SIZE, and
// UDP_MAX_SEGMENTS. Past them one frame would cost its receiver tens of
// thousands of packets.
const (
	minTCPSegment  = 8
	maxUDPSegments = 128
)

// checkVnet proves the offload fields of p, whose offsets are all set, and sets
// p.Partial. Only a checksum that starts at p's own transport header is p's: a
// pod's tunnel leaves the inner checksum unfinished and completes the outer one
// (local checksum offload), which is then rewritten as a full one.
func (p *Packet) checkVnet() Fault {
	h := p.Frame.Vnet()
	n := len(p.Frame) - VnetHdrLen
	start, field := int(h.CsumStart), int(h.CsumOffset)
	if h.Flags&NeedsCsum != 0 {
		switch {
		case p.Fragment():
			return BadFragment
		case start+field+2 > n || start < p.L4:
			return BadVnetHdr
		case start == p.L4:
			if want := checksumOffset(p.Proto); want < 0 || field != want {
				return BadVnetHdr
			}
			p.Partial = true
		}
	}
	if h.GSOType == GSONone {
		return OK
	}
	payload := p.End - p.Payload
	switch {
	case p.Fragment():
		return BadFragment
	case !p.Partial || h.GSOSize == 0 || p.End != n || int(h.HdrLen) > n:
		return BadVnetHdr
	}
	size, ok := int(h.GSOSize), false
	switch h.GSOType & gsoNoFlag {
	case GSOTCP4:
		ok = p.Proto == TCP && p.EtherType == EtherIPv4 && size >= minTCPSegment
	case GSOTCP6:
		ok = p.Proto == TCP && p.EtherType == EtherIPv6 && size >= minTCPSegment
	case GSOUDP:
		ok = p.Proto == UDP && size >= minTCPSegment
	case GSOUDPL4:
		ok = p.Proto == UDP && payload <= size*maxUDPSegments
	}
	if !ok {
		return BadVnetHdr
	}
	p.GSOSize = h.GSOSize
	return OK
}
