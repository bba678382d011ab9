package kube

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// Store holds the desired state. It is safe for concurrent use.
type Store struct {
	cfg   Config
	clock Clock

	mu    sync.Mutex
	state *State
}

// NewStore makes a store that holds the built-in objects. A nil clock is the
// machine's.
func NewStore(cfg Config, clock Clock) *Store { return &Store{cfg: cfg, clock: clock, state: &State{}} }

// Apply creates or changes objects, each as a whole: a field that is no longer
// there takes its default again. A broken object is rejected and reported, what
// was applied under its name before stays; the rest is applied. When Apply
// returns, State is what follows from it.
func (s *Store) Apply(objs []Object) []Change { return nil }

// Delete removes objects by kind and name. With a Namespace goes everything in it.
func (s *Store) Delete(objs []Object) []Change { return nil }

// SetPodStatus records what the runtime says of a pod: phase, conditions and
// container statuses; addresses are the store's. A uid that is no longer that of
// the pod is ignored. From the first report on, the runtime has the pod: it
// stays, terminating, after its deletion until PodGone.
func (s *Store) SetPodStatus(name Name, uid string, status corev1.PodStatus) {}

// PodGone says that nothing is left of a pod: its sandbox and processes ended. A
// terminating pod then leaves the State.
func (s *Store) PodGone(name Name, uid string) {}

// State is the current state. It never changes; a newer one replaces it.
func (s *Store) State() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Subscribe returns a channel that receives after State changed, once for any
// number of changes, and once at first. cancel ends it.
func (s *Store) Subscribe() (changed <-chan struct{}, cancel func()) {
	return make(chan struct{}), func() {}
}
