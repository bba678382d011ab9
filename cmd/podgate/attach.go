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

// attach makes the data path know a pod.
func (g *gateway) attach(_ context.Context, p *corev1.Pod, nic pod.NIC) error {
	name := kube.Name{Namespace: p.Namespace, Name: p.Name}
	dev, err := openNIC(nic, name)
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	var ips []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			ips = append(ips, a)
		}
	}
	for _, a := range ips {
		g.names.Forget(packet.AddrFrom(a)) // whoever had the address before
		g.dns.Forget(a)
		g.searches.set(a, g.pods.Resolver(p).Searches)
	}
	id, err := g.plane.Attach(stack.PortSpec{Pod: name, Name: "eth0", MAC: nic.MAC, Addrs: ips, MTU: nic.MTU}, dev)
	if err != nil {
		dev.Close()
		return fmt.Errorf("attach %s: %w", name, err)
	}
	g.mu.Lock()
	g.ports[name], g.nicKind = id, nic.Kind
	g.mu.Unlock()
	g.followFault(p)
	g.changed.Broadcast()
	return nil
}

func openNIC(nic pod.NIC, name kube.Name) (link.Device, error) {
	if nic.Kind == pod.TAP {
		return link.OpenTAPFD(nic.FD, name.String())
	}
	return link.OpenVethFD(nic.FD, name.String())
}

func (g *gateway) detach(name kube.Name) {
	g.mu.Lock()
	id, ok := g.ports[name]
	delete(g.ports, name)
	delete(g.faults, name)
	g.mu.Unlock()
	if ok {
		if err := g.plane.Detach(id); err != nil {
			g.log.Error("detach", "pod", name, "err", err)
		}
	}
}
