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

// publication is a Publication of which an address may be left open: that of
// the host means Config.HostIPs, that of the target the node's.
type publication struct {
	Publication
	is4   bool
	local bool // somebody answers the node itself, if nobody does outside
}

// publishPort lists what the host is to listen on for sp: its NodePort, and of
// a LoadBalancer (balanced) the port itself, at hosts. A load balancer's port
// continues at the NodePort, as with a cloud's load balancer.
func (c *compiler) publishPort(sp *ServicePort, balanced bool, hosts []packet.Addr, sources []netip.Prefix, proxy proxyProtocol) {
	if sp.Proto == packet.SCTP {
		return
	}
	p := publication{is4: sp.ClusterIP.Is4()}
	p.Publication = Publication{Proto: sp.Proto, Port: sp.NodePort, Service: c.Name, Name: sp.Name, Target: netip.AddrPortFrom(netip.Addr{}, sp.NodePort), Closed: !sp.answersOutside()}
	p.local = sp.cluster != nil
	if sp.Proto == packet.TCP {
		p.AcceptProxy, p.SendProxy = proxy.accept, proxy.send
	}
	if sp.NodePort != 0 {
		c.published = append(c.published, p)
	}
	if !balanced {
		return
	}
	p.Port, p.Sources = sp.Port, sources
	p.SendProxy = p.SendProxy || proxy.balancerSend && sp.Proto == packet.TCP
	if sp.NodePort == 0 {
		p.Target = netip.AddrPortFrom(sp.ClusterIP.Netip(), sp.Port)
	}
	for _, a := range hosts {
		p.HostIP = a.Netip()
		c.published = append(c.published, p)
	}
	if len(hosts) == 0 {
		c.published = append(c.published, p)
	}
}

// publish gathers the publications of all services anew. Where two want the
// same port of the same address it belongs to a node port, which answers inside
// the cluster too, else to the older.
func (t *Table) publish() {
	type wish struct {
		Publication
		owner owner
		born  int64
		rank  rank
		front bool // contested inside the cluster as well, where it is reported
	}
	var wishes []wish
	for o, s := range t.services.All() {
		for _, p := range s.published {
			w := wish{owner: o, born: s.born, rank: rankHostPort}
			if !p.Target.Addr().IsValid() && p.Target.Port() == p.Port {
				w.rank = rankNodePort
			}
			w.front = (w.rank == rankNodePort || o.pod) && t.contested[nodeFront(p.is4, p.Proto, p.Port)]
			if !p.Target.Addr().IsValid() {
				node, ok := t.node(p.is4)
				if !ok {
					continue
				}
				p.Target = netip.AddrPortFrom(node, p.Target.Port())
			}
			hosts := []netip.Addr{p.HostIP}
			if !p.HostIP.IsValid() {
				hosts = t.hostIPs(p.is4)
			}
			for _, h := range hosts {
				p.HostIP = h
				w.Publication = p.Publication
				// Clients on loopback come as the node, to which policy Local does not apply.
				w.Closed = p.Closed && !(p.local && h.IsLoopback())
				wishes = append(wishes, w)
			}
		}
	}
	slices.SortFunc(wishes, func(a, b wish) int {
		return cmp.Or(a.HostIP.Compare(b.HostIP), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.rank, b.rank), cmp.Compare(a.born, b.born), a.owner.compare(b.owner), a.Target.Compare(b.Target))
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
		if won.owner != w.owner && !(won.front && w.front) {
			t.refused = append(t.refused, kube.Problem{Kind: w.owner.kind(), Object: w.owner.Name,
				Err: fmt.Sprintf("port %s/%s of the host is already published for %s %s", netip.AddrPortFrom(w.HostIP, w.Port), protoName(w.Proto), won.owner.kind(), won.owner.Name)})
		}
	}
}

// hostIPs returns where the host listens in a family.
func (t *Table) hostIPs(is4 bool) []netip.Addr {
	var of []netip.Addr
	for _, a := range t.hosts {
		if a.Is4() == is4 {
			of = append(of, a)
		}
	}
	if len(of) == 0 {
		of = append(of, loopback(is4))
	}
	return of
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
