package stacktest

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"podgate/stack/link"
	"podgate/stack/packet"
)

// Host is a pod with a TCP/IP of its own: it asks for neighbours, opens
// connections and answers, all by itself and in real time.
type Host struct {
	pod *Pod
	net *stack.Stack
	ep  *channel.Endpoint
	w   *World
}

// hosts are those of one World, and what moves their frames.
type hosts struct {
	mu   sync.Mutex
	all  []*Host
	kick chan struct{} // something may have to be moved; nil before the first host
}

const nic = 1

// Host gives a pod a TCP/IP. From then on its frames are not the test's.
func (w *World) Host(name string) *Host {
	w.t.Helper()
	p := w.Pod(name)
	h := &Host{pod: p, w: w, ep: channel.New(4096, 1500, tcpip.LinkAddress(p.MAC[:]))}
	p.host = h
	h.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := h.net.CreateNIC(nic, ethernet.New(h.ep)); err != nil {
		w.t.Fatal(err)
	}
	var routes []tcpip.Route
	for i, a := range p.Addrs {
		prefix := podCIDRs[i]
		pa := tcpip.ProtocolAddress{Protocol: protocol(a), AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(a.AsSlice()), PrefixLen: prefix.Bits(),
		}}
		if err := h.net.AddProtocolAddress(nic, pa, stack.AddressProperties{}); err != nil {
			w.t.Fatal(err)
		}
		everywhere := header.IPv4EmptySubnet
		if a.Is6() {
			everywhere = header.IPv6EmptySubnet
		}
		routes = append(routes,
			tcpip.Route{Destination: pa.AddressWithPrefix.Subnet(), NIC: nic},
			tcpip.Route{Destination: everywhere, Gateway: tcpip.AddrFromSlice(prefix.Addr().Next().AsSlice()), NIC: nic})
	}
	h.net.SetRouteTable(routes)
	h.join()
	w.t.Cleanup(h.net.Destroy)
	return h
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// join adds h to those whose frames are moved.
func (h *Host) join() {
	hs := &h.w.hosts
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.all = append(hs.all, h)
	if hs.kick == nil {
		hs.kick = make(chan struct{}, 1)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				case <-hs.kick:
					for hs.move(h.w) {
					}
				}
			}
		}()
		h.w.t.Cleanup(func() { close(stop); <-done })
	}
	h.ep.AddNotify(h)
}

// WriteNotify is told that h has sent something.
func (h *Host) WriteNotify() {
	select {
	case h.w.hosts.kick <- struct{}{}:
	default:
	}
}

// move takes what is waiting one step further, and says whether anything was.
func (hs *hosts) move(w *World) bool {
	hs.mu.Lock()
	all := hs.all
	hs.mu.Unlock()
	moved := false
	for _, h := range all {
		for pkt := h.ep.Read(); pkt != nil; pkt = h.ep.Read() {
			view := pkt.ToView()
			f := append(make(packet.Frame, packet.VnetHdrLen), view.AsSlice()...)
			view.Release()
			pkt.DecRef()
			h.pod.dev.WriteBatch([]packet.Frame{f})
			moved = true
		}
	}
	for w.Plane.Poll() > 0 {
		moved = true
	}
	for _, h := range all {
		buf := []packet.Frame{make(packet.Frame, link.MaxFrame)}
		for {
			buf[0] = buf[0][:link.MaxFrame]
			if n, _ := h.pod.dev.ReadBatch(buf); n == 0 {
				break
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[0].Eth())})
			h.ep.InjectInbound(0, pkt) // the Ethernet header tells the protocol
			pkt.DecRef()
			moved = true
		}
	}
	return moved
}

func full(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}
}

// Dial opens a TCP connection from h.
func (h *Host) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := gonet.DialContextTCP(ctx, h.net, full(to), protocol(to.Addr()))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Listen accepts TCP connections at h's address of either family.
func (h *Host) Listen(at netip.AddrPort) net.Listener {
	h.w.t.Helper()
	l, err := gonet.ListenTCP(h.net, full(at), protocol(at.Addr()))
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.w.t.Cleanup(func() { l.Close() })
	return l
}
