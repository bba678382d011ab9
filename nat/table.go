package nat

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"podgate/kube"
	"podgate/stack/packet"
)

// A Table answers for every Service address. It is immutable; the zero Table
// knows no Service. Make one with Compile.
type Table struct {
	fronts   kube.Map[front, *holder]
	services kube.Map[owner, *Service]

	nodes     []packet.Addr
	ranges    []netip.Prefix
	hosts     []netip.Addr
	published []Publication
	refused   []kube.Problem // of ports that two want published
	contested map[front]bool // fronts with more than one holder
	faulty    map[owner]bool // services with problems
	checked   map[owner]bool // services with a healthCheckNodePort
	onHost    map[owner]bool // services with endpoints that are pods with hostNetwork
	ranged    map[owner]bool // services with a port that is a range

	inputs inputs

	made, from *version // what t is, and what it was made from
	hurried    bool     // see Hurries
}

// version tells Tables apart without keeping them.
type version struct{ _ byte }

// Hurries says whether the conversations are to be looked at at once when t takes
// the place of prev, instead of when their next packet comes: a Service changed that
// drains conversations or counts them. It does too where that is not known.
func (t *Table) Hurries(prev *Table) bool {
	var before *version
	if prev != nil {
		before = prev.made
	}
	return t == nil || t.hurried || t.from != before
}

// front is what a packet is looked up by. Four kinds of key live in one map:
// a Service address with protocol and port; with protocol alone (port 0), of the
// ports that are ranges; a ClusterIP alone (protocol and port 0), which tells an
// unknown port from an unknown address; and a NodePort or hostPort, which has the
// unspecified address of its family.
type front struct {
	addr  packet.Addr
	port  uint16
	proto packet.Proto
	node  bool // at every node address
}

// holder is a claim on a front that took effect, followed by those that did
// not because an older or higher-ranking one has the front.
type holder struct {
	claim
	owner owner
	born  int64
	next  *holder
}

// claim is the wish of a Service to have a front.
type claim struct {
	front front
	rank  rank
	port  *ServicePort // nil for a ClusterIP alone
}

// rank orders claims on one front: the lower wins.
type rank uint8

const (
	rankClusterIP rank = iota
	rankBalancer
	rankExternalIP
	rankNodePort
	rankHostPort
)

// owner is whose compiled ports these are.
type owner struct {
	kube.Name
	pod bool
}

func (o owner) kind() string {
	if o.pod {
		return "Pod"
	}
	return "Service"
}

func (a owner) compare(b owner) int {
	return cmp.Or(cmp.Compare(a.kind(), b.kind()), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
}

func nodeFront(is4 bool, proto packet.Proto, port uint16) front {
	f := front{port: port, proto: proto, node: true}
	if is4 {
		f.addr = packet.AddrFrom(netip.IPv4Unspecified())
	}
	return f
}

// Lookup says what stands at a destination. With Translate the caller goes on
// with Choose; with every other outcome the ServicePort is nil.
func (t *Table) Lookup(dst packet.Addr, proto packet.Proto, port uint16) (*ServicePort, Outcome) {
	if h := t.fronts.Get(front{addr: dst, port: port, proto: proto}); h != nil && h.port != nil {
		return h.port, Translate
	}
	if len(t.ranged) > 0 && port != 0 {
		for h := t.fronts.Get(front{addr: dst, proto: proto}); h != nil; h = h.next {
			if h.port != nil && h.port.Port <= port && port <= h.port.LastPort {
				return h.port, Translate
			}
		}
	}
	if t.fronts.Get(front{addr: dst}) != nil {
		return nil, UnknownPort
	}
	if slices.Contains(t.nodes, dst) {
		if h := t.fronts.Get(nodeFront(dst.Is4(), proto, port)); h != nil && h.port != nil {
			return h.port, Translate
		}
		return nil, NotService
	}
	if len(t.ranges) > 0 {
		a := dst.Netip()
		for _, r := range t.ranges {
			if r.Contains(a) {
				return nil, Unallocated
			}
		}
	}
	return nil, NotService
}

// FrontsOf are the Service addresses that lead to an endpoint, itself excepted: what
// its clients may know it by. It looks at all Services.
func (t *Table) FrontsOf(addr packet.Addr, proto packet.Proto, port uint16) []Front {
	var fronts []Front
	for _, s := range t.services.All() {
		for _, sp := range s.Ports {
			if sp.Proto != proto || !slices.ContainsFunc(sp.Endpoints, func(e Endpoint) bool { return e.Addr == addr && e.Port == port }) {
				continue
			}
			if !s.IsPod {
				fronts = append(fronts, Front{sp.ClusterIP, sp.Port})
				for _, a := range sp.external {
					fronts = append(fronts, Front{a, sp.Port})
				}
			}
			for _, a := range t.nodes {
				if sp.NodePort != 0 && a.Is4() == addr.Is4() {
					fronts = append(fronts, Front{a, sp.NodePort})
				}
			}
		}
	}
	return fronts
}

// Front is an address that a Service port answers at.
type Front struct {
	Addr packet.Addr
	Port uint16
}

// Published is what the host is to listen on, sorted; at most one Publication
// a host address, protocol and port. The caller must not change it.
func (t *Table) Published() []Publication { return t.published }

// Services iterates over all compiled Services and pods with hostPorts, sorted
// by kind and name.
func (t *Table) Services() iter.Seq[*Service] {
	var all []*Service
	for _, s := range t.services.All() {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Service) int { return a.owner().compare(b.owner()) })
	return slices.Values(all)
}

// Service returns one compiled Service, or nil. Services without a virtual
// address (headless, ExternalName) have none.
func (t *Table) Service(name kube.Name) *Service { return t.services.Get(owner{Name: name}) }

func (s *Service) owner() owner { return owner{s.Name, s.IsPod} }

// claim puts c in its place among the holders of its front.
func (t *Table) claim(o owner, born int64, c claim) {
	add := &holder{claim: c, owner: o, born: born}
	first := insert(t.fronts.Get(c.front), add)
	t.fronts.Set(c.front, first)
	t.contest(c.front, first)
}

// release undoes claim.
func (t *Table) release(o owner, c claim) {
	first := without(t.fronts.Get(c.front), o, c)
	if first == nil {
		t.fronts.Delete(c.front)
	} else {
		t.fronts.Set(c.front, first)
	}
	t.contest(c.front, first)
}

func (t *Table) contest(f front, first *holder) {
	if first != nil && first.next != nil {
		t.contested[f] = true
	} else {
		delete(t.contested, f)
	}
}

// insert and without return new lists: holders are shared with other Tables.
func insert(list, add *holder) *holder {
	if list == nil || add.before(list) {
		add.next = list
		return add
	}
	head := *list
	head.next = insert(list.next, add)
	return &head
}

func without(list *holder, o owner, c claim) *holder {
	if list == nil || list.owner == o && list.claim == c {
		if list == nil {
			return nil
		}
		return list.next
	}
	head := *list
	head.next = without(list.next, o, c)
	return &head
}

func (h *holder) before(o *holder) bool {
	return cmp.Or(cmp.Compare(h.rank, o.rank), cmp.Compare(h.born, o.born), h.owner.compare(o.owner)) < 0
}
