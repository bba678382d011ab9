package pod

import (
	"cmp"
	"context"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// kill stops a run because it misbehaves; it is restarted as the policy says.
func (c *container) kill(run *containerRun, reason, message string) {
	if c.run != run || c.state != running || run.stopping {
		return
	}
	c.w.r.cfg.Log.Warn("container killed", "pod", c.w.name, "container", c.name, "reason", reason, "message", message)
	run.reason = reason
	c.stop(c.w.grace())
}

// stop ends the run: preStop hook, SIGTERM, and SIGKILL when grace is over. An
// idle container has ended when it returns.
func (c *container) stop(grace time.Duration) {
	run := c.run
	if run.stopping {
		return
	}
	run.stopping = true
	spec := c.spec()
	sig := unix.SIGTERM
	var pre *corev1.LifecycleHandler
	if l := spec.Lifecycle; l != nil {
		pre = l.PreStop
		if l.StopSignal != nil {
			sig = cmp.Or(unix.SignalNum(string(*l.StopSignal)), sig)
		}
	}
	if run.proc == 0 && pre == nil {
		c.exited(run, 0, 0)
		return
	}
	k := c.w.r.keeper
	c.w.r.wg.Go(func() {
		over := c.w.r.cfg.Clock.After(grace)
		ctx, cancel := context.WithCancel(run.ctx)
		defer cancel()
		if pre != nil && grace > 0 {
			hooked := make(chan error, 1)
			go func() { hooked <- c.hook(ctx, pre, run) }()
			select {
			case err := <-hooked:
				if err != nil && ctx.Err() == nil {
					c.w.r.cfg.Log.Warn("preStop hook", "pod", c.w.name, "container", c.name, "err", err)
				}
			case <-over:
				cancel()
				<-hooked
				over = c.w.r.cfg.Clock.After(2 * time.Second) // as the kubelet
			case <-run.done:
				return
			}
		}
		if run.proc == 0 {
			c.w.post(func() { c.exited(run, 0, 0) })
			return
		}
		if grace > 0 {
			k.call(request{Signal: &signalSpec{Proc: run.proc, Signal: sig}})
			select {
			case <-run.done:
				return
			case <-over:
			case <-c.w.ctx.Done():
				return
			}
		}
		k.call(request{KillAll: &killAllSpec{Sandbox: c.w.id(), Container: c.name}})
	})
}
