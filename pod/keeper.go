package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// The keeper is this program again, started by the gateway with a PID and a
// mount namespace of its own and, unless the gateway has the capabilities
// already, a user namespace in which the user is root. It knows nothing of
// Kubernetes: it makes sandboxes (sandbox.go), starts and reaps processes in
// them (process.go) and hands descriptors back.
//
// It is process 1 of its PID namespace: when it ends, the kernel kills every
// process of every pod, and with the last process and the keeper's descriptors
// go the namespaces, links and mounts. So there is a single teardown, and it
// happens whatever kills the gateway: the keeper ends when the gateway's end
// of the socket closes (or PDEATHSIG says so).
//
// A namespace belongs to a thread, so whatever is done in one is done by
// onThread, on a thread that is thrown away afterwards. The keeper itself stays
// in the host's network namespace, for pods with hostNetwork; the far ends of
// veths live in one namespace more, the holding one.

const (
	keeperArg0 = "podgate-keeper"
	keeperEnv  = "PODGATE_KEEPER=1"
	keeperFD   = 3 // the socket
)

// IsKeeper says whether this process was started as a keeper; main (and
// TestMain) then calls KeeperMain before anything else and exits with its
// result.
func IsKeeper() bool {
	return len(os.Args) > 0 && os.Args[0] == keeperArg0 && os.Getenv("PODGATE_KEEPER") == "1"
}

// KeeperMain is the keeper's life.
func KeeperMain() int {
	// The main thread is never one of those that onThread throws away: /proc/self means it.
	runtime.LockOSThread()
	k := &keeper{
		sandboxes: map[string]*sandbox{},
		procs:     map[int]uint64{},
		pids:      map[uint64]int{},
		reaped:    make(chan struct{}, 1),
		slots:     make(chan struct{}, 4*runtime.NumCPU()),
	}
	unix.CloseOnExec(keeperFD)
	unix.CloseOnExec(keeperFD + 1) // Config.Lock
	w, err := newWire(os.NewFile(keeperFD, "gateway"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "podgate keeper:", err)
		return 1
	}
	k.wire = w
	os.Unsetenv("PODGATE_KEEPER")
	unix.Umask(0o022)

	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go k.reap(children)
	orphaned := make(chan os.Signal, 1) // PDEATHSIG
	signal.Notify(orphaned, unix.SIGTERM)
	signal.Ignore(unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	go func() {
		<-orphaned
		k.wire.conn.Close()
	}()

	grace := k.serve()
	k.end(grace)
	return 0
}

// keeper is the state of the keeper process.
type keeper struct {
	wire   *wire
	setup  setupSpec
	held   *os.File // the holding network namespace
	slots  chan struct{}
	reaped chan struct{} // says, if somebody waits, that a child is gone

	mu        sync.Mutex // never held while talking
	sandboxes map[string]*sandbox
	procs     map[int]uint64
	pids      map[uint64]int
}

// serve answers requests until the gateway is gone, and returns how long
// processes may take to end.
func (k *keeper) serve() time.Duration {
	for {
		var req request
		files, err := k.wire.receive(&req)
		if err != nil {
			return 0
		}
		switch {
		case req.Shutdown != nil:
			k.setup.Remove = nil // the gateway lives and does it
			return time.Duration(req.Shutdown.Millis) * time.Millisecond
		case req.Setup != nil:
			k.answer(req.ID, k.prepare(*req.Setup))
		case req.Signal != nil: // in order with its Start's answer, and quick
			k.signal(*req.Signal)
			k.answer(req.ID, nil)
		default:
			go func() {
				k.slots <- struct{}{}
				defer func() { <-k.slots }()
				k.handle(req, files)
			}()
		}
	}
}

func (k *keeper) handle(req request, files []*os.File) {
	defer closeAll(files)
	switch {
	case req.Sandbox != nil:
		ends, err := k.newSandbox(*req.Sandbox)
		if err != nil || len(ends) == 0 {
			k.answer(req.ID, err)
			return
		}
		fds := make([]int, len(ends))
		for i, e := range ends {
			fds[i] = e.fd
		}
		k.wire.send(reply{ID: req.ID, Kind: ends[0].kind}, fds...)
		closeEnds(ends)
	case req.Destroy != nil:
		k.answer(req.ID, k.destroy(req.Destroy.Sandbox))
	case req.Start != nil:
		master, err := k.start(*req.Start, files)
		switch {
		case err != nil:
			k.answer(req.ID, err)
		case master != nil:
			k.wire.send(reply{ID: req.ID}, int(master.Fd()))
			master.Close()
		default:
			k.answer(req.ID, nil)
		}
	case req.Dial != nil:
		conn, err := k.dial(*req.Dial)
		if err != nil {
			k.answer(req.ID, err)
			return
		}
		k.wire.send(reply{ID: req.ID}, int(conn.Fd()))
		conn.Close()
	case req.KillAll != nil:
		k.answer(req.ID, k.killContainer(req.KillAll.Sandbox, req.KillAll.Container))
	default:
		k.answer(req.ID, errors.New("empty request"))
	}
}

func (k *keeper) answer(id uint64, err error) {
	r := reply{ID: id}
	if err != nil {
		r.Err = err.Error()
		var se *startError
		if errors.As(err, &se) {
			r.Code = se.code
		}
	}
	k.wire.send(r) // a gateway that is gone shows in serve
}

// prepare makes the world that all pods share a copy of.
func (k *keeper) prepare(s setupSpec) error {
	k.setup = s
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// A container that hides parts of /proc forbids this; pods then see the host's processes.
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := shareEtc(s.Binds); err != nil {
		return err
	}
	return onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		k.held, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
}

// end kills every process, first kindly if there is grace, and removes the
// runtime's files.
func (k *keeper) end(grace time.Duration) {
	if grace > 0 && unix.Kill(-1, unix.SIGTERM) == nil {
		deadline := time.After(grace)
		for expired := false; !expired && k.anyProcess(); {
			select {
			case <-k.reaped:
			case <-deadline:
				expired = true
			}
		}
	}
	for unix.Kill(-1, unix.SIGKILL) == nil { // ESRCH: nobody left
		select {
		case <-k.reaped:
		case <-time.After(10 * time.Millisecond):
		}
	}
	for _, b := range k.setup.Binds {
		unix.Unmount(b.Target, unix.MNT_DETACH) // a mount point cannot be removed
	}
	for _, p := range append([]string{k.setup.Dir}, k.setup.Remove...) {
		if p == "" {
			continue
		}
		if err := os.RemoveAll(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(os.Stderr, "podgate keeper:", err)
		}
	}
}

// anyProcess says whether there is a process besides the keeper.
func (k *keeper) anyProcess() bool { return unix.Kill(-1, 0) == nil }

// reap collects every child: the pods' processes and orphans of theirs.
func (k *keeper) reap(children <-chan os.Signal) {
	for range children {
		for {
			var ws syscall.WaitStatus
			k.mu.Lock() // a Start between fork and registration holds it
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				k.mu.Unlock()
				continue
			}
			if err != nil || pid <= 0 {
				k.mu.Unlock()
				break
			}
			proc, ok := k.procs[pid]
			delete(k.procs, pid)
			delete(k.pids, proc)
			k.mu.Unlock()
			if ok {
				ev := &exitEvent{Proc: proc, Code: ws.ExitStatus()}
				if ws.Signaled() {
					ev.Signal = int(ws.Signal())
					ev.Code = 128 + ev.Signal
				}
				k.wire.send(reply{Exit: ev})
			}
			select {
			case k.reaped <- struct{}{}:
			default:
			}
		}
	}
}

// onThread runs f on an OS thread that nobody else uses, before or after.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}
