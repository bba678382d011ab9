package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/kube"
	"podgate/stack/packet"
)

// dice makes choices from fuzz input; at its end every choice is the first.
type dice struct{ in []byte }

func (d *dice) n(limit int) int {
	if len(d.in) == 0 {
		return 0
	}
	b := d.in[0]
	d.in = d.in[1:]
	return int(b) % limit
}

func (d *dice) maybe() bool { return d.n(2) == 1 }

func pick[T any](d *dice, from ...T) T { return from[d.n(len(from))] }

var nodeAddrs = []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:10:244::1")}

// The small world that random clusters are made of, so that things meet.
var (
	spaces = []string{"a", "b", "c"}
	values = []string{"x", "y", "z"}
	keys   = []string{"app", "tier"}
	cidrs  = []string{"0.0.0.0/0", "10.244.0.0/16", "10.244.0.4/30", "10.244.0.6/32", "192.0.2.0/24", "192.0.2.128/25", "192.0.2.129/32", "10.244.0.1/32",
		"::/0", "fd00:10:244::/64", "fd00:10:244::4/126", "2001:db8::/32", "2001:db8:1::/48", "255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"}
	names = []string{"http", "dns"}
)

func (d *dice) labels() map[string]string {
	m := map[string]string{}
	for _, k := range keys {
		if d.maybe() {
			m[k] = pick(d, values...)
		}
	}
	return m
}

func (d *dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if d.maybe() {
		s.MatchLabels = d.labels()
	}
	if d.maybe() {
		e := metav1.LabelSelectorRequirement{Key: pick(d, keys...), Operator: pick(d, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = values[:1+d.n(2)]
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (d *dice) protocol() corev1.Protocol {
	return pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func (d *dice) ports() []networkingv1.NetworkPolicyPort {
	var ps []networkingv1.NetworkPolicyPort
	for range d.n(3) {
		var p networkingv1.NetworkPolicyPort
		if d.maybe() {
			p.Protocol = ptr(d.protocol())
		}
		switch d.n(4) {
		case 1:
			p.Port = ptr(intstr.FromInt32(int32(80 + d.n(3))))
		case 2:
			p.Port = ptr(intstr.FromInt32(80))
			p.EndPort = ptr(int32(80 + d.n(3)))
		case 3:
			p.Port = ptr(intstr.FromString(pick(d, names...)))
		}
		ps = append(ps, p)
	}
	return ps
}

func (d *dice) peers() []networkingv1.NetworkPolicyPeer {
	var ps []networkingv1.NetworkPolicyPeer
	for range d.n(3) {
		var p networkingv1.NetworkPolicyPeer
		switch d.n(4) {
		case 0:
			p.PodSelector = d.selector()
		case 1:
			p.NamespaceSelector = d.selector()
		case 2:
			p.PodSelector, p.NamespaceSelector = d.selector(), d.selector()
		case 3:
			p.IPBlock = &networkingv1.IPBlock{CIDR: pick(d, cidrs...)}
			for range d.n(3) {
				p.IPBlock.Except = append(p.IPBlock.Except, pick(d, cidrs...))
			}
		}
		ps = append(ps, p)
	}
	return ps
}

func (d *dice) policy(name kube.Name) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
	np.Annotations = d.annotations()
	np.Spec.PodSelector = *d.selector()
	np.Spec.PolicyTypes = pick(d, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	for range d.n(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: d.ports(), From: d.peers()})
	}
	for range d.n(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: d.ports(), To: d.peers()})
	}
	return np
}

func (d *dice) annotations() map[string]string {
	if d.n(5) == 4 {
		return map[string]string{AuditAnnotation: "true"}
	}
	return nil
}

func (d *dice) protocols() []policyv1alpha2.ClusterNetworkPolicyProtocol {
	var ps []policyv1alpha2.ClusterNetworkPolicyProtocol
	for range d.n(3) {
		port := &policyv1alpha2.Port{Number: int32(80 + d.n(3))}
		if d.maybe() {
			port = &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: 80, End: int32(81 + d.n(3))}}
		}
		var p policyv1alpha2.ClusterNetworkPolicyProtocol
		switch d.n(4) {
		case 0:
			p.TCP = &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		case 1:
			p.UDP = &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 2:
			p.SCTP = &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		case 3:
			p.DestinationNamedPort = pick(d, names...)
		}
		ps = append(ps, p)
	}
	return ps
}

func (d *dice) namespacedPod() *policyv1alpha2.NamespacedPod {
	return &policyv1alpha2.NamespacedPod{NamespaceSelector: *d.selector(), PodSelector: *d.selector()}
}

func (d *dice) clusterPolicy(name string) *policyv1alpha2.ClusterNetworkPolicy {
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: d.annotations()}}
	p.Spec.Tier = pick(d, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier)
	p.Spec.Priority = int32(d.n(3))
	if d.maybe() {
		p.Spec.Subject.Namespaces = d.selector()
	} else {
		p.Spec.Subject.Pods = d.namespacedPod()
	}
	actions := []policyv1alpha2.ClusterNetworkPolicyRuleAction{"Accept", "Deny", "Pass"}
	for range d.n(3) {
		r := policyv1alpha2.ClusterNetworkPolicyIngressRule{Action: pick(d, actions...), Protocols: d.protocols()}
		for range 1 + d.n(2) {
			var peer policyv1alpha2.ClusterNetworkPolicyIngressPeer
			if d.maybe() {
				peer.Namespaces = d.selector()
			} else {
				peer.Pods = d.namespacedPod()
			}
			r.From = append(r.From, peer)
		}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	for range d.n(3) {
		r := policyv1alpha2.ClusterNetworkPolicyEgressRule{Action: pick(d, actions...), Protocols: d.protocols()}
		for range 1 + d.n(2) {
			var peer policyv1alpha2.ClusterNetworkPolicyEgressPeer
			switch d.n(5) {
			case 0:
				peer.Namespaces = d.selector()
			case 1:
				peer.Pods = d.namespacedPod()
			case 2:
				peer.Nodes = d.selector()
			case 3:
				for range 1 + d.n(2) {
					peer.Networks = append(peer.Networks, policyv1alpha2.CIDR(pick(d, cidrs...)))
				}
			case 4:
				r.Action = "Accept"
				peer.DomainNames = []policyv1alpha2.DomainName{pick[policyv1alpha2.DomainName](d, "example.com", "*.example.com", "WWW.example.com.", "ample.com", "*.com")}
			}
			r.To = append(r.To, peer)
		}
		p.Spec.Egress = append(p.Spec.Egress, r)
	}
	return p
}

// fuzzTold is what pods were told by DNS, and fuzzNow is after some of it ended.
var fuzzTold = []saying{
	{"10.244.0.4", "www.example.com", "192.0.2.1", 100},
	{"10.244.0.4", "example.com", "192.0.2.129", 100},
	{"10.244.0.5", "a.b.example.com", "2001:db8::1", 100},
	{"10.244.0.6", "www.example.com", "192.0.2.1", 40},
	{"fd00:10:244::6", "badexample.com", "10.244.0.7", 100},
	{"10.244.0.7", "Example.COM.", "10.244.0.1", 51},
}

const fuzzNow = 50

// saying is one answer of DNS to a pod.
type saying struct {
	pod, name, addr string
	until           int64
}

func namesFrom(told []saying) *Names {
	n := &Names{}
	for _, s := range told {
		n.Learn(packet.AddrFrom(netip.MustParseAddr(s.pod)), s.name, []packet.Addr{packet.AddrFrom(netip.MustParseAddr(s.addr))}, 0, s.until)
	}
	return n
}

// pod has one of eight addresses in each family, so that now and then two
// claim the same.
func (d *dice) pod(name kube.Name) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: d.labels()}}
	p.Spec.HostNetwork = d.n(8) == 7
	p.Status.Phase = pick(d, corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed)
	n := 4 + d.n(8)
	if d.n(4) != 3 {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: fmt.Sprintf("10.244.0.%d", n)})
	}
	if d.n(4) != 3 {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: fmt.Sprintf("fd00:10:244::%d", n)})
	}
	if p.Spec.HostNetwork {
		p.Status.PodIPs = []corev1.PodIP{{IP: pick(d, "10.244.0.1", "10.244.0.99")}}
	}
	c := corev1.Container{Name: "main"}
	for range d.n(3) {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: pick(d, names...), ContainerPort: int32(80 + d.n(3)), Protocol: d.protocol()})
	}
	if d.n(4) == 3 {
		c.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	} else {
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	return p
}

// change makes one change to a copy of the maps of st.
func (d *dice) change(st kube.State) *kube.State {
	name := kube.Name{Namespace: pick(d, spaces...), Name: pick(d, "p", "q", "r")}
	switch d.n(11) {
	case 8:
		st.ClusterPolicies = maps.Clone(st.ClusterPolicies)
		delete(st.ClusterPolicies, name.Name)
	case 9, 10:
		st.ClusterPolicies = maps.Clone(st.ClusterPolicies)
		st.ClusterPolicies[name.Name] = d.clusterPolicy(name.Name)
	case 0:
		st.Namespaces = maps.Clone(st.Namespaces)
		l := d.labels()
		l[corev1.LabelMetadataName] = name.Namespace
		st.Namespaces[name.Namespace] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name.Namespace, Labels: l}}
	case 1:
		st.Pods = maps.Clone(st.Pods)
		delete(st.Pods, name)
	case 2, 3, 4:
		st.Pods = maps.Clone(st.Pods)
		st.Pods[name] = d.pod(name)
	case 5:
		st.NetworkPolicies = maps.Clone(st.NetworkPolicies)
		delete(st.NetworkPolicies, name)
	default:
		st.NetworkPolicies = maps.Clone(st.NetworkPolicies)
		st.NetworkPolicies[name] = d.policy(name)
	}
	return &st
}

func emptyState() *kube.State {
	st := &kube.State{Namespaces: map[string]*corev1.Namespace{}, Pods: map[kube.Name]*corev1.Pod{}, NetworkPolicies: map[kube.Name]*networkingv1.NetworkPolicy{}, ClusterPolicies: map[string]*policyv1alpha2.ClusterNetworkPolicy{}}
	st.Nodes = map[string]*corev1.Node{"node": {ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{"app": "x"}}}}
	for _, n := range spaces {
		st.Namespaces[n] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{corev1.LabelMetadataName: n}}}
	}
	return st
}

// everybody are addresses to try as peers.
var everybody = func() []netip.Addr {
	all := slices.Clone(nodeAddrs)
	for i := 4; i < 12; i++ {
		all = append(all, netip.MustParseAddr(fmt.Sprintf("10.244.0.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd00:10:244::%d", i)))
	}
	for _, s := range []string{"10.244.0.99", "192.0.2.1", "192.0.2.128", "192.0.2.129", "192.0.2.130", "198.51.100.1", "255.255.255.255", "2001:db8::1", "2001:db8:1::1", "2001:dead::1"} {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}()

type asked struct {
	proto packet.Proto
	port  uint16
}

var questions = []asked{{packet.TCP, 80}, {packet.TCP, 81}, {packet.TCP, 8080}, {packet.UDP, 80}, {packet.UDP, 82}, {packet.SCTP, 80}, {packet.ICMP, 0}, {packet.ICMPv6, 0}, {47, 0}}

// compareNaive asks every question of both evaluators.
func compareNaive(t *testing.T, tab *Table, st *kube.State) {
	t.Helper()
	v := naive{st, nodeAddrs, fuzzTold}
	for _, a := range everybody {
		subject, pod := tab.Pod(packet.AddrFrom(a)), v.podAt(a, false)
		if (subject == nil) != (pod == nil) || subject != nil && subject.Name != (kube.Name{Namespace: pod.Namespace, Name: pod.Name}) {
			t.Fatalf("at %s: got %v, want %v", a, subject, pod)
		}
		if subject == nil {
			continue
		}
		for _, dir := range []Direction{Ingress, Egress} {
			for _, peer := range everybody {
				for _, q := range questions {
					got := tab.Judge(dir, subject, packet.AddrFrom(peer), q.proto, q.port, fuzzNow)
					want := v.judge(dir, pod, peer, q.proto, q.port)
					if got.Allowed != want.allowed || fmt.Sprint(got.By) != cmp.Or(want.by, "<nil>") || got.Isolated != (len(want.isolating) > 0) ||
						!slices.Equal(namesOf(got.Denying), want.denying) || !slices.Equal(namesOf(got.Audited), want.audited) {
						t.Fatalf("%s of %s, peer %s, proto %d port %d: got %+v, want %+v", dir, subject.Name, peer, q.proto, q.port, got, want)
					}
					if by := namesOf(subject.Isolating(dir)); !slices.Equal(by, want.isolating) {
						t.Fatalf("%s of %s isolated by %v, want %v", dir, subject.Name, by, want.isolating)
					}
				}
			}
		}
	}
}

func sameVerdict(a, b Verdict) bool {
	return a.Allowed == b.Allowed && a.Isolated == b.Isolated && a.By == b.By && slices.Equal(a.Denying, b.Denying) && slices.Equal(a.Audited, b.Audited)
}

func namesOf(ps []*Policy) []string {
	var ns []string
	for _, p := range ps {
		ns = append(ns, p.Name.String())
	}
	return ns
}

// compareSharing checks that a Pod is the same pointer only if no answer about
// it changed, as subject with whomever.
func compareSharing(t *testing.T, old, now *Table) {
	t.Helper()
	for _, a := range everybody {
		p := now.Pod(packet.AddrFrom(a))
		if p == nil || p != old.Pod(packet.AddrFrom(a)) {
			continue
		}
		for _, dir := range []Direction{Ingress, Egress} {
			for _, peer := range everybody {
				b := packet.AddrFrom(peer)
				if dir == Egress && old.Pod(b) != now.Pod(b) {
					continue // the answer may change with the peer's named ports: the peer's pointer tells
				}
				for _, q := range questions {
					if was, is := old.Judge(dir, p, b, q.proto, q.port, fuzzNow), now.Judge(dir, p, b, q.proto, q.port, fuzzNow); !sameVerdict(was, is) {
						t.Fatalf("%s of %s, peer %s, proto %d port %d: the pod is the same pointer, but the verdict went from %+v to %+v", dir, p.Name, peer, q.proto, q.port, was, is)
					}
				}
			}
		}
	}
}

// compareRewritten checks that objects written anew with the same content
// leave every Pod the same pointer.
func compareRewritten(t *testing.T, tab *Table, st kube.State, cfg Config) {
	t.Helper()
	st.Pods, st.Namespaces, st.NetworkPolicies, st.ClusterPolicies = maps.Clone(st.Pods), maps.Clone(st.Namespaces), maps.Clone(st.NetworkPolicies), maps.Clone(st.ClusterPolicies)
	for n, o := range st.ClusterPolicies {
		st.ClusterPolicies[n] = o.DeepCopy()
	}
	for n, o := range st.Pods {
		st.Pods[n] = o.DeepCopy()
	}
	for n, o := range st.Namespaces {
		st.Namespaces[n] = o.DeepCopy()
	}
	for n, o := range st.NetworkPolicies {
		st.NetworkPolicies[n] = o.DeepCopy()
	}
	now, _ := Compile(tab, &st, cfg)
	for _, a := range everybody {
		if now.Pod(packet.AddrFrom(a)) != tab.Pod(packet.AddrFrom(a)) {
			t.Fatalf("pod at %s was made anew, but nothing changed", a)
		}
	}
}

// FuzzPolicy changes random clusters step by step: after each step the table
// compiled from the one before answers as the naive evaluator does, and shares
// no more than it may.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("a default that allows everything"))
	for seed := range 40 {
		var b []byte
		x := uint32(seed)*2654435761 + 12345
		for range 400 {
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
			b = append(b, byte(x>>8))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		d := &dice{in[:min(len(in), 600)]}
		st := emptyState()
		cfg := Config{NodeAddrs: nodeAddrs, Names: namesFrom(fuzzTold)}
		tab, _ := Compile(nil, st, cfg)
		for step := 0; len(d.in) > 0; step++ {
			for range 1 + d.n(3) {
				st = d.change(*st)
			}
			next, problems := Compile(tab, st, cfg)
			if len(problems) > 0 {
				t.Fatalf("problems: %v", problems)
			}
			if step%4 == 0 || len(d.in) == 0 {
				compareNaive(t, next, st)
			}
			compareSharing(t, tab, next)
			tab = next
		}
		compareRewritten(t, tab, *st, cfg)
	})
}
