package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/kube"
	"podgate/stack/packet"
)

// want is what a client gets at a destination: "[backends]" or an outcome.
type want struct {
	dst      string
	proto    packet.Proto // 0: TCP
	external bool
	gets     string
}

// TestFields has a case for each rule, named by the field of the API that it is about.
func TestFields(t *testing.T) {
	a, b, c := "10.244.0.11", "10.244.0.12", "10.244.0.13"
	both := "[" + a + ":8080 " + b + ":8080]"
	onlyA, onlyB := "["+a+":8080]", "["+b+":8080]"
	none := func(*world) {}
	two := func(w *world) { w.slice("web-1", "web", ep(a), ep(b)) }
	svc := func(opts ...svcOption) func(*world) {
		return func(w *world) { w.service("web", 1, opts...) }
	}
	eps := func(es ...discoveryv1.Endpoint) func(*world) {
		return func(w *world) { w.slice("web-1", "web", es...) }
	}
	tests := []struct {
		name  string
		setup []func(*world)
		wants []want
	}{
		{"spec.clusterIP", []func(*world){svc(), two}, []want{
			{dst: "10.96.0.1:80", gets: both},
			{dst: "10.96.0.1:81", gets: "unknown-port"},
			{dst: "10.96.0.1:80", proto: packet.UDP, gets: "unknown-port"},
			{dst: "10.96.0.1:0", proto: packet.ICMP, gets: "unknown-port"},
			{dst: "10.96.0.2:80", gets: "unallocated"},
			{dst: "[fd00:10:96::2]:80", gets: "unallocated"},
			{dst: "10.244.0.11:80", gets: "not-service"},
			{dst: "192.0.2.1:80", gets: "not-service"},
		}},
		{"spec.clusterIPs", []func(*world){svc(dual(1)), two, func(w *world) { w.slice("web-6", "web", ep("fd00:10:244::b")) }}, []want{
			{dst: "10.96.0.1:80", gets: both},
			{dst: "[fd00:10:96::1]:80", gets: "[[fd00:10:244::b]:8080]"},
			{dst: "[fd00:10:96::1]:81", gets: "unknown-port"},
		}},
		{"spec.clusterIP: None", []func(*world){svc(func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }), two}, []want{
			{dst: "10.96.0.1:80", gets: "unallocated"},
		}},
		{"spec.type: ExternalName", []func(*world){svc(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "", nil
		}), two}, []want{
			{dst: "10.96.0.1:80", gets: "unallocated"},
		}},
		{"metadata.labels service-proxy-name", []func(*world){svc(func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		}), two}, []want{
			{dst: "10.96.0.1:80", gets: "unallocated"},
		}},
		{"metadata.labels headless", []func(*world){svc(func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/headless": ""}
		}), two}, []want{
			{dst: "10.96.0.1:80", gets: "unallocated"},
		}},
		{"metadata.labels of a slice", []func(*world){svc(), eps(ep(a)), func(w *world) {
			w.slice("web-2", "web", ep(b)).Labels["service.kubernetes.io/headless"] = ""
			w.slice("web-3", "web", ep(c)).Labels["service.kubernetes.io/service-proxy-name"] = "other"
		}}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"spec.ports", []func(*world){svc(ports(
			corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")},
			corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(5353)},
			corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(5354)},
			corev1.ServicePort{Name: "sig", Port: 36412, Protocol: corev1.ProtocolSCTP, TargetPort: intstr.FromInt32(36412)},
		)), func(w *world) {
			w.slice("web-1", "web", ep(a)).Ports = []discoveryv1.EndpointPort{
				epPort("http", 8081, corev1.ProtocolTCP), epPort("dns", 5353, corev1.ProtocolUDP),
				epPort("dns-tcp", 5354, corev1.ProtocolTCP), epPort("sig", 36412, corev1.ProtocolSCTP)}
			// The named targetPort is another number on another pod: another slice.
			w.slice("web-2", "web", ep(b)).Ports = []discoveryv1.EndpointPort{epPort("http", 9090, corev1.ProtocolTCP)}
		}}, []want{
			{dst: "10.96.0.1:80", gets: "[" + a + ":8081 " + b + ":9090]"},
			{dst: "10.96.0.1:53", gets: "[" + a + ":5354]"},
			{dst: "10.96.0.1:53", proto: packet.UDP, gets: "[" + a + ":5353]"},
			{dst: "10.96.0.1:36412", proto: packet.SCTP, gets: "[" + a + ":36412]"},
			{dst: "10.96.0.1:36412", gets: "unknown-port"},
		}},
		{"spec.ports without endpoints", []func(*world){svc(nodePort(30080)), none}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
			{dst: "10.244.0.1:30080", external: true, gets: "no-endpoints"},
		}},
		{"spec.ports.nodePort", []func(*world){svc(nodePort(30080)), two}, []want{
			{dst: "10.244.0.1:30080", gets: both},
			{dst: "10.244.0.1:30080", external: true, gets: both},
			{dst: "10.244.0.1:30081", gets: "not-service"},
			{dst: "10.244.0.1:80", gets: "not-service"},
			{dst: "10.244.0.9:30080", gets: "not-service"},
			{dst: "[fd00:10:244::1]:30080", gets: "not-service"},
			{dst: "10.96.0.1:30080", gets: "unknown-port"},
		}},
		{"spec.ports.nodePort, both families", []func(*world){svc(dual(1), nodePort(30080)), func(w *world) { w.slice("web-6", "web", ep("fd00:10:244::b")) }}, []want{
			{dst: "[fd00:10:244::1]:30080", gets: "[[fd00:10:244::b]:8080]"},
			{dst: "10.244.0.1:30080", gets: "no-endpoints"},
		}},
		{"spec.externalIPs", []func(*world){svc(externalIP("198.51.100.7", "2001:db8::7")), two}, []want{
			{dst: "198.51.100.7:80", gets: both},
			{dst: "198.51.100.7:80", external: true, gets: both},
			{dst: "198.51.100.7:81", gets: "not-service"},
			{dst: "[2001:db8::7]:80", gets: "not-service"}, // the Service has no IPv6
		}},
		{"status.loadBalancer.ingress.ip", []func(*world){svc(balancer(30080, "198.51.100.7")), two}, []want{
			{dst: "198.51.100.7:80", gets: both},
			{dst: "198.51.100.7:80", external: true, gets: both},
			{dst: "198.51.100.7:30080", gets: "not-service"},
			{dst: "10.244.0.1:30080", gets: both},
		}},
		{"status.loadBalancer.ingress.ipMode: Proxy", []func(*world){svc(balancer(30080, "198.51.100.7"), func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress[0].IPMode = ptr(corev1.LoadBalancerIPModeProxy)
		}), two}, []want{
			{dst: "198.51.100.7:80", gets: "not-service"},
		}},
		{"status.loadBalancer.ingress.hostname", []func(*world){svc(balancer(30080, "198.51.100.7"), func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{Hostname: "lb.example.com"})
		}), two}, []want{
			{dst: "198.51.100.7:80", gets: both},
		}},
		{"spec.allocateLoadBalancerNodePorts: false", []func(*world){svc(balancer(0, "198.51.100.7")), two}, []want{
			{dst: "198.51.100.7:80", external: true, gets: both},
			{dst: "10.244.0.1:80", gets: "not-service"},
		}},
		{"spec.loadBalancerSourceRanges", []func(*world){svc(balancer(30080, "198.51.100.7"), externalIP("198.51.100.8"), func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{" 192.0.2.0/25", "203.0.113.0/24"}
		}), two}, []want{
			{dst: "198.51.100.7:80", external: true, gets: both}, // 192.0.2.7
			{dst: "198.51.100.7:80", gets: "not-allowed"},        // 10.244.0.9
			{dst: "198.51.100.8:80", gets: both},
			{dst: "10.96.0.1:80", gets: both},
			{dst: "10.244.0.1:30080", gets: both},
		}},
		{"metadata.annotations load-balancer-source-ranges", []func(*world){svc(balancer(30080, "198.51.100.7"), externalIP("198.51.100.8"), func(s *corev1.Service) {
			s.Annotations = map[string]string{"service.beta.kubernetes.io/load-balancer-source-ranges": " 192.0.2.0/25, 203.0.113.0/24"}
		}), two}, []want{
			{dst: "198.51.100.7:80", external: true, gets: both}, // 192.0.2.7
			{dst: "198.51.100.7:80", gets: "not-allowed"},        // 10.244.0.9
			{dst: "198.51.100.8:80", gets: both},
			{dst: "10.96.0.1:80", gets: both},
			{dst: "10.244.0.1:30080", gets: both},
		}},
		{"spec.loadBalancerSourceRanges of the other family", []func(*world){svc(balancer(30080, "198.51.100.7"), func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"2001:db8::/32"}
		}), two}, []want{
			{dst: "198.51.100.7:80", gets: both},
		}},
		{"spec.loadBalancerSourceRanges that cannot be read", []func(*world){svc(balancer(30080, "198.51.100.7"), func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"everybody"}
		}), two}, []want{
			{dst: "198.51.100.7:80", external: true, gets: "not-allowed"},
		}},
		{"endpoints.conditions.ready", []func(*world){svc(), eps(ep(a, unready), ep(b))}, []want{
			{dst: "10.96.0.1:80", gets: onlyB},
		}},
		{"endpoints.conditions.ready: nil", []func(*world){svc(), eps(ep(a, func(e *discoveryv1.Endpoint) { e.Conditions = discoveryv1.EndpointConditions{} }))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"endpoints.conditions.ready: false everywhere", []func(*world){svc(), eps(ep(a, unready), ep(b, unready))}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"endpoints.conditions.terminating, others ready", []func(*world){svc(), eps(ep(a, leaving), ep(b))}, []want{
			{dst: "10.96.0.1:80", gets: onlyB},
		}},
		{"endpoints.conditions.terminating and serving, nobody ready", []func(*world){svc(), eps(ep(a, leaving), ep(b, unready))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"endpoints.conditions.terminating, not serving", []func(*world){svc(), eps(ep(a, leaving, unready))}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"endpoints.addresses beyond the first", []func(*world){svc(), eps(ep(a, func(e *discoveryv1.Endpoint) { e.Addresses = append(e.Addresses, b) }))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"endpoints in two slices", []func(*world){svc(), eps(ep(a, unready)), func(w *world) { w.slice("web-2", "web", ep(a), ep(b)) }}, []want{
			{dst: "10.96.0.1:80", gets: both},
		}},
		{"ports.name of a slice", []func(*world){svc(), func(w *world) {
			w.slice("web-1", "web", ep(a)).Ports[0].Name = ptr("metrics")
		}}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"ports.port of a slice: nil", []func(*world){svc(), func(w *world) { w.slice("web-1", "web", ep(a)).Ports[0].Port = nil }}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"ports.name of a slice, of another protocol", []func(*world){svc(), func(w *world) { w.slice("web-1", "web", ep(a)).Ports[0].Protocol = ptr(corev1.ProtocolUDP) }}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"ports.port that differs by slice", []func(*world){svc(), eps(ep(a)), func(w *world) { w.slice("web-2", "web", ep(b)).Ports[0].Port = ptr(int32(9090)) }}, []want{
			{dst: "10.96.0.1:80", gets: "[" + a + ":8080 " + b + ":9090]"},
		}},
		{"addressType: FQDN", []func(*world){svc(), func(w *world) { w.slice("web-1", "web", ep(a)).AddressType = discoveryv1.AddressTypeFQDN }}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"spec.internalTrafficPolicy: Local", []func(*world){svc(internalLocal, nodePort(30080)), eps(ep(a), ep(b, elsewhere))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
			{dst: "10.244.0.1:30080", gets: both},
			{dst: "10.244.0.1:30080", external: true, gets: both},
		}},
		{"spec.internalTrafficPolicy: Local, nobody here", []func(*world){svc(internalLocal), eps(ep(b, elsewhere))}, []want{
			{dst: "10.96.0.1:80", gets: "no-local"},
		}},
		{"spec.internalTrafficPolicy: Local, nobody anywhere", []func(*world){svc(internalLocal), eps(ep(b, elsewhere, unready))}, []want{
			{dst: "10.96.0.1:80", gets: "no-endpoints"},
		}},
		{"spec.internalTrafficPolicy: Local, only terminating here", []func(*world){svc(internalLocal), eps(ep(a, leaving), ep(b, elsewhere))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"spec.externalTrafficPolicy: Local", []func(*world){svc(balancer(30080, "198.51.100.7"), externalLocal), eps(ep(a), ep(b, elsewhere))}, []want{
			{dst: "10.96.0.1:80", gets: both},
			{dst: "10.244.0.1:30080", external: true, gets: onlyA},
			{dst: "198.51.100.7:80", external: true, gets: onlyA},
			{dst: "10.244.0.1:30080", gets: both}, // pods are short-circuited
			{dst: "198.51.100.7:80", gets: both},
		}},
		{"spec.externalTrafficPolicy: Local with spec.loadBalancerSourceRanges", []func(*world){svc(balancer(30080, "198.51.100.7"), externalLocal, func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
		}), eps(ep(a), ep(b, elsewhere))}, []want{
			{dst: "198.51.100.7:80", external: true, gets: "not-allowed"},
			{dst: "10.244.0.1:30080", external: true, gets: onlyA},
			{dst: "10.96.0.1:80", gets: both},
		}},
		{"spec.externalTrafficPolicy: Local, only terminating here", []func(*world){svc(nodePort(30080), externalLocal), eps(ep(a, leaving), ep(b, elsewhere))}, []want{
			{dst: "10.244.0.1:30080", external: true, gets: onlyA},
			{dst: "10.244.0.1:30080", gets: onlyB},
		}},
		{"spec.externalTrafficPolicy: Local at spec.externalIPs", []func(*world){svc(externalIP("198.51.100.7"), externalLocal), eps(ep(b, elsewhere))}, []want{
			{dst: "198.51.100.7:80", external: true, gets: "no-local"},
			{dst: "198.51.100.7:80", gets: onlyB},
		}},
		{"both traffic policies: Local", []func(*world){svc(nodePort(30080), externalLocal, internalLocal), eps(ep(b, elsewhere))}, []want{
			{dst: "10.96.0.1:80", gets: "no-local"},
			{dst: "10.244.0.1:30080", external: true, gets: "no-local"},
			{dst: "10.244.0.1:30080", gets: onlyB}, // pods are short-circuited to the whole Service
		}},
		{"spec.externalTrafficPolicy: Local, nobody here", []func(*world){svc(nodePort(30080), externalLocal), eps(ep(b, elsewhere))}, []want{
			{dst: "10.244.0.1:30080", external: true, gets: "no-local"},
			{dst: "10.244.0.1:30080", gets: onlyB},
			{dst: "10.96.0.1:80", gets: onlyB},
		}},
		{"hints.forZones", []func(*world){svc(), eps(ep(a, zones("z1")), ep(b, zones("z2")), ep(c, zones("z1", "z2")))}, []want{
			{dst: "10.96.0.1:80", gets: "[" + a + ":8080 " + c + ":8080]"},
		}},
		{"hints.forZones, the node in no zone", []func(*world){svc(), eps(ep(a, zones("z1")), ep(b, zones("z2"))), func(w *world) { w.st.Nodes = nil }}, []want{
			{dst: "10.96.0.1:80", gets: both},
		}},
		{"hints.forZones, one without that is not ready", []func(*world){svc(), eps(ep(a, zones("z1")), ep(b, zones("z2")), ep(c, unready))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"hints.forNodes, one without", []func(*world){svc(), eps(ep(a, nodes("here"), zones("z2")), ep(b, zones("z1")))}, []want{
			{dst: "10.96.0.1:80", gets: onlyB},
		}},
		{"hints.forZones, one without", []func(*world){svc(), eps(ep(a, zones("z1")), ep(b))}, []want{
			{dst: "10.96.0.1:80", gets: both},
		}},
		{"hints.forZones, none for here", []func(*world){svc(), eps(ep(a, zones("z2")), ep(b, zones("z3")))}, []want{
			{dst: "10.96.0.1:80", gets: both},
		}},
		{"hints.forZones, the one for here not ready", []func(*world){svc(), eps(ep(a, zones("z1"), unready), ep(b, zones("z2")))}, []want{
			{dst: "10.96.0.1:80", gets: onlyB},
		}},
		{"hints.forZones do not matter to externalTrafficPolicy: Local", []func(*world){svc(nodePort(30080), externalLocal), eps(ep(a, zones("z2")), ep(b, zones("z1")), ep(c, zones("z1"), elsewhere))}, []want{
			{dst: "10.244.0.1:30080", external: true, gets: both},
			{dst: "10.96.0.1:80", gets: "[" + b + ":8080 " + c + ":8080]"},
		}},
		{"hints.forNodes", []func(*world){svc(), eps(ep(a, nodes("here"), zones("z2")), ep(b, nodes("there"), zones("z1")))}, []want{
			{dst: "10.96.0.1:80", gets: onlyA},
		}},
		{"hints.forNodes, none for here", []func(*world){svc(), eps(ep(a, nodes("there"), zones("z2")), ep(b, nodes("there"), zones("z1")))}, []want{
			{dst: "10.96.0.1:80", gets: onlyB},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			for _, f := range tt.setup {
				f(w)
				w.compile()
			}
			tab, _ := w.compile()
			for _, q := range tt.wants {
				ap := netip.MustParseAddrPort(q.dst)
				proto := q.proto
				if proto == 0 {
					proto = packet.TCP
				}
				if got := reached(tab, packet.AddrFrom(ap.Addr()), proto, ap.Port(), q.external); got != q.gets {
					t.Errorf("%s proto %d external %t: got %s, want %s", q.dst, proto, q.external, got, q.gets)
				}
			}
		})
	}
}

func TestSessionAffinityClientIP(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, affinity(600))
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"), ep("10.244.0.13"))
	tab, _ := w.compile()
	first := decide(tab, tcp(client, addr("10.96.0.1"), 80), false)
	if first.Why != ByClient || first.Port.AffinityTimeout != 600*time.Second {
		t.Errorf("got %v and timeout %v, want client-ip and 10m", first.Why, first.Port.AffinityTimeout)
	}
	for p := range uint16(50) {
		tuple := tcp(client, addr("10.96.0.1"), 80)
		tuple.SrcPort = 1024 + p
		if got := decide(tab, tuple, false); got.Backend != first.Backend {
			t.Fatalf("source port %d: got %v, want %v", p, got.Backend, first.Backend)
		}
	}
	spread := map[*Backend]bool{}
	for i := range byte(50) {
		src := client
		src[15] = 20 + i
		spread[decide(tab, tcp(src, addr("10.96.0.1"), 80), false).Backend] = true
	}
	if len(spread) != 3 {
		t.Errorf("50 clients use %d backends, want 3", len(spread))
	}
}

func TestSessionAffinityTimeoutDefault(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP })
	tab, _ := w.compile()
	sp, _ := tab.Lookup(addr("10.96.0.1"), packet.TCP, 80)
	if got, want := sp.AffinityTimeout, 3*time.Hour; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestStickyBackendIsKeptWhileEligible(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, affinity(600))
	w.slice("web-1", "web", ep("10.244.0.11"))
	tab, _ := w.compile()
	tuple := tcp(client, addr("10.96.0.1"), 80)
	sticky := decide(tab, tuple, false).Backend

	var more []discoveryv1.Endpoint
	for _, ip := range []string{"10.244.0.11", "10.244.0.12", "10.244.0.13", "10.244.0.14", "10.244.0.15"} {
		more = append(more, ep(ip))
	}
	w.slice("web-1", "web", more...)
	tab, _ = w.compile()
	sp, _ := tab.Lookup(tuple.Dst, packet.TCP, 80)
	if c := sp.Choose(tuple, false, sticky, nil); c.Backend != sticky || c.Why != BySticky {
		t.Errorf("four more endpoints: got %v by %v, want the sticky backend", c.Backend, c.Why)
	}

	more[0] = ep("10.244.0.11", unready)
	w.slice("web-1", "web", more...)
	tab, _ = w.compile()
	sp, _ = tab.Lookup(tuple.Dst, packet.TCP, 80)
	if c := sp.Choose(tuple, false, sticky, nil); c.Backend == sticky || c.Why != ByClient {
		t.Errorf("sticky backend not ready: got %v by %v, want another by client-ip", c.Backend, c.Why)
	}
}

func TestProblems(t *testing.T) {
	w := newWorld(t)
	w.service("bad", 1, externalIP("nobody"))
	w.service("old", 2, nodePort(30080), func(s *corev1.Service) { s.CreationTimestamp = metav1.Unix(100, 0) })
	w.service("new", 3, nodePort(30080), func(s *corev1.Service) { s.CreationTimestamp = metav1.Unix(200, 0) })
	w.service("named", 4, ports(corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")}))
	w.slice("named-1", "named", ep("10.244.0.11")).Ports = nil
	tab, ps := w.compile()
	want := []string{
		`shop/bad spec.externalIPs[0] Invalid value: "nobody": must be a valid IP address`,
		`shop/named spec.ports[0] no endpoint of the Service has port "http" (targetPort web, TCP): connections are rejected`,
		`shop/new spec.ports.nodePort node port 30080/TCP is already taken by Service shop/old`,
	}
	var got []string
	for _, p := range ps {
		got = append(got, p.Object.String()+" "+p.Field+" "+p.Err)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if sp, _ := tab.Lookup(node4, packet.TCP, 30080); sp.Service.Name != "old" {
		t.Errorf("contested NodePort is held by %s, want the older Service", sp.Service)
	}
	put(&w.st.Services, kube.Name{Namespace: "shop", Name: "old"}, nil)
	tab, _ = w.compile()
	if sp, _ := tab.Lookup(node4, packet.TCP, 30080); sp == nil || sp.Service.Name != "new" {
		t.Errorf("NodePort of a deleted Service did not fall to the one that waited for it")
	}
}

// An API server's objects are not validated here again: what nothing may be sent
// to is left out, and said so on the slice alone.
func TestEndpointAddressesThatMayNotBe(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "again", Port: 81})
	})
	slice := w.slice("web-1", "web", ep("10.244.0.11"), ep("127.0.0.1"), ep("169.254.169.254"), ep("239.1.1.1"), ep("0.0.0.0"), ep("fd00::1"), ep("x"), ep("::ffff:10.0.0.1"))
	slice.Ports = append(slice.Ports, slice.Ports[0])
	slice.Ports[1].Name = ptr("again")
	slice.AddressType = discoveryv1.AddressTypeIPv4
	tab, ps := w.compile()
	if got, want := reached(tab, addr("10.96.0.1"), packet.TCP, 80, false), "[10.244.0.11:8080]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var got []string
	for _, p := range ps {
		got = append(got, p.String())
	}
	at := "EndpointSlice shop/web-1: endpoints[%d].addresses[0]: Invalid value: %q: %s"
	want := []string{
		fmt.Sprintf(at, 1, "127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
		fmt.Sprintf(at, 2, "169.254.169.254", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
		fmt.Sprintf(at, 3, "239.1.1.1", "may not be a multicast address"),
		fmt.Sprintf(at, 4, "0.0.0.0", "may not be unspecified"),
		fmt.Sprintf(at, 5, "fd00::1", "must be an IPv4 address"),
		fmt.Sprintf(at, 6, "x", "must be a valid IP address"),
		fmt.Sprintf(at, 7, "::ffff:10.0.0.1", "must be a valid IP address"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
