package local

// Egress: flows to the outside end here and are made again with sockets of the
// gateway's own namespace.
//
// netstack is promiscuous, so that a packet for any address reaches the
// transport protocols; one that no endpoint wants comes to the default
// handlers below, on the worker's thread. They look at the destination, refuse
// it or start a goroutine, and return.
//
//	TCP   a SYN dials first. If that succeeds the handshake with the pod is
//	      completed and the two connections are spliced; else the pod gets
//	      what really happened: a reset, an ICMP error, or silence.
//	UDP   one connected socket a flow, until it is idle.
//	echo  one ping socket a conversation, until it is idle.
//
// TTLs are carried over and ICMP errors relayed, see errqueue.go.

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"podgate/stack/packet"
)

// dialTimeout ends a dial that nobody answers. The pod's kernel repeats its
// SYN after 1, 3, 7, 15, 31 s: the last finds a new dial.
const dialTimeout = 30 * time.Second

type egress struct {
	s     *Stack
	tcp   *tcp.Forwarder
	flows *sessions[stack.TransportEndpointID, *udpFlow]
	echo  *echoes

	mu      sync.Mutex
	closed  bool
	dials   map[stack.TransportEndpointID]dial
	sources map[netip.Addr]int // dials by pod address
	conns   int                // spliced connections
}

// dial is a TCP connection in the making.
type dial struct {
	syn quote
	ttl uint8
}

func startEgress(s *Stack) *egress {
	e := &egress{
		s:       s,
		flows:   newSessions[stack.TransportEndpointID, *udpFlow](s.cfg.Limits.UDPFlows, &s.count.udpEvicted),
		dials:   make(map[stack.TransportEndpointID]dial),
		sources: make(map[netip.Addr]int),
	}
	e.echo = startEchoes(s)
	// The limits are kept here, where they count per source.
	e.tcp = tcp.NewForwarder(s.net, tcpBufferDefault, s.cfg.Limits.Dials+1, e.connect)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, e.handleTCP)
	s.net.SetTransportProtocolHandler(udp.ProtocolNumber, e.handleUDP)
	s.net.SetTransportProtocolHandler(icmp.ProtocolNumber4, e.echo.handle)
	s.net.SetTransportProtocolHandler(icmp.ProtocolNumber6, e.echo.handle)
	return e
}

func (e *egress) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.flows.close()
	e.echo.close()
}

// handleTCP sees each segment for no connection; false makes netstack reset it.
func (e *egress) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	const synAck = header.TCPFlagSyn | header.TCPFlagAck
	h := header.TCP(pkt.TransportHeader().Slice())
	pod, to := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	_, onHost := e.s.hostSide(to, packet.TCP)
	if h.Flags()&synAck != header.TCPFlagSyn || e.s.own[to.Addr()] && !onHost {
		return false
	}
	if !onHost && e.s.Refuses(to.Addr()) {
		e.s.count.tcpRefused.Add(1)
		e.s.answer(quoteOf(pkt, quoteLen), prohibited)
		return true
	}
	if repeated, ok := e.begin(id, pod.Addr(), pkt); repeated {
		return true
	} else if !ok {
		e.s.count.tcpOverLimit.Add(1)
		return true
	}
	if !e.tcp.HandlePacket(id, pkt) { // starts connect
		e.done(id, pod.Addr())
		return false
	}
	return true
}

// begin enters a dial, unless it is under way or over a limit.
func (e *egress) begin(id stack.TransportEndpointID, pod netip.Addr, pkt *stack.PacketBuffer) (repeated, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, repeated := e.dials[id]; repeated {
		return true, false
	}
	l := e.s.cfg.Limits
	if e.closed || len(e.dials) >= l.Dials || e.sources[pod] >= l.DialsPerSource || e.conns >= l.Connections {
		return false, false
	}
	e.dials[id] = dial{quoteOf(pkt, quoteLen), ttlOf(pkt)}
	e.sources[pod]++
	e.s.wg.Add(1) // done calls Done
	return false, true
}

// done takes a dial out.
func (e *egress) done(id stack.TransportEndpointID, pod netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.dials, id)
	if e.sources[pod]--; e.sources[pod] == 0 {
		delete(e.sources, pod)
	}
	e.s.wg.Done()
}

// connect dials for a pod and tells it the outcome, in a goroutine of its own.
func (e *egress) connect(r *tcp.ForwarderRequest) {
	id := r.ID()
	e.mu.Lock()
	d := e.dials[id]
	e.mu.Unlock()
	pod, to := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)

	e.s.count.tcpDials.Add(1)
	if at, ok := e.s.hostSide(to, packet.TCP); ok {
		to = at
	}
	host, rep := dialHost(e.s.ctx, to, d.ttl)
	if host == nil {
		e.s.count.tcpFailed.Add(1)
		reset := !rep.icmp && reactionTo(rep.errno) == refused
		r.Complete(reset)
		if !reset && e.s.ctx.Err() == nil {
			e.s.relay(d.syn, rep)
		}
		e.done(id, pod.Addr())
		return
	}
	wq := new(waiter.Queue)
	ep, err := r.CreateEndpoint(wq)
	r.Complete(false) // the pod went away during the handshake, if err
	if err != nil {
		host.Abort()
		e.done(id, pod.Addr())
		return
	}
	e.mu.Lock()
	e.conns++
	e.mu.Unlock()
	conn := newTCPConn(wq, ep)
	e.s.wg.Add(1)
	defer e.s.wg.Done()
	e.done(id, pod.Addr())
	splice(&e.s.wg, conn, host)
	e.mu.Lock()
	e.conns--
	e.mu.Unlock()
}

// dialHost connects a socket of the gateway's namespace. Without a connection
// the report says why.
func dialHost(ctx context.Context, to netip.AddrPort, ttl uint8) (*hostConn, report) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	// The error queue goes with the socket, which Dialer closes when it fails:
	// a second descriptor keeps it.
	kept := -1
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				if err = outsideOptions(int(fd), to.Addr().Is4(), ttl, true); err == nil {
					kept, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
				}
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if kept >= 0 {
		defer unix.Close(kept)
	}
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno); ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			errno = syscall.ETIMEDOUT
		}
		// The kept socket says which router or host it was that answered. A
		// refusal by RST leaves no entry.
		if errno != syscall.ECONNREFUSED && errno != syscall.ETIMEDOUT && kept >= 0 {
			if r, ok := readReport(kept, nil); ok {
				return nil, r
			}
		}
		return nil, report{errno: errno}
	}
	// Once connected, ICMP errors are hints for the kernel, not failures.
	outsideOptions(kept, to.Addr().Is4(), ttl, false)
	host, err := newHostConn(conn.(*net.TCPConn))
	if err != nil {
		conn.Close()
		return nil, report{errno: syscall.ENOTSUP}
	}
	return host, report{}
}
