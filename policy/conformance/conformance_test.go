// Package conformance compares the verdicts of package policy with those of
// sigs.k8s.io/kube-network-policies, on random clusters. It is a module of its
// own so that podgate does not depend on what it is compared with.
package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"

	"podgate/kube"
	"podgate/policy"
	"podgate/stack/packet"
)

// clusters is how many random clusters are compared.
const clusters = 400

var protocols = map[corev1.Protocol]packet.Proto{corev1.ProtocolTCP: packet.TCP, corev1.ProtocolUDP: packet.UDP, corev1.ProtocolSCTP: packet.SCTP}

func TestVerdictsAreThoseOfKubeNetworkPolicies(t *testing.T) {
	asked, denied := 0, 0
	for seed := range uint64(clusters) {
		g := &generator{rand.New(rand.NewPCG(seed, 1))}
		st := g.cluster()
		table, problems := policy.Compile(nil, st, policy.Config{})
		if len(problems) > 0 {
			t.Fatalf("seed %d: %v", seed, problems)
		}
		for _, pod := range st.Pods {
			for _, dir := range []policy.Direction{policy.Ingress, policy.Egress} {
				for range 40 {
					q := g.question(st, dir, pod)
					got := table.Judge(dir, table.Pod(packet.AddrFrom(q.own)), packet.AddrFrom(q.peer), protocols[q.proto], q.port, 0).Allowed
					want := q.theirs(st)
					if got != want {
						t.Fatalf("seed %d: %s of %s/%s, peer %s, %s port %d: allowed %t, want %t", seed, dir, pod.Namespace, pod.Name, q.peer, q.proto, q.port, got, want)
					}
					asked++
					if !got {
						denied++
					}
				}
			}
		}
	}
	if denied == 0 || denied == asked {
		t.Errorf("%d of %d were denied: nothing was compared", denied, asked)
	}
}

// question is one conversation, seen from one end.
type question struct {
	dir       policy.Direction
	pod       *corev1.Pod
	own, peer netip.Addr
	far       *corev1.Pod // nil: outside
	proto     corev1.Protocol
	port      uint16
}

func (g *generator) question(st *kube.State, dir policy.Direction, pod *corev1.Pod) question {
	q := question{dir: dir, pod: pod, own: netip.MustParseAddr(pod.Status.PodIPs[0].IP)}
	q.proto = pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	q.port = pick[uint16](g, 80, 81, 82, 8080)
	q.peer = netip.MustParseAddr(pick(g, "192.0.2.1", "192.0.2.129", "198.51.100.1"))
	if g.IntN(4) > 0 {
		name := kube.Name{Namespace: pick(g, "a", "b", "c"), Name: pick(g, "p", "q", "r")}
		if far := st.Pods[name]; far != pod {
			q.far, q.peer = far, netip.MustParseAddr(far.Status.PodIPs[0].IP)
		}
	}
	return q
}

// theirs is the other implementation's verdict; selecting the pod's policies is
// left to its caller.
func (q question) theirs(st *kube.State) bool {
	var selecting []*networkingv1.NetworkPolicy
	for n, np := range st.NetworkPolicies {
		s, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
		if err == nil && n.Namespace == q.pod.Namespace && s.Matches(labels.Set(q.pod.Labels)) {
			selecting = append(selecting, np)
		}
	}
	info := func(p *corev1.Pod) *api.PodInfo {
		if p == nil {
			return nil
		}
		return api.NewPodInfo(p, st.Namespaces[p.Namespace].Labels, nil, "")
	}
	ip := q.peer.AsSlice()
	if q.dir == policy.Ingress {
		return networkpolicy.EvaluatePolicyDirection(context.Background(), selecting, networkingv1.PolicyTypeIngress, info(q.pod), int(q.port), info(q.far), ip, 40000, q.proto)
	}
	return networkpolicy.EvaluatePolicyDirection(context.Background(), selecting, networkingv1.PolicyTypeEgress, info(q.pod), 40000, info(q.far), ip, int(q.port), q.proto)
}

// generator makes small clusters in which things meet.
type generator struct{ *rand.Rand }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) labels() map[string]string {
	m := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if g.IntN(3) > 0 {
			m[k] = pick(g, "x", "y", "z")
		}
	}
	return m
}

func (g *generator) cluster() *kube.State {
	st := &kube.State{Namespaces: map[string]*corev1.Namespace{}, Pods: map[kube.Name]*corev1.Pod{}, NetworkPolicies: map[kube.Name]*networkingv1.NetworkPolicy{}}
	i := 4
	for _, ns := range []string{"a", "b", "c"} {
		l := g.labels()
		l[corev1.LabelMetadataName] = ns
		st.Namespaces[ns] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: l}}
		for _, name := range []string{"p", "q", "r"} {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: g.labels()}}
			p.Status.Phase = corev1.PodRunning
			p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.244.0.%d", i)}}
			c := corev1.Container{Name: "c"}
			for range g.IntN(3) {
				c.Ports = append(c.Ports, corev1.ContainerPort{Name: pick(g, "http", "dns"), ContainerPort: pick[int32](g, 80, 81, 8080), Protocol: pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP)})
			}
			p.Spec.Containers = []corev1.Container{c}
			st.Pods[kube.Name{Namespace: ns, Name: name}] = p
			i++
		}
		for n := range g.IntN(4) {
			np := g.policy()
			np.Namespace, np.Name = ns, fmt.Sprintf("n%d", n)
			st.NetworkPolicies[kube.Name{Namespace: ns, Name: np.Name}] = np
		}
	}
	return st
}

func (g *generator) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch g.IntN(3) {
	case 0:
		s.MatchLabels = map[string]string{pick(g, "app", "tier"): pick(g, "x", "y", "z")}
	case 1:
		e := metav1.LabelSelectorRequirement{Key: pick(g, "app", "tier"), Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{"x", "y"}[:1+g.IntN(2)]
		}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{e}
	}
	return s
}

// policy is as an API server would hand it out: defaulted.
func (g *generator) policy() *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{}
	np.Spec.PodSelector = *g.selector()
	np.Spec.PolicyTypes = pick(g, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	for range g.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: g.ports(), From: g.peers()})
	}
	for range g.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: g.ports(), To: g.peers()})
	}
	return np
}

func (g *generator) ports() (ps []networkingv1.NetworkPolicyPort) {
	for range g.IntN(3) {
		p := networkingv1.NetworkPolicyPort{Protocol: new(pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))}
		switch g.IntN(4) {
		case 1:
			p.Port = new(intstr.FromInt32(int32(80 + g.IntN(3))))
		case 2:
			p.Port, p.EndPort = new(intstr.FromInt32(80)), new(int32(80+g.IntN(3)))
		case 3:
			p.Port = new(intstr.FromString(pick(g, "http", "dns")))
		}
		ps = append(ps, p)
	}
	return ps
}

func (g *generator) peers() (ps []networkingv1.NetworkPolicyPeer) {
	for range g.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch g.IntN(4) {
		case 0:
			p.PodSelector = g.selector()
		case 1:
			p.NamespaceSelector = g.selector()
		case 2:
			p.PodSelector, p.NamespaceSelector = g.selector(), g.selector()
		case 3:
			p.IPBlock = pick(g, &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.244.0.0/29"}}, &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}},
				&networkingv1.IPBlock{CIDR: "10.244.0.4/30"}, &networkingv1.IPBlock{CIDR: "::/0"})
		}
		ps = append(ps, p)
	}
	return ps
}
