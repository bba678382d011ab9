package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/kube"
	"podgate/stack/packet"
)

// TestSharing changes one thing at a time: the pods named get new rules, all
// others keep their pointers.
func TestSharing(t *testing.T) {
	pod := func(st *kube.State, name kube.Name, change func(*corev1.Pod)) {
		st.Pods = maps.Clone(st.Pods)
		p := st.Pods[name].DeepCopy()
		change(p)
		st.Pods[name] = p
	}
	tests := []struct {
		name   string
		change func(st *kube.State)
		anew   string
	}{
		{"nothing", func(st *kube.State) {}, "[]"},
		{"objects written anew", func(st *kube.State) {
			for n := range st.Pods {
				pod(st, n, func(p *corev1.Pod) { p.ResourceVersion = "2"; p.Status.Message = "hello" })
			}
			for n, np := range st.NetworkPolicies {
				st.NetworkPolicies = maps.Clone(st.NetworkPolicies)
				st.NetworkPolicies[n] = np.DeepCopy()
			}
			st.Namespaces = maps.Clone(st.Namespaces)
			st.Namespaces["ops"] = st.Namespaces["ops"].DeepCopy()
		}, "[]"},
		{"a label that nobody selects by", func(st *kube.State) {
			pod(st, kube.Name{Namespace: "ops", Name: "probe"}, func(p *corev1.Pod) { p.Labels["note"] = "x" })
		}, "[]"},
		{"a peer leaves the set", func(st *kube.State) {
			pod(st, kube.Name{Namespace: "ops", Name: "web"}, func(p *corev1.Pod) { p.Labels = nil })
		}, "[shop/db]"},
		{"a peer is gone", func(st *kube.State) {
			st.Pods = maps.Clone(st.Pods)
			delete(st.Pods, kube.Name{Namespace: "ops", Name: "web"})
		}, "[shop/db]"},
		{"a namespace is no longer selected", func(st *kube.State) {
			st.Namespaces = maps.Clone(st.Namespaces)
			st.Namespaces["ops"] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ops"}}
		}, "[shop/db]"},
		{"a policy for others", func(st *kube.State) { apply(t, st, "dev/deny", "podSelector: {}") }, "[dev/client]"},
		{"one more policy", func(st *kube.State) { apply(t, st, "shop/more", "podSelector: {matchLabels: {app: web}}") }, "[shop/web]"},
		{"a policy is gone", func(st *kube.State) { st.NetworkPolicies = nil }, "[shop/db]"},
		{"a policy is written differently", func(st *kube.State) {
			apply(t, st, "shop/db", "{podSelector: {matchLabels: {app: db}}, ingress: [{}]}")
		}, "[shop/db]"},
		{"a policy selects another pod", func(st *kube.State) {
			apply(t, st, "shop/db", "{podSelector: {matchLabels: {app: web}}}")
		}, "[shop/db shop/web]"},
		{"the subject's named port", func(st *kube.State) {
			pod(st, kube.Name{Namespace: "shop", Name: "web"}, func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort = 81 })
		}, "[shop/web]"},
		{"the pod's address", func(st *kube.State) {
			pod(st, kube.Name{Namespace: "dev", Name: "client"}, func(p *corev1.Pod) { p.Status.PodIPs = p.Status.PodIPs[:1] })
		}, "[dev/client]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := cluster()
			apply(t, st, "shop/db", "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: web}}}]}]}")
			before, _ := Compile(nil, st, Config{NodeAddrs: nodeAddrs})
			tt.change(st)
			after, _ := Compile(before, st, Config{NodeAddrs: nodeAddrs})
			if got := fmt.Sprint(renewed(before, after)); got != tt.anew {
				t.Errorf("pods with new rules: got %v, want %v", got, tt.anew)
			}
			if tt.anew != "[]" && after.Same(before) {
				t.Error("the Tables are the same")
			}
			if tt.name == "objects written anew" && !after.Same(before) {
				t.Error("the Tables are not the same")
			}
			compareNaive(t, after, st)
		})
	}
}

// renewed are the pods of after that are not the same pointer in before.
func renewed(before, after *Table) []kube.Name {
	var names []kube.Name
	for a := range after.peers {
		if p := after.Pod(a); p != before.Pod(a) {
			names = append(names, p.Name)
		}
	}
	slices.SortFunc(names, compareNames)
	return slices.Compact(names)
}

func TestNodeAddressesConcernEverybody(t *testing.T) {
	st := cluster()
	before, _ := Compile(nil, st, Config{})
	after, _ := Compile(before, st, Config{NodeAddrs: []netip.Addr{netip.MustParseAddr("198.51.100.9")}})
	if got, want := len(renewed(before, after)), 5; got != want {
		t.Errorf("%d pods with new rules, want %d", got, want)
	}
}

// big is a cluster of n pods in n/100 namespaces with a policy for each ten pods.
func big(n int) *kube.State {
	st := &kube.State{Namespaces: map[string]*corev1.Namespace{}, Pods: map[kube.Name]*corev1.Pod{}, NetworkPolicies: map[kube.Name]*networkingv1.NetworkPolicy{}}
	for i := range n {
		space, app := fmt.Sprintf("ns-%d", i/100), fmt.Sprintf("app-%d", i/10)
		st.Namespaces[space] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: space, Labels: map[string]string{corev1.LabelMetadataName: space, "team": "t" + space}}}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: space, Name: fmt.Sprintf("pod-%d", i), Labels: map[string]string{"app": app}}}
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)}, {IP: fmt.Sprintf("fd00::%x", i)}}
		st.Pods[kube.Name{Namespace: space, Name: p.Name}] = p
		if i%10 == 0 {
			np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: space, Name: app}}
			np.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
			np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
				{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i/10+1)}}}}},
				{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "tns-1"}}}}},
			}
			st.NetworkPolicies[kube.Name{Namespace: space, Name: app}] = np
		}
	}
	return st
}

func BenchmarkCompileAll(b *testing.B) {
	st := big(10_000)
	for b.Loop() {
		Compile(nil, st, Config{})
	}
}

func BenchmarkCompileOnePod(b *testing.B) {
	st := big(10_000)
	tab, _ := Compile(nil, st, Config{})
	name := kube.Name{Namespace: "ns-7", Name: "pod-777"}
	one, two := st.Pods, maps.Clone(st.Pods)
	two[name] = one[name].DeepCopy()
	two[name].Labels = map[string]string{"app": "app-70"}
	for i := 0; b.Loop(); i++ {
		st.Pods = one
		if i%2 == 0 {
			st.Pods = two
		}
		tab, _ = Compile(tab, st, Config{})
	}
}

func BenchmarkJudge(b *testing.B) {
	st := big(10_000)
	tab, _ := Compile(nil, st, Config{})
	var addrs []packet.Addr
	for _, p := range st.Pods {
		addrs = append(addrs, addrOf(st, p.Status.PodIPs[0].IP))
	}
	for i := 0; b.Loop(); i++ {
		tab.Judge(Ingress, tab.Pod(addrs[i%len(addrs)]), addrs[(i+1)%len(addrs)], packet.TCP, 80, 0)
	}
}

// busy is a cluster of 1,000 pods in 10 namespaces with n policies, of which
// each pod is selected by as many as there are to a pod.
func busy(n int) *kube.State {
	st := big(1000)
	st.NetworkPolicies = map[kube.Name]*networkingv1.NetworkPolicy{}
	for i := range n {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", i%10), Name: fmt.Sprintf("p-%d", i)}}
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": fmt.Sprintf("app-%d", i%10*10+i/10%10)}
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
			{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprintf("tns-%d", i/100%10)}}},
			{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.200.%d.0/24", i%256)}},
		}}}
		st.NetworkPolicies[kube.Name{Namespace: np.Namespace, Name: np.Name}] = np
	}
	return st
}

// crowded is the same with all policies in one namespace, about all of its pods.
func crowded(n int) *kube.State {
	st := busy(n)
	all := map[kube.Name]*networkingv1.NetworkPolicy{}
	for name, np := range st.NetworkPolicies {
		name.Namespace, np.Namespace = "ns-7", "ns-7"
		np.Spec.PodSelector = metav1.LabelSelector{}
		np.Spec.Ingress[0].Ports = []networkingv1.NetworkPolicyPort{{Port: ptr(intstr.FromInt(1000 + len(all)))}}
		all[name] = np
	}
	st.NetworkPolicies = all
	return st
}

// What a verdict costs, and what one changed policy costs, among many.
func BenchmarkPolicies(b *testing.B) { benchmarkPolicies(b, busy) }

// And if all are about the same pods.
func BenchmarkPoliciesOfOnePod(b *testing.B) { benchmarkPolicies(b, crowded) }

func benchmarkPolicies(b *testing.B, cluster func(n int) *kube.State) {
	for _, n := range []int{0, 100, 1000, 10_000} {
		st := cluster(n)
		tab, _ := Compile(nil, st, Config{})
		b.Run(fmt.Sprintf("judge/%d", n), func(b *testing.B) {
			var addrs []packet.Addr
			for _, p := range st.Pods {
				addrs = append(addrs, addrOf(st, p.Status.PodIPs[0].IP))
			}
			for i := 0; b.Loop(); i++ {
				tab.Judge(Ingress, tab.Pod(addrs[i%len(addrs)]), addrs[(i+501)%len(addrs)], packet.TCP, 80, 0)
			}
		})
		b.Run(fmt.Sprintf("change/%d", n), func(b *testing.B) {
			one, two := st.NetworkPolicies, maps.Clone(st.NetworkPolicies)
			name := kube.Name{Namespace: "ns-7", Name: "new"}
			two[name] = &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-7", Name: "new"}}
			for i := 0; b.Loop(); i++ {
				if st.NetworkPolicies = two; i%2 == 1 {
					st.NetworkPolicies = one
				}
				tab, _ = Compile(tab, st, Config{})
			}
		})
	}
}
