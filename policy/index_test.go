package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"unique"

	"podgate/kube"
	"podgate/stack/packet"
)

// TestIndexFindsTheFirstRule asks many random rules one after the other, and
// their index.
func TestIndexFindsTheFirstRule(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	addr := func() packet.Addr { // few bytes, so that ranges meet; also the first and the last there are
		return packet.Addr{byte(r.IntN(3) * 127), 15: byte(r.IntN(256))}
	}
	protos := []packet.Proto{packet.TCP, packet.UDP, packet.SCTP}
	names := []unique.Handle[string]{unique.Make("http"), unique.Make("dns")}
	domains := []string{"example.com", "www.example.com", "com", "a.www.example.com"}
	destination := &Pod{ports: []namedPort{{names[0], packet.TCP, 80}, {names[1], packet.UDP, 80}, {names[0], packet.SCTP, 65535}}}
	for round := range 60 {
		by := &Policy{Name: kube.Name{Name: "p"}}
		var rules []*Rule
		for i := range 1 + r.IntN(300) {
			rule := &Rule{Policy: by.Name, Index: i, by: by, anyPort: r.IntN(20) == 0, anyPeer: r.IntN(50) == 0, nodes: r.IntN(20) == 0}
			for range r.IntN(3) {
				p := portRange{proto: protos[r.IntN(3)], first: uint16(r.IntN(100)), last: uint16(100 + r.IntN(100))}
				switch r.IntN(4) {
				case 0:
					p = portRange{proto: p.proto, named: true, name: names[r.IntN(2)]}
				case 1:
					p = portRange{named: true, name: names[r.IntN(2)]}
				case 2:
					p.first, p.last = uint16(65530+r.IntN(6)), 65535
				}
				rule.ports = append(rule.ports, p)
			}
			for range r.IntN(2) {
				rule.selectors = append(rule.selectors, selectorID(r.IntN(30)))
			}
			for range r.IntN(2) {
				a, b := addr(), addr()
				if compareAddrs(a, b) > 0 {
					a, b = b, a
				}
				if r.IntN(9) == 0 {
					b = packet.AddrFrom(netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
				}
				rule.ranges = append(rule.ranges, addrRange{a, b})
			}
			if r.IntN(10) == 0 {
				rule.domains = []domain{domainOf([]string{"", "*."}[r.IntN(2)] + domains[r.IntN(4)])}
			}
			rules = append(rules, rule)
		}
		x := indexOf(rules)
		for range 400 {
			told := &Names{}
			q := question{
				table: &Table{names: told}, subject: &Pod{addrs: []packet.Addr{{1}}}, peer: addr(), node: r.IntN(8) == 0,
				proto: append(protos, packet.ICMP)[r.IntN(4)], port: []uint16{80, 100, uint16(r.IntN(220)), 65534, 65535}[r.IntN(5)], now: 50,
			}
			if q.proto == packet.ICMP {
				q.port = 0
			}
			if r.IntN(2) == 0 {
				q.named = destination
			}
			for id := range selectorID(30) {
				if r.IntN(10) == 0 {
					q.selectors = append(q.selectors, id)
				}
			}
			name := domains[r.IntN(4)]
			told.Learn(packet.Addr{1}, name, []packet.Addr{q.peer}, 0, int64(49+2*r.IntN(2)))
			i := slices.IndexFunc(rules, func(r *Rule) bool { return matchedBy(r, &q) })
			want := "<nil>"
			if i >= 0 {
				want = rules[i].String()
			}
			if got := fmt.Sprint(x.first(&q)); got != want {
				t.Fatalf("round %d, %+v: got %s, want %s", round, q, got, want)
			}
		}
	}
}

// matchedBy asks one rule, by its own text.
func matchedBy(r *Rule, q *question) bool {
	port := r.anyPort || slices.ContainsFunc(r.ports, func(p portRange) bool {
		if !p.named {
			return p.proto == q.proto && p.first <= q.port && q.port <= p.last
		}
		return q.named != nil && (p.proto == q.proto || p.proto == 0) && slices.Contains(q.named.ports, namedPort{p.name, q.proto, q.port})
	})
	peer := r.anyPeer || r.nodes && q.node ||
		slices.ContainsFunc(r.selectors, func(id selectorID) bool { return slices.Contains(q.selectors, id) }) ||
		slices.ContainsFunc(r.ranges, func(a addrRange) bool {
			return compareAddrs(a.first, q.peer) <= 0 && compareAddrs(q.peer, a.last) <= 0
		})
	for _, l := range q.table.names.lessons(packet.Addr{1}, q.peer) {
		for _, d := range r.domains {
			below := len(l.name) > len(d.name) && l.name[len(l.name)-len(d.name)-1:] == "."+d.name
			peer = peer || l.until > q.now && (!d.below && l.name == d.name || d.below && below)
		}
	}
	return port && peer
}

// A NetworkPolicy of which many select one pod: each denial names them all, in order.
func TestManySubjectsOnePod(t *testing.T) {
	st := cluster()
	for i := range 9 {
		apply(t, st, fmt.Sprintf("shop/p%d", (i*5)%9), []string{"podSelector: {}", "podSelector: {matchLabels: {app: web}}", "podSelector: {matchLabels: {tier: front}}"}[i%3])
	}
	tab, _ := Compile(nil, st, Config{})
	web := tab.Pod(addrOf(st, "shop/web"))
	want := []string{"shop/p0", "shop/p1", "shop/p2", "shop/p3", "shop/p4", "shop/p5", "shop/p6", "shop/p7", "shop/p8"}
	for range 2 {
		if got := namesOf(tab.Judge(Ingress, web, addrOf(st, "out"), packet.TCP, 80, 0).Denying); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
