package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"podgate/control"
)

var instanceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// instanceDir is where an instance keeps its socket, lock and pods' files.
func instanceDir(name string) (string, error) {
	if !instanceName.MatchString(name) {
		return "", usageError{fmt.Errorf("--name %q: must be at most 32 lower-case letters, digits and dashes", name)}
	}
	return control.InstanceDir(name), nil
}

func socketPath(dir string) string { return filepath.Join(dir, "control.sock") }

// instanceLock is held for as long as the instance runs.
type instanceLock struct {
	f   *os.File
	dir string
}

// lockInstance makes the folder and takes its lock. What a killed instance left
// in the folder is removed.
func lockInstance(name string) (*instanceLock, error) {
	dir, err := instanceDir(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("instance folder: %w", err)
	}
	if err := ownedByUs(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("instance lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.ReadAt(pid, 0)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("instance %q is already running (pid %s); stop it with `podgate down --name %s`, or start this one with another --name",
				name, strings.TrimSpace(string(pid[:n])), name)
		}
		return nil, fmt.Errorf("instance lock: %w", err)
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != "lock" {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	f.Truncate(0)
	fmt.Fprintf(f, "%d\n", os.Getpid())
	return &instanceLock{f, dir}, nil
}

// release removes the folder, then lets go of the lock.
func (l *instanceLock) release() {
	os.RemoveAll(l.dir)
	os.Remove(filepath.Dir(l.dir)) // only if it was the last instance
	l.f.Close()
}

// ownedByUs refuses a folder that somebody else prepared under /tmp.
func ownedByUs(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("instance folder: %w", err)
	}
	if st.Uid != uint32(os.Getuid()) || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("instance folder %s belongs to somebody else; set XDG_RUNTIME_DIR", dir)
	}
	return nil
}
