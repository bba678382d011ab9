package nat

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/kube"
	"podgate/stack/packet"
)

// Addresses of the tests: the node, its pods, and somebody outside.
var (
	node4   = addr("10.244.0.1")
	node6   = addr("fd00:10:244::1")
	client  = addr("10.244.0.9")
	outside = addr("192.0.2.7")
	config  = Config{
		NodeName:     "here",
		NodeAddrs:    []netip.Addr{node4.Netip(), node6.Netip()},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
	}
)

func addr(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

func ptr[T any](v T) *T { return &v }

// world builds States as a store does: changed maps are copied.
type world struct {
	t    testing.TB
	st   kube.State
	prev *Table
	cfg  Config
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, cfg: config}
	w.st.Nodes = map[string]*corev1.Node{"here": {ObjectMeta: metav1.ObjectMeta{Name: "here", Labels: map[string]string{corev1.LabelTopologyZone: "z1"}}}}
	return w
}

func put[V any](m *map[kube.Name]*V, n kube.Name, v *V) {
	c := maps.Clone(*m)
	if c == nil {
		c = map[kube.Name]*V{}
	}
	if v == nil {
		delete(c, n)
	} else {
		c[n] = v
	}
	*m = c
}

// compile compiles with what was compiled before as prev, and checks on the way
// that the result is that of a compile from scratch.
func (w *world) compile() (*Table, []kube.Problem) {
	w.t.Helper()
	t, ps := Compile(w.prev, &w.st, w.cfg)
	fresh, freshPs := Compile(nil, &w.st, w.cfg)
	same(w.t, t, fresh)
	if got, want := fmt.Sprint(ps), fmt.Sprint(freshPs); got != want {
		w.t.Errorf("problems of incremental compile: got %s, want %s", got, want)
	}
	w.prev = t
	return t, ps
}

type svcOption func(*corev1.Service)

// service adds Service shop/name at 10.96.0.N and, with option dual, at fd00:10:96::N.
func (w *world) service(name string, n int, opts ...svcOption) *corev1.Service {
	ip := fmt.Sprintf("10.96.0.%d", n)
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			IPFamilies:      []corev1.IPFamily{corev1.IPv4Protocol},
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports:           []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for _, o := range opts {
		o(s)
	}
	put(&w.st.Services, kube.Name{Namespace: "shop", Name: name}, s)
	return s
}

func dual(n int) svcOption {
	return func(s *corev1.Service) {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, fmt.Sprintf("fd00:10:96::%d", n))
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPv6Protocol)
	}
}

func nodePort(n int32) svcOption {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = n
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
}

func balancer(n int32, ips ...string) svcOption {
	return func(s *corev1.Service) {
		nodePort(n)(s)
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip, IPMode: ptr(corev1.LoadBalancerIPModeVIP)})
		}
	}
}

func externalIP(ips ...string) svcOption {
	return func(s *corev1.Service) { s.Spec.ExternalIPs = ips }
}

func ports(ps ...corev1.ServicePort) svcOption {
	return func(s *corev1.Service) { s.Spec.Ports = ps }
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func affinity(seconds int32) svcOption {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

type epOption func(*discoveryv1.Endpoint)

// ep is a ready endpoint on this node.
func ep(ip string, opts ...epOption) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		NodeName:   ptr("here"),
		Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "pod-" + ip},
	}
	for _, o := range opts {
		o(&e)
	}
	return e
}

func elsewhere(e *discoveryv1.Endpoint) { e.NodeName = ptr("there") }
func unready(e *discoveryv1.Endpoint) {
	e.Conditions.Ready, e.Conditions.Serving = ptr(false), ptr(false)
}
func leaving(e *discoveryv1.Endpoint) {
	e.Conditions.Ready, e.Conditions.Terminating = ptr(false), ptr(true)
}
func zones(zs ...string) epOption {
	return func(e *discoveryv1.Endpoint) {
		if e.Hints == nil {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		for _, z := range zs {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
		}
	}
}
func nodes(ns ...string) epOption {
	return func(e *discoveryv1.Endpoint) {
		if e.Hints == nil {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		for _, n := range ns {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
		}
	}
}

func epPort(name string, number int32, protocol corev1.Protocol) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &protocol}
}

// slice adds EndpointSlice shop/name of a Service, its port unnamed 8080/TCP.
// The family is that of the first endpoint.
func (w *world) slice(name, service string, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{epPort("", 8080, corev1.ProtocolTCP)},
		Endpoints:   eps,
	}
	if len(eps) > 0 && !addr(eps[0].Addresses[0]).Is4() {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	w.st.EndpointSlices = w.st.EndpointSlices.With(kube.Name{Namespace: "shop", Name: name}, s)
	return s
}

func tcp(src, dst packet.Addr, port uint16) packet.Tuple {
	return packet.Tuple{Src: src, Dst: dst, SrcPort: 40000, DstPort: port, Proto: packet.TCP}
}

// decide does what the data path does for the first packet of a flow.
func decide(t *Table, p packet.Tuple, external bool) Choice {
	sp, o := t.Lookup(p.Dst, p.Proto, p.DstPort)
	if o != Translate {
		return Choice{Outcome: o}
	}
	return sp.Choose(p, external, nil, nil)
}

// reached is the set of backends that clients get, or the one outcome that
// they all get.
func reached(t *Table, dst packet.Addr, proto packet.Proto, port uint16, external bool) string {
	src := client
	if external {
		src = outside
	}
	set := map[string]bool{}
	for p := range 500 {
		c := decide(t, packet.Tuple{Src: src, Dst: dst, SrcPort: uint16(20000 + p), DstPort: port, Proto: proto}, external)
		if c.Outcome != Translate {
			return c.Outcome.String()
		}
		set[c.Backend.AddrPort().String()] = true
	}
	return fmt.Sprint(sorted(set))
}

func annotated(name, value string) svcOption {
	return func(s *corev1.Service) {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[name] = value
	}
}
