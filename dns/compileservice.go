package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// compileService makes the nodes of one Service.
func (z *Zone) compileService(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice) *service {
	b := &serviceBuilder{
		zone:  z,
		name:  svc.Name + "." + svc.Namespace + ".svc." + z.domain,
		out:   &service{},
		nodes: map[string]*node{},
		seen:  map[any]int{},
	}
	b.compile(svc, endpoints)
	b.out.settle(b.nodes)
	return b.out
}

func (b *serviceBuilder) compile(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice) {
	z := b.zone
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		target := dns.CanonicalName(svc.Spec.ExternalName)
		if _, err := netip.ParseAddr(strings.TrimSuffix(target, ".")); err == nil {
			return // an address is no name: CoreDNS does not answer either
		}
		if _, ok := dns.IsDomainName(target); ok && target != "." {
			b.at("").cname = &dns.CNAME{Hdr: z.header(b.name, dns.TypeCNAME), Target: target}
		}
		return
	}
	byName := func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) }
	if z.kube.noEndpoints {
		endpoints = nil
	}
	b.endpoints(slices.SortedFunc(slices.Values(endpoints), byName), svc.Spec.PublishNotReadyAddresses)
	if vips := clusterIPs(svc); len(vips) > 0 {
		if z.kube.ignoreEmpty && len(b.eps) == 0 {
			return
		}
		b.clusterIP(vips, svc.Spec.Ports)
	} else {
		b.headless()
	}
}

// clusterIPs are a Service's own addresses, none if it is headless.
func clusterIPs(svc *corev1.Service) []netip.Addr {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{svc.Spec.ClusterIP}
	}
	var addrs []netip.Addr
	for _, ip := range ips {
		if addr, err := netip.ParseAddr(ip); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// serviceBuilder collects the nodes of one Service.
type serviceBuilder struct {
	zone  *Zone
	name  string // canonical
	out   *service
	nodes map[string]*node // by name relative to name
	eps   []endpoint
	seen  map[any]int // endpoints (by place in eps), addresses and SRV records that are there already
}

type (
	seenEndpoint struct {
		host string
		addr netip.Addr
	}
	seenAddr struct {
		at   *node
		addr netip.Addr
	}
	seenSRV struct {
		at     *node
		target string
		port   uint16
	}
)

// endpoint is one address with the ports of its slice.
type endpoint struct {
	host  string // label
	addr  netip.Addr
	ports []port
	zone  string // "": unknown
}

type port struct {
	label  string // "_http._tcp", "" for one without a name
	number uint16
}

// at returns the node of a name relative to the Service's, made if need be,
// with the empty node of its protocol.
func (b *serviceBuilder) at(sub string) *node {
	n := b.nodes[sub]
	if n == nil {
		n = &node{}
		b.nodes[sub] = n
		if _, proto, ok := strings.Cut(sub, "."); ok && b.nodes[proto] == nil {
			b.nodes[proto] = empty
		}
	}
	return n
}

// endpoints reads the endpoints to be published and makes the nodes of their names.
func (b *serviceBuilder) endpoints(all []*discoveryv1.EndpointSlice, notReady bool) {
	for _, es := range all {
		if es.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		var ports []port
		for _, p := range es.Ports {
			if p.Port != nil {
				ports = append(ports, port{portLabel(deref(p.Name), string(deref(p.Protocol))), uint16(*p.Port)})
			}
		}
		for _, e := range es.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready && !notReady {
				continue
			}
			for _, ip := range e.Addresses {
				addr, err := netip.ParseAddr(ip)
				if err != nil {
					continue
				}
				host := strings.ToLower(deref(e.Hostname))
				if host == "" && b.zone.kube.podNames && e.TargetRef != nil {
					host = strings.ToLower(e.TargetRef.Name)
				}
				if host == "" || len(host) > 63 || strings.Contains(host, ".") { // no label
					host = dash(addr)
				}
				b.endpoint(endpoint{host, addr, ports, strings.ToLower(deref(e.Zone))})
			}
		}
	}
	shares := map[string]int{} // SRV records that a name's weight is shared by
	for _, e := range b.eps {
		shares[e.host] += len(e.ports)
	}
	for _, e := range b.eps {
		n := b.at(e.host)
		for _, p := range e.ports {
			b.srv(n, e.host+"."+b.name, shares[e.host], e.host+"."+b.name, p.number)
		}
		n.extra = slices.Concat(n.a, n.aaaa)
	}
}

func (b *serviceBuilder) endpoint(e endpoint) {
	name := e.host + "." + b.name
	if i, ok := b.seen[seenEndpoint{e.host, e.addr}]; ok { // in another slice, with other ports
		b.eps[i].ports = slices.Concat(b.eps[i].ports, e.ports)
		return
	}
	b.seen[seenEndpoint{e.host, e.addr}] = len(b.eps)
	b.eps = append(b.eps, e)
	b.at(e.host).add(b.zone.address(name, e.addr))
	b.out.pointers = append(b.out.pointers, ownedPointer{e.addr, pointer{of: b.out, target: name}})
}

func (b *serviceBuilder) clusterIP(vips []netip.Addr, ports []corev1.ServicePort) {
	n := b.at("")
	for _, vip := range vips {
		n.add(b.zone.address(b.name, vip))
		b.out.pointers = append(b.out.pointers, ownedPointer{vip, pointer{of: b.out, target: b.name, vip: true}})
	}
	switch { // one slice for both where it can be
	case len(n.aaaa) == 0:
		n.extra = n.a
	case len(n.a) == 0:
		n.extra = n.aaaa
	default:
		n.extra = slices.Concat(n.a, n.aaaa)
	}
	for _, p := range ports {
		b.srv(n, b.name, len(ports)*len(vips), b.name, uint16(p.Port))
		if label := portLabel(p.Name, string(p.Protocol)); label != "" {
			pn := b.at(label)
			b.srv(pn, label+"."+b.name, len(vips), b.name, uint16(p.Port))
			// These have another owner, who gets copies when asked for.
			pn.a, pn.aaaa, pn.extra = n.a, n.aaaa, n.extra
		}
	}
}

func (b *serviceBuilder) headless() {
	if len(b.eps) == 0 {
		return // no ready endpoint: no name (specification, 2.4.1)
	}
	count := map[string]int{}
	for _, e := range b.eps {
		for _, p := range e.ports {
			count[p.label]++
		}
	}
	b.listAll(b.at(""), b.name, b.eps)
	for _, e := range b.eps {
		for _, p := range e.ports {
			if p.label != "" {
				pn := b.at(p.label)
				b.srv(pn, p.label+"."+b.name, count[p.label], e.host+"."+b.name, p.number)
				b.list(pn, p.label+"."+b.name, e)
			}
		}
	}
	if b.zone.kube.zonal {
		b.zones()
	}
}

// zones makes the names of a headless Service's endpoints in one topology zone.
func (b *serviceBuilder) zones() {
	b.out.zonal = true
	in := map[string][]endpoint{}
	for _, e := range b.eps {
		if e.zone != "" {
			in[e.zone] = append(in[e.zone], e)
		}
	}
	for zone, eps := range in {
		n, name := new(node), zone+pinned
		b.listAll(n, name+"."+b.name, eps)
		b.nodes[name] = n
	}
}

// listAll gives a node the addresses of endpoints, and all their ports.
func (b *serviceBuilder) listAll(n *node, owner string, eps []endpoint) {
	all := 0
	for _, e := range eps {
		all += len(e.ports)
	}
	for _, e := range eps {
		b.list(n, owner, e)
		for _, p := range e.ports {
			b.srv(n, owner, all, e.host+"."+b.name, p.number)
		}
	}
}

// list gives a node an endpoint's address, once.
func (b *serviceBuilder) list(n *node, owner string, e endpoint) {
	if _, ok := b.seen[seenAddr{n, e.addr}]; ok {
		return
	}
	b.seen[seenAddr{n, e.addr}] = 0
	n.add(b.zone.address(owner, e.addr))
	n.extra = append(n.extra, b.zone.address(e.host+"."+b.name, e.addr))
}

// srv adds an SRV record of priority 0 and, as CoreDNS has it, a weight of 100
// shared by n records; one that is there already is not added again.
func (b *serviceBuilder) srv(at *node, owner string, n int, target string, number uint16) {
	if _, ok := b.seen[seenSRV{at, target, number}]; ok {
		return
	}
	b.seen[seenSRV{at, target, number}] = 0
	at.add(&dns.SRV{
		Hdr: b.zone.header(owner, dns.TypeSRV), Weight: uint16(max(1, 100/n)), Port: number, Target: target,
	})
}

// portLabel is "_name._proto", or "" for a port without a name.
func portLabel(name, proto string) string {
	if name == "" {
		return ""
	}
	if proto == "" {
		proto = string(corev1.ProtocolTCP)
	}
	return strings.ToLower("_" + name + "._" + proto)
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
