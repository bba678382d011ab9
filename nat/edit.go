package nat

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"

	"podgate/kube"
	"podgate/stack/packet"
)

// replace enters now instead of old; either may be nil.
func (t *Table) replace(o owner, old, now *Service) {
	t.hurried = t.hurried || old.hurries() || now.hurries()
	if old != nil {
		for _, c := range old.fronts {
			if now == nil || now.born != old.born || !slices.Contains(now.fronts, c) {
				t.release(o, c)
			}
		}
		t.services.Delete(o)
		delete(t.faulty, o)
		delete(t.checked, o)
		delete(t.onHost, o)
		delete(t.ranged, o)
	}
	if now == nil {
		return
	}
	for _, c := range now.fronts {
		if old == nil || now.born != old.born || !slices.Contains(old.fronts, c) {
			t.claim(o, now.born, c)
		}
	}
	t.services.Set(o, now)
	if len(now.problems) > 0 {
		t.faulty[o] = true
	}
	if now.healthPort != 0 {
		t.checked[o] = true
	}
	if slices.ContainsFunc(now.Ports, func(sp *ServicePort) bool { return sp.LastPort != 0 }) {
		t.ranged[o] = true
	}
	if !now.IsPod && t.anyOnHost(now) {
		t.onHost[o] = true
	}
}

// hurries says whether conversations of s, which may be nil, end by the clock or
// are counted.
func (s *Service) hurries() bool {
	return s != nil && slices.ContainsFunc(s.Ports, func(sp *ServicePort) bool { return sp.Drain > 0 || sp.LeastConnections })
}

// problems are those of the services, of contested addresses and of published ports.
func (t *Table) problems() []kube.Problem {
	ps := slices.Clone(t.refused)
	for o := range t.faulty {
		ps = append(ps, t.services.Get(o).problems...)
	}
	for f := range t.contested {
		if f.port == 0 {
			continue // the ports tell
		}
		first := t.fronts.Get(f)
		for h := first.next; h != nil; h = h.next {
			if h.owner == first.owner {
				continue
			}
			ps = append(ps, kube.Problem{Kind: h.owner.kind(), Object: h.owner.Name, Field: h.rank.field(),
				Err: fmt.Sprintf("%s is already taken by %s %s", f, first.owner.kind(), first.owner.Name)})
		}
	}
	slices.SortFunc(ps, compareProblems)
	return slices.Compact(ps)
}

func compareProblems(a, b kube.Problem) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Object.String(), b.Object.String()),
		cmp.Compare(a.Field, b.Field), cmp.Compare(a.Err, b.Err))
}

func identity(kind string, n kube.Name, port string, proto packet.Proto, is4 bool) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %q %d %t", kind, n, port, proto, is4)
	return h.Sum64()
}

// add finishes sp, or takes its unchanged predecessor, and claims its fronts.
func (c *compiler) add(sp *ServicePort, external []packet.Addr) {
	was := c.old.port(sp.ID)
	sp.choosePools(was)
	if was != nil && sp.equal(was) {
		sp = was
	}
	c.Ports = append(c.Ports, sp)
	at := func(a packet.Addr, r rank) {
		c.fronts = append(c.fronts, claim{front{addr: a, port: sp.Port, proto: sp.Proto}, r, sp})
		if sp.LastPort != 0 {
			c.fronts = append(c.fronts, claim{front{addr: a, proto: sp.Proto}, r, sp})
		}
	}
	at(sp.ClusterIP, rankClusterIP)
	for _, a := range sp.balancers {
		at(a, rankBalancer)
	}
	for _, a := range external {
		at(a, rankExternalIP)
	}
	if sp.NodePort != 0 {
		c.fronts = append(c.fronts, claim{nodeFront(sp.ClusterIP.Is4(), sp.Proto, sp.NodePort), rankNodePort, sp})
	}
}

func (f front) String() string {
	a := "node port " + strconv.Itoa(int(f.port))
	if !f.node {
		a = netip.AddrPortFrom(f.addr.Netip(), f.port).String()
	}
	return a + "/" + protoName(f.proto)
}

func protoName(p packet.Proto) string {
	switch p {
	case packet.UDP:
		return "UDP"
	case packet.SCTP:
		return "SCTP"
	}
	return "TCP"
}
func family(all []packet.Addr, is4 bool) []packet.Addr {
	var of []packet.Addr
	for _, a := range all {
		if a.Is4() == is4 {
			of = append(of, a)
		}
	}
	return of
}
