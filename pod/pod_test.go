package pod_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/kube"
	"podgate/pod"
	"podgate/stack"
	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// The test binary is also the keeper, what the containers run (workload_test.go)
// and a gateway to be killed (teardown_test.go).
func TestMain(m *testing.M) {
	if pod.IsKeeper() {
		os.Exit(pod.KeeperMain())
	}
	if len(os.Args) > 1 && os.Args[1] == "workload" {
		os.Exit(workload(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "doomed-gateway" {
		doomedGateway(os.Args[2])
	}
	if len(os.Args) > 1 && os.Args[1] == "spoiled" { // system_test.go
		spoiled(os.Args[2:])
	}
	os.Exit(m.Run())
}

var (
	node4   = netip.MustParseAddr("10.244.0.1")
	node6   = netip.MustParseAddr("fd00:10:244::1")
	cluster = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
)

// world is a runtime with a data path and a place for what it reports.
type world struct {
	t     testing.TB
	rt    *pod.Runtime
	dir   string
	socks string // of the prober; short, a socket's path is
	plane *stack.Plane
	kinds map[kube.Name]string // of the NICs

	mu      sync.Mutex
	state   kube.State
	ports   map[kube.Name]flow.PortID
	gone    map[string]bool // by UID
	changed chan struct{}
}

// start makes a world; tweak may change the runtime's configuration.
func start(t testing.TB, tweak func(*pod.Config)) *world {
	t.Helper()
	w := &world{
		t:       t,
		kinds:   map[kube.Name]string{},
		ports:   map[kube.Name]flow.PortID{},
		gone:    map[string]bool{},
		changed: make(chan struct{}),
	}
	w.state.Pods = map[kube.Name]*corev1.Pod{}
	w.state.ConfigMaps = map[kube.Name]*corev1.ConfigMap{}
	w.state.Secrets = map[kube.Name]*corev1.Secret{}
	ctx, cancel := context.WithCancel(context.Background())
	gwMAC := packet.MAC{0x0a, 0x58, 10, 244, 0, 1}
	var err error
	w.plane, err = stack.New(stack.Config{
		GatewayMAC: gwMAC, GatewayAddrs: []netip.Addr{node4, node6}, LocalAddrs: []netip.Addr{node4, node6},
		PodCIDRs: cluster, MTU: 65520,
	})
	w.check(err)
	ran := make(chan error, 1)
	go func() { ran <- w.plane.Run(ctx) }()

	self, err := os.Executable()
	w.check(err)
	w.dir = t.TempDir()
	w.socks, err = os.MkdirTemp("", "pg")
	w.check(err)
	t.Cleanup(func() { os.RemoveAll(w.socks) })
	cfg := pod.Config{
		Dir:         w.dir,
		Log:         slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Images:      map[string][]string{"workload": {self, "workload"}},
		Gateway:     []netip.Addr{node4, node6},
		PodCIDRs:    cluster,
		Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")},
		StopTime:    100 * time.Millisecond,
		Attach:      w.attach,
		Detach:      w.detach,
		Status:      w.status,
		Gone:        w.podGone,
		Dial:        w.dial,
	}
	if tweak != nil {
		tweak(&cfg)
	}
	w.rt, err = pod.Start(ctx, cfg)
	w.check(err)
	t.Cleanup(func() {
		drops := w.plane.Drops(10)
		w.check(w.rt.Close())
		cancel()
		<-ran
		if t.Failed() {
			t.Logf("drops: %+v", drops)
		}
		left, err := os.ReadDir(w.dir)
		w.check(err)
		for _, e := range left {
			t.Errorf("Close left %s", filepath.Join(w.dir, e.Name()))
		}
	})
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) attach(_ context.Context, p *corev1.Pod, nic pod.NIC) error {
	name := kube.Name{Namespace: p.Namespace, Name: p.Name}
	var dev link.Device
	var err error
	if nic.Kind == pod.TAP {
		dev, err = link.OpenTAPFD(nic.FD, p.Name)
	} else {
		dev, err = link.OpenVethFD(nic.FD, p.Name)
	}
	if err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, ip := range p.Status.PodIPs {
		addrs = append(addrs, netip.MustParseAddr(ip.IP))
	}
	id, err := w.plane.Attach(stack.PortSpec{Pod: name, Name: p.Name, MAC: nic.MAC, Addrs: addrs, MTU: nic.MTU}, dev)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[name], w.kinds[name] = id, nic.Kind
	return err
}

func (w *world) detach(name kube.Name) {
	w.mu.Lock()
	id := w.ports[name]
	delete(w.ports, name)
	w.mu.Unlock()
	w.plane.Detach(id)
}

// dial connects from the pod "prober", which stands for the node, over a socket
// in the file system that it shares with us.
func (w *world) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(w.socks, "s"))
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	fmt.Fprintln(c, addr)
	line := make([]byte, 1)
	for text := ""; ; text += string(line) {
		if _, err := c.Read(line); err != nil {
			return nil, fmt.Errorf("dial %s %s: %w", network, addr, err)
		}
		if line[0] != '\n' {
			continue
		}
		if text != "connected" {
			c.Close()
			return nil, fmt.Errorf("dial %s %s: %s", network, addr, text)
		}
		return c, nil
	}
}

// prober makes Dial work.
func (w *world) prober() {
	w.t.Helper()
	w.run(newPod(0, "prober", works("proxy", filepath.Join(w.socks, "s"))))
	w.eventually("the prober to listen", func() bool {
		_, err := os.Stat(filepath.Join(w.socks, "s"))
		return err == nil
	})
}

// edit changes the state and has the runtime see it.
func (w *world) edit(f func(st *kube.State)) {
	w.mu.Lock()
	st := w.state
	st.Generation++
	st.Pods = maps(st.Pods)
	st.ConfigMaps = maps(st.ConfigMaps)
	st.Secrets = maps(st.Secrets)
	f(&st)
	w.state = st
	close(w.changed)
	w.changed = make(chan struct{})
	rt := w.rt
	w.mu.Unlock()
	if rt != nil {
		rt.Sync(&st)
	}
}

func maps[K comparable, V any](m map[K]V) map[K]V {
	out := map[K]V{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func (w *world) status(name kube.Name, uid string, status corev1.PodStatus) {
	w.edit(func(st *kube.State) {
		if p := st.Pods[name]; p != nil && string(p.UID) == uid {
			p = p.DeepCopy()
			p.Status = status
			st.Pods[name] = p
		}
	})
}

func (w *world) podGone(name kube.Name, uid string) {
	w.mu.Lock()
	w.gone[uid] = true
	w.mu.Unlock()
	w.edit(func(st *kube.State) {
		if p := st.Pods[name]; p != nil && string(p.UID) == uid {
			delete(st.Pods, name)
		}
	})
}

// run adds pods.
func (w *world) run(pods ...*corev1.Pod) {
	w.edit(func(st *kube.State) {
		for _, p := range pods {
			st.Pods[kube.Name{Namespace: p.Namespace, Name: p.Name}] = p
		}
	})
}

// delete has a pod terminate.
func (w *world) delete(name string) {
	w.edit(func(st *kube.State) {
		p := st.Pods[podName(name)].DeepCopy()
		now := metav1.Now()
		p.DeletionTimestamp = &now
		st.Pods[podName(name)] = p
	})
}

func podName(name string) kube.Name { return kube.Name{Namespace: "default", Name: name} }

// await waits until ok says yes of the pod, nil if there is none.
func (w *world) await(name, what string, ok func(p *corev1.Pod) bool) *corev1.Pod {
	w.t.Helper()
	deadline := time.After(time.Minute)
	for {
		w.mu.Lock()
		p, changed := w.state.Pods[podName(name)], w.changed
		w.mu.Unlock()
		if ok(p) {
			return p
		}
		select {
		case <-changed:
		case <-deadline:
			if p == nil {
				w.t.Fatalf("pod %s is not there; want: %s", name, what)
			}
			w.t.Fatalf("pod %s is not %s: %s", name, what, describe(p))
		}
	}
}

// eventually polls; most things are awaited by await.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func describe(p *corev1.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message)
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		fmt.Fprintf(&b, "; %s ready=%t restarts=%d state=%v last=%v", s.Name, s.Ready, s.RestartCount, s.State.String(), s.LastTerminationState.String())
	}
	return b.String()
}

func (w *world) awaitReady(names ...string) {
	w.t.Helper()
	for _, n := range names {
		w.await(n, "ready", isReady)
	}
}

func isReady(p *corev1.Pod) bool {
	return p != nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func notReady(p *corev1.Pod) bool { return p != nil && !isReady(p) }

// exec runs the workload command in a pod.
func (w *world) exec(name string, args ...string) (out string, code int, err error) {
	w.t.Helper()
	self, err := os.Executable()
	w.check(err)
	return w.execRaw(name, nil, append([]string{self, "workload"}, args...)...)
}

func (w *world) execRaw(name string, stdin *os.File, argv ...string) (out string, code int, err error) {
	w.t.Helper()
	r, wr, err := os.Pipe()
	w.check(err)
	defer r.Close()
	text := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		text <- string(b)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code, err = w.rt.Exec(ctx, pod.ExecRequest{Pod: podName(name), Command: argv, Files: []*os.File{stdin, wr, wr}})
	wr.Close()
	return <-text, code, err
}

// must is exec that succeeds.
func (w *world) must(name string, args ...string) string {
	w.t.Helper()
	out, code, err := w.exec(name, args...)
	if err != nil || code != 0 {
		w.t.Fatalf("exec %s %q: exit %d, %v: %s", name, args, code, err, out)
	}
	return out
}

// newPod makes the nth pod of the cluster, which idles.
func newPod(n int, name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(fmt.Sprintf("%s-%d", name, n))},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyAlways,
			Containers:    []corev1.Container{{Name: "main", Image: "none"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending, PodIPs: []corev1.PodIP{
			{IP: fmt.Sprintf("10.244.%d.%d", n/250, n%250+4)},
			{IP: fmt.Sprintf("fd00:10:244::%x", n+4)},
		}},
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

// works gives the first container a workload.
func works(args ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Image, p.Spec.Containers[0].Args = "workload:latest", args
	}
}

// probedTCP makes the pod ready when it listens.
func probedTCP(port int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}},
			PeriodSeconds: 1,
		}
	}
}
