package stacktest

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/nat"
	"podgate/policy"
	"podgate/stack"
	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// Addresses that every World has.
var (
	GatewayMAC = packet.MAC{0x0a, 0x58, 10, 244, 0, 1}
	LocalMAC   = packet.MAC{0x0a, 0x58, 127, 0, 0, 1}

	uplinkAddrs = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:3::10")} // the gateway's
	uplinkHops  = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:3::1")}

	nodeAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:2::1")}

	podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
	svcCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
)

// World is a cluster in memory. Methods fail the test that it belongs to.
type World struct {
	t      testing.TB
	Plane  *stack.Plane
	Store  *kube.Store
	Names  *policy.Names // what pods were told by DNS
	Local  *Pod          // the other side of the gateway's own stack
	Uplink *Pod          // the next hop of an uplink; nil: there is none
	Node   *Pod          // the node's kernel, which forwards for others too; nil: it is not linked
	pods   map[kube.Name]*Pod
	were   map[netip.Addr]kube.Name // pods that are gone
	now    atomic.Int64

	Routes []stack.Route // beside those of networks
	Input  stack.Input   // what was published last

	external []netip.Addr // at which node ports are beside the gateway's own

	hosts hosts
}

// Pod is the end of a pipe where a pod's kernel would be.
type Pod struct {
	Name  kube.Name // of a further interface: pod.net1
	ID    flow.PortID
	MAC   packet.MAC
	Addrs []netip.Addr
	spec  stack.PortSpec
	host  *Host // who has the other end now, if not a test
	dev   *link.Mem
	got   []packet.Frame // since the last Received
	last  packet.Frame   // that was got
}

// New makes a World with nobody in it but the gateway. Of cfg, what a test
// leaves out is filled in.
func New(t testing.TB, cfg stack.Config) *World {
	t.Helper()
	w := &World{t: t, Names: &policy.Names{}, pods: map[kube.Name]*Pod{}, were: map[netip.Addr]kube.Name{}}
	w.now.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	cfg.GatewayMAC = GatewayMAC
	cfg.PodCIDRs, cfg.ServiceCIDRs = podCIDRs, svcCIDRs
	for _, p := range podCIDRs {
		a := p.Addr().Next()
		cfg.GatewayAddrs = append(cfg.GatewayAddrs, a)
		cfg.LocalAddrs = append(cfg.LocalAddrs, a, a.Next(), a.Next().Next())
	}
	cfg.Now = w.now.Load
	var err error
	if w.Plane, err = stack.New(cfg); err != nil {
		t.Fatal(err)
	}
	w.Store = kube.NewStore(kube.Config{PodCIDRs: podCIDRs, ServiceCIDRs: svcCIDRs}, func() time.Time { return time.Unix(0, w.now.Load()) })
	w.Local = w.attach(stack.PortSpec{Name: "local", MAC: LocalMAC, Addrs: cfg.LocalAddrs, Local: true})
	w.publish()
	return w
}

func (w *World) attach(spec stack.PortSpec) *Pod {
	w.t.Helper()
	near, far := link.NewPipe()
	id, err := w.Plane.Attach(spec, near)
	if err != nil {
		w.t.Fatal(err)
	}
	return &Pod{Name: spec.Pod, ID: id, MAC: spec.MAC, Addrs: spec.Addrs, spec: spec, dev: far}
}

// AddUplink makes packets leave by an uplink of MTU 1500, masqueraded.
func (w *World) AddUplink(nat stack.Masquerade) {
	w.t.Helper()
	w.Input.Segments = []stack.Segment{uplinkSegment}
	w.Publish()
	w.Uplink = w.attach(stack.PortSpec{
		Pod: kube.Name{Name: "uplink"}, Name: "uplink", MAC: MACOf(uplinkHops[0]), Addrs: uplinkHops, MTU: 1500,
		Network: uplinkSegment.Name, Router: true, Masquerade: &nat,
	})
	w.Uplink.Name = parseName("uplink")
	w.external = append(w.external, uplinkAddrs...)
	w.Routes = append(w.Routes,
		stack.Route{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Via: uplinkHops[0]},
		stack.Route{Prefix: netip.MustParsePrefix("::/0"), Via: uplinkHops[1]})
	w.publish()
}

// AddNode attaches the node itself, as podgate gateway does.
func (w *World) AddNode() {
	w.t.Helper()
	w.Node = w.attach(stack.PortSpec{Pod: parseName("node"), Name: "podgate0", MAC: MACOf(nodeAddrs[0]), Addrs: nodeAddrs, Router: true})
	w.external = append(w.external, nodeAddrs...)
	w.publish()
}

var uplinkSegment = stack.Segment{Name: "uplink", Gateways: uplinkAddrs}

// Apply applies manifests, attaches and detaches pods as they come and go, and
// publishes. New pods are running and ready at once.
func (w *World) Apply(manifests string) {
	w.t.Helper()
	m, problems := kube.LoadBytes("manifests", []byte(manifests))
	for _, p := range problems {
		w.t.Fatal(p)
	}
	for _, c := range w.Store.Apply(m.Objects) {
		for _, p := range c.Problems {
			if p.Severity == kube.Error {
				w.t.Fatal(p)
			}
		}
	}
	w.settle()
}

// ApplyBroken applies manifests of which some are rejected, and returns why.
func (w *World) ApplyBroken(manifests string) (why []kube.Problem) {
	w.t.Helper()
	m, problems := kube.LoadBytes("manifests", []byte(manifests))
	why = problems
	for _, c := range w.Store.Apply(m.Objects) {
		why = append(why, c.Problems...)
	}
	w.settle()
	return why
}

// Told is an answer of DNS to a pod: name has an address for some time.
func (w *World) Told(pod *Pod, name string, addr packet.Addr, ttl time.Duration) {
	w.Names.Learn(packet.AddrFrom(pod.Addrs[0]), name, []packet.Addr{addr}, w.now.Load(), w.now.Load()+int64(ttl))
}

// Delete deletes what manifests name.
func (w *World) Delete(manifests string) {
	w.t.Helper()
	m, problems := kube.LoadBytes("manifests", []byte(manifests))
	for _, p := range problems {
		w.t.Fatal(p)
	}
	w.Store.Delete(m.Objects)
	w.settle()
}

// Ready sets a pod's readiness.
func (w *World) Ready(name kube.Name, ready bool) {
	w.t.Helper()
	w.setStatus(w.Store.State().Pods[name], ready)
	w.settle()
}

func (w *World) setStatus(pod *corev1.Pod, ready bool) {
	st := corev1.ConditionTrue
	if !ready {
		st = corev1.ConditionFalse
	}
	w.Store.SetPodStatus(kube.Name{Namespace: pod.Namespace, Name: pod.Name}, string(pod.UID), corev1.PodStatus{
		Phase: corev1.PodRunning,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue},
			{Type: corev1.PodReady, Status: st},
			{Type: corev1.ContainersReady, Status: st},
		},
	})
}

// settle does what the runtime does: sandboxes follow the state.
func (w *World) settle() {
	w.t.Helper()
	for name, pod := range w.Store.State().Pods {
		if p := w.pods[name]; p != nil && pod.DeletionTimestamp != nil {
			w.Detach(name)
			w.Store.PodGone(name, string(pod.UID))
		}
	}
	state := w.Store.State()
	for _, name := range slices.SortedFunc(maps.Keys(state.Pods), compareNames) {
		pod := state.Pods[name]
		if pod.Annotations[kube.LocalAnnotation] != "" || w.pods[name] != nil || pod.Spec.HostNetwork || pod.DeletionTimestamp != nil {
			continue
		}
		if w.attachAll(name, pod, state.Interfaces[name]) {
			w.setStatus(pod, true)
		}
	}
	for name := range w.pods {
		if pod, _, _ := strings.Cut(name.Name, "."); w.Store.State().Pods[kube.Name{Namespace: name.Namespace, Name: pod}] == nil {
			w.Detach(name)
		}
	}
	w.publish()
}

// attachAll gives a pod its interfaces, if it can have them.
func (w *World) attachAll(name kube.Name, pod *corev1.Pod, ifs *kube.Interfaces) bool {
	w.t.Helper()
	if ifs == nil {
		spec := stack.PortSpec{Pod: name, Name: "eth0"}
		for _, ip := range pod.Status.PodIPs {
			spec.Addrs = append(spec.Addrs, netip.MustParseAddr(ip.IP))
		}
		spec.MAC = MACOf(spec.Addrs[0])
		w.pods[name] = w.attach(spec)
		return true
	}
	w.publish() // the networks first
	for i, f := range ifs.List {
		spec := stack.PortSpec{Pod: name, Name: f.Name, MAC: f.MAC, Addrs: f.Addrs, Secondary: i > 0, Default: len(f.Default) > 0}
		if f.Network != nil {
			spec.Network = f.Network.Name.String()
		}
		p := w.attach(spec)
		if i > 0 {
			p.Name.Name += "." + f.Name
		}
		w.pods[p.Name] = p
	}
	return len(ifs.List) > 0
}

// Reattach takes a pod's interface away and gives it another with that MTU.
func (w *World) Reattach(name kube.Name, mtu int) {
	w.t.Helper()
	spec := w.pods[name].spec
	spec.MTU = mtu
	w.Detach(name)
	w.pods[name] = w.attach(spec)
	w.pods[name].Name = name
	w.publish()
}

// Detach takes a pod's interface away.
func (w *World) Detach(name kube.Name) {
	w.t.Helper()
	if err := w.Plane.Detach(w.pods[name].ID); err != nil {
		w.t.Fatal(err)
	}
	for _, a := range w.pods[name].Addrs {
		w.were[a] = name
	}
	delete(w.pods, name)
}

func (w *World) publish() {
	w.t.Helper()
	state := w.Store.State()
	node := []netip.Addr{podCIDRs[0].Addr().Next(), podCIDRs[1].Addr().Next()}
	var problems []kube.Problem
	w.Input.Services, problems = nat.Compile(w.Input.Services, state, nat.Config{
		NodeName: "podgate", NodeAddrs: slices.Concat(node, w.external), ServiceCIDRs: svcCIDRs,
	})
	for _, p := range problems {
		w.t.Log(p)
	}
	w.Input.Policies, problems = policy.Compile(w.Input.Policies, state, policy.Config{NodeAddrs: node, Names: w.Names})
	for _, p := range problems {
		w.t.Log(p)
	}
	var viaPods []stack.Route
	w.Input.Segments, viaPods = stack.SegmentsOf(state)
	if w.Uplink != nil {
		w.Input.Segments = append(w.Input.Segments, uplinkSegment)
	}
	w.Input.Routes = slices.Concat(w.Routes, viaPods)
	w.Plane.Publish(w.Input)
}

// Publish publishes once more, after Input was changed.
func (w *World) Publish() { w.Plane.Publish(w.Input) }

// MACOf is the MAC that goes with a pod's first address.
func MACOf(a netip.Addr) packet.MAC {
	b := a.As16()
	return packet.MAC{0x0a, 0x58, b[12], b[13], b[14], b[15]}
}

// Pod returns a pod by "name", in the namespace default, or "namespace/name".
func (w *World) Pod(name string) *Pod {
	w.t.Helper()
	switch {
	case name == "local":
		return w.Local
	case name == "node" && w.Node != nil:
		return w.Node
	case name == "uplink" && w.Uplink != nil:
		return w.Uplink
	}
	p := w.pods[parseName(name)]
	if p == nil {
		w.t.Fatalf("there is no pod %s", name)
	}
	return p
}

// IP is the pod's IPv4 address, IP6 its IPv6 one.
func (p *Pod) IP() netip.Addr  { return p.ip(true) }
func (p *Pod) IP6() netip.Addr { return p.ip(false) }

func (p *Pod) ip(v4 bool) netip.Addr {
	for _, a := range p.Addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// Advance moves the clock, and lets the worker do what is due.
func (w *World) Advance(d time.Duration) {
	w.now.Add(int64(d))
	w.Poll()
}

// Send sends frames from a pod and polls until the World is quiet.
func (w *World) Send(from *Pod, frames ...packet.Frame) {
	w.t.Helper()
	if n, err := from.dev.WriteBatch(frames); n != len(frames) || err != nil {
		w.t.Fatalf("sent %d of %d frames: %v", n, len(frames), err)
	}
	w.Poll()
}

// Poll polls until the World is quiet, and hands the pods what came for them.
func (w *World) Poll() {
	for {
		n := w.Plane.Poll()
		for _, p := range w.all() {
			if p.host == nil {
				p.collect()
			}
		}
		if n == 0 {
			return
		}
	}
}

// all are the local side, the node, the uplink and the pods by name.
func (w *World) all() []*Pod {
	all := []*Pod{w.Local}
	for _, p := range []*Pod{w.Node, w.Uplink} {
		if p != nil {
			all = append(all, p)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(w.pods), compareNames) {
		all = append(all, w.pods[name])
	}
	return all
}

func (p *Pod) collect() {
	for {
		buf := []packet.Frame{make(packet.Frame, link.MaxFrame)}
		if n, _ := p.dev.ReadBatch(buf); n == 0 {
			return
		}
		p.got = append(p.got, slices.Clone(buf[0]))
		p.last = p.got[len(p.got)-1]
	}
}

// Received are the frames that came for the pod since the last call.
func (p *Pod) Received() []packet.Frame {
	got := p.got
	p.got = nil
	return got
}

// Counters are those that are not 0.
func (w *World) Counters() map[string]uint64 {
	all := w.Plane.Counters()
	maps.DeleteFunc(all, func(_ string, n uint64) bool { return n == 0 })
	return all
}

func parseName(s string) kube.Name {
	for i := range s {
		if s[i] == '/' {
			return kube.Name{Namespace: s[:i], Name: s[i+1:]}
		}
	}
	return kube.Name{Namespace: "default", Name: s}
}

func compareNames(a, b kube.Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
