package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"podgate/control"
)

// check compares what is with the result of ADD: the interface and what is on
// it, the lease, and what the gateway knows.
func check(args *skel.CmdArgs) error {
	s, err := begin(args, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	prev, err := s.previous()
	if err != nil {
		return err
	}
	index := slices.IndexFunc(prev.Interfaces, func(i *current.Interface) bool {
		return i.Name == args.IfName && i.Sandbox != ""
	})
	if index < 0 {
		return invalid("prevResult: has no interface %s in a sandbox", args.IfName)
	}
	var ips []netip.Prefix
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface == index {
			ips = append(ips, prefixOf(&ip.Address))
		}
	}
	if err := s.checkInterface(prev.Interfaces[index], ips, prev.Routes); err != nil {
		return explain(err, s.socketPath())
	}
	if err := s.checkGateway(ctx, ips); err != nil {
		return explain(err, s.socketPath())
	}
	switch {
	case s.pool == nil:
		return invoke.DelegateCheck(ctx, s.IPAM.Type, args.StdinData, nil)
	case s.pool.leases():
		for _, p := range ips {
			if !s.pool.holds(args.ContainerID, args.IfName, p.Addr()) {
				return notAsMade("address %s is not leased to %s of container %s", p.Addr(), args.IfName, args.ContainerID)
			}
		}
	}
	return nil
}

func notAsMade(format string, a ...any) error {
	return types.NewError(ErrNotAsMade, "the attachment is not as it was made", fmt.Sprintf(format, a...))
}

// checkInterface looks at the pod's network namespace. Plugins later in the chain
// may have changed what they put into the result.
func (s *session) checkInterface(want *current.Interface, ips []netip.Prefix, routes []*types.Route) error {
	netns, err := openNetns(s.args.Netns)
	if err != nil {
		return err
	}
	defer netns.Close()
	return inside(netns, func() error {
		l, err := netlink.LinkByName(want.Name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return notAsMade("there is no interface %s in %s", want.Name, s.args.Netns)
		}
		if err != nil {
			return err
		}
		if mac := l.Attrs().HardwareAddr.String(); want.Mac != "" && mac != want.Mac {
			return notAsMade("%s has the MAC %s, not %s", want.Name, mac, want.Mac)
		}
		if l.Attrs().RawFlags&1 == 0 {
			return notAsMade("%s is down", want.Name)
		}
		have, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, p := range ips {
			if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return prefixOf(a.IPNet) == p }) {
				return notAsMade("%s has no address %s", want.Name, p)
			}
		}
		there, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Table == nil && !slices.ContainsFunc(there, func(k netlink.Route) bool { return sameRoute(k, r) }) {
				return notAsMade("there is no route to %s via %s in %s", r.Dst.String(), r.GW, s.args.Netns)
			}
		}
		return nil
	})
}

func sameRoute(k netlink.Route, r *types.Route) bool {
	want := prefixOf(&r.Dst)
	have := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if k.Family == netlink.FAMILY_V4 {
		have = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	if k.Dst != nil {
		have = prefixOf(k.Dst)
	}
	return have == want && (r.GW == nil || r.GW.Equal(k.Gw))
}

// checkGateway asks the gateway whether it serves the interface.
func (s *session) checkGateway(ctx context.Context, ips []netip.Prefix) error {
	find := func() (*control.Attachment, error) {
		list, err := s.client.Attached(ctx)
		i := slices.IndexFunc(list, func(a control.Attachment) bool {
			return a.Request.Container == s.args.ContainerID && a.Request.IfName == s.args.IfName
		})
		if i < 0 {
			return nil, err
		}
		return &list[i], err
	}
	a, err := find()
	if err == nil && a != nil && a.Waiting {
		err = Reattach(ctx, s.client)
		if err == nil {
			a, err = find()
		}
	}
	switch {
	case err != nil:
		return err
	case a == nil:
		return notAsMade("the gateway knows nothing of %s of container %s", s.args.IfName, s.args.ContainerID)
	case a.Waiting:
		return notAsMade("the gateway was restarted and has not opened %s of container %s again", s.args.IfName, s.args.ContainerID)
	}
	for _, p := range ips {
		if !slices.Contains(a.Request.Addrs, p.Addr()) {
			return notAsMade("the gateway serves %v there, not %s", a.Request.Addrs, p.Addr())
		}
	}
	return nil
}

// hostMAC is that of an interface where the plugin runs.
func hostMAC(name string) string {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return ""
	}
	return l.Attrs().HardwareAddr.String()
}
