package kube

// Theory of operation
//
// A replica is a store that copies what an API server serves instead of working
// out what one would: nothing is defaulted, validated or allocated, no workload
// makes pods, no EndpointSlice is written. Its objects go into the tables as they
// come, and a State of them is like any other.
//
// What the gateway itself brings into the cluster is not in the API: its two
// built-in pods, and, until somebody makes them, their namespace and the DNS
// Service. These stand in wherever the API server has no object of that name, and
// step back as soon as it has one. The DNS Service is answered by the built-in
// pod unless it has a selector: then by what that selects.
//
// A pod of this node has the addresses that it was attached with, also before its
// status says so, so that policies and Services know it from its first packet on.
// One that was attached and is not in the API has a stand-in too. So have the front
// doors of the other nodes' gateways: what comes through them to a pod here comes
// from a pod of podgate-system, to policies, whichever node it came in at.

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// replica is what a store that copies remembers beside its tables.
type replica struct {
	own      map[key]API           // stand-ins, where the API server has nothing
	attached map[Name][]netip.Addr // of pods on this node
}

// NewReplica makes a store for what an API server serves: see Store.Follow. Apply, Sync and Delete are not for it.
func NewReplica(cfg Config, clock Clock) *Store {
	s := newStore(cfg, clock)
	s.replica = &replica{own: map[key]API{}, attached: map[Name][]netip.Addr{}}
	for _, ns := range []string{"kube-system", "podgate-system"} {
		s.standIn(&corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{corev1.LabelMetadataName: ns}},
			Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		})
	}
	s.standIn(s.dnsPod())
	s.standIn(s.ingressPod())
	dns := s.dnsService()
	setDefaults(dns)
	for _, ip := range dns.Spec.ClusterIPs {
		dns.Spec.IPFamilies = append(dns.Spec.IPFamilies, familyOf(netip.MustParseAddr(ip)))
	}
	s.standIn(dns)
	s.answerDNS()
	return s
}

func (s *Store) standIn(o API) {
	k := Object{API: o}.key()
	o.GetObjectKind().SetGroupVersionKind(kindOf(o).gvk())
	o.SetUID(s.newUID(k))
	o.SetCreationTimestamp(s.now())
	s.replica.own[k] = o
	s.shelf(k.kind).put(k.name, o)
}

// Ref names one object.
type Ref struct {
	Kind string // "Service"
	Name Name
}

func (r Ref) String() string { return r.Kind + " " + r.Name.String() }

// Batch is what changed at an API server.
type Batch struct {
	// Whole are kinds of which the server's whole list is known, by kind: what
	// is not in it is gone. Parts of Changed and Gone come after it.
	Whole map[string][]API

	Changed []API // takes them: they are not to be changed any more
	Gone    []Ref
}

// Follow makes the state what it was with the changes of b, at once.
func (s *Store) Follow(b Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, objs := range b.Whole {
		shelf := s.shelf(kind)
		there := make(map[Name]bool, len(objs))
		for _, o := range objs {
			there[Name{o.GetNamespace(), o.GetName()}] = true
		}
		for _, n := range shelf.names() {
			if !there[n] {
				s.drop(key{kind, n})
			}
		}
		for _, o := range objs {
			s.copy(o)
		}
	}
	for _, o := range b.Changed {
		s.copy(o)
	}
	for _, r := range b.Gone {
		s.drop(r.key())
	}
	s.answerDNS()
	s.publish()
}

func (r Ref) key() key { return key{r.Kind, r.Name} }

// copy puts an object where it belongs, unless it is there already: a relisting
// brings all again.
func (s *Store) copy(o API) {
	k := Object{API: o}.key()
	shelf := s.shelf(k.kind)
	if old, ok := shelf.get(k.name); ok && old.GetResourceVersion() == o.GetResourceVersion() && old.GetUID() == o.GetUID() && o.GetResourceVersion() != "" {
		return
	}
	o.GetObjectKind().SetGroupVersionKind(kindOf(o).gvk())
	switch o := o.(type) {
	case *corev1.Pod:
		s.lendAddresses(o)
	case *corev1.Node:
		s.meetDoor(o)
	}
	shelf.put(k.name, o)
}

func (s *Store) drop(k key) {
	if k.kind == "Node" {
		s.forgetDoor(k.name.Name)
	}
	shelf := s.shelf(k.kind)
	if own := s.replica.own[k]; own != nil {
		if old, _ := shelf.get(k.name); old != own {
			shelf.put(k.name, own)
		}
		return
	}
	shelf.drop(k.name)
}

// Copies are the objects of a kind that came from the API server.
func (s *Store) Copies(kind string) (all []API) {
	s.mu.Lock()
	defer s.mu.Unlock()
	shelf := s.shelf(kind)
	for _, n := range shelf.names() {
		if o, _ := shelf.get(n); o.GetResourceVersion() != "" { // not a stand-in
			all = append(all, o)
		}
	}
	return all
}

// meetDoor has the front door of another node's gateway be known as a pod.
func (s *Store) meetDoor(node *corev1.Node) {
	if node.Name == s.cfg.NodeName {
		return
	}
	var ips []corev1.PodIP
	for _, text := range node.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			ips = append(ips, corev1.PodIP{IP: nth(p, IngressOffset).String()})
		}
	}
	if old, ok := s.replica.own[doorOf(node.Name)].(*corev1.Pod); ok && slices.Equal(old.Status.PodIPs, ips) {
		return
	}
	s.forgetDoor(node.Name)
	if len(ips) == 0 {
		return
	}
	door := s.ingressPod()
	door.Name, door.Annotations = doorOf(node.Name).name.Name, nil
	door.Spec.NodeName = node.Name
	door.Status.PodIPs, door.Status.PodIP = ips, ips[0].IP
	s.standIn(door)
}

func doorOf(node string) key {
	return key{"Pod", Name{builtinIngress.Namespace, builtinIngress.Name + "-" + node}}
}

// forgetDoor is meetDoor undone.
func (s *Store) forgetDoor(node string) {
	k := doorOf(node)
	if own := s.replica.own[k]; own != nil {
		delete(s.replica.own, k)
		if there, _ := s.shelf("Pod").get(k.name); there == own {
			s.shelf("Pod").drop(k.name)
		}
	}
}

// lendAddresses gives a pod of this node the addresses it was attached with: its
// status has them later, or those of a sandbox that it had before.
func (s *Store) lendAddresses(pod *corev1.Pod) bool {
	addrs := s.replica.attached[nameOf(pod)]
	same := slices.EqualFunc(pod.Status.PodIPs, addrs, func(p corev1.PodIP, a netip.Addr) bool { return p.IP == a.String() })
	if same || len(addrs) == 0 || pod.Spec.NodeName != s.cfg.NodeName || isFinished(pod) {
		return false
	}
	pod.Status.PodIPs = nil
	for _, a := range addrs {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	pod.Status.PodIP = pod.Status.PodIPs[0].IP
	return true
}

// answerDNS makes the built-in pod the endpoint of the DNS Service, if that has
// no selector.
func (s *Store) answerDNS() {
	svc := s.next.services.m[clusterDNS]
	pod, _ := s.replica.own[key{"Pod", builtinDNS}].(*corev1.Pod)
	ours := s.replica.own[key{"Service", clusterDNS}]
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		n := Name{clusterDNS.Namespace, "podgate-dns-" + strings.ToLower(string(family))}
		old := s.next.endpointSlices.m.Get(n)
		var slice *discoveryv1.EndpointSlice
		if svc != nil && (API(svc) == ours || len(svc.Spec.Selector) == 0) && slices.Contains(svc.Spec.IPFamilies, family) {
			if e, ok := s.endpoint(svc, pod, family); ok {
				slice = &discoveryv1.EndpointSlice{
					ObjectMeta:  metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: "podgate"}},
					AddressType: discoveryv1.AddressType(family), Endpoints: []discoveryv1.Endpoint{e}, Ports: endpointPorts(svc, pod),
				}
				slice.SetGroupVersionKind(kindByName["EndpointSlice"].gvk())
			}
		}
		if slice == nil {
			delete(s.replica.own, key{"EndpointSlice", n})
			s.next.endpointSlices.delete(n)
			continue
		}
		s.replica.own[key{"EndpointSlice", n}] = slice
		if old == nil || !sameWant(old, slice) {
			s.next.endpointSlices.set(n, slice)
		}
	}
}

// shelf is one table of the next State, whatever its kind.
type shelf interface {
	get(Name) (API, bool)
	put(Name, API)
	drop(Name)
	names() []Name
}

// shelf panics for kinds that are not in a State.
func (s *Store) shelf(kind string) shelf {
	t := &s.next
	switch kind {
	case "Namespace":
		return clusterScoped[*corev1.Namespace]{&t.namespaces}
	case "Node":
		return clusterScoped[*corev1.Node]{&t.nodes}
	case "Pod":
		return namespaced[*corev1.Pod]{&t.pods}
	case "Service":
		return namespaced[*corev1.Service]{&t.services}
	case "EndpointSlice":
		return inMap[*discoveryv1.EndpointSlice]{&t.endpointSlices}
	case "Ingress":
		return namespaced[*networkingv1.Ingress]{&t.ingresses}
	case "IngressClass":
		return clusterScoped[*networkingv1.IngressClass]{&t.ingressClasses}
	case "NetworkPolicy":
		return namespaced[*networkingv1.NetworkPolicy]{&t.networkPolicies}
	case "ClusterNetworkPolicy":
		return clusterScoped[*policyv1alpha2.ClusterNetworkPolicy]{&t.clusterPolicies}
	case "GatewayClass":
		return clusterScoped[*gatewayv1.GatewayClass]{&t.gatewayClasses}
	case "Gateway":
		return namespaced[*gatewayv1.Gateway]{&t.gateways}
	case "HTTPRoute":
		return namespaced[*gatewayv1.HTTPRoute]{&t.httpRoutes}
	case "GRPCRoute":
		return namespaced[*gatewayv1.GRPCRoute]{&t.grpcRoutes}
	case "TLSRoute":
		return namespaced[*gatewayv1.TLSRoute]{&t.tlsRoutes}
	case "ReferenceGrant":
		return namespaced[*gatewayv1.ReferenceGrant]{&t.referenceGrants}
	case "BackendTLSPolicy":
		return namespaced[*gatewayv1.BackendTLSPolicy]{&t.backendTLSPolicies}
	case "Secret":
		return namespaced[*corev1.Secret]{&t.secrets}
	case "ConfigMap":
		return namespaced[*corev1.ConfigMap]{&t.configMaps}
	}
	panic("kube: no table of " + kind)
}

type namespaced[V API] struct{ t *table[Name, V] }

func (x namespaced[V]) get(n Name) (API, bool) { o, ok := x.t.m[n]; return o, ok }
func (x namespaced[V]) put(n Name, o API)      { x.t.set(n, o.(V)) }
func (x namespaced[V]) drop(n Name)            { x.t.delete(n) }
func (x namespaced[V]) names() []Name          { return slices.Collect(maps.Keys(x.t.m)) }

type inMap[V API] struct{ t *mapTable[Name, V] }

func (x inMap[V]) get(n Name) (API, bool) { o := x.t.m.Get(n); return o, API(o) != API(*new(V)) }
func (x inMap[V]) put(n Name, o API)      { x.t.set(n, o.(V)) }
func (x inMap[V]) drop(n Name)            { x.t.delete(n) }
func (x inMap[V]) names() (all []Name) {
	for n := range x.t.m.All() {
		all = append(all, n)
	}
	return all
}

type clusterScoped[V API] struct{ t *table[string, V] }

func (x clusterScoped[V]) get(n Name) (API, bool) { o, ok := x.t.m[n.Name]; return o, ok }
func (x clusterScoped[V]) put(n Name, o API)      { x.t.set(n.Name, o.(V)) }
func (x clusterScoped[V]) drop(n Name)            { x.t.delete(n.Name) }
func (x clusterScoped[V]) names() (all []Name) {
	for n := range x.t.m {
		all = append(all, Name{Name: n})
	}
	return all
}
