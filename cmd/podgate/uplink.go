package main

// Theory of operation
//
// With egress.mode=uplink the way out carries packets. A TAP, or where there is none
// a veth, joins the gateway's network namespace with a segment of its own in the data path, whose only
// neighbour is the kernel of that namespace: the next hop. There the gateway has
// addresses, from which what pods send outside comes (per-packet masquerade), of
// every protocol that has ports: stack/mapping.go says how. What comes to node ports and load balancers at
// these addresses keeps its client's address. The rest is the kernel's: whether it
// forwards, and where.

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/kube"
	"podgate/pod"
	"podgate/stack"
	"podgate/stack/link"
)

// uplinkPort is what the port of the uplink is called: no pod has such a name.
var uplinkPort = kube.Name{Name: "uplink"}

// uplink is what is configured of one.
type uplink struct {
	name     string
	addrs    []netip.Prefix // the gateway's, with the length of the link's prefix
	nextHops []netip.Addr   // the namespace's, one for each of addrs
	nat      stack.Masquerade
}

// uplinkMTU is that of the links that most uplinks lead to, in bytes.
const uplinkMTU = 1500

// newUplink says what is wrong with a configuration.
func newUplink(cfg config) (*uplink, error) {
	if cfg.Egress != "uplink" {
		return nil, nil
	}
	u := &uplink{name: cfg.UplinkName, addrs: cfg.UplinkAddrs, nat: cfg.UplinkNAT}
	if u.nat.IndependentFiltering && !u.nat.IndependentMapping {
		return nil, errors.New("egress.uplink.filtering endpoint-independent takes egress.uplink.mapping endpoint-independent")
	}
	if len(u.addrs) == 0 {
		return nil, errors.New("egress.mode is uplink: egress.uplink.addresses is needed, such as 192.0.2.10/24")
	}
	for i, p := range u.addrs {
		if i > 1 || i == 1 && p.Addr().Is4() == u.addrs[0].Addr().Is4() {
			return nil, errors.New("egress.uplink.addresses: at most one a family")
		}
		for _, c := range slices.Concat(cfg.Kube.PodCIDRs, cfg.Kube.ServiceCIDRs) {
			if p.Overlaps(c) {
				return nil, fmt.Errorf("egress.uplink.addresses: %s overlaps the cluster's own %s", p, c)
			}
		}
		n := 0
		for _, hop := range cfg.UplinkNextHops {
			if p.Contains(hop) && hop != p.Addr() {
				u.nextHops = append(u.nextHops, hop)
				n++
			}
		}
		if n != 1 {
			return nil, fmt.Errorf("egress.uplink.next-hops has %d addresses in %s beside the gateway's own, one is needed", n, p)
		}
	}
	return u, nil
}

// own are the gateway's addresses at the uplink.
func (u *uplink) own() (own []netip.Addr) {
	if u != nil {
		for _, p := range u.addrs {
			own = append(own, p.Addr())
		}
	}
	return own
}

// segments are the data path's part of it.
func (u *uplink) segments() []stack.Segment {
	if u == nil {
		return nil
	}
	return []stack.Segment{{Name: uplinkPort.Name, Gateways: u.own()}}
}

func (u *uplink) routes() (routes []stack.Route) {
	if u != nil {
		for _, hop := range u.nextHops {
			any := netip.IPv6Unspecified()
			if hop.Is4() {
				any = netip.IPv4Unspecified()
			}
			routes = append(routes, stack.Route{Prefix: netip.PrefixFrom(any, 0), Via: hop})
		}
	}
	return routes
}

// linkUplink makes the link and attaches it.
func (g *gateway) linkUplink() error {
	u := g.uplink
	if u == nil {
		return nil
	}
	dev, err := u.device(nicKind(g.cfg.Attach))
	if err != nil {
		return fmt.Errorf("egress.mode is uplink, which takes CAP_NET_ADMIN in the gateway's network namespace: %s: %w", u.name, err)
	}
	g.plane.Publish(stack.Input{Segments: u.segments()})
	_, err = g.plane.Attach(stack.PortSpec{
		Pod: uplinkPort, Name: u.name, MAC: macOf(u.nextHops), Addrs: u.nextHops, MTU: uplinkMTU,
		Network: uplinkPort.Name, Router: true, Masquerade: &u.nat,
	}, dev)
	if err != nil {
		dev.Close()
	}
	return err
}

func (u *uplink) device(kind string) (dev link.Device, err error) {
	if kind != pod.Veth {
		if dev, err = u.tap(); err != nil && (kind == pod.TAP || !errors.Is(err, os.ErrPermission) && !errors.Is(err, os.ErrNotExist)) {
			return nil, err
		}
	}
	if kind == pod.Veth || err != nil {
		if dev, err = u.veth(); err != nil {
			return nil, err
		}
	}
	if err := u.configure(); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

func (u *uplink) tap() (link.Device, error) {
	fd, err := link.CreateTAP(u.name, uplinkMTU)
	if err != nil {
		return nil, err
	}
	return link.OpenTAPFD(fd, u.name)
}

// veth has both its ends in the namespace; the gateway's is a wire.
func (u *uplink) veth() (link.Device, error) {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	index, err := link.CreateVeth(u.name+"-gw", u.name, int(here.Fd()), uplinkMTU)
	if err != nil {
		return nil, err
	}
	fd, err := link.OpenPacketSocket(index)
	if err != nil {
		return nil, err
	}
	return link.OpenVethFD(fd, u.name)
}

// configure gives the link the next hop's MAC and addresses.
func (u *uplink) configure() error {
	l, err := netlink.LinkByName(u.name)
	if err != nil {
		return err
	}
	mac := macOf(u.nextHops)
	if err := netlink.LinkSetHardwareAddr(l, mac[:]); err != nil {
		return fmt.Errorf("MAC: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	for i, hop := range u.nextHops {
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(hop, u.addrs[i].Bits()))}
		if hop.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("address %s: %w", hop, err)
		}
	}
	return nil
}
