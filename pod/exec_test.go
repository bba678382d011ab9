package pod_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podgate/pod"
)

func TestExecExitCodes(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a"))
	w.awaitReady("a")
	for _, c := range []struct {
		argv []string
		code int
		err  string
	}{
		{[]string{"podgate", "workload", "exit", "0"}, 0, ""},
		{[]string{"podgate", "workload", "exit", "3"}, 3, ""},
		{[]string{"podgate", "workload", "suicide"}, 137, ""},
		{[]string{"nonesuch"}, 127, `exec: "nonesuch": executable file not found in $PATH`},
		{[]string{"/nonesuch"}, 127, `exec: "/nonesuch": no such file or directory`},
		{[]string{"/etc/passwd"}, 126, `exec: "/etc/passwd": permission denied`},
		{[]string{"/etc"}, 126, `exec: "/etc": is a directory`},
	} {
		_, code, err := w.execRaw("a", nil, c.argv...)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if code != c.code || text != c.err {
			t.Errorf("%q: %d, %q, want %d, %q", c.argv, code, text, c.code, c.err)
		}
	}
}

func TestExecErrorsNameWhatIsMissing(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a"), newPod(2, "b", func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"nonesuch"} }))
	w.awaitReady("a")
	w.await("b", "in trouble", waitingFor("RunContainerError"))
	for _, c := range []struct {
		req  pod.ExecRequest
		want string
	}{
		{pod.ExecRequest{Pod: podName("x"), Command: []string{"true"}}, `pods "x" not found in namespace "default"`},
		{pod.ExecRequest{Pod: podName("a"), Container: "x", Command: []string{"true"}}, "container x is not valid for pod a"},
		{pod.ExecRequest{Pod: podName("a")}, "you must specify at least one command"},
		{pod.ExecRequest{Pod: podName("b"), Command: []string{"true"}}, "is not running: RunContainerError"},
	} {
		if _, err := w.rt.Exec(context.Background(), c.req); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.req, err, c.want)
		}
	}
}

func TestExecPassesStdinThrough(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a"))
	w.awaitReady("a")
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		io.WriteString(wr, "one\ntwo\n")
		wr.Close()
	}()
	out, code, err := w.execRaw("a", r, "podgate", "workload", "upper")
	if out != "ONE\nTWO\n" || code != 0 || err != nil {
		t.Errorf("%q, %d, %v", out, code, err)
	}
}

func TestExecWithATerminal(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a"))
	w.awaitReady("a")
	req := pod.ExecRequest{Pod: podName("a"), Command: []string{"podgate", "workload", "tty"}, TTY: true, Rows: 33, Cols: 77}

	t.Run("of the caller", func(t *testing.T) {
		req := req
		said := make(chan string, 1)
		req.Term = "vt100"
		req.Terminal = func(master *os.File) {
			go func() {
				defer master.Close()
				r := bufio.NewReader(master)
				first, _ := r.ReadString('\n')
				io.WriteString(master, "quit\n")
				rest, _ := io.ReadAll(r)
				said <- first + string(rest)
			}()
		}
		code, err := w.rt.Exec(context.Background(), req)
		if code != 3 || err != nil {
			t.Errorf("%d, %v, want 3", code, err)
		}
		want(t, <-said, "tty 33 77 vt100", "got quit")
	})
	t.Run("between the caller's files", func(t *testing.T) {
		req := req
		inR, inW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		outR, outW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		req.Files = []*os.File{inR, outW, nil}
		io.WriteString(inW, "hello\nquit\n")
		code, err := w.rt.Exec(context.Background(), req)
		if code != 3 || err != nil {
			t.Errorf("%d, %v, want 3", code, err)
		}
		// Nothing reads the caller's stdin any more.
		io.WriteString(inW, "mine\n")
		inW.Close()
		outW.Close()
		if b, _ := io.ReadAll(inR); string(b) != "mine\n" {
			t.Errorf("left of stdin: %q", b)
		}
		out, _ := io.ReadAll(outR)
		want(t, string(out), "tty 33 77 xterm", "got hello", "got quit")
	})
}

func TestCancelledExecIsKilled(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a"))
	w.awaitReady("a")
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		r.Read(make([]byte, 1))
		cancel()
	}()
	code, err := w.rt.Exec(ctx, pod.ExecRequest{Pod: podName("a"), Command: []string{"podgate", "workload", "stubborn"}, Files: []*os.File{nil, wr, wr}})
	wr.Close()
	if code != 137 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v, want 137, canceled", code, err)
	}
	if out := w.must("a", "ps"); strings.Contains(out, "stubborn") {
		t.Errorf("still there:\n%s", out)
	}
}
