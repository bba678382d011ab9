package packet

import "encoding/binary"

// Theory of operation. A rewrite is data, made once per direction of a flow:
// the new addresses, ports and MACs and by how much checksums change. Apply
// replays it on every frame without looking at what was there before:
//
//   - A full checksum changes by addresses and ports, complemented (RFC 1624).
//   - A partial one (NeedsCsum) holds the uncomplemented pseudo-header sum: it
//     changes by the addresses alone, uncomplemented.
//   - A UDP checksum of 0 is none and stays; one that comes out as 0 is 0xffff.
//   - ICMP echo has its identifier where others have ports; addresses count in
//     ICMPv6 only.
//   - SCTP has a CRC32c without pseudo-header: it changes by the ports.
//   - A later fragment has addresses and nothing else.
//
// The same deltas applied in the other order undo each other, except that a
// ones' complement sum of zero comes back as the other zero (a field of 0xffff
// as 0x0000 where the protocol tells no difference).

// Rewrite is what a flow does to the frames of one direction. It is immutable
// once in use, and without pointers. The zero Rewrite changes nothing.
type Rewrite struct {
	src, dst         Addr
	srcPort, dstPort uint16
	// addrDelta is what the sum over both addresses changes by, fullDelta what
	// a finished transport checksum does.
	addrDelta, fullDelta uint16
	proto                Proto
	ops                  op

	// SrcMAC and DstMAC are the new Ethernet addresses if SetMAC.
	SrcMAC, DstMAC MAC
	SetMAC         bool
	// DecTTL takes one from the TTL, for a packet that is routed. The caller
	// has checked that it is over 1.
	DecTTL bool
	// MSS is the most that a SYN may announce, unless 0; see clampMSS.
	MSS uint16
}

type op uint8

const (
	opAddr op = 1 << iota
	opPorts
	opV6
)

// NewRewrite is what turns packets of tuple old into tuple new, which is of the
// same family and protocol.
func NewRewrite(old, new Tuple) Rewrite {
	if old.Proto != new.Proto || old.Src.Is4() != new.Src.Is4() || old.Dst.Is4() != new.Dst.Is4() {
		panic("packet: rewrite across families or protocols")
	}
	r := Rewrite{
		src: new.Src, dst: new.Dst,
		srcPort: new.SrcPort, dstPort: new.DstPort,
		proto: new.Proto,
	}
	if !new.Src.Is4() {
		r.ops |= opV6
	}
	if old.Src != new.Src || old.Dst != new.Dst {
		r.ops |= opAddr
		r.addrDelta = add(Delta(old.Src[:], new.Src[:]), Delta(old.Dst[:], new.Dst[:]))
	}
	var ports uint16
	if old.SrcPort != new.SrcPort || old.DstPort != new.DstPort {
		r.ops |= opPorts
		ports = add(add(^old.SrcPort, new.SrcPort), add(^old.DstPort, new.DstPort))
	}
	switch r.proto {
	case TCP, UDP, UDPLite, ICMPv6:
		r.fullDelta = add(r.addrDelta, ports)
	case ICMP:
		r.fullDelta = ports
	}
	return r
}

// Tuple is what the packet has after the rewrite.
func (r *Rewrite) Tuple() Tuple {
	return Tuple{Src: r.src, Dst: r.dst, SrcPort: r.srcPort, DstPort: r.dstPort, Proto: r.proto}
}

// Translates says whether r changes addresses or ports.
func (r *Rewrite) Translates() bool { return r.ops&(opAddr|opPorts) != 0 }

// Apply rewrites p's frame in place. p is of the tuple that r was made for; its
// own fields still tell what arrived.
func (r *Rewrite) Apply(p *Packet) {
	eth := p.Frame.Eth()
	r.applyMACs(eth)
	if r.DecTTL {
		decTTL(p, eth)
	}
	if r.MSS != 0 && p.TCPFlags&SYN != 0 {
		clampMSS(p, eth, r.MSS)
	}
	if r.ops&(opAddr|opPorts) == 0 {
		return
	}
	if r.ops&opAddr != 0 {
		r.applyAddrs(eth[p.L3:])
	}
	if p.Frag.Offset == 0 {
		r.applyTransport(p, eth)
	}
}

func (r *Rewrite) applyMACs(eth []byte) {
	if r.SetMAC {
		*(*MAC)(eth) = r.DstMAC
		*(*MAC)(eth[6:]) = r.SrcMAC
	}
}

// decTTL takes one from the TTL or hop limit; the TTL is the high byte of its
// checksum word.
func decTTL(p *Packet, eth []byte) {
	if p.EtherType == EtherIPv6 {
		eth[p.L3+7]--
		return
	}
	h := eth[p.L3 : p.L3+ip4Len]
	h[8]--
	updateFull(h[10:], 0xfeff) // -0x0100
}

func (r *Rewrite) applyAddrs(h []byte) {
	if r.ops&opV6 != 0 {
		_ = h[ip6Len-1]
		*(*Addr)(h[8:]) = r.src
		*(*Addr)(h[24:]) = r.dst
		return
	}
	_ = h[ip4Len-1]
	*(*[4]byte)(h[12:]) = [4]byte(r.src[12:])
	*(*[4]byte)(h[16:]) = [4]byte(r.dst[12:])
	updateFull(h[10:], r.addrDelta)
}

func (r *Rewrite) applyTransport(p *Packet, eth []byte) {
	h := eth[p.L4:p.End]
	switch r.proto {
	case TCP:
		_ = h[tcpLen-1]
		r.applyPorts(h)
		if p.Partial {
			updatePartial(h[16:], r.addrDelta)
		} else {
			updateFull(h[16:], r.fullDelta)
		}
	case UDP, UDPLite:
		_ = h[udpLen-1]
		r.applyPorts(h)
		if p.Partial {
			updatePartial(h[6:], r.addrDelta)
		} else {
			updateUDP(h[6:], r.fullDelta)
		}
	case ICMP, ICMPv6:
		r.applyEcho(p, h)
	case SCTP:
		r.applySCTP(p, h)
	}
}

func (r *Rewrite) applyPorts(h []byte) {
	binary.BigEndian.PutUint16(h, r.srcPort)
	binary.BigEndian.PutUint16(h[2:], r.dstPort)
}

// applyEcho sets the identifier of an echo; of other messages, which have none,
// only what ICMPv6 says about the addresses.
func (r *Rewrite) applyEcho(p *Packet, h []byte) {
	delta := r.fullDelta
	if p.EchoRequest() || p.EchoReply() {
		// One of the two is the identifier, the other is 0.
		binary.BigEndian.PutUint16(h[4:], r.srcPort|r.dstPort)
	} else if delta = 0; r.proto == ICMPv6 {
		delta = r.addrDelta
	}
	if p.Partial {
		updatePartial(h[2:], r.addrDelta)
	} else {
		updateFull(h[2:], delta)
	}
}

// applySCTP sets the ports. The CRC of a fragmented packet can follow only if
// its length is known.
func (r *Rewrite) applySCTP(p *Packet, h []byte) {
	if r.ops&opPorts == 0 {
		return
	}
	old := binary.BigEndian.Uint32(h)
	r.applyPorts(h)
	n := len(h)
	if p.Frag.More {
		n = int(p.Frag.Total)
	}
	if p.Partial || n == 0 {
		return
	}
	var diff [4]byte
	binary.BigEndian.PutUint32(diff[:], old^binary.BigEndian.Uint32(h))
	sum := binary.LittleEndian.Uint32(h[8:])
	binary.LittleEndian.PutUint32(h[8:], sum^crcDelta(diff[:], n))
}

// updateFull changes the finished checksum at b by delta.
func updateFull(b []byte, delta uint16) {
	binary.BigEndian.PutUint16(b, UpdateChecksum(binary.BigEndian.Uint16(b), delta))
}

// updatePartial changes the pseudo-header sum at b by the addresses' delta.
func updatePartial(b []byte, delta uint16) {
	binary.BigEndian.PutUint16(b, add(binary.BigEndian.Uint16(b), delta))
}

// updateUDP is updateFull for a field in which 0 means none (RFC 768).
func updateUDP(b []byte, delta uint16) {
	c := binary.BigEndian.Uint16(b)
	if c == 0 {
		return
	}
	if c = UpdateChecksum(c, delta); c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b, c)
}
