package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// change makes one change to w. Everything is chosen from little, so that
// things meet: names, addresses, ports.
func (d *dice) change(w *world) {
	name := pick(d, "a", "b", "c")
	switch d.n(10) {
	case 0:
		put(&w.st.Services, kubeName(name), nil)
	case 1, 2, 3:
		d.service(w, name)
	case 4:
		w.st.EndpointSlices.Delete(kubeName(pick(d, "s1", "s2", "s3", "s4")))
		w.st.EndpointSlices.Done()
	case 5, 6, 7:
		d.slice(w, pick(d, "s1", "s2", "s3", "s4"), name)
	case 8:
		put(&w.st.Pods, kubeName(name), nil)
	case 9:
		p := w.pod(name, fmt.Sprintf("10.244.0.%d", 11+d.n(3)), corev1.ContainerPort{ContainerPort: 8080, HostPort: int32(30080 + d.n(3)),
			Protocol: d.protocol(), HostIP: pick(d, "", "0.0.0.0", "127.0.0.1", "10.244.0.1")})
		p.Spec.HostNetwork = d.n(4) == 3
	}
}

func (d *dice) protocol() corev1.Protocol {
	return pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func (d *dice) service(w *world, name string) {
	s := w.service(name, 1+d.n(3))
	if d.maybe() {
		dual(1 + d.n(3))(s)
	}
	switch d.n(3) {
	case 1:
		nodePort(int32(30080 + d.n(3)))(s)
	case 2:
		balancer(int32(30080+d.n(3)), pick(d, "198.51.100.7", "2001:db8::7", "127.0.0.1"))(s)
		if d.maybe() {
			s.Spec.LoadBalancerSourceRanges = []string{pick(d, "192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32")}
		}
	}
	if d.maybe() {
		s.Spec.ExternalIPs = []string{pick(d, "198.51.100.7", "198.51.100.8", "2001:db8::8")}
	}
	if d.maybe() {
		internalLocal(s)
	}
	if d.maybe() {
		externalLocal(s)
	}
	if d.maybe() {
		affinity(600)(s)
	}
	s.Spec.Ports[0].Protocol = d.protocol()
	if d.maybe() {
		s.Spec.Ports[0].Name = "one"
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "two", Port: 81, Protocol: d.protocol()})
	}
	if d.maybe() {
		annotated(annotationRanges, pick(d, "80-82", "one=80-90"))(s)
	}
	s.CreationTimestamp = metav1.Unix(int64(d.n(3)), 0)
}

func (d *dice) slice(w *world, name, service string) {
	var eps []discoveryv1.Endpoint
	six := d.maybe()
	for range d.n(4) {
		ip := fmt.Sprintf("10.244.0.%d", 11+d.n(5))
		if six {
			ip = fmt.Sprintf("fd00:10:244::%d", 11+d.n(5))
		}
		e := ep(ip)
		pick(d, func(*discoveryv1.Endpoint) {}, unready, leaving, func(e *discoveryv1.Endpoint) { e.Conditions = discoveryv1.EndpointConditions{} })(&e)
		if d.maybe() {
			elsewhere(&e)
		}
		switch d.n(5) {
		case 1, 2:
			zones(pick(d, "z1", "z2"))(&e)
		case 3, 4:
			nodes(pick(d, "here", "there"))(&e)
		}
		eps = append(eps, e)
	}
	s := w.slice(name, service, eps...)
	s.Ports = []discoveryv1.EndpointPort{epPort(pick(d, "", "one"), int32(8080+d.n(2)), d.protocol()), epPort("two", 8090, d.protocol())}
}

// FuzzCompile changes random clusters step by step: after each step the table
// compiled from the one before is that of a compile from scratch (world.compile
// checks), earlier tables stay as they were, and whoever is reached by a choice
// is an endpoint that kube-proxy's rules allow.
func FuzzCompile(f *testing.F) {
	for seed := range 40 {
		var b []byte
		x := uint32(seed)*2654435761 + 99
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
		w := newWorld(t)
		for len(d.in) > 0 && !t.Failed() {
			before := w.prev
			var was string
			if before != nil {
				was = fmt.Sprint(dump(before))
			}
			for range 1 + d.n(3) {
				d.change(w)
			}
			tab, _ := w.compile()
			if before != nil && was != fmt.Sprint(dump(before)) {
				t.Fatal("an earlier Table changed")
			}
			checkChoices(t, tab, &w.st)
		}
	})
}

// checkChoices compares what each front of a Service reaches with categorize.
func checkChoices(t *testing.T, tab *Table, st *kube.State) {
	t.Helper()
	for f := range tab.fronts.All() {
		dst := f.addr
		switch {
		case f.node && dst.Is4():
			dst = node4
		case f.node:
			dst = node6
		}
		sp, o := tab.Lookup(dst, f.proto, f.port)
		if o != Translate || sp.Service == (kube.Name{}) {
			continue
		}
		for _, external := range []bool{false, true} {
			want := categorize(st, sp, dst == sp.ClusterIP, external)
			got := map[string]bool{}
			outcome := Translate
			for p := range 200 {
				c := sp.Choose(packet.Tuple{Src: addr(fmt.Sprintf("192.0.2.%d", p%250)), SrcPort: uint16(p), Dst: dst, DstPort: f.port, Proto: f.proto}, external, nil, nil)
				if c.Outcome == NotAllowed {
					return
				}
				outcome = c.Outcome
				if c.Backend != nil {
					got[c.Backend.AddrPort().String()] = true
				}
			}
			is := fmt.Sprint(outcome, sorted(got))
			if is != want {
				t.Fatalf("%s port %q at %v, external %t: got %s, want %s", sp.Service, sp.Name, f, external, is, want)
			}
		}
	}
}

// entry is an endpoint as categorize sees it.
type entry struct {
	at                            string
	local, ready, serving, ending bool
	nodes, zones                  []string
}

func (e entry) better(o entry) bool {
	if e.local != o.local {
		return e.local
	}
	if e.ready != o.ready {
		return e.ready
	}
	return e.serving && !o.serving
}

// categorize says by the rules of kube-proxy, and the API's text on endpoint
// conditions, hints and traffic policies, who is to be reached.
func categorize(st *kube.State, sp *ServicePort, internal, external bool) string {
	svc := st.Services[sp.Service]
	all := map[string]entry{}
	for _, name := range []string{"s1", "s2", "s3", "s4"} {
		s := st.EndpointSlices.Get(kubeName(name))
		if s == nil || s.Labels[discoveryv1.LabelServiceName] != svc.Name || (s.AddressType == discoveryv1.AddressTypeIPv4) != sp.ClusterIP.Is4() {
			continue
		}
		for _, p := range s.Ports {
			if *p.Name != sp.Name || proto(*p.Protocol) != sp.Proto {
				continue
			}
			for _, e := range s.Endpoints {
				c := e.Conditions
				n := entry{
					at:      netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*p.Port)).String(),
					local:   *e.NodeName == "here",
					ready:   c.Ready == nil || *c.Ready,
					serving: c.Serving == nil || *c.Serving,
					ending:  c.Terminating != nil && *c.Terminating,
				}
				if e.Hints != nil {
					for _, h := range e.Hints.ForNodes {
						n.nodes = append(n.nodes, h.Name)
					}
					for _, h := range e.Hints.ForZones {
						n.zones = append(n.zones, h.Name)
					}
				}
				if old, dup := all[n.at]; !dup || n.better(old) {
					all[n.at] = n
				}
			}
		}
	}
	local := internal && svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal ||
		!internal && external && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	some := func(wanted func(entry) bool) map[string]bool {
		set := map[string]bool{}
		for _, e := range all {
			if wanted(e) {
				set[e.at] = true
			}
		}
		return set
	}
	every := func(wanted func(entry) bool) bool {
		return len(some(func(e entry) bool { return e.ready && !wanted(e) })) == 0
	}
	ready := func(e entry) bool { return e.ready }
	ending := func(e entry) bool { return !e.ready && e.serving && e.ending }
	here := func(e entry) bool { return slices.Contains(e.nodes, "here") }
	zone := func(e entry) bool { return slices.Contains(e.zones, "z1") }
	and := func(a, b func(entry) bool) func(entry) bool { return func(e entry) bool { return a(e) && b(e) } }

	wanted := ready
	switch {
	case local:
		wanted = and(ready, func(e entry) bool { return e.local })
		if len(some(wanted)) == 0 {
			wanted = and(ending, func(e entry) bool { return e.local })
		}
		if len(some(wanted)) == 0 && len(some(ready))+len(some(ending)) > 0 {
			return fmt.Sprint(NoLocal, []string{})
		}
	case len(some(ready)) == 0:
		wanted = ending
	case every(func(e entry) bool { return len(e.nodes) > 0 }) && len(some(and(ready, here))) > 0:
		wanted = and(ready, here)
	case every(func(e entry) bool { return len(e.zones) > 0 }) && len(some(and(ready, zone))) > 0:
		wanted = and(ready, zone)
	}
	if set := some(wanted); len(set) > 0 {
		return fmt.Sprint(Translate, sorted(set))
	}
	return fmt.Sprint(NoEndpoints, []string{})
}
