package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
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
	"podgate/stack/packet"
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

func (g *gateway) get(q control.GetRequest) (control.GetResult, error) {
	st := g.store.State()
	var items []any
	switch q.Kind {
	case "pods":
		items = pick(st.Pods, q)
	case "services":
		items = pick(st.Services, q)
	case "endpointslices":
		items = pick(maps.Collect(st.EndpointSlices.All()), q)
	case "ingresses":
		items = g.ingressObjects(st, q)
	case "networkpolicies":
		items = pick(st.NetworkPolicies, q)
	case "clusternetworkpolicies":
		items = pickNamed(st.ClusterPolicies, q.Name)
	case "network-attachment-definitions":
		items = pick(st.NetworkAttachments, q)
	case "namespaces":
		items = pickNamed(st.Namespaces, q.Name)
	case "deployments":
		items = pick(st.Deployments, q)
	case "replicasets":
		items = pick(st.ReplicaSets, q)
	case "statefulsets":
		items = pick(st.StatefulSets, q)
	case "daemonsets":
		items = pick(st.DaemonSets, q)
	case "ingressclasses":
		items = pickNamed(st.IngressClasses, q.Name)
	case "gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "referencegrants", "backendtlspolicies":
		items = g.gatewayObjects(st, q)
	case "configmaps":
		items = pick(st.ConfigMaps, q)
	case "secrets":
		items = pick(st.Secrets, q)
	case "backends":
		for _, b := range g.backends(q.Namespace, q.Name) {
			items = append(items, b)
		}
	case "flows":
		for _, f := range g.plane.Flows() {
			items = append(items, f)
		}
	case "ports":
		for _, p := range g.plane.Ports() {
			items = append(items, p)
		}
	case "dns":
		items = g.dnsRecords(q)
	case "routes":
		for _, r := range g.routes() {
			items = append(items, r)
		}
	default:
		return control.GetResult{}, fmt.Errorf("the server doesn't have a resource type %q", q.Kind)
	}
	if q.Name != "" && len(items) == 0 && q.Kind != "backends" {
		return control.GetResult{}, fmt.Errorf("Error from server (NotFound): %s %q not found", q.Kind, q.Name)
	}
	var res control.GetResult
	for _, item := range items {
		raw, err := encode(q.Kind, item)
		if err != nil {
			return res, err
		}
		res.Items = append(res.Items, raw)
	}
	return res, nil
}

// encode writes an object with the kind and apiVersion that Go's types leave out.
func encode(plural string, item any) (json.RawMessage, error) {
	raw, err := json.Marshal(item)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == plural })
	if kinds[i].apiKind == "" {
		return raw, nil
	}
	var o map[string]json.RawMessage
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	o["kind"], _ = json.Marshal(kinds[i].apiKind)
	o["apiVersion"], _ = json.Marshal(kinds[i].apiVersion)
	return json.Marshal(o)
}

func pick[T any](m map[kube.Name]T, q control.GetRequest) (out []any) {
	for _, n := range sortedNames(m) {
		if (q.Namespace == "" || q.Namespace == n.Namespace) && (q.Name == "" || q.Name == n.Name) {
			out = append(out, m[n])
		}
	}
	return out
}

// pickNamed is pick for kinds that are in no namespace.
func pickNamed[T any](m map[string]T, name string) (out []any) {
	for _, n := range sortedKeys(m) {
		if name == "" || name == n {
			out = append(out, m[n])
		}
	}
	return out
}

func sortedNames[T any](m map[kube.Name]T) []kube.Name {
	return slices.SortedFunc(maps.Keys(m), func(a, b kube.Name) int { return strings.Compare(a.String(), b.String()) })
}

// routeRecord is one line of `get routes`: where packets for a range go.
type routeRecord struct {
	Destination string `json:"destination"`
	Via         string `json:"via"`
	Note        string `json:"note,omitempty"`
}

func (g *gateway) routes() (out []routeRecord) {
	for _, p := range g.cfg.Kube.PodCIDRs {
		out = append(out, routeRecord{p.String(), "pods", "switched: the cluster's own network"})
	}
	networks := g.store.State().Networks
	for _, name := range sortedNames(networks) {
		for _, s := range networks[name].Subnets {
			out = append(out, routeRecord{s.Prefix.String(), "pods", "switched: network " + name.String()},
				routeRecord{netip.PrefixFrom(s.Gateway, s.Gateway.BitLen()).String(), "local", "the gateway's own in network " + name.String()})
		}
	}
	for _, a := range ownAddrs(g.cfg.Kube.PodCIDRs).all() {
		out = append(out, routeRecord{netip.PrefixFrom(a, a.BitLen()).String(), "local", "the gateway's own"})
	}
	for _, p := range g.cfg.Kube.ServiceCIDRs {
		out = append(out, routeRecord{p.String(), "services", "translated to an endpoint"})
	}
	for _, r := range g.cfg.Routes {
		out = append(out, routeRecord{r.Prefix.String(), r.Pod.String(), "a network behind a pod"})
	}
	for _, name := range sortedNames(networks) {
		for _, r := range networks[name].Routes {
			if r.Via.IsValid() {
				out = append(out, routeRecord{r.Dst.String(), r.Via.String(), "a network behind a pod of network " + name.String()})
			}
		}
	}
	for _, p := range g.forbiddenPrefixes() {
		out = append(out, routeRecord{p.String(), "reject", "egress forbidden"})
	}
	for _, d := range []string{"0.0.0.0/0", "::/0"} {
		r := routeRecord{d, "local", "egress by sockets"}
		switch {
		case g.uplink != nil && slices.ContainsFunc(g.uplink.nextHops, func(a netip.Addr) bool { return a.Is4() == (d == "0.0.0.0/0") }):
			r = routeRecord{d, uplinkPort.Name, "egress by packets, masqueraded"}
		case g.cfg.Egress == "none":
			r = routeRecord{d, "reject", "egress.mode is none"}
		}
		out = append(out, r)
	}
	return out
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
	p, err := findPod(g.store.State(), q.Namespace, q.Pod)
	if err != nil {
		return 1, err
	}
	if kube.IsLocal(p) {
		return 1, fmt.Errorf("pod %s/%s is part of the gateway itself: nothing can be run in it", q.Namespace, q.Pod)
	}
	if kube.IsAttached(p) {
		return 1, fmt.Errorf("pod %s/%s is attached from outside: what runs in it is not podgate's", q.Namespace, q.Pod)
	}
	if g.pods == nil {
		return 1, errElsewhere("kubectl exec")
	}
	return g.pods.Exec(ctx, pod.ExecRequest{
		Pod: kube.Name{Namespace: q.Namespace, Name: q.Pod}, Container: q.Container, Command: q.Command,
		Files: files, TTY: q.TTY, Rows: q.Rows, Cols: q.Cols, Term: q.Term,
	})
}

func (g *gateway) logs(_ context.Context, q control.LogsRequest) (io.ReadCloser, error) {
	p, err := findPod(g.store.State(), q.Namespace, q.Pod)
	if err != nil {
		return nil, err
	}
	if kube.IsAttached(p) {
		return nil, fmt.Errorf("pod %s/%s is attached from outside: its output is not podgate's", q.Namespace, q.Pod)
	}
	if g.pods == nil {
		return nil, errElsewhere("kubectl logs")
	}
	if q.Tail == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return g.pods.Logs(kube.Name{Namespace: q.Namespace, Name: q.Pod}, q.Container, pod.LogOptions{Follow: q.Follow, Previous: q.Previous, Tail: max(q.Tail, 0)})
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

func (g *gateway) trace(q control.TraceRequest) (any, error) {
	if q.URL != "" {
		u, err := url.Parse(q.URL)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		routes := g.compiled.routes
		g.mu.Unlock()
		return routes.Trace(u.Host, u.RequestURI(), u.Scheme == "https"), nil
	}
	st := g.store.State()
	p, err := findPod(st, q.Namespace, q.Pod)
	if err != nil {
		return nil, err
	}
	proto, ok := map[string]packet.Proto{"tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP, "icmp": packet.ICMP}[q.Proto]
	if !ok {
		return nil, fmt.Errorf("%q is none of tcp, udp, sctp, icmp", q.Proto)
	}
	dst, note, err := resolveTarget(st, g.cfg.Kube.ClusterDomain, q.Namespace, q.Target, podFamilies(p))
	if err != nil {
		return nil, err
	}
	res := g.plane.Trace(stack.TraceQuery{Pod: kube.Name{Namespace: p.Namespace, Name: p.Name}, Name: q.Interface, Dst: dst, Proto: proto, DstPort: q.Port})
	if note != "" {
		res.Stages = slices.Insert(res.Stages, 0, stack.TraceStage{Stage: "name", Text: note})
	}
	return res, nil
}

// podFamilies lists a pod's addresses: they say which families it can speak.
func podFamilies(p *corev1.Pod) (out []netip.Addr) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// resolveTarget turns what a person types into an address: an address, a Service
// or pod by the names that DNS gives them, or the plain name of a pod.
func resolveTarget(st *kube.State, domain, namespace, target string, speak []netip.Addr) (netip.Addr, string, error) {
	if a, err := netip.ParseAddr(target); err == nil {
		return a, "", nil
	}
	usable := func(ips []string) (netip.Addr, bool) {
		for _, own := range speak {
			for _, ip := range ips {
				if a, err := netip.ParseAddr(ip); err == nil && a.Is4() == own.Is4() {
					return a, true
				}
			}
		}
		return netip.Addr{}, false
	}
	name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(target, "."), "."+domain), ".svc")
	host, ns, cut := strings.Cut(name, ".")
	if !cut {
		ns = namespace
	}
	n := kube.Name{Namespace: ns, Name: host}
	if svc := st.Services[n]; svc != nil && svc.Spec.ClusterIP != corev1.ClusterIPNone {
		if a, ok := usable(svc.Spec.ClusterIPs); ok {
			return a, fmt.Sprintf("%s is Service %s, %s", target, n, a), nil
		}
		return netip.Addr{}, "", fmt.Errorf("service %s has no address of a family that the pod speaks", n)
	}
	if svc := st.Services[n]; svc != nil {
		all := maps.Collect(st.EndpointSlices.All())
		for _, sn := range sortedNames(all) {
			s := all[sn]
			if sn.Namespace != ns || s.Labels["kubernetes.io/service-name"] != host {
				continue
			}
			for _, e := range s.Endpoints {
				if a, ok := usable(e.Addresses); ok && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					return a, fmt.Sprintf("%s is headless Service %s; its first ready endpoint is %s", target, n, a), nil
				}
			}
		}
		return netip.Addr{}, "", fmt.Errorf("headless Service %s has no ready endpoint", n)
	}
	if p := st.Pods[n]; p != nil {
		var ips []string
		for _, ip := range p.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		if a, ok := usable(ips); ok {
			return a, fmt.Sprintf("%s is pod %s, %s", target, n, a), nil
		}
	}
	return netip.Addr{}, "", fmt.Errorf("%q is neither an address nor a Service or pod of the cluster (seen from namespace %s)", target, namespace)
}
