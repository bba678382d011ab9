package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/control"
	"podgate/kube"
	"podgate/policy"
	"podgate/stack"
	"podgate/stack/packet"
)

// matrixCell is one pair of pods and what policies say of it.
type matrixCell struct {
	From     string   `json:"from"` // namespace/name
	To       string   `json:"to"`
	Allowed  bool     `json:"allowed"`
	Policies []string `json:"policies,omitempty"` // that deny, or the rules that allow
}

// pairChange is a pair of pods that other policies treat differently.
type pairChange struct {
	From     string   `json:"from"`
	To       string   `json:"to"`
	Proto    string   `json:"proto"`
	Port     uint16   `json:"port"`
	Before   bool     `json:"before"`
	After    bool     `json:"after"`
	Policies []string `json:"policies,omitempty"` // after: that deny, or the rules that allow
}

// policyTest is what policies would do if they were applied.
type policyTest struct {
	Flows []stack.CutRecord `json:"flows"` // would be cut
	Pairs []pairChange      `json:"pairs"`
}

// policy answers what `podgate policy` asks.
func (g *gateway) policy(q control.PolicyRequest) (any, error) {
	g.mu.Lock()
	now := g.compiled
	g.mu.Unlock()
	if now.state == nil {
		return nil, errors.New("nothing is compiled yet")
	}
	switch q.What {
	case "denials":
		list := g.plane.Denials()
		if list == nil {
			list = []stack.DenialRecord{}
		}
		return list, nil
	case "matrix":
		proto, err := transport(q.Proto)
		if err != nil {
			return nil, err
		}
		j := judge{now.policies, g.plane.Now()}
		cells := []matrixCell{}
		for _, to := range reachablePods(now.state) {
			if q.Namespace != "" && to.name.Namespace != q.Namespace {
				continue
			}
			for _, from := range reachablePods(now.state) {
				if ok, by := j.connects(from, to, proto, q.Port); from.name != to.name {
					cells = append(cells, matrixCell{from.name.String(), to.name.String(), ok, by})
				}
			}
		}
		return cells, nil
	case "test":
		return g.foretell(now, q.Files)
	}
	return nil, fmt.Errorf("policy: unknown question %q", q.What)
}

func transport(name string) (packet.Proto, error) {
	p, ok := map[string]packet.Proto{"tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP}[name]
	if !ok {
		return 0, fmt.Errorf("%q is none of tcp, udp, sctp", name)
	}
	return p, nil
}

// foretell compiles the present state with further policies, and compares.
func (g *gateway) foretell(now tables, files []control.File) (policyTest, error) {
	out := policyTest{Flows: []stack.CutRecord{}, Pairs: []pairChange{}}
	scratch := kube.NewStore(g.cfg.Kube, nil)
	for _, f := range files {
		m, problems := kube.LoadBytes(f.Name, []byte(f.Data))
		for _, p := range problems {
			return out, errors.New(p.String())
		}
		for _, o := range m.Objects {
			if k := o.Kind(); k != "NetworkPolicy" && k != "ClusterNetworkPolicy" {
				return out, fmt.Errorf("%s: %s %s is no policy", f.Name, k, o.Name())
			}
		}
		for _, c := range scratch.Apply(m.Objects) {
			for _, p := range c.Problems {
				return out, errors.New(p.String())
			}
		}
	}
	st := *now.state
	st.NetworkPolicies, st.ClusterPolicies = overlay(st.NetworkPolicies, scratch.State().NetworkPolicies), overlay(st.ClusterPolicies, scratch.State().ClusterPolicies)
	then, _ := policy.Compile(now.policies, &st, g.policyConfig())
	out.Flows = append(out.Flows, g.plane.WouldCut(then)...)
	clock := g.plane.Now()
	before, after := judge{now.policies, clock}, judge{then, clock}
	pods := reachablePods(&st)
	for _, to := range pods {
		ports := portsToTry(&st, to)
		for _, from := range pods {
			if from.name == to.name || before.same(after, from) && before.same(after, to) {
				continue
			}
			for _, p := range ports {
				was, _ := before.connects(from, to, p.proto, p.port)
				is, by := after.connects(from, to, p.proto, p.port)
				if was != is {
					out.Pairs = append(out.Pairs, pairChange{from.name.String(), to.name.String(), protoName(p.proto), p.port, was, is, by})
				}
			}
		}
	}
	return out, nil
}

func overlay[K comparable, V any](below, above map[K]V) map[K]V {
	all := map[K]V{}
	maps.Copy(all, below)
	maps.Copy(all, above)
	return all
}

// judge asks one table about pairs of pods.
type judge struct {
	table *policy.Table
	now   int64
}

// connects says whether from may open a conversation with to, and by whom.
func (j judge) connects(from, to reachable, proto packet.Proto, port uint16) (bool, []string) {
	src, dst, ok := from.facing(to)
	if !ok {
		return false, []string{"no address family in common"}
	}
	var allowing []string
	for _, v := range []policy.Verdict{
		j.table.Judge(policy.Egress, j.table.Pod(src), dst, proto, port, j.now),
		j.table.Judge(policy.Ingress, j.table.Pod(dst), src, proto, port, j.now),
	} {
		if !v.Allowed {
			var by []string
			for _, p := range v.Denying {
				by = append(by, p.Name.String())
			}
			return false, by
		}
		if v.By != nil {
			allowing = append(allowing, v.By.String())
		}
	}
	return true, allowing
}

// same says whether nothing can have changed about p between two tables.
func (j judge) same(o judge, p reachable) bool {
	return j.table.Pod(p.addrs[0]) == o.table.Pod(p.addrs[0])
}

// reachable is a pod that has addresses of its own.
type reachable struct {
	name  kube.Name
	pod   *corev1.Pod
	addrs []packet.Addr
}

func reachablePods(st *kube.State) (out []reachable) {
	for _, n := range sortedNames(st.Pods) {
		p := st.Pods[n]
		r := reachable{name: n, pod: p}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				r.addrs = append(r.addrs, packet.AddrFrom(a))
			}
		}
		if len(r.addrs) > 0 && !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			out = append(out, r)
		}
	}
	return out
}

// facing are addresses of the first family that both have.
func (r reachable) facing(to reachable) (src, dst packet.Addr, ok bool) {
	for _, src := range r.addrs {
		for _, dst := range to.addrs {
			if src.Is4() == dst.Is4() {
				return src, dst, true
			}
		}
	}
	return src, dst, false
}

type protoPort struct {
	proto packet.Proto
	port  uint16
}

// portsToTry are those that a pod declares and those that policies name, and one
// of TCP that nobody names, for all others.
func portsToTry(st *kube.State, to reachable) []protoPort {
	try := map[protoPort]bool{{packet.TCP, 1}: true}
	protos := map[corev1.Protocol]packet.Proto{"": packet.TCP, "TCP": packet.TCP, "UDP": packet.UDP, "SCTP": packet.SCTP}
	for _, c := range slices.Concat(to.pod.Spec.Containers, to.pod.Spec.InitContainers) {
		for _, p := range c.Ports {
			try[protoPort{protos[p.Protocol], uint16(p.ContainerPort)}] = true
		}
	}
	add := func(ports []networkingv1.NetworkPolicyPort) {
		for _, p := range ports {
			if p.Port != nil && p.Port.IntVal > 0 && p.Protocol != nil {
				try[protoPort{protos[*p.Protocol], uint16(p.Port.IntVal)}] = true
			}
		}
	}
	for _, np := range st.NetworkPolicies {
		for _, r := range np.Spec.Ingress {
			add(r.Ports)
		}
		for _, r := range np.Spec.Egress {
			add(r.Ports)
		}
	}
	cluster := func(protocols []policyv1alpha2.ClusterNetworkPolicyProtocol) {
		for _, p := range protocols {
			number := func(proto packet.Proto, at *policyv1alpha2.Port) {
				switch {
				case at == nil:
				case at.Range != nil:
					try[protoPort{proto, uint16(at.Range.Start)}] = true
				default:
					try[protoPort{proto, uint16(at.Number)}] = true
				}
			}
			switch {
			case p.TCP != nil:
				number(packet.TCP, p.TCP.DestinationPort)
			case p.UDP != nil:
				number(packet.UDP, p.UDP.DestinationPort)
			case p.SCTP != nil:
				number(packet.SCTP, p.SCTP.DestinationPort)
			}
		}
	}
	for _, p := range st.ClusterPolicies {
		for _, r := range p.Spec.Ingress {
			cluster(r.Protocols)
		}
		for _, r := range p.Spec.Egress {
			cluster(r.Protocols)
		}
	}
	return slices.SortedFunc(maps.Keys(try), func(a, b protoPort) int {
		return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
	})
}

func (g *gateway) policyConfig() policy.Config {
	return policy.Config{NodeAddrs: g.nodeAddrs(), FailOpen: g.cfg.PolicyFailOpen, Names: g.names}
}

// openVerdictLog opens the file that verdicts of policies are appended to.
func openVerdictLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("policy.log: %w", err)
	}
	return f, nil
}
