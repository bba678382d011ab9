package local

// Egress: flows to the outside end here and are made again with sockets of the
// gateway's own namespace.
//
// netstack is promiscuous, so that a packet for any address reaches the
// transport protocols; one that no endpoint wants comes to the default
// handlers below, on the worker's thread. They look at the destination, refuse
// it or begin a conversation, and return.
//
//	TCP   a SYN has a socket connect first. If that succeeds package splice
//	      completes the handshake with the pod and carries on, without netstack;
//	      else the pod gets what really happened: a reset, an ICMP error, or
//	      silence.
//	UDP   one connected socket a flow, until it is idle.
//	echo  one ping socket a conversation, until it is idle.
//
// TTLs are carried over and ICMP errors relayed, see errqueue.go.

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"podgate/stack/packet"
	"podgate/stack/splice"
)

type egress struct {
	s     *Stack
	flows *sessions[stack.TransportEndpointID, *udpFlow]
	echo  *echoes
}

func startEgress(s *Stack) *egress {
	e := &egress{
		s:     s,
		flows: newSessions[stack.TransportEndpointID, *udpFlow](s.cfg.Limits.UDPFlows, &s.count.udpEvicted),
	}
	e.echo = startEchoes(s)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, e.handleTCP)
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, e.handleUDP)
	s.net.SetTransportProtocolHandler(icmp.ProtocolNumber4, e.echo.handle)
	s.net.SetTransportProtocolHandler(icmp.ProtocolNumber6, e.echo.handle)
	return e
}

func (e *egress) close() {
	e.flows.close()
	e.echo.close()
}

// handleTCP sees each segment for no connection of netstack's; false makes
// netstack reset it.
func (e *egress) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	const synAck = header.TCPFlagSyn | header.TCPFlagAck
	h := header.TCP(pkt.TransportHeader().Slice())
	pod, to := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	seg := splice.Segment{
		Tuple: packet.Tuple{
			Src: packet.AddrFrom(pod.Addr()), SrcPort: pod.Port(),
			Dst: packet.AddrFrom(to.Addr()), DstPort: to.Port(), Proto: packet.TCP,
		},
		Seq: h.SequenceNumber(), Ack: h.AckNumber(), Flags: uint8(h.Flags()), Window: h.WindowSize(),
		Options: h.Options(),
	}
	known, ok := e.s.device.splicer.Admits(seg.Tuple)
	if known {
		// It came in fragments.
		seg.Data = pkt.Data().AsRange().ToSlice()
		return !valid(id, h, pkt) || e.s.device.splicer.Deliver(&seg)
	}
	at, onHost := e.s.hostSide(to, packet.TCP)
	if h.Flags()&synAck != header.TCPFlagSyn || e.s.own[to.Addr()] && !onHost {
		return false
	}
	switch {
	case !valid(id, h, pkt):
		return true
	case !onHost && e.s.Refuses(to.Addr()):
		e.s.count.tcpRefused.Add(1)
		e.s.answer(quoteOf(pkt, quoteLen), prohibited)
		return true
	case !ok:
		e.s.count.tcpOverLimit.Add(1)
		return true
	}
	if onHost {
		to = at
	}
	return e.connect(&seg, to, ttlOf(pkt), quoteOf(pkt, quoteLen))
}

// valid says whether the checksum of a segment is right.
func valid(id stack.TransportEndpointID, h header.TCP, pkt *stack.PacketBuffer) bool {
	return pkt.RXChecksumValidated ||
		h.IsChecksumValid(id.RemoteAddress, id.LocalAddress, pkt.Data().Checksum(), uint16(pkt.Data().Size()))
}

// connect has a socket of the gateway's namespace connect for a pod, and the pod
// told how that ends. False makes netstack reset the pod's SYN.
func (e *egress) connect(syn *splice.Segment, to netip.AddrPort, ttl uint8, q quote) bool {
	e.s.count.tcpDials.Add(1)
	v4 := to.Addr().Is4()
	dialed := func(fd int, errno unix.Errno) (reset bool) {
		if errno == 0 {
			// Once connected, ICMP errors are hints for the kernel, not failures.
			forgetErrors(fd, v4)
			return false
		}
		e.s.count.tcpFailed.Add(1)
		rep := report{errno: errno}
		// The error queue says which router or host it was that answered. A refusal
		// by RST leaves no entry.
		if fd >= 0 && errno != unix.ECONNREFUSED && errno != unix.ETIMEDOUT {
			if r, ok := readReport(fd, nil); ok {
				rep = r
			}
		}
		if !rep.icmp && reactionTo(rep.errno) == refused {
			return true
		}
		if errno != unix.ECANCELED {
			e.s.relay(q, rep)
		}
		return false
	}
	fd, err := beginConnect(to, ttl)
	if err == nil {
		if err = e.s.device.splicer.Open(syn, fd, dialed); err == nil {
			e.s.device.settled = true
			return true
		}
	}
	var errno unix.Errno
	errors.As(err, &errno)
	reset := dialed(fd, errno)
	if fd >= 0 {
		unix.Close(fd)
	}
	return !reset
}

// beginConnect makes a socket that connects. With an error it may be one that has
// failed to, or -1.
func beginConnect(to netip.AddrPort, ttl uint8) (int, error) {
	var sa unix.Sockaddr
	domain := unix.AF_INET6
	if a := to.Addr(); a.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := outsideOptions(fd, to.Addr().Is4(), ttl); err != nil {
		return fd, err
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepaliveIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepaliveInterval / time.Second)},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fd, err
		}
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return fd, err
	}
	return fd, nil
}
