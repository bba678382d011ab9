package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podgate/control"
	"podgate/kube"
	"podgate/pod"
	"podgate/stack"
)

// verbs are what the control socket offers of g.
func (g *gateway) verbs() control.Verbs {
	return control.Verbs{
		Status: g.status,
		Apply:  g.apply,
		Delete: func(ctx context.Context, q control.ApplyRequest) (control.ApplyResult, error) {
			return g.remove(ctx, q)
		},
		Get:      g.get,
		Trace:    g.trace,
		Flows:    g.flows,
		Policy:   g.policy,
		DNS:      g.explainDNS,
		Exec:     g.exec,
		Logs:     g.logs,
		Forward:  g.forward,
		Dial:     g.dialPod,
		Capture:  g.capture,
		Fault:    g.fault,
		Attach:   g.attachOutside,
		Detach:   g.detachVerb,
		Attached: g.listAttached,
		Readiness: func() control.Readiness {
			return control.Readiness{Ready: g.attachments.isOpen(), Free: g.store.FreePodAddresses(), Waiting: g.attachments.waiting()}
		},
		Shutdown: g.shutdown,
	}
}

// apply changes, and says what of the Ingresses that were named has no effect.
func (g *gateway) apply(ctx context.Context, q control.ApplyRequest) (control.ApplyResult, error) {
	named := map[kube.Name]bool{}
	res, err := g.change(ctx, q, func(objs []kube.Object) []kube.Change {
		for _, o := range objs {
			if _, ok := o.API.(*networkingv1.Ingress); ok {
				n := o.Name()
				named[kube.Name{Namespace: cmp.Or(n.Namespace, metav1.NamespaceDefault), Name: n.Name}] = true
			}
		}
		return g.store.Apply(objs)
	})
	if err != nil {
		return res, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.compiled.problems {
		said := control.Change{Text: p.String()}
		if p.Kind == "Ingress" && named[p.Object] && p.Severity != kube.Error && !slices.Contains(res.Changes, said) {
			res.Changes = append(res.Changes, said)
		}
	}
	return res, nil
}

// change applies or deletes, and returns once the data path enforces it.
func (g *gateway) change(ctx context.Context, q control.ApplyRequest, do func([]kube.Object) []kube.Change) (control.ApplyResult, error) {
	var res control.ApplyResult
	if g.cluster != nil {
		return res, errElsewhere("kubectl apply and delete")
	}
	var objs []kube.Object
	for _, f := range q.Files {
		m, problems := kube.LoadBytesIn(q.Namespace, f.Name, []byte(f.Data))
		for _, p := range problems {
			res.Changes = append(res.Changes, control.Change{Text: p.String(), Error: p.Severity == kube.Error})
		}
		objs = append(objs, m.Objects...)
	}
	for _, c := range do(objs) {
		if c.Action != kube.Rejected && c.Action != kube.NotFound {
			res.Changes = append(res.Changes, control.Change{Text: c.String()})
			continue
		}
		for _, p := range c.Problems {
			res.Changes = append(res.Changes, control.Change{Text: p.String(), Error: true})
		}
		if len(c.Problems) == 0 {
			res.Changes = append(res.Changes, control.Change{Text: c.String(), Error: true})
		}
	}
	return res, g.enforce(ctx)
}

// remove deletes, and unless it is told not to returns when the pods that were
// named, or are in namespaces that were, have ended: that is when their addresses
// are out of use. Pods of workloads end on their own time, as with kubectl.
func (g *gateway) remove(ctx context.Context, q control.ApplyRequest) (control.ApplyResult, error) {
	ending := map[types.UID]bool{}
	res, err := g.change(ctx, q, func(objs []kube.Object) []kube.Change {
		pods := g.store.State().Pods
		for _, o := range objs {
			n := o.Name()
			n.Namespace = cmp.Or(n.Namespace, metav1.NamespaceDefault)
			switch p := pods[n]; o.API.(type) {
			case *corev1.Pod:
				if p != nil && !kube.IsLocal(p) {
					ending[p.UID] = true
				}
			case *corev1.Namespace:
				for in, p := range pods {
					if in.Namespace == n.Name && !kube.IsLocal(p) {
						ending[p.UID] = true
					}
				}
			}
		}
		return g.store.Delete(objs)
	})
	if err != nil || q.NoWait || slices.ContainsFunc(res.Changes, func(c control.Change) bool { return c.Error }) {
		return res, err
	}
	return res, g.await(ctx, func() bool {
		for _, p := range g.compiled.state.Pods {
			if ending[p.UID] {
				return false
			}
		}
		return true
	})
}

func (g *gateway) status() control.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := control.Status{
		Instance: g.name, Version: version(), PID: os.Getpid(), Started: g.started, Rootless: os.Getuid() != 0, Attach: g.nicKind,
		Listeners: slices.Clone(g.listeners), Counters: map[string]uint64{}, Resident: residentBytes(), Flows: g.plane.FlowCount(),
	}
	if g.cluster != nil {
		st.Cluster = g.cluster.status()
	}
	for k, v := range g.plane.Counters() {
		if v > 0 {
			st.Counters[k] = v
		}
	}
	if s := g.compiled.state; s != nil {
		st.Pods, st.Services = podCount(s), len(s.Services)
	}
	for _, p := range g.compiled.problems {
		st.Problems = append(st.Problems, p.String())
	}
	return st
}

// residentBytes is this process's resident memory, 0 if /proc does not tell.
func residentBytes() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

func (g *gateway) flows(q control.FlowsRequest) (any, error) {
	if q.Dropped {
		out := []stack.DropRecord{}
		for _, d := range g.plane.Drops(1000) {
			if q.Pod == "" || d.SrcPod == q.Pod || d.DstPod == q.Pod {
				out = append(out, d)
			}
		}
		return out, nil
	}
	out := []stack.FlowRecord{}
	for _, f := range g.plane.Flows() {
		if q.Pod == "" || f.SrcPod == q.Pod || f.DstPod == q.Pod {
			out = append(out, f)
		}
	}
	return out, nil
}

// findPod looks a pod up as kubectl words it when it is not there.
func findPod(st *kube.State, namespace, name string) (*corev1.Pod, error) {
	p := st.Pods[kube.Name{Namespace: namespace, Name: name}]
	if p == nil {
		return nil, fmt.Errorf("pods %q not found in namespace %q", name, namespace)
	}
	return p, nil
}

func (g *gateway) exec(ctx context.Context, q control.ExecRequest, files []*os.File) (int, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	p, err := g.inside(g.store.State(), q.Namespace, q.Pod, "kubectl exec")
	if err != nil {
		return 1, err
	}
	return g.pods.Exec(ctx, pod.ExecRequest{
		Pod: kube.Name{Namespace: p.Namespace, Name: p.Name}, Container: q.Container, Command: q.Command,
		Files: files, TTY: q.TTY, Rows: q.Rows, Cols: q.Cols, Term: q.Term,
	})
}

func (g *gateway) logs(_ context.Context, q control.LogsRequest) (io.ReadCloser, error) {
	p, err := findTarget(g.store.State(), q.Namespace, q.Pod)
	if err != nil {
		return nil, err
	}
	if kube.IsAttached(p) {
		return nil, fmt.Errorf("pod %s/%s is attached from outside: its output is not podgate's", p.Namespace, p.Name)
	}
	if g.pods == nil {
		return nil, errElsewhere("kubectl logs")
	}
	if q.Tail == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return g.pods.Logs(kube.Name{Namespace: p.Namespace, Name: p.Name}, q.Container, pod.LogOptions{Follow: q.Follow, Previous: q.Previous, Tail: max(q.Tail, 0)})
}

func (g *gateway) capture(ctx context.Context, q control.CaptureRequest, out io.Writer) error {
	if q.Pod != "" {
		ns, name, _ := strings.Cut(q.Pod, "/")
		p, err := findPod(g.store.State(), ns, name)
		if err != nil {
			return err
		}
		if kube.IsLocal(p) {
			return fmt.Errorf("pod %s is part of the gateway itself: capture --all shows its frames on the port %q", q.Pod, "local")
		}
	}
	_, err := g.plane.Capture(ctx, stack.CaptureQuery{Pod: q.Pod}, out)
	return err
}
