package main

// Theory of operation
//
// A node's own processes (the kubelet with its probes, pods with hostNetwork, who
// is logged in) reach pods and Services through a TAP in the node's network
// namespace, without iptables: the kernel has routes for this node's pod ranges
// and for the Service ranges into it, and what comes out of it is a frame of one
// more port of the data path, whose addresses are the node's. To Services, DNS
// and policies the node is then a client like any other, and pods reach the
// node's addresses without NAT.
//
// The same TAP leads to the pods of other nodes: for each other Node's pod ranges
// the kernel has a route to that node's address, which has to be on the same
// link, and the data path one to the TAP. The node's kernel forwards; nothing is
// translated. A tunnel would be another port with the same routes.
//
// The routes carry a protocol number of their own, by which those of a gateway
// that was killed are found and removed.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/stack"
	"podgate/stack/link"
)

// routeProtocol marks our routes in the node's tables: `ip route show proto 88`.
const routeProtocol = 88

// nodePort is what the port of the node is called: no pod has such a name.
var nodePort = kube.Name{Name: "node"}

// nodeLink is the TAP and the routes in the node's namespace.
type nodeLink struct {
	log   *slog.Logger
	name  string
	addrs []netip.Addr                // the node's, at most one a family
	peers map[netip.Prefix]netip.Addr // pod ranges of other nodes, and the nodes; of the compile loop
}

// newNodeLink makes the TAP, with its routes. Nothing is left after an error.
func newNodeLink(name string, addrs []netip.Addr, cfg config, log *slog.Logger) (*nodeLink, *link.TAP, error) {
	l := &nodeLink{log: log, name: name, peers: map[netip.Prefix]netip.Addr{}}
	for _, a := range addrs {
		if !a.IsLoopback() && l.addr(a) == (netip.Addr{}) {
			l.addrs = append(l.addrs, a)
		}
	}
	if len(l.addrs) == 0 {
		return nil, nil, errors.New("the Node has no InternalIP that is not a loopback address")
	}
	fd, err := link.CreateTAP(name, cfg.MTU)
	if err != nil {
		return nil, nil, err
	}
	dev, err := link.OpenTAPFD(fd, name)
	if err != nil {
		return nil, nil, err
	}
	if err := l.configure(cfg); err != nil {
		dev.Close()
		return nil, nil, err
	}
	return l, dev, nil
}

// addr is the node's address of a's family.
func (l *nodeLink) addr(a netip.Addr) netip.Addr {
	for _, own := range l.addrs {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

func (l *nodeLink) configure(cfg config) error {
	l.forget()
	tap, err := netlink.LinkByName(l.name)
	if err != nil {
		return err
	}
	mac := macOf(l.addrs)
	if err := netlink.LinkSetHardwareAddr(tap, mac[:]); err != nil {
		return fmt.Errorf("MAC: %w", err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	own := ownAddrs(cfg.Kube.PodCIDRs).node
	gatewayMAC := macOf(own)
	for _, gw := range own {
		src := l.addr(gw)
		if !src.IsValid() {
			continue
		}
		// Nobody is asked for addresses on this link: all is the gateway's.
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: tap.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: gatewayMAC[:]})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", gw, err)
		}
		for _, p := range slices.Concat(cfg.Kube.PodCIDRs, cfg.Kube.ServiceCIDRs) {
			if p.Addr().Is4() != gw.Is4() {
				continue
			}
			r := &netlink.Route{LinkIndex: tap.Attrs().Index, Dst: ipNet(p), Gw: gw.AsSlice(), Src: src.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol}
			if err := netlink.RouteAdd(r); err != nil {
				return fmt.Errorf("route %s by %s from %s: %w", p, l.name, src, err)
			}
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// follow makes the node's routes to other nodes' pods what the Nodes say, and
// returns those of the data path. Without a link there are none.
func (l *nodeLink) follow(st *kube.State, self string) (routes []stack.Route) {
	if l == nil {
		return nil
	}
	want := map[netip.Prefix]netip.Addr{}
	for name, n := range st.Nodes {
		prefixes, err := parsePrefixes(n.Spec.PodCIDRs)
		if name == self || err != nil {
			continue
		}
		for _, p := range prefixes {
			for _, a := range internalAddrs(n) {
				if a.Is4() == p.Addr().Is4() && l.addr(a).IsValid() && !want[p].IsValid() {
					want[p] = a
				}
			}
		}
	}
	for p, via := range l.peers {
		if want[p] != via {
			netlink.RouteDel(&netlink.Route{Dst: ipNet(p), Gw: via.AsSlice(), Protocol: routeProtocol}) // it may have gone with its interface
			delete(l.peers, p)
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		via := want[p]
		routes = append(routes, stack.Route{Prefix: p, Via: l.addr(p.Addr())})
		if l.peers[p] == via {
			continue
		}
		l.peers[p] = via
		if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: via.AsSlice(), Protocol: routeProtocol}); err != nil {
			l.log.Warn("the pods of another node cannot be reached: is it on the same link?", "pods", p, "node", via, "err", err)
		} else if forwards := forwardingFile(via); !isOne(forwards) {
			l.log.Warn("the pods of another node cannot be reached: this node does not forward", "pods", p, "set", forwards)
		}
	}
	return routes
}

// forwardingFile is where the kernel says whether it forwards in a's family.
func forwardingFile(a netip.Addr) string {
	if a.Is4() {
		return "/proc/sys/net/ipv4/ip_forward"
	}
	return "/proc/sys/net/ipv6/conf/all/forwarding"
}

func isOne(file string) bool {
	data, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(data)) == "1"
}

// forget removes the routes that bear our number: this gateway's, or of one that
// was killed. Those of the TAP go with it.
func (l *nodeLink) forget() {
	if l == nil {
		return
	}
	of := &netlink.Route{Protocol: routeProtocol}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, of, netlink.RT_FILTER_PROTOCOL)
	for _, r := range routes {
		err = errors.Join(err, netlink.RouteDel(&r))
	}
	if err != nil {
		l.log.Warn("routes are left in the node's tables", "proto", routeProtocol, "err", err)
	}
}

// internalAddrs are a node's addresses in the network of the nodes.
func internalAddrs(n *corev1.Node) (all []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			all = append(all, ip)
		}
	}
	return all
}

// linkNode attaches the node itself. Where that is not allowed the gateway goes
// on without, says what does not work then, and serves a proxy instead.
func (c *cluster) linkNode(ctx context.Context, g *gateway) error {
	if g.cfg.NodeInterface == "" {
		c.serveNode(ctx, g)
		return nil
	}
	l, dev, err := newNodeLink(g.cfg.NodeInterface, c.addrs(), g.cfg, g.log)
	if err != nil {
		g.log.Warn("the node's own processes do not reach pods and Services, kubelets' probes among them, and pods of other nodes are reached by the way out",
			"interface", g.cfg.NodeInterface, "instead", g.cfg.NodeProxy, "err", err)
		c.serveNode(ctx, g)
		return nil
	}
	if _, err := g.plane.Attach(stack.PortSpec{Pod: nodePort, Name: l.name, MAC: macOf(l.addrs), Addrs: l.addrs, MTU: g.cfg.MTU, Router: true}, dev); err != nil {
		dev.Close()
		return fmt.Errorf("attach the node: %w", err)
	}
	c.link = l
	g.wg.Go(func() { <-ctx.Done(); l.forget() })
	return nil
}
