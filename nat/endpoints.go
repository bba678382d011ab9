package nat

import (
	"slices"
)

// port returns the ServicePort with an ID, or nil; s may be nil.
func (s *Service) port(id uint64) *ServicePort {
	if s == nil {
		return nil
	}
	for _, sp := range s.Ports {
		if sp.ID == id {
			return sp
		}
	}
	return nil
}

// choosePools derives from Endpoints who may be chosen, by kube-proxy's rules
// (pkg/proxy/topology.go): the ready ones, under policy Cluster narrowed by
// topology hints where every ready endpoint has one and some are for here;
// without any ready one those that still serve while they terminate; under
// policy Local the same among this node's endpoints. Pools that come out as
// those of was, which may be nil, are shared with it.
func (sp *ServicePort) choosePools(was *ServicePort) {
	var known []*pool
	if was != nil {
		known = []*pool{was.cluster, was.node}
	}
	suits, hinted := sp.topology()
	sp.hinted = hinted
	sp.cluster = newPool(eligible(sp.Endpoints, suits), known...)
	sp.usable = sp.cluster != nil
	if sp.InternalLocal || sp.ExternalLocal {
		sp.node = newPool(eligible(sp.Endpoints, func(e *Endpoint) bool { return e.Local }), append(known, sp.cluster)...)
	}
}

// answersOutside says whether a client outside the cluster finds a backend.
func (sp *ServicePort) answersOutside() bool {
	if sp.ExternalLocal {
		return sp.node != nil
	}
	return sp.cluster != nil
}

// eligible returns the ready backends that suit, else those that serve while
// they terminate. Weight 0 is never eligible.
func eligible(all []Endpoint, suits func(*Endpoint) bool) group {
	var ready, leaving group
	leaving.leaving = true
	for i := range all {
		switch e := &all[i]; {
		case e.Weight == 0 || !suits(e):
		case e.Ready:
			ready.add(e)
		case e.Serving && e.Terminating:
			leaving.add(e)
		}
	}
	if len(ready.backends) > 0 {
		return ready
	}
	return leaving
}

// topology returns which endpoints the hints leave over, and whether they were
// heeded. As that takes a ready endpoint hinted for here, they never leave nobody.
func (sp *ServicePort) topology() (suits func(*Endpoint) bool, hinted bool) {
	allNode, anyNode, allZone, anyZone := true, false, true, false
	for i := range sp.Endpoints {
		if e := &sp.Endpoints[i]; e.Ready && e.Weight > 0 {
			allNode, anyNode = allNode && e.nodeHint != noHint, anyNode || e.nodeHint == hintHere
			allZone, anyZone = allZone && e.zoneHint != noHint, anyZone || e.zoneHint == hintHere
		}
	}
	switch {
	case allNode && anyNode:
		return func(e *Endpoint) bool { return e.nodeHint == hintHere }, true
	case allZone && anyZone:
		return func(e *Endpoint) bool { return e.zoneHint == hintHere }, true
	}
	return func(*Endpoint) bool { return true }, false
}

// equal compares what Choose and people see; the pools follow from it.
func (sp *ServicePort) equal(o *ServicePort) bool {
	return sp.ID == o.ID && sp.ClusterIP == o.ClusterIP && sp.Port == o.Port && sp.NodePort == o.NodePort &&
		sp.AffinityTimeout == o.AffinityTimeout && sp.Drain == o.Drain && sp.LastPort == o.LastPort && sp.LeastConnections == o.LeastConnections &&
		sp.InternalLocal == o.InternalLocal && sp.ExternalLocal == o.ExternalLocal &&
		slices.Equal(sp.external, o.external) && slices.Equal(sp.balancers, o.balancers) &&
		slices.Equal(sp.sources, o.sources) && slices.Equal(sp.Endpoints, o.Endpoints)
}

func hintFor(here bool) hint {
	if here {
		return hintHere
	}
	return hintElsewhere
}

// quality orders duplicates: like kube-proxy it prefers the local one.
func (e *Endpoint) quality() int {
	q := 0
	for _, good := range []bool{e.Local, e.Ready, e.Serving} {
		q <<= 1
		if good {
			q |= 1
		}
	}
	return q
}
