package kernel

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podgate/kube"
	"podgate/policy"
	"podgate/stack"
)

// matrix is the cluster that Kubernetes' own NetworkPolicy tests use: pods a, b
// and c in each of the namespaces x, y and z, all listening on two ports of two
// protocols.
type matrix struct {
	t        *testing.T
	plane    *stack.Plane
	store    *kube.Store
	pods     map[kube.Name]*pod
	policies *policy.Table
}

var (
	matrixNames = func() (names []kube.Name) {
		for _, ns := range []string{"x", "y", "z"} {
			for _, pod := range []string{"a", "b", "c"} {
				names = append(names, kube.Name{Namespace: ns, Name: pod})
			}
		}
		return names
	}()
	matrixPorts = []int{80, 81}
)

func newMatrix(t *testing.T) *matrix {
	t.Helper()
	m := &matrix{t: t, plane: newPlane(t, nil), pods: map[kube.Name]*pod{}}
	m.store = kube.NewStore(kube.Config{}, nil)
	kind := kinds()[0]
	for i, n := range matrixNames {
		m.apply(fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: \"%s\", labels: {ns: \"%[1]s\"}}\n", n.Namespace))
		m.apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: "%s", labels: {pod: %[1]s}}, spec: {containers: [{name: c, image: x, ports: [
			{name: serve-80, containerPort: 80}, {name: serve-81, containerPort: 81},
			{name: serve-80-udp, containerPort: 80, protocol: UDP}, {name: serve-81-udp, containerPort: 81, protocol: UDP}]}]}}`, n.Name, n.Namespace))
		if got, want := m.store.State().Pods[n].Status.PodIP, fmt.Sprintf("10.244.0.%d", 4+i); got != want {
			t.Fatalf("%s has %s, want %s", n, got, want)
		}
		m.pods[n] = newPod(t, m.plane, kind, n, byte(4+i), 1500)
		m.pods[n].serve(t)
	}
	return m
}

// serve answers on both ports: TCP by accepting, UDP by sending back.
func (p *pod) serve(t *testing.T) {
	for _, port := range matrixPorts {
		l := p.listen(t, fmt.Sprintf("[::]:%d", port))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		var pc net.PacketConn
		p.Do(func() (err error) { pc, err = net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port)); return err })
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(buf[:n], from)
			}
		}()
	}
}

func (m *matrix) load(manifests string) []kube.Object {
	m.t.Helper()
	objs, problems := kube.LoadBytes("manifests", []byte(manifests))
	for _, p := range problems {
		m.t.Fatal(p)
	}
	return objs.Objects
}

// apply applies and publishes, as `podgate apply` does.
func (m *matrix) apply(manifests string) {
	m.t.Helper()
	for _, c := range m.store.Apply(m.load(manifests)) {
		for _, p := range c.Problems {
			m.t.Fatal(p)
		}
	}
	m.publish()
}

func (m *matrix) remove(manifests string) {
	m.t.Helper()
	m.store.Delete(m.load(manifests))
	m.publish()
}

func (m *matrix) publish() {
	st := m.store.State()
	node := []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)}
	m.policies, _ = policy.Compile(m.policies, st, policy.Config{NodeAddrs: node})
	m.plane.Publish(stack.Input{Policies: m.policies})
}

// probe is one cell of the matrix.
type probe struct {
	from, to kube.Name
	network  string // tcp, udp
	port     int
}

func (p probe) String() string { return fmt.Sprintf("%s -> %s %s/%d", p.from, p.to, p.network, p.port) }

func allProbes() (all []probe) {
	for _, from := range matrixNames {
		for _, to := range matrixNames {
			for _, network := range []string{"tcp", "udp"} {
				for _, port := range matrixPorts {
					all = append(all, probe{from, to, network, port})
				}
			}
		}
	}
	return all
}

// connects says what goes wrong with a real connection. What ought to pass gets
// long to do so, and may try again; what ought not gets as long as any answer
// here takes, and a little more.
func (m *matrix) connects(p probe, six, expected bool) (err error) {
	if !expected {
		return m.try(p, six, 250*time.Millisecond)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if err = m.try(p, six, 10*time.Second); err == nil {
			break
		}
	}
	return err
}

func (m *matrix) try(p probe, six bool, wait time.Duration) error {
	ip := m.pods[p.to].v4
	if six {
		ip = m.pods[p.to].v6
	}
	var c net.Conn
	var err error
	m.pods[p.from].NS.Do(func() error {
		c, err = net.DialTimeout(p.network, net.JoinHostPort(ip, fmt.Sprint(p.port)), wait)
		return nil
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if p.network == "udp" {
		c.Write([]byte("hello"))
		c.SetReadDeadline(time.Now().Add(wait))
		_, err = c.Read(make([]byte, 8))
	}
	return err
}

// expect probes every cell at once.
func (m *matrix) expect(name string, six bool, want func(probe) bool) {
	m.t.Helper()
	probes := allProbes()
	wrong := make([]string, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		wg.Go(func() {
			expected := p.from == p.to || want(p) // a pod always reaches itself
			if err := m.connects(p, six, expected); (err == nil) != expected {
				wrong[i] = fmt.Sprintf("%s: want it to connect %t, got %v", p, expected, err)
			}
		})
	}
	wg.Wait()
	if wrong = slices.DeleteFunc(wrong, func(s string) bool { return s == "" }); len(wrong) > 0 {
		counters := m.plane.Counters()
		maps.DeleteFunc(counters, func(_ string, n uint64) bool { return n == 0 })
		m.t.Errorf("%s: %d of %d wrong:\n%s\ncounters %v", name, len(wrong), len(probes), strings.Join(wrong[:min(8, len(wrong))], "\n"), counters)
	}
}

// policyOf is the manifest of a policy in x unless the name says otherwise.
func policyOf(name, spec string) string {
	ns, short, ok := strings.Cut(name, "/")
	if !ok {
		ns, short = "x", name
	}
	return fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s, namespace: %q}, spec: %s}", short, ns, spec)
}

// Real connections between real kernels before, under and after a series of
// policies are those that the policies' text says.
func TestPolicyMatrix(t *testing.T) {
	m := newMatrix(t)
	everything := func(probe) bool { return true }
	into := func(who func(kube.Name) bool, allowed func(probe) bool) func(probe) bool {
		return func(p probe) bool { return !who(p.to) || allowed(p) }
	}
	xa := func(n kube.Name) bool { return n == kube.Name{Namespace: "x", Name: "a"} }
	x := func(n kube.Name) bool { return n.Namespace == "x" }
	both := func(name string, want func(probe) bool) {
		m.expect(name+", IPv4", false, want)
		m.expect(name+", IPv6", true, want)
	}
	both("before", everything)
	for _, step := range []struct {
		name, policy string
		want         func(probe) bool
	}{
		{"deny all ingress of a namespace", policyOf("p", "{podSelector: {}, policyTypes: [Ingress]}"),
			into(x, func(probe) bool { return false })},
		{"a pod of the same namespace", policyOf("p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}"),
			into(xa, func(p probe) bool { return p.from == kube.Name{Namespace: "x", Name: "b"} })},
		{"pods and namespaces, and, by expression", policyOf("p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [
			{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchLabels: {pod: b}}}]}]}`),
			into(xa, func(p probe) bool { return p.from.Namespace != "x" && p.from.Name == "b" })},
		{"pods or namespaces, on one port", policyOf("p", `{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}], from: [
			{namespaceSelector: {matchLabels: {ns: "y"}}}, {podSelector: {matchLabels: {pod: c}}}]}]}`),
			into(xa, func(p probe) bool {
				return p.network == "tcp" && p.port == 80 && (p.from.Namespace == "y" || p.from == kube.Name{Namespace: "x", Name: "c"})
			})},
		{"a named port of UDP", policyOf("p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: serve-81-udp, protocol: UDP}]}]}"),
			into(xa, func(p probe) bool { return p.network == "udp" && p.port == 81 })},
		{"a range of ports", policyOf("p", "{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}"),
			into(x, func(p probe) bool { return p.network == "tcp" && p.port == 81 })},
		{"an ipBlock with exceptions", policyOf("p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/24, except: [10.244.0.8/29]}}, {ipBlock: {cidr: 'fd00:10:244::/64', except: ['fd00:10:244::8/125']}}]}]}"),
			into(xa, func(p probe) bool { return p.from.Namespace == "x" || p.from == kube.Name{Namespace: "y", Name: "a"} })},
		{"egress to one namespace", policyOf("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}"),
			func(p probe) bool { return p.from.Namespace != "x" || p.to.Namespace == "y" }},
		{"both directions, two policies", policyOf("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}]}]}") +
			"\n---\n" + policyOf("y/q", "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}]}]}"),
			func(p probe) bool {
				out := p.from.Namespace != "x" || p.to.Namespace == "y" && p.network == "tcp" && p.port == 80
				in := p.to != kube.Name{Namespace: "y", Name: "b"} || p.from.Name == "a"
				return out && in
			}},
	} {
		m.apply(step.policy)
		both(step.name, step.want)
	}
	m.remove(policyOf("y/q", "{}"))
	m.apply(policyOf("p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}"))
	m.expect("a block of IPv6, IPv4", false, into(xa, func(probe) bool { return false }))
	m.expect("a block of IPv6, IPv6", true, everything)
	m.remove(policyOf("p", "{}"))
	both("after", everything)
}

// A stream between two pods goes on, and loses not one datagram, while a
// hundred policies come, change and go that do not concern it; and a policy
// that does ends an established connection before it is published.
func TestPolicyChangesDisturbNobodyElse(t *testing.T) {
	m := newMatrix(t)
	from, to := kube.Name{Namespace: "x", Name: "a"}, kube.Name{Namespace: "y", Name: "a"}
	m.apply(policyOf("y/allow", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}"))
	stream := m.stream(from, to)
	m.until("the stream flows", func() bool { return stream.back.Load() > 10 })
	before := stream.back.Load()
	changes := 0
	for ; changes < 100; changes++ {
		n := fmt.Sprintf("z/p%d", changes%10)
		switch changes / 10 % 3 {
		case 0:
			m.apply(policyOf(n, "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
		case 1:
			m.apply(policyOf(n, "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}"))
		case 2:
			m.remove(policyOf(n, "{}"))
		}
	}
	m.until("the stream flows on", func() bool { return stream.back.Load() > before })
	stream.end()
	m.until("every datagram came back", func() bool { return stream.back.Load() == stream.sent.Load() })
	for _, name := range []string{"policy-ingress-denied", "policy-egress-denied", "flow-cut-by-policy", "flow-moved"} {
		if n := m.plane.Counters()[name]; n != 0 {
			t.Errorf("%s: got %d, want 0", name, n)
		}
	}

	conn := m.open(from, to)
	m.apply(policyOf("y/allow", "{podSelector: {}, policyTypes: [Ingress]}"))
	for _, f := range m.plane.Flows() {
		if f.SrcPod == from.String() && f.DstPod == to.String() && f.Verdict != "drop" {
			t.Errorf("still there after the policy was published: %+v", f)
		}
	}
	if n := m.plane.Counters()["flow-cut-by-policy"]; n == 0 {
		t.Error("no conversation was cut")
	}
	conn.Close()
}

// open makes a connection that the server does not close at once.
func (m *matrix) open(from, to kube.Name) net.Conn {
	m.t.Helper()
	l := m.pods[to].listen(m.t, "[::]:9000")
	go func() {
		if c, err := l.Accept(); err == nil {
			m.t.Cleanup(func() { c.Close() })
		}
	}()
	c, err := m.pods[from].dial("tcp", net.JoinHostPort(m.pods[to].v4, "9000"))
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// echoes are of datagrams to a pod that sends them back.
type echoes struct {
	sent, back atomic.Int64
	end        func() // returns when the last one is sent
}

// stream sends a datagram every millisecond, but never so many before they are
// back that a queue on the way could be full.
func (m *matrix) stream(from, to kube.Name) *echoes {
	m.t.Helper()
	c, err := m.pods[from].dial("udp", net.JoinHostPort(m.pods[to].v4, "80"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	s, stop := &echoes{}, make(chan struct{})
	underWay := make(chan struct{}, 100)
	var sending sync.WaitGroup
	sending.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			select {
			case <-stop:
				return
			case underWay <- struct{}{}:
				c.Write([]byte("datagram"))
				s.sent.Add(1)
			}
		}
	})
	go func() {
		for buf := make([]byte, 16); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
			<-underWay
			s.back.Add(1)
		}
	}()
	s.end = sync.OnceFunc(func() { close(stop); sending.Wait() })
	m.t.Cleanup(s.end)
	return s
}

func (m *matrix) until(what string, cond func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			m.t.Fatalf("not within 30 s: %s", what)
		}
		<-tick.C
	}
}
