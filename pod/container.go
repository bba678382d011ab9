package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type containerState uint8

const (
	waiting containerState = iota
	running
	ended
)

// container is owned by its worker's goroutine.
//
//	         start              exited
//	waiting ------> running ------------> ended --+
//	   ^   <-- the command cannot be run ---      | start, when due
//	   |                        running <---------+
type container struct {
	w       *worker
	name    string
	inInit  bool // of spec.initContainers
	sidecar bool // one of those with restartPolicy Always

	state           containerState
	reason, message string // of waiting; of ended while the restart is due later
	run             *containerRun
	term            *corev1.ContainerStateTerminated // of ended
	last            *corev1.ContainerStateTerminated
	runs            int
	back            backoff

	log, previous *containerLog
}

// containerRun is one run of a container, from start to exit.
type containerRun struct {
	ctx      context.Context // ends with the run
	cancel   context.CancelFunc
	proc     uint64 // 0: idles
	since    time.Time
	hooked   bool // postStart is done
	started  bool // startup probe is content
	ready    bool // readiness probe is
	stopping bool
	reason   string // why it is being stopped, if its end shall say so
	done     chan struct{}
	startup  chan struct{} // closed when started
}

func newContainer(w *worker, spec *corev1.Container, init bool) *container {
	return &container{
		w:       w,
		name:    spec.Name,
		inInit:  init,
		sidecar: init && spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways,
		reason:  "ContainerCreating",
	}
}

// spec is what is wanted now.
func (c *container) spec() *corev1.Container {
	list := c.w.pod.Spec.Containers
	if c.inInit {
		list = c.w.pod.Spec.InitContainers
	}
	for i := range list {
		if list[i].Name == c.name {
			return &list[i]
		}
	}
	return &corev1.Container{Name: c.name}
}

// advance starts the containers whose turn it is and returns when the next one
// is due.
func (w *worker) advance() (next time.Time) {
	soonest := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, c := range w.init {
		if !c.sidecar && (w.initOver || c.state == ended && c.term.ExitCode == 0) {
			continue
		}
		soonest(c.consider())
		switch {
		case w.initOver:
		case c.sidecar && c.state == running && c.run.started:
		default:
			return next // the rest waits for this one
		}
	}
	w.initOver = true
	for _, c := range w.main {
		soonest(c.consider())
	}
	return next
}

// consider starts the container if it should run, or returns when it should.
func (c *container) consider() time.Time {
	if c.state == running || c.state == ended && !c.restarts() {
		return time.Time{}
	}
	now := c.w.r.cfg.Clock.Now()
	if c.state == ended {
		due := c.back.due(c.term.FinishedAt.Time)
		if due.After(now) {
			if c.reason == "" {
				c.reason = "CrashLoopBackOff"
				c.message = fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
					c.back.delay, c.name, c.w.name.Name, c.w.name.Namespace, c.w.uid)
			}
			return due
		}
		c.back.restarted(now)
	}
	c.start(now)
	if c.state == ended {
		return c.back.due(now)
	}
	return time.Time{}
}

// restarts says whether the container, having ended, is run again.
func (c *container) restarts() bool {
	if c.sidecar {
		return true
	}
	switch c.w.pod.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return c.term.ExitCode != 0
	default:
		return !c.inInit || c.term.ExitCode != 0
	}
}

// finished says whether no main container will run again.
func (w *worker) finished() bool {
	over := func(c *container) bool { return c.state == ended && !c.restarts() }
	for _, c := range w.init {
		if !c.sidecar && over(c) && c.term.ExitCode != 0 {
			return true
		}
	}
	return w.initOver && !slices.ContainsFunc(w.main, func(c *container) bool { return !over(c) })
}

// start begins a run. Without one, the container is waiting or ended, with a reason.
func (c *container) start(now time.Time) {
	env, argv, err := c.environment()
	if err != nil {
		c.reason, c.message = "CreateContainerConfigError", err.Error()
		c.state = waiting
		c.w.needs = true
		return
	}
	if c.term != nil {
		c.last, c.term = c.term, nil
	}
	run := &containerRun{since: now, done: make(chan struct{}), startup: make(chan struct{})}
	run.ctx, run.cancel = context.WithCancel(c.w.ctx)
	if argv != nil {
		err = c.launch(run, argv, env)
	}
	c.runs++
	if err != nil {
		run.cancel()
		c.failedToStart(now, err)
		return
	}
	c.run, c.state, c.reason, c.message = run, running, "", ""
	c.begin(run)
}

// launch has the keeper start the container's command.
func (c *container) launch(run *containerRun, argv, env []string) error {
	if err := c.newLog(); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	log := c.log
	c.w.r.wg.Go(func() { log.drain(r) })
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	spec := c.process(argv, env)
	k := c.w.r.keeper
	spec.Proc = k.newProc(func(ev exitEvent) {
		c.w.post(func() { c.exited(run, ev.Code, ev.Signal) })
	})
	run.proc = spec.Proc
	if _, err := k.call(request{Start: spec}, int(null.Fd()), int(w.Fd()), int(w.Fd())); err != nil {
		k.forget(spec.Proc)
		return err
	}
	return nil
}

// newLog begins the log of a run, and keeps that of the run before.
func (c *container) newLog() error {
	path := filepath.Join(c.w.dir, "logs", fmt.Sprintf("%s.%d", c.name, c.runs))
	l, err := newLog(path, c.w.r.cfg.LogBytes, c.w.r.cfg.Clock.Now)
	if err != nil {
		return err
	}
	if c.previous != nil {
		c.previous.remove()
	}
	c.previous, c.log = c.log, l
	return nil
}

func (c *container) dropLogs() {
	for _, l := range []*containerLog{c.log, c.previous} {
		if l != nil {
			l.remove()
		}
	}
}

// failedToStart is the kubelet's RunContainerError: as if it had run and failed.
func (c *container) failedToStart(now time.Time, err error) {
	code := int32(128)
	c.state = ended
	c.reason, c.message = "RunContainerError", err.Error()
	c.term = &corev1.ContainerStateTerminated{
		ExitCode:    code,
		Reason:      "StartError",
		Message:     err.Error(),
		StartedAt:   metav1.NewTime(now),
		FinishedAt:  metav1.NewTime(now),
		ContainerID: c.id(),
	}
	c.w.r.cfg.Log.Warn("container does not start", "pod", c.w.name, "container", c.name, "err", err)
}

// begin lets hooks and probes loose on a new run.
func (c *container) begin(run *containerRun) {
	spec := c.spec()
	w := c.w
	var post *corev1.LifecycleHandler
	if spec.Lifecycle != nil {
		post = spec.Lifecycle.PostStart
	}
	if post == nil {
		c.afterHook(run)
		return
	}
	w.r.wg.Go(func() {
		err := c.hook(run.ctx, post, run)
		w.post(func() {
			if c.run != run || c.state != running {
				return
			}
			if err != nil {
				c.kill(run, "FailedPostStartHook", err.Error())
				return
			}
			c.afterHook(run)
		})
	})
}

func (c *container) afterHook(run *containerRun) {
	spec := c.spec()
	run.hooked = true
	idle := run.proc == 0 // nothing runs that could be restarted
	run.ready = spec.ReadinessProbe == nil
	if spec.StartupProbe == nil || idle {
		c.hasStarted(run)
	} else {
		c.probe(run, startupProbe, spec.StartupProbe)
	}
	if spec.ReadinessProbe != nil {
		c.probe(run, readinessProbe, spec.ReadinessProbe)
	}
	if spec.LivenessProbe != nil && !idle {
		c.probe(run, livenessProbe, spec.LivenessProbe)
	}
}

func (c *container) hasStarted(run *containerRun) {
	if !run.started {
		run.started = true
		close(run.startup)
	}
}

// exited takes note of the end of a run's process.
func (c *container) exited(run *containerRun, code, signal int) {
	if c.run != run || c.state != running {
		return
	}
	k := c.w.r.keeper
	if _, err := k.call(request{KillAll: &killAllSpec{Sandbox: c.w.id(), Container: c.name}}); err != nil && c.w.ctx.Err() == nil {
		c.w.r.cfg.Log.Error("kill leftovers", "pod", c.w.name, "container", c.name, "err", err)
	}
	run.cancel()
	close(run.done)
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	c.state, c.reason, c.message = ended, "", ""
	c.term = &corev1.ContainerStateTerminated{
		ExitCode:    int32(code),
		Signal:      int32(signal),
		Reason:      reason,
		StartedAt:   metav1.NewTime(run.since),
		FinishedAt:  metav1.NewTime(c.w.r.cfg.Clock.Now()),
		ContainerID: c.id(),
	}
	if spec := c.spec(); code != 0 && spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		c.term.Message = c.logTail()
	}
	c.w.r.cfg.Log.Info("container ended", "pod", c.w.name, "container", c.name, "code", code, "why", run.reason)
}

func (c *container) id() string {
	return fmt.Sprintf("podgate://%s/%s/%d", c.w.id(), c.name, c.runs)
}

// The size of a termination message that is taken from the log.
const (
	tailLines = 80
	tailBytes = 2048
)

// logTail is the end of the log as a termination message.
func (c *container) logTail() string {
	if c.log == nil {
		return ""
	}
	r, err := c.log.open(LogOptions{Tail: tailLines})
	if err != nil {
		return ""
	}
	defer r.Close()
	b := make([]byte, 0, 4*tailBytes)
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			break
		}
		if len(b) == cap(b) {
			b = b[:copy(b, b[len(b)-tailBytes:])]
		}
	}
	return string(b[max(0, len(b)-tailBytes):])
}
