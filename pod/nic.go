package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link"
)

// Theory of operation
//
// A pod has one interface, or several on networks of their own. Each interface may
// only use its own addresses, so that with several what is sent from an address has
// to leave by the interface that has it, wherever it goes: each gets a routing table
// that its addresses' packets use (ip rule from ADDRESS lookup 1000+n), with its
// network on-link and the way to all others by that network's gateway. The main
// table, which decides for sockets without an address, has the networks, their
// routes, and one default route a family.

// nicSpec is one interface of a pod.
type nicSpec struct {
	Name     string
	MAC      [6]byte
	MTU      int
	Addrs    []netip.Prefix // address and length of the on-link prefix
	Gateways []netip.Addr   // of its network
	Default  []netip.Addr   // those of them that the main table's default routes lead to
	Routes   []nicRoute
	Behind   []netip.Prefix // networks that others reach by way of the pod, on this interface
}

type nicRoute struct {
	Dst netip.Prefix
	Via netip.Addr
}

// nicEnd is the gateway's end of an interface.
type nicEnd struct {
	kind    string
	fd      int // -1 while a veth has none
	ifindex int // of a veth, in the holding namespace
}

func closeEnds(ends []nicEnd) {
	for _, e := range ends {
		if e.fd >= 0 {
			unix.Close(e.fd)
		}
	}
}

// connect makes interfaces in the calling thread's network namespace, podNS. The
// ends are the caller's, after an error too.
func (k *keeper) connect(nics []nicSpec, podNS int) (ends []nicEnd, err error) {
	quieten()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("lo up: %w", err)
	}
	for i := range nics {
		end, err := k.createLink(&nics[i], podNS)
		if err != nil {
			return ends, err
		}
		ends = append(ends, end)
		if err := configure(&nics[i]); err != nil {
			return ends, fmt.Errorf("%s: %w", nics[i].Name, err)
		}
	}
	for i := range nics {
		if len(nics) > 1 {
			if err := ownTable(&nics[i], 1000+i); err != nil {
				return ends, fmt.Errorf("%s: %w", nics[i].Name, err)
			}
		}
		if err := awaitCarrier(&nics[i]); err != nil {
			return ends, err
		}
	}
	return ends, nil
}

// createLink makes an interface, down: a TAP where that can be had.
func (k *keeper) createLink(n *nicSpec, podNS int) (end nicEnd, err error) {
	if k.setup.NICKind != Veth {
		fd, err := link.CreateTAP(n.Name, n.MTU)
		if err == nil {
			return nicEnd{kind: TAP, fd: fd}, nil
		}
		if k.setup.NICKind == TAP || !noTAP(err) {
			return end, err
		}
	}
	index, err := k.createVeth(podNS, n.Name, n.MTU)
	return nicEnd{kind: Veth, fd: -1, ifindex: index}, err
}

// openVeths opens the holding namespace's ends.
func (k *keeper) openVeths(ends []nicEnd) error {
	if !slices.ContainsFunc(ends, func(e nicEnd) bool { return e.kind == Veth }) {
		return nil
	}
	return onThread(func() (err error) {
		if err := unix.Setns(int(k.held.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		for i := range ends {
			if ends[i].kind == Veth && err == nil {
				ends[i].fd, err = link.OpenPacketSocket(ends[i].ifindex)
			}
		}
		return err
	})
}

// awaitCarrier waits until an interface carries and its addresses receive, so that
// a process's first datagram is not lost. A veth takes up to a second for it: the
// kernel looks at links that changed once a second.
func awaitCarrier(n *nicSpec) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
		l, err := netlink.LinkByName(n.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		state := l.Attrs().OperState
		if (state == netlink.OperUp || state == netlink.OperUnknown) && !slices.ContainsFunc(n.Addrs, deaf) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no carrier after 5 s", n.Name)
		}
	}
}

// deaf says whether the kernel does not yet take an address for its own.
func deaf(p netip.Prefix) bool {
	routes, err := netlink.RouteGet(p.Addr().AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type != unix.RTN_LOCAL
}

// noTAP says whether err is about /dev/net/tun itself: not there, not ours.
func noTAP(err error) bool {
	var pe *os.PathError
	return errors.As(err, &pe) && pe.Path == "/dev/net/tun" ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// vethNumber names the ends in the holding namespace.
var vethNumber struct {
	sync.Mutex
	n int
}

// createVeth makes the pair from the holding namespace, on a thread of its own.
func (k *keeper) createVeth(podNS int, inPod string, mtu int) (ifindex int, err error) {
	vethNumber.Lock()
	vethNumber.n++
	name := "pod" + strconv.Itoa(vethNumber.n)
	vethNumber.Unlock()
	err = onThread(func() (err error) {
		if err := unix.Setns(int(k.held.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		ifindex, err = link.CreateVeth(name, inPod, podNS, mtu)
		return err
	})
	return ifindex, err
}

// quieten sets what applies to links that are made later. Addresses are unique
// by construction, so nobody needs to detect duplicates, and there is no router
// that advertises. What cannot be set (IPv6 off, /proc/sys read-only in a
// container) is left.
func quieten() {
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/dad_transmits", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv6/conf/default/router_solicitations", "0"},
		{"ipv4/ip_unprivileged_port_start", "0"},
	} {
		sysctl(s.name, s.value)
	}
	// Only groups that the user namespace maps may be named.
	if sysctl("ipv4/ping_group_range", "0 2147483647") != nil {
		sysctl("ipv4/ping_group_range", "0 0")
	}
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// configure gives an interface its MAC, addresses and routes. Where IPv6 is off it
// gets those of IPv4.
func configure(n *nicSpec) error {
	l, err := netlink.LinkByName(n.Name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(l, n.MAC[:]); err != nil {
		return fmt.Errorf("set MAC: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		n.dropIPv6()
	}
	for _, p := range n.Addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	for _, r := range n.Routes {
		if err := n.route(l, r, 0); err != nil {
			return err
		}
	}
	for _, gw := range n.Default {
		if err := n.route(l, nicRoute{netip.PrefixFrom(anyOf(gw), 0), gw}, 0); err != nil {
			return err
		}
	}
	return nil
}

func (n *nicSpec) dropIPv6() {
	n.Addrs = slices.DeleteFunc(n.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// route adds a route to a table, 0 being the main one, unless the interface has no
// address of its family or somebody else has the destination.
func (n *nicSpec) route(l netlink.Link, r nicRoute, table int) error {
	if !slices.ContainsFunc(n.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == r.Via.Is4() }) {
		return nil
	}
	err := netlink.RouteAdd(&netlink.Route{
		LinkIndex: l.Attrs().Index,
		Gw:        r.Via.AsSlice(),
		Dst:       ipNet(r.Dst),
		Flags:     int(netlink.FLAG_ONLINK),
		Table:     table,
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route to %s via %s: %w", r.Dst, r.Via, err)
	}
	return nil
}

func ruleFrom(p netip.Prefix, table int) error {
	rule := netlink.NewRule()
	rule.Src, rule.Table, rule.Priority = ipNet(p), table, table
	if err := netlink.RuleAdd(rule); err != nil {
		return fmt.Errorf("add rule from %s: %w", p, err)
	}
	return nil
}

// ownTable gives the packets from an interface's addresses, and from the networks
// behind it, a table of their own.
func ownTable(n *nicSpec, table int) error {
	l, err := netlink.LinkByName(n.Name)
	if err != nil {
		return err
	}
	for _, p := range n.Addrs {
		onLink := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(p.Masked()), Table: table, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(onLink); err != nil {
			return fmt.Errorf("table %d: add route to %s: %w", table, p.Masked(), err)
		}
		if err := ruleFrom(netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), table); err != nil {
			return err
		}
	}
	for _, p := range n.Behind {
		if err := ruleFrom(p, table); err != nil {
			return err
		}
	}
	for _, r := range n.Routes {
		if err := n.route(l, r, table); err != nil {
			return err
		}
	}
	for _, gw := range n.Gateways {
		if err := n.route(l, nicRoute{netip.PrefixFrom(anyOf(gw), 0), gw}, table); err != nil {
			return err
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}

func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
