package nat

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"podgate/kube"
	"podgate/stack/packet"
)

// How Compile works. A Table remembers the objects that it was made from.
// The next Compile walks the object maps (not even that where the map is the
// same), compares pointers, and so finds the Services that are to be looked at
// again: their own object, one of their EndpointSlices, or a pod with hostPorts
// changed. Only those are compiled; each gets the ServicePorts, pools and
// Backends of its predecessor where the content came out the same. What they
// claim of the address space is then set and removed in maps of which
// unchanged parts are shared.

// inputs are what a Table was made from.
type inputs struct {
	node, zone string
	pending    bool // load balancers without an address are no problem
	services   map[kube.Name]*corev1.Service
	slices     kube.Map[kube.Name, *discoveryv1.EndpointSlice]
	pods       map[kube.Name]*corev1.Pod
	byService  kube.Map[kube.Name, []*discoveryv1.EndpointSlice] // sorted by name
}

const (
	labelProxyName  = "service.kubernetes.io/service-proxy-name" // such a Service has another proxy
	defaultAffinity = 10800 * time.Second

	annotationWeight = "podgate.dev/weight" // of an EndpointSlice: that of each of its endpoints
	maxWeight        = 100
)

// Compile makes the Table for st, sharing with prev (which may be nil) what
// did not change. The problems are all that st has now, sorted by object; they
// concern only what the compile step sees, as kube validates the objects.
func Compile(prev *Table, st *kube.State, cfg Config) (*Table, []kube.Problem) {
	if prev == nil {
		prev = &Table{}
	}
	t := &Table{
		fronts:    prev.fronts,
		services:  prev.services,
		ranges:    cfg.ServiceCIDRs,
		hosts:     cfg.HostIPs,
		published: prev.published,
		refused:   prev.refused,
		contested: cloneOf(prev.contested),
		faulty:    cloneOf(prev.faulty),
		checked:   cloneOf(prev.checked),
		onHost:    cloneOf(prev.onHost),
		ranged:    cloneOf(prev.ranged),
		made:      new(version),
		from:      prev.made,
		inputs: inputs{
			node:      cfg.NodeName,
			pending:   cfg.Pending,
			services:  st.Services,
			slices:    st.EndpointSlices,
			pods:      st.Pods,
			byService: prev.inputs.byService,
		},
	}
	for _, a := range cfg.NodeAddrs {
		t.nodes = append(t.nodes, packet.AddrFrom(a))
	}
	if n := st.Nodes[cfg.NodeName]; n != nil {
		t.inputs.zone = n.Labels[corev1.LabelTopologyZone]
	}

	publish := !slices.Equal(t.nodes, prev.nodes) || !slices.Equal(t.hosts, prev.hosts)
	for o := range t.changed(prev, st) {
		old := prev.services.Get(o)
		now := t.compile(o, old)
		t.replace(o, old, now)
		publish = publish || old.publishes() || now.publishes()
	}
	if publish {
		t.publish()
	}
	t.fronts.Done()
	t.services.Done()
	t.inputs.byService.Done()
	return t, t.problems()
}

func cloneOf[K comparable](m map[K]bool) map[K]bool {
	if c := maps.Clone(m); c != nil {
		return c
	}
	return map[K]bool{}
}

// changed finds whom to compile again, and brings byService up to date.
func (t *Table) changed(prev *Table, st *kube.State) map[owner]bool {
	dirty := map[owner]bool{}
	kube.Diff(st, prev.inputs.services, t.inputs.services, func(n kube.Name, _, _ *corev1.Service) {
		dirty[owner{Name: n}] = true
	})
	kube.DiffMap(&prev.inputs.slices, &t.inputs.slices, func(_ kube.Name, old, now *discoveryv1.EndpointSlice) {
		for _, s := range []*discoveryv1.EndpointSlice{old, now} {
			if n, ok := serviceOf(s); ok {
				dirty[owner{Name: n}] = true
				t.index(n, s, s == now)
			}
		}
	})
	kube.Diff(st, prev.inputs.pods, t.inputs.pods, func(n kube.Name, old, now *corev1.Pod) {
		if hasHostPorts(old) || hasHostPorts(now) {
			dirty[owner{n, true}] = true
		}
	})
	if prev.inputs.node != t.inputs.node || prev.inputs.zone != t.inputs.zone {
		for n := range t.inputs.services {
			dirty[owner{Name: n}] = true
		}
	}
	return dirty
}

func serviceOf(s *discoveryv1.EndpointSlice) (kube.Name, bool) {
	if s == nil {
		return kube.Name{}, false
	}
	name := s.Labels[discoveryv1.LabelServiceName]
	return kube.Name{Namespace: s.Namespace, Name: name}, name != "" && ours(s.Labels)
}

// ours says whether the labels of a Service or an EndpointSlice leave it to
// the cluster's own proxy.
func ours(labels map[string]string) bool {
	_, other := labels[labelProxyName]
	_, headless := labels[corev1.IsHeadlessService]
	return !other && !headless
}

// index adds or removes s among the slices of a Service.
func (t *Table) index(service kube.Name, s *discoveryv1.EndpointSlice, add bool) {
	list := t.inputs.byService.Get(service)
	at, found := slices.BinarySearchFunc(list, s.Name, func(a *discoveryv1.EndpointSlice, name string) int {
		return cmp.Compare(a.Name, name)
	})
	switch {
	case add && found:
		list = slices.Clone(list)
		list[at] = s
	case add:
		list = slices.Insert(slices.Clone(list), at, s)
	case found && list[at] == s:
		list = slices.Delete(slices.Clone(list), at, at+1)
	}
	if len(list) == 0 {
		t.inputs.byService.Delete(service)
	} else {
		t.inputs.byService.Set(service, list)
	}
}

// compile compiles one owner, or returns nil if it has nothing to say.
func (t *Table) compile(o owner, old *Service) *Service {
	if o.pod {
		if pod := t.inputs.pods[o.Name]; hasHostPorts(pod) {
			return compileHostPorts(o.Name, pod, old)
		}
		return nil
	}
	svc := t.inputs.services[o.Name]
	if svc == nil || !ours(svc.Labels) || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	c := compiler{
		Service: &Service{Name: o.Name, born: svc.CreationTimestamp.Unix()},
		old:     old, node: t.inputs.node, zone: t.inputs.zone, pending: t.inputs.pending, slices: t.inputs.byService.Get(o.Name),
	}
	c.compile(svc)
	if len(c.Ports) == 0 && len(c.problems) == 0 {
		return nil
	}
	return c.Service
}

// compiler makes one Service.
type compiler struct {
	*Service
	old        *Service // or nil
	node, zone string
	pending    bool
	slices     []*discoveryv1.EndpointSlice
}

func (c *compiler) problem(field, format string, args ...any) {
	c.problems = append(c.problems, kube.Problem{Kind: c.owner().kind(), Object: c.Name, Field: field, Err: fmt.Sprintf(format, args...)})
}

func (c *compiler) compile(svc *corev1.Service) {
	clusterIPs := svc.Spec.ClusterIPs
	if len(clusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		clusterIPs = []string{svc.Spec.ClusterIP}
	}
	var cluster []packet.Addr
	for i, s := range clusterIPs {
		cluster = c.addr(cluster, fmt.Sprintf("spec.clusterIPs[%d]", i), s)
	}
	var external, balancers, hosts []packet.Addr
	for i, s := range svc.Spec.ExternalIPs {
		external = c.addr(external, fmt.Sprintf("spec.externalIPs[%d]", i), s)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		if len(svc.Status.LoadBalancer.Ingress) == 0 && !c.pending {
			c.problem("status.loadBalancer", "the load balancer has no address: the ranges for them are full, or spec.loadBalancerIP %q is taken or not in one", svc.Spec.LoadBalancerIP)
		}
		for i, in := range svc.Status.LoadBalancer.Ingress {
			field := fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i)
			switch {
			case in.IP == "":
			case in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP:
				balancers = c.addr(balancers, field, in.IP)
			default: // what arrives there comes through a listener
				hosts = c.addr(hosts, field, in.IP)
			}
		}
	}
	c.healthPort = healthPort(svc)
	o := c.options(svc)
	sources := c.sources(svc)
	matched := make([]bool, len(svc.Spec.Ports))
	for _, vip := range cluster {
		is4 := vip.Is4()
		c.fronts = append(c.fronts, claim{front: front{addr: vip}})
		for i := range svc.Spec.Ports {
			sp := c.port(svc, &svc.Spec.Ports[i], vip)
			sp.LeastConnections, sp.Drain, sp.LastPort = o.leastConnections, o.drain, o.last[sp.Name]
			sp.balancers = family(balancers, is4)
			sp.external = append(family(external, is4), sp.balancers...)
			if len(sp.balancers) > 0 {
				sp.sources = sources[is4]
			}
			sp.Endpoints = c.endpoints(sp)
			matched[i] = matched[i] || len(sp.Endpoints) > 0
			c.add(sp, family(external, is4))
			c.publishPort(sp, svc.Spec.Type == corev1.ServiceTypeLoadBalancer, family(hosts, is4), sources[is4], o.proxy)
		}
	}
	if c.hasEndpoints() {
		for i, ok := range matched {
			if p := svc.Spec.Ports[i]; !ok {
				c.problem(fmt.Sprintf("spec.ports[%d]", i), "no endpoint of the Service has port %q (targetPort %s, %s): connections are rejected", p.Name, p.TargetPort.String(), p.Protocol)
			}
		}
	}
}

// healthPort is the healthCheckNodePort where it has a meaning.
func healthPort(svc *corev1.Service) uint16 {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return 0
	}
	return uint16(svc.Spec.HealthCheckNodePort)
}

// addr appends s if it is an address.
func (c *compiler) addr(to []packet.Addr, field, s string) []packet.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		c.problem(field, "Invalid value: %q: must be a valid IP address", s)
		return to
	}
	if slices.Contains(to, packet.AddrFrom(a)) {
		return to
	}
	return append(to, packet.AddrFrom(a))
}

// sources parses whom a load balancer lets in, by family (IPv4: true). What cannot
// be parsed admits nobody, in both families.
func (c *compiler) sources(svc *corev1.Service) map[bool][]netip.Prefix {
	by := map[bool][]netip.Prefix{}
	ranges, at := kube.SourceRanges(svc)
	for i, s := range ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			c.problem(at.Index(i).String(), "Invalid value: %q: must be a CIDR", s)
			by[true], by[false] = append(by[true], netip.Prefix{}), append(by[false], netip.Prefix{})
			continue
		}
		by[p.Addr().Is4()] = append(by[p.Addr().Is4()], p)
	}
	return by
}

// port makes the ServicePort without its endpoints.
func (c *compiler) port(svc *corev1.Service, p *corev1.ServicePort, vip packet.Addr) *ServicePort {
	sp := &ServicePort{
		Service: c.Name, Name: p.Name, Proto: proto(p.Protocol), Port: uint16(p.Port), NodePort: uint16(p.NodePort), ClusterIP: vip,
		InternalLocal: svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
	}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		sp.AffinityTimeout = defaultAffinity
		if a := svc.Spec.SessionAffinityConfig; a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil {
			sp.AffinityTimeout = time.Duration(*a.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeClusterIP {
		sp.NodePort = 0
	}
	sp.ID = identity("service", c.Name, p.Name, sp.Proto, vip.Is4())
	return sp
}

func proto(p corev1.Protocol) packet.Proto {
	switch p {
	case corev1.ProtocolUDP:
		return packet.UDP
	case corev1.ProtocolSCTP:
		return packet.SCTP
	}
	return packet.TCP
}

// endpoints collects what the slices of sp's family say of its port.
func (c *compiler) endpoints(sp *ServicePort) []Endpoint {
	family := discoveryv1.AddressTypeIPv6
	if sp.ClusterIP.Is4() {
		family = discoveryv1.AddressTypeIPv4
	}
	shared := map[Backend]*Backend{}
	if was := c.old.port(sp.ID); was != nil {
		for _, e := range was.Endpoints {
			shared[*e.Backend] = e.Backend
		}
	}
	var all []Endpoint
	for _, s := range c.slices {
		if s.AddressType != family {
			continue
		}
		number := portOf(s, sp)
		if number == 0 {
			continue
		}
		weight := c.weight(s)
		for i := range s.Endpoints {
			e, ok := c.endpoint(s, i, number)
			if !ok {
				continue
			}
			e.Weight = weight
			if b := shared[*e.Backend]; b != nil {
				e.Backend = b
			}
			all = append(all, e)
		}
	}
	// An endpoint may be in two slices while it moves: the better one counts.
	slices.SortStableFunc(all, func(a, b Endpoint) int {
		return cmp.Or(compareBackends(a.Backend, b.Backend), cmp.Compare(b.quality(), a.quality()))
	})
	return slices.CompactFunc(all, func(a, b Endpoint) bool { return compareBackends(a.Backend, b.Backend) == 0 })
}

// weight is what a slice's annotation gives each of its endpoints; without a
// readable one, 1.
func (c *compiler) weight(s *discoveryv1.EndpointSlice) uint8 {
	text, ok := s.Annotations[annotationWeight]
	if !ok {
		return 1
	}
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || n > maxWeight {
		c.sliceProblem(s, "metadata.annotations["+annotationWeight+"]", "Invalid value: %q: must be a number from 0 to %d", text, maxWeight)
		return 1
	}
	return uint8(n)
}

// sliceProblem reports a slice once, however many ports it serves.
func (c *compiler) sliceProblem(s *discoveryv1.EndpointSlice, field, format string, args ...any) {
	bad := kube.Problem{Kind: "EndpointSlice", Object: kube.Name{Namespace: s.Namespace, Name: s.Name}, Field: field, Err: fmt.Sprintf(format, args...)}
	if !slices.Contains(c.problems, bad) {
		c.problems = append(c.problems, bad)
	}
}

// portOf returns the number that a slice has for the port, or 0.
func portOf(s *discoveryv1.EndpointSlice, sp *ServicePort) uint16 {
	for _, p := range s.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if p.Port != nil && name == sp.Name && proto(protocol) == sp.Proto {
			return uint16(*p.Port)
		}
	}
	return 0
}

// endpoint reads the i-th endpoint of a slice. An API server keeps most of what
// is refused here out; podgate's own validation does too.
func (c *compiler) endpoint(s *discoveryv1.EndpointSlice, i int, port uint16) (Endpoint, bool) {
	e := &s.Endpoints[i]
	if len(e.Addresses) == 0 {
		return Endpoint{}, false
	}
	a, err := netip.ParseAddr(e.Addresses[0]) // the API gives no meaning to further ones
	if why := unfit(a, s.AddressType); err != nil || why != "" {
		c.sliceProblem(s, fmt.Sprintf("endpoints[%d].addresses[0]", i), "Invalid value: %q: %s", e.Addresses[0], cmp.Or(why, "must be a valid IP address"))
		return Endpoint{}, false
	}
	yes := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	b := &Backend{Addr: packet.AddrFrom(a), Port: port}
	if e.NodeName != nil {
		b.Node = *e.NodeName
	}
	if r := e.TargetRef; r != nil && r.Kind == "Pod" {
		b.Pod = kube.Name{Namespace: cmp.Or(r.Namespace, s.Namespace), Name: r.Name}
	}
	out := Endpoint{
		Backend:     b,
		Ready:       yes(e.Conditions.Ready, true),
		Serving:     yes(e.Conditions.Serving, true),
		Terminating: yes(e.Conditions.Terminating, false),
		Local:       c.node != "" && b.Node == c.node,
	}
	if h := e.Hints; h != nil {
		for _, n := range h.ForNodes {
			out.nodeHint = max(out.nodeHint, hintFor(n.Name == c.node))
		}
		for _, z := range h.ForZones {
			out.zoneHint = max(out.zoneHint, hintFor(z.Name == c.zone))
		}
	}
	return out, true
}

// unfit says why nothing is sent to an endpoint at a, or "".
func unfit(a netip.Addr, t discoveryv1.AddressType) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Zone() != "" || a.Is4In6():
		return "must be a valid IP address"
	case a.Is4() != (t == discoveryv1.AddressTypeIPv4):
		return "must be an " + string(t) + " address"
	case a.IsUnspecified():
		return "may not be unspecified"
	case a.IsLoopback():
		return "may not be in the loopback range (127.0.0.0/8, ::1/128)"
	case a.IsLinkLocalUnicast():
		return "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
	case a.IsMulticast():
		return "may not be a multicast address"
	}
	return ""
}

func (c *compiler) hasEndpoints() bool {
	for _, s := range c.slices {
		if len(s.Endpoints) > 0 {
			return true
		}
	}
	return false
}

// hostPorts iterates over a pod's containers that have ports: the containers
// proper and the init containers that go on running.
func hostPorts(pod *corev1.Pod, f func(*corev1.ContainerPort)) {
	if pod == nil || pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return
	}
	each := func(ports []corev1.ContainerPort) {
		for i := range ports {
			if ports[i].HostPort != 0 {
				f(&ports[i])
			}
		}
	}
	for i := range pod.Spec.Containers {
		each(pod.Spec.Containers[i].Ports)
	}
	for i := range pod.Spec.InitContainers {
		if r := pod.Spec.InitContainers[i].RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			each(pod.Spec.InitContainers[i].Ports)
		}
	}
}

func hasHostPorts(pod *corev1.Pod) bool {
	has := false
	hostPorts(pod, func(*corev1.ContainerPort) { has = true })
	return has
}

// compileHostPorts makes each hostPort of a pod a ServicePort with the pod as
// its only endpoint, answering at its hostIP or, without one, at every node address.
func compileHostPorts(name kube.Name, pod *corev1.Pod, old *Service) *Service {
	c := compiler{Service: &Service{Name: name, IsPod: true, born: pod.CreationTimestamp.Unix()}, old: old}
	proxy := c.proxyProtocol(pod.Annotations)
	hostPorts(pod, func(p *corev1.ContainerPort) {
		var host netip.Addr
		if p.HostIP != "" {
			var err error
			if host, err = netip.ParseAddr(p.HostIP); err != nil {
				c.problem("spec.containers.ports.hostIP", "Invalid value: %q: must be a valid IP address", p.HostIP)
				return
			}
		}
		for _, ip := range pod.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil || host.IsValid() && host.Is4() != a.Is4() {
				continue
			}
			c.hostPort(p, host, packet.AddrFrom(a), proxy)
		}
	})
	return c.Service
}

func (c *compiler) hostPort(p *corev1.ContainerPort, host netip.Addr, pod packet.Addr, proxy proxyProtocol) {
	sp := &ServicePort{Pod: c.Name, Name: p.Name, Proto: proto(p.Protocol), Port: uint16(p.HostPort), NodePort: uint16(p.HostPort)}
	sp.ID = identity("pod", c.Name, fmt.Sprint(p.HostPort, p.HostIP), sp.Proto, pod.Is4())
	b := &Backend{Addr: pod, Port: uint16(p.ContainerPort), Pod: c.Name}
	was := c.old.port(sp.ID)
	if was != nil && len(was.Endpoints) == 1 && *was.Endpoints[0].Backend == *b {
		b = was.Endpoints[0].Backend
	}
	sp.Endpoints = []Endpoint{{Backend: b, Ready: true, Serving: true, Local: true, Weight: 1}}
	sp.choosePools(was)
	if was != nil && sp.equal(was) {
		sp = was
	}
	c.Ports = append(c.Ports, sp)

	switch {
	case !host.IsValid() || host.IsUnspecified():
		c.fronts = append(c.fronts, claim{nodeFront(pod.Is4(), sp.Proto, sp.Port), rankHostPort, sp})
	case !host.IsLoopback():
		c.fronts = append(c.fronts, claim{front{addr: packet.AddrFrom(host), port: sp.Port, proto: sp.Proto}, rankHostPort, sp})
	}
	if sp.Proto == packet.SCTP {
		return
	}
	c.published = append(c.published, publication{is4: pod.Is4(), Publication: Publication{
		HostIP: host, Proto: sp.Proto, Port: sp.Port, Target: b.AddrPort(), Pod: c.Name, Name: p.Name,
		AcceptProxy: proxy.accept && sp.Proto == packet.TCP, SendProxy: proxy.send && sp.Proto == packet.TCP,
	}})
}
