package ns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace. It lives as long as it is open or a process or
// socket is in it. Its methods may be called from any goroutine.
type NS struct {
	Name string // for messages; no other meaning

	handle  netns.NsHandle
	netlink *netlink.Handle
	starts  chan func()   // run on the thread that stays inside
	stop    chan struct{} // closed to end that thread
	ended   chan struct{} // closed when it has
	close   sync.Once
}

// New makes a network namespace, with loopback up, in the user namespace of
// the caller.
func New(name string) (*NS, error) {
	n := &NS{
		Name:   name,
		handle: netns.None(),
		starts: make(chan func()),
		stop:   make(chan struct{}),
		ended:  make(chan struct{}),
	}
	made := make(chan error)
	go onThread(func() {
		defer close(n.ended)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- fmt.Errorf("make network namespace %s: %w", name, err)
			return
		}
		var err error
		if n.handle, err = netns.Get(); err != nil {
			made <- fmt.Errorf("open network namespace %s: %w", name, err)
			return
		}
		made <- nil
		for {
			select {
			case f := <-n.starts:
				f()
			case <-n.stop:
				return
			}
		}
	})
	if err := <-made; err != nil {
		return nil, err
	}
	var err error
	if n.netlink, err = netlink.NewHandleAt(n.handle); err != nil {
		n.Close()
		return nil, fmt.Errorf("netlink socket in %s: %w", name, err)
	}
	if err := n.Up("lo"); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close kills the processes that were started in n and lets go of it; the
// kernel removes the namespace and its links once nothing else holds them.
func (n *NS) Close() error {
	n.close.Do(func() {
		close(n.stop)
		<-n.ended
		if n.netlink != nil {
			n.netlink.Close()
		}
		n.handle.Close()
	})
	return nil
}

// onThread calls f on an OS thread of its own, which ends with it: a thread
// that changed its namespace must never serve another goroutine. The main
// thread is not given away, since /proc/self speaks of it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(f)
			return
		}
		f()
	}()
	<-done
}

// Do calls f on a thread inside n. Sockets that f makes stay in n for their
// life; goroutines that f starts are not inside. A panic in f is the caller's.
func (n *NS) Do(f func() error) error {
	var err error
	var panicked any
	returned := false
	onThread(func() {
		defer func() {
			if !returned {
				panicked = recover()
			}
		}()
		if err = netns.Set(n.handle); err != nil {
			err = fmt.Errorf("enter %s: %w", n.Name, err)
		} else {
			err = f()
		}
		returned = true
	})
	if panicked != nil {
		panic(panicked)
	}
	if !returned {
		runtime.Goexit() // f did, as testing.T.FailNow does
	}
	return err
}

// FD is the descriptor of the namespace, borrowed from n.
func (n *NS) FD() int { return int(n.handle) }

// Netlink configures n; it is closed with n.
func (n *NS) Netlink() *netlink.Handle { return n.netlink }

// Cmd is an exec.Cmd whose process starts inside a namespace and is killed
// when that is closed.
type Cmd struct {
	*exec.Cmd
	ns *NS
}

// Command is exec.Command inside n.
func (n *NS) Command(name string, args ...string) *Cmd {
	return &Cmd{exec.Command(name, args...), n}
}

// Start starts the process. The thread that does so stays until the namespace
// is closed, so the kernel's parent-death signal ties the two together.
func (c *Cmd) Start() error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = new(syscall.SysProcAttr)
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error, 1)
	select {
	case c.ns.starts <- func() { result <- c.Cmd.Start() }:
		return <-result
	case <-c.ns.stop:
		return fmt.Errorf("start %s: namespace %s is closed", c.Path, c.ns.Name)
	}
}

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is exec.Cmd.Output.
func (c *Cmd) Output() ([]byte, error) {
	var out, errOut bytes.Buffer
	c.Stdout = &out
	keep := c.Stderr == nil
	if keep {
		c.Stderr = &errOut
	}
	err := c.Run()
	var exit *exec.ExitError
	if keep && errors.As(err, &exit) {
		exit.Stderr = errOut.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput is exec.Cmd.CombinedOutput.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Veth joins two namespaces by a pair of links, both down and without addresses.
func Veth(a *NS, aName string, b *NS, bName string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.handle)}
	if err := a.netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth %s in %s to %s in %s: %w", aName, a.Name, bName, b.Name, err)
	}
	return nil
}

// Bridge makes a bridge over the named links of n and brings all of them up.
func (n *NS) Bridge(name string, ports ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := n.netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, n.Name, err)
	}
	for _, p := range ports {
		l, err := n.link(p)
		if err != nil {
			return err
		}
		if err := n.netlink.LinkSetMaster(l, bridge); err != nil {
			return fmt.Errorf("put %s into bridge %s in %s: %w", p, name, n.Name, err)
		}
		if err := n.Up(p); err != nil {
			return err
		}
	}
	return n.Up(name)
}

// Up brings a link up.
func (n *NS) Up(name string) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up in %s: %w", name, n.Name, err)
	}
	return nil
}

// MTU sets a link's MTU in bytes.
func (n *NS) MTU(name string, mtu int) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.netlink.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("set MTU %d of %s in %s: %w", mtu, name, n.Name, err)
	}
	return nil
}

// MAC sets a link's Ethernet address.
func (n *NS) MAC(name string, mac [6]byte) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.netlink.LinkSetHardwareAddr(l, mac[:]); err != nil {
		return fmt.Errorf("set MAC of %s in %s: %w", name, n.Name, err)
	}
	return nil
}

// Addr adds addresses to a link and brings it up. IPv6 addresses are usable at
// once: duplicate address detection is skipped.
func (n *NS) Addr(name string, prefixes ...netip.Prefix) error {
	l, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.Up(name); err != nil {
		return err
	}
	for _, p := range prefixes {
		a, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add %s to %s in %s: %w", p, name, n.Name, err)
		}
	}
	return nil
}

// Route adds a route by way of a gateway.
func (n *NS) Route(dst netip.Prefix, via netip.Addr) error {
	to := &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())}
	if err := n.netlink.RouteAdd(&netlink.Route{Dst: to, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s in %s: %w", dst, via, n.Name, err)
	}
	return nil
}

// Sysctl sets a key such as net.ipv4.ip_forward inside n.
func (n *NS) Sysctl(key, value string) error {
	return n.Do(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0)
	})
}

func (n *NS) link(name string) (netlink.Link, error) {
	l, err := n.netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("link %s in %s: %w", name, n.Name, err)
	}
	return l, nil
}
