package local

import (
	"encoding/binary"

	"podgate/stack/packet"
)

// vnetHdr is a struct virtio_net_hdr (virtio 1.2, 5.1.6).
type vnetHdr struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

const (
	needsCsum = 1
	dataValid = 2
	gsoTCP4   = 1
	gsoTCP6   = 4
)

func (h vnetHdr) put(f packet.Frame) {
	f[0], f[1] = h.Flags, h.GSOType
	for i, v := range []uint16{h.HdrLen, h.GSOSize, h.CsumStart, h.CsumOffset} {
		binary.NativeEndian.PutUint16(f[2+2*i:], v)
	}
}
