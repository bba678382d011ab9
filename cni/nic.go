package cni

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/control"
	"podgate/stack/link"
)

// The kinds of interfaces.
const (
	TAP  = "tap"  // the interface is a TAP
	Veth = "veth" // the interface is one end of a veth; the other is where the plugin runs, or, if it is not kept, nowhere
)

// Interface is one in somebody's network namespace.
type Interface struct {
	Netns string // path
	Name  string
	Owner string // who it belongs to: what Remove and Reopen compare
}

// Shape is what an interface is to be like.
type Shape struct {
	MAC    net.HardwareAddr
	MTU    int // bytes of IP packet
	Addrs  []netip.Prefix
	Routes []Route
	Kind   string // empty: a TAP where /dev/net/tun can be opened
	Keep   bool   // it outlives its descriptor
}

// Route is one of a pod's; its gateway is on the link whatever the addresses.
type Route struct {
	Dst      netip.Prefix
	Gateway  netip.Addr // invalid: on the link
	MTU      int        // 0: the interface's, as are those below
	AdvMSS   int
	Priority int
	Table    int
	Scope    int
}

// ErrNameTaken is why Create failed: the namespace has an interface of that name.
var ErrNameTaken = errors.New("the name is taken")

// NetnsError says that something is no network namespace.
type NetnsError struct {
	Path string
	Err  error
}

func (e *NetnsError) Error() string { return fmt.Sprintf("network namespace %q: %v", e.Path, e.Err) }
func (e *NetnsError) Unwrap() error { return e.Err }

// openNetns opens a network namespace by path.
func openNetns(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &NetnsError{path, errors.Unwrap(err)}
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, &NetnsError{path, errors.New("it is none")}
	}
	return f, nil
}

// onThread calls f on a thread of its own, which ends with it, since f spoils it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}

// inside calls f on a thread in a network namespace.
func inside(netns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
		}
		return f()
	})
}

// Exists says whether the namespace has an interface of that name.
func (i Interface) Exists() (bool, error) {
	netns, err := openNetns(i.Netns)
	if err != nil {
		return false, err
	}
	defer netns.Close()
	found := false
	return found, inside(netns, func() error {
		_, err := netlink.LinkByName(i.Name)
		found = err == nil
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			err = nil
		}
		return err
	})
}

// Create makes the interface. Nothing is left of it after an error, nor, unless
// it is kept, when the file of the NIC is closed everywhere.
func (i Interface) Create(s Shape) (nic control.NIC, err error) {
	netns, err := openNetns(i.Netns)
	if err != nil {
		return nic, err
	}
	defer netns.Close()
	nic.Kind = s.Kind
	fd := -1
	err = inside(netns, func() error {
		if _, err := netlink.LinkByName(i.Name); err == nil {
			return fmt.Errorf("interface %s in %s: %w", i.Name, i.Netns, ErrNameTaken)
		}
		if nic.Kind == Veth {
			return nil
		}
		var err error
		if fd, err = link.CreateTAP(i.Name, s.MTU); err != nil {
			if nic.Kind == TAP || !noTAP(err) {
				return err
			}
			nic.Kind = Veth
			return nil
		}
		nic.Kind = TAP
		if err = i.configure(s); err == nil && s.Keep {
			err = link.KeepTAP(fd)
		}
		return err
	})
	switch {
	case err == nil && nic.Kind == Veth && s.Keep:
		nic.HostIf = i.hostName()
		fd, err = i.createVeth(netns, s)
	case err == nil && nic.Kind == Veth:
		err = onThread(func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a namespace for the other end of %s: %w", i.Name, err)
			}
			fd, err = i.createVeth(netns, s)
			return err
		})
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nic, err
	}
	nic.File = os.NewFile(uintptr(fd), nic.Kind+" "+i.Name)
	return nic, nil
}

// createVeth makes the pair with its other end in the namespace of the calling
// thread. Where that is one that nothing but the descriptor holds, the pair goes
// with it.
func (i Interface) createVeth(netns *os.File, s Shape) (fd int, err error) {
	host := i.hostName()
	if old, err := netlink.LinkByName(host); err == nil { // what an ADD that was killed left
		netlink.LinkDel(old)
	}
	index, err := link.CreateVeth(host, i.Name, int(netns.Fd()), s.MTU)
	if err != nil {
		return -1, err
	}
	if fd, err = link.OpenPacketSocket(index); err == nil {
		err = inside(netns, func() error { return i.configure(s) })
	}
	if err != nil {
		if l, e := netlink.LinkByIndex(index); e == nil {
			err = errors.Join(err, netlink.LinkDel(l))
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, err
	}
	return fd, nil
}

// hostName is that of the outer end of a veth: it follows from whose it is.
func (i Interface) hostName() string {
	sum := sha256.Sum256([]byte(i.Owner + " " + i.Name))
	return fmt.Sprintf("podgate%x", sum[:4])
}

// noTAP says whether err is about /dev/net/tun itself: not there, not ours.
func noTAP(err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe) && pe.Path == "/dev/net/tun" || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// configure gives the interface all it needs, in the calling thread's namespace.
func (i Interface) configure(s Shape) error {
	l, err := netlink.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", i.Name, err)
	}
	// Addresses are unique by construction, and there is no router that
	// advertises. What cannot be set (IPv6 off, /proc/sys read-only) is left.
	conf := "/proc/sys/net/ipv6/conf/" + i.Name + "/"
	for _, key := range []string{"accept_dad", "dad_transmits", "accept_ra", "router_solicitations", "disable_ipv6"} {
		_ = os.WriteFile(conf+key, []byte("0"), 0)
	}
	_, noIPv6 := os.Stat(conf)
	if err := netlink.LinkSetAlias(l, i.alias()); err != nil {
		return fmt.Errorf("%s: set alias: %w", i.Name, err)
	}
	if err := netlink.LinkSetHardwareAddr(l, s.MAC); err != nil {
		return fmt.Errorf("%s: set MAC %s: %w", i.Name, s.MAC, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s up: %w", i.Name, err)
	}
	for _, p := range s.Addrs {
		if p.Addr().Is6() && noIPv6 != nil {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("%s: add address %s: %w", i.Name, p, err)
		}
	}
	for _, r := range s.Routes {
		if r.Dst.Addr().Is6() && noIPv6 != nil {
			continue
		}
		if err := netlink.RouteReplace(r.kernel(l.Attrs().Index)); err != nil {
			return fmt.Errorf("%s: add route %s via %s: %w", i.Name, r.Dst, r.Gateway, err)
		}
	}
	return nil
}

func (r Route) kernel(index int) *netlink.Route {
	k := &netlink.Route{
		LinkIndex: index, Dst: ipNet(r.Dst), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table,
		Scope: netlink.Scope(r.Scope),
	}
	if r.Gateway.IsValid() {
		k.Gw, k.Flags = r.Gateway.AsSlice(), int(netlink.FLAG_ONLINK)
	} else if r.Scope == 0 {
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

// alias marks an interface as its owner's, for everybody to see in `ip link`.
func (i Interface) alias() string { return "podgate " + i.Owner }

// Remove deletes the interface if it is its owner's, and what is left of a veth.
// A namespace or an interface that is not there is fine.
func (i Interface) Remove() error {
	err := i.within(func(l netlink.Link) error {
		if l.Attrs().Alias != i.alias() {
			return nil
		}
		return netlink.LinkDel(l)
	})
	if host, e := netlink.LinkByName(i.hostName()); e == nil {
		err = errors.Join(err, netlink.LinkDel(host))
	}
	return err
}

// within calls f with the interface, in its namespace, if both are there.
func (i Interface) within(f func(netlink.Link) error) error {
	if i.Netns == "" {
		return nil
	}
	netns, err := openNetns(i.Netns)
	if err != nil {
		return nil
	}
	defer netns.Close()
	return inside(netns, func() error {
		l, err := netlink.LinkByName(i.Name)
		if err != nil {
			return nil
		}
		return f(l)
	})
}

// ErrGone is why an interface cannot be reopened: it, or its namespace, is not
// there any more.
var ErrGone = errors.New("the interface is gone")

// Reopen opens an interface that was kept, or a veth, again: its descriptor was
// lost with the gateway that had it.
func (i Interface) Reopen(kind, hostIf string) (nic control.NIC, err error) {
	nic.Kind, nic.HostIf = kind, hostIf
	netns, err := openNetns(i.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nic, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err != nil {
		return nic, err
	}
	defer netns.Close()
	fd := -1
	err = inside(netns, func() error {
		l, err := netlink.LinkByName(i.Name)
		if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && l.Attrs().Alias != i.alias() {
			return ErrGone
		}
		if err == nil && kind == TAP {
			if fd, err = link.ReopenTAP(i.Name); err == nil {
				err = link.KeepTAP(fd)
			}
		}
		return err
	})
	if err == nil && kind == Veth {
		var l netlink.Link
		if l, err = netlink.LinkByName(hostIf); err == nil {
			fd, err = link.OpenPacketSocket(l.Attrs().Index)
		}
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nic, fmt.Errorf("reopen %s in %s: %w", i.Name, i.Netns, err)
	}
	nic.File = os.NewFile(uintptr(fd), kind+" "+i.Name)
	return nic, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
