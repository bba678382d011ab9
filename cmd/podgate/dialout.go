package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// dialOut dials hosts outside for the front door: their names are resolved as
// pods have them resolved, and what pods may not reach it may not either.
// Addresses of the cluster are dialled in the cluster.
func (g *gateway) dialOut(from []netip.Addr) func(context.Context, string, string) (net.Conn, error) {
	inside := g.dialFrom(from)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		name, text, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, err
		}
		addrs := g.dns.Resolve(name)
		if len(addrs) == 0 {
			return nil, fmt.Errorf("the cluster's DNS has no address for %s", name)
		}
		for _, a := range addrs {
			to := netip.AddrPortFrom(a, uint16(port))
			var c net.Conn
			switch in := func(p netip.Prefix) bool { return p.Contains(a) }; {
			case slices.ContainsFunc(g.cfg.Kube.PodCIDRs, in), slices.ContainsFunc(g.cfg.Kube.ServiceCIDRs, in):
				c, err = inside(ctx, network, to.String())
			case g.local.Refuses(a):
				err = fmt.Errorf("%s is at %s, which the way out does not lead to", name, a)
			default:
				c, err = new(net.Dialer).DialContext(ctx, network, to.String())
			}
			if err == nil {
				return c, nil
			}
		}
		return nil, err
	}
}
