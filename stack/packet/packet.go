// Package packet holds everything that is only bytes: decoding, the tuple,
// checksums, rewriting and building of frames. It knows no ports, flows or
// configuration and imports nothing else of podgate.
package packet

import (
	"net"
	"net/netip"
	"strconv"
)

// Addr is an IP address in its 16-byte form; IPv4 is held v4-mapped
// (RFC 4291, 2.5.5.2), so that one code path serves both families.
type Addr [16]byte

// AddrFrom converts from netip; 4-in-6 addresses become IPv4.
func AddrFrom(a netip.Addr) Addr { return Addr(a.As16()) }

// Netip converts to netip, IPv4 unmapped.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Is4 says whether a is an IPv4 address.
func (a Addr) Is4() bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// IsMulticast says whether a is a multicast address of either family.
func (a Addr) IsMulticast() bool {
	return a[0] == 0xff || a.Is4() && a[12]&0xf0 == 0xe0
}

// IsBroadcast says whether a is 255.255.255.255; broadcasts of a subnet are
// not known to this package, but their frames have a group MAC.
func (a Addr) IsBroadcast() bool {
	return a == Addr{10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}
}

// IsUnspecified says whether a is 0.0.0.0, :: or the zero Addr.
func (a Addr) IsUnspecified() bool { return a == Addr{} || a == Addr{10: 0xff, 11: 0xff} }

func (a Addr) String() string { return a.Netip().String() }

// MAC is an Ethernet address.
type MAC [6]byte

// Group says whether m is a multicast or the broadcast address.
func (m MAC) Group() bool { return m[0]&1 != 0 }

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Proto is an IP protocol number.
type Proto uint8

const (
	ICMP    Proto = 1
	TCP     Proto = 6
	UDP     Proto = 17
	ICMPv6  Proto = 58
	SCTP    Proto = 132
	UDPLite Proto = 136
)

func (p Proto) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	case UDPLite:
		return "UDPLite"
	}
	return "proto-" + strconv.Itoa(int(p))
}

// Tuple names one direction of a conversation. For ICMP echo the identifier
// is SrcPort of a request and DstPort of a reply, the other port being 0;
// protocols without ports have both 0.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Proto            Proto
}

// Reverse is the tuple of the answer.
func (t Tuple) Reverse() Tuple {
	t.Src, t.Dst = t.Dst, t.Src
	t.SrcPort, t.DstPort = t.DstPort, t.SrcPort
	return t
}

// VnetHdrLen is the length of the struct virtio_net_hdr that opens every Frame.
const VnetHdrLen = 10

// Frame is a virtio_net_hdr of VnetHdrLen bytes (host byte order, as TAP and
// PACKET_VNET_HDR carry it) followed by an Ethernet frame. A zero header means
// a plain frame with complete checksums.
type Frame []byte

// Eth is the Ethernet frame within f.
func (f Frame) Eth() []byte { return f[VnetHdrLen:] }

// newFrame is the frame of length n, Ethernet header included, at the front of
// buf, with a zero vnet header; buf must hold VnetHdrLen+n bytes.
func newFrame(buf []byte, n int) Frame {
	f := Frame(buf[:VnetHdrLen+n])
	clear(f[:VnetHdrLen])
	return f
}
