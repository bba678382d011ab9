package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestExplicitAddressesComeFirst(t *testing.T) {
	s := testStore(Config{})
	free := testStore(Config{})
	free.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: NodePort, ports: [{port: 80}]}"))
	would := free.State().Services[Name{"default", "a"}]

	// b asks for what a would be given.
	got := said(s.Apply(load(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {type: NodePort, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {type: NodePort, clusterIP: %s, ports: [{port: 80, nodePort: %d}]}
`, would.Spec.ClusterIP, would.Spec.Ports[0].NodePort))))
	if want := "service/a created\nservice/b created"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	a, b := s.State().Services[Name{"default", "a"}], s.State().Services[Name{"default", "b"}]
	if b.Spec.ClusterIP != would.Spec.ClusterIP || a.Spec.ClusterIP == b.Spec.ClusterIP || a.Spec.Ports[0].NodePort == b.Spec.Ports[0].NodePort {
		t.Errorf("got a %v %v, b %v %v", a.Spec.ClusterIP, a.Spec.Ports, b.Spec.ClusterIP, b.Spec.Ports)
	}
}

func TestConflictsAreReportedAndTheRestApplies(t *testing.T) {
	s := testStore(Config{})
	manifest := `
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {type: NodePort, clusterIP: 10.96.0.50, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {clusterIP: 10.96.0.50, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: c}
spec: {type: NodePort, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: d}
spec: {ports: [{port: 80}]}
`
	want := `service/a created
test.yaml:10: Service default/b: spec.clusterIPs: Invalid value: ["10.96.0.50"]: failed to allocate IP 10.96.0.50: provided IP is already allocated
test.yaml:15: Service default/c: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated
service/d created`
	if got := said(s.Apply(load(t, manifest))); got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	if n := len(s.State().Problems); n != 2 {
		t.Errorf("got %d problems, want 2", n)
	}
	// What a held is free when it is gone, and problems end with their cause.
	s.Delete(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}"))
	if got := said(s.Apply(load(t, manifest)[1:3])); got != "service/b created\nservice/c created" {
		t.Errorf("got %s", got)
	}
	if ps := s.State().Problems; len(ps) != 0 {
		t.Errorf("got problems %v, want none", ps)
	}
}

func TestAddressFamilies(t *testing.T) {
	both := Config{}.WithDefaults()
	v6 := Config{
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/64")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")},
	}
	for _, c := range []struct {
		name, spec string
		cfg        Config
		families   string
		policy     corev1.IPFamilyPolicy
		addresses  int
	}{
		{"default", "{selector: {a: b}, ports: [{port: 1}]}", both, "[IPv4]", "SingleStack", 1},
		{"prefer", "{ipFamilyPolicy: PreferDualStack, ports: [{port: 1}]}", both, "[IPv4 IPv6]", "PreferDualStack", 2},
		{"require, IPv6 first", "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6], ports: [{port: 1}]}", both, "[IPv6 IPv4]", "RequireDualStack", 2},
		{"IPv6", "{ipFamilies: [IPv6], ports: [{port: 1}]}", both, "[IPv6]", "SingleStack", 1},
		{"IPv6 by address", "{clusterIP: 'fd00:10:96::99', ports: [{port: 1}]}", both, "[IPv6]", "SingleStack", 1},
		{"headless", "{clusterIP: None, selector: {a: b}}", both, "[IPv4]", "SingleStack", 1},
		{"headless without selector", "{clusterIP: None}", both, "[IPv4 IPv6]", "RequireDualStack", 1},
		{"prefer on one family", "{ipFamilyPolicy: PreferDualStack, ports: [{port: 1}]}", v6, "[IPv6]", "PreferDualStack", 1},
		{"external name", "{type: ExternalName, externalName: a.b}", both, "[]", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testStore(c.cfg)
			if got, want := said(s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: "+c.spec))), "service/a created"; got != want {
				t.Fatalf("got %s", got)
			}
			svc := s.State().Services[Name{"default", "a"}].Spec
			if got := fmt.Sprint(svc.IPFamilies); got != c.families {
				t.Errorf("got families %s, want %s", got, c.families)
			}
			if len(svc.ClusterIPs) != c.addresses {
				t.Errorf("got addresses %v, want %d", svc.ClusterIPs, c.addresses)
			}
			if c.policy != "" && *svc.IPFamilyPolicy != c.policy {
				t.Errorf("got policy %s, want %s", *svc.IPFamilyPolicy, c.policy)
			}
		})
	}
	s := testStore(v6)
	got := said(s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 1}]}")))
	if want := "this cluster is not configured for dual-stack services"; !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestServiceKeepsItsNumbersOverUpdates(t *testing.T) {
	s := testStore(Config{})
	apply := func(spec string) string {
		return said(s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: "+spec)))
	}
	get := func() corev1.ServiceSpec { return s.State().Services[Name{"default", "a"}].Spec }
	apply("{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{name: http, port: 80}]}")
	before := get()
	if before.HealthCheckNodePort == 0 || before.Ports[0].NodePort == 0 {
		t.Fatalf("got %+v, want node ports", before)
	}
	if got := apply("{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{name: web, port: 80}, {name: tls, port: 443}]}"); got != "service/a configured" {
		t.Fatal(got)
	}
	after := get()
	if after.ClusterIP != before.ClusterIP || after.Ports[0].NodePort != before.Ports[0].NodePort || after.HealthCheckNodePort != before.HealthCheckNodePort {
		t.Errorf("got %+v, want the numbers of %+v", after, before)
	}
	if got := apply("{type: ClusterIP, ports: [{port: 80}]}"); got != "service/a configured" {
		t.Fatal(got)
	}
	if p := get().Ports[0]; p.NodePort != 0 {
		t.Errorf("got node port %d of a ClusterIP Service", p.NodePort)
	}
	if n := len(s.alloc.ports.used); n != 0 {
		t.Errorf("%d node ports are still in use", n)
	}
	if got := apply("{clusterIP: 10.96.0.77, ports: [{port: 80}]}"); !strings.HasSuffix(got, `spec.clusterIPs[0]: Invalid value: ["10.96.0.77"]: may not change once set`) {
		t.Error(got)
	}
	if got := apply("{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}"); got != "service/a configured" || len(get().ClusterIPs) != 2 || get().ClusterIP != before.ClusterIP {
		t.Errorf("got %s, %v: want a second address", got, get().ClusterIPs)
	}
	if got := apply("{ipFamilyPolicy: PreferDualStack, ports: [{port: 80, protocol: TCP}]}"); got != "service/a unchanged" {
		t.Error(got)
	}
}

func TestNumbersAreTheSameAfterARestart(t *testing.T) {
	var first *corev1.Service
	for range 2 {
		s := testStore(Config{})
		s.Apply(load(t, web))
		svc := s.State().Services[Name{"shop", "web"}]
		if first == nil {
			first = svc
		}
		if svc.Spec.ClusterIP != first.Spec.ClusterIP || svc.Spec.Ports[0].NodePort != first.Spec.Ports[0].NodePort {
			t.Errorf("got %v, want %v", svc.Spec, first.Spec)
		}
	}
}

func TestTwoProtocolsShareANodePort(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec: {type: NodePort, ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53}, {name: c, port: 54}]}"))
	p := s.State().Services[Name{"default", "dns"}].Spec.Ports
	if p[0].NodePort != p[1].NodePort || p[0].NodePort == p[2].NodePort {
		t.Errorf("got %v", p)
	}
}

func TestPodAddressesAreNotReusedAtOnce(t *testing.T) {
	s := testStore(Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}})
	pod := func(name string) []Object {
		return load(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: "+name+"}\nspec: {containers: [{name: c, image: i}]}")
	}
	ip := func(name string) string {
		if p := s.State().Pods[Name{"default", name}]; p != nil {
			return p.Status.PodIP
		}
		return "none"
	}
	s.Apply(pod("a"))
	s.Delete(pod("a"))
	s.Apply(pod("b"))
	if got, want := ip("b"), "10.0.0.5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for i := range 10 { // .4 and .6 to .14 are free
		s.Apply(pod(fmt.Sprint("x", i)))
	}
	if got, want := ip("x9"), "10.0.0.4"; got != want {
		t.Errorf("got %s, want the address that was free longest, %s", got, want)
	}
	s.Apply(pod("late"))
	if got := ip("late"); got != "none" {
		t.Fatalf("got address %s from a full range", got)
	}
	if ps := s.State().Problems; len(ps) != 1 || ps[0].String() != "Pod default/late: every address of the pod CIDRs is in use" {
		t.Errorf("got %v", ps)
	}
	s.Delete(pod("x3"))
	if got := ip("late"); got == "none" {
		t.Error("the pod that waited for an address did not get the one that became free")
	}
	if ps := s.State().Problems; len(ps) != 0 {
		t.Errorf("got %v, want no problem any more", ps)
	}
}

func TestLoadBalancerStatus(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, ports: [{port: 80}]}"))
	in := s.State().Services[Name{"default", "a"}].Status.LoadBalancer.Ingress
	if len(in) != 1 || in[0].IP != "127.0.0.1" || *in[0].IPMode != corev1.LoadBalancerIPModeProxy {
		t.Errorf("got %v", in)
	}
}

func TestBuiltins(t *testing.T) {
	s := testStore(Config{})
	st := s.State()
	dns := st.Services[Name{"kube-system", "kube-dns"}]
	if got, want := fmt.Sprint(dns.Spec.ClusterIPs), "[10.96.0.10 fd00:10:96::a]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for n, ip := range map[Name]string{{"kube-system", "podgate-dns"}: "10.244.0.2", {"podgate-system", "podgate-ingress"}: "10.244.0.3"} {
		p := st.Pods[n]
		if p == nil || p.Status.PodIP != ip || !IsReady(p) || p.Annotations[LocalAnnotation] == "" {
			t.Errorf("%s: got %v", n, p)
		}
	}
	node := st.Nodes["podgate"]
	if node == nil || node.Labels[corev1.LabelHostname] != "podgate" || node.Status.Addresses[0].Address != "10.244.0.1" {
		t.Errorf("got node %v", node)
	}
	for _, ns := range []string{"default", "kube-system", "podgate-system"} {
		if st.Namespaces[ns].Labels[corev1.LabelMetadataName] != ns {
			t.Errorf("namespace %s: got %v", ns, st.Namespaces[ns])
		}
	}
	if got := said(s.Delete(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}"))); !strings.Contains(got, "forbidden") {
		t.Errorf("got %s", got)
	}
	pod := load(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: podgate-dns, namespace: kube-system}\nspec: {containers: [{name: c, image: i}]}")
	for _, got := range []string{said(s.Apply(pod)), said(s.Delete(pod))} {
		if !strings.Contains(got, "built into podgate") {
			t.Errorf("got %s", got)
		}
	}
	if got := said(s.Apply(load(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {a: b}}"))); got != "namespace/default configured" {
		t.Errorf("got %s", got)
	}
}

// The status of an Ingress says where it is reached, and at which ports.
func TestIngressStatus(t *testing.T) {
	s := testStore(Config{PublishedIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, IngressPorts: []uint16{8080, 8443}})
	s.Apply(load(t, "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: a}\nspec: {defaultBackend: {service: {name: a, port: {number: 80}}}}"))
	var got []string
	for _, in := range s.State().Ingresses[Name{"default", "a"}].Status.LoadBalancer.Ingress {
		for _, p := range in.Ports {
			got = append(got, fmt.Sprintf("%s:%d/%s", in.IP, p.Port, p.Protocol))
		}
	}
	if want := []string{"192.0.2.1:8080/TCP", "192.0.2.1:8443/TCP", "2001:db8::1:8080/TCP", "2001:db8::1:8443/TCP"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestServiceUpdates: what a Service becomes when another spec is applied over the
// one before, as kubectl apply and an API server have it.
func TestServiceUpdates(t *testing.T) {
	const ports = "ports: [{name: a, port: 80}]"
	type step struct{ spec, want string } // want: type, clusterIPs, families, policy, node ports; or what is wrong
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"type: node ports that are still there go", []step{
			{"{type: NodePort, clusterIP: 10.96.0.50, ports: [{port: 80, nodePort: 31001}]}", "NodePort [10.96.0.50] [IPv4] SingleStack [31001] 0"},
			{"{type: ClusterIP, ports: [{port: 80, nodePort: 31001}]}", "ClusterIP [10.96.0.50] [IPv4] SingleStack [0] 0"},
			{"{type: ClusterIP, ports: [{port: 80, nodePort: 31002}]}", "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		}},
		{"type: everything of a load balancer goes", []step{
			{"{type: LoadBalancer, clusterIP: 10.96.0.50, externalTrafficPolicy: Local, healthCheckNodePort: 31003, loadBalancerClass: x, allocateLoadBalancerNodePorts: false, " + ports + "}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [0] 31003"},
			{"{type: ClusterIP, externalTrafficPolicy: Local, healthCheckNodePort: 31003, loadBalancerClass: x, allocateLoadBalancerNodePorts: false, " + ports + "}", "ClusterIP [10.96.0.50] [IPv4] SingleStack [0] 0"},
		}},
		{"type: what was changed with it is refused", []step{
			{"{type: NodePort, externalTrafficPolicy: Local, " + ports + "}", ""},
			{"{type: ClusterIP, externalTrafficPolicy: Cluster, " + ports + "}", "spec.externalTrafficPolicy: Invalid value: \"Cluster\": may only be set for externally-accessible services"},
		}},
		{"type: an ExternalName has no address, and gets one again", []step{
			{"{clusterIP: 10.96.0.50, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, " + ports + "}", "ClusterIP [10.96.0.50] [IPv4] SingleStack [0] 0"},
			{"{type: ExternalName, externalName: a.b, clusterIP: 10.96.0.50, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, " + ports + "}", "ExternalName [] [] - [0] 0"},
			{"{clusterIP: 'fd00:10:96::50', " + ports + "}", "ClusterIP [fd00:10:96::50] [IPv6] SingleStack [0] 0"},
		}},
		{"ipFamilyPolicy: left out it stays", []step{
			{"{clusterIPs: [10.96.0.50, 'fd00:10:96::50'], ipFamilyPolicy: RequireDualStack, " + ports + "}", "ClusterIP [10.96.0.50 fd00:10:96::50] [IPv4 IPv6] RequireDualStack [0] 0"},
			{"{" + ports + "}", "ClusterIP [10.96.0.50 fd00:10:96::50] [IPv4 IPv6] RequireDualStack [0] 0"},
			{"{clusterIP: 10.96.0.50, " + ports + "}", "ClusterIP [10.96.0.50 fd00:10:96::50] [IPv4 IPv6] RequireDualStack [0] 0"},
			{"{ipFamilies: [IPv4], " + ports + "}", "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family"},
			{"{ipFamilies: [IPv4, IPv6], ipFamilyPolicy: SingleStack, " + ports + "}", "ClusterIP [10.96.0.50] [IPv4] SingleStack [0] 0"},
		}},
		{"ipFamilies: the first one stays", []step{
			{"{ipFamilies: [IPv6], " + ports + "}", ""},
			{"{ipFamilies: [IPv4], " + ports + "}", "spec.ipFamilies[0]: Invalid value: \"IPv4\": may not change once set"},
		}},
		{"ipFamilies: of a headless Service they may change", []step{
			{"{clusterIP: None, ipFamilyPolicy: SingleStack}", "ClusterIP [None] [IPv4] SingleStack [] 0"},
			{"{clusterIP: None, ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]}", "ClusterIP [None] [IPv6] SingleStack [] 0"},
			{"{clusterIP: None, selector: {a: b}, ipFamilies: [IPv6]}", "ClusterIP [None] [IPv6] SingleStack [] 0"},
		}},
		{"clusterIP: None stays None", []step{
			{"{clusterIP: None, selector: {a: b}, " + ports + "}", "ClusterIP [None] [IPv4] SingleStack [0] 0"},
			{"{selector: {a: b}, " + ports + "}", "ClusterIP [None] [IPv4] SingleStack [0] 0"},
			{"{clusterIP: 10.96.0.50, " + ports + "}", "spec.clusterIPs[0]: Invalid value: [\"10.96.0.50\"]: may not change once set"},
		}},
		{"nodePort: kept by the port's name, and by its number", []step{
			{"{type: NodePort, clusterIP: 10.96.0.50, ports: [{name: a, port: 80, nodePort: 31004}]}", "NodePort [10.96.0.50] [IPv4] SingleStack [31004] 0"},
			{"{type: NodePort, ports: [{name: a, port: 81}]}", "NodePort [10.96.0.50] [IPv4] SingleStack [31004] 0"},
			{"{type: NodePort, ports: [{name: b, port: 81}]}", "NodePort [10.96.0.50] [IPv4] SingleStack [31004] 0"},
			{"{type: LoadBalancer, ports: [{name: c, port: 81, protocol: UDP, nodePort: 31004}]}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [31004] 0"},
		}},
		{"allocateLoadBalancerNodePorts: what is allocated stays, what was asked for goes", []step{
			{"{type: LoadBalancer, clusterIP: 10.96.0.50, ports: [{name: a, port: 80, nodePort: 31005}]}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [31005] 0"},
			{"{type: LoadBalancer, ports: [{name: a, port: 80}]}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [31005] 0"},
			{"{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{name: a, port: 80}]}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [31005] 0"},
			{"{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{name: a, port: 80, nodePort: 31005}]}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [31005] 0"},
			{"{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{name: a, port: 80}]}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [0] 0"},
		}},
		{"healthCheckNodePort: it stays", []step{
			{"{type: LoadBalancer, clusterIP: 10.96.0.50, externalTrafficPolicy: Local, healthCheckNodePort: 31006, allocateLoadBalancerNodePorts: false, " + ports + "}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [0] 31006"},
			{"{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31007, allocateLoadBalancerNodePorts: false, " + ports + "}", "spec.healthCheckNodePort: Forbidden: field is immutable"},
			{"{type: LoadBalancer, externalTrafficPolicy: Local, allocateLoadBalancerNodePorts: false, " + ports + "}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [0] 31006"},
			{"{type: LoadBalancer, healthCheckNodePort: 31006, allocateLoadBalancerNodePorts: false, " + ports + "}", "LoadBalancer [10.96.0.50] [IPv4] SingleStack [0] 0"},
		}},
		{"loadBalancerClass: it stays while the type does", []step{
			{"{type: LoadBalancer, loadBalancerClass: x, " + ports + "}", ""},
			{"{type: LoadBalancer, " + ports + "}", "spec.loadBalancerClass: Invalid value: null: may not change once set"},
			{"{type: NodePort, " + ports + "}", ""},
			{"{type: LoadBalancer, loadBalancerClass: z, " + ports + "}", ""},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testStore(Config{})
			for _, st := range c.steps {
				changes := s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: "+st.spec))
				spec := s.State().Services[Name{"default", "a"}].Spec
				var nodePorts []int32
				for _, p := range spec.Ports {
					nodePorts = append(nodePorts, p.NodePort)
				}
				policy := corev1.IPFamilyPolicy("-")
				if spec.IPFamilyPolicy != nil {
					policy = *spec.IPFamilyPolicy
				}
				got := fmt.Sprint(spec.Type, " ", spec.ClusterIPs, " ", spec.IPFamilies, " ", policy, " ", nodePorts, " ", spec.HealthCheckNodePort)
				if ps := changes[0].Problems; len(ps) > 0 {
					got = ps[0].Field + ": " + ps[0].Err
				}
				if got != st.want && (st.want != "" || len(changes[0].Problems) > 0) {
					t.Errorf("%s:\ngot  %s\nwant %s", st.spec, got, st.want)
				}
			}
		})
	}
}
