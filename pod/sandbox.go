package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link"
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

// newSandbox makes a pod's namespaces and its eth0. The descriptor, -1 with
// hostNetwork, is the gateway's end of it, owned by the caller.
func (k *keeper) newSandbox(s sandboxSpec) (kind string, fd int, err error) {
	k.mu.Lock()
	_, twice := k.sandboxes[s.ID]
	k.mu.Unlock()
	if twice {
		return "", -1, fmt.Errorf("sandbox %s exists", s.ID)
	}
	sb := &sandbox{containers: map[string]namespace{}}
	fd = -1
	defer func() {
		if err != nil {
			sb.close()
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()
	ifindex := 0
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
		kind, fd, ifindex, err = k.connect(s, int(sb.net.Fd()))
		return err
	})
	if err != nil {
		return "", fd, err
	}
	if kind == Veth {
		err = onThread(func() (err error) {
			if err := unix.Setns(int(k.held.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			fd, err = link.OpenPacketSocket(ifindex)
			return err
		})
		if err != nil {
			return "", fd, err
		}
	}
	k.mu.Lock()
	k.sandboxes[s.ID] = sb
	k.mu.Unlock()
	return kind, fd, nil
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

// connect makes eth0 in the calling thread's network namespace, podNS. Of a
// TAP it returns the descriptor, of a veth the index of the end in the holding
// namespace.
func (k *keeper) connect(s sandboxSpec, podNS int) (kind string, fd, ifindex int, err error) {
	quieten()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return "", -1, 0, fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return "", -1, 0, fmt.Errorf("lo up: %w", err)
	}
	kind, fd = k.setup.NICKind, -1
	if kind != Veth {
		fd, err = link.CreateTAP("eth0", s.MTU)
		if err != nil && (kind == TAP || !noTAP(err)) {
			return "", fd, 0, err
		}
		kind = TAP
		if err != nil {
			kind, fd = Veth, -1
		}
	}
	if kind == Veth {
		if ifindex, err = k.createVeth(podNS, s.MTU); err != nil {
			return "", fd, 0, err
		}
	}
	if err := configure(s); err != nil {
		return "", fd, 0, err
	}
	return kind, fd, ifindex, awaitCarrier(s.Addrs)
}

// awaitCarrier waits until eth0 carries and its addresses receive, so that a
// process's first datagram is not lost. A veth takes up to a second for it: the
// kernel looks at links that changed once a second.
func awaitCarrier(addrs []netip.Prefix) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-tick.C {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("eth0: %w", err)
		}
		state := eth0.Attrs().OperState
		if (state == netlink.OperUp || state == netlink.OperUnknown) && !slices.ContainsFunc(addrs, deaf) {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("eth0 has no carrier after 5 s")
		}
	}
}

// deaf says whether the kernel does not yet take an address for its own.
func deaf(p netip.Prefix) bool {
	routes, err := netlink.RouteGet(p.Addr().AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type != unix.RTN_LOCAL
}

// noTAP says whether err is about /dev/net/tun itself: not there, not ours.
func noTAP(err error) bool {
	var pe *os.PathError
	return errors.As(err, &pe) && pe.Path == "/dev/net/tun" ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// vethNumber names the ends in the holding namespace.
var vethNumber struct {
	sync.Mutex
	n int
}

// createVeth makes the pair from the holding namespace, on a thread of its own.
func (k *keeper) createVeth(podNS, mtu int) (ifindex int, err error) {
	vethNumber.Lock()
	vethNumber.n++
	name := "pod" + strconv.Itoa(vethNumber.n)
	vethNumber.Unlock()
	err = onThread(func() (err error) {
		if err := unix.Setns(int(k.held.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		ifindex, err = link.CreateVeth(name, "eth0", podNS, mtu)
		return err
	})
	return ifindex, err
}

// quieten sets what applies to links that are made later. Addresses are unique
// by construction, so nobody needs to detect duplicates, and there is no router
// that advertises. What cannot be set (IPv6 off, /proc/sys read-only in a
// container) is left.
func quieten() {
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/dad_transmits", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv6/conf/default/router_solicitations", "0"},
		{"ipv4/ip_unprivileged_port_start", "0"},
	} {
		sysctl(s.name, s.value)
	}
	// Only groups that the user namespace maps may be named.
	if sysctl("ipv4/ping_group_range", "0 2147483647") != nil {
		sysctl("ipv4/ping_group_range", "0 0")
	}
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// configure gives eth0 its MAC, addresses and routes.
func configure(s sandboxSpec) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("eth0: %w", err)
	}
	if err := netlink.LinkSetHardwareAddr(eth0, s.MAC[:]); err != nil {
		return fmt.Errorf("eth0: set MAC: %w", err)
	}
	if err := netlink.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("eth0 up: %w", err)
	}
	has6 := true
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		has6 = false
	}
	for _, p := range s.Addrs {
		if p.Addr().Is6() && !has6 {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(eth0, a); err != nil {
			return fmt.Errorf("eth0: add address %s: %w", p, err)
		}
	}
	for _, g := range s.Gateways {
		if g.Is6() && !has6 || !sameFamily(g, s.Addrs) {
			continue
		}
		r := &netlink.Route{
			LinkIndex: eth0.Attrs().Index,
			Gw:        g.AsSlice(),
			Dst:       ipNet(netip.PrefixFrom(anyOf(g), 0)),
			Flags:     int(netlink.FLAG_ONLINK),
		}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("eth0: add default route via %s: %w", g, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}

func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func sameFamily(a netip.Addr, addrs []netip.Prefix) bool {
	for _, p := range addrs {
		if p.Addr().Is4() == a.Is4() {
			return true
		}
	}
	return false
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
