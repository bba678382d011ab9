package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// startError is a command that could not be run, with the exit code that a
// shell gives for it.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// start runs a process in a container; files are its stdin, stdout and stderr,
// borrowed. With a TTY it returns the master side, owned by the caller.
func (k *keeper) start(s startSpec, files []*os.File) (master *os.File, err error) {
	sb, release, err := k.hold(s.Sandbox)
	if err != nil {
		return nil, err
	}
	defer release()
	if len(s.Argv) == 0 {
		return nil, errors.New("no command")
	}
	stdio, err := k.stdio(s, files)
	if err != nil {
		return nil, err
	}
	defer closeAll(stdio.opened)
	defer func() {
		if err != nil && stdio.master != nil {
			stdio.master.Close()
		}
	}()
	ns, err := k.container(sb, s)
	if err != nil {
		return nil, err
	}
	return stdio.master, onThread(func() error {
		if err := enter(sb, ns); err != nil {
			return err
		}
		if err := confine(s); err != nil {
			return err
		}
		path, err := lookPath(s.Argv[0], s.Env, s.Dir)
		if err != nil {
			return err
		}
		return k.spawn(path, s, stdio)
	})
}

// container returns a container's mount namespace, and makes it at first.
func (k *keeper) container(sb *sandbox, s startSpec) (namespace, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if c, ok := sb.containers[s.Container]; ok {
		return c, nil
	}
	var c namespace
	err := onThread(func() (err error) {
		if err := enter(sb, sb.base); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		m := mounter{staging: filepath.Join(k.setup.Dir, "root"), ours: map[string]bool{}}
		for _, b := range s.Binds {
			if err := m.mount(b); err != nil {
				return err
			}
		}
		c, err = currentMounts()
		return err
	})
	if err != nil {
		return c, err
	}
	sb.containers[s.Container] = c
	return c, nil
}

// enter moves the calling thread into a sandbox.
func enter(sb *sandbox, mounts namespace) error {
	if sb.net != nil {
		if err := unix.Setns(int(sb.net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if err := unix.Setns(int(sb.uts.Fd()), unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("enter UTS namespace: %w", err)
	}
	// Threads share root and working directory, which a mount namespace has of its own.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(mounts.file.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	return nil
}

// standard is what a process will have as descriptors 0 to 2.
type standard struct {
	fds    [3]uintptr
	master *os.File
	opened []*os.File // by us, to be closed once the process runs
}

func (k *keeper) stdio(s startSpec, files []*os.File) (std standard, err error) {
	if s.TTY {
		master, slave, err := openTTY(s.Rows, s.Cols)
		if err != nil {
			return std, err
		}
		fd := slave.Fd()
		return standard{fds: [3]uintptr{fd, fd, fd}, master: master, opened: []*os.File{slave}}, nil
	}
	if len(files) != 3 {
		return std, fmt.Errorf("%d descriptors, not 3", len(files))
	}
	for i, f := range files {
		std.fds[i] = f.Fd()
	}
	return std, nil
}

// openTTY takes a terminal of the host's devpts, which all pods see, or of one
// of the keeper's own where there is none.
func openTTY(rows, cols uint16) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		fd, err = unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w (is devpts mounted on /dev/pts?)", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fmt.Errorf("unlock a terminal: %w", err)
	}
	// Opens the other side whatever is mounted where.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, fmt.Errorf("open a terminal: %w", errno)
	}
	slave = os.NewFile(peer, "tty")
	if rows > 0 && cols > 0 {
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	return master, slave, nil
}

// spawn forks from the calling thread, whose namespaces and capabilities the
// process inherits.
func (k *keeper) spawn(path string, s startSpec, std standard) error {
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: std.fds[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: s.TTY},
	}
	k.mu.Lock() // against reap, until the process has a name
	pid, err := syscall.ForkExec(path, s.Argv, attr)
	if err == nil {
		k.procs[pid], k.pids[s.Proc] = s.Proc, pid
	}
	k.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOEXEC):
		return notRunnable(path, "exec format error (a script begins with #!)")
	case errors.Is(err, unix.ENOENT):
		return notRunnable(path, "its interpreter or loader does not exist")
	default:
		return notRunnable(path, err.Error())
	}
}

func notRunnable(name, why string) error {
	return &startError{exitNotRunnable, fmt.Errorf("exec: %q: %s", name, why)}
}

// lookPath finds an executable as the calling thread sees the file system.
func lookPath(name string, env []string, dir string) (string, error) {
	if dir != "" {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return "", &startError{exitNotRunnable, fmt.Errorf("working directory %q does not exist", dir)}
		}
	}
	if strings.Contains(name, "/") {
		full := name
		if !filepath.IsAbs(name) {
			full = filepath.Join("/", dir, name)
		}
		switch st, err := os.Stat(full); {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			return "", &startError{exitNotFound, fmt.Errorf("exec: %q: no such file or directory", name)}
		case err != nil:
			return "", notRunnable(name, err.Error())
		case st.IsDir():
			return "", notRunnable(name, "is a directory")
		}
		if unix.Access(full, unix.X_OK) != nil {
			return "", notRunnable(name, "permission denied")
		}
		return full, nil
	}
	denied := false
	for _, d := range filepath.SplitList(getenv(env, "PATH")) {
		full := filepath.Join(d, name)
		if st, err := os.Stat(full); err != nil || !st.Mode().IsRegular() || !filepath.IsAbs(full) {
			continue
		}
		if unix.Access(full, unix.X_OK) == nil {
			return full, nil
		}
		denied = true
	}
	if denied {
		return "", notRunnable(name, "permission denied")
	}
	return "", &startError{exitNotFound, fmt.Errorf("exec: %q: executable file not found in $PATH", name)}
}

// getenv returns the last value of a variable.
func getenv(env []string, name string) (value string) {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}

// signal reaches the process group; processes that are gone already are no error.
func (k *keeper) signal(s signalSpec) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if pid, ok := k.pids[s.Proc]; ok {
		unix.Kill(-pid, s.Signal)
	}
}
