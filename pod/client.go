package pod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var errKeeperGone = errors.New("the keeper has ended")

// client is the gateway's end of the keeper.
type client struct {
	wire *wire
	gone chan struct{} // closed when the keeper has ended and was waited for

	mu      sync.Mutex
	dead    bool // nobody will answer
	last    uint64
	pending map[uint64]chan<- answer
	exits   map[uint64]func(exitEvent)
}

// answer is a reply with its descriptors.
type answer struct {
	reply
	files []*os.File
}

// startKeeper starts the keeper process. lock may be nil.
func startKeeper(exe string, lock *os.File) (*client, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "gateway")
	defer theirs.Close()
	w, err := newWire(ours)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	c := &client{
		wire:    w,
		gone:    make(chan struct{}),
		pending: map[uint64]chan<- answer{},
		exits:   map[uint64]func(exitEvent){},
	}
	if exe == "" {
		exe = "/proc/self/exe"
	}
	cmd := &exec.Cmd{
		Path:       exe,
		Args:       []string{keeperArg0},
		Env:        append(os.Environ(), keeperEnv),
		Stderr:     os.Stderr,
		ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
			Setsid:     true,
			Pdeathsig:  unix.SIGTERM,
		},
	}
	if lock != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, lock)
	}
	if !privileged() {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // PDEATHSIG is about the thread that forked
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(c.gone)
		}
	}()
	if err := <-started; err != nil {
		w.conn.Close()
		return nil, forbidden(err)
	}
	go c.receive()
	return c, nil
}

// privileged says whether namespaces can be made without a user namespace.
func privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	for _, c := range []uint{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_CHROOT} {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}

// forbidden adds to err what an administrator should look at.
func forbidden(err error) error {
	var look []string
	for _, s := range []struct{ name, bad, advice string }{
		{"kernel.unprivileged_userns_clone", "0", "set it to 1"},
		{"user.max_user_namespaces", "0", "set it to 15000 or so"},
		{"user.max_pid_namespaces", "0", "set it to 15000 or so"},
		{"user.max_mnt_namespaces", "0", "set it to 15000 or so"},
		{"user.max_net_namespaces", "0", "set it to 15000 or so"},
		{"user.max_uts_namespaces", "0", "set it to 15000 or so"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "set it to 0, or load an AppArmor profile with the rule `userns,` for this program (package apparmor)"},
	} {
		b, e := os.ReadFile("/proc/sys/" + strings.ReplaceAll(s.name, ".", "/"))
		if v := strings.TrimSpace(string(b)); e == nil && v == s.bad {
			look = append(look, fmt.Sprintf("sysctl %s is %s: %s", s.name, v, s.advice))
		}
	}
	if len(look) == 0 {
		look = append(look, "see sysctls kernel.unprivileged_userns_clone, user.max_user_namespaces and "+
			"kernel.apparmor_restrict_unprivileged_userns; a container needs a seccomp profile that allows unshare and mount")
	}
	return fmt.Errorf("pods need namespaces of their own and the system refuses them: %w (%s)", err, strings.Join(look, "; "))
}

// call sends a request, borrowing fds, and waits for its answer. Descriptors in
// the answer are the caller's.
func (c *client) call(req request, fds ...int) (answer, error) {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return answer{}, errKeeperGone
	}
	c.last++
	req.ID = c.last
	c.pending[req.ID] = ch
	c.mu.Unlock()
	if err := c.wire.send(req, fds...); err != nil {
		c.mu.Lock()
		delete(c.pending, req.ID)
		c.mu.Unlock()
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			err = errKeeperGone
		}
		return answer{}, fmt.Errorf("tell the keeper: %w", err)
	}
	a, ok := <-ch
	switch {
	case !ok:
		return answer{}, errKeeperGone
	case a.Err != "" && a.Code != 0:
		return a, &startError{a.Code, errors.New(a.Err)}
	case a.Err != "":
		return a, errors.New(a.Err)
	}
	return a, nil
}

// newProc names a process to be; exited is called once, from a goroutine that
// must not be held up, when it has ended.
func (c *client) newProc(exited func(exitEvent)) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	if !c.dead {
		c.exits[c.last] = exited
	}
	return c.last
}

// forget is for a process that did not start.
func (c *client) forget(proc uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.exits, proc)
}

// receive hands out what the keeper says until it ends.
func (c *client) receive() {
	for {
		var r reply
		files, err := c.wire.receive(&r)
		if err != nil {
			break
		}
		c.mu.Lock()
		if r.Exit != nil {
			exited := c.exits[r.Exit.Proc]
			delete(c.exits, r.Exit.Proc)
			c.mu.Unlock()
			if exited != nil {
				exited(*r.Exit)
			}
			continue
		}
		ch := c.pending[r.ID]
		delete(c.pending, r.ID)
		c.mu.Unlock()
		if ch == nil {
			closeAll(files)
			continue
		}
		ch <- answer{r, files}
	}
	c.mu.Lock()
	c.dead = true
	for id, ch := range c.pending {
		close(ch)
		delete(c.pending, id)
	}
	lost := c.exits
	c.exits = nil
	c.mu.Unlock()
	for proc, exited := range lost {
		exited(exitEvent{Proc: proc, Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL)})
	}
}
