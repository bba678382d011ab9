package main

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// benchPolicy is a NetworkPolicy in few words.
type benchPolicy struct {
	name       string
	namespace  int
	app        int // of the pods that it selects; -1: all of the namespace
	peerSpace  int
	peerApp    int
	block      netip.Prefix // also a peer
	first, end int          // TCP ports
}

const benchGroups = 10 // namespaces, and apps in each

// policyNumber is policy i of n; with is another text of the same. The last one
// admits the client to the server: pods 1 and 0.
func policyNumber(i, n, with int) benchPolicy {
	if i == n-1 {
		return benchPolicy{name: "zz", peerSpace: 1, first: 5000, end: 5999, block: netip.MustParsePrefix("198.51.100.0/24")}
	}
	j := i / benchGroups
	p := benchPolicy{
		name: fmt.Sprintf("p%05d", i), namespace: i % benchGroups, app: j % benchGroups,
		peerSpace: j / 10 % benchGroups, peerApp: j / 100 % benchGroups,
		block: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + with), byte(i >> 8), byte(i)}), 32),
		first: 8000 + i%100, end: 8000 + i%100,
	}
	if j/benchGroups%10 == 9 {
		p.app = -1
	}
	return p
}

func (p benchPolicy) object() *networkingv1.NetworkPolicy {
	tcp, port, end := corev1.ProtocolTCP, intstr.FromInt(p.first), int32(p.end)
	np := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: benchSpace(p.namespace), Name: p.name},
	}
	if p.app >= 0 {
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": benchApp(p.app)}
	}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port, EndPort: &end}},
		From: []networkingv1.NetworkPolicyPeer{
			{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: benchSpace(p.peerSpace)}},
				PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": benchApp(p.peerApp)}},
			},
			{IPBlock: &networkingv1.IPBlock{CIDR: p.block.String()}},
		},
	}}
	return np
}

func benchSpace(i int) string { return fmt.Sprintf("ns-%d", i) }
func benchApp(i int) string   { return fmt.Sprintf("app-%d", i) }

// benchPlace is where pod k stands.
func benchPlace(k int) (namespace, app int) { return k % benchGroups, k / benchGroups % benchGroups }

// benchPod is pod k: 0 is the server and 1 the client.
func benchPod(k int) *corev1.Pod {
	namespace, app := benchPlace(k)
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: benchSpace(namespace), Name: fmt.Sprintf("pod-%d", k), Labels: map[string]string{"app": benchApp(app)}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "none"}}},
	}
}

// The rules are what the policies say in as few steps as nftables takes: a map
// from the destination to the chain of its pods, which all pods of an app share,
// and sets for selectors.

func nftPolicyRules(n int) string {
	var b strings.Builder
	b.WriteString("table ip netpol {\n")
	spaces := make([][benchGroups][]string, benchGroups)
	for k := range policyPods {
		namespace, app := benchPlace(k)
		spaces[namespace][app] = append(spaces[namespace][app], kernelPod(k))
	}
	for namespace, apps := range spaces {
		for app, pods := range apps {
			fmt.Fprintf(&b, "set s-%d-%d { type ipv4_addr; elements = { %s } }\n", namespace, app, strings.Join(pods, ", "))
		}
	}
	jumps := map[[2]int][]string{}
	for i := range n {
		p := policyNumber(i, n, 0)
		fmt.Fprintf(&b, "chain %s {\n%s}\n", p.name, p.nft(""))
		for app := range benchGroups {
			if p.app < 0 || p.app == app {
				at := [2]int{p.namespace, app}
				jumps[at] = append(jumps[at], p.name)
			}
		}
	}
	var elements []string
	for namespace, apps := range spaces {
		for app, pods := range apps {
			list := jumps[[2]int{namespace, app}]
			if len(list) == 0 {
				continue
			}
			fmt.Fprintf(&b, "chain c-%d-%d {\n", namespace, app)
			for _, name := range list {
				fmt.Fprintf(&b, "jump %s\n", name)
			}
			b.WriteString("drop\n}\n")
			for _, pod := range pods {
				elements = append(elements, fmt.Sprintf("%s : jump c-%d-%d", pod, namespace, app))
			}
		}
	}
	b.WriteString("map pods { type ipv4_addr : verdict;")
	if len(elements) > 0 {
		fmt.Fprintf(&b, " elements = { %s }", strings.Join(elements, ", "))
	}
	b.WriteString(" }\nchain forward {\ntype filter hook forward priority 0;\nct state established,related accept\nip daddr vmap @pods\n}\n}\n")
	return b.String()
}

// nft are the rules of a policy; before stands in front of each.
func (p benchPolicy) nft(before string) string {
	return fmt.Sprintf("%[1]sip saddr @s-%[2]d-%[3]d tcp dport %[5]d-%[6]d accept\n%[1]sip saddr %[4]s tcp dport %[5]d-%[6]d accept\n",
		before, p.peerSpace, p.peerApp, p.block, p.first, p.end)
}

// nftPolicyChange writes policy i anew.
func nftPolicyChange(i, with int) string {
	p := policyNumber(i, -1, with)
	return fmt.Sprintf("flush chain ip netpol %s\n%s", p.name, p.nft("add rule ip netpol "+p.name+" "))
}

// kernelPod is the address of pod k behind the kernel's router.
func kernelPod(k int) string {
	switch k {
	case 0:
		return "10.244.2.5"
	case 1:
		return "10.244.1.4"
	}
	return netip.AddrFrom4([4]byte{10, 244, byte(16 + k>>8), byte(k)}).String()
}
