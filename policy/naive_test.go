package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/kube"
	"podgate/stack/packet"
)

// naive answers like Judge, straight from the text of the API (the comments
// in k8s.io/api/networking/v1/types.go, quoted below) and the objects, with
// nothing prepared. Selectors too are evaluated by hand.
type naive struct {
	st    *kube.State
	nodes []netip.Addr
	told  []saying
}

// podAt finds who has an address. Completed pods have given theirs back.
func (v naive) podAt(a netip.Addr, host bool) *corev1.Pod {
	var found *corev1.Pod
	for _, p := range v.st.Pods {
		if p.Spec.HostNetwork != host || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if netip.MustParseAddr(ip.IP) == a && (found == nil || p.Namespace+"\x00"+p.Name < found.Namespace+"\x00"+found.Name) {
				found = p
			}
		}
	}
	return found
}

// answer is a verdict, and by whom.
type answer struct {
	allowed                     bool
	by                          string // the rule that decides
	isolating, denying, audited []string
}

func (v naive) judge(dir Direction, subject *corev1.Pod, peer netip.Addr, proto packet.Proto, port uint16) (a answer) {
	var selecting []*networkingv1.NetworkPolicy
	var auditing []string
	for _, np := range v.st.NetworkPolicies {
		// "Policies in a namespace apply only to it"; "An empty selector matches
		// all pods in the policy's namespace."
		if np.Namespace == subject.Namespace && matches(&np.Spec.PodSelector, subject.Labels) && affects(&np.Spec, dir) {
			selecting = append(selecting, np)
			if np.Annotations["podgate.dev/audit"] == "true" {
				auditing = append(auditing, np.Namespace+"/"+np.Name)
			} else {
				a.isolating = append(a.isolating, np.Namespace+"/"+np.Name)
			}
		}
	}
	slices.Sort(a.isolating)
	slices.Sort(auditing)
	slices.SortFunc(selecting, func(a, b *networkingv1.NetworkPolicy) int { // those in force first, then by name
		return cmp.Or(strings.Compare(a.Annotations["podgate.dev/audit"], b.Annotations["podgate.dev/audit"]), strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	for _, ip := range subject.Status.PodIPs {
		if ip.IP == peer.String() { // "A Pod cannot block access to itself"
			a.allowed = true
			return a
		}
	}
	other := v.podAt(peer, false)
	destination := subject
	if dir == Egress {
		destination = other
	}
	// "The Admin tier takes precedence over all other policies."
	if v.tier("Admin", dir, subject, peer, other, destination, proto, port, &a) {
		return a
	}
	// "v1.NetworkPolicy always makes a final decision for selected pods."
	if len(selecting) > 0 {
		// "Traffic is allowed to a pod if there are no NetworkPolicies selecting
		// the pod, OR if the traffic source is the pod's local node, OR if the
		// traffic matches at least one ingress rule across all of the
		// NetworkPolicy objects whose podSelector matches the pod."
		for _, np := range selecting {
			if i := v.ruleAllows(np, dir, peer, other, destination, proto, port); i >= 0 {
				a.allowed, a.by = true, fmt.Sprintf("policy %s/%s rule %s[%d]", np.Namespace, np.Name, dir, i)
				return a
			}
		}
		if slices.Contains(v.nodes, peer) || v.podAt(peer, true) != nil {
			a.allowed = true
			return a
		}
		if len(a.isolating) > 0 {
			a.denying = a.isolating
			return a
		}
		if a.audited == nil {
			a.audited = auditing
		}
	}
	// "Further evaluation only happens for Pods not selected by a v1.NetworkPolicy."
	if v.tier("Baseline", dir, subject, peer, other, destination, proto, port, &a) {
		return a
	}
	// "the default kubernetes policy is applied, which says that all pods can
	// communicate with each other"
	a.allowed = true
	return a
}

// ruleAllows is the index of the first rule that does, or -1.
func (v naive) ruleAllows(np *networkingv1.NetworkPolicy, dir Direction, peer netip.Addr, other, destination *corev1.Pod, proto packet.Proto, port uint16) int {
	if dir == Ingress {
		return slices.IndexFunc(np.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
			return v.ports(r.Ports, destination, proto, port) && v.peers(r.From, np.Namespace, peer, other)
		})
	}
	return slices.IndexFunc(np.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
		return v.ports(r.Ports, destination, proto, port) && v.peers(r.To, np.Namespace, peer, other)
	})
}

// "If this field is not specified, it will default based on the existence of
// ingress or egress rules; policies that contain an egress section are assumed
// to affect egress, and all policies (whether or not they contain an ingress
// section) are assumed to affect ingress."
func affects(spec *networkingv1.NetworkPolicySpec, dir Direction) bool {
	if len(spec.PolicyTypes) == 0 {
		return dir == Ingress || len(spec.Egress) > 0
	}
	return slices.Contains(spec.PolicyTypes, [...]networkingv1.PolicyType{"Ingress", "Egress"}[dir])
}

// "If this field is empty or missing, this rule matches all ports. If this
// field is present and contains at least one item, then this rule allows
// traffic only if the traffic matches at least one port in the list."
func (v naive) ports(ports []networkingv1.NetworkPolicyPort, destination *corev1.Pod, proto packet.Proto, port uint16) bool {
	if len(ports) == 0 {
		return true
	}
	names := map[packet.Proto]corev1.Protocol{packet.TCP: "TCP", packet.UDP: "UDP", packet.SCTP: "SCTP"}
	for _, p := range ports {
		want := corev1.ProtocolTCP // "If not specified, this field defaults to TCP."
		if p.Protocol != nil {
			want = *p.Protocol
		}
		if names[proto] != want {
			continue
		}
		switch {
		case p.Port == nil: // "If this field is not provided, this matches all port names and numbers."
			return true
		case p.Port.Type == intstr.String: // "a numerical or named port on a pod"
			if destination == nil {
				continue
			}
			for _, c := range running(destination) {
				for _, cp := range c.Ports {
					if cp.Name == p.Port.StrVal && cp.Protocol == want && uint16(cp.ContainerPort) == port {
						return true
					}
				}
			}
		case p.EndPort != nil: // "the range of ports from port to endPort if set, inclusive"
			if int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort {
				return true
			}
		case int32(port) == p.Port.IntVal:
			return true
		}
	}
	return false
}

// running are the containers that run beside each other.
func running(p *corev1.Pod) []corev1.Container {
	all := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

// "If this field is empty or missing, this rule matches all sources. If this
// field is present and contains at least one item, this rule allows traffic
// only if the traffic matches at least one item in the from list."
func (v naive) peers(peers []networkingv1.NetworkPolicyPeer, namespace string, a netip.Addr, pod *corev1.Pod) bool {
	if len(peers) == 0 {
		return true
	}
	for _, p := range peers {
		if p.IPBlock != nil {
			if in(p.IPBlock.CIDR, a) && !slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return in(e, a) }) {
				return true
			}
			continue
		}
		if pod == nil {
			continue
		}
		switch {
		case p.NamespaceSelector == nil: // "the pods matching podSelector in the policy's own namespace"
			if pod.Namespace == namespace && matches(p.PodSelector, pod.Labels) {
				return true
			}
		case p.PodSelector == nil: // "all pods in the namespaces selected by namespaceSelector"
			if matches(p.NamespaceSelector, v.st.Namespaces[pod.Namespace].Labels) {
				return true
			}
		default: // "the pods matching podSelector in the namespaces selected by namespaceSelector"
			if matches(p.NamespaceSelector, v.st.Namespaces[pod.Namespace].Labels) && matches(p.PodSelector, pod.Labels) {
				return true
			}
		}
	}
	return false
}

func in(cidr string, a netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(a) }

// matches evaluates a label selector: "The result of matchLabels and
// matchExpressions are ANDed. An empty label selector matches all objects."
func matches(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		got, has := labels[e.Key]
		ok := false
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			ok = has && slices.Contains(e.Values, got)
		case metav1.LabelSelectorOpNotIn:
			ok = !has || !slices.Contains(e.Values, got)
		case metav1.LabelSelectorOpExists:
			ok = has
		case metav1.LabelSelectorOpDoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}
