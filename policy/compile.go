package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/kube"
	"podgate/stack/packet"
)

// Compile makes the Table for st, sharing with prev (which may be nil) what did
// not change. The problems are all that st has now, sorted by object; kube's
// validation normally keeps such objects out.
func Compile(prev *Table, st *kube.State, cfg Config) (*Table, []kube.Problem) {
	if prev == nil {
		prev = &Table{}
	}
	e := &edit{Table: &Table{peers: prev.peers, inputs: prev.inputs, names: cfg.Names}, prev: prev, st: st, fresh: map[kube.Name]bool{}}
	e.inputs.namespaces, e.inputs.pods, e.inputs.nodes = st.Namespaces, st.Pods, st.Nodes
	e.inputs.policies, e.inputs.cluster, e.inputs.broken = st.NetworkPolicies, st.ClusterPolicies, nil
	if !cfg.FailOpen {
		e.inputs.broken = st.BrokenPolicies
	}
	e.readPolicies(&prev.inputs)
	if len(e.changed) > 0 {
		e.sweep()
	}
	for n, again := range changedPods(&prev.inputs, st) {
		e.refresh(n, newMember(n, st.Pods[n], st.FurtherAddrs(n)), again)
	}
	e.rematch()
	if len(e.changed) > 0 || len(e.dirty) > 0 {
		e.regroup()
	}
	var own []packet.Addr
	for _, a := range cfg.NodeAddrs {
		own = append(own, packet.AddrFrom(a))
	}
	e.locate(own)
	e.rebuild()
	e.enter()
	return e.Table, e.faults()
}

// readPolicies compiles the policies whose text changed.
func (e *edit) readPolicies(prev *inputs) {
	renodes := false
	kube.Diff(e.st, prev.nodes, e.inputs.nodes, func(string, *corev1.Node, *corev1.Node) { renodes = true })
	read := func(n kube.Name, now metav1.Object, spec any, compile func() *compiled) {
		old := e.inputs.compiled[n]
		if old == nil || old.Audit != audit(now) || !reflect.DeepEqual(old.spec, spec) || renodes && old.Tier != Namespaced {
			c := compile()
			c.spec = spec
			e.setCompiled(n, c)
		}
	}
	for n := range prev.broken { // afresh each time: what is broken now may be whole by now
		if e.inputs.broken[n] != prev.broken[n] {
			e.setCompiled(n, nil)
		}
	}
	kube.Diff(e.st, prev.policies, e.inputs.policies, func(n kube.Name, _, now *networkingv1.NetworkPolicy) {
		if now == nil {
			e.setCompiled(n, nil)
		} else {
			read(n, now, &now.Spec, func() *compiled { return e.compilePolicy(now) })
		}
	})
	cluster := func(name string, _, now *policyv1alpha2.ClusterNetworkPolicy) {
		n := kube.Name{Name: name}
		if now == nil {
			e.setCompiled(n, nil)
		} else {
			read(n, now, &now.Spec, func() *compiled { return e.compileCluster(now) })
		}
	}
	kube.Diff(e.st, prev.cluster, e.inputs.cluster, cluster)
	if renodes {
		for name, now := range e.inputs.cluster {
			cluster(name, nil, now)
		}
	}
	for n, o := range e.inputs.broken {
		if e.inputs.compiled[n] != nil && o == prev.broken[n] {
			continue
		}
		var c *compiled
		switch o := o.(type) {
		case *networkingv1.NetworkPolicy:
			c = e.compilePolicy(o)
		case *policyv1alpha2.ClusterNetworkPolicy:
			c = e.compileCluster(o)
		default:
			continue
		}
		c.problems = nil // who rejected it has said them
		e.setCompiled(n, c)
	}
}

func audit(o metav1.Object) bool { return o.GetAnnotations()[AuditAnnotation] == "true" }

// compilePolicy turns the text of one NetworkPolicy into rules. What is broken
// in it allows nothing: a peer or port that cannot be read matches nobody, and
// a podSelector that cannot be read selects every pod of the namespace.
func (e *edit) compilePolicy(np *networkingv1.NetworkPolicy) *compiled {
	name := kube.Name{Namespace: np.Namespace, Name: np.Name}
	c := &compiled{Policy: &Policy{Name: name, Tier: Namespaced, Audit: audit(np)}}
	b := &builder{edit: e, compiled: c}
	subject, ok := b.selector("spec.podSelector", &np.Spec.PodSelector)
	if !ok {
		subject = labels.Everything()
	}
	c.subject = e.intern(&selector{namespace: name.Namespace, pods: subject})
	c.types = b.types(&np.Spec)
	for i, r := range np.Spec.Ingress {
		b.rule(Ingress, i, r.Ports, r.From)
	}
	for i, r := range np.Spec.Egress {
		b.rule(Egress, i, r.Ports, r.To)
	}
	b.finish()
	return c
}

// finish puts what the rules gathered into order.
func (b *builder) finish() {
	b.self = []*Policy{b.Policy}
	slices.Sort(b.peers)
	b.peers = slices.Compact(b.peers)
}

// builder makes one compiled policy.
type builder struct {
	*edit
	*compiled
}

func (b *builder) problem(field, format string, args ...any) {
	kind := "NetworkPolicy"
	if b.Tier != Namespaced {
		kind = "ClusterNetworkPolicy"
	}
	b.problems = append(b.problems, kube.Problem{Kind: kind, Object: b.Name, Field: field, Err: fmt.Sprintf(format, args...)})
}

// types applies the default of policyTypes: always Ingress, and Egress if
// there are egress rules.
func (b *builder) types(spec *networkingv1.NetworkPolicySpec) (t [2]bool) {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{Ingress: true, Egress: len(spec.Egress) > 0}
	}
	for i, p := range spec.PolicyTypes {
		switch p {
		case networkingv1.PolicyTypeIngress:
			t[Ingress] = true
		case networkingv1.PolicyTypeEgress:
			t[Egress] = true
		default:
			b.problem(fmt.Sprintf("spec.policyTypes[%d]", i), "Unsupported value: %q: supported values: \"Egress\", \"Ingress\"", p)
			t = [2]bool{true, true}
		}
	}
	return t
}

func (b *builder) selector(field string, s *metav1.LabelSelector) (labels.Selector, bool) {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		b.problem(field, "Invalid value: %v", err)
		return nil, false
	}
	return sel, true
}

func (b *builder) rule(d Direction, index int, ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) {
	if !b.Policy.types[d] {
		return
	}
	r := &Rule{Policy: b.Name, Direction: d, Index: index, anyPort: len(ports) == 0, anyPeer: len(peers) == 0}
	field := fmt.Sprintf("spec.%s[%d]", d, index)
	for i := range ports {
		if p, ok := b.port(fmt.Sprintf("%s.ports[%d]", field, i), &ports[i]); ok {
			r.ports = append(r.ports, p)
		}
	}
	word := [...]string{Ingress: "from", Egress: "to"}[d]
	for i := range peers {
		b.peer(r, fmt.Sprintf("%s.%s[%d]", field, word, i), &peers[i])
	}
	b.add(r)
}

// add enters a rule that has all its peers.
func (b *builder) add(r *Rule) {
	r.by = b.Policy
	slices.Sort(r.selectors)
	r.selectors = slices.Compact(r.selectors)
	r.ranges = union(r.ranges)
	b.peers = append(b.peers, r.selectors...)
	b.Policy.rules[r.Direction] = append(b.Policy.rules[r.Direction], r)
}

func (b *builder) port(field string, p *networkingv1.NetworkPolicyPort) (out portRange, ok bool) {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	if out.proto, ok = protoOf(protocol); !ok {
		b.problem(field+".protocol", "Unsupported value: %q: supported values: \"SCTP\", \"TCP\", \"UDP\"", protocol)
		return out, false
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		b.problem(field+".endPort", "may not be specified when `port` is not specified")
		return out, false
	case p.Port == nil:
		out.last = 65535
	case p.Port.Type == intstr.String && p.EndPort != nil:
		b.problem(field+".endPort", "may not be specified when `port` is non-numeric")
		return out, false
	case p.Port.Type == intstr.String:
		out.named, out.name = true, unique.Make(p.Port.StrVal)
	default:
		first, last := p.Port.IntVal, p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		if first < 1 || last > 65535 || last < first {
			b.problem(field, "Invalid value: %d-%d: must be between 1 and 65535, inclusive, and endPort not below port", first, last)
			return out, false
		}
		out.first, out.last = uint16(first), uint16(last)
	}
	return out, true
}

func protoOf(p corev1.Protocol) (packet.Proto, bool) {
	switch p {
	case corev1.ProtocolTCP:
		return packet.TCP, true
	case corev1.ProtocolUDP:
		return packet.UDP, true
	case corev1.ProtocolSCTP:
		return packet.SCTP, true
	}
	return 0, false
}

func (b *builder) peer(r *Rule, field string, p *networkingv1.NetworkPolicyPeer) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		b.problem(field, "Forbidden: may not specify both ipBlock and another peer")
	case p.IPBlock != nil:
		if block, ok := b.block(field+".ipBlock", p.IPBlock); ok {
			r.ranges = append(r.ranges, block...)
		}
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		b.problem(field, "Required value: must specify a peer")
	default:
		s := &selector{namespace: b.Name.Namespace, pods: labels.Everything()}
		var podsOK, spacesOK = true, true
		if p.PodSelector != nil {
			s.pods, podsOK = b.selector(field+".podSelector", p.PodSelector)
		}
		if p.NamespaceSelector != nil {
			s.namespace = ""
			s.namespaces, spacesOK = b.selector(field+".namespaceSelector", p.NamespaceSelector)
		}
		if podsOK && spacesOK {
			r.selectors = append(r.selectors, b.intern(s).id)
		}
	}
}

func (b *builder) block(field string, block *networkingv1.IPBlock) ([]addrRange, bool) {
	p, err := netip.ParsePrefix(block.CIDR)
	if err != nil {
		b.problem(field+".cidr", "Invalid value: %q: must be a valid CIDR", block.CIDR)
		return nil, false
	}
	ranges := rangesOf(p)
	for i, s := range block.Except {
		except, err := netip.ParsePrefix(s)
		if err != nil {
			b.problem(fmt.Sprintf("%s.except[%d]", field, i), "Invalid value: %q: must be a valid CIDR", s)
			return nil, false
		}
		for _, e := range rangesOf(except) {
			ranges = subtract(ranges, e)
		}
	}
	return ranges, true
}

// selector is an interned peer or subject: pods of one namespace, or of the
// namespaces that a selector chooses.
type selector struct {
	id         selectorID
	namespace  string          // if namespaces is nil
	namespaces labels.Selector // or nil
	pods       labels.Selector
}

func (s *selector) key() string {
	if s.namespaces != nil {
		return "*" + s.namespaces.String() + "|" + s.pods.String()
	}
	return s.namespace + "|" + s.pods.String()
}

// matchers are selectors to try on pods: those of one namespace by its name,
// and those that choose namespaces under "".
type matchers map[string][]*selector

func matchersBy(list []*selector) matchers {
	ms := matchers{}
	for _, s := range list {
		ms[s.namespace] = append(ms[s.namespace], s)
	}
	return ms
}

// matching returns the selectors that match m, ascending.
func (e *edit) matching(m *member) []selectorID {
	if e.known == nil {
		e.known = matchersBy(slices.Collect(maps.Values(e.inputs.selectors)))
	}
	ids := e.known.match(e.st, m)
	slices.Sort(ids)
	return ids
}

// match returns the selectors that match m, in the order of ms.
func (ms matchers) match(st *kube.State, m *member) []selectorID {
	var ids []selectorID
	for _, s := range ms[m.name.Namespace] {
		if s.pods.Matches(labels.Set(m.labels)) {
			ids = append(ids, s.id)
		}
	}
	for _, s := range ms[""] {
		if s.namespaces.Matches(labels.Set(spaceLabels(st, m.name.Namespace))) && s.pods.Matches(labels.Set(m.labels)) {
			ids = append(ids, s.id)
		}
	}
	return ids
}

// spaceLabels are the labels of a namespace.
func spaceLabels(st *kube.State, namespace string) map[string]string {
	if n := st.Namespaces[namespace]; n != nil {
		return n.Labels
	}
	return map[string]string{corev1.LabelMetadataName: namespace}
}

// newMember reads what concerns policies from a pod, which has the further
// addresses beside those of its status. A pod that has no address
// yet, or has completed and so given its address back, is none.
func newMember(n kube.Name, pod *corev1.Pod, further []netip.Addr) *member {
	if pod == nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	m := &member{name: n, labels: pod.Labels, host: pod.Spec.HostNetwork}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(m.addrs, packet.AddrFrom(a)) {
			m.addrs = append(m.addrs, packet.AddrFrom(a))
		}
	}
	if len(m.addrs) == 0 {
		return nil
	}
	if m.host {
		return m
	}
	for _, a := range further {
		m.addrs = append(m.addrs, packet.AddrFrom(a))
	}
	for i := range pod.Spec.Containers {
		m.addPorts(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			m.addPorts(c)
		}
	}
	return m
}

func (m *member) addPorts(c *corev1.Container) {
	for _, p := range c.Ports {
		proto, ok := protoOf(cmp.Or(p.Protocol, corev1.ProtocolTCP))
		if ok && p.Name != "" {
			m.ports = append(m.ports, namedPort{unique.Make(p.Name), proto, uint16(p.ContainerPort)})
		}
	}
}

// inputs are what a Table was made from.
type inputs struct {
	namespaces map[string]*corev1.Namespace
	nodes      map[string]*corev1.Node
	pods       map[kube.Name]*corev1.Pod
	policies   map[kube.Name]*networkingv1.NetworkPolicy
	cluster    map[string]*policyv1alpha2.ClusterNetworkPolicy
	broken     map[kube.Name]kube.API

	members   map[kube.Name]*member
	compiled  map[kube.Name]*compiled
	selectors map[string]*selector  // interned, by key
	groups    map[selectorID]*group // by subject
	lastID    selectorID
}

// compiled is a Policy with what compiling on takes.
type compiled struct {
	*Policy
	spec     any // of the object
	subject  *selector
	peers    []selectorID // in any rule, ascending
	problems []kube.Problem
}

// changedPods are the pods whose own object changed, or (true) the labels of
// whose namespace.
func changedPods(prev *inputs, st *kube.State) map[kube.Name]bool {
	changed := map[kube.Name]bool{}
	kube.Diff(st, prev.pods, st.Pods, func(n kube.Name, _, _ *corev1.Pod) { changed[n] = false })
	relabelled := map[string]bool{}
	kube.Diff(st, prev.namespaces, st.Namespaces, func(n string, old, now *corev1.Namespace) {
		if old == nil || now == nil || !maps.Equal(old.Labels, now.Labels) {
			relabelled[n] = true
		}
	})
	if len(relabelled) > 0 {
		for n := range st.Pods {
			if relabelled[n.Namespace] {
				changed[n] = true
			}
		}
	}
	return changed
}
