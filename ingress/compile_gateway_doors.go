package ingress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Where Gateways are: their addresses, and the doors of their listeners.

// place finds the addresses of a Gateway.
func (g *gatewayCompiler) place(gw *gatewayObject) {
	if gw.accepted.bad() {
		return
	}
	var fixed []netip.Addr
	automatic := len(gw.Spec.Addresses) == 0
	for _, a := range gw.Spec.Addresses {
		if a.Value == "" {
			automatic = true
			continue
		}
		addr, err := netip.ParseAddr(a.Value)
		switch {
		case err == nil && slices.Contains(g.cfg.Reached, addr):
			fixed = append(fixed, g.cfg.Addr)
		case err == nil && g.loopback(addr):
			fixed = append(fixed, addr)
		default:
			gw.program.blame(gatewayv1.GatewayReasonAddressNotUsable, "%s is not an address that podgate listens at: Gateways are at %s", a.Value, join3(g.cfg.Reached))
		}
	}
	if gw.program.bad() {
		return
	}
	for _, addr := range fixed {
		g.take(gw, addr, true)
	}
	if automatic {
		at, ok := g.cfg.Addr, false
		for _, addr := range slices.Concat(g.prev.placed[gw.UID], g.candidates()) {
			if !g.loopback(addr) {
				continue // of another configuration
			}
			if ok = g.take(gw, addr, false); ok {
				at = addr
				break
			}
		}
		if !ok {
			g.take(gw, at, true)
		}
		fixed = append(fixed, at)
	}
	slices.SortFunc(fixed, netip.Addr.Compare)
	gw.addresses = slices.Compact(fixed)
	g.placed[gw.UID] = gw.addresses
}

func join3(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

// loopback reports whether Gateways can be at an address without anybody's help.
func (g *gatewayCompiler) loopback(a netip.Addr) bool {
	return a == g.cfg.Addr || a.Is4() && a.IsLoopback() && g.cfg.Addr.Is4() && g.cfg.Addr.IsLoopback()
}

// maxAddresses bounds the loopback addresses that Gateways are put at.
const maxAddresses = 250

func (g *gatewayCompiler) candidates() []netip.Addr {
	out := []netip.Addr{g.cfg.Addr}
	if !g.loopback(netip.AddrFrom4([4]byte{127, 0, 0, 2})) {
		return out
	}
	for a := g.cfg.Addr.Next(); len(out) < maxAddresses && a.IsLoopback(); a = a.Next() {
		out = append(out, a)
	}
	return out
}

// take gives a Gateway an address, if all its listeners fit there, or by force:
// then those that do not fit are not accepted.
func (g *gatewayCompiler) take(gw *gatewayObject, addr netip.Addr, force bool) bool {
	for l := range gw.usable {
		if v, conflict := g.fits(l, addr); v.bad() {
			if !force {
				return false
			}
			if conflict {
				l.conflict.blameAs(v)
			} else {
				l.accepted.blameAs(v)
			}
		}
	}
	for l := range gw.usable {
		at := netip.AddrPortFrom(addr, l.port)
		d := g.doors[at]
		if d == nil {
			d = &door{tls: l.encrypted()}
			g.doors[at] = d
		}
		d.listeners.set(l.hostname, l.listener)
		gw.doors = append(gw.doors, at)
	}
	return true
}

// fits reports why a listener cannot be at an address, and whether that is
// because of another listener.
func (g *gatewayCompiler) fits(l *listenerObject, addr netip.Addr) (v verdict, conflict bool) {
	at := netip.AddrPortFrom(addr, l.port)
	if why := g.cfg.Taken[at]; why != "" {
		v.blame(gatewayv1.ListenerReasonPortUnavailable, "%s", why)
		return v, false
	}
	for i, at := range g.sharedWith(at) {
		if tls, ingress := g.cfg.Ingress[at]; ingress && tls != l.encrypted() {
			where := "on the host"
			if i > 0 {
				where = "in the cluster"
			}
			v.blame(gatewayv1.ListenerReasonPortUnavailable, "the Ingresses' listener at %s %s speaks another protocol", at, where)
			return v, false
		}
	}
	d := g.doors[at]
	if d == nil {
		return v, false
	}
	if d.tls != l.encrypted() {
		v.blame(gatewayv1.ListenerReasonProtocolConflict, "an older Gateway speaks another protocol at %s", at)
	} else if other, ok := d.listeners.get(l.hostname); ok {
		v.blame(gatewayv1.ListenerReasonHostnameConflict, "listener %s of Gateway %s is for hostname %q at %s", other.name, other.gateway, l.hostname, at)
	}
	return v, true
}

// sharedWith is a door, and what it is in the cluster.
func (g *gatewayCompiler) sharedWith(at netip.AddrPort) []netip.AddrPort {
	out := []netip.AddrPort{at}
	if at.Addr() == g.cfg.Addr {
		for _, a := range g.cfg.Inside {
			out = append(out, netip.AddrPortFrom(a, at.Port()))
		}
	}
	return out
}

// open makes the doors of a Gateway lead to those of its listeners that take
// requests.
func (g *gatewayCompiler) open(gw *gatewayObject) {
	if any := slices.ContainsFunc(gw.listeners, func(l *listenerObject) bool { return !l.accepted.bad() && !l.conflict.bad() }); !any {
		var names []string
		for _, l := range gw.listeners {
			names = append(names, l.name)
		}
		gw.accepted.blame(gatewayv1.GatewayReasonListenersNotValid, "none of the listeners is accepted: %s", strings.Join(names, ", "))
	}
	for _, addr := range gw.addresses {
		for _, l := range gw.listeners {
			at := netip.AddrPortFrom(addr, l.port)
			d := g.doors[at]
			if d == nil {
				continue
			}
			if have, _ := d.listeners.get(l.hostname); have != l.listener {
				continue
			}
			if !l.programmed() {
				d.remove(l.listener)
				if len(d.listeners.exact)+len(d.listeners.wildcard) == 0 && d.listeners.any == nil {
					delete(g.doors, at)
				}
				continue
			}
			if why := g.cfg.Failed[at]; why != "" {
				l.shut.blame(gatewayv1.ListenerReasonPortUnavailable, "%s", why)
			}
			d.entrance.At, d.entrance.TLS, d.entrance.Inside = at, d.tls, addr == g.cfg.Addr
			d.entrance.For = append(d.entrance.For, fmt.Sprintf("Gateway %s listener %s", gw.name, l.name))
			d.entrance.passes = d.entrance.passes || !l.https && d.tls
		}
	}
}

// remove takes a listener from a door.
func (d *door) remove(l *listener) {
	if parent, wild := strings.CutPrefix(l.hostname, "*."); wild {
		delete(d.listeners.wildcard, parent)
	} else if l.hostname != "" {
		delete(d.listeners.exact, l.hostname)
	} else {
		d.listeners.any = nil
	}
}
