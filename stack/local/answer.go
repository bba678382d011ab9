package local

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// reaction is how the outside answered, in a form that a pod's kernel
// understands.
type reaction uint8

const (
	silence reaction = iota // nobody answered: neither do we
	refused                 // RST, or port unreachable
	noRoute                 // network unreachable
	noHost                  // host unreachable
	prohibited
)

// codes are the ICMPv4 and ICMPv6 forms of the reactions: destination unreachable
// (3 and 1) with the code (RFC 792, 1812 5.2.7.1, 4443 3.1).
var codes = [...]struct{ v4, v6 icmpCode }{
	refused:    {icmpCode{3, 3}, icmpCode{1, 4}},
	noRoute:    {icmpCode{3, 0}, icmpCode{1, 0}},
	noHost:     {icmpCode{3, 1}, icmpCode{1, 3}},
	prohibited: {icmpCode{3, 13}, icmpCode{1, 1}},
}

type icmpCode struct{ typ, code uint8 }

// reactionTo reads what a failed system call says of the way out. Errors that
// are the gateway's own trouble (descriptors, memory) and timeouts are
// silence: the pod's kernel tries again.
func reactionTo(err error) reaction {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return silence
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return silence
	}
	switch errno {
	case syscall.ECONNREFUSED, syscall.ECONNRESET:
		return refused
	case syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT, syscall.EINVAL:
		return noRoute
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return noHost
	case syscall.EACCES, syscall.EPERM:
		return prohibited
	}
	return silence
}

// quoteLen is how much of a packet an ICMP error returns (RFC 1812, 4.3.2.3:
// as much as fits in 576 bytes; ICMPv6 would allow more).
const quoteLen = 576 - header.IPv4MinimumSize - header.ICMPv4MinimumSize

// quote is the start of a packet as a pod sent it, for an ICMP error: network
// header without options and extensions, transport header, first payload.
type quote []byte

// quoteOf copies at most limit bytes of an inbound packet.
func quoteOf(pkt *stack.PacketBuffer, limit int) quote {
	q := make(quote, 0, limit)
	add := func(b []byte) { q = append(q, b[:min(len(b), limit-len(q))]...) }
	add(pkt.NetworkHeader().Slice())
	add(pkt.TransportHeader().Slice())
	rest := pkt.Data().AsRange()
	add(rest.Capped(limit - len(q)).ToSlice())
	return q
}

func (q quote) v4() bool { return q[0]>>4 == 4 }

func (q quote) src() netip.Addr {
	if q.v4() {
		return netip.AddrFrom4([4]byte(q[12:]))
	}
	return netip.AddrFrom16([16]byte(q[8:]))
}

// ttlOf is the TTL or hop limit that an inbound packet has left.
func ttlOf(pkt *stack.PacketBuffer) uint8 {
	h := pkt.NetworkHeader().Slice()
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		return header.IPv4(h).TTL()
	}
	return header.IPv6(h).HopLimit()
}

// answer tells the sender of q how the outside reacted, from the node address.
func (s *Stack) answer(q quote, r reaction) {
	c, proto := codes[r].v4, header.IPv4ProtocolNumber
	if !q.v4() {
		c, proto = codes[r].v6, header.IPv6ProtocolNumber
	}
	if c != (icmpCode{}) {
		s.icmpError(s.node[proto], q, c, 0)
	}
}

// icmpError sends an ICMP error about q to its sender; rest is the second word
// of the message, such as an MTU.
func (s *Stack) icmpError(from netip.Addr, q quote, c icmpCode, rest uint32) {
	msg := make([]byte, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(q))
	msg[0], msg[1] = c.typ, c.code
	binary.BigEndian.PutUint32(msg[4:], rest)
	s.count.icmpErrors.Add(1)
	s.sendICMP(from, q.src(), append(msg, q...))
}

// sendICMP sends an ICMP message, whose checksum it fills in, in as many
// fragments as it takes. It takes msg.
func (s *Stack) sendICMP(from, to netip.Addr, msg []byte) {
	src, dst := fullAddress(netip.AddrPortFrom(from, 0)).Addr, fullAddress(netip.AddrPortFrom(to, 0)).Addr
	route, err := s.net.FindRoute(nic, src, dst, netProto(to), false)
	if err != nil {
		return
	}
	defer route.Release()
	proto, sum := header.ICMPv4ProtocolNumber, uint16(0)
	if netProto(to) == header.IPv6ProtocolNumber {
		proto = header.ICMPv6ProtocolNumber
		sum = header.PseudoHeaderChecksum(proto, src, dst, uint16(len(msg)))
	}
	msg[2], msg[3] = 0, 0
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, sum))

	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + header.ICMPv4MinimumSize,
		Payload:            buffer.MakeWithData(msg[header.ICMPv4MinimumSize:]),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = proto
	copy(pkt.TransportHeader().Push(header.ICMPv4MinimumSize), msg)
	route.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: route.DefaultTTL()}, pkt)
}
