package pod_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"podgate/pod"
)

// elsewhere runs this binary again in a user and a mount namespace of its own,
// where spoil (see spoilers) has damaged the system.
func elsewhere(t *testing.T, spoil, test string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "spoiled", spoil, "-test.run=^"+test+"$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("%v\n%s", err, out)
	}
}

var spoilers = map[string]func() error{
	// No host name file, and a resolv.conf that links to where nothing is.
	"etc": func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := pod.Mirror("/etc"); err != nil {
			return err
		}
		for _, f := range []string{"/etc/hostname", "/etc/resolv.conf"} {
			unix.Unmount(f, unix.MNT_DETACH)
			if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return os.Symlink("../run/nowhere/stub-resolv.conf", "/etc/resolv.conf")
	},
	// /etc/hosts is a link to a file.
	"link": func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := pod.Mirror("/etc"); err != nil {
			return err
		}
		unix.Unmount("/etc/hosts", unix.MNT_DETACH)
		if err := os.Rename("/etc/hosts", "/etc/hosts.real"); err != nil {
			return err
		}
		return os.Symlink("hosts.real", "/etc/hosts")
	},
	// Namespaces are forbidden.
	"forbidden": func() error { return os.WriteFile("/proc/sys/user/max_mnt_namespaces", []byte("0"), 0) },
}

func spoiled(args []string) {
	if err := spoilers[args[0]](); err != nil {
		fmt.Println("spoil", args[0], err)
		os.Exit(1)
	}
	os.Args = append(os.Args[:1], args[1:]...)
	os.Setenv("PODGATE_TEST_SPOILED", args[0])
}

func TestPodsWhereTheHostsFilesAreMissing(t *testing.T) {
	elsewhere(t, "etc", "TestPodSeesItsOwnFilesAndName")
}

func TestPodsWhereTheHostsFilesAreLinks(t *testing.T) {
	elsewhere(t, "link", "TestPodSeesItsOwnFilesAndName")
}

func TestForbiddenNamespacesAreExplained(t *testing.T) {
	if os.Getenv("PODGATE_TEST_SPOILED") == "" {
		elsewhere(t, "forbidden", t.Name())
		return
	}
	dir := t.TempDir()
	_, err := pod.Start(context.Background(), pod.Config{Dir: dir})
	if err == nil {
		t.Fatal("pods start without namespaces")
	}
	if want := "sysctl user.max_mnt_namespaces is 0"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v\ndoes not say %q", err, want)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
