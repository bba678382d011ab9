package link

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The magic numbers of pcap (draft-ietf-opsawg-pcap), by the unit of its times.
const (
	pcapMicroseconds = 0xa1b2c3d4
	pcapNanoseconds  = 0xa1b23c4d
)

// isClassic recognises the first bytes of a pcap file.
func (pr *PcapReader) isClassic(head []byte) bool {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(head) {
		case pcapMicroseconds:
			pr.order, pr.interfaces = order, []pcapInterface{{perSec: 1e6}}
			return true
		case pcapNanoseconds:
			pr.order, pr.interfaces = order, []pcapInterface{{perSec: 1e9}}
			return true
		}
	}
	return false
}

// startClassic reads what is left of a file's header after 8 bytes.
func (pr *PcapReader) startClassic() error {
	var rest [16]byte
	if _, err := io.ReadFull(pr.r, rest[:]); err != nil {
		return noEOF(err)
	}
	pr.classic = true
	pr.interfaces[0].ethernet = pr.order.Uint32(rest[12:])&0xffff == linkEthernet // above: length of an FCS
	return nil
}

// record reads one frame of a pcap file.
func (pr *PcapReader) record() (rec PcapRecord, err error) {
	var head [16]byte
	if _, err := io.ReadFull(pr.r, head[:1]); err != nil {
		return rec, err
	}
	if _, err := io.ReadFull(pr.r, head[1:]); err != nil {
		return rec, noEOF(err)
	}
	n := pr.order.Uint32(head[8:])
	if n > maxBlock {
		return rec, fmt.Errorf("%w: a frame of %d bytes", errPcap, n)
	}
	if cap(pr.block) < int(n) {
		pr.block = make([]byte, n)
	}
	rec.Frame = pr.block[:n]
	if _, err := io.ReadFull(pr.r, rec.Frame); err != nil {
		return rec, noEOF(err)
	}
	i := &pr.interfaces[0]
	rec.At = int64(pr.order.Uint32(head[:]))*1e9 + i.ns(uint64(pr.order.Uint32(head[4:])))
	return rec, nil
}
