package local

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"podgate/stack/link"
	"podgate/stack/packet"
	"podgate/stack/splice"
)

// nic is the only interface of the netstack.
const nic tcpip.NICID = 1

// Buffer sizes of a TCP connection in bytes. The defaults hold several
// super-frames; receive buffers grow to the maximum with the bandwidth-delay
// product. Memory is used only for bytes that are queued.
const (
	tcpBufferMin     = 4 << 10
	tcpBufferDefault = 1 << 20
	tcpBufferMax     = 8 << 20
)

// Config says who the local stack is. MAC, GatewayMAC and at least one address
// are needed; the rest has defaults.
type Config struct {
	// Addrs are the gateway's own addresses of both families; the first of a
	// family is the node address, which nameless dials and ICMP errors come from.
	Addrs []netip.Addr
	// MAC is the local port's address, GatewayMAC the destination of every
	// frame that it sends: the plane routes them.
	MAC, GatewayMAC packet.MAC
	// MTU of the segment in bytes, without Ethernet header; 0 means 1500.
	MTU int
	// Forbidden says which destinations egress refuses beyond the built-in
	// ones (see Refuses). It is called from many goroutines; nil forbids none.
	Forbidden func(netip.Addr) bool
	// Allowed are destinations that egress dials although Refuses would
	// otherwise hold them back.
	Allowed []netip.Prefix
	// EgressOff refuses every destination outside.
	EgressOff bool
	// LowPortOffset is added to published ports that this process may not listen
	// on for want of privilege; 0 leaves them unserved.
	LowPortOffset uint16
	// Limits bound what egress and published ports may hold.
	Limits Limits
	// Log gets state changes; nil discards them.
	Log *slog.Logger

	// echoSocket opens the socket of a ping to an address; for tests.
	echoSocket func(netip.Addr) (fd int, isRaw bool, err error)
}

// Stack is a TCP/IP stack in the process, reached through one link.Device.
// Its methods may be called from any goroutine.
type Stack struct {
	cfg    Config
	log    *slog.Logger
	device *device
	net    *stack.Stack
	node   map[tcpip.NetworkProtocolNumber]netip.Addr // first address of each family
	own    map[netip.Addr]bool
	host   *hostAddrs
	egress *egress
	pub    *publisher
	count  counters

	hostPorts atomic.Pointer[map[HostPort]bool]

	ctx    context.Context // ends with the stack; bounds dials and sessions
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of this package
	close  sync.Once
}

// New builds the stack and starts egress. Close releases it.
func New(cfg Config) (*Stack, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.echoSocket == nil {
		cfg.echoSocket = openEchoSocket
	}
	cfg.Limits.setDefaults()
	dev, err := newDevice(splice.Config{
		MAC: cfg.MAC, GatewayMAC: cfg.GatewayMAC, MTU: cfg.MTU,
		KeepaliveIdle: keepaliveIdle, KeepaliveInterval: keepaliveInterval,
		Making: cfg.Limits.Dials, MakingPerSource: cfg.Limits.DialsPerSource, Connections: cfg.Limits.Connections,
	})
	if err != nil {
		return nil, fmt.Errorf("local device: %w", err)
	}
	ns, err := newNetstack(endpoint{dev}, cfg.Addrs)
	if err != nil {
		dev.Close()
		return nil, err
	}
	s := &Stack{
		cfg: cfg, log: cfg.Log, device: dev, net: ns,
		node: make(map[tcpip.NetworkProtocolNumber]netip.Addr),
		own:  make(map[netip.Addr]bool),
	}
	for _, a := range cfg.Addrs {
		a = a.Unmap()
		s.own[a] = true
		if _, ok := s.node[netProto(a)]; !ok {
			s.node[netProto(a)] = a
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if s.host, err = watchHostAddrs(s.ctx, &s.wg, s.log); err != nil {
		s.Close()
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	s.pub = newPublisher(s)
	s.egress = startEgress(s)
	return s, nil
}

// newNetstack makes a gVisor stack with one promiscuous, spoofing interface
// on ep that owns addrs and routes everything to it.
func newNetstack(ep stack.LinkEndpoint, addrs []netip.Addr) (*stack.Stack, error) {
	ns := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		// Packets to addresses of our own leave as well: the plane, not
		// netstack, decides what node:nodePort means.
		HandleLocal: false,
	})
	fail := func(what string, err tcpip.Error) (*stack.Stack, error) {
		ns.Close()
		return nil, fmt.Errorf("netstack: %s: %s", what, err)
	}
	if err := tuneTCP(ns); err != nil {
		return fail("tcp options", err)
	}
	if err := ns.CreateNIC(nic, ep); err != nil {
		return fail("interface", err)
	}
	if err := ns.SetPromiscuousMode(nic, true); err != nil {
		return fail("promiscuous mode", err)
	}
	if err := ns.SetSpoofing(nic, true); err != nil {
		return fail("spoofing", err)
	}
	for _, a := range addrs {
		pa := tcpip.ProtocolAddress{
			Protocol:          netProto(a),
			AddressWithPrefix: tcpip.AddrFromSlice(a.Unmap().AsSlice()).WithPrefix(),
		}
		if err := ns.AddProtocolAddress(nic, pa, stack.AddressProperties{}); err != nil {
			return fail("address "+a.String(), err)
		}
	}
	ns.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return ns, nil
}

// tuneTCP turns on what a local path of 10 Gb/s needs and gVisor leaves off.
func tuneTCP(ns *stack.Stack) tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true)
	// RACK marks too much as lost when super-frames are reordered by nobody.
	recovery := tcpip.TCPRecovery(0)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}
	// The way to a pod is microseconds: 2 MSL of a minute would only hold memory
	// and refuse a client that reuses its port.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(timeWaitTimeout)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &moderate, &rcv, &snd, &timeWait} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return err
		}
	}
	return nil
}

// Device is the port that the plane attaches. The stack owns it: Close closes it.
func (s *Stack) Device() link.Device { return s.device }

// Close ends every connection, listener and session, and returns when every
// goroutine has. A second Close does nothing.
func (s *Stack) Close() error {
	s.close.Do(func() {
		s.device.detach()
		s.cancel()
		if s.pub != nil {
			s.pub.close()
		}
		if s.egress != nil {
			s.egress.close()
		}
		s.net.Close()
		s.wg.Wait()
		s.net.Wait()
		s.device.Close()
	})
	return nil
}

// netProto is gVisor's name for the family of a.
func netProto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Unmap().Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// fullAddress converts for gVisor; the zero AddrPort becomes the zero FullAddress.
func fullAddress(ap netip.AddrPort) tcpip.FullAddress {
	if !ap.IsValid() {
		return tcpip.FullAddress{}
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(ap.Addr().Unmap().AsSlice()), Port: ap.Port()}
}

// addrPort converts from gVisor.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(addr, port)
}
