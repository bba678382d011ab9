package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
	"podgate/stack/packet"
)

func kubeName(n string) kube.Name { return kube.Name{Namespace: "shop", Name: n} }

func (w *world) lookup(t *Table, dst string) *ServicePort {
	w.t.Helper()
	ap := netip.MustParseAddrPort(dst)
	sp, o := t.Lookup(packet.AddrFrom(ap.Addr()), packet.TCP, ap.Port())
	if o != Translate {
		w.t.Fatalf("lookup of %s: %v", dst, o)
	}
	return sp
}

func TestUnchangedIsTheSamePointer(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, nodePort(30080))
	w.service("api", 2)
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"))
	w.slice("api-1", "api", ep("10.244.0.21"))
	tab, _ := w.compile()
	web, api := w.lookup(tab, "10.96.0.1:80"), w.lookup(tab, "10.96.0.2:80")
	if np := w.lookup(tab, "10.244.0.1:30080"); np != web {
		t.Error("NodePort and ClusterIP of one port are different ServicePorts")
	}
	unchanged := func(what string) {
		t.Helper()
		tab, _ := w.compile()
		if w.lookup(tab, "10.96.0.1:80") != web || w.lookup(tab, "10.96.0.2:80") != api || w.lookup(tab, "10.244.0.1:30080") != web {
			t.Errorf("%s: a ServicePort was made anew", what)
		}
	}
	unchanged("nothing changed")

	put(&w.st.Services, kubeName("web"), w.st.Services[kubeName("web")].DeepCopy())
	w.st.Services[kubeName("web")].ResourceVersion = "7"
	w.st.EndpointSlices = w.st.EndpointSlices.With(kubeName("web-1"), w.st.EndpointSlices.Get(kubeName("web-1")).DeepCopy())
	unchanged("objects written anew with the same content")

	w.slice("web-1", "web", ep("10.244.0.12"), ep("10.244.0.11"))
	unchanged("endpoints in another order")

	w.slice("web-1", "web", ep("10.244.0.11"))
	w.slice("web-2", "web", ep("10.244.0.12"))
	unchanged("endpoints spread over two slices")

	w.service("new", 3)
	unchanged("another Service appears")
	put(&w.st.Services, kubeName("new"), nil)
	unchanged("another Service goes")

	w.slice("web-2", "web", ep("10.244.0.12", unready))
	tab, _ = w.compile()
	now := w.lookup(tab, "10.96.0.1:80")
	if now == web {
		t.Fatal("an endpoint's readiness changed, but the ServicePort is the same pointer")
	}
	if now.ID != web.ID {
		t.Error("the port's ID changed")
	}
	for i := range web.Endpoints {
		if now.Endpoints[i].Backend != web.Endpoints[i].Backend {
			t.Errorf("backend %s was made anew", web.Endpoints[i].AddrPort())
		}
	}
	if w.lookup(tab, "10.96.0.2:80") != api {
		t.Error("another Service's port was made anew")
	}
}

func TestEarlierTableStaysAsItWas(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, nodePort(30080))
	w.service("api", 2, nodePort(30080))
	w.slice("web-1", "web", ep("10.244.0.11"))
	first, _ := w.compile()
	before := dump(first)
	w.slice("web-1", "web", ep("10.244.0.12"))
	w.compile()
	put(&w.st.Services, kubeName("api"), nil)
	w.compile()
	put(&w.st.Services, kubeName("web"), nil)
	last, _ := w.compile()
	if after := dump(first); !slices.Equal(before, after) {
		t.Errorf("an earlier Table changed:\ngot  %q\nwant %q", after, before)
	}
	if got := reached(last, addr("10.96.0.1"), packet.TCP, 80, false); got != "unallocated" {
		t.Errorf("deleted Service: got %s, want unallocated", got)
	}
}

func TestNodeAndZoneChange(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, internalLocal)
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12", elsewhere))
	w.service("api", 2)
	w.slice("api-1", "api", ep("10.244.0.21", zones("z1")), ep("10.244.0.22", zones("z2")))
	w.compile()
	w.cfg.NodeName = "there"
	w.st.Nodes = map[string]*corev1.Node{"there": {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelTopologyZone: "z2"}}}}
	tab, _ := w.compile()
	if got, want := reached(tab, addr("10.96.0.1"), packet.TCP, 80, false), "[10.244.0.12:8080]"; got != want {
		t.Errorf("internalTrafficPolicy Local: got %s, want %s", got, want)
	}
	if got, want := reached(tab, addr("10.96.0.2"), packet.TCP, 80, false), "[10.244.0.22:8080]"; got != want {
		t.Errorf("zone hints: got %s, want %s", got, want)
	}
}

// big is n Services of three endpoints each.
func big(t testing.TB, n int) *world {
	w, one := newWorld(t), newWorld(t)
	services, eps := map[kube.Name]*corev1.Service{}, map[kube.Name]*discoveryv1.EndpointSlice{}
	for i := range n {
		name := fmt.Sprintf("svc-%05d", i)
		a := func(net, j int) string { return fmt.Sprintf("10.%d.%d.%d", net, (i*4+j)>>8&255, (i*4+j)&255) }
		one.st = kube.State{}
		s := one.service(name, 1)
		s.Spec.ClusterIP = a(96+i>>14, 0)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		services[kubeName(name)] = s
		eps[kubeName(name)] = one.slice(name, name, ep(a(150+i>>14, 1)), ep(a(150+i>>14, 2)), ep(a(150+i>>14, 3)))
	}
	w.st.Services, w.st.EndpointSlices = services, kube.MapOf(eps)
	return w
}

func BenchmarkCompileOneEndpoint(b *testing.B) {
	w := big(b, 30_000)
	tab, _ := Compile(nil, &w.st, w.cfg)
	other := w.slice("svc-00007", "svc-00007", ep("10.244.0.7"))
	one := w.st.EndpointSlices
	other = other.DeepCopy()
	other.Endpoints[0].Conditions.Ready = ptr(false)
	two := one.With(kubeName("svc-00007"), other)
	for i := 0; b.Loop(); i++ {
		w.st.EndpointSlices = one
		if i%2 == 0 {
			w.st.EndpointSlices = two
		}
		tab, _ = Compile(tab, &w.st, w.cfg)
	}
}

func BenchmarkCompileAll(b *testing.B) {
	w := big(b, 30_000)
	for b.Loop() {
		Compile(nil, &w.st, w.cfg)
	}
}

func BenchmarkLookup(b *testing.B) {
	w := big(b, 30_000)
	tab, _ := Compile(nil, &w.st, w.cfg)
	var dsts []packet.Addr
	for _, s := range w.st.Services {
		dsts = append(dsts, addr(s.Spec.ClusterIP))
	}
	for i := 0; b.Loop(); i++ {
		decide(tab, tcp(client, dsts[i%len(dsts)], 80), false)
	}
}

// Conversations wait for their next packet, but where Services count them or end
// them by the clock.
func TestTablesHurryForWhoCountsOrDrains(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1)
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"))
	first, _ := w.compile()
	step := func(what string, want bool, change func()) {
		t.Helper()
		change()
		prev := w.prev
		now, _ := w.compile()
		if got := now.Hurries(prev); got != want {
			t.Errorf("%s: got %t, want %t", what, got, want)
		}
	}
	step("an endpoint goes", false, func() { w.slice("web-1", "web", ep("10.244.0.11")) })
	step("a drain time comes", true, func() { w.service("web", 1, annotated(annotationDrain, "30s")) })
	step("an endpoint comes back", true, func() { w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12")) })
	step("another Service comes", false, func() { w.service("api", 2) })
	step("the drain time goes", true, func() { w.service("web", 1) })
	step("an endpoint goes again", false, func() { w.slice("web-1", "web", ep("10.244.0.11")) })
	step("conversations are counted", true, func() { w.service("web", 1, annotated(annotationBalance, "least-connections")) })
	if now, _ := w.compile(); !now.Hurries(first) || !now.Hurries(nil) {
		t.Error("what happened between two Tables is not known, but they do not hurry")
	}
}
