package kube

import (
	"fmt"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// wanted is an object as it was read, with its defaults and without what only a
// server sets.
func wanted(o API) API {
	want := o.DeepCopyObject().(API)
	forgetServerSide(want)
	setDefaults(want)
	return want
}

func sameWant(a, b API) bool { return equality.Semantic.DeepEqual(a, b) }

// forgetServerSide removes what only a server sets: users paste the output of
// kubectl get into manifests.
func forgetServerSide(o API) {
	o.SetUID("")
	o.SetResourceVersion("")
	o.SetGeneration(0)
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	o.SetDeletionGracePeriodSeconds(nil)
	o.SetManagedFields(nil)
	o.SetSelfLink("")
	o.GetObjectKind().SetGroupVersionKind(kindOf(o).gvk())
	if a := o.GetAnnotations(); a != nil {
		delete(a, corev1.LastAppliedConfigAnnotation)
		delete(a, NetworkStatusAnnotation)
	}
	switch o := o.(type) {
	case *corev1.Namespace:
		o.Status = corev1.NamespaceStatus{}
	case *corev1.Pod:
		o.Status = corev1.PodStatus{}
	case *corev1.Service:
		o.Status = corev1.ServiceStatus{}
	case *networkingv1.Ingress:
		o.Status = networkingv1.IngressStatus{}
	case *gatewayv1.GatewayClass:
		o.Status = gatewayv1.GatewayClassStatus{}
	case *gatewayv1.Gateway:
		o.Status = gatewayv1.GatewayStatus{}
	case *gatewayv1.HTTPRoute:
		o.Status = gatewayv1.HTTPRouteStatus{}
	case *gatewayv1.GRPCRoute:
		o.Status = gatewayv1.GRPCRouteStatus{}
	case *gatewayv1.TLSRoute:
		o.Status = gatewayv1.TLSRouteStatus{}
	case *gatewayv1.BackendTLSPolicy:
		o.Status = gatewayv1.PolicyStatus{}
	case *appsv1.Deployment:
		o.Status = appsv1.DeploymentStatus{}
	case *appsv1.ReplicaSet:
		o.Status = appsv1.ReplicaSetStatus{}
	case *appsv1.StatefulSet:
		o.Status = appsv1.StatefulSetStatus{}
	case *appsv1.DaemonSet:
		o.Status = appsv1.DaemonSetStatus{}
	}
}

// serving is the object as it is in the State.
func (s *Store) serving(k key) API {
	switch k.kind {
	case "Service":
		if svc := s.next.services.m[k.name]; svc != nil {
			return svc
		}
	}
	return nil
}

// admissible checks what depends on other objects: the name is free, and what
// a Service asks for can be had. It takes what the Service gets.
func (s *Store) admissible(k key, want API) field.ErrorList {
	switch o := want.(type) {
	case *corev1.Pod:
		p := s.pods[k.name]
		switch {
		case p != nil && p.local:
			return field.ErrorList{field.Invalid(field.NewPath("metadata", "name"), k.name.Name, "the pod is built into podgate: it cannot be changed")}
		case p != nil && p.owner != k:
			return field.ErrorList{field.Invalid(field.NewPath("metadata", "name"), k.name.Name,
				fmt.Sprintf("the pod exists already, made by %s %s", p.owner.kind, p.owner.name))}
		}
	case *discoveryv1.EndpointSlice:
		if s.next.endpointSlices.m.Get(k.name) != nil && s.records[k] == nil {
			return field.ErrorList{field.Invalid(field.NewPath("metadata", "name"), k.name.Name, "the EndpointSlice exists already, made for a Service")}
		}
	case *NetworkAttachmentDefinition:
		return s.admitNetwork(o)
	case *corev1.Service:
		served := *o // the rest of it is shared: allocate writes to nothing else
		served.Spec.Ports = slices.Clone(o.Spec.Ports)
		if o.Spec.Type == corev1.ServiceTypeExternalName {
			served.Spec.InternalTrafficPolicy = nil
		}
		old := s.next.services.m[k.name]
		if old != nil {
			asked := old
			if r := s.records[k]; r != nil {
				asked = r.want.(*corev1.Service)
			}
			carryOver(&served, old, asked)
			s.alloc.release(old)
		}
		if errs := s.alloc.allocate(&served); len(errs) > 0 {
			if old != nil {
				s.alloc.allocate(old.DeepCopy())
			}
			return errs
		}
		served.Status = s.balance(&served, old)
		s.next.services.set(k.name, &served) // serve stamps it
		if old != nil {
			s.unindexService(old)
		}
		s.indexService(&served)
	}
	return nil
}

func (s *Store) indexService(svc *corev1.Service) {
	if k, v, ok := indexed(svc.Spec.Selector); ok {
		s.servicesBy.add(nameOf(svc), k, v)
	}
}

func (s *Store) unindexService(svc *corev1.Service) {
	if k, v, ok := indexed(svc.Spec.Selector); ok {
		s.servicesBy.remove(nameOf(svc), k, v)
	}
}

// indexed is the one label of a selector by which a Service is found; every pod
// that the Service selects has it.
func indexed(selector map[string]string) (key, value string, ok bool) {
	for k, v := range selector {
		if !ok || k < key {
			key, value, ok = k, v, true
		}
	}
	return key, value, ok
}

// stamp sets what a server sets.
func (r *record) stamp(m *metav1.ObjectMeta) {
	m.UID, m.CreationTimestamp, m.Generation = r.uid, r.created, r.gen
}

// serve puts what is wanted of an object, or nothing, into the tables, and marks
// what depends on it.
func (s *Store) serve(k key, r *record) {
	switch k.kind {
	case "Namespace":
		s.dirtyNamespaces[k.name.Name] = true
	case "ConfigMap":
		serveIn(&s.next.configMaps, k.name, r, func(o *corev1.ConfigMap) { r.stamp(&o.ObjectMeta) })
	case "Secret":
		serveIn(&s.next.secrets, k.name, r, func(o *corev1.Secret) { r.stamp(&o.ObjectMeta) })
	case "NetworkPolicy":
		serveIn(&s.next.networkPolicies, k.name, r, func(o *networkingv1.NetworkPolicy) { r.stamp(&o.ObjectMeta) })
	case "ClusterNetworkPolicy":
		serveIn(&s.next.clusterPolicies, k.name.Name, r, func(o *policyv1alpha2.ClusterNetworkPolicy) { r.stamp(&o.ObjectMeta) })
	case "Ingress":
		serveIn(&s.next.ingresses, k.name, r, func(o *networkingv1.Ingress) {
			r.stamp(&o.ObjectMeta)
			for _, a := range s.cfg.PublishedIPs {
				at := networkingv1.IngressLoadBalancerIngress{IP: a.String()}
				for _, port := range s.cfg.IngressPorts {
					at.Ports = append(at.Ports, networkingv1.IngressPortStatus{Port: int32(port), Protocol: corev1.ProtocolTCP})
				}
				o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, at)
			}
		})
	case "IngressClass":
		serveIn(&s.next.ingressClasses, k.name.Name, r, func(o *networkingv1.IngressClass) { r.stamp(&o.ObjectMeta) })
	case "GatewayClass":
		serveIn(&s.next.gatewayClasses, k.name.Name, r, func(o *gatewayv1.GatewayClass) { r.stamp(&o.ObjectMeta) })
	case "Gateway":
		serveIn(&s.next.gateways, k.name, r, func(o *gatewayv1.Gateway) { r.stamp(&o.ObjectMeta) })
	case "HTTPRoute":
		serveIn(&s.next.httpRoutes, k.name, r, func(o *gatewayv1.HTTPRoute) { r.stamp(&o.ObjectMeta) })
	case "GRPCRoute":
		serveIn(&s.next.grpcRoutes, k.name, r, func(o *gatewayv1.GRPCRoute) { r.stamp(&o.ObjectMeta) })
	case "TLSRoute":
		serveIn(&s.next.tlsRoutes, k.name, r, func(o *gatewayv1.TLSRoute) { r.stamp(&o.ObjectMeta) })
	case "ReferenceGrant":
		serveIn(&s.next.referenceGrants, k.name, r, func(o *gatewayv1.ReferenceGrant) { r.stamp(&o.ObjectMeta) })
	case "BackendTLSPolicy":
		serveIn(&s.next.backendTLSPolicies, k.name, r, func(o *gatewayv1.BackendTLSPolicy) { r.stamp(&o.ObjectMeta) })
	case "EndpointSlice":
		serveIn(&s.next.endpointSlices, k.name, r, func(o *discoveryv1.EndpointSlice) { r.stamp(&o.ObjectMeta) })
	case "NetworkAttachmentDefinition":
		serveIn(&s.next.attachments, k.name, r, func(o *NetworkAttachmentDefinition) { r.stamp(&o.ObjectMeta) })
		s.serveNetwork(k.name, r)
	case "Endpoints":
		s.dirtyServices[k.name] = true
	case "Service":
		s.dirtyServices[k.name] = true
		svc := s.next.services.m[k.name]
		if r == nil {
			if svc != nil {
				s.alloc.release(svc)
				s.unindexService(svc)
				s.next.services.delete(k.name)
			}
			return
		}
		r.stamp(&svc.ObjectMeta) // admissible made it within this call
	default:
		s.dirtyWorkloads[k] = true
	}
}

type setter[K comparable, V any] interface {
	set(K, V)
	delete(K)
}

// serveIn serves a copy that shares with the record what finish, which may set
// fields of it, does not replace.
func serveIn[K comparable, T any](t setter[K, *T], k K, r *record, finish func(*T)) {
	if r == nil {
		t.delete(k)
		return
	}
	o := *any(r.want).(*T)
	finish(&o)
	t.set(k, &o)
}

// reconcileNamespace serves a namespace while it is wanted or used. One that
// nobody wrote down is made for the objects in it.
func (s *Store) reconcileNamespace(name string) {
	k := key{"Namespace", Name{Name: name}}
	r := s.records[k]
	if r != nil && r.deleting && s.used[name] == 0 {
		delete(s.records, k)
		r = nil
	}
	old := s.next.namespaces.m[name]
	var ns *corev1.Namespace
	switch {
	case r != nil:
		ns = r.want.DeepCopyObject().(*corev1.Namespace)
		r.stamp(&ns.ObjectMeta)
	case s.used[name] == 0:
		s.next.namespaces.delete(name)
		return
	case old != nil:
		ns = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: old.UID, CreationTimestamp: old.CreationTimestamp}}
	default:
		ns = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: s.newUID(k), CreationTimestamp: s.now()}}
	}
	ns.SetGroupVersionKind(kindByName["Namespace"].gvk())
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = name
	ns.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
	ns.Status.Phase = corev1.NamespaceActive
	if r != nil && r.deleting {
		ns.Status.Phase = corev1.NamespaceTerminating
		now := s.now()
		if old != nil && old.DeletionTimestamp != nil {
			now = *old.DeletionTimestamp
		}
		ns.DeletionTimestamp = &now
	}
	if old == nil || !equality.Semantic.DeepEqual(old, ns) {
		s.next.namespaces.set(name, ns)
	}
}

// addBuiltins makes what is there before any manifest: namespaces, the node, the
// gateway's own two pods and the DNS Service.
func (s *Store) addBuiltins() {
	for _, name := range []string{"default", "kube-system", "podgate-system"} {
		s.builtin(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		s.dirtyNamespaces[name] = true
	}
	s.addGatewayClass()
	s.addNode()
	s.addLocalPod(s.dnsPod())
	s.addLocalPod(s.ingressPod())
	dns := s.dnsService()
	r := s.builtin(dns)
	k := key{"Service", nameOf(dns)}
	if errs := s.admissible(k, r.want); len(errs) > 0 {
		panic("kube: built-in DNS Service: " + errs.ToAggregate().Error())
	}
	s.serve(k, r)
}

// The gateway's own two pods; see LocalAnnotation.
var (
	builtinDNS     = Name{"kube-system", "podgate-dns"}
	builtinIngress = Name{"podgate-system", "podgate-ingress"}
)

func (s *Store) dnsPod() *corev1.Pod {
	return s.localPod(builtinDNS, DNSOffset, map[string]string{"k8s-app": "kube-dns"},
		corev1.ContainerPort{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		corev1.ContainerPort{Name: "dns-tcp", ContainerPort: 53, Protocol: corev1.ProtocolTCP},
		corev1.ContainerPort{Name: "metrics", ContainerPort: 9153, Protocol: corev1.ProtocolTCP})
}

func (s *Store) ingressPod() *corev1.Pod {
	return s.localPod(builtinIngress, IngressOffset, map[string]string{
		"app.kubernetes.io/name":      "podgate-ingress",
		"app.kubernetes.io/component": "controller",
	}, corev1.ContainerPort{Name: "http", ContainerPort: 80}, corev1.ContainerPort{Name: "https", ContainerPort: 443})
}

// clusterDNS is the Service that pods ask for names.
var clusterDNS = Name{"kube-system", "kube-dns"}

func (s *Store) dnsService() *corev1.Service {
	policy := corev1.IPFamilyPolicyPreferDualStack
	dns := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: clusterDNS.Namespace, Name: clusterDNS.Name, Labels: map[string]string{
			"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS",
		}},
		Spec: corev1.ServiceSpec{
			Selector:       map[string]string{"k8s-app": "kube-dns"},
			IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
				{Name: "metrics", Port: 9153, Protocol: corev1.ProtocolTCP},
			},
		},
	}
	for _, a := range s.cfg.DNSAddrs() {
		dns.Spec.ClusterIPs = append(dns.Spec.ClusterIPs, a.String())
	}
	dns.Spec.ClusterIP = dns.Spec.ClusterIPs[0]
	return dns
}

// builtin records an object of podgate's own.
func (s *Store) builtin(o API) *record {
	setDefaults(o)
	o.GetObjectKind().SetGroupVersionKind(kindOf(o).gvk())
	k := Object{API: o}.key()
	r := &record{source: Object{API: o}, want: o, uid: s.newUID(k), created: s.now(), gen: 1, builtin: true}
	s.records[k] = r
	s.use(k.name.Namespace, 1)
	return r
}

// GatewayController is who serves Gateways here: spec.controllerName of their class.
const GatewayController = "podgate.dev/gateway-controller"

// builtinClass is the GatewayClass that is there without a manifest. A manifest
// may put another in its place.
var builtinClass = key{"GatewayClass", Name{Name: "podgate"}}

func (s *Store) addGatewayClass() {
	s.serve(builtinClass, s.builtin(&gatewayv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: builtinClass.name.Name},
		Spec:       gatewayv1.GatewayClassSpec{ControllerName: GatewayController, Description: new("podgate's front door")},
	}))
}

// DNSAddrs are the addresses of the cluster DNS Service, one a family.
func (c Config) DNSAddrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range c.WithDefaults().ServiceCIDRs {
		out = append(out, nth(p, dnsServiceOffset))
	}
	return out
}

func (s *Store) addNode() {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.cfg.NodeName,
			UID:  types.UID(s.cfg.NodeName),
			Labels: map[string]string{
				corev1.LabelHostname:   s.cfg.NodeName,
				corev1.LabelOSStable:   "linux",
				corev1.LabelArchStable: arch,
			},
			CreationTimestamp: s.now(),
		},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "PodgateReady", LastTransitionTime: s.now(),
		}}},
	}
	n.APIVersion, n.Kind = "v1", "Node"
	for _, a := range s.cfg.Addrs(GatewayOffset) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: s.cfg.NodeName})
	for _, p := range s.cfg.PodCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, p.String())
	}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	s.next.nodes.set(n.Name, n)
}
