package pod_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
	"podgate/pod"
)

func policy(p corev1.RestartPolicy) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Spec.RestartPolicy = p }
}

func main(p *corev1.Pod) corev1.ContainerStatus {
	if p == nil || len(p.Status.ContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return p.Status.ContainerStatuses[0]
}

func waitingFor(reason string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		s := main(p).State.Waiting
		return s != nil && s.Reason == reason
	}
}

func inPhase(phase corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == phase }
}

func TestRestartBackOffDoublesToFiveMinutes(t *testing.T) {
	clock := newFakeClock()
	w := start(t, func(c *pod.Config) { c.Clock = clock })
	w.run(newPod(1, "a", works("exit", "3")))
	// The first restart is at once.
	for i, s := range []int{10, 20, 40, 80, 160, 300, 300} {
		d := time.Duration(s) * time.Second
		p := w.await("a", fmt.Sprint("in back-off ", i+1), func(p *corev1.Pod) bool {
			return waitingFor("CrashLoopBackOff")(p) && main(p).RestartCount == int32(i+1)
		})
		if got, want := main(p).State.Waiting.Message, "back-off "+d.String()+" restarting failed container=main"; !strings.HasPrefix(got, want) {
			t.Errorf("message %q, want %q", got, want)
		}
		if l := main(p).LastTerminationState.Terminated; l == nil || l.ExitCode != 3 || l.Reason != "Error" {
			t.Errorf("last state %v, want exit code 3", l)
		}
		if p.Status.Phase != corev1.PodRunning {
			t.Errorf("phase %s, want Running", p.Status.Phase)
		}
		w.eventually("an alarm in "+d.String(), func() bool { return clock.waitsFor(d) })
		clock.advance(d)
	}
}

func TestRestartPolicyDecidesThePhase(t *testing.T) {
	w := start(t, nil)
	w.run(
		newPod(1, "done", works("exit", "0"), policy(corev1.RestartPolicyNever)),
		newPod(2, "failed", works("exit", "4"), policy(corev1.RestartPolicyNever)),
		newPod(3, "done-on-failure", works("exit", "0"), policy(corev1.RestartPolicyOnFailure)),
		newPod(4, "again", works("exit", "5"), policy(corev1.RestartPolicyOnFailure)),
		newPod(5, "always", works("exit", "0")),
	)
	for name, phase := range map[string]corev1.PodPhase{
		"done": corev1.PodSucceeded, "failed": corev1.PodFailed, "done-on-failure": corev1.PodSucceeded,
	} {
		p := w.await(name, string(phase), inPhase(phase))
		if isReady(p) {
			t.Errorf("%s is ready", name)
		}
		if main(p).State.Terminated == nil || main(p).RestartCount != 0 {
			t.Errorf("%s: %s", name, describe(p))
		}
	}
	p := w.await("failed", "failed", inPhase(corev1.PodFailed))
	if s := main(p).State.Terminated; s.ExitCode != 4 || s.Reason != "Error" {
		t.Errorf("terminated %v, want exit code 4", s)
	}
	w.await("again", "in back-off", waitingFor("CrashLoopBackOff"))
	w.await("always", "in back-off", waitingFor("CrashLoopBackOff"))
	// A pod that is over gives its network up.
	w.eventually("the port of a finished pod to go", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, ok := w.ports[podName("done")]
		return !ok
	})
	if _, _, err := w.exec("done", "echo"); err == nil || !strings.Contains(err.Error(), "completed pod") {
		t.Errorf("exec in a completed pod: %v", err)
	}
}

func TestCommandThatDoesNotExistIsNamed(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"no-such-program"} }),
		newPod(2, "b", policy(corev1.RestartPolicyNever), func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"/etc/passwd"} }),
		newPod(3, "c"))
	p := w.await("a", "in trouble", waitingFor("RunContainerError"))
	if got, want := main(p).State.Waiting.Message, `exec: "no-such-program": executable file not found in $PATH`; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	p = w.await("b", "failed", inPhase(corev1.PodFailed))
	if s := main(p).State.Terminated; s.Reason != "StartError" || s.ExitCode != 128 || !strings.Contains(s.Message, "permission denied") {
		t.Errorf("terminated %v", s)
	}
	w.awaitReady("c")
}

func TestMissingConfigMapIsReportedAndAwaited(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}}}}
	}))
	p := w.await("a", "waiting for its ConfigMap", waitingFor("CreateContainerConfigError"))
	if m := main(p).State.Waiting.Message; !strings.Contains(m, "later") {
		t.Errorf("message %q does not name the ConfigMap", m)
	}
	w.edit(func(st *kube.State) {
		st.ConfigMaps[podName("later")] = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "later"}, Data: map[string]string{"K": "V"}}
	})
	w.awaitReady("a")
	want(t, w.must("a", "env"), "K=V")
}

func TestInitContainersRunInOrderAndSidecarsStay(t *testing.T) {
	w := start(t, nil)
	always := corev1.ContainerRestartPolicyAlways
	w.run(newPod(1, "a", works("sleep"), policy(corev1.RestartPolicyNever), func(p *corev1.Pod) {
		mount := []corev1.VolumeMount{{Name: "v", MountPath: "/podgate-test"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.InitContainers = []corev1.Container{
			{Name: "first", Image: "workload", Args: []string{"write", "/podgate-test/one", "1"}, VolumeMounts: mount},
			{Name: "sidecar", Image: "workload", Args: []string{"sleep"}, VolumeMounts: mount, RestartPolicy: &always},
			{Name: "second", Image: "workload", Args: []string{"stat", "/podgate-test/one"}, VolumeMounts: mount},
		}
	}), newPod(2, "b", policy(corev1.RestartPolicyNever), func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "fails", Image: "workload", Args: []string{"exit", "2"}}}
	}))
	p := w.await("a", "ready", isReady)
	for i, wantRunning := range []bool{false, true, false} {
		s := p.Status.InitContainerStatuses[i]
		if (s.State.Running != nil) != wantRunning || !s.Ready {
			t.Errorf("init container %s: %v ready=%t", s.Name, s.State, s.Ready)
		}
	}
	p = w.await("b", "failed", inPhase(corev1.PodFailed))
	if s := main(p).State.Waiting; s == nil || s.Reason != "PodInitializing" {
		t.Errorf("main container behind a failed init container: %v", main(p).State)
	}
	w.delete("a")
	w.await("a", "gone", func(p *corev1.Pod) bool { return p == nil })
}

func TestDaemonsEndWithTheirContainer(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", works("daemon", "7"), policy(corev1.RestartPolicyNever)), newPod(2, "b"))
	p := w.await("a", "failed", inPhase(corev1.PodFailed))
	if c := main(p).State.Terminated.ExitCode; c != 7 {
		t.Errorf("exit code %d, want 7", c)
	}
	w.awaitReady("b")
	if out := w.must("b", "ps"); strings.Contains(out, "stubborn") {
		t.Errorf("a process in a session of its own outlives its container:\n%s", out)
	}
}

func TestDeletedPodStopsGracefullyThenByForce(t *testing.T) {
	clock := newFakeClock()
	w := start(t, func(c *pod.Config) { c.Clock = clock })
	w.run(newPod(1, "kind", works("sleep")), newPod(2, "stubborn", works("stubborn")))
	for _, name := range []string{"kind", "stubborn"} {
		log, err := w.rt.Logs(podName(name), "", pod.LogOptions{Follow: true})
		if err != nil {
			w.await(name, "running", inPhase(corev1.PodRunning))
			if log, err = w.rt.Logs(podName(name), "", pod.LogOptions{Follow: true}); err != nil {
				t.Fatal(err)
			}
		}
		log.Read(make([]byte, 64)) // it says something once it handles signals
		log.Close()
		w.delete(name)
	}
	w.await("kind", "gone", func(p *corev1.Pod) bool { return p == nil })
	w.eventually("the end of the grace period to be awaited", func() bool { return clock.waitsFor(30 * time.Second) })
	clock.advance(30 * time.Second)
	w.await("stubborn", "gone", func(p *corev1.Pod) bool { return p == nil })
	if _, _, err := w.exec("kind", "echo"); err == nil {
		t.Error("exec in a deleted pod works")
	}
}

func TestReplacedPodStartsWhenTheOldOneIsGone(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", works("sleep")))
	w.awaitReady("a")
	w.run(newPod(2, "a", works("sleep"))) // another UID
	p := w.await("a", "ready again", isReady)
	if p.UID != "a-2" || !w.gone["a-1"] {
		t.Errorf("pod %s is ready, gone: %v", p.UID, w.gone)
	}
}

func TestHooksRunInTheContainer(t *testing.T) {
	w := start(t, nil)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	hook := func(name string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"podgate", "workload", "write", filepath.Join(dir, name), "x"}}}
	}
	w.run(newPod(1, "a", works("sleep"), func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: hook("post"), PreStop: hook("pre")}
	}))
	w.awaitReady("a")
	if _, err := os.Stat(filepath.Join(dir, "post")); err != nil {
		t.Errorf("postStart before ready: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pre")); err == nil {
		t.Error("preStop ran early")
	}
	w.delete("a")
	w.await("a", "gone", func(p *corev1.Pod) bool { return p == nil })
	if _, err := os.Stat(filepath.Join(dir, "pre")); err != nil {
		t.Errorf("preStop: %v", err)
	}
}

func TestContainerWithoutCommandIdles(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", func(p *corev1.Pod) {
		p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}}
	}))
	w.awaitReady("a")
	if out := w.must("a", "ps"); strings.Count(out, "\n") > 2 { // the keeper and ps
		t.Errorf("an idle pod has processes:\n%s", out)
	}
	w.delete("a")
	w.await("a", "gone", func(p *corev1.Pod) bool { return p == nil })
}

func TestAnOlderStateThatComesLateIsIgnored(t *testing.T) {
	w := start(t, nil)
	old := &kube.State{}
	w.edit(func(st *kube.State) { *old = *st })
	w.run(newPod(1, "a"))
	w.awaitReady("a")
	w.rt.Sync(old)      // knows no pods
	w.must("a", "echo") // runs after whatever Sync had the pod do
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone["a-1"] || w.state.Pods[podName("a")] == nil {
		t.Error("the pod ended")
	}
}
