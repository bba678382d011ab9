package local

// What really happened outside. A socket with IP_RECVERR keeps the ICMP errors
// about its packets in its error queue, with who sent them and what they said
// (ip(7)); relayed into the pod they make traceroute and path MTU discovery
// work through sockets as they would through a router.

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// report is one entry of an error queue.
type report struct {
	icmp    bool       // an ICMP error, rather than one of this host
	from    netip.Addr // who sent the ICMP error
	code    icmpCode
	mtu     uint32
	errno   syscall.Errno
	payload []byte // start of the datagram's payload, in the buffer given
}

// sockExtendedErr is the length of struct sock_extended_err (linux/errqueue.h).
const sockExtendedErr = 16

// readReport takes the next entry off fd's error queue. buf gets the payload.
func readReport(fd int, buf []byte) (report, bool) {
	var oob [256]byte
	n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return report{}, false
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return report{}, false
	}
	for _, m := range msgs {
		v4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(m.Data) < sockExtendedErr {
			continue
		}
		r := report{
			errno:   syscall.Errno(binary.NativeEndian.Uint32(m.Data)),
			code:    icmpCode{m.Data[5], m.Data[6]},
			mtu:     binary.NativeEndian.Uint32(m.Data[8:]),
			payload: buf[:min(n, len(buf))], // recvmsg wants room for a byte
		}
		origin, offender := m.Data[4], m.Data[sockExtendedErr:]
		switch {
		case origin == unix.SO_EE_ORIGIN_ICMP && v4 && len(offender) >= 8:
			r.icmp, r.from = true, netip.AddrFrom4([4]byte(offender[4:]))
		case origin == unix.SO_EE_ORIGIN_ICMP6 && v6 && len(offender) >= 24:
			r.icmp, r.from = true, netip.AddrFrom16([16]byte(offender[8:]))
		}
		return r, true
	}
	return report{}, false
}

// relay tells the sender of q what r says.
func (s *Stack) relay(q quote, r report) {
	switch {
	case r.icmp && q.v4() == r.from.Is4():
		rest := uint32(0)
		if tooBig := (r.code == icmpCode{3, 4}) || r.code.typ == 2 && !q.v4(); tooBig {
			rest = r.mtu
		}
		s.icmpError(r.from, q, r.code, rest)
	case r.errno == syscall.EMSGSIZE:
		// This host's own path MTU: fragmentation needed, or packet too big.
		c, node := icmpCode{3, 4}, s.sourceFor(netip.AddrPort{}, netip.AddrPortFrom(q.src(), 0)).Addr()
		if !q.v4() {
			c = icmpCode{2, 0}
		}
		s.icmpError(node, q, c, r.mtu)
	default:
		s.answer(q, reactionTo(r.errno))
	}
}

// outsideOptions makes a socket keep ICMP errors in its queue and send with ttl.
func outsideOptions(fd int, v4 bool, ttl uint8) error {
	level, recverr, hops := unix.SOL_IPV6, unix.IPV6_RECVERR, unix.IPV6_UNICAST_HOPS
	if v4 {
		level, recverr, hops = unix.SOL_IP, unix.IP_RECVERR, unix.IP_TTL
	}
	if err := unix.SetsockoptInt(fd, level, recverr, 1); err != nil {
		return err
	}
	return setTTL(fd, level, hops, ttl)
}

// forgetErrors has a socket with outsideOptions keep ICMP errors no longer.
func forgetErrors(fd int, v4 bool) {
	if v4 {
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 0)
	} else {
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 0)
	}
}

func setTTL(fd, level, hops int, ttl uint8) error {
	return unix.SetsockoptInt(fd, level, hops, max(int(ttl), 1))
}
