package kube

// Theory of operation
//
// The store has two halves. Records are what was asked for: objects as they were
// applied, defaulted and validated one by one, with a uid each. Tables are what
// follows: the maps of the next State, copied on their first write after it was
// asked for, so that a State shares with the one before all that did not change.
//
// A change of a record marks keys dirty; settle then works on dirty keys until
// there are none: workloads make and delete pods, Services take addresses when
// they are admitted, EndpointSlices follow from Services and pods. Each such step
// computes what should be from complete inputs and compares it with what is:
// there are no add, update and delete handlers. What one step writes marks the
// keys of others: a pod those of its owner and of the Services that select it,
// found by label index, so that a change costs what depends on it and not the
// size of the cluster.
//
// Everything happens under one lock within the call that caused it. When Apply
// returns, State() is the whole consequence.

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Store holds the desired state. It is safe for concurrent use and starts no
// goroutines.
type Store struct {
	cfg   Config
	clock Clock

	mu       sync.Mutex
	records  map[key]*record
	problems map[key][]Problem // of objects that were rejected
	loading  []Problem         // of the files that are watched
	synced   map[key]API       // what Sync accepted last, with its defaults
	births   uint64            // objects made so far: uids and names of pods derive from it
	used     map[string]int    // objects and pods in each namespace

	alloc        *allocator
	podAddresses *podAddresses
	pods         map[Name]*podRecord
	owned        map[key]map[Name]*podRecord // pods by the workload, or the Pod object, that they are of
	podsBy       labelIndex                  // pods by each of their labels
	servicesBy   labelIndex                  // Services by one label of their selector, see indexed
	slicesOf     map[Name][]Name             // EndpointSlices made for each Service
	starved      map[key]bool                // workloads that found no address or name for a pod
	networks     map[Name]*network
	unattached   map[Name]bool // pods that wait for a network

	dirtyWorkloads  map[key]bool
	dirtyServices   map[Name]bool
	dirtyNamespaces map[string]bool
	dirtyInterfaces map[Name]bool // pods

	next struct {
		namespaces      table[string, *corev1.Namespace]
		nodes           table[string, *corev1.Node]
		pods            table[Name, *corev1.Pod]
		services        table[Name, *corev1.Service]
		endpointSlices  mapTable[Name, *discoveryv1.EndpointSlice]
		ingresses       table[Name, *networkingv1.Ingress]
		ingressClasses  table[string, *networkingv1.IngressClass]
		networkPolicies table[Name, *networkingv1.NetworkPolicy]
		clusterPolicies table[string, *policyv1alpha2.ClusterNetworkPolicy]
		brokenPolicies  table[Name, API]
		secrets         table[Name, *corev1.Secret]
		configMaps      table[Name, *corev1.ConfigMap]
		deployments     table[Name, *appsv1.Deployment]
		replicaSets     table[Name, *appsv1.ReplicaSet]
		statefulSets    table[Name, *appsv1.StatefulSet]
		daemonSets      table[Name, *appsv1.DaemonSet]

		gatewayClasses     table[string, *gatewayv1.GatewayClass]
		gateways           table[Name, *gatewayv1.Gateway]
		httpRoutes         table[Name, *gatewayv1.HTTPRoute]
		grpcRoutes         table[Name, *gatewayv1.GRPCRoute]
		tlsRoutes          table[Name, *gatewayv1.TLSRoute]
		referenceGrants    table[Name, *gatewayv1.ReferenceGrant]
		backendTLSPolicies table[Name, *gatewayv1.BackendTLSPolicy]

		attachments table[Name, *NetworkAttachmentDefinition]
		networks    table[Name, *Network]
		interfaces  table[Name, *Interfaces]

		problems bool // changed
	}
	state       *State // the last that was asked for
	subscribers map[chan struct{}]struct{}

	replica *replica // nil: the store is the control plane
}

// record is one object as it was asked for.
type record struct {
	source   Object // where want comes from
	want     API    // as applied, with defaults
	uid      types.UID
	created  metav1.Time
	gen      int64
	builtin  bool // podgate's own: it cannot be deleted
	files    bool // it is there because watched files say so
	deleting bool // a Namespace whose pods are not gone yet
}

// NewStore makes a store that holds the built-in objects. A nil clock is the
// machine's. The configuration must be valid.
func NewStore(cfg Config, clock Clock) *Store {
	s := newStore(cfg, clock)
	s.addBuiltins()
	s.settle()
	return s
}

func newStore(cfg Config, clock Clock) *Store {
	if clock == nil {
		clock = time.Now
	}
	cfg = cfg.WithDefaults()
	return &Store{
		cfg: cfg, clock: clock,
		records:         map[key]*record{},
		problems:        map[key][]Problem{},
		synced:          map[key]API{},
		used:            map[string]int{},
		alloc:           newAllocator(cfg),
		podAddresses:    newPodAddresses(cfg.PodCIDRs),
		pods:            map[Name]*podRecord{},
		owned:           map[key]map[Name]*podRecord{},
		podsBy:          labelIndex{},
		servicesBy:      labelIndex{},
		slicesOf:        map[Name][]Name{},
		starved:         map[key]bool{},
		networks:        map[Name]*network{},
		unattached:      map[Name]bool{},
		dirtyInterfaces: map[Name]bool{},
		dirtyWorkloads:  map[key]bool{},
		dirtyServices:   map[Name]bool{},
		dirtyNamespaces: map[string]bool{},
		state:           &State{},
		subscribers:     map[chan struct{}]struct{}{},
	}
}

// Apply creates or changes objects, each as a whole: a field that is no longer
// there takes its default again. A broken object is rejected and reported, what
// was applied under its name before stays; the rest is applied. A namespace that
// does not exist is made. When Apply returns, State is what follows from it.
func (s *Store) Apply(objs []Object) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := s.applyAll(objs, false)
	s.settle()
	s.publish()
	return changes
}

// applyAll works in an order in which nobody loses what it asked for by name:
// kinds in the order of their creation, Services with addresses of their own
// choice first. Changes are in the order of objs.
func (s *Store) applyAll(objs []Object, files bool) []Change {
	order := make([]int, len(objs))
	for i := range order {
		order[i] = i
	}
	rank := func(o Object) (kind, chooses int) {
		if svc, ok := o.API.(*corev1.Service); ok && !asksForNumbers(svc) {
			chooses = 1
		}
		return slices.Index(kinds, kindOf(o.API)), chooses
	}
	slices.SortStableFunc(order, func(i, j int) int {
		ki, ci := rank(objs[i])
		kj, cj := rank(objs[j])
		return cmp.Or(cmp.Compare(ki, kj), cmp.Compare(ci, cj))
	})
	changes := make([]Change, len(objs))
	for _, i := range order {
		changes[i] = s.apply(objs[i], files)
	}
	return changes
}

func asksForNumbers(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP != "" || len(svc.Spec.ClusterIPs) > 0 ||
		slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort != 0 })
}

func (s *Store) apply(o Object, files bool) Change {
	if o.API.GetNamespace() == "" && !kindOf(o.API).clusterScoped {
		o.API = o.API.DeepCopyObject().(API)
		o.API.SetNamespace("default")
	}
	k := o.key()
	change := Change{Kind: k.kind, Name: k.name}
	old := s.records[k]
	reject := func(ps []Problem) Change {
		s.problems[k] = ps
		s.next.problems = true
		if isPolicy(k) && old == nil {
			s.next.brokenPolicies.set(k.name, o.API)
		}
		change.Action, change.Problems = Rejected, ps
		return change
	}
	if old != nil && old.builtin && k.kind != "Namespace" && k != builtinClass {
		return reject([]Problem{o.problem("", "built into podgate: it cannot be changed")})
	}
	want := wanted(o.API)
	if old != nil && !old.deleting && sameWant(old.want, want) {
		o.API = old.want
		old.source, old.files = o, old.files || files
		s.accept(k)
		change.Action = Unchanged
		return change
	}
	if svc, was := want, s.next.services.m[k.name]; k.kind == "Service" && was != nil {
		forgetUnneeded(svc.(*corev1.Service), was)
	}
	errs := validate(want)
	if len(errs) == 0 && old != nil {
		errs = validateUpdate(want, old.want, s.serving(k))
	}
	if len(errs) == 0 {
		errs = s.admissible(k, want)
	}
	if len(errs) > 0 {
		return reject(problems(o, errs))
	}
	s.accept(k)

	if ns := s.records[key{"Namespace", Name{Name: k.name.Namespace}}]; ns != nil {
		ns.deleting = false // somebody still wants it
	}
	o.API = want // what was read is not kept
	r := &record{source: o, want: want, files: files, uid: s.newUID(k), created: s.now(), gen: 1}
	change.Action = Created
	if old != nil {
		r.uid, r.created, r.gen = old.uid, old.created, old.gen
		r.builtin, r.files = old.builtin && k != builtinClass, old.files || files
		change.Action = Configured
		r.gen++
	} else {
		s.use(k.name.Namespace, 1)
	}
	s.records[k] = r
	s.serve(k, r)
	return change
}

// isPolicy says whether an object of that kind, if it cannot be read, closes
// what it would have been about: see State.BrokenPolicies.
func isPolicy(k key) bool { return k.kind == "NetworkPolicy" || k.kind == "ClusterNetworkPolicy" }

func (s *Store) accept(k key) {
	if isPolicy(k) {
		s.next.brokenPolicies.delete(k.name)
	}
	if _, ok := s.problems[k]; ok {
		delete(s.problems, k)
		s.next.problems = true
	}
}

func (s *Store) now() metav1.Time { return metav1.NewTime(s.clock().UTC().Truncate(time.Second)) }

// newUID is unique within the store and across stores that started at different
// times; it follows from the clock and from what was made before.
func (s *Store) newUID(k key) types.UID {
	s.births++
	a := hash(k.kind, k.name.Namespace, k.name.Name, fmt.Sprint(s.births, s.clock().UnixNano()))
	b := hash(fmt.Sprint(a, s.births))
	return types.UID(fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", uint32(a), uint16(a>>32), b&0xfff, b>>12&0xfff, s.births))
}

// use counts what is in a namespace, which is there while it is used.
func (s *Store) use(namespace string, n int) {
	if namespace == "" {
		return
	}
	s.used[namespace] += n
	if s.used[namespace] == 0 {
		delete(s.used, namespace)
	}
	s.dirtyNamespaces[namespace] = true
}

// Delete removes objects by kind and name. With a Namespace goes everything in
// it, with a workload its pods. Deleting the pod of a workload makes the workload
// replace it.
func (s *Store) Delete(objs []Object) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	var changes []Change
	for _, o := range slices.Backward(objs) { // a Namespace after what is in it
		changes = append(changes, s.delete(o))
	}
	slices.Reverse(changes)
	s.settle()
	s.publish()
	return changes
}

func (s *Store) delete(o Object) Change {
	k := o.key()
	if k.name.Namespace == "" && !kindByName[k.kind].clusterScoped {
		k.name.Namespace = "default"
	}
	change := Change{Kind: k.kind, Name: k.name, Action: Deleted}
	r := s.records[k]
	switch {
	case r != nil && r.builtin, k.kind == "Pod" && s.pods[k.name] != nil && s.pods[k.name].local:
		change.Action = Rejected
		change.Problems = []Problem{{Kind: k.kind, Object: k.name, Err: "forbidden: built into podgate, it may not be deleted"}}
		return change
	case k.kind == "Pod" && r == nil && s.pods[k.name] != nil && s.pods[k.name].owner.kind == attachment:
		change.Action = Rejected
		change.Problems = []Problem{{Kind: k.kind, Object: k.name, Err: "forbidden: it is attached from outside; who attached it detaches it"}}
		return change
	case r != nil && k.kind == "Namespace":
		for other := range s.records {
			if other.name.Namespace == k.name.Name {
				s.forget(other)
			}
		}
		r.deleting, r.files = true, false
		s.accept(k)
		s.dirtyNamespaces[k.name.Name] = true
	case r != nil:
		s.forget(k)
	case k.kind == "Namespace" && s.used[k.name.Name] > 0: // nobody made it, it came with its objects
		for other := range s.records {
			if other.name.Namespace == k.name.Name {
				s.forget(other)
			}
		}
	case k.kind == "Pod" && s.pods[k.name] != nil:
		s.deletePod(k.name)
	default:
		change.Action = NotFound
		s.accept(k)
	}
	return change
}

// forget removes a record and what is served of it.
func (s *Store) forget(k key) {
	if s.records[k] == nil {
		return
	}
	delete(s.records, k)
	s.accept(k)
	s.use(k.name.Namespace, -1)
	s.serve(k, nil)
	if k == builtinClass {
		s.addGatewayClass()
	}
}

// settle makes everything follow from the records.
func (s *Store) settle() {
	for len(s.dirtyWorkloads)+len(s.dirtyInterfaces)+len(s.dirtyServices)+len(s.dirtyNamespaces) > 0 {
		for _, k := range sortedKeys(s.dirtyWorkloads, compareKeys) {
			delete(s.dirtyWorkloads, k)
			s.reconcileWorkload(k)
		}
		if len(s.dirtyWorkloads) > 0 {
			continue
		}
		for _, n := range sortedKeys(s.dirtyInterfaces, s.compareWishes) {
			delete(s.dirtyInterfaces, n)
			s.reconcileInterfaces(n)
		}
		for _, n := range sortedKeys(s.dirtyServices, compareNames) {
			delete(s.dirtyServices, n)
			s.reconcileEndpoints(n)
		}
		for n := range s.dirtyNamespaces {
			delete(s.dirtyNamespaces, n)
			s.reconcileNamespace(n)
		}
	}
}

func sortedKeys[K comparable](m map[K]bool, compare func(a, b K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}

func compareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), compareNames(a.name, b.name))
}
