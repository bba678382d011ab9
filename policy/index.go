package policy

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"strings"
	"unique"

	"podgate/stack/packet"
)

// How a verdict finds its rule. The rules of policies with the same subject,
// tier and direction stand in one index, in the order in which the API has them
// asked. A rule is filed under everything that it says of the peer: each
// selector, each range of addresses, each domain, the node, or everybody. What is
// filed in one place is told apart by port. A question looks into the places
// that the peer is in, a few, however many rules there are, and of what it finds
// the first rule in the order decides: it is the one that asking them one after
// the other would have come to.

// index finds the first of a list of rules that matches. A nil index has none.
type index struct {
	rules     []*Rule
	everybody *portIndex
	node      *portIndex
	selectors map[selectorID]*portIndex
	ids       []selectorID // keys of selectors, ascending
	addrs     addrIndex
	domains   map[domain]*portIndex
}

// none is no rule: it comes after all.
const none = math.MaxInt32

// indexOf indexes rules, which are in their order.
func indexOf(rules []*Rule) *index {
	if len(rules) == 0 {
		return nil
	}
	var everybody, node []int32
	selectors, domains := map[selectorID][]int32{}, map[domain][]int32{}
	var ranges []filed
	for i, r := range rules {
		n := int32(i)
		if r.anyPeer {
			everybody = append(everybody, n)
			continue
		}
		if r.nodes {
			node = append(node, n)
		}
		for _, id := range r.selectors {
			selectors[id] = append(selectors[id], n)
		}
		for _, d := range r.domains {
			domains[d] = append(domains[d], n)
		}
		for _, a := range r.ranges {
			ranges = append(ranges, filed{a, n})
		}
	}
	x := &index{rules: rules, everybody: portIndexOf(rules, everybody), node: portIndexOf(rules, node), addrs: addrIndexOf(rules, ranges)}
	x.selectors = make(map[selectorID]*portIndex, len(selectors))
	for id, list := range selectors {
		x.selectors[id] = portIndexOf(rules, list)
		x.ids = append(x.ids, id)
	}
	slices.Sort(x.ids)
	x.domains = make(map[domain]*portIndex, len(domains))
	for d, list := range domains {
		x.domains[d] = portIndexOf(rules, list)
	}
	return x
}

// first returns the first rule that matches, or nil.
func (x *index) first(q *question) *Rule {
	if x == nil {
		return nil
	}
	best := min(x.everybody.first(q), x.addrs.first(q))
	if q.node {
		best = min(best, x.node.first(q))
	}
	if len(q.selectors) <= len(x.ids) {
		for _, id := range q.selectors {
			best = min(best, x.selectors[id].first(q))
		}
	} else {
		for _, id := range x.ids {
			if _, matches := slices.BinarySearch(q.selectors, id); matches {
				best = min(best, x.selectors[id].first(q))
			}
		}
	}
	if len(x.domains) > 0 {
		for _, own := range q.subject.addrs {
			for _, l := range q.table.names.lessons(own, q.peer) {
				if l.until > q.now {
					best = min(best, x.named(l.name, q))
				}
			}
		}
	}
	if best == none {
		return nil
	}
	return x.rules[best]
}

// named asks the rules about the domain name, and those about all below one
// that it is in.
func (x *index) named(name string, q *question) int32 {
	best := x.domains[domain{name: name}].first(q)
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return best
		}
		name = parent
		best = min(best, x.domains[domain{name: name, below: true}].first(q))
	}
}

// portIndex finds the first of some rules that admits a protocol and port. A nil
// one has none.
type portIndex struct {
	any   int32  // the first rule about every protocol and port
	spans []span // ascending, disjoint
	names map[portName]int32
}

// span is a run of ports that have the same first rule.
type span struct {
	first, last uint32 // as portKey
	rule        int32
}

// portName is a named port; proto 0 is every one that has ports.
type portName struct {
	name  unique.Handle[string]
	proto packet.Proto
}

func portKey(proto packet.Proto, port uint16) uint32 { return uint32(proto)<<16 | uint32(port) }

// portIndexOf indexes those rules that list, ascending, names.
func portIndexOf(rules []*Rule, list []int32) *portIndex {
	if len(list) == 0 {
		return nil
	}
	x := &portIndex{any: none}
	var spans []span
	for _, n := range list {
		if rules[n].anyPort {
			x.any = n
			break // what comes later is never first
		}
		for _, p := range rules[n].ports {
			if !p.named {
				spans = append(spans, span{portKey(p.proto, p.first), portKey(p.proto, p.last), n})
				continue
			}
			if x.names == nil {
				x.names = map[portName]int32{}
			}
			if _, known := x.names[portName{p.name, p.proto}]; !known {
				x.names[portName{p.name, p.proto}] = n
			}
		}
	}
	x.spans = flatten(spans)
	return x
}

// flatten makes spans disjoint: where they overlap, the first rule stays. Of
// spans in the order of their rules it paints each over what is not painted yet.
func flatten(spans []span) []span {
	if len(spans) < 2 {
		return spans
	}
	var cuts []uint32
	for _, s := range spans {
		cuts = append(cuts, s.first, s.last+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	at := func(key uint32) int {
		i, _ := slices.BinarySearch(cuts, key)
		return i
	}
	paint := make([]int32, len(cuts)) // of the cell from cuts[i] to the next cut
	next := make([]int, len(cuts)+1)  // a cell from i on that may not be painted
	for i := range next {
		next[i] = i
	}
	free := func(i int) int {
		for next[i] != i {
			next[i] = next[next[i]]
			i = next[i]
		}
		return i
	}
	for i := range paint {
		paint[i] = none
	}
	for _, s := range spans {
		for i, end := free(at(s.first)), at(s.last+1); i < end; i = free(i) {
			paint[i], next[i] = s.rule, i+1
		}
	}
	var out []span
	for i, rule := range paint[:len(paint)-1] {
		switch n := len(out); {
		case rule == none:
		case n > 0 && out[n-1].rule == rule && out[n-1].last+1 == cuts[i]:
			out[n-1].last = cuts[i+1] - 1
		default:
			out = append(out, span{cuts[i], cuts[i+1] - 1, rule})
		}
	}
	return out
}

func (x *portIndex) first(q *question) int32 {
	if x == nil {
		return none
	}
	best := x.any
	key := portKey(q.proto, q.port)
	lo, hi := 0, len(x.spans)
	for lo < hi {
		if m := (lo + hi) / 2; x.spans[m].last < key {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo < len(x.spans) && x.spans[lo].first <= key {
		best = min(best, x.spans[lo].rule)
	}
	if x.names == nil || q.named == nil {
		return best
	}
	for _, p := range q.named.ports {
		if p.proto != q.proto || p.port != q.port {
			continue
		}
		for _, proto := range [...]packet.Proto{p.proto, 0} {
			if n, ok := x.names[portName{p.name, proto}]; ok {
				best = min(best, n)
			}
		}
	}
	return best
}

// filed is a range of addresses that a rule is about.
type filed struct {
	addrRange
	rule int32
}

// addrIndex finds the first rule about an address. The ends of all ranges cut
// the addresses into cells. Each range is filed under the few nodes of a binary
// tree over the cells that together cover it, so that many ranges which nest do
// not multiply; a cell knows the nodes between it and the root that hold any.
type addrIndex struct {
	cells []packet.Addr // where each begins, ascending; the last has no end
	holds [][]*portIndex
}

func addrIndexOf(rules []*Rule, ranges []filed) (x addrIndex) {
	for _, r := range ranges {
		x.cells = append(x.cells, r.first)
		if end := step(r.last, 1); end != (packet.Addr{}) {
			x.cells = append(x.cells, end)
		}
	}
	slices.SortFunc(x.cells, compareAddrs)
	x.cells = slices.Compact(x.cells)
	lists := make([][]int32, 2*len(x.cells)) // node 1 is the root, i has 2i and 2i+1 below it; cell i is node len(cells)+i
	file := func(node int, rule int32) {
		if n := len(lists[node]); n == 0 || lists[node][n-1] != rule {
			lists[node] = append(lists[node], rule)
		}
	}
	for _, r := range ranges {
		from, _ := slices.BinarySearchFunc(x.cells, r.first, compareAddrs)
		to := len(x.cells)
		if end := step(r.last, 1); end != (packet.Addr{}) {
			to, _ = slices.BinarySearchFunc(x.cells, end, compareAddrs)
		}
		for from, to = from+len(x.cells), to+len(x.cells); from < to; from, to = from/2, to/2 {
			if from%2 == 1 {
				file(from, r.rule)
				from++
			}
			if to%2 == 1 {
				to--
				file(to, r.rule)
			}
		}
	}
	nodes := make([]*portIndex, len(lists))
	for i, list := range lists {
		nodes[i] = portIndexOf(rules, list)
	}
	x.holds = make([][]*portIndex, len(x.cells))
	var all []*portIndex
	for i := range x.cells {
		from := len(all)
		for node := i + len(x.cells); node > 0; node /= 2 {
			if nodes[node] != nil {
				all = append(all, nodes[node])
			}
		}
		x.holds[i] = all[from:len(all):len(all)]
	}
	return x
}

func (x *addrIndex) first(q *question) int32 {
	best := int32(none)
	if len(x.cells) == 0 || compareAddrs(q.peer, x.cells[0]) < 0 {
		return best // most peers are pods, and most ranges elsewhere
	}
	cell := sort.Search(len(x.cells), func(i int) bool { return compareAddrs(x.cells[i], q.peer) > 0 }) - 1
	for _, p := range x.holds[cell] {
		best = min(best, p.first(q))
	}
	return best
}

// before says whether r is asked before o, a rule of the same tier.
func (r *Rule) before(o *Rule) bool {
	return cmp.Or(comparePolicies(r.by, o.by), cmp.Compare(r.Index, o.Index)) < 0
}

func comparePolicies(a, b *Policy) int {
	return cmp.Or(cmp.Compare(a.priority, b.priority), compareNames(a.Name, b.Name))
}
