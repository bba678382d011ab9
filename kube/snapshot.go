package kube

import (
	"slices"
	"unsafe"
)

// publish wakes subscribers if the tables changed. The next State is made when
// somebody asks for it: many changes cost one copy.
func (s *Store) publish() {
	var t taking
	s.take(s.state, &t)
	if !t.changed && !s.next.problems {
		return
	}
	for c := range s.subscribers {
		wake(c)
	}
}

// taking is a walk over the tables. It finds whether any has news; or it shares
// them with a State and finds whether that differs from the one before.
type taking struct {
	shares, changed bool
	steps           map[unsafe.Pointer]any
}

func (s *Store) take(st *State, t *taking) {
	take(t, &st.Namespaces, &s.next.namespaces)
	take(t, &st.Nodes, &s.next.nodes)
	take(t, &st.Pods, &s.next.pods)
	take(t, &st.Services, &s.next.services)
	takeMap(t, &st.EndpointSlices, &s.next.endpointSlices)
	take(t, &st.Ingresses, &s.next.ingresses)
	take(t, &st.IngressClasses, &s.next.ingressClasses)
	take(t, &st.NetworkPolicies, &s.next.networkPolicies)
	take(t, &st.ClusterPolicies, &s.next.clusterPolicies)
	take(t, &st.BrokenPolicies, &s.next.brokenPolicies)
	take(t, &st.Secrets, &s.next.secrets)
	take(t, &st.ConfigMaps, &s.next.configMaps)
	take(t, &st.GatewayClasses, &s.next.gatewayClasses)
	take(t, &st.Gateways, &s.next.gateways)
	take(t, &st.HTTPRoutes, &s.next.httpRoutes)
	take(t, &st.GRPCRoutes, &s.next.grpcRoutes)
	take(t, &st.TLSRoutes, &s.next.tlsRoutes)
	take(t, &st.ReferenceGrants, &s.next.referenceGrants)
	take(t, &st.BackendTLSPolicies, &s.next.backendTLSPolicies)
	take(t, &st.Deployments, &s.next.deployments)
	take(t, &st.ReplicaSets, &s.next.replicaSets)
	take(t, &st.StatefulSets, &s.next.statefulSets)
	take(t, &st.DaemonSets, &s.next.daemonSets)
	take(t, &st.NetworkAttachments, &s.next.attachments)
	take(t, &st.Networks, &s.next.networks)
	take(t, &st.Interfaces, &s.next.interfaces)
}

func take[K comparable, V any](t *taking, to *map[K]V, from *table[K, V]) {
	if t.shares {
		t.changed = t.changed || from.dirty
		m, s := from.share()
		if *to = m; s != nil {
			t.steps[identity(m)] = s
		}
		return
	}
	t.changed = t.changed || from.news
	from.news = false
}

func takeMap[K comparable, V any](t *taking, to *Map[K, V], from *mapTable[K, V]) {
	if t.shares {
		t.changed = t.changed || from.dirty
		from.m.Done()
		*to, from.dirty = from.m, false
		return
	}
	t.changed = t.changed || from.news
	from.news = false
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// State is the current state. It never changes; a newer one replaces it.
func (s *Store) State() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current()
}

func (s *Store) current() *State {
	st, t := *s.state, taking{shares: true, steps: map[unsafe.Pointer]any{}}
	s.take(&st, &t)
	st.steps = t.steps
	if s.next.problems {
		st.Problems = slices.Clone(s.loading)
		for _, ps := range s.problems {
			st.Problems = append(st.Problems, ps...)
		}
		for _, ifs := range st.Interfaces {
			if ifs.Problem != nil {
				st.Problems = append(st.Problems, *ifs.Problem)
			}
			st.Problems = append(st.Problems, ifs.Warnings...)
		}
		st.Problems = sortProblems(st.Problems)
	}
	if t.changed || s.next.problems {
		s.next.problems = false
		st.Generation++
		s.state = &st
	}
	return s.state
}

// Subscribe returns a channel that receives after State changed, once for any
// number of changes, and once at first. cancel ends it.
func (s *Store) Subscribe() (changed <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, c)
	}
}
