package splice

import (
	"encoding/binary"

	"podgate/stack/packet"
)

const (
	ethLen = 14
	tcpLen = 20
	ttl    = 64
)

// header is what all frames of a connection begin with, Ethernet to TCP, and the
// part of their checksum that does not change.
type header struct {
	bytes  []byte
	l4     int // where TCP begins
	pseudo uint16
	gso    uint8
}

// newHeader is for segments with tuple t.
func newHeader(cfg *Config, t packet.Tuple) header {
	be := binary.BigEndian
	h := header{l4: ethLen + 40, gso: packet.GSOTCP6}
	if t.Src.Is4() {
		h.l4, h.gso = ethLen+20, packet.GSOTCP4
	}
	b := make([]byte, h.l4+tcpLen)
	copy(b, cfg.GatewayMAC[:])
	copy(b[6:], cfg.MAC[:])
	ip := b[ethLen:]
	if t.Src.Is4() {
		be.PutUint16(b[12:], packet.EtherIPv4)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, ttl, byte(packet.TCP) // DF
		copy(ip[12:], t.Src[12:])
		copy(ip[16:], t.Dst[12:])
	} else {
		be.PutUint16(b[12:], packet.EtherIPv6)
		ip[0], ip[6], ip[7] = 0x60, byte(packet.TCP), ttl
		copy(ip[8:], t.Src[:])
		copy(ip[24:], t.Dst[:])
	}
	be.PutUint16(b[h.l4:], t.SrcPort)
	be.PutUint16(b[h.l4+2:], t.DstPort)
	h.bytes = b
	var pseudo [34]byte
	copy(pseudo[:], t.Src[:])
	copy(pseudo[16:], t.Dst[:])
	pseudo[33] = byte(packet.TCP)
	h.pseudo = ^packet.Checksum(pseudo[:])
	return h
}

// frame builds a segment in buf, acknowledging what has come. A SYN has the
// options that answer the pod's.
func (c *conn) frame(buf packet.Frame, seq uint32, flags uint8, data []byte) packet.Frame {
	be := binary.BigEndian
	h := &c.header
	var room [36]byte
	options := c.options(room[:0], flags, len(data))
	buf = append(buf[:packet.VnetHdrLen], h.bytes...)
	buf = append(append(buf, options...), data...)
	eth := buf.Eth()
	length := len(eth) - h.l4
	vnet := packet.VnetHdr{Flags: packet.NeedsCsum, CsumStart: uint16(h.l4), CsumOffset: 16}
	if len(data) > c.mss {
		vnet.GSOType, vnet.GSOSize, vnet.HdrLen = h.gso, uint16(c.mss), uint16(h.l4+tcpLen+len(options))
	}
	buf.SetVnet(vnet)
	ip, tcp := eth[ethLen:], eth[h.l4:]
	if h.gso == packet.GSOTCP4 {
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[10:], packet.Checksum(ip[:20]))
	} else {
		be.PutUint16(ip[4:], uint16(length))
	}
	be.PutUint32(tcp[4:], seq)
	be.PutUint32(tcp[8:], c.rcv)
	tcp[12], tcp[13] = byte(tcpLen+len(options))<<2, flags
	be.PutUint16(tcp[14:], c.promise(flags))
	sum := uint32(h.pseudo) + uint32(length)
	be.PutUint16(tcp[16:], uint16(sum+sum>>16))
	if len(c.gaps) == 0 || len(data) == 0 {
		c.ackNow, c.ackAt, c.unacked = false, 0, 0
	}
	return buf
}

// promise is the window field, and remembers it.
func (c *conn) promise(flags uint8) uint16 {
	room := uint32(c.room())
	if !c.scale || flags&packet.SYN != 0 {
		room = min(room, 0xffff)
		c.edge = c.rcv + room
		return uint16(room)
	}
	field := (room + 1<<windowScale - 1) >> windowScale
	c.edge = c.rcv + field<<windowScale
	return uint16(field)
}

// options appends those of a segment: of a SYN the answers to the pod's, of one
// without data what has come after gaps (RFC 2018).
func (c *conn) options(o []byte, flags uint8, data int) []byte {
	if flags&packet.SYN != 0 {
		mss := packet.MSS(c.s.cfg.MTU, c.tuple.Src.Is4())
		o = append(o, optMSS, 4, byte(mss>>8), byte(mss))
		if c.scale {
			o = append(o, optNOP, optScale, 3, windowScale)
		}
		if c.sack {
			o = append(o, optNOP, optNOP, optSACKPermitted, 2)
		}
		return o
	}
	if len(c.gaps) == 0 || data > 0 {
		return o
	}
	o = append(o, optNOP, optNOP, optSACK, 0)
	length := len(o) - 1
	for i, blocks := 0, 0; i < len(c.gaps) && blocks < 3; blocks++ {
		from, to := c.gaps[i].seq, c.gaps[i].end()
		for i++; i < len(c.gaps) && c.gaps[i].seq == to; i++ {
			to = c.gaps[i].end()
		}
		o = binary.BigEndian.AppendUint32(o, from)
		o = binary.BigEndian.AppendUint32(o, to)
	}
	o[length] = byte(len(o) - length + 1)
	return o
}
