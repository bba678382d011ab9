package local

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"podgate/stack/packet"
)

// How long a UDP conversation is remembered after its last datagram: as
// conntrack does, longer once it has gone to and fro; a DNS query is over
// sooner (resolvers repeat theirs after 5 s).
const (
	udpIdle       = 30 * time.Second
	udpIdleStream = 120 * time.Second
	udpIdleDNS    = 10 * time.Second
	dnsPort       = 53
)

const maxDatagram = 65535

var datagramBuffers = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// udpFlow is a UDP conversation of a pod with the outside.
type udpFlow struct {
	e       *egress
	id      stack.TransportEndpointID
	session *session
	pod     *udpConn
	host    *net.UDPConn // nil until up has dialled
	raw     syscall.RawConn
	ttl     int // of host, as last set; up's own

	// first is the headers of the first datagram, payload where its UDP
	// header ends, for ICMP errors.
	first   quote
	payload int

	asked    atomic.Bool // more than once
	answered atomic.Bool
}

// handleUDP sees each datagram for no endpoint, the first of a flow; false
// makes netstack answer port unreachable.
func (e *egress) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	to := addrPort(id.LocalAddress, id.LocalPort)
	at, onHost := e.s.hostSide(to, packet.UDP)
	if e.s.own[to.Addr()] && !onHost {
		return false
	}
	if to.Addr().IsMulticast() {
		return true // nobody is told (RFC 1122, 3.2.2)
	}
	if onHost {
		to = at
	} else if e.s.Refuses(to.Addr()) {
		e.s.count.udpRefused.Add(1)
		e.s.answer(quoteOf(pkt, quoteLen), prohibited)
		return true
	}
	payload := len(pkt.NetworkHeader().Slice()) + header.UDPMinimumSize
	f := &udpFlow{e: e, id: id, first: quoteOf(pkt, payload), payload: payload, ttl: int(ttlOf(pkt))}
	wq := new(waiter.Queue)
	ep, err := udp.NewForwarderRequest(e.s.net, id, pkt.Clone()).CreateEndpoint(wq)
	if err != nil {
		return true
	}
	opts := ep.SocketOptions()
	opts.SetReceiveBufferSize(udpBuffer, false)
	opts.SetSendBufferSize(udpBuffer, false)
	opts.SetReceiveTTL(true)
	opts.SetReceiveHopLimit(true)
	f.pod = newUDPConn(wq, ep)

	idle := udpIdle
	if to.Port() == dnsPort {
		idle = udpIdleDNS
	}
	ctx, cancel := context.WithCancel(e.s.ctx)
	e.s.wg.Add(1)
	f.session = e.flows.add(id, f, idle, func() { cancel(); f.pod.Close() })
	if f.session == nil {
		e.s.wg.Done()
		cancel()
		f.pod.Close()
		return true
	}
	e.s.count.udpFlows.Add(1)
	go f.up(ctx, to)
	return true
}

// up dials and carries the pod's datagrams to the outside.
func (f *udpFlow) up(ctx context.Context, to netip.AddrPort) {
	defer f.e.s.wg.Done()
	defer f.e.flows.remove(f.id, f.session)
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = outsideOptions(int(fd), to.Addr().Is4(), uint8(f.ttl)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	host, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		f.e.s.answer(f.first, reactionTo(err))
		return
	}
	defer host.Close()
	f.host = host.(*net.UDPConn)
	f.host.SetReadBuffer(udpBuffer)
	if f.raw, err = f.host.SyscallConn(); err != nil {
		return
	}
	down := make(chan struct{})
	f.e.s.wg.Go(func() {
		defer close(down)
		f.down()
	})
	for f.forward() == nil {
	}
	host.Close()
	<-down
}

// forward waits for a datagram of the pod's and sends it.
func (f *udpFlow) forward() error {
	await(f.pod.ep, f.pod.wq, waiter.ReadableEvents)
	buf := datagramBuffers.Get().(*[maxDatagram]byte)
	defer datagramBuffers.Put(buf)
	dst := tcpip.SliceWriter(buf[:])
	res, err := f.pod.ep.Read(&dst, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
	case *tcpip.ErrWouldBlock:
		return nil
	default: // the pod's port is closed, or the flow is
		return io.EOF
	}
	f.session.touch()
	if f.answered.Load() && !f.asked.Swap(true) && f.id.LocalPort != dnsPort {
		f.session.idle.Store(int64(udpIdleStream))
	}
	ttl := int(res.ControlMessages.TTL)
	if res.ControlMessages.HasHopLimit {
		ttl = int(res.ControlMessages.HopLimit)
	}
	return f.send(buf[:res.Count], ttl)
}

func (f *udpFlow) send(b []byte, ttl int) error {
	var serr error
	err := f.raw.Write(func(fd uintptr) bool {
		if ttl != f.ttl && ttl > 0 {
			f.ttl = ttl
			outsideOptions(int(fd), f.first.v4(), uint8(ttl))
		}
		_, serr = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if serr != nil && serr != unix.EAGAIN {
			// It may be the error of an earlier datagram, which down relays.
			_, serr = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		return serr != unix.EAGAIN
	})
	if err == nil && serr != nil && serr != unix.EMSGSIZE {
		f.e.s.answer(f.quote(b), reactionTo(serr))
	}
	return err
}

// down carries answers, and ICMP errors, to the pod.
func (f *udpFlow) down() {
	for {
		var buf *[maxDatagram]byte
		var n int
		var rerr error
		var rep report
		var reported bool
		err := f.raw.Read(func(fd uintptr) bool {
			buf = datagramBuffers.Get().(*[maxDatagram]byte)
			if n, rerr = unix.Read(int(fd), buf[:]); rerr == nil {
				return true
			}
			// An error says what the queue holds; an error taken by send
			// leaves only the queue.
			if rep, reported = readReport(int(fd), buf[:]); reported || rerr != unix.EAGAIN {
				return true
			}
			datagramBuffers.Put(buf)
			buf = nil
			return false
		})
		switch {
		case err != nil:
		case reported:
			f.e.s.relay(f.quote(rep.payload), rep)
		case rerr == nil:
			f.session.touch()
			f.answered.Store(true)
			f.pod.Write(buf[:n])
		}
		if buf != nil {
			datagramBuffers.Put(buf)
		}
		if err != nil {
			return
		}
	}
}

// quote is the start of a datagram of the pod's with this payload.
func (f *udpFlow) quote(payload []byte) quote {
	q := append(make(quote, 0, quoteLen), f.first...)
	header.UDP(q[f.payload-header.UDPMinimumSize:]).SetLength(uint16(header.UDPMinimumSize + len(payload)))
	if q.v4() {
		h := header.IPv4(q)
		h.SetTotalLength(uint16(f.payload + len(payload)))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(q).SetPayloadLength(uint16(f.payload - header.IPv6MinimumSize + len(payload)))
	}
	return append(q, payload[:min(len(payload), cap(q)-len(q))]...)
}
