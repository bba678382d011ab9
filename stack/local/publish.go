package local

// Published ports: host listeners whose connections continue into the cluster.
//
// reconcile makes the set of listeners equal to the list it is given; a
// listener is known by its address and protocol, its target may change under
// it. A connection is accepted by the host, dialled again from netstack with
// the client's own address and port as source, so that the pod sees its client
// and policy judges it, and spliced. Answers to a foreign address come back
// through the plane, which knows the flow. Where no pod could answer, because
// the client is on loopback, on this host or on its link, the node address
// stands in. Connections outlive their publication, as they would behind a
// packet filter.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"podgate/stack/packet"
)

// Publication is a host port that leads into the cluster.
type Publication struct {
	// HostAddr is where the host listens; an unspecified address is every
	// address of its family.
	HostAddr netip.AddrPort
	// Proto is packet.TCP or packet.UDP.
	Proto packet.Proto
	// Target is where the connection continues: a pod, or the node address and
	// a node port.
	Target netip.AddrPort
	// Sources are the clients that are served, by their true address; none
	// means everybody (a Service's loadBalancerSourceRanges).
	Sources []netip.Prefix
	// AcceptProxy expects a PROXY protocol header on each connection and takes the
	// client that it names for the client, except for Sources, which are about the
	// peer. SendProxy sends one to the target. Both are for TCP.
	AcceptProxy, SendProxy bool
	// Closed: nobody could answer. The host does not listen, so that its kernel
	// refuses.
	Closed bool
	// Name says in messages whose port this is: "Service shop/web: node port 30080".
	Name string
}

// admits says whether a client may use the port.
func (p *Publication) admits(client netip.Addr) bool {
	client = client.WithZone("").Unmap()
	return len(p.Sources) == 0 || slices.ContainsFunc(p.Sources, func(s netip.Prefix) bool { return s.Contains(client) })
}

// PublishError is why a Publication is not served, or not where it was asked for.
type PublishError struct {
	Publication
	Err error
	// Instead is where it is served: HostAddr with a higher port, as the process
	// may not listen on that one. The zero value: nowhere.
	Instead netip.AddrPort
}

func (e *PublishError) Error() string {
	if e.Instead.IsValid() {
		return fmt.Sprintf("%s: %s; it is served at %s instead", e.Name, e.Err, e.Instead)
	}
	return e.Name + ": " + e.Err.Error()
}

func (e *PublishError) Unwrap() error { return e.Err }

// Publish makes the host listen for exactly pubs, leaving alone the listeners
// that stay, and returns what is wrong, one PublishError for each publication
// that is not served; the next call tries those again. A publication whose target
// alone changed keeps its listener and its connections; new ones go to the new
// target.
func (s *Stack) Publish(pubs []Publication) []error { return s.pub.reconcile(pubs) }

// Published lists what is served, in no order.
func (s *Stack) Published() []Publication { return s.pub.list() }

// publishDialTimeout is how long a host client waits for the cluster.
const publishDialTimeout = 10 * time.Second

type publishKey struct {
	at    netip.AddrPort
	proto packet.Proto
}

// published is one listener.
type published struct {
	pub   atomic.Pointer[Publication]
	moved error // why the listener is at another port; nil: it is not
	at    netip.AddrPort
	close func()
}

// instead reports a listener that is not where it was asked for.
func (p *published) instead() []error {
	if p.moved == nil {
		return nil
	}
	return []error{&PublishError{*p.pub.Load(), p.moved, p.at}}
}

type publisher struct {
	s       *Stack
	clients *sessions[udpClientKey, *udpClient]
	conns   atomic.Int64

	mu     sync.Mutex
	closed bool
	ports  map[publishKey]*published
}

func newPublisher(s *Stack) *publisher {
	return &publisher{
		s:       s,
		clients: newSessions[udpClientKey, *udpClient](s.cfg.Limits.UDPFlows, &s.count.udpEvicted),
		ports:   make(map[publishKey]*published),
	}
}

func (p *publisher) reconcile(pubs []Publication) (errs []error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return []error{net.ErrClosed}
	}
	want := make(map[publishKey]*Publication, len(pubs))
	for _, pub := range pubs {
		pub.HostAddr = netip.AddrPortFrom(pub.HostAddr.Addr().Unmap(), pub.HostAddr.Port())
		k := publishKey{pub.HostAddr, pub.Proto}
		if first := want[k]; first != nil {
			errs = append(errs, &PublishError{Publication: pub, Err: fmt.Errorf("%s is taken by %s", pub.HostAddr, first.Name)})
			continue
		}
		want[k] = &pub
	}
	for k, port := range p.ports {
		if want[k] == nil || want[k].Closed {
			port.close()
			delete(p.ports, k)
		}
	}
	for _, pub := range pubs {
		k := publishKey{netip.AddrPortFrom(pub.HostAddr.Addr().Unmap(), pub.HostAddr.Port()), pub.Proto}
		next := want[k]
		delete(want, k)
		switch port := p.ports[k]; {
		case next == nil || next.Closed: // seen above
		case port != nil:
			port.pub.Store(next)
			errs = append(errs, port.instead()...)
		default:
			port, err := p.listenSomewhere(next)
			if err != nil {
				errs = append(errs, &PublishError{Publication: *next, Err: listenError(next, err)})
				continue
			}
			p.ports[k] = port
			errs = append(errs, port.instead()...)
		}
	}
	return errs
}

// listenSomewhere listens at HostAddr or, without the privilege for its port,
// at the port that Config.LowPortOffset makes of it.
func (p *publisher) listenSomewhere(pub *Publication) (*published, error) {
	port, err := p.listen(pub, pub.HostAddr)
	at, offset := pub.HostAddr, int(p.s.cfg.LowPortOffset)
	if !errors.Is(err, syscall.EACCES) || offset == 0 || int(at.Port())+offset > 65535 {
		return port, err
	}
	denied := err
	at = netip.AddrPortFrom(at.Addr(), at.Port()+uint16(offset))
	if port, err = p.listen(pub, at); err != nil {
		return nil, denied
	}
	port.moved, port.at = listenError(pub, denied), at
	return port, nil
}

// listenError says what is wrong in words of the publication.
func listenError(pub *Publication, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is in use", pub.HostAddr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is not an address of this host", pub.HostAddr.Addr())
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("no permission to listen at %s: its port is below sysctl net.ipv4.ip_unprivileged_port_start", pub.HostAddr)
	}
	return fmt.Errorf("listen at %s: %w", pub.HostAddr, err)
}

func (p *publisher) list() []Publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	pubs := make([]Publication, 0, len(p.ports))
	for _, port := range p.ports {
		pubs = append(pubs, *port.pub.Load())
	}
	return pubs
}

func (p *publisher) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for k, port := range p.ports {
		port.close()
		delete(p.ports, k)
	}
	p.clients.close()
}

// listen opens a listener at an address of the host and starts its goroutine.
func (p *publisher) listen(pub *Publication, at netip.AddrPort) (*published, error) {
	port := new(published)
	port.pub.Store(pub)
	switch pub.Proto {
	case packet.TCP:
		l, err := net.ListenTCP(family("tcp", at.Addr()), net.TCPAddrFromAddrPort(at))
		if err != nil {
			return nil, err
		}
		port.close = func() { l.Close() }
		p.s.wg.Go(func() { p.accept(port, l) })
	case packet.UDP:
		c, err := listenUDP(at)
		if err != nil {
			return nil, err
		}
		port.close = func() { c.Close() }
		p.s.wg.Go(func() { p.receive(port, c) })
	default:
		return nil, fmt.Errorf("protocol %d cannot be published", pub.Proto)
	}
	return port, nil
}

func family(network string, a netip.Addr) string {
	if a.Is4() {
		return network + "4"
	}
	return network + "6"
}

// accept is the goroutine of a TCP listener.
func (p *publisher) accept(port *published, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Descriptors or memory are short: not the listener's end.
			p.s.log.Warn("published port cannot accept", "name", port.pub.Load().Name, "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-p.s.ctx.Done():
			}
			continue
		}
		host, err := newHostConn(c)
		if err != nil || p.conns.Load() >= int64(p.s.cfg.Limits.Connections) {
			p.s.count.publishedFailed.Add(1)
			host.Abort()
			continue
		}
		pub := port.pub.Load()
		if !pub.admits(c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()) {
			p.s.count.publishedFailed.Add(1)
			host.Abort()
			continue
		}
		p.conns.Add(1)
		p.s.wg.Go(func() {
			defer p.conns.Add(-1)
			p.carry(host, pub)
		})
	}
}

// carry continues a connection in the cluster until it ends.
func (p *publisher) carry(host *hostConn, pub *Publication) {
	host.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval})
	ctx, cancel := context.WithTimeout(p.s.ctx, publishDialTimeout)
	defer cancel()
	peer, at := host.RemoteAddr().(*net.TCPAddr).AddrPort(), host.LocalAddr().(*net.TCPAddr).AddrPort()
	client, from := peer, p.source(peer, pub.Target)
	if pub.AcceptProxy {
		src, dst, err := awaitProxy(ctx, host)
		if err != nil {
			p.s.count.proxyInvalid.Add(1)
			host.Abort()
			return
		}
		if src.IsValid() {
			client, at = src, dst
			// Who claims to be in the cluster or on this host stays who it is.
			if named := p.source(client, pub.Target); named.IsValid() {
				from = named
			}
		}
	}
	conn, err := p.s.dialTCP(ctx, from, pub.Target)
	if err != nil && from.IsValid() && errors.Is(err, syscall.EADDRINUSE) {
		// Another connection of the same client port leads to the same target.
		conn, err = p.s.dialTCP(ctx, netip.AddrPortFrom(from.Addr(), 0), pub.Target)
	}
	if err == nil && pub.SendProxy {
		_, err = conn.Write(proxyHeader(client, at))
	}
	if err != nil {
		p.s.count.publishedFailed.Add(1)
		if conn != nil {
			conn.Abort()
		}
		host.Abort()
		return
	}
	p.s.count.published.Add(1)
	join(&p.s.wg, conn, host)
}

// awaitProxy reads the header that host begins with, before ctx ends.
func awaitProxy(ctx context.Context, host *hostConn) (src, dst netip.AddrPort, err error) {
	stop := context.AfterFunc(ctx, func() { host.SetReadDeadline(time.Unix(1, 0)) })
	src, dst, err = readProxy(host)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return src, dst, err
}

// Answers reports whether what is at target can answer a client at its own address.
func (s *Stack) Answers(target, client netip.Addr) bool {
	return s.pub.source(netip.AddrPortFrom(client, 0), netip.AddrPortFrom(target, 0)).IsValid()
}

// source is the client where the cluster can answer it, or zero for the node
// address.
func (p *publisher) source(client, target netip.AddrPort) netip.AddrPort {
	a := client.Addr().WithZone("").Unmap()
	if a.Is4() != target.Addr().Unmap().Is4() || p.s.refuses(a) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, client.Port())
}
