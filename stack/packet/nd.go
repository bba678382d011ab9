package packet

import (
	"encoding/binary"
	"net/netip"
)

// ND is a neighbour discovery message (RFC 4861, 4): a router solicitation,
// neighbour solicitation or neighbour advertisement. Its addresses are the
// packet's.
type ND struct {
	// Type is ICMPv6RS, ICMPv6NS or ICMPv6NA.
	Type uint8
	// Router, Solicited and Override are the flags of an advertisement.
	Router, Solicited, Override bool
	// Target is the address asked for or told; of RS it is zero.
	Target Addr
	// LinkAddr is the source's (RS, NS) or target's (NA) link-layer address,
	// if HasLinkAddr.
	LinkAddr    MAC
	HasLinkAddr bool
}

// Lengths of ND messages without options, and the options that count.
const (
	rsLen = 8
	nsLen = 24

	optSourceLink = 1
	optTargetLink = 2
)

// allRouters is ff02::2.
var allRouters = Addr{0: 0xff, 1: 2, 15: 2}

// IsND says whether p is a neighbour discovery message of any kind: what a
// router never forwards.
func (p *Packet) IsND() bool {
	return p.Proto == ICMPv6 && p.ICMPType >= ICMPv6RS && p.ICMPType <= ICMPv6Redirect
}

// IsMLD says whether p is a multicast listener message (RFC 2710, RFC 3810).
func (p *Packet) IsMLD() bool {
	return p.Proto == ICMPv6 && (p.ICMPType >= ICMPv6MLDQuery && p.ICMPType <= ICMPv6MLDDone || p.ICMPType == ICMPv6MLDv2Report)
}

// ND fills nd from p, for which IsND. Router advertisements and redirects are
// faults here: no pod may send them. It proves what RFC 4861, 6.1.1, 7.1.1 and
// 7.1.2 ask, the hop limit of 255 (it came from this very link) and the
// checksum included, and that there are no fragments (RFC 6980).
func (p *Packet) ND(nd *ND) Fault {
	eth := p.Frame.Eth()
	b := eth[p.L4:p.End]
	if p.TTL != 255 || p.ICMPCode != 0 || p.L4 != p.L3+ip6Len || p.Fragment() || p.Partial ||
		sum(pseudo(&p.Src, &p.Dst, ICMPv6, len(b)), b) != 0xffff {
		return BadND
	}
	*nd = ND{Type: p.ICMPType}
	n, link := nsLen, uint8(optSourceLink)
	switch nd.Type {
	case ICMPv6RS:
		n = rsLen
	case ICMPv6NS:
	case ICMPv6NA:
		link = optTargetLink
	default:
		return BadND
	}
	if len(b) < n {
		return BadND
	}
	if n == nsLen {
		nd.Target = Addr(b[8:])
		if nd.Target.IsMulticast() {
			return BadND
		}
	}
	if nd.Type == ICMPv6NA {
		nd.Router, nd.Solicited, nd.Override = b[4]&0x80 != 0, b[4]&0x40 != 0, b[4]&0x20 != 0
		if nd.Solicited && p.Dst.IsMulticast() {
			return BadND
		}
	}
	if !nd.options(b[n:], link) {
		return BadND
	}
	// A sender without address (duplicate address detection) asks the
	// solicited-node group and tells no link-layer address.
	if p.Src.IsUnspecified() {
		if nd.Type == ICMPv6NA || nd.HasLinkAddr ||
			nd.Type == ICMPv6NS && p.Dst != SolicitedNode(nd.Target) {
			return BadND
		}
	}
	return OK
}

// options takes the link-layer address of kind link from b and says whether
// all options are whole.
func (nd *ND) options(b []byte, link uint8) bool {
	for len(b) > 0 {
		if len(b) < 8 || b[1] == 0 || int(b[1])<<3 > len(b) {
			return false
		}
		if b[0] == link && b[1] == 1 {
			nd.LinkAddr, nd.HasLinkAddr = MAC(b[2:]), true
			if nd.LinkAddr.Group() {
				return false
			}
		}
		b = b[int(b[1])<<3:]
	}
	return true
}

// SolicitedNode is the multicast group that a neighbour with address a listens
// to (RFC 4291, 2.7.1).
func SolicitedNode(a Addr) Addr {
	return Addr{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}
}

// MulticastMAC is the Ethernet address of the multicast group or the broadcast
// address a (RFC 1112, 6.4; RFC 2464, 7).
func MulticastMAC(a Addr) MAC {
	switch {
	case a.IsBroadcast():
		return broadcastMAC
	case a.Is4():
		return MAC{0x01, 0x00, 0x5e, a[13] & 0x7f, a[14], a[15]}
	}
	return MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

// BuildNA writes into buf the answer to p, a solicitation that nd was read
// from: its target is at mac. To a sender without an address it goes to all
// nodes (RFC 4861, 7.2.4). router tells that the target forwards packets.
func BuildNA(buf []byte, p *Packet, nd *ND, mac MAC, router bool) Frame {
	dst, dstMAC, flags := p.Src, p.SrcMAC(), byte(0x60)
	if p.Src.IsUnspecified() {
		dst = Addr{0: 0xff, 1: 2, 15: 1}
		dstMAC, flags = MulticastMAC(dst), 0x20
	}
	if router {
		flags |= 0x80
	}
	t := Tuple{Src: nd.Target, Dst: dst, Proto: ICMPv6}
	f, b := newIP(buf, mac, dstMAC, t, 255, nsLen+8)
	b[0], b[4] = ICMPv6NA, flags
	*(*Addr)(b[8:]) = nd.Target
	linkOption(b[nsLen:], optTargetLink, mac)
	finishICMP(&t, b)
	return f
}

// BuildNS writes into buf the question of who has target, from the neighbour
// with mac and ip; with an unspecified ip it asks whether target is taken.
func BuildNS(buf []byte, mac MAC, ip, target Addr) Frame {
	t := Tuple{Src: ip, Dst: SolicitedNode(target), Proto: ICMPv6}
	n := nsLen + 8
	if ip.IsUnspecified() {
		n, t.Src = nsLen, Addr{}
	}
	f, b := newIP(buf, mac, MulticastMAC(t.Dst), t, 255, n)
	b[0] = ICMPv6NS
	*(*Addr)(b[8:]) = target
	if n > nsLen {
		linkOption(b[nsLen:], optSourceLink, mac)
	}
	finishICMP(&t, b)
	return f
}

// BuildRS writes into buf a router solicitation from the host with mac and the
// link-local address ip.
func BuildRS(buf []byte, mac MAC, ip Addr) Frame {
	t := Tuple{Src: ip, Dst: allRouters, Proto: ICMPv6}
	f, b := newIP(buf, mac, MulticastMAC(t.Dst), t, 255, rsLen+8)
	b[0] = ICMPv6RS
	linkOption(b[rsLen:], optSourceLink, mac)
	finishICMP(&t, b)
	return f
}

// raLifetime is how long, in seconds, what an advertisement says holds: for as
// long as can be said of a router (RFC 4861, 4.2), and for all the rest too, as
// nobody advertises unasked.
const raLifetime = 9000

// BuildRA writes into buf the advertisement that answers p, a router solicitation,
// from the router with mac: hosts make addresses of prefix, of 64 bits (RFC 4862),
// and find names at the servers (RFC 8106).
func BuildRA(buf []byte, p *Packet, mac MAC, prefix netip.Prefix, mtu int, servers []Addr) Frame {
	dst, dstMAC := p.Src, p.SrcMAC()
	if p.Src.IsUnspecified() {
		dst = Addr{0: 0xff, 1: 2, 15: 1}
		dstMAC = MulticastMAC(dst)
	}
	t := Tuple{Src: EUI64(netip.MustParseAddr("fe80::"), mac), Dst: dst, Proto: ICMPv6}
	n := 16 + 8 + 8 + 32
	if len(servers) > 0 {
		n += 8 + 16*len(servers)
	}
	be := binary.BigEndian
	f, b := newIP(buf, mac, dstMAC, t, 255, n)
	b[0], b[4] = ICMPv6RA, 64
	be.PutUint16(b[6:], raLifetime)
	linkOption(b[16:], optSourceLink, mac)
	o := b[24:]
	o[0], o[1] = 5, 1
	be.PutUint32(o[4:], uint32(mtu))
	o = b[32:]
	o[0], o[1], o[2], o[3] = 3, 4, 64, 0xc0 // on-link, autonomous
	be.PutUint32(o[4:], raLifetime)
	be.PutUint32(o[8:], raLifetime)
	copy(o[16:], prefix.Masked().Addr().AsSlice())
	if o = b[64:]; len(servers) > 0 {
		o[0], o[1] = 25, uint8(1+2*len(servers))
		be.PutUint32(o[4:], raLifetime)
		for i, s := range servers {
			copy(o[8+16*i:], s[:])
		}
	}
	finishICMP(&t, b)
	return f
}

// EUI64 is the address that an interface with that MAC has in a prefix of 64 bits
// (RFC 4291, appendix A).
func EUI64(prefix netip.Addr, m MAC) Addr {
	a := AddrFrom(prefix)
	copy(a[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return a
}

func linkOption(b []byte, kind uint8, mac MAC) {
	b[0], b[1] = kind, 1
	copy(b[2:], mac[:])
}
