package local

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// errnos translates gVisor's errors by their text, which is what gonet keeps
// of them, so that callers can ask errors.Is(err, syscall.ECONNREFUSED).
var errnos = func() map[string]syscall.Errno {
	m := make(map[string]syscall.Errno)
	for err, errno := range map[tcpip.Error]syscall.Errno{
		&tcpip.ErrConnectionRefused{}:  syscall.ECONNREFUSED,
		&tcpip.ErrConnectionReset{}:    syscall.ECONNRESET,
		&tcpip.ErrConnectionAborted{}:  syscall.ECONNABORTED,
		&tcpip.ErrAborted{}:            syscall.ECONNABORTED,
		&tcpip.ErrClosedForSend{}:      syscall.EPIPE,
		&tcpip.ErrHostUnreachable{}:    syscall.EHOSTUNREACH,
		&tcpip.ErrNetworkUnreachable{}: syscall.ENETUNREACH,
		&tcpip.ErrTimeout{}:            syscall.ETIMEDOUT,
		&tcpip.ErrPortInUse{}:          syscall.EADDRINUSE,
		&tcpip.ErrNoPortAvailable{}:    syscall.EADDRNOTAVAIL,
		&tcpip.ErrBadLocalAddress{}:    syscall.EADDRNOTAVAIL,
		&tcpip.ErrMessageTooLong{}:     syscall.EMSGSIZE,
		&tcpip.ErrNotPermitted{}:       syscall.EPERM,
		&tcpip.ErrNoBufferSpace{}:      syscall.ENOBUFS,
	} {
		m[err.String()] = errno
	}
	return m
}()

// wrapErr is the error that the net package would give.
func wrapErr(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	if errno, ok := errnos[op.Err.Error()]; ok {
		op.Err = os.NewSyscallError(op.Op, errno)
	}
	return op
}

func opError(op, network string, from, to netip.AddrPort, err tcpip.Error) error {
	e := &net.OpError{Op: op, Net: network, Err: errors.New(err.String())}
	if from.IsValid() {
		e.Source = addrOf(network, from)
	}
	if to.IsValid() {
		e.Addr = addrOf(network, to)
	}
	return wrapErr(e)
}

func addrOf(network string, ap netip.AddrPort) net.Addr {
	if network == "udp" {
		return net.UDPAddrFromAddrPort(ap)
	}
	return net.TCPAddrFromAddrPort(ap)
}

// tcpConn is a connection of netstack with the errors of the net package. Its
// reader waits on one channel for its whole life, where gonet's makes and
// registers one for each wait.
type tcpConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
	wq *waiter.Queue

	readMu sync.Mutex // held by Read
	wake   chan struct{}
	entry  waiter.Entry // notifies wake, from the first wait on

	deadlineMu sync.Mutex
	deadline   *time.Timer // of Read
	late       atomic.Bool // it has passed
}

func newTCPConn(wq *waiter.Queue, ep tcpip.Endpoint) *tcpConn {
	c := &tcpConn{TCPConn: gonet.NewTCPConn(wq, ep), ep: ep, wq: wq}
	ep.SocketOptions().SetKeepAlive(true)
	interval := tcpip.KeepaliveIntervalOption(keepaliveInterval)
	ep.SetSockOpt(&interval)
	c.probeAfter(keepaliveIdle)
	ep.SocketOptions().SetDelayOption(false)
	return c
}

// probeAfter sets how long a connection is silent before the other side is asked
// whether it is there.
func (c *tcpConn) probeAfter(silence time.Duration) {
	idle := tcpip.KeepaliveIdleOption(silence)
	c.ep.SetSockOpt(&idle)
}

func (c *tcpConn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		if c.late.Load() {
			return 0, &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.ErrDeadlineExceeded}
		}
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrClosedForReceive:
			return 0, io.EOF
		case *tcpip.ErrWouldBlock:
		default:
			return 0, opError("read", "tcp", netip.AddrPort{}, netip.AddrPort{}, err)
		}
		if c.wake == nil {
			c.wait()
			continue // what came before was not notified
		}
		<-c.wake
	}
}

// wait makes what Read waits on.
func (c *tcpConn) wait() {
	wake := make(chan struct{}, 1)
	c.entry = waiter.NewFunctionEntry(waiter.ReadableEvents|waiter.EventErr|waiter.EventHUp, func(waiter.EventMask) { signal(wake) })
	c.wq.EventRegister(&c.entry)
	c.deadlineMu.Lock()
	c.wake = wake
	c.deadlineMu.Unlock()
}

func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// SetReadDeadline ends reads at t; the zero time lets them wait.
func (c *tcpConn) SetReadDeadline(t time.Time) error {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	if c.deadline != nil {
		c.deadline.Stop()
		c.deadline = nil
	}
	c.late.Store(false)
	if t.IsZero() {
		return nil
	}
	var timer *time.Timer
	passed := func() {
		c.late.Store(true)
		if c.wake != nil {
			signal(c.wake)
		}
	}
	left := time.Until(t)
	if left <= 0 {
		passed()
		return nil
	}
	timer = time.AfterFunc(left, func() {
		c.deadlineMu.Lock()
		defer c.deadlineMu.Unlock()
		if c.deadline == timer {
			passed()
		}
	})
	c.deadline = timer
	return nil
}

// SetDeadline is for reads and writes.
func (c *tcpConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *tcpConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, wrapErr(err)
}

// Stirs reports whether there is something to read, the end included, and
// whether the peer will send no more.
func (c *tcpConn) Stirs() (readable, hungUp bool) {
	ready := c.ep.Readiness(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	return ready != 0, ready&(waiter.EventRdHUp|waiter.EventErr|waiter.EventHUp) != 0
}

// Abort closes with a reset.
func (c *tcpConn) Abort() {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	c.ep.Close()
}

// udpConn is a datagram socket of netstack with the errors of the net package.
type udpConn struct {
	*gonet.UDPConn
	ep tcpip.Endpoint
	wq *waiter.Queue
}

func newUDPConn(wq *waiter.Queue, ep tcpip.Endpoint) *udpConn {
	// gonet's readers wait for data only, and would sleep through an ICMP
	// error. The queue is locked while it notifies.
	failed := waiter.NewFunctionEntry(waiter.EventErr, func(waiter.EventMask) { go wq.Notify(waiter.ReadableEvents) })
	wq.EventRegister(&failed)
	return &udpConn{gonet.NewUDPConn(wq, ep), ep, wq}
}

func (c *udpConn) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	return n, wrapErr(err)
}

func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	return n, from, wrapErr(err)
}

func (c *udpConn) Write(b []byte) (int, error) {
	n, err := c.UDPConn.Write(b)
	return n, wrapErr(err)
}

func (c *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.UDPConn.WriteTo(b, to)
	return n, wrapErr(err)
}

// tcpListener gives tcpConns.
type tcpListener struct {
	*gonet.TCPListener
	ep tcpip.Endpoint
	wq *waiter.Queue
}

// Accept waits for a connection; net.ErrClosed after Close.
func (l *tcpListener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, err := l.ep.Accept(nil)
		switch err.(type) {
		case nil:
			return newTCPConn(wq, ep), nil
		case *tcpip.ErrWouldBlock:
			<-ready
		default:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
	}
}

// ListenTCP listens at one of the gateway's addresses; an unspecified address
// listens at all of its family.
func (s *Stack) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	var wq waiter.Queue
	ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, netProto(at.Addr()), &wq)
	if err != nil {
		return nil, opError("listen", "tcp", netip.AddrPort{}, at, err)
	}
	ep.SocketOptions().SetReuseAddress(true)
	if err = ep.Bind(bindAddress(at)); err == nil {
		err = ep.Listen(listenBacklog)
	}
	if err != nil {
		ep.Close()
		return nil, opError("listen", "tcp", netip.AddrPort{}, at, err)
	}
	return &tcpListener{gonet.NewTCPListener(s.net, &wq, ep), ep, &wq}, nil
}

// ListenUDP receives datagrams at one of the gateway's addresses. Replies
// leave from that address.
func (s *Stack) ListenUDP(at netip.AddrPort) (net.PacketConn, error) {
	c, err := s.newUDP(at)
	if err != nil {
		return nil, opError("listen", "udp", netip.AddrPort{}, at, err)
	}
	return c, nil
}

// DialTCP connects to to. The zero from is the node address and any port; any
// other source is used as it is, also one that is not the gateway's, whose
// answers the plane must then bring here. Errors are those of the net package:
// errors.Is(err, syscall.ECONNREFUSED) and so on. A conversation that a policy
// cuts while it is silent ends some seconds later.
func (s *Stack) DialTCP(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	c, err := s.dialTCP(ctx, from, to)
	if err != nil {
		return nil, err
	}
	c.probeAfter(dialledIdle)
	return c, nil
}

func (s *Stack) dialTCP(ctx context.Context, from, to netip.AddrPort) (*tcpConn, error) {
	from = s.sourceFor(from, to)
	wq := new(waiter.Queue)
	ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, netProto(to.Addr()), wq)
	if err != nil {
		return nil, opError("dial", "tcp", from, to, err)
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	ep.SocketOptions().SetReuseAddress(true)
	if err = ep.Bind(fullAddress(from)); err == nil {
		err = ep.Connect(fullAddress(to))
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-connected:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Source: addrOf("tcp", from), Addr: addrOf("tcp", to), Err: ctx.Err()}
		}
	}
	if err != nil {
		ep.Close()
		return nil, opError("dial", "tcp", from, to, err)
	}
	return newTCPConn(wq, ep), nil
}

// DialUDP makes a connected datagram socket; from is as for DialTCP.
func (s *Stack) DialUDP(from, to netip.AddrPort) (net.Conn, error) {
	c, err := s.dialUDP(from, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (s *Stack) dialUDP(from, to netip.AddrPort) (*udpConn, error) {
	from = s.sourceFor(from, to)
	c, err := s.newUDP(from)
	if err == nil {
		if err = c.ep.Connect(fullAddress(to)); err != nil {
			c.Close()
		}
	}
	if err != nil {
		return nil, opError("dial", "udp", from, to, err)
	}
	return c, nil
}

func (s *Stack) newUDP(at netip.AddrPort) (*udpConn, tcpip.Error) {
	wq := new(waiter.Queue)
	ep, err := s.net.NewEndpoint(udp.ProtocolNumber, netProto(at.Addr()), wq)
	if err != nil {
		return nil, err
	}
	ep.SocketOptions().SetReceiveBufferSize(udpBuffer, true)
	if err := ep.Bind(bindAddress(at)); err != nil {
		ep.Close()
		return nil, err
	}
	return newUDPConn(wq, ep), nil
}

// sourceFor completes from with the node address of to's family.
func (s *Stack) sourceFor(from, to netip.AddrPort) netip.AddrPort {
	if !from.Addr().IsValid() || from.Addr().IsUnspecified() {
		return netip.AddrPortFrom(s.node[netProto(to.Addr())], from.Port())
	}
	return from
}

// bindAddress leaves the address open where at is unspecified.
func bindAddress(at netip.AddrPort) tcpip.FullAddress {
	if at.Addr().IsUnspecified() {
		return tcpip.FullAddress{NIC: nic, Port: at.Port()}
	}
	return fullAddress(at)
}

const (
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	dialledIdle       = 5 * time.Second // of DialTCP: the plane refuses the question, which ends what was cut
	timeWaitTimeout   = time.Second
	listenBacklog     = 1024
	udpBuffer         = 1 << 20 // bytes of datagrams that wait to be read
)
