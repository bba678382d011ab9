package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// worker is the life of one pod, from its first appearance in a State until
// nothing is left of it. One goroutine runs step whenever something happened
// (the pod changed, a process ended, a probe has a result, a time has come) and
// owns every field below queue; whatever takes long runs elsewhere and posts
// its result.
type worker struct {
	r      *Runtime
	name   kube.Name
	uid    string
	dir    string          // the pod's files
	ctx    context.Context // ends with the worker
	cancel context.CancelFunc
	eager  atomic.Bool   // wants to see every State, not only changes of the pod
	wake   chan struct{} // capacity 1

	mu     sync.Mutex
	want   *corev1.Pod
	doomed bool
	queue  []func()

	pod      *corev1.Pod // want, as of this step
	needs    bool        // eager, as of this step
	ips      []netip.Addr
	nics     []kube.Interface
	born     time.Time
	volumes  map[string]volume
	made     bool // the sandbox is
	attached bool
	released bool // it is no more, and will not be again
	retry    backoff
	failed   time.Time // when making the sandbox last failed
	reason   string    // why there is no sandbox
	message  string
	init     []*container
	main     []*container
	initOver bool // every init container has done its part
	told     *corev1.PodStatus
}

func newWorker(r *Runtime, p *corev1.Pod) *worker {
	name := kube.Name{Namespace: p.Namespace, Name: p.Name}
	w := &worker{
		r:    r,
		name: name,
		uid:  string(p.UID),
		dir:  filepath.Join(r.dir, "pods", cmp.Or(string(p.UID), p.Namespace+"_"+p.Name)),
		wake: make(chan struct{}, 1),
		want: p,
		born: r.cfg.Clock.Now(),
	}
	w.ctx, w.cancel = context.WithCancel(r.ctx)
	for i := range p.Spec.InitContainers {
		w.init = append(w.init, newContainer(w, &p.Spec.InitContainers[i], true))
	}
	for i := range p.Spec.Containers {
		w.main = append(w.main, newContainer(w, &p.Spec.Containers[i], false))
	}
	return w
}

// id names the sandbox to the keeper.
func (w *worker) id() string { return filepath.Base(w.dir) }

func (w *worker) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// post has f run by the worker's goroutine.
func (w *worker) post(f func()) {
	w.mu.Lock()
	w.queue = append(w.queue, f)
	w.mu.Unlock()
	w.ring()
}

// ask has f run by the worker's goroutine and waits for it.
func (w *worker) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	w.post(func() { f(); close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-w.ctx.Done():
		return fmt.Errorf("pod %s is gone", w.name)
	}
}

func (w *worker) update(p *corev1.Pod) {
	w.mu.Lock()
	changed := w.want != p
	w.want = p
	w.doomed = w.doomed || p.DeletionTimestamp != nil
	w.mu.Unlock()
	if changed || w.eager.Load() {
		w.ring()
	}
}

// doom has the pod end.
func (w *worker) doom() {
	w.mu.Lock()
	first := !w.doomed
	w.doomed = true
	w.mu.Unlock()
	if first {
		w.ring()
	}
}

func (w *worker) run() {
	defer w.cancel()
	for {
		next, done := w.step()
		if done {
			w.cancel()
			w.r.gone(w)
			return
		}
		var alarm <-chan time.Time
		if !next.IsZero() {
			alarm = w.r.cfg.Clock.After(next.Sub(w.r.cfg.Clock.Now()))
		}
		select {
		case <-w.wake:
		case <-alarm:
		case <-w.ctx.Done():
			// The keeper ends the processes; the data path is told to forget the pod.
			if w.attached {
				<-w.r.keeper.gone
				w.r.cfg.Detach(w.name)
			}
			return
		}
	}
}

// step does what can be done now and returns when to look again, zero if only
// news can change anything.
func (w *worker) step() (next time.Time, done bool) {
	w.mu.Lock()
	queue, doomed := w.queue, w.doomed
	w.queue = nil
	w.pod = w.want
	w.mu.Unlock()
	w.needs = false
	w.eager.Store(true) // until it is known, so that no State is missed
	defer func() { w.eager.Store(w.needs) }()
	for _, f := range queue {
		f()
	}
	if doomed {
		done = w.terminate()
		if !done {
			w.report()
		}
		return time.Time{}, done
	}
	if w.released {
		w.report()
		return time.Time{}, false
	}
	if !w.made {
		if next = w.makeSandbox(); !w.made {
			w.report()
			return next, false
		}
		w.report()
	}
	w.refreshVolumes()
	next = w.advance()
	if w.finished() && w.stopAll(w.init) {
		w.release()
	}
	w.report()
	return next, false
}

// makeSandbox tries to; else it says why not and returns when to try again.
func (w *worker) makeSandbox() time.Time {
	now := w.r.cfg.Clock.Now()
	w.ips = podIPs(w.pod)
	if !w.pod.Spec.HostNetwork {
		var err error
		if w.nics, err = w.interfaces(); err != nil {
			w.needs = true
			w.trouble("FailedCreatePodSandBox", err)
			return time.Time{}
		}
		if len(w.nics) == 0 {
			return time.Time{} // will come
		}
		w.ips = w.nics[0].Addrs
	}
	if err := w.prepareVolumes(); err != nil { // most likely for want of an object
		w.needs = true
		w.trouble("FailedMount", err)
		return time.Time{}
	}
	if !w.failed.IsZero() {
		if due := w.retry.due(w.failed); due.After(now) {
			return due
		}
		w.retry.restarted(now)
	}
	err := w.setUp()
	if err == nil {
		w.made, w.reason, w.message = true, "", ""
		return time.Time{}
	}
	w.trouble("FailedCreatePodSandBox", err)
	w.failed = now
	return w.retry.due(now)
}

// trouble is why there is no sandbox.
func (w *worker) trouble(reason string, err error) {
	if w.ctx.Err() == nil && err.Error() != w.message {
		w.r.cfg.Log.Error("pod sandbox", "pod", w.name, "reason", reason, "err", err)
	}
	w.reason, w.message = reason, err.Error()
}

func podIPs(p *corev1.Pod) (ips []netip.Addr) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			ips = append(ips, a)
		}
	}
	return ips
}

// setUp makes the sandbox and attaches it.
func (w *worker) setUp() error {
	select {
	case w.r.slots <- struct{}{}:
		defer func() { <-w.r.slots }()
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
	spec := sandboxSpec{ID: w.id(), HostNetwork: w.pod.Spec.HostNetwork}
	var err error
	if spec.Hostname, err = hostname(w.pod, w.r.cfg.ClusterDomain); err != nil {
		return err
	}
	if spec.Binds, err = w.writeFiles(spec.Hostname); err != nil {
		return err
	}
	if !spec.HostNetwork {
		for _, i := range w.nics {
			spec.NICs = append(spec.NICs, w.nicSpec(&i))
		}
	}
	a, err := w.r.keeper.call(request{Sandbox: &spec})
	if err != nil {
		return err
	}
	if err := w.attach(a, spec.NICs); err != nil {
		if w.attached {
			w.r.cfg.Detach(w.name)
			w.attached = false
		}
		w.r.keeper.call(request{Destroy: &destroySpec{Sandbox: spec.ID}})
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// writeFiles makes the pod's own files in /etc.
func (w *worker) writeFiles(hostname string) ([]bind, error) {
	if err := os.MkdirAll(filepath.Join(w.dir, "logs"), 0o755); err != nil {
		return nil, err
	}
	host, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cfg := &w.r.cfg
	content := map[string][]byte{
		"/etc/hosts":       hostsFile(w.pod, w.ips, cfg.ClusterDomain, host),
		"/etc/resolv.conf": w.r.Resolver(w.pod).file(),
		"/etc/hostname":    []byte(hostname + "\n"),
	}
	var binds []bind
	for _, target := range etcFiles {
		f := filepath.Join(w.dir, filepath.Base(target))
		if err := os.WriteFile(f, content[target], 0o644); err != nil {
			return nil, err
		}
		binds = append(binds, bind{Source: f, Target: target})
	}
	return binds, nil
}

// terminate works towards the end of the pod and says whether it is reached.
func (w *worker) terminate() bool {
	// Sidecars outlive what they serve.
	sidecar := func(c *container) bool { return c.sidecar }
	others := slices.DeleteFunc(slices.Clone(w.init), sidecar)
	if !w.stopAll(slices.Concat(w.main, others)) || !w.stopAll(w.init) {
		return false
	}
	w.report()
	w.release()
	for _, c := range slices.Concat(w.init, w.main) {
		c.dropLogs()
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.r.cfg.Log.Error("remove pod files", "pod", w.name, "err", err)
	}
	return true
}

// stopAll has containers stop and says whether all have.
func (w *worker) stopAll(cs []*container) bool {
	stopped := true
	for _, c := range cs {
		if c.state == running {
			c.stop(w.grace())
			stopped = stopped && c.state != running
		}
	}
	return stopped
}

// grace is how long containers may take to stop.
func (w *worker) grace() time.Duration {
	s := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if w.pod.Spec.TerminationGracePeriodSeconds != nil {
		s = *w.pod.Spec.TerminationGracePeriodSeconds
	}
	if w.pod.DeletionGracePeriodSeconds != nil {
		s = *w.pod.DeletionGracePeriodSeconds
	}
	return time.Duration(s) * time.Second
}

// release gives the sandbox up; the pod keeps its status.
func (w *worker) release() {
	if w.released {
		return
	}
	w.released = true
	if !w.made {
		return
	}
	if w.attached {
		w.r.cfg.Detach(w.name)
		w.attached = false
	}
	if _, err := w.r.keeper.call(request{Destroy: &destroySpec{Sandbox: w.id()}}); err != nil && w.ctx.Err() == nil {
		w.r.cfg.Log.Error("destroy sandbox", "pod", w.name, "err", err)
	}
}
