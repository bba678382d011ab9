package nat

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

// same compares two Tables by content.
func same(t testing.TB, got, want *Table) {
	t.Helper()
	if g, w := dump(got), dump(want); !slices.Equal(g, w) {
		t.Errorf("incremental compile:\ngot  %q\nwant %q", g, w)
	}
}

func dump(t *Table) []string {
	var out []string
	for f, h := range t.fronts.All() {
		line := fmt.Sprintf("front %v %v:", f, f.addr)
		for ; h != nil; h = h.next {
			line += fmt.Sprintf(" %s/%d", h.owner.Name, h.rank)
			if h.port != nil {
				line += " " + describe(h.port)
			}
		}
		out = append(out, line)
	}
	for o, s := range t.services.All() {
		line := fmt.Sprintf("service %v %s:", o, s.Name)
		for _, sp := range s.Ports {
			line += " " + describe(sp)
		}
		out = append(out, line)
	}
	for n, s := range t.inputs.byService.All() {
		out = append(out, fmt.Sprintf("slices of %s: %d", n, len(s)))
	}
	out = append(out, fmt.Sprintf("published %v, refused %v, contested %v, faulty %v, health %v", t.published, t.refused, t.contested, t.faulty, t.HealthChecks()))
	slices.Sort(out)
	return out
}

func describe(sp *ServicePort) string {
	s := fmt.Sprintf("{%t %s %d %x %s %s %s %d/%d node %d cluster %s affinity %s local %t %t external %v %v %v usable %t", sp.LeastConnections, sp.Drain, sp.LastPort, sp.ID, sp.Service, sp.Pod, sp.Name,
		sp.Port, sp.Proto, sp.NodePort, sp.ClusterIP, sp.AffinityTimeout, sp.InternalLocal, sp.ExternalLocal, sp.external, sp.balancers, sp.sources, sp.usable)
	for _, e := range sp.Endpoints {
		s += fmt.Sprintf(" %v %s %t%t%t%t%d%d %d", e.AddrPort(), e.Pod, e.Ready, e.Serving, e.Terminating, e.Local, e.nodeHint, e.zoneHint, e.Weight)
	}
	for _, p := range []*pool{sp.cluster, sp.node} {
		s += " pool"
		if p != nil {
			for _, b := range p.backends {
				s += " " + b.AddrPort().String()
			}
		}
	}
	return s + "}"
}
