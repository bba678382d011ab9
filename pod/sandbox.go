package pod

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sandbox is a pod in the keeper: descriptors, no process.
type sandbox struct {
	net  *os.File // nil with hostNetwork
	uts  *os.File
	base namespace // what its containers' mount namespaces begin as

	life sync.RWMutex // held by starts, and by destroy, after which gone is set
	gone bool

	mu         sync.Mutex // after life; guards containers and the making of one
	containers map[string]namespace
}

// namespace is a mount namespace; its inode tells whose a process is.
type namespace struct {
	file  *os.File
	inode uint64
}

// currentMounts holds the calling thread's mount namespace.
func currentMounts() (namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return namespace{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return namespace{}, err
	}
	return namespace{f, st.Ino}, nil
}

// newSandbox makes a pod's namespaces and its interfaces. The ends are the
// gateway's, owned by the caller; with hostNetwork there are none.
func (k *keeper) newSandbox(s sandboxSpec) (ends []nicEnd, err error) {
	k.mu.Lock()
	_, twice := k.sandboxes[s.ID]
	k.mu.Unlock()
	if twice {
		return nil, fmt.Errorf("sandbox %s exists", s.ID)
	}
	sb := &sandbox{containers: map[string]namespace{}}
	defer func() {
		if err != nil {
			sb.close()
			closeEnds(ends)
			ends = nil
		}
	}()
	err = onThread(func() (err error) {
		flags := unix.CLONE_NEWNS | unix.CLONE_NEWUTS
		if !s.HostNetwork {
			flags |= unix.CLONE_NEWNET
		}
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", s.Hostname, err)
		}
		for _, b := range s.Binds {
			if err := b.mount(); err != nil {
				return err
			}
		}
		if sb.uts, err = os.Open("/proc/thread-self/ns/uts"); err != nil {
			return err
		}
		if sb.base, err = currentMounts(); err != nil || s.HostNetwork {
			return err
		}
		if sb.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		ends, err = k.connect(s.NICs, int(sb.net.Fd()))
		return err
	})
	if err == nil {
		err = k.openVeths(ends)
	}
	if err != nil {
		return ends, err
	}
	k.mu.Lock()
	k.sandboxes[s.ID] = sb
	k.mu.Unlock()
	return ends, nil
}

func (s *sandbox) close() {
	for _, f := range []*os.File{s.net, s.uts, s.base.file} {
		if f != nil {
			f.Close()
		}
	}
	for _, c := range s.containers {
		c.file.Close()
	}
}

// hold finds a sandbox, which is not destroyed before release.
func (k *keeper) hold(id string) (sb *sandbox, release func(), err error) {
	k.mu.Lock()
	sb = k.sandboxes[id]
	k.mu.Unlock()
	if sb == nil {
		return nil, nil, fmt.Errorf("no sandbox %s", id)
	}
	sb.life.RLock()
	if sb.gone {
		sb.life.RUnlock()
		return nil, nil, fmt.Errorf("sandbox %s is gone", id)
	}
	return sb, sb.life.RUnlock, nil
}

// destroy kills what runs in a sandbox and lets its namespaces go.
func (k *keeper) destroy(id string) error {
	k.mu.Lock()
	sb := k.sandboxes[id]
	delete(k.sandboxes, id)
	k.mu.Unlock()
	if sb == nil {
		return nil
	}
	sb.life.Lock()
	defer sb.life.Unlock()
	sb.gone = true
	inodes := map[uint64]bool{sb.base.inode: true}
	for _, c := range sb.containers {
		inodes[c.inode] = true
	}
	err := k.killIn(inodes)
	sb.close()
	return err
}

// killContainer kills what still runs in a container's mount namespace:
// processes that left the main process's group, and commands exec'd.
func (k *keeper) killContainer(id, name string) error {
	k.mu.Lock()
	sb := k.sandboxes[id]
	k.mu.Unlock()
	if sb == nil {
		return nil
	}
	sb.mu.Lock()
	c, ok := sb.containers[name]
	sb.mu.Unlock()
	if !ok {
		return nil
	}
	return k.killIn(map[uint64]bool{c.inode: true})
}

// killIn kills until a look at /proc finds nobody in these mount namespaces.
func (k *keeper) killIn(inodes map[uint64]bool) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		pids, err := members(inodes)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes do not die", len(pids))
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-k.reaped:
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// members lists the processes of the keeper's PID namespace whose mount
// namespace is one of these. Zombies have none and do not count.
func members(inodes map[uint64]bool) ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	self := procPIDs("self")
	var pids []int
	for _, n := range names {
		if n[0] < '0' || n[0] > '9' {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+n+"/ns/mnt", &st) != nil || !inodes[st.Ino] {
			continue
		}
		// With a /proc of an outer namespace the directory's name is not our number.
		if all := procPIDs(n); len(all) >= len(self) && len(self) > 0 {
			pids = append(pids, all[len(self)-1])
		}
	}
	return pids, nil
}

// procPIDs reads the numbers that a process has in each PID namespace, from
// that of this /proc inwards.
func procPIDs(name string) (pids []int) {
	b, err := os.ReadFile("/proc/" + name + "/status")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			for _, f := range strings.Fields(rest) {
				n, err := strconv.Atoi(f)
				if err != nil {
					return nil
				}
				pids = append(pids, n)
			}
		}
	}
	return pids
}
