package link

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// TAP is the far side of a TAP interface whose near side a pod holds as eth0.
type TAP struct{ descriptor }

const tunPath = "/dev/net/tun"

// Offloads that the kernel may use towards us: partial checksums, TCP
// super-frames of both families with ECN, UDP super-frames of both families.
// TUNSETOFFLOAD refuses a set with a bit that the kernel does not know, so
// smaller sets are tried in turn. They do not govern what we may write.
var offloads = []int{
	offCsum | offTSO4 | offTSO6 | offTSOECN | offUSO4 | offUSO6,
	offCsum | offTSO4 | offTSO6 | offTSOECN,
	offCsum | offTSO4 | offTSO6,
	offCsum,
	0,
}

const (
	offCsum   = 0x01 // TUN_F_CSUM
	offTSO4   = 0x02 // TUN_F_TSO4
	offTSO6   = 0x04 // TUN_F_TSO6
	offTSOECN = 0x08 // TUN_F_TSO_ECN
	offUSO4   = 0x20 // TUN_F_USO4, Linux 6.2
	offUSO6   = 0x40 // TUN_F_USO6
)

// CreateTAP makes a TAP interface in the network namespace of the calling
// thread (which the caller has locked) and returns its descriptor,
// non-blocking and close-on-exec, for OpenTAPFD. The interface has the MTU
// given, is down, and goes away with the last copy of the descriptor.
//
// songgao/water makes the interface but cannot ask for the virtio_net_hdr. So
// the interface is made persistent for a moment and attached a second time
// with the flag set.
func CreateTAP(name string, mtu int) (fd int, err error) {
	req, err := unix.NewIfreq(name) // refuses a name that is too long
	if err != nil || name == "" {
		return -1, fmt.Errorf("create TAP %q: an interface name has 1 to %d bytes", name, unix.IFNAMSIZ-1)
	}
	fd, err = openTun()
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	if err := createPersistent(name); err != nil {
		return -1, fmt.Errorf("create TAP %s: %w", name, err)
	}
	if err := attach(fd, req); err != nil {
		return -1, errors.Join(fmt.Errorf("attach TAP %s: %w", name, err), remove(name))
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return -1, fmt.Errorf("find TAP %s: %w", name, err)
	}
	if err := netlink.LinkSetMTU(l, mtu); err != nil {
		return -1, fmt.Errorf("set MTU %d of TAP %s: %w", mtu, name, err)
	}
	return fd, nil
}

// KeepTAP lets the interface of a descriptor outlive it, until ReopenTAP or the
// end of its network namespace; without a descriptor it has no carrier.
func KeepTAP(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep TAP: TUNSETPERSIST: %w", err)
	}
	return nil
}

// ReopenTAP is CreateTAP for an interface that KeepTAP kept. It is as it was:
// addresses, routes, connections. It goes with the new descriptor.
func ReopenTAP(name string) (fd int, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return -1, fmt.Errorf("reopen TAP %q: %w", name, err)
	}
	if _, err := netlink.LinkByName(name); err != nil { // TUNSETIFF would make it
		return -1, fmt.Errorf("reopen TAP %s: %w", name, err)
	}
	if fd, err = openTun(); err != nil {
		return -1, err
	}
	if err := attach(fd, req); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("reopen TAP %s: %w", name, err)
	}
	return fd, nil
}

func openTun() (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w (a TAP needs read and write permission there; without it a veth does)", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("%w (a TAP needs the kernel module tun; without it a veth does)", err)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: tunPath, Err: err}
	}
	return fd, nil
}

// createPersistent leaves an interface without a descriptor.
func createPersistent(name string) error {
	// water opens without O_CLOEXEC: a process forked meanwhile would hold the
	// interface's only queue.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	w, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: true},
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// attach makes fd the queue of the interface, in the one order that works, and
// lets the interface go with it.
func attach(fd int, req *unix.Ifreq) (err error) {
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, packet.VnetHdrLen); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	for _, mask := range offloads {
		if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, mask); err != unix.EINVAL {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	return nil
}

func remove(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// OpenTAPFD takes a descriptor that CreateTAP made, possibly in another
// process and namespace; name is for messages. The TAP owns fd from then on;
// after an error the caller still does.
func OpenTAPFD(fd int, name string) (*TAP, error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return nil, fmt.Errorf("open TAP %s: descriptor %d is none: %w", name, fd, err)
	}
	if flags := req.Uint16(); flags&unix.IFF_TAP == 0 || flags&unix.IFF_VNET_HDR == 0 {
		return nil, fmt.Errorf("open TAP %s: %w", name, errNoVnetHdr)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("open TAP %s: %w", name, err)
	}
	return &TAP{descriptor{fd: fd, name: "TAP " + name}}, nil
}
