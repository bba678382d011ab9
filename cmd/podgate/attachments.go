package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"podgate/cni"
	"podgate/control"
	"podgate/kube"
	"podgate/pod"
	"podgate/stack"
	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// Theory of operation
//
// Attachments are pods whose network namespaces are somebody else's: of a
// container runtime that speaks CNI, or made by hand. The client makes the
// interface as the gateway plans it and passes its descriptor; the store makes a
// pod of it, so that Services, policies and names treat it as any other.
//
// Those of CNI outlive the gateway. Each is written down, and its interface is
// made to stay without a descriptor. A gateway that starts reads what was written
// before anything else takes an address, enforces the policies, and then opens
// the interfaces again, if it may enter their namespaces. What it may not open
// waits for a plugin that may: see AttachRequest.Again.
//
//	         Attach             served
//	(none) ----------> making ----------> attached
//	  ^                  |                   | restart
//	  +--- failed -------+                   v
//	  +--- Detach -------+---------------- waiting ---- opened again ---> attached

// attachments are those of one gateway.
type attachments struct {
	opened chan struct{} // closed once policies are in force; nothing is attached before

	mu    sync.Mutex // guards all below
	all   map[control.Endpoint]*attachment
	byPod map[kube.Name]*attachment
}

// attachment is one of them. What it says does not change once made is closed.
type attachment struct {
	control.Attachment
	pod  kube.Name
	made chan struct{} // closed when the attempt to make it is over, well or not
}

func (a *attachment) key() control.Endpoint {
	return control.Endpoint{Container: a.Request.Container, IfName: a.Request.IfName}
}

func (as *attachments) open() { close(as.opened) }

func (as *attachments) isOpen() bool {
	select {
	case <-as.opened:
		return true
	default:
		return false
	}
}

func (as *attachments) get(key control.Endpoint) *attachment {
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.all[key]
}

// put adds an attachment unless there is one of its key, or one of its pod, which
// it returns.
func (as *attachments) put(a *attachment) *attachment {
	as.mu.Lock()
	defer as.mu.Unlock()
	if old := cmp.Or(as.all[a.key()], as.byPod[a.pod]); old != nil {
		return old
	}
	as.all[a.key()], as.byPod[a.pod] = a, a
	return nil
}

func (as *attachments) drop(a *attachment) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.all[a.key()] == a {
		delete(as.all, a.key())
	}
	if as.byPod[a.pod] == a {
		delete(as.byPod, a.pod)
	}
}

// list is in the order of the pods' names.
func (as *attachments) list() []*attachment {
	as.mu.Lock()
	defer as.mu.Unlock()
	var all []*attachment
	for _, n := range sortedNames(as.byPod) {
		all = append(all, as.byPod[n])
	}
	return all
}

// awaited are the addresses of those that wait for their interface.
func (as *attachments) awaited() (addrs []netip.Addr) {
	as.mu.Lock()
	defer as.mu.Unlock()
	for _, a := range as.all {
		if a.Waiting {
			for _, p := range a.Plan.Addrs {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	return addrs
}

func (as *attachments) waiting() (n int) {
	as.mu.Lock()
	defer as.mu.Unlock()
	for _, a := range as.all {
		if a.Waiting {
			n++
		}
	}
	return n
}

func (as *attachments) waits(a *attachment) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	return a.Waiting
}

func (g *gateway) listAttached() []control.Attachment {
	list := []control.Attachment{}
	for _, a := range g.attachments.list() {
		select {
		case <-a.made:
			g.attachments.mu.Lock()
			list = append(list, a.Attachment)
			g.attachments.mu.Unlock()
		default:
		}
	}
	return list
}

// attachOutside answers the control socket: see control.AttachRequest.
func (g *gateway) attachOutside(ctx context.Context, q control.AttachRequest, build func(control.AttachPlan) (control.NIC, error)) error {
	if !g.attachments.isOpen() {
		return &control.Refused{Reason: control.NotReady, Text: "the gateway has not yet heard what it is to enforce"}
	}
	if q.Again {
		return g.attachAgain(q, build)
	}
	if err := checkAttach(q, g.cfg); err != nil {
		return err
	}
	a := &attachment{Attachment: control.Attachment{Request: q}, pod: kube.Name{Namespace: q.Namespace, Name: q.Pod}, made: make(chan struct{})}
	defer close(a.made)
	// Who is attached anew has lost what it had: its interface, or its sandbox.
	for old := g.attachments.put(a); old != nil; old = g.attachments.put(a) {
		if old.pod == a.pod && old.Request.IfName != q.IfName {
			return &control.Refused{Reason: control.Taken, Text: fmt.Sprintf("pod %s is attached already, as %s of container %s", a.pod, old.Request.IfName, old.Request.Container)}
		}
		if q.Network == "" || old.Request.Network == "" {
			return &control.Refused{Reason: control.Taken, Text: fmt.Sprintf("pod %s is attached already", a.pod)}
		}
		g.detachOutside(old)
	}
	err := g.makeAttachment(ctx, a, build)
	if err != nil {
		g.log.Info("not attached", "pod", a.pod, "container", q.Container, "err", err)
		g.forget(a)
	}
	return err
}

// checkAttach says what is wrong with a request by itself.
func checkAttach(q control.AttachRequest, cfg config) error {
	if q.Container == "" || q.IfName == "" {
		return errors.New("attach: container and interface name are needed")
	}
	if q.MTU != 0 && (q.MTU < 576 || q.MTU > 65520) {
		return fmt.Errorf("MTU %d: must be between 576 and 65520", q.MTU)
	}
	if !slices.Contains([]string{"", cni.TAP, cni.Veth, link.Stream, link.Dgram}, q.Kind) {
		return fmt.Errorf("kind %q is none of tap, veth, stream and dgram", q.Kind)
	}
	if _, err := net.ParseMAC(q.MAC); q.MAC != "" && err != nil {
		return fmt.Errorf("MAC %q: %w", q.MAC, err)
	}
	if _, err := link.ParseFaults(q.Faults); err != nil {
		return err
	}
	for _, p := range q.HostPorts {
		if p.HostPort < 1 || p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return fmt.Errorf("port mapping %d to %d: ports are from 1 to 65535", p.HostPort, p.ContainerPort)
		}
		if _, ok := protocols[strings.ToLower(p.Protocol)]; !ok {
			return fmt.Errorf("port mapping %d to %d: protocol %q is none of tcp, udp, sctp", p.HostPort, p.ContainerPort, p.Protocol)
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			return fmt.Errorf("port mapping %d to %d: host address: %w", p.HostPort, p.ContainerPort, err)
		}
	}
	return nil
}

var protocols = map[string]corev1.Protocol{"": corev1.ProtocolTCP, "tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP, "sctp": corev1.ProtocolSCTP}

// makeAttachment does all that can fail; the caller takes back what it did.
func (g *gateway) makeAttachment(ctx context.Context, a *attachment, build func(control.AttachPlan) (control.NIC, error)) error {
	if err := g.adopt(a); err != nil {
		return err
	}
	nic, err := build(a.Plan)
	if err != nil {
		return err
	}
	a.Plan.Kind, a.Plan.HostIf = nic.Kind, nic.HostIf
	if err := g.connect(a, nic); err != nil {
		return err
	}
	if a.Request.Network != "" {
		if err := g.remember(a); err != nil {
			return err
		}
	}
	g.store.MarkReady(a.pod)
	return g.enforce(ctx)
}

// adopt makes a pod of the attachment, with addresses, and its plan.
func (g *gateway) adopt(a *attachment) error {
	q := &a.Request
	made := kube.Attachment{Name: a.pod, UID: types.UID(q.UID), By: cmp.Or(q.Network, "hand"), Labels: q.Labels, Addrs: q.Addrs}
	if isSocket(q.Kind) && len(q.Addrs) == 0 {
		made.Own = func(given []netip.Addr) []netip.Addr {
			return autoconfigured(g.cfg.Kube.PodCIDRs, given, macFor(*q, given))
		}
	}
	for _, p := range q.HostPorts {
		made.Ports = append(made.Ports, corev1.ContainerPort{HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: protocols[strings.ToLower(p.Protocol)]})
	}
	p, err := g.store.Attach(made)
	switch {
	case errors.Is(err, kube.ErrNoAddress):
		return &control.Refused{Reason: control.Exhausted, Text: fmt.Sprintf("%v (%s)", err, joinPrefixes(g.cfg.Kube.PodCIDRs))}
	case err != nil:
		return &control.Refused{Reason: control.Taken, Text: err.Error()}
	}
	addrs := podFamilies(p)
	q.Addrs = addrs
	mtu := g.cfg.MTU
	if isSocket(q.Kind) {
		mtu = min(mtu, 1500) // what a virtual machine's card has
	}
	plan := control.AttachPlan{MAC: macFor(*q, addrs).String(), MTU: cmp.Or(q.MTU, mtu), Kind: cmp.Or(q.Kind, nicKind(g.cfg.Attach)), Nameservers: g.dnsService(), Domain: g.cfg.Kube.ClusterDomain, Waiting: g.attachments.waiting()}
	for _, addr := range addrs {
		bits := addr.BitLen()
		for _, c := range g.cfg.Kube.PodCIDRs {
			if c.Contains(addr) {
				bits = c.Bits()
			}
		}
		plan.Addrs = append(plan.Addrs, netip.PrefixFrom(addr, bits))
	}
	for _, gw := range ownAddrs(g.cfg.Kube.PodCIDRs).node {
		if slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return addr.Is4() == gw.Is4() }) {
			plan.Gateways = append(plan.Gateways, gw)
		}
	}
	a.Plan = plan
	return nil
}

// isSocket says whether the interface is a virtual machine's, in no namespace.
func isSocket(kind string) bool { return kind == link.Stream || kind == link.Dgram }

// macFor is the MAC that was asked for, or else that of the addresses.
func macFor(q control.AttachRequest, addrs []netip.Addr) packet.MAC {
	if mac, err := net.ParseMAC(q.MAC); err == nil && len(mac) == len(packet.MAC{}) {
		return packet.MAC(mac)
	}
	return macOf(addrs)
}

// autoconfigured are addresses of which those that a machine makes of a prefix of
// 64 bits and its MAC (RFC 4862) are so made.
func autoconfigured(cidrs []netip.Prefix, given []netip.Addr, mac packet.MAC) []netip.Addr {
	own := slices.Clone(given)
	for i, a := range own {
		for _, c := range cidrs {
			if a.Is6() && c.Contains(a) && c.Bits() == 64 {
				own[i] = packet.EUI64(c.Masked().Addr(), mac).Netip()
			}
		}
	}
	return own
}

func joinPrefixes(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}

// connect makes the data path serve the interface.
func (g *gateway) connect(a *attachment, nic control.NIC) error {
	fd, err := unix.FcntlInt(nic.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	nic.File.Close()
	if err != nil {
		return err
	}
	dev, err := openNIC(pod.NIC{Kind: nic.Kind, FD: fd}, a.pod)
	if err != nil {
		unix.Close(fd)
		return err
	}
	mac, err := net.ParseMAC(a.Plan.MAC)
	if err != nil || len(mac) != len(packet.MAC{}) {
		dev.Close()
		return fmt.Errorf("MAC %q is none of an Ethernet interface", a.Plan.MAC)
	}
	for _, addr := range a.Request.Addrs {
		g.names.Forget(packet.AddrFrom(addr)) // whoever had the address before
	}
	id, err := g.plane.Attach(stack.PortSpec{Pod: a.pod, Name: a.Request.IfName, MAC: packet.MAC(mac), Addrs: a.Request.Addrs, MTU: a.Plan.MTU}, dev)
	if err != nil {
		dev.Close()
		return &control.Refused{Reason: control.Taken, Text: err.Error()}
	}
	g.mu.Lock()
	g.ports[a.pod], g.nicKind = []flow.PortID{id}, nic.Kind
	g.mu.Unlock()
	g.changed.Broadcast()
	if a.Request.Faults == "" {
		return nil
	}
	f, err := link.ParseFaults(a.Request.Faults)
	if err != nil {
		return err
	}
	return g.plane.SetFaults(a.pod.String(), f)
}

// detachVerb answers the control socket.
func (g *gateway) detachVerb(ctx context.Context, q control.DetachRequest) (control.DetachResult, error) {
	res := control.DetachResult{Detached: []control.Attachment{}}
	for _, a := range g.attachments.list() {
		wanted := a.key() == control.Endpoint{Container: q.Container, IfName: q.IfName}
		if q.Network != "" {
			wanted = a.Request.Network == q.Network && !slices.Contains(q.Valid, a.key())
		}
		if !wanted {
			continue
		}
		select {
		case <-a.made:
		case <-ctx.Done():
			return res, ctx.Err()
		}
		g.detachOutside(a)
		res.Detached = append(res.Detached, a.Attachment)
	}
	return res, nil
}

// detachOutside ends an attachment that was made; a second call does nothing.
func (g *gateway) detachOutside(a *attachment) {
	<-a.made
	g.forget(a)
}

// forget takes away what there is of an attachment.
func (g *gateway) forget(a *attachment) {
	if g.attachments.current(a) {
		g.detach(a.pod)
		g.store.Detach(a.pod)
		g.unremember(a)
		g.attachments.drop(a)
	}
}

// current says whether an attachment is still the one of its pod.
func (as *attachments) current(a *attachment) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.byPod[a.pod] == a
}
