package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
)

// The zone
//
// A Zone holds every name of the cluster domain as a node: its records by type,
// made once by Compile with the names in lower case. A node without records is
// an empty non-terminal: it exists (NODATA), where a name without a node does
// not (NXDOMAIN, RFC 8020). Names of Services are found by "service.namespace",
// a key that is cut out of the question without copying, and below it by what
// is left of the name: "" for the Service, "_http._tcp" for a port, "web-0" or
// "10-244-0-7" for an endpoint. Pod names are made from the question itself.
//
// Addresses are found by address, not by their reverse name. The reverse zones
// that are ours are those of the pod and Service CIDRs, cut at octets (IPv4) or
// nibbles (IPv6); a pointer for an address outside of them is answered when an
// endpoint has it and left to the upstreams otherwise.
//
// Nothing here is written after Compile, so queries take no lock. Records are
// handed out as they are when the question has the canonical spelling, and as
// copies under the name as asked when it has not (DNS 0x20).

// Zone is everything that is known about the cluster's names, at one moment. It
// is immutable; unchanged Services are shared with the Zone before.
type Zone struct {
	domain     string // canonical, "cluster.local."
	ttl        uint32 // seconds
	pods       PodMode
	namespaces map[string]struct{}
	static     map[string]*node // by name relative to domain: "", "ns.dns", "svc"
	services   index[string, *service]
	pointers   index[netip.Addr, []pointer]
	podAddrs   map[podAddr]struct{} // filled for Verified only
	reverse    []reverseZone

	kube   kubeOptions
	source // of compile.go: what it was made from
}

// service is a Service's part of the zone.
type service struct {
	self     *node            // the Service's own name; nil: there is none
	few      []namedNode      // the names below, relative to the Service's
	many     map[string]*node // likewise, of a Service with more than fewNodes
	pointers []ownedPointer   // what it adds to Zone.pointers
	zonal    bool             // it has names for topology zones
}

type namedNode struct {
	sub string
	*node
}

// fewNodes are as many as are found sooner without a map; most Services have no
// more, and a map is larger than they are.
const fewNodes = 8

// node returns that of a name relative to the Service's, nil if there is none.
func (s *service) node(sub string) *node {
	if sub == "" {
		return s.self
	}
	for i := range s.few {
		if s.few[i].sub == sub {
			return s.few[i].node
		}
	}
	return s.many[sub]
}

// settle is the end of making a service of its nodes by name.
func (s *service) settle(nodes map[string]*node) {
	s.self = nodes[""]
	delete(nodes, "")
	if len(nodes) > fewNodes {
		s.many = nodes
		return
	}
	s.few = make([]namedNode, 0, len(nodes))
	for sub, n := range nodes {
		s.few = append(s.few, namedNode{sub, n})
	}
}

// What stands between a topology zone and a headless Service's name: endpoints
// in that zone alone, or all of them where there are none in it (CoreDNS's zonal).
const (
	pinned    = ".pin._zone"
	preferred = ".prefer._zone"
)

// node is one name: its records, owned by that name in lower case.
type node struct {
	a, aaaa, srv, other []dns.RR
	extra               []dns.RR // addresses of the targets of srv or NS
	cname               *dns.CNAME

	packed [packedKinds]atomic.Pointer[packed] // of fast.go, filled by the first who asks
}

// empty is every name that exists only because longer names do.
var empty = new(node)

// pointer is the name of an address.
type pointer struct {
	of     *service
	target string
	vip    bool // a ClusterIP: it is the address's only name
}

type ownedPointer struct {
	addr netip.Addr
	pointer
}

// podAddr is a pod's address in its namespace.
type podAddr struct {
	namespace string
	addr      netip.Addr
}

// reverseZone is one zone cut under in-addr.arpa or ip6.arpa.
type reverseZone struct {
	apex string
	node *node
}

// answer is what the zone says to one question.
type answer struct {
	rcode     int
	records   []dns.RR // of the question's type, after the CNAMEs that lead to them
	extra     []dns.RR
	soa       dns.RR         // of the zone that has no such name or data; nil otherwise
	authority []dns.RR       // beside soa
	why       *dns.EDNS0_EDE // for clients that understand it (RFC 8914); nil: there is nothing to say
	chase     string         // a name that is for an upstream to resolve and completes the answer, or ""
}

// denied says whether the name that was asked for does not exist.
func (a *answer) denied() bool { return a.rcode == dns.RcodeNameError && len(a.records) == 0 }

// maxChain bounds the CNAMEs that are followed for one question.
const maxChain = 8

// answer says what the zone knows about name.
func (z *Zone) answer(name string, qtype uint16) (a answer) {
	for range maxChain {
		n, soa, ours := z.find(strings.ToLower(name), qtype)
		if !ours {
			a.chase = name
			return a
		}
		if n == nil {
			a.rcode, a.soa = dns.RcodeNameError, negative(soa)
			return a
		}
		if n.cname != nil && qtype != dns.TypeCNAME && qtype != dns.TypeANY {
			a.records = append(a.records, owned(n.cname, name))
			name = n.cname.Target
			continue
		}
		before := len(a.records)
		a.records = n.appendTo(a.records, name, qtype)
		if len(a.records) == before {
			a.soa = negative(soa)
		} else if qtype == dns.TypeSRV || qtype == dns.TypeNS {
			a.extra = n.extra
		}
		return a
	}
	return answer{rcode: dns.RcodeServerFailure}
}

// appendTo adds the records of a type, owned by name.
func (n *node) appendTo(rrs []dns.RR, name string, qtype uint16) []dns.RR {
	add := func(set []dns.RR) {
		for _, rr := range set {
			rrs = append(rrs, owned(rr, name))
		}
	}
	switch qtype {
	case dns.TypeA:
		add(n.a)
	case dns.TypeAAAA:
		add(n.aaaa)
	case dns.TypeSRV:
		add(n.srv)
	default:
		if n.cname != nil {
			return append(rrs, owned(n.cname, name))
		}
		for _, rr := range n.other {
			if qtype == dns.TypeANY || rr.Header().Rrtype == qtype {
				rrs = append(rrs, owned(rr, name))
			}
		}
		if qtype == dns.TypeANY { // RFC 8482, section 4.1: a subset
			add(n.a)
			add(n.aaaa)
		}
	}
	return rrs
}

// owned is rr under a name that may differ from its own in case.
func owned(rr dns.RR, name string) dns.RR {
	if rr.Header().Name == name {
		return rr
	}
	c := dns.Copy(rr)
	c.Header().Name = name
	return c
}

// negative is soa for an answer's authority section.
func negative(soa *dns.SOA) dns.RR {
	if soa == nil {
		return nil
	}
	return soa
}

// find returns the node of a lower-case name, nil if there is none, and the SOA
// of the zone that it is or would be in.
func (z *Zone) find(name string, qtype uint16) (n *node, soa *dns.SOA, ours bool) {
	if labels, ok := cutZone(name, z.domain); ok {
		return z.findForward(labels), z.static[""].soa(), true
	}
	if strings.HasSuffix(name, ".arpa.") {
		return z.findReverse(name, qtype)
	}
	return nil, nil, false
}

// findForward returns the node of a name relative to the domain.
func (z *Zone) findForward(name string) *node {
	if path, ok := strings.CutSuffix(name, ".svc"); ok {
		return z.findService(path)
	}
	if n := z.static[name]; n != nil {
		return n
	}
	if path, ok := strings.CutSuffix(name, ".pod"); ok && z.pods != Disabled {
		return z.findPod(path)
	}
	return nil
}

// findService returns the node of [[endpoint|_port._proto].service.]namespace.
func (z *Zone) findService(path string) *node {
	dot := strings.LastIndexByte(path, '.')
	if dot < 0 {
		return z.namespace(path)
	}
	key, sub := path, ""
	if i := strings.LastIndexByte(path[:dot], '.'); i >= 0 {
		key, sub = path[i+1:], path[:i]
	}
	svc, ok := z.services.get(key)
	if !ok {
		return nil
	}
	if n := svc.node(sub); n != nil || !svc.zonal {
		return n
	}
	if zone, ok := strings.CutSuffix(sub, preferred); ok {
		if n := svc.node(zone + pinned); n != nil {
			return n
		}
		all := svc.self // by another name, so not what is packed of it
		return &node{a: all.a, aaaa: all.aaaa, srv: all.srv, extra: all.extra}
	}
	if strings.HasSuffix(sub, pinned) {
		return empty
	}
	return nil
}

// findPod returns the node of [1-2-3-4.]namespace.
func (z *Zone) findPod(path string) *node {
	label, namespace, ok := strings.Cut(path, ".")
	if !ok {
		return z.namespace(path)
	}
	if z.namespace(namespace) == nil {
		return nil
	}
	addr, ok := undash(label)
	if !ok {
		return nil
	}
	if _, ok := z.podAddrs[podAddr{namespace, addr}]; !ok && z.pods == Verified {
		return nil
	}
	n, full := new(node), label+"."+namespace+".pod."+z.domain
	n.add(z.address(full, addr))
	n.add(&dns.SRV{Hdr: z.header(full, dns.TypeSRV), Weight: 100, Target: full}) // as CoreDNS has it
	n.extra = slices.Concat(n.a, n.aaaa)
	return n
}

func (z *Zone) namespace(name string) *node {
	if _, ok := z.namespaces[name]; ok {
		return empty
	}
	return nil
}

// findReverse returns the node of a name under arpa.
func (z *Zone) findReverse(name string, qtype uint16) (n *node, soa *dns.SOA, ours bool) {
	var in *reverseZone
	for i := range z.reverse {
		labels, ok := cutZone(name, z.reverse[i].apex)
		if ok && labels == "" {
			return z.reverse[i].node, z.reverse[i].node.soa(), true
		}
		if ok {
			in, soa = &z.reverse[i], z.reverse[i].node.soa()
			break
		}
	}
	addr, labels := parseReverse(name)
	if addr.IsValid() {
		if ptrs, _ := z.pointers.get(addr); len(ptrs) > 0 && (in != nil || qtype == dns.TypePTR) {
			return z.pointerNode(name, ptrs), soa, true
		}
	} else if in != nil && labels > 0 {
		return empty, soa, true // part of an address
	}
	return nil, soa, in != nil
}

// pointerNode makes the node of an address: the Service whose ClusterIP it is,
// else all endpoints that have it.
func (z *Zone) pointerNode(name string, ptrs []pointer) *node {
	n := new(node)
	for _, p := range ptrs {
		rr := &dns.PTR{Hdr: z.header(name, dns.TypePTR), Ptr: p.target}
		if p.vip {
			n.other = []dns.RR{rr}
			break
		}
		n.other = append(n.other, rr)
	}
	return n
}

// soa is that of a zone's apex.
func (n *node) soa() *dns.SOA { return n.other[0].(*dns.SOA) }

// header is that of a record of this zone.
func (z *Zone) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: z.ttl}
}

// address is an A or AAAA record.
func (z *Zone) address(name string, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: z.header(name, dns.TypeA), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: z.header(name, dns.TypeAAAA), AAAA: addr.AsSlice()}
}

// add puts a record where queries for its type look.
func (n *node) add(rr dns.RR) {
	switch rr.(type) {
	case *dns.A:
		n.a = append(n.a, rr)
	case *dns.AAAA:
		n.aaaa = append(n.aaaa, rr)
	case *dns.SRV:
		n.srv = append(n.srv, rr)
	default:
		n.other = append(n.other, rr)
	}
}
