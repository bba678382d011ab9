package main

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"podgate/ingress"
)

// HTTP/3 is where HTTPS is, by UDP. Where it cannot be, HTTPS goes on alone.

const quicFor = "Ingress (HTTP/3)"

// openQUIC answers HTTP/3 at one of the host's addresses, or with inside at one of
// the front door's in the cluster; nil if it is off.
func (g *gateway) openQUIC(at netip.AddrPort, inside bool, door netip.AddrPort, both bool) (*ingress.QUIC, error) {
	if !g.cfg.HTTP3 {
		return nil, nil
	}
	listen := g.local.ListenUDP
	if !inside {
		listen = func(at netip.AddrPort) (net.PacketConn, error) { return net.ListenPacket("udp", at.String()) }
	}
	pc, err := soon(func() (net.PacketConn, error) { return listen(at) })
	if err == nil {
		var q *ingress.QUIC
		if q, err = g.front.ServeQUIC(pc, door, both); err == nil {
			return q, nil
		}
	}
	g.log.Warn("no HTTP/3: cannot listen; HTTPS is not concerned", "address", at.String()+"/udp", "err", cause(err))
	return nil, err
}

// addrPortOf is where a listener is.
func addrPortOf(l net.Listener) netip.AddrPort {
	at, _ := l.Addr().(*net.TCPAddr)
	return at.AddrPort()
}

// soon listens, giving a second to whoever has the port: the sockets of a killed
// instance outlive its last process by moments.
func soon[L any](listen func() (L, error)) (l L, err error) {
	for range 20 {
		if l, err = listen(); !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return l, err
}
