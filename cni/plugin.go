// Package cni is podgate's CNI plugin (specification 1.1.0 and back to 0.3.1): it
// makes the interface, which takes privileges in the pod's network namespace, and
// leaves all else to the gateway that runs, over its control socket.
//
// It starts no goroutines that outlive a call but for those of the threads that
// it spoils by entering a namespace, which end with their call.
package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"podgate/control"
)

// Codes of the plugin's own errors; those below 100 are the specification's.
const (
	ErrExists       uint = 101 // the interface is there already
	ErrExhausted    uint = 102 // no address is left
	ErrAddressTaken uint = 103 // the address, MAC or pod is somebody else's
	ErrNotAsMade    uint = 104 // CHECK: something is not as ADD made it
)

// How long a call may take, IPAM plugins included.
const (
	addTime   = 30 * time.Second
	otherTime = 10 * time.Second
)

// explain gives an error the code of the specification.
func explain(err error, socket string) error {
	var known *types.Error
	var refused *control.Refused
	var netns *NetnsError
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, control.ErrNotRunning):
		return types.NewError(types.ErrTryAgainLater, "the podgate gateway is not running", "nobody listens on "+socket)
	case errors.Is(err, context.DeadlineExceeded):
		return types.NewError(types.ErrTryAgainLater, "the podgate gateway does not answer", "on "+socket)
	case errors.Is(err, fs.ErrPermission) && netns == nil && refused == nil && strings.Contains(err.Error(), socket):
		return types.NewError(types.ErrIOFailure, "the podgate gateway cannot be asked", err.Error())
	case errors.As(err, &netns):
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS cannot be used", err.Error())
	case errors.Is(err, ErrNameTaken):
		return types.NewError(ErrExists, "the interface exists", err.Error())
	case errors.As(err, &refused) && refused.Reason == control.Exhausted:
		return types.NewError(ErrExhausted, "no address is left", refused.Text)
	case errors.As(err, &refused) && refused.Reason == control.NotReady:
		return types.NewError(types.ErrTryAgainLater, "the podgate gateway is not ready", refused.Text)
	case errors.As(err, &refused) && refused.Reason == control.Taken:
		return types.NewError(ErrAddressTaken, "refused by the gateway", refused.Text)
	case errors.As(err, &refused):
		return types.NewError(types.ErrInvalidNetworkConfig, "refused by the gateway", refused.Text)
	}
	return types.NewError(types.ErrInternal, "podgate-cni", err.Error())
}

// session is one call of the plugin.
type session struct {
	*config
	args   *skel.CmdArgs
	client *control.Client
	iface  Interface
}

func begin(args *skel.CmdArgs, strict bool) (*session, error) {
	c, err := load(args, strict)
	if err != nil {
		return nil, err
	}
	return &session{c, args, control.NewClient(c.socketPath()), Interface{Netns: args.Netns, Name: args.IfName, Owner: args.ContainerID}}, nil
}

func add(args *skel.CmdArgs) error {
	s, err := begin(args, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), addTime)
	defer cancel()
	res, err := s.add(ctx)
	if err != nil {
		return explain(err, s.socketPath())
	}
	return types.PrintResult(res, s.CNIVersion)
}

func (s *session) add(ctx context.Context) (_ *current.Result, err error) {
	var prev *current.Result
	if s.RawPrevResult != nil {
		if prev, err = s.previous(); err != nil {
			return nil, err
		}
	}
	// Before anything is asked of anybody: it is the runtime's mistake.
	if exists, err := s.iface.Exists(); err != nil {
		return nil, err
	} else if exists {
		return nil, fmt.Errorf("interface %s in %s: %w", s.args.IfName, s.args.Netns, ErrNameTaken)
	}
	q := s.request(s.args)
	leased, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.giveBack(context.WithoutCancel(ctx)))
		}
	}()
	if leased == nil {
		if q.Addrs, err = s.wantedIPs(); err != nil {
			return nil, err
		}
	} else {
		for _, ip := range leased.IPs {
			q.Addrs = append(q.Addrs, prefixOf(&ip.Address).Addr())
		}
	}
	var res *current.Result
	var nic control.NIC
	var waiting int
	err = s.client.Attach(ctx, q, func(plan control.AttachPlan) (control.NIC, error) {
		waiting = plan.Waiting
		shape, err := s.shape(plan, leased)
		if err != nil {
			return nic, err
		}
		if nic, err = s.iface.Create(shape.Shape); err != nil {
			return nic, err
		}
		res = s.result(shape, nic, prev)
		return nic, nil
	})
	if nic.File != nil {
		nic.File.Close()
	}
	if err != nil {
		if nic.File != nil {
			err = errors.Join(err, s.iface.Remove())
		}
		return nil, err
	}
	if waiting > 0 {
		Reattach(ctx, s.client)
	}
	return res, nil
}

// lease asks IPAM, unless that is the gateway.
func (s *session) lease(ctx context.Context) (*current.Result, error) {
	switch {
	case s.pool == nil:
		r, err := invoke.DelegateAdd(ctx, s.IPAM.Type, s.args.StdinData, nil)
		if err != nil {
			return nil, err
		}
		res, err := current.NewResultFromResult(r)
		if err == nil && len(res.IPs) == 0 {
			err = errors.Join(invalid("ipam: %s gave no address", s.IPAM.Type), s.giveBack(ctx))
		}
		return res, err
	case s.pool.leases():
		wanted, err := s.wantedIPs()
		if err != nil {
			return nil, err
		}
		return s.pool.lease(s.args.ContainerID, s.args.IfName, wanted)
	}
	return nil, nil
}

// giveBack is lease undone.
func (s *session) giveBack(ctx context.Context) error {
	switch {
	case s.pool == nil:
		return invoke.DelegateDel(ctx, s.IPAM.Type, s.args.StdinData, nil)
	case s.pool.leases():
		return s.pool.release(s.args.ContainerID, s.args.IfName)
	}
	return nil
}

// shaped is an interface's shape, and what the result says of it.
type shaped struct {
	Shape
	ips    []*current.IPConfig
	routes []*types.Route
	dns    types.DNS
}

// shape joins what the gateway planned with what IPAM leased.
func (s *session) shape(plan control.AttachPlan, leased *current.Result) (*shaped, error) {
	mac, err := net.ParseMAC(plan.MAC)
	if err != nil {
		return nil, err
	}
	sh := &shaped{Shape: Shape{MAC: mac, MTU: plan.MTU, Kind: plan.Kind, Keep: true}}
	gateway := func(v4 bool) netip.Addr {
		for _, g := range plan.Gateways {
			if g.Is4() == v4 {
				return g
			}
		}
		return netip.Addr{}
	}
	via := map[bool]netip.Addr{true: gateway(true), false: gateway(false)} // by is it IPv4
	if leased == nil {
		for _, p := range plan.Addrs {
			sh.ips = append(sh.ips, &current.IPConfig{Address: *ipNet(p), Gateway: via[p.Addr().Is4()].AsSlice()})
		}
		if s.pool.Routes != nil {
			sh.routes = s.pool.Routes
		} else {
			sh.routes = defaultRoutes(plan.Addrs, via)
		}
	} else {
		stand := map[netip.Addr]netip.Addr{} // gateways that the gateway stands in for
		for _, ip := range leased.IPs {
			ip.Interface = nil
			own := via[ip.Address.IP.To4() != nil]
			if theirs, ok := netip.AddrFromSlice(ip.Gateway); ok && s.IsGateway != nil && !*s.IsGateway && !s.IsDefaultGateway {
				via[own.Is4()] = theirs.Unmap()
				continue
			} else if ok {
				stand[theirs.Unmap()] = own
			}
			ip.Gateway = own.AsSlice()
		}
		sh.ips, sh.dns = leased.IPs, leased.DNS
		for _, r := range leased.Routes {
			if gw, ok := netip.AddrFromSlice(r.GW); ok && stand[gw.Unmap()].IsValid() {
				r = r.Copy()
				r.GW = stand[gw.Unmap()].AsSlice()
			}
			sh.routes = append(sh.routes, r)
		}
	}
	for _, ip := range sh.ips {
		sh.Addrs = append(sh.Addrs, prefixOf(&ip.Address))
	}
	if s.IsDefaultGateway {
		for _, d := range defaultRoutes(sh.Addrs, via) {
			if !slices.ContainsFunc(sh.routes, func(r *types.Route) bool { return r.Dst.String() == d.Dst.String() }) {
				sh.routes = append(sh.routes, d)
			}
		}
	}
	for _, r := range sh.routes {
		k := Route{Dst: prefixOf(&r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if gw, ok := netip.AddrFromSlice(r.GW); ok {
			k.Gateway = gw.Unmap()
		} else if r.Scope == nil {
			k.Gateway = via[k.Dst.Addr().Is4()]
		}
		if r.Table != nil {
			k.Table = *r.Table
		}
		if r.Scope != nil {
			k.Scope = *r.Scope
		}
		sh.Routes = append(sh.Routes, k)
	}
	sh.dns = s.dns(sh.dns, plan)
	return sh, nil
}

// defaultRoutes are those of the families of some addresses.
func defaultRoutes(addrs []netip.Prefix, via map[bool]netip.Addr) (routes []*types.Route) {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		gw := via[any.Is4()]
		if gw.IsValid() && slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == any.Is4() }) {
			routes = append(routes, &types.Route{Dst: *ipNet(netip.PrefixFrom(any, 0)), GW: gw.AsSlice()})
		}
	}
	return routes
}

// dns is what the configuration says, else IPAM, else the cluster's own.
func (s *session) dns(leased types.DNS, plan control.AttachPlan) types.DNS {
	switch d := s.RuntimeConfig.DNS; {
	case d != nil:
		return types.DNS{Nameservers: d.Servers, Search: d.Searches, Options: d.Options}
	case !s.DNS.IsEmpty():
		return s.DNS
	case !leased.IsEmpty():
		return leased
	}
	var own types.DNS
	for _, a := range plan.Nameservers {
		own.Nameservers = append(own.Nameservers, a.String())
	}
	if len(own.Nameservers) > 0 {
		namespace, _ := s.identity(s.args)
		own.Search = []string{namespace + ".svc." + plan.Domain, "svc." + plan.Domain, plan.Domain}
		own.Options = []string{"ndots:5"}
	}
	return own
}

// result is what ADD prints: after what earlier plugins of the chain did.
func (s *session) result(sh *shaped, nic control.NIC, prev *current.Result) *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if prev != nil {
		*res = *prev
	}
	if nic.HostIf != "" {
		res.Interfaces = append(res.Interfaces, &current.Interface{Name: nic.HostIf, Mac: hostMAC(nic.HostIf)})
	}
	res.Interfaces = append(res.Interfaces, &current.Interface{Name: s.args.IfName, Mac: sh.MAC.String(), Mtu: sh.MTU, Sandbox: s.args.Netns})
	for _, ip := range sh.ips {
		ip.Interface = current.Int(len(res.Interfaces) - 1)
		res.IPs = append(res.IPs, ip)
	}
	res.Routes = append(res.Routes, sh.routes...)
	res.DNS = sh.dns
	return res
}

// previous is the result of the plugins before, or of ADD.
func (s *session) previous() (*current.Result, error) {
	if err := version.ParsePrevResult(&s.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult", err.Error())
	}
	if s.PrevResult == nil {
		return nil, invalid("prevResult: is required")
	}
	prev, err := current.NewResultFromResult(s.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult", err.Error())
	}
	return prev, nil
}

func del(args *skel.CmdArgs) error {
	s, err := begin(args, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	// A gateway that is not running will find the interface gone when it starts.
	err = s.client.Call(ctx, "detach", control.DetachRequest{Container: args.ContainerID, IfName: args.IfName}, new(control.DetachResult))
	if errors.Is(err, control.ErrNotRunning) {
		err = nil
	}
	return explain(errors.Join(err, s.iface.Remove(), s.giveBack(ctx)), s.socketPath())
}

func gc(args *skel.CmdArgs) error {
	s, err := begin(args, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), addTime)
	defer cancel()
	q := control.DetachRequest{Network: s.Name, Valid: []control.Endpoint{}}
	for _, v := range s.ValidAttachments {
		q.Valid = append(q.Valid, control.Endpoint{Container: v.ContainerID, IfName: v.IfName})
	}
	var gone control.DetachResult
	err = s.client.Call(ctx, "detach", q, &gone)
	for _, a := range gone.Detached {
		err = errors.Join(err, interfaceOf(a).Remove())
	}
	switch {
	case s.pool == nil:
		if e := invoke.DelegateGC(ctx, s.IPAM.Type, args.StdinData, nil); !unknownCommand(e) {
			err = errors.Join(err, e)
		}
	case s.pool.leases():
		err = errors.Join(err, s.pool.keepOnly(s.ValidAttachments))
	}
	return explain(err, s.socketPath())
}

// unknownCommand says whether a plugin is of a time before a command.
func unknownCommand(err error) bool {
	var e *types.Error
	return errors.As(err, &e) && (e.Code == types.ErrInvalidEnvironmentVariables || e.Code == types.ErrIncompatibleCNIVersion)
}

func status(args *skel.CmdArgs) error {
	s, err := begin(args, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), otherTime)
	defer cancel()
	ready, err := s.client.Attachable(ctx)
	if err == nil && ready.Waiting > 0 {
		Reattach(ctx, s.client)
	}
	switch {
	case err != nil:
	case !ready.Ready:
		err = errors.New("the gateway has not yet heard what it is to enforce")
	case s.pool == nil:
		if err = invoke.DelegateStatus(ctx, s.IPAM.Type, args.StdinData, nil); unknownCommand(err) {
			err = nil
		}
	case s.pool.leases():
		err = s.pool.spare()
	case ready.Free == 0:
		err = errors.New("no address is left in the gateway's pod ranges")
	}
	if err == nil {
		return nil
	}
	known, ok := explain(err, s.socketPath()).(*types.Error)
	if !ok || known.Code == types.ErrPluginNotAvailable {
		return err
	}
	return types.NewError(types.ErrPluginNotAvailable, known.Msg, known.Details)
}

func interfaceOf(a control.Attachment) Interface {
	return Interface{Netns: a.Request.Netns, Name: a.Request.IfName, Owner: a.Request.Container}
}

// Reattach brings a gateway that was restarted the descriptors that it waits for
// and could not open itself. What is gone it is told to forget. It is best
// effort: who calls it came for something else.
func Reattach(ctx context.Context, c *control.Client) error {
	list, err := c.Attached(ctx)
	for _, a := range list {
		if !a.Waiting {
			continue
		}
		q := a.Request
		q.Again = true
		var nic control.NIC
		e := c.Attach(ctx, q, func(plan control.AttachPlan) (_ control.NIC, err error) {
			nic, err = interfaceOf(a).Reopen(plan.Kind, plan.HostIf)
			return nic, err
		})
		if nic.File != nil {
			nic.File.Close()
		}
		if errors.Is(e, ErrGone) {
			e = c.Call(ctx, "detach", control.DetachRequest{Container: q.Container, IfName: q.IfName}, new(control.DetachResult))
		}
		err = errors.Join(err, e)
	}
	return err
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
