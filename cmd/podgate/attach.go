package main

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/pod"
	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// macOf is the MAC of an interface with these addresses: 0a:58 and the four
// bytes of its IPv4 address, or the last four of its IPv6 address.
func macOf(ips []netip.Addr) packet.MAC {
	m := packet.MAC{0x0a, 0x58}
	for _, a := range ips {
		b := a.As16()
		copy(m[2:], b[12:])
		if a.Is4() {
			break
		}
	}
	return m
}

// attach makes the data path know an interface of a pod.
func (g *gateway) attach(_ context.Context, p *corev1.Pod, nic pod.NIC) error {
	name := kube.Name{Namespace: p.Namespace, Name: p.Name}
	dev, err := openNIC(nic, name)
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	for _, a := range nic.Addrs {
		g.names.Forget(packet.AddrFrom(a)) // whoever had the address before
		g.dns.Forget(a)
		g.searches.set(a, g.resolver(p).Searches)
	}
	spec := stack.PortSpec{Pod: name, Name: nic.Name, MAC: nic.MAC, Addrs: nic.Addrs, MTU: nic.MTU, Secondary: nic.Secondary, Default: nic.Default}
	if nic.Network != nil {
		spec.Network = nic.Network.Name.String()
	}
	id, err := g.plane.Attach(spec, dev)
	if err != nil {
		dev.Close()
		return fmt.Errorf("attach %s: %w", name, err)
	}
	g.mu.Lock()
	g.ports[name], g.nicKind = append(g.ports[name], id), nic.Kind
	delete(g.faults, name) // not yet followed on this interface
	g.mu.Unlock()
	g.followFault(p)
	g.changed.Broadcast()
	return nil
}

func openNIC(nic pod.NIC, name kube.Name) (link.Device, error) {
	switch nic.Kind {
	case pod.TAP:
		return link.OpenTAPFD(nic.FD, name.String())
	case link.Stream, link.Dgram:
		return link.OpenQEMU(nic.FD, name.String())
	}
	return link.OpenVethFD(nic.FD, name.String())
}

func (g *gateway) detach(name kube.Name) {
	g.mu.Lock()
	ids := g.ports[name]
	delete(g.ports, name)
	delete(g.faults, name)
	g.mu.Unlock()
	for _, id := range ids {
		if err := g.plane.Detach(id); err != nil {
			g.log.Error("detach", "pod", name, "err", err)
		}
	}
}
