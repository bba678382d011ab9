package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"podgate/kube"
	"podgate/policy"
	"podgate/stack"
	"podgate/stack/packet"
)

// policyGateway is the process under test: store, compile and data plane as
// `podgate up` wires them. It does what its stdin says, a line each, and answers
// with JSON.
func policyGateway(args []string) error {
	var g pairSpec
	if err := json.Unmarshal([]byte(args[0]), &g); err != nil {
		return err
	}
	plane, stop, err := startPlane(0)
	if err != nil {
		return err
	}
	w := &policyWorld{plane: plane, store: kube.NewStore(kube.Config{PodCIDRs: podCIDRs, ServiceCIDRs: serviceCIDRs}, nil)}
	if err := w.populate(g); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer, err := w.obey(in.Text())
		if err != nil {
			return err
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return stop()
}

type policyWorld struct {
	plane *stack.Plane
	store *kube.Store
	table *policy.Table
	n     int // policies

	churning chan struct{} // closed: end; nil: nothing changes
	churned  chan error
}

// populate makes the pods, of which the server and the client are attached.
func (w *policyWorld) populate(g pairSpec) error {
	for _, k := range []int{1, 0} { // first, for the addresses that their namespaces have
		if _, err := w.apply([]kube.Object{{API: benchPod(k)}}); err != nil {
			return err
		}
	}
	var objs []kube.Object
	for k := 2; k < g.N; k++ {
		objs = append(objs, kube.Object{API: benchPod(k)})
	}
	if _, err := w.apply(objs); err != nil {
		return err
	}
	for i, p := range g.Pods {
		pod := benchPod(1 - i)
		name := kube.Name{Namespace: pod.Namespace, Name: pod.Name}
		if got := w.store.State().Pods[name].Status.PodIP; got != p.Addr.String() {
			return fmt.Errorf("%s was given %s, not %s", name, got, p.Addr)
		}
		if err := p.attach(w.plane, name, 3+i); err != nil {
			return err
		}
	}
	return nil
}

func (w *policyWorld) obey(line string) (any, error) {
	var n int
	word, rest, _ := strings.Cut(line, " ")
	if rest != "" {
		if _, err := fmt.Sscan(rest, &n); err != nil {
			return nil, err
		}
	}
	switch word {
	case "begin":
		return "ready", nil
	case "load":
		return w.load(n)
	case "change":
		var all []float64
		for i := range policyChanges {
			ms, err := w.apply(w.one(i + 1))
			if err != nil {
				return nil, err
			}
			all = append(all, ms)
		}
		return all, nil
	case "churn":
		return "ready", w.churn()
	case "verdict":
		return w.verdict(), nil
	}
	return nil, fmt.Errorf("cannot %q", line)
}

// load replaces all policies by n, and returns what those took.
func (w *policyWorld) load(n int) (float64, error) {
	if _, err := w.publish(func() []kube.Change { return w.store.Delete(w.all()) }); err != nil {
		return 0, err
	}
	w.n = n
	return w.apply(w.all())
}

func (w *policyWorld) all() (objs []kube.Object) {
	for i := range w.n {
		objs = append(objs, kube.Object{API: policyNumber(i, w.n, 0).object()})
	}
	return objs
}

// one is the middle policy, changed.
func (w *policyWorld) one(with int) []kube.Object {
	return []kube.Object{{API: policyNumber(w.n/2, w.n, with).object()}}
}

func (w *policyWorld) apply(objs []kube.Object) (float64, error) {
	return w.publish(func() []kube.Change { return w.store.Apply(objs) })
}

// publish returns the milliseconds until the plane enforces a change.
func (w *policyWorld) publish(change func() []kube.Change) (float64, error) {
	start := time.Now()
	for _, c := range change() {
		if c.Action == kube.Rejected {
			return 0, fmt.Errorf("%s: %v", c, c.Problems)
		}
	}
	w.table, _ = policy.Compile(w.table, w.store.State(), policy.Config{NodeAddrs: []netip.Addr{gatewayAddr}})
	w.plane.Publish(stack.Input{Policies: w.table})
	return float64(time.Since(start)) / float64(time.Millisecond), nil
}

// churn changes a policy ten times a second, until it is called again.
func (w *policyWorld) churn() error {
	if w.churning != nil {
		close(w.churning)
		w.churning = nil
		return <-w.churned
	}
	end := make(chan struct{})
	w.churning, w.churned = end, make(chan error, 1)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := 1; ; i++ {
			select {
			case <-end:
				w.churned <- nil
				return
			case <-tick.C:
			}
			if _, err := w.apply(w.one(1 + i%100)); err != nil {
				w.churned <- err
				return
			}
		}
	}()
	return nil
}

// verdict returns what one takes in nanoseconds, between pods far from each
// other in memory.
func (w *policyWorld) verdict() float64 {
	var addrs []packet.Addr
	for _, p := range w.store.State().Pods {
		addrs = append(addrs, packet.AddrFrom(netip.MustParseAddr(p.Status.PodIP)))
	}
	var took []float64
	for range 20 {
		const n = 5000
		start := time.Now()
		for i := range n {
			w.table.Judge(policy.Ingress, w.table.Pod(addrs[i%len(addrs)]), addrs[(i*7+501)%len(addrs)], packet.TCP, 8000+uint16(i%100), 0)
		}
		took = append(took, float64(time.Since(start))/n)
	}
	return median(took)
}
