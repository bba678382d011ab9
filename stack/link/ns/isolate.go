// Package ns makes network namespaces for tests and benchmarks: a program that
// puts itself out of the machine's own network, and further namespaces with
// links, addresses, routes and processes in them. It needs no privileges where
// user namespaces are allowed.
//
// Goroutines: every NS has one, on a thread that stays in the namespace and
// starts its processes; Close ends it and waits for it. Do makes one for the
// time of the call.
package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// marker holds, in the environment of the isolated program, the network
// namespace that it left, so that an inherited or forged variable alone never
// passes for isolation.
const marker = "PODGATE_OUTER_NETNS"

// Isolate runs the present program again, with the same arguments, files and
// environment, in new network, mount and UTS namespaces where loopback is up.
// A caller that may not do so gets a user namespace too, in which it is root.
//
// In the outer process Isolate returns (exit code, false, nil) after the inner
// one ended; in the inner process it returns (0, true, nil) at once.
func Isolate() (code int, inside bool, err error) {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 1, false, fmt.Errorf("which network namespace is this: %w", err)
	}
	if outer := os.Getenv(marker); outer != "" && outer != here {
		if err := settle(); err != nil {
			return 1, true, err
		}
		return 0, true, nil
	}
	code, err = again(here)
	return code, false, err
}

// again runs the program in new namespaces and passes signals on to it.
func again(outer string) (int, error) {
	// The inner process is to die with this one, and the kernel watches the
	// thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	start := func(flags uintptr) (*exec.Cmd, error) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = os.Args
		cmd.Env = append(os.Environ(), marker+"="+outer)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if flags&unix.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		return cmd, cmd.Start()
	}

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)

	// Real root keeps the rights that a user namespace would take away, above
	// all to open /dev/net/tun.
	const flags = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS
	cmd, err := start(flags)
	if errors.Is(err, unix.EPERM) {
		cmd, err = start(flags | unix.CLONE_NEWUSER)
	}
	if err != nil {
		return 1, fmt.Errorf("make user and network namespaces: %w; see the sysctls user.max_user_namespaces, user.max_net_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			cmd.Process.Signal(s) // fails only if it ended meanwhile
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 1, err
			}
			if st := cmd.ProcessState.Sys().(syscall.WaitStatus); st.Signaled() {
				return 128 + int(st.Signal()), nil
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

// settle finishes the new namespaces from within.
func settle() error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The caller is root in here, and gets root's tools.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
