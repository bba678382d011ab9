package kube

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func balancerOf(t *testing.T, s *Store, name string) string {
	t.Helper()
	var all []string
	for _, in := range s.State().Services[Name{"default", name}].Status.LoadBalancer.Ingress {
		all = append(all, in.IP+" "+string(*in.IPMode))
	}
	return strings.Join(all, ", ")
}

func TestLoadBalancersGetAddressesOfTheirOwn(t *testing.T) {
	s := testStore(Config{LoadBalancerCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.8/31"), netip.MustParsePrefix("2001:db8::/126")}})
	svc := func(name, extra string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {type: LoadBalancer, ports: [{port: 80}]" + extra + "}\n"
	}
	apply := func(text string) { s.Apply(load(t, text)) }
	apply(svc("a", ", loadBalancerIP: 198.51.100.9"))
	if got, want := balancerOf(t, s, "a"), "198.51.100.9 VIP"; got != want {
		t.Errorf("spec.loadBalancerIP: got %q, want %q", got, want)
	}
	apply(svc("b", ", ipFamilyPolicy: PreferDualStack"))
	if got := balancerOf(t, s, "b"); !strings.HasPrefix(got, "198.51.100.8 VIP, 2001:db8::") {
		t.Errorf("both families: got %q", got)
	}
	apply(svc("c", ""))
	if got := balancerOf(t, s, "c"); got != "" {
		t.Errorf("the ranges are full: got %q", got)
	}
	apply(svc("b", ", sessionAffinity: ClientIP"))
	if got := balancerOf(t, s, "b"); !strings.HasPrefix(got, "198.51.100.8 VIP") {
		t.Errorf("changed Service: got %q, want its address kept", got)
	}
	apply(strings.Replace(svc("a", ""), "LoadBalancer", string(corev1.ServiceTypeClusterIP), 1))
	apply(svc("c", ", sessionAffinity: ClientIP"))
	if got, want := balancerOf(t, s, "c"), "198.51.100.9 VIP"; got != want {
		t.Errorf("freed address: got %q, want %q", got, want)
	}
}

func TestLoadBalancerOnLoopbackIsAListener(t *testing.T) {
	s := testStore(Config{LoadBalancerCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.1.7/32")}})
	s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n"))
	if got, want := balancerOf(t, s, "a"), "127.0.1.7 Proxy"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
