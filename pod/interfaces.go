package pod

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

// attach hands the interfaces of a sandbox to the data path.
func (w *worker) attach(a answer, specs []nicSpec) error {
	defer closeAll(a.files)
	if len(a.files) != len(specs) {
		return fmt.Errorf("the keeper sent %d links for %d interfaces", len(a.files), len(specs))
	}
	for n, s := range specs {
		// Attach gets a plain descriptor, which no finalizer closes.
		fd, err := dupCloexec(a.files[n])
		if err != nil {
			return err
		}
		i := &w.nics[n]
		nic := NIC{Kind: a.Kind, FD: fd, Name: s.Name, MAC: packet.MAC(s.MAC), MTU: s.MTU, Addrs: i.Addrs,
			Network: i.Network, Secondary: n > 0, Default: len(i.Default) > 0}
		if err := w.r.cfg.Attach(w.ctx, w.pod, nic); err != nil {
			return err
		}
		w.attached = true
	}
	return nil
}

// interfaces are those that the pod is to have; none yet, without an error, while it
// has no address.
func (w *worker) interfaces() ([]kube.Interface, error) {
	st := w.r.wanted()
	if p := st.Pods[w.name]; p == nil || string(p.UID) != w.uid {
		return nil, nil // its successor's
	}
	if ifs := st.Interfaces[w.name]; ifs != nil {
		if ifs.Problem != nil {
			return nil, fmt.Errorf("%s: %s", ifs.Problem.Field, ifs.Problem.Err)
		}
		return ifs.List, nil
	}
	ips := podIPs(w.pod)
	if len(ips) == 0 {
		return nil, nil
	}
	return []kube.Interface{{Name: "eth0", MAC: kube.MACOf(ips), Addrs: ips, Default: w.r.cfg.Gateway}}, nil
}

// nicSpec says what the kernel is to make of an interface.
func (w *worker) nicSpec(i *kube.Interface) nicSpec {
	s := nicSpec{Name: i.Name, MAC: i.MAC, MTU: w.r.cfg.MTU, Gateways: w.r.cfg.Gateway, Default: i.Default}
	prefixes := w.r.cfg.PodCIDRs
	if n := i.Network; n != nil {
		s.MTU, s.Gateways, prefixes = cmp.Or(n.MTU, s.MTU), n.Gateways(), n.Prefixes()
		for _, r := range n.Routes {
			via := r.Via
			for _, gw := range s.Gateways {
				if !via.IsValid() && gw.Is4() == r.Dst.Addr().Is4() {
					via = gw
				}
			}
			switch {
			case slices.Contains(i.Addrs, via):
				s.Behind = append(s.Behind, r.Dst)
			case r.Dst.Bits() > 0:
				s.Routes = append(s.Routes, nicRoute{r.Dst, via})
			}
		}
	}
	for _, a := range i.Addrs {
		s.Addrs = append(s.Addrs, onLink(a, prefixes))
	}
	return s
}

// onLink gives an address the length of the prefix that it is in.
func onLink(ip netip.Addr, prefixes []netip.Prefix) netip.Prefix {
	for _, p := range prefixes {
		if p.Contains(ip) {
			return netip.PrefixFrom(ip, p.Bits())
		}
	}
	return netip.PrefixFrom(ip, ip.BitLen())
}
