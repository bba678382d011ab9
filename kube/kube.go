// Package kube holds the desired state: Kubernetes objects read from manifests
// (or, later, an API server), what a control plane would have allocated for
// them, and complete immutable states for the compilers.
//
//	files --Load--> Objects --Apply, Sync--> Store --State--> nat, policy, dns, ingress, pod
//	                                          ^  |
//	         SetPodStatus, PodGone, from pod -+  +--> Subscribe wakes them
//
// The one goroutine is that of [Watcher.Run]; its caller starts it and ends it by
// its context. All else happens in the caller's, under the store's lock.
package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Name is namespace and name of an object; cluster-scoped kinds have no namespace.
type Name struct{ Namespace, Name string }

func (n Name) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// State is everything that is wanted, at one moment. It is immutable: an object
// that did not change is the same pointer as in the State before, and so is a
// map of which nothing changed.
//
// Objects are as an API server would serve them after its controllers ran:
// defaults filled in, ClusterIPs and NodePorts allocated, EndpointSlices
// present, pods carrying status (podIPs, conditions).
type State struct {
	Generation uint64

	Namespaces      map[string]*corev1.Namespace // each labelled kubernetes.io/metadata.name
	Nodes           map[string]*corev1.Node      // the one node of a manifest cluster: Config.NodeName
	Pods            map[Name]*corev1.Pod
	Services        map[Name]*corev1.Service
	EndpointSlices  Map[Name, *discoveryv1.EndpointSlice] // of a Service by label kubernetes.io/service-name
	Ingresses       map[Name]*networkingv1.Ingress
	IngressClasses  map[string]*networkingv1.IngressClass
	NetworkPolicies map[Name]*networkingv1.NetworkPolicy
	ClusterPolicies map[string]*policyv1alpha2.ClusterNetworkPolicy
	BrokenPolicies  map[Name]API // policies of either kind that validation rejected and that have no good version
	Secrets         map[Name]*corev1.Secret
	ConfigMaps      map[Name]*corev1.ConfigMap

	// The Gateway API.
	GatewayClasses     map[string]*gatewayv1.GatewayClass
	Gateways           map[Name]*gatewayv1.Gateway
	HTTPRoutes         map[Name]*gatewayv1.HTTPRoute
	GRPCRoutes         map[Name]*gatewayv1.GRPCRoute
	TLSRoutes          map[Name]*gatewayv1.TLSRoute
	ReferenceGrants    map[Name]*gatewayv1.ReferenceGrant
	BackendTLSPolicies map[Name]*gatewayv1.BackendTLSPolicy

	// The workloads whose pods are in Pods, for people to look at.
	Deployments  map[Name]*appsv1.Deployment
	ReplicaSets  map[Name]*appsv1.ReplicaSet
	StatefulSets map[Name]*appsv1.StatefulSet
	DaemonSets   map[Name]*appsv1.DaemonSet

	// Pod networks beside the cluster's own: the definitions, what podgate made of
	// them, deleted ones that pods still have included, and the interfaces of the
	// pods that select networks. All other pods have one interface, on the
	// cluster's own.
	NetworkAttachments map[Name]*NetworkAttachmentDefinition
	Networks           map[Name]*Network
	Interfaces         map[Name]*Interfaces

	Problems []Problem // sorted by object

	steps map[unsafe.Pointer]any // of maps that changed, by their identity: *step
}

// Config is what a cluster's administrator would have chosen. The zero value
// works: WithDefaults fills it in.
type Config struct {
	ClusterDomain  string         // "cluster.local"
	NodeName       string         // "podgate"
	PodCIDRs       []netip.Prefix // at most one a family; 10.244.0.0/16, fd00:10:244::/64
	ServiceCIDRs   []netip.Prefix // at most one a family; 10.96.0.0/16, fd00:10:96::/112
	NodePortMin    uint16         // 30000
	NodePortMax    uint16         // 32767
	IngressService string         // namespace/name shown for the built-in front door; "podgate-system/podgate-ingress"

	// PublishedIPs are the addresses at which Services of type LoadBalancer and
	// Ingresses are reached, as written to status.loadBalancer.ingress; 127.0.0.1.
	PublishedIPs []netip.Addr

	// IngressPorts are the ports there of Ingresses, as written to their status.
	IngressPorts []uint16

	// LoadBalancerCIDRs give each Service of type LoadBalancer an address of its
	// own; none: the Services share PublishedIPs.
	LoadBalancerCIDRs []netip.Prefix
}

// WithDefaults returns the configuration with every unset field filled in.
func (c Config) WithDefaults() Config {
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.NodeName == "" {
		c.NodeName = "podgate"
	}
	if len(c.PodCIDRs) == 0 {
		c.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
	}
	if len(c.ServiceCIDRs) == 0 {
		c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	}
	if c.NodePortMin == 0 {
		c.NodePortMin = 30000
	}
	if c.NodePortMax == 0 {
		c.NodePortMax = 32767
	}
	if c.IngressService == "" {
		c.IngressService = "podgate-system/podgate-ingress"
	}
	if len(c.PublishedIPs) == 0 {
		c.PublishedIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	return c
}

// Validate reports the first value that no cluster can run with.
func (c Config) Validate() error {
	c = c.WithDefaults()
	if c.NodePortMin > c.NodePortMax {
		return fmt.Errorf("node ports %d-%d: the first is above the last", c.NodePortMin, c.NodePortMax)
	}
	all := append(slices.Clone(c.PodCIDRs), c.ServiceCIDRs...)
	for i, a := range all {
		if !a.IsValid() || a != a.Masked() {
			return fmt.Errorf("CIDR %s: must be a network address with its prefix length", a)
		}
		for _, b := range all[:i] {
			if a.Overlaps(b) {
				return fmt.Errorf("CIDRs %s and %s overlap", b, a)
			}
		}
	}
	for _, cidrs := range [][]netip.Prefix{c.PodCIDRs, c.ServiceCIDRs} {
		if len(cidrs) > 2 || len(cidrs) == 2 && cidrs[0].Addr().Is4() == cidrs[1].Addr().Is4() {
			return fmt.Errorf("CIDRs %v: at most one a family", cidrs)
		}
		for _, p := range cidrs {
			if p.Addr().BitLen()-p.Bits() < 4 {
				return fmt.Errorf("CIDR %s: too small, at least 16 addresses are needed", p)
			}
		}
	}
	return nil
}

// The first addresses of every pod CIDR belong to the gateway itself. They are
// the offsets from the network address (10.244.0.1 and so on); pods follow from
// FirstPodOffset.
const (
	GatewayOffset  = 1 // the node: default route, probes, published ports
	DNSOffset      = 2 // the built-in pod kube-system/podgate-dns behind the Service kube-system/kube-dns
	IngressOffset  = 3 // the built-in pod podgate-system/podgate-ingress, the front door's source address
	FirstPodOffset = 4
)

// LocalAnnotation marks the built-in pods (DNS, ingress) that live in the
// gateway's own stack: no sandbox is made for them, they are always ready, and
// selectors of Services and policies match them as any pod.
const LocalAnnotation = "podgate.dev/local"

// Clock is the time source of the store; tests hand in their own.
type Clock func() time.Time

// IsLocal says whether a pod is one of the built-in ones; see LocalAnnotation.
func IsLocal(pod *corev1.Pod) bool {
	_, local := pod.Annotations[LocalAnnotation]
	return local
}
