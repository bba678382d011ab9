package pod

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// Exec runs a command in a pod and returns its exit code, 128 plus the signal
// that ended it, or, together with an error that says why, 127 if the
// executable does not exist and 126 if it cannot be run. Cancelling ctx kills it.
func (r *Runtime) Exec(ctx context.Context, req ExecRequest) (int, error) {
	w, err := r.find(req.Pod)
	if err != nil {
		return 1, err
	}
	if len(req.Command) == 0 {
		return 1, errors.New("you must specify at least one command for the container")
	}
	var spec *startSpec
	if err := w.askErr(ctx, func() error {
		c, err := w.container(req.Container)
		if err != nil {
			return err
		}
		spec, err = c.command(req.Command)
		return err
	}); err != nil {
		return 1, err
	}
	spec.TTY, spec.Rows, spec.Cols = req.TTY, req.Rows, req.Cols
	if req.TTY {
		spec.Env = mergeEnv([]string{"TERM=" + cmp.Or(req.Term, "xterm")}, spec.Env)
	}
	return r.exec(ctx, spec, req)
}

// askErr is ask for an f that can fail.
func (w *worker) askErr(ctx context.Context, f func() error) (err error) {
	if e := w.ask(ctx, func() { err = f() }); e != nil {
		return e
	}
	return err
}

// The annotation by which kubectl chooses a container.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// container finds one by name; empty is the default.
func (w *worker) container(name string) (*container, error) {
	if name == "" {
		name = w.pod.Annotations[defaultContainer]
	}
	for _, c := range slices.Concat(w.main, w.init) {
		if c.name == name || name == "" {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s is not valid for pod %s", name, w.name.Name)
}

// command describes a command that is to run beside the container's own.
func (c *container) command(argv []string) (*startSpec, error) {
	switch phase := c.w.phase(); {
	case phase == corev1.PodSucceeded || phase == corev1.PodFailed:
		return nil, fmt.Errorf("cannot exec into a container in a completed pod; current phase is %s", phase)
	case c.state != running:
		return nil, fmt.Errorf("container %q of pod %s is not running: %s", c.name, c.w.name, describe(c))
	}
	env, _, err := c.environment()
	if err != nil {
		return nil, err
	}
	return c.process(argv, env), nil
}

func describe(c *container) string {
	s := c.status().State
	switch {
	case s.Waiting != nil && s.Waiting.Message != "":
		return s.Waiting.Reason + ": " + s.Waiting.Message
	case s.Waiting != nil:
		return s.Waiting.Reason
	case s.Terminated != nil:
		return fmt.Sprintf("%s, exit code %d", s.Terminated.Reason, s.Terminated.ExitCode)
	}
	return "stopping"
}

// exec starts what spec describes and waits for its end.
func (r *Runtime) exec(ctx context.Context, spec *startSpec, req ExecRequest) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 1, err
	}
	defer null.Close()
	var fds []int
	if !req.TTY {
		for i := range 3 {
			f := null
			if i < len(req.Files) && req.Files[i] != nil {
				f = req.Files[i]
			}
			fds = append(fds, rawFD(f))
		}
	}
	ended := make(chan exitEvent, 1)
	spec.Proc = r.keeper.newProc(func(ev exitEvent) { ended <- ev })
	a, err := r.keeper.call(request{Start: spec}, fds...)
	if err != nil {
		r.keeper.forget(spec.Proc)
		var se *startError
		if errors.As(err, &se) {
			return se.code, err
		}
		return 1, err
	}
	wait := func() {}
	if req.TTY && len(a.files) == 1 {
		if req.Terminal != nil {
			req.Terminal(a.files[0])
		} else if wait, err = pump(a.files[0], req.Files); err != nil {
			return 1, err
		}
	}
	select {
	case ev := <-ended:
		wait()
		return ev.Code, nil
	case <-ctx.Done():
	}
	r.keeper.call(request{Signal: &signalSpec{Proc: spec.Proc, Signal: syscall.SIGKILL}})
	ev := <-ended
	wait()
	return ev.Code, ctx.Err()
}

// rawFD is f.Fd() without making f blocking.
func rawFD(f *os.File) int {
	fd := -1
	if c, err := f.SyscallConn(); err == nil {
		c.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

func dupCloexec(f *os.File) (int, error) {
	return unix.FcntlInt(uintptr(rawFD(f)), unix.F_DUPFD_CLOEXEC, 0)
}

// The most output of a probe or hook that is kept.
const maxOutput = 10 << 10

// execute runs a command for ourselves and returns what it says. It is killed
// when ctx ends. It is called from any goroutine but the worker's.
func (c *container) execute(ctx context.Context, command []string, out *bytes.Buffer) (int, error) {
	var spec *startSpec
	err := c.w.askErr(ctx, func() error {
		env, _, err := c.environment()
		if err == nil {
			spec = c.process(command, env)
		}
		return err
	})
	if err != nil {
		return 1, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	defer r.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(out, io.LimitReader(r, maxOutput))
		io.Copy(io.Discard, r)
	}()
	code, err := c.w.r.exec(ctx, spec, ExecRequest{Files: []*os.File{nil, w, w}})
	w.Close()
	if err != nil {
		r.Close() // a grandchild may hold the other end
	}
	select {
	case <-read:
	case <-ctx.Done():
		r.Close()
		<-read
	}
	return code, err
}

// Logs reads what a container wrote to stdout and stderr.
func (r *Runtime) Logs(pod kube.Name, container string, opt LogOptions) (io.ReadCloser, error) {
	w, err := r.find(pod)
	if err != nil {
		return nil, err
	}
	var rc io.ReadCloser
	err = w.askErr(w.ctx, func() error {
		c, err := w.container(container)
		if err != nil {
			return err
		}
		log := c.log
		if opt.Previous {
			log = c.previous
			if log == nil {
				return fmt.Errorf("previous terminated container %q in pod %q not found", c.name, w.name.Name)
			}
		}
		switch {
		case log != nil:
			rc, err = log.open(opt)
		case c.state == running: // idles
			rc = io.NopCloser(bytes.NewReader(nil))
		default:
			err = fmt.Errorf("container %q in pod %q is waiting to start: %s", c.name, w.name.Name, describe(c))
		}
		return err
	})
	return rc, err
}
