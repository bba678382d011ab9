package watch

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"podgate/kube"
)

// Theory of operation
//
// The gateway hands over what it made of each state; the last report counts.
// While this gateway holds the Lease, each report is compared with what the
// objects' statuses say, and what differs is patched. The state follows the API
// server, so what was written comes back with a later one and is then equal:
// nothing is remembered of what was written, and what others overwrote is written
// again. A write that failed is tried again by itself, as nothing else may happen.

// LoadBalancerClass is the class of Services of type LoadBalancer that are
// podgate's whoever else gives addresses; those without a class are too, unless
// somebody else gave them one.
const LoadBalancerClass = "podgate.dev/podgate"

// Report is what a gateway made of one state.
type Report struct {
	State     *kube.State
	Addrs     []netip.Addr       // where the front door and load balancers are reached
	Ports     []uint16           // of Ingresses there
	Ingresses map[kube.Name]bool // those that are served
	Statuses  *kube.Statuses     // of the Gateway API; nil: none
	Problems  []kube.Problem
}

// ingressAt is where an Ingress is reached; nowhere if it is not served.
func (r *Report) ingressAt(name kube.Name) (all []networkingv1.IngressLoadBalancerIngress) {
	if !r.Ingresses[name] {
		return nil
	}
	for _, a := range r.Addrs {
		at := networkingv1.IngressLoadBalancerIngress{IP: a.String()}
		for _, port := range r.Ports {
			at.Ports = append(at.Ports, networkingv1.IngressPortStatus{Port: int32(port), Protocol: corev1.ProtocolTCP})
		}
		all = append(all, at)
	}
	return all
}

// Writer tells the API server what became of its objects.
type Writer struct {
	cluster  *Cluster
	identity string
	wake     chan struct{}

	mu     sync.Mutex
	report Report
}

// NewWriter makes a Writer. The identity is that of this gateway among those of
// the cluster.
func (c *Cluster) NewWriter(identity string) *Writer {
	return &Writer{cluster: c, identity: identity, wake: make(chan struct{}, 1)}
}

// Report replaces the report before.
func (w *Writer) Report(r Report) {
	w.mu.Lock()
	w.report = r
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run writes, while this gateway holds the Lease, until ctx ends.
func (w *Writer) Run(ctx context.Context) {
	e := &election{cluster: w.cluster, identity: w.identity}
	e.lead(quiet(ctx), w.write)
}

func (w *Writer) write(ctx context.Context) {
	events := newEvents(w.cluster)
	pause := firstPause
	for {
		w.mu.Lock()
		r := w.report
		w.mu.Unlock()
		var again <-chan time.Time
		if r.State != nil {
			wrote, done := w.writeStatuses(ctx, r)
			switch {
			case wrote: // problems may be gone with what was written
				again = time.After(time.Second)
			case done && events.say(ctx, r):
				pause = firstPause
			default:
				again = time.After(pause)
				pause = min(2*pause, lastPause)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-again:
		}
	}
}

// writeStatuses writes what differs, and says whether there was anything, and
// whether all of it is written.
func (w *Writer) writeStatuses(ctx context.Context, r Report) (wrote, done bool) {
	done = true
	write := func(k kind, name kube.Name, status any) {
		wrote = true
		if err := w.patchStatus(ctx, k.gv, k.resource, name, "", status); err != nil {
			done = false
			w.cluster.note(k, "patch the status of", err)
		}
	}
	nodes := nodeAddrs(r.State)
	for name, ing := range r.State.Ingresses {
		want := r.ingressAt(name)
		have := ing.Status.LoadBalancer.Ingress
		if equality.Semantic.DeepEqual(have, want) || !r.Ingresses[name] && !slices.ContainsFunc(have, func(in networkingv1.IngressLoadBalancerIngress) bool { return in.IP != "" && isOne(in.IP, r.Addrs) }) {
			continue
		}
		write(ingressKind, name, loadBalancer(want))
	}
	for name, svc := range r.State.Services {
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.UID == "" {
			continue
		}
		have := svc.Status.LoadBalancer.Ingress
		others := slices.ContainsFunc(have, func(in corev1.LoadBalancerIngress) bool { return !isOne(in.IP, r.Addrs) && !isOne(in.IP, nodes) })
		switch class := svc.Spec.LoadBalancerClass; {
		case class != nil && *class != LoadBalancerClass, class == nil && others:
			continue
		}
		var want []corev1.LoadBalancerIngress
		for _, a := range r.Addrs {
			want = append(want, corev1.LoadBalancerIngress{IP: a.String(), IPMode: new(corev1.LoadBalancerIPModeProxy)})
		}
		if !equality.Semantic.DeepEqual(have, want) {
			write(serviceKind, name, loadBalancer(want))
		}
	}
	gatewayStatuses(r, func(resource string, o kube.API, shared bool, status any) {
		if o.GetResourceVersion() == "" {
			return // podgate's own
		}
		wrote = true
		version := ""
		if shared {
			version = o.GetResourceVersion()
		}
		name := kube.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
		if err := w.patchStatus(ctx, gatewayAPI, resource, name, version, status); err != nil {
			done = false
			w.cluster.note(kind{name: resource}, "patch the status of", ignoreConflict(err))
		}
	})
	return wrote && done, done
}

func loadBalancer(ingress any) any {
	return map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}
}

// nodeAddrs are the addresses of all nodes.
func nodeAddrs(st *kube.State) (all []netip.Addr) {
	for _, n := range st.Nodes {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				all = append(all, ip)
			}
		}
	}
	return all
}

func isOne(text string, of []netip.Addr) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && slices.Contains(of, a)
}

// patchStatus writes a status, over a certain version or any; that the object is
// gone is no error.
func (w *Writer) patchStatus(ctx context.Context, gv schema.GroupVersion, resource string, name kube.Name, version string, status any) error {
	patch := map[string]any{"status": status}
	if version != "" {
		patch["metadata"] = map[string]any{"resourceVersion": version}
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = w.cluster.clients[gv].Patch(types.MergePatchType).Namespace(name.Namespace).Resource(resource).Name(name.Name).SubResource("status").Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
