package pod_test

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/pod"
)

func (w *world) logs(name string, opt pod.LogOptions) string {
	w.t.Helper()
	r, err := w.rt.Logs(podName(name), "", opt)
	w.check(err)
	defer r.Close()
	b, err := io.ReadAll(r)
	w.check(err)
	return string(b)
}

func TestLogsOfAContainer(t *testing.T) {
	w := start(t, nil)
	begin := time.Now()
	w.run(newPod(1, "a", works("lines", "5000")), newPod(2, "idle"))
	w.awaitReady("a", "idle")
	follow, err := w.rt.Logs(podName("a"), "main", pod.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(follow)
	for first := true; ; first = false {
		l, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if first && l != "line 0\n" {
			t.Errorf("begins with %q", l)
		}
		if l == "sleeping\n" {
			break
		}
	}
	if got, want := w.logs("a", pod.LogOptions{Tail: 3}), "line 4998\nline 4999\nsleeping\n"; got != want {
		t.Errorf("tail: %q, want %q", got, want)
	}
	var all strings.Builder
	for i := range 5000 {
		fmt.Fprintln(&all, "line", i)
	}
	if got := w.logs("a", pod.LogOptions{}); got != all.String()+"sleeping\n" {
		t.Errorf("%d bytes are not what was written", len(got))
	}
	stamped := w.logs("a", pod.LogOptions{Tail: 1, Timestamps: true})
	at, text, _ := strings.Cut(stamped, " ")
	if when, err := time.Parse(time.RFC3339Nano, at); err != nil || when.Before(begin) || text != "sleeping\n" {
		t.Errorf("timestamps: %q, %v", stamped, err)
	}
	if got := w.logs("a", pod.LogOptions{Since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since the future: %q", got)
	}
	if _, err := w.rt.Logs(podName("a"), "", pod.LogOptions{Previous: true}); err == nil || !strings.Contains(err.Error(), "previous terminated container") {
		t.Errorf("previous of the first run: %v", err)
	}
	if got := w.logs("idle", pod.LogOptions{}); got != "" {
		t.Errorf("an idle container said %q", got)
	}
	// Following ends with the container.
	w.delete("a")
	rest, err := io.ReadAll(lines)
	if string(rest) != "terminated\n" || err != nil {
		t.Errorf("the end: %q, %v", rest, err)
	}
	follow.Close()
}

func TestLogsOfThePreviousRun(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", works("exit", "1")))
	w.await("a", "in back-off", waitingFor("CrashLoopBackOff"))
	for _, previous := range []bool{false, true} {
		if got := w.logs("a", pod.LogOptions{Previous: previous}); got != "exit 1\n" {
			t.Errorf("previous=%t: %q", previous, got)
		}
	}
}

func TestTerminationMessageFromTheLog(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", works("exit", "1"), policy(corev1.RestartPolicyNever), func(p *corev1.Pod) {
		p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	}))
	p := w.await("a", "failed", inPhase(corev1.PodFailed))
	if got := main(p).State.Terminated.Message; got != "exit 1\n" {
		t.Errorf("message %q", got)
	}
}

func TestLogFilesAreBounded(t *testing.T) {
	w := start(t, func(c *pod.Config) { c.LogBytes = 4000 })
	w.run(newPod(1, "a", works("lines", "5000")))
	w.awaitReady("a")
	// Who follows from the start sees all of it, or at least no line twice or torn.
	r, err := w.rt.Logs(podName("a"), "", pod.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for s := bufio.NewScanner(r); s.Scan() && s.Text() != "sleeping"; {
		if !strings.HasPrefix(s.Text(), "line ") {
			t.Fatalf("torn line %q", s.Text())
		}
	}
	if got := w.logs("a", pod.LogOptions{}); len(got) > 80000 || !strings.HasSuffix(got, "line 4999\nsleeping\n") {
		t.Errorf("%d bytes are kept, ending %q", len(got), got[max(0, len(got)-40):])
	}
}
