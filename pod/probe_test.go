package pod_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/pod"
)

// hurried makes a world with Dial in which seconds are short.
func hurried(t *testing.T) *world {
	w := start(t, func(c *pod.Config) { c.Clock = fastClock{time.Now()} })
	w.prober()
	return w
}

func probe(h corev1.ProbeHandler) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 2, TimeoutSeconds: 60}
}

func httpGet(path string, port intstr.IntOrString) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port}}
}

func runs(args ...string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: append([]string{"podgate", "workload"}, args...)}}
}

// flag is a file that probes look for.
type flag string

func newFlag(t *testing.T) flag {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	return flag(filepath.Join(dir, "f"))
}

func (f flag) set(t *testing.T) {
	if err := os.WriteFile(string(f), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (f flag) clear(t *testing.T) {
	if err := os.Remove(string(f)); err != nil {
		t.Fatal(err)
	}
}

func TestReadinessFollowsTheProbe(t *testing.T) {
	w := hurried(t)
	f := newFlag(t)
	w.run(newPod(1, "http", works("serve", ":8080"), func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}
		c.ReadinessProbe = probe(httpGet(string(f), intstr.FromString("web")))
	}), newPod(2, "exec", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = probe(runs("stat", string(f)))
	}), newPod(3, "tcp", works("serve", "[::]:8080"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(8080)}})
	}), newPod(4, "closed", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(8080)}})
	}), newPod(5, "grpc", works("health", ":9090"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = probe(corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9090}})
	}))
	w.awaitReady("tcp", "grpc")
	for _, name := range []string{"http", "exec", "closed"} {
		w.await(name, "running, not ready", func(p *corev1.Pod) bool {
			return main(p).State.Running != nil && notReady(p)
		})
	}
	f.set(t)
	w.awaitReady("http", "exec")
	f.clear(t)
	for _, name := range []string{"http", "exec"} {
		p := w.await(name, "not ready", notReady)
		if main(p).RestartCount != 0 {
			t.Errorf("readiness restarted %s", name)
		}
	}
}

func TestLivenessRestartsTheContainer(t *testing.T) {
	w := hurried(t)
	f := newFlag(t)
	f.set(t)
	w.run(newPod(1, "a", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].LivenessProbe = probe(runs("stat", string(f)))
	}))
	w.awaitReady("a")
	f.clear(t)
	p := w.await("a", "restarted", func(p *corev1.Pod) bool { return main(p).RestartCount > 0 })
	if l := main(p).LastTerminationState.Terminated; l == nil {
		t.Errorf("no last state: %s", describe(p))
	}
	f.set(t)
	w.awaitReady("a")
}

func TestStartupGatesTheOtherProbes(t *testing.T) {
	w := hurried(t)
	f := newFlag(t)
	w.run(newPod(1, "a", works("sleep"), func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.StartupProbe = probe(runs("stat", string(f)))
		c.StartupProbe.FailureThreshold = 10000
		c.LivenessProbe = probe(runs("stat", string(f)))
		c.LivenessProbe.FailureThreshold = 1
	}), newPod(2, "never", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].StartupProbe = probe(runs("exit", "1"))
	}))
	w.await("never", "restarted", func(p *corev1.Pod) bool { return main(p).RestartCount > 0 })
	p := w.await("a", "running, not started", func(p *corev1.Pod) bool { return main(p).State.Running != nil })
	if s := main(p); *s.Started || s.Ready || s.RestartCount != 0 {
		t.Errorf("started=%t ready=%t restarts=%d before startup", *s.Started, s.Ready, s.RestartCount)
	}
	f.set(t)
	w.awaitReady("a")
	f.clear(t)
	w.await("a", "restarted", func(p *corev1.Pod) bool { return main(p).RestartCount > 0 })
}

func TestProbeTimeoutIsAFailure(t *testing.T) {
	w := hurried(t)
	w.run(newPod(1, "a", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].LivenessProbe = probe(runs("sleep"))
		p.Spec.Containers[0].LivenessProbe.TimeoutSeconds = 1
		p.Spec.Containers[0].LivenessProbe.FailureThreshold = 1
	}))
	w.await("a", "restarted", func(p *corev1.Pod) bool { return main(p).RestartCount > 0 })
}
