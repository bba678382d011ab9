package nat

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

func (s *Service) publishes() bool { return s != nil && len(s.published) > 0 }

func loopback(is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// publishPort lists what the host is to listen on for sp: its NodePort, and of
// a LoadBalancer the port itself, at the load balancer's address if that is a
// loopback address, else at the common one. A load balancer's port continues at
// the NodePort, as with a cloud's load balancer. A Target without address means
// the node's.
func (c *compiler) publishPort(sp *ServicePort, balancer bool, sources []netip.Prefix) {
	if sp.Proto == packet.SCTP {
		return
	}
	is4 := sp.ClusterIP.Is4()
	p := Publication{HostIP: loopback(is4), Proto: sp.Proto, Port: sp.NodePort, Service: c.Name, Name: sp.Name,
		Target: netip.AddrPortFrom(netip.Addr{}, sp.NodePort)}
	if sp.NodePort != 0 {
		c.published = append(c.published, p)
	}
	if !balancer {
		return
	}
	p.Port, p.Sources = sp.Port, sources
	if sp.NodePort == 0 {
		p.Target = netip.AddrPortFrom(sp.ClusterIP.Netip(), sp.Port)
	}
	common := true
	for _, a := range sp.balancers {
		if host := a.Netip(); host.IsLoopback() {
			p.HostIP, common = host, false
			c.published = append(c.published, p)
		}
	}
	if common {
		c.published = append(c.published, p)
	}
}

// publish gathers the publications of all services anew. Where two want the
// same port of the same address the older has it.
func (t *Table) publish() {
	type wish struct {
		Publication
		owner owner
		born  int64
	}
	var wishes []wish
	for o, s := range t.services.all() {
		for _, p := range s.published {
			if !p.Target.Addr().IsValid() {
				node, ok := t.node(p.HostIP.Is4())
				if !ok {
					continue
				}
				p.Target = netip.AddrPortFrom(node, p.Target.Port())
			}
			wishes = append(wishes, wish{p, o, s.born})
		}
	}
	slices.SortFunc(wishes, func(a, b wish) int {
		return cmp.Or(a.HostIP.Compare(b.HostIP), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.born, b.born), a.owner.compare(b.owner), a.Target.Compare(b.Target))
	})
	t.published, t.refused = nil, nil
	var won *wish
	for i := range wishes {
		w := &wishes[i]
		if won == nil || won.HostIP != w.HostIP || won.Proto != w.Proto || won.Port != w.Port {
			t.published = append(t.published, w.Publication)
			won = w
			continue
		}
		if won.owner != w.owner {
			t.refused = append(t.refused, kube.Problem{Kind: w.owner.kind(), Object: w.owner.Name,
				Err: fmt.Sprintf("port %s/%s of the host is already published for %s %s", netip.AddrPortFrom(w.HostIP, w.Port), protoName(w.Proto), won.owner.kind(), won.owner.Name)})
		}
	}
}

// node returns the node's first address of a family.
func (t *Table) node(is4 bool) (netip.Addr, bool) {
	for _, a := range t.nodes {
		if a.Is4() == is4 {
			return a.Netip(), true
		}
	}
	return netip.Addr{}, false
}

// field is where in the object a claim of this rank comes from.
func (r rank) field() string {
	return [...]string{"spec.clusterIPs", "status.loadBalancer.ingress", "spec.externalIPs", "spec.ports.nodePort", "spec.containers.ports.hostPort"}[r]
}
