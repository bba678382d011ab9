package kernel

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/nat"
	"podgate/stack"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// shop is a running plane with three pods and the Services that a test applies.
type shop struct {
	t       *testing.T
	plane   *stack.Plane
	store   *kube.Store
	table   *nat.Table
	a, b, c *pod
	ahead   atomic.Int64 // of the plane's clock, in nanoseconds
}

// eachShop runs f with each kind of link.
func eachShop(t *testing.T, f func(t *testing.T, s *shop)) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) { f(t, newShopOn(t, kind)) })
	}
}

func newShop(t *testing.T) *shop { return newShopOn(t, kinds()[0]) }

func newShopOn(t *testing.T, kind string) *shop {
	s := &shop{t: t, store: kube.NewStore(kube.Config{}, nil)}
	start := time.Now()
	s.plane = newPlane(t, func() int64 { return start.UnixNano() + int64(time.Since(start)) + s.ahead.Load() })
	for i, p := range []**pod{&s.a, &s.b, &s.c} {
		*p = newPod(t, s.plane, kind, kube.Name{Namespace: "default", Name: string("abc"[i])}, byte(4+i), 1500)
	}
	return s
}

// apply applies manifests and returns once the plane enforces them.
func (s *shop) apply(manifests string) {
	s.t.Helper()
	m, problems := kube.LoadBytes("shop", []byte(manifests))
	for _, p := range problems {
		s.t.Fatal(p)
	}
	for _, c := range s.store.Apply(m.Objects) {
		for _, p := range c.Problems {
			if p.Severity == kube.Error {
				s.t.Fatal(p)
			}
		}
	}
	s.publish()
}

func (s *shop) publish() {
	s.table, _ = nat.Compile(s.table, s.store.State(), nat.Config{
		NodeName: "podgate", NodeAddrs: []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	})
	s.plane.Publish(stack.Input{Services: s.table})
}

// endpoints is the one slice of Service web: "10.244.0.4 ready", one a word pair.
func endpoints(eps ...string) string {
	var b strings.Builder
	b.WriteString(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
endpoints:
`)
	for _, e := range eps {
		addr, state, _ := strings.Cut(e, " ")
		fmt.Fprintf(&b, "- {addresses: [%s], nodeName: podgate, conditions: {ready: %t, serving: %t, terminating: %t}}\n",
			addr, state == "ready", state != "unready", state == "leaving")
	}
	if len(eps) == 0 {
		return strings.Replace(b.String(), "endpoints:\n", "endpoints: []\n", 1)
	}
	return b.String()
}

func web(spec string) string {
	return `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: ` + vip4 + `
  ports: [{name: tcp, port: 80, targetPort: 8080, nodePort: 30080}, {name: udp, port: 53, protocol: UDP, targetPort: 8080, nodePort: 30053}]
` + spec
}

// serve answers each connection and each datagram with who answers and who asked.
func (s *shop) serve(p *pod) {
	s.t.Helper()
	l := p.listen(s.t, ":8080")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", p.v4, c.RemoteAddr())
			c.Close()
		}
	}()
	pc := p.packets(s.t, ":8080")
	go func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo([]byte(p.v4+" "+from.String()), from)
		}
	}()
}

func (p *pod) packets(t *testing.T, addr string) (pc net.PacketConn) {
	t.Helper()
	p.Do(func() (err error) { pc, err = net.ListenPacket("udp4", addr); return err })
	t.Cleanup(func() { pc.Close() })
	return pc
}

// ask is who answers p over TCP, and whom he sees; an error's text if nobody does.
func (p *pod) ask(addr string) (who, client string) {
	c, err := p.dial("tcp", addr)
	if err != nil {
		return err.Error(), ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	said, err := io.ReadAll(c)
	if err != nil {
		return err.Error(), ""
	}
	who, client, _ = strings.Cut(string(said), " ")
	client, _, _ = net.SplitHostPort(client)
	return who, client
}

func TestServiceTypesByRealConnections(t *testing.T) {
	s := newShop(t)
	s.serve(s.a)
	s.apply(web("") + "---" + endpoints("10.244.0.4 ready"))
	for _, at := range []string{vip4 + ":80", gateway4 + ":30080"} {
		if who, client := s.c.ask(at); who != s.a.v4 || client != s.c.v4 {
			t.Errorf("%s: %q answered and saw %q, want %s and %s", at, who, client, s.a.v4, s.c.v4)
		}
	}
	if who, _ := s.c.ask(vip4 + ":81"); !strings.Contains(who, "refused") {
		t.Errorf("unknown port: got %q, want connection refused", who)
	}
}

// A pod that reaches itself through a Service sees the gateway.
func TestHairpinByRealConnections(t *testing.T) {
	s := newShop(t)
	s.serve(s.a)
	s.apply(web("") + "---" + endpoints("10.244.0.4 ready"))
	if who, client := s.a.ask(vip4 + ":80"); who != s.a.v4 || client != gateway4 {
		t.Errorf("%q answered and saw %q, want %s and %s", who, client, s.a.v4, gateway4)
	}
}

func TestTerminatingFallbackByRealConnections(t *testing.T) {
	s := newShop(t)
	s.serve(s.a)
	s.serve(s.b)
	s.apply(web("") + "---" + endpoints("10.244.0.4 leaving", "10.244.0.5 unready"))
	for _, step := range []struct{ endpoints, want string }{
		{endpoints("10.244.0.4 leaving", "10.244.0.5 unready"), s.a.v4},
		{endpoints("10.244.0.4 leaving", "10.244.0.5 ready"), s.b.v4},
		{endpoints("10.244.0.5 unready"), "refused"},
	} {
		s.apply(step.endpoints)
		for range 5 {
			if who, _ := s.c.ask(vip4 + ":80"); !strings.Contains(who, step.want) {
				t.Errorf("got %q, want %s with%s", who, step.want, step.endpoints)
			}
		}
	}
}

func TestAffinityWithTimeoutByRealConnections(t *testing.T) {
	s := newShop(t)
	s.serve(s.a)
	s.serve(s.b)
	s.apply(web("  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 3600}}\n") + "---" + endpoints("10.244.0.4 ready", "10.244.0.5 ready"))
	first, _ := s.c.ask(vip4 + ":80")
	other := map[string]string{s.a.v4: s.b.v4, s.b.v4: s.a.v4}[first]
	s.apply(endpoints(first+" unready", other+" ready"))
	if who, _ := s.c.ask(vip4 + ":80"); who != other {
		t.Fatalf("%s is not ready: got %q, want %s", first, who, other)
	}
	s.apply(endpoints(first+" ready", other+" ready"))
	for _, at := range []string{vip4 + ":80", gateway4 + ":30080", vip4 + ":80"} {
		if who, _ := s.c.ask(at); who != other {
			t.Errorf("%s: got %q, want the remembered %s", at, who, other)
		}
	}
	// A question remembers nobody: the hour runs out.
	ask := stack.TraceQuery{Pod: kube.Name{Namespace: "default", Name: "c"}, Dst: netip.MustParseAddr(vip4), Proto: packet.TCP, DstPort: 80}
	if r := s.plane.Trace(ask); !strings.HasPrefix(r.Backend, other) {
		t.Fatalf("the hour is not over:\n%s", r)
	}
	s.ahead.Add(int64(time.Hour + time.Second))
	if r := s.plane.Trace(ask); !strings.HasPrefix(r.Backend, first) {
		t.Fatalf("the hour is over:\n%s", r)
	}
	if who, _ := s.c.ask(vip4 + ":80"); who != first {
		t.Errorf("after the timeout: got %q, want %s again", who, first)
	}
}

// A client with one socket follows its Service at once.
func TestUDPFollowsByRealDatagrams(t *testing.T) {
	eachShop(t, func(t *testing.T, s *shop) {
		s.serve(s.a)
		s.serve(s.b)
		s.apply(web("") + "---" + endpoints())
		var c net.Conn
		s.c.Do(func() (err error) { c, err = net.Dial("udp4", vip4+":53"); return err })
		defer c.Close()
		ask := func() string {
			buf := make([]byte, 1500)
			c.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.Write([]byte("who")); err != nil {
				return err.Error()
			}
			n, err := c.Read(buf)
			if err != nil {
				return err.Error()
			}
			return string(buf[:n])
		}
		seen := c.LocalAddr().String()
		for _, step := range []struct{ endpoints, want string }{
			{endpoints(), "refused"},
			{endpoints("10.244.0.4 ready"), s.a.v4 + " " + seen},
			{endpoints("10.244.0.5 ready"), s.b.v4 + " " + seen},
			{endpoints("10.244.0.5 unready"), "refused"},
			{endpoints("10.244.0.4 ready"), s.a.v4 + " "}, // its first conversation is not over: another source port
		} {
			s.apply(step.endpoints)
			if got := ask(); !strings.Contains(got, step.want) {
				t.Errorf("got %q, want %q with%s", got, step.want, step.endpoints)
			}
		}
	})
}

// A connection whose pod is gone is reset on its next byte.
func TestTCPToAVanishedPodIsReset(t *testing.T) {
	eachShop(t, func(t *testing.T, s *shop) {
		l := s.a.listen(t, ":8080")
		go l.Accept()
		s.apply(web("") + "---" + endpoints("10.244.0.4 ready"))
		c, err := s.c.dial("tcp", vip4+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, p := range s.plane.Ports() {
			if p.Pod == "default/a" {
				s.plane.Detach(flow.PortID(p.ID))
			}
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write([]byte("still there?")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("got %v, want connection reset", err)
		}
	})
}

// The Service of a pod that was evicted refuses, over TCP and UDP: the pod is no
// endpoint any more, whatever its processes still do.
func TestServiceOfAnEvictedPodRefuses(t *testing.T) {
	eachShop(t, func(t *testing.T, s *shop) {
		s.serve(s.a)
		s.apply(web("  selector: {app: web}\n") + `---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web}}
spec: {containers: [{name: c, image: x}]}
`)
		a := kube.Name{Namespace: "default", Name: "a"}
		become := func(change func(*corev1.PodStatus)) {
			pod := s.store.State().Pods[a]
			if got := pod.Status.PodIP; got != s.a.v4 {
				t.Fatalf("the pod has address %q, want %s", got, s.a.v4)
			}
			st := *pod.Status.DeepCopy()
			change(&st)
			s.store.SetPodStatus(a, string(pod.UID), st)
			s.publish()
		}
		become(func(st *corev1.PodStatus) {
			st.Phase = corev1.PodRunning
			st.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		})
		if who, _ := s.c.ask(vip4 + ":80"); who != s.a.v4 {
			t.Fatalf("the pod is ready: got %q, want %s", who, s.a.v4)
		}
		become(func(st *corev1.PodStatus) { st.Phase, st.Reason = corev1.PodFailed, "Evicted" })
		if who, _ := s.c.ask(vip4 + ":80"); !strings.Contains(who, "refused") {
			t.Errorf("TCP: got %q, want connection refused", who)
		}
		var c net.Conn
		s.c.Do(func() (err error) { c, err = net.Dial("udp4", vip4+":53"); return err })
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		c.Write([]byte("who"))
		if _, err := c.Read(make([]byte, 100)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("UDP: got %v, want connection refused", err)
		}
	})
}
