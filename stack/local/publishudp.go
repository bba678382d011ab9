package local

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpClientKey is a client of a published UDP port.
type udpClientKey struct {
	port *published
	from netip.AddrPort
}

// udpClient is the conversation of one client with its target.
type udpClient struct {
	key     udpClientKey
	session *session
	target  netip.AddrPort
	conn    *udpConn
	host    *net.UDPConn // the listener
	// info is the control message that makes answers leave from the address
	// that the client sent to, where the listener has several.
	info []byte
}

// listenUDP opens a socket that says where datagrams were sent to, if at is
// more than one address.
func listenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.ListenUDP(family("udp", at.Addr()), net.UDPAddrFromAddrPort(at))
	if err != nil || !at.Addr().IsUnspecified() {
		return c, err
	}
	raw, err := c.SyscallConn()
	if err == nil {
		if cerr := raw.Control(func(fd uintptr) {
			if at.Addr().Is4() {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		}); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// answerInfo turns the control message of a received datagram into that of its
// answer: from the same address, through any interface.
func answerInfo(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:])})
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data)})
		}
	}
	return nil
}

// receive is the goroutine of a UDP listener.
func (p *publisher) receive(port *published, host *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	oob := make([]byte, 128)
	for {
		n, oobn, _, from, err := host.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			p.clients.removeAll(func(k udpClientKey) bool { return k.port == port })
			return
		} else if err != nil {
			continue
		}
		k := udpClientKey{port, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
		pub := port.pub.Load()
		if !pub.admits(k.from.Addr()) {
			p.s.count.publishedFailed.Add(1)
			continue
		}
		target := pub.Target
		c, ok := p.clients.get(k)
		if ok && c.target != target {
			p.clients.remove(k, c.session)
			ok = false
		}
		if !ok {
			if c = p.newClient(k, host, target, answerInfo(oob[:oobn])); c == nil {
				p.s.count.publishedFailed.Add(1)
				continue
			}
		}
		c.session.touch()
		// Not blocking: one client's full queue is not the others' business.
		c.conn.ep.Write(bytes.NewReader(buf[:n]), tcpip.WriteOptions{})
	}
}

func (p *publisher) newClient(k udpClientKey, host *net.UDPConn, target netip.AddrPort, info []byte) *udpClient {
	from := p.source(k.from, target)
	conn, err := p.s.dialUDP(from, target)
	if err != nil && from.IsValid() && errors.Is(err, syscall.EADDRINUSE) {
		conn, err = p.s.dialUDP(netip.AddrPortFrom(from.Addr(), 0), target)
	}
	if err != nil {
		return nil
	}
	c := &udpClient{key: k, target: target, conn: conn, host: host, info: info}
	c.session = p.clients.add(k, c, udpIdleStream, func() { conn.Close() })
	if c.session == nil {
		conn.Close()
		return nil
	}
	p.s.count.published.Add(1)
	p.s.wg.Go(func() {
		for c.answer() == nil {
		}
		p.clients.remove(k, c.session)
	})
	return c
}

// answer waits for a datagram of the target and sends it to the client.
func (c *udpClient) answer() error {
	await(c.conn.ep, c.conn.wq, waiter.ReadableEvents)
	buf := datagramBuffers.Get().(*[maxDatagram]byte)
	defer datagramBuffers.Put(buf)
	dst := tcpip.SliceWriter(buf[:])
	res, rerr := c.conn.ep.Read(&dst, tcpip.ReadOptions{})
	switch rerr.(type) {
	case nil:
	case *tcpip.ErrWouldBlock:
		return nil
	default: // the pod's port is closed, or the session is
		return net.ErrClosed
	}
	c.session.touch()
	if _, _, err := c.host.WriteMsgUDPAddrPort(buf[:res.Count], c.info, c.key.from); errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
