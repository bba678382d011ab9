package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	networkingv1 "k8s.io/api/networking/v1"

	"podgate/control"
	"podgate/ingress"
	"podgate/kube"
	"podgate/nat"
	"podgate/stack/packet"
)

// The listeners of Gateways: at doors of the host, as LoadBalancers are, and at
// the front door's own addresses in the cluster. Where the Ingresses have a
// listener already, both are served by it.

// gatewayConfig says where Gateways are.
func (c *config) gatewayConfig(own addrs) ingress.GatewayConfig {
	out := ingress.GatewayConfig{
		Addr: c.PublishAddr, Reached: c.Kube.PublishedIPs, Inside: own.ingress,
		Ingress: map[netip.AddrPort]bool{}, LowPorts: uint16(c.LowPortOffset),
	}
	for at, tls := range map[netip.AddrPort]bool{c.IngressHTTP: false, c.IngressHTTPS: true} {
		if at.IsValid() {
			out.Ingress[at] = tls
		}
	}
	for _, a := range own.ingress {
		out.Ingress[netip.AddrPortFrom(a, 80)] = false
		out.Ingress[netip.AddrPortFrom(a, 443)] = true
	}
	return out
}

// ingressObjects are Ingresses with the addresses where they are reached: none
// for those of a class that is not ours.
func (g *gateway) ingressObjects(st *kube.State, q control.GetRequest) []any {
	served := ingress.Served(st, g.ingressConfig(ownAddrs(g.cfg.Kube.PodCIDRs)))
	return withStatus(pick(st.Ingresses, q), func(o *networkingv1.Ingress) {
		if served[nameOf(o)] {
			return
		}
		at := &o.Status.LoadBalancer
		at.Ingress = slices.DeleteFunc(at.Ingress, func(in networkingv1.IngressLoadBalancerIngress) bool {
			addr, err := netip.ParseAddr(in.IP)
			return err == nil && slices.Contains(g.cfg.Kube.PublishedIPs, addr)
		})
	})
}

// doors are the listeners that Gateways have of their own.
type doors struct {
	open   map[doorKey]*openDoor
	failed map[netip.AddrPort]string // on the host, and why
}

type doorKey struct {
	at     netip.AddrPort
	tls    bool
	inside netip.Addr // of the front door; none: on the host
}

type openDoor struct {
	net.Listener
	moved bool          // to a port that needs no privilege
	quic  *ingress.QUIC // beside it; nil: no HTTP/3
}

// compileRoutes compiles the front door's routes, gives them to it, and opens the
// doors that they need. What cannot be opened is in the status of its Gateway.
func (g *gateway) compileRoutes(prev *ingress.Routes, st *kube.State, services *nat.Table) (*ingress.Routes, []kube.Problem, []control.Listener) {
	cfg := g.ingressConfig(ownAddrs(g.cfg.Kube.PodCIDRs))
	cfg.Gateway.Taken = map[netip.AddrPort]string{}
	for _, p := range services.Published() {
		if p.Proto != packet.TCP {
			continue
		}
		what := "Service " + p.Service.String()
		if p.Service == (kube.Name{}) {
			what = "Pod " + p.Pod.String()
		}
		at := netip.AddrPortFrom(p.HostIP, p.Port)
		cfg.Gateway.Taken[at] = fmt.Sprintf("%s has %s", what, at)
	}
	cfg.Gateway.Failed = g.doors.failed
	routes, problems := ingress.Compile(prev, st, cfg)
	g.front.SetRoutes(routes)
	listeners, failed := g.openDoors(routes.Entrances())
	if !maps.Equal(failed, g.doors.failed) {
		g.doors.failed, cfg.Gateway.Failed = failed, failed
		routes, problems = ingress.Compile(routes, st, cfg)
		g.front.SetRoutes(routes)
	}
	return routes, problems, listeners
}

// openDoors makes the doors those that are wanted; those that stay are left alone.
func (g *gateway) openDoors(wanted []ingress.Entrance) (out []control.Listener, failed map[netip.AddrPort]string) {
	keep := map[doorKey]bool{}
	failed = map[netip.AddrPort]string{}
	for _, e := range wanted {
		for _, k := range g.doorKeys(e) {
			keep[k] = true
		}
	}
	for k, d := range g.doors.open {
		if !keep[k] {
			d.Close()
			if d.quic != nil {
				g.wg.Go(func() { d.quic.Close() })
			}
			delete(g.doors.open, k)
		}
	}
	for _, e := range wanted {
		line := control.Listener{Address: e.At.String() + "/tcp", For: strings.Join(e.For, ", ")}
		for _, k := range g.doorKeys(e) {
			d := g.doors.open[k]
			if d == nil {
				var err error
				if d, err = g.openDoor(k, e); err != nil {
					line.Problem = fmt.Sprintf("cannot listen at %s: %v", k.address(), cause(err))
					failed[e.At] = line.Problem
					continue
				}
				if g.doors.open == nil {
					g.doors.open = map[doorKey]*openDoor{}
				}
				g.doors.open[k] = d
			}
			if d.moved {
				line.Address = d.Addr().String() + "/tcp"
				line.For += fmt.Sprintf(", as port %d needs privilege", e.At.Port())
			}
		}
		out = append(out, line)
		for _, k := range g.doorKeys(e) {
			if d := g.doors.open[k]; d != nil && d.quic != nil && !k.inside.IsValid() {
				out = append(out, control.Listener{Address: d.Addr().String() + "/udp", For: line.For + ", HTTP/3"})
			}
		}
	}
	return out, failed
}

// doorKeys are the listeners that an entrance needs besides the Ingresses'.
func (g *gateway) doorKeys(e ingress.Entrance) (keys []doorKey) {
	if e.At != g.cfg.IngressHTTP && e.At != g.cfg.IngressHTTPS {
		keys = append(keys, doorKey{at: e.At, tls: e.TLS})
	}
	if !e.Inside || e.At.Port() == 80 || e.At.Port() == 443 {
		return keys
	}
	for _, a := range ownAddrs(g.cfg.Kube.PodCIDRs).ingress {
		keys = append(keys, doorKey{at: e.At, tls: e.TLS, inside: a})
	}
	return keys
}

func (k doorKey) address() netip.AddrPort {
	if k.inside.IsValid() {
		return netip.AddrPortFrom(k.inside, k.at.Port())
	}
	return k.at
}

// openDoor listens, and serves until the listener is closed.
func (g *gateway) openDoor(k doorKey, e ingress.Entrance) (*openDoor, error) {
	d := &openDoor{}
	var err error
	if k.inside.IsValid() {
		d.Listener, err = g.local.ListenTCP(k.address())
	} else {
		at, offset := k.at, g.cfg.LowPortOffset
		d.Listener, err = net.Listen("tcp", at.String())
		if errors.Is(err, syscall.EACCES) && offset > 0 && int(at.Port())+offset <= 65535 {
			d.moved = true
			d.Listener, err = net.Listen("tcp", netip.AddrPortFrom(at.Addr(), at.Port()+uint16(offset)).String())
		}
	}
	if err != nil {
		return nil, err
	}
	serve := g.front.Serve
	if k.tls {
		serve = g.front.ServeTLS
		d.quic, _ = g.openQUIC(addrPortOf(d), k.inside.IsValid(), k.at, false)
	}
	l := ingress.At(d.Listener, k.at, false)
	g.wg.Go(func() { g.fatal(strings.Join(e.For, ", "), serve(l)) })
	return d, nil
}

// close ends what is open.
func (d *doors) close() {
	for k, o := range d.open {
		o.Close()
		if o.quic != nil {
			o.quic.Close()
		}
		delete(d.open, k)
	}
}
