package packet

import "encoding/binary"

// Operations of an ARP.
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP is an address resolution packet for IPv4 over Ethernet (RFC 826).
type ARP struct {
	Op                   uint16
	SenderMAC, TargetMAC MAC
	// SenderIP is 0.0.0.0 in a probe (RFC 5227, 1.1).
	SenderIP, TargetIP Addr
}

// broadcastMAC reaches everyone on the segment.
var broadcastMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARP fills a from p, whose EtherType is EtherARP. Whether the sender is who it
// says it is, is the caller's to check; the Ethernet source is p.SrcMAC().
func (p *Packet) ARP(a *ARP) Fault {
	b := p.Frame.Eth()[p.L3:]
	if len(b) < arpLen || [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} {
		return BadARP
	}
	*a = ARP{
		Op:        binary.BigEndian.Uint16(b[6:]),
		SenderMAC: MAC(b[8:]),
		TargetMAC: MAC(b[18:]),
	}
	put4(&a.SenderIP, binary.BigEndian.Uint32(b[14:]))
	put4(&a.TargetIP, binary.BigEndian.Uint32(b[24:]))
	if a.Op != ARPRequest && a.Op != ARPReply || a.SenderMAC.Group() ||
		a.SenderIP.IsMulticast() || a.SenderIP.IsBroadcast() || a.TargetIP.IsMulticast() {
		return BadARP
	}
	return OK
}

// BuildARP writes a into buf as a frame between the Ethernet addresses src and
// dst, and returns it. buf is at least MaxBuilt bytes.
func BuildARP(buf []byte, src, dst MAC, a ARP) Frame {
	f := newFrame(buf, ethLen+arpLen)
	eth := f.Eth()
	*(*MAC)(eth) = dst
	*(*MAC)(eth[6:]) = src
	binary.BigEndian.PutUint16(eth[12:], EtherARP)
	b := eth[ethLen:]
	copy(b, []byte{0, 1, 8, 0, 6, 4})
	binary.BigEndian.PutUint16(b[6:], a.Op)
	*(*MAC)(b[8:]) = a.SenderMAC
	copy(b[14:], a.SenderIP[12:])
	*(*MAC)(b[18:]) = a.TargetMAC
	copy(b[24:], a.TargetIP[12:])
	return f
}

// BuildARPRequest writes into buf the question of who has target, from the host
// with mac and ip, to everyone.
func BuildARPRequest(buf []byte, mac MAC, ip, target Addr) Frame {
	return BuildARP(buf, mac, broadcastMAC, ARP{Op: ARPRequest, SenderMAC: mac, SenderIP: ip, TargetIP: target})
}

// BuildARPReply writes into buf the answer to the request a: its target address
// is at mac.
func BuildARPReply(buf []byte, a *ARP, mac MAC) Frame {
	return BuildARP(buf, mac, a.SenderMAC, ARP{
		Op:        ARPReply,
		SenderMAC: mac, SenderIP: a.TargetIP,
		TargetMAC: a.SenderMAC, TargetIP: a.SenderIP,
	})
}
