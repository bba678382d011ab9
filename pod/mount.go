package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The files that every pod has of its own; etcFiles[i] of a pod is bound over
// the host's. They are mount points, so they must exist.
var etcFiles = []string{"/etc/hosts", "/etc/resolv.conf", "/etc/hostname"}

// mirrorMax is the number of entries of the largest directory that is mirrored.
const mirrorMax = 4096

// shareEtc makes, in the keeper's own mount namespace, every etcFile something
// that can be bound over. The host's file may be missing, or a symbolic link to
// nowhere; it is not ours to create, so then /etc is mirrored first. binds go
// over what is there on the host, if it is.
func shareEtc(binds []bind) error {
	mirrored := false
	for _, f := range etcFiles {
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() {
			continue
		}
		if !mirrored {
			if err := mirror("/etc"); err != nil {
				return fmt.Errorf("make /etc: %w", err)
			}
			mirrored = true
		}
		os.Remove(f)
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			return err
		}
	}
	for _, b := range binds {
		if _, err := os.Stat(b.Target); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := b.mount(); err != nil {
			return err
		}
	}
	return nil
}

// mount binds; the target exists. A directory comes with what is mounted in it.
func (b bind) mount() error {
	if err := unix.Mount(b.Source, b.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", b.Source, b.Target, err)
	}
	if !b.ReadOnly {
		return nil
	}
	// Unlike a remount this leaves the flags alone that a user namespace locks.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, b.Target, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", b.Target, err)
	}
	return nil
}

// mirror covers a directory with a tmpfs in which every entry of it appears
// again, by bind mount or, of a symbolic link, as the same link; so entries can
// be added that the host does not have.
func mirror(dir string) error {
	under, err := os.Open(dir) // the directory below the tmpfs
	if err != nil {
		return err
	}
	defer under.Close()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return populate(under, dir)
}

// populate makes the entries of under appear in dir.
func populate(under *os.File, dir string) error {
	entries, err := under.ReadDir(mirrorMax + 1)
	if err != nil && err != io.EOF {
		return err
	}
	if len(entries) > mirrorMax {
		return fmt.Errorf("%s has more than %d entries", under.Name(), mirrorMax)
	}
	source := fmt.Sprintf("/proc/self/fd/%d", under.Fd())
	for _, e := range entries {
		from, to := source+"/"+e.Name(), filepath.Join(dir, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			var text string
			if text, err = os.Readlink(from); err == nil {
				err = os.Symlink(text, to)
			}
		case e.IsDir():
			if err = os.Mkdir(to, 0o755); err == nil {
				err = bind{Source: from, Target: to}.mount()
			}
		default:
			if err = os.WriteFile(to, nil, 0o644); err == nil {
				err = bind{Source: from, Target: to}.mount()
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mounter mounts a container's volumes into the calling thread's mount
// namespace.
type mounter struct {
	staging string          // an empty directory to build a new root on
	ours    map[string]bool // directories in which entries may be made
}

func (m *mounter) mount(b bind) error {
	b.Target = path.Clean(b.Target)
	if !path.IsAbs(b.Target) || b.Target == "/" {
		return fmt.Errorf("mount path %q: must be an absolute path below /", b.Target)
	}
	st, err := os.Stat(b.Source)
	if err != nil {
		return err
	}
	if err := m.ensure(b.Target, st.IsDir()); err != nil {
		return fmt.Errorf("mount path %s: %w", b.Target, err)
	}
	return b.mount()
}

// ensure makes a mount point exist without touching the host's files.
func (m *mounter) ensure(target string, dir bool) error {
	if st, err := os.Stat(target); err == nil {
		if st.IsDir() != dir {
			return fmt.Errorf("a file meets a directory")
		}
		return nil
	}
	deepest := path.Dir(target)
	for {
		st, err := os.Stat(deepest)
		if err == nil && !st.IsDir() {
			return &os.PathError{Op: "mkdir", Path: deepest, Err: unix.ENOTDIR}
		}
		if err == nil {
			break
		}
		deepest = path.Dir(deepest)
	}
	if !m.mine(deepest) {
		var err error
		if deepest == "/" {
			err = m.newRoot()
		} else {
			err = mirror(deepest)
		}
		if err != nil {
			return err
		}
		m.ours[deepest] = true
	}
	if err := os.MkdirAll(path.Dir(target), 0o755); err != nil {
		return err
	}
	if dir {
		return os.Mkdir(target, 0o755)
	}
	return os.WriteFile(target, nil, 0o644)
}

// mine says whether dir is a mirror or was made in one.
func (m *mounter) mine(dir string) bool {
	if m.ours[dir] {
		return true
	}
	var a, b unix.Statfs_t
	for d := range m.ours {
		below := d == "/" || strings.HasPrefix(dir, d+"/")
		if below && unix.Statfs(d, &a) == nil && unix.Statfs(dir, &b) == nil && a.Fsid == b.Fsid {
			return true
		}
	}
	return false
}

// newRoot is mirror for "/", which cannot be covered: it is changed for a
// tmpfs. Who enters the mount namespace later begins at its new root.
func (m *mounter) newRoot() error {
	old, err := os.Open("/")
	if err != nil {
		return err
	}
	defer old.Close()
	if err := unix.Mount("tmpfs", m.staging, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	// Else the bind of the directory that staging is in would hold it again.
	if err := unix.Mount("", m.staging, "", unix.MS_UNBINDABLE, ""); err != nil {
		return err
	}
	if err := populate(old, m.staging); err != nil {
		return err
	}
	if err := unix.Chdir(m.staging); err != nil {
		return err
	}
	// The old root is stacked on the new one and taken away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}
