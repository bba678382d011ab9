package link

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Veth is one end of a veth pair, read and written through a packet socket;
// a pod holds the other end as eth0. It is what pods get where /dev/net/tun
// cannot be opened.
type Veth struct{ descriptor }

// Buffer sizes of the packet socket in bytes. A super-frame weighs more than
// 64 KiB; without CAP_NET_ADMIN over the machine the kernel caps the sizes at
// net.core.rmem_max and wmem_max.
const (
	receiveBuffer = 16 << 20
	sendBuffer    = 4 << 20
)

// CreateVeth makes a veth pair: hostName, up, in the network namespace of the
// calling thread (which the caller has locked), and podName, down, in the
// namespace of the descriptor podNS. It returns the host end's index for
// OpenPacketSocket. The pair goes with either end.
//
// The host end is a wire and no more: no addresses, no ARP, no IPv6 of its own,
// so that the kernel there says nothing to the pod.
func CreateVeth(hostName, podName string, podNS int, mtu int) (ifindex int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = hostName, mtu
	pair := netlink.NewVeth(attrs)
	pair.PeerName = podName
	pair.PeerNamespace = netlink.NsFd(podNS)
	pair.PeerMTU = uint32(mtu)
	if err := netlink.LinkAdd(pair); err != nil {
		return 0, fmt.Errorf("create veth %s: %w", hostName, err)
	}
	if err := silence(pair); err != nil {
		netlink.LinkDel(pair)
		return 0, fmt.Errorf("set up veth %s: %w", hostName, err)
	}
	return pair.Attrs().Index, nil
}

func silence(host netlink.Link) error {
	if err := netlink.LinkSetARPOff(host); err != nil {
		return err
	}
	// Absent where IPv6 is off altogether.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+host.Attrs().Name+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return netlink.LinkSetUp(host)
}

// OpenPacketSocket opens a packet socket on a link of the calling thread's
// network namespace and returns its descriptor, non-blocking and
// close-on-exec, for OpenVethFD.
func OpenPacketSocket(ifindex int) (fd int, err error) {
	// Protocol 0 receives nothing until the options are set and bind says so.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	if err := setupPacketSocket(fd, ifindex); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	return fd, nil
}

func setupPacketSocket(fd, ifindex int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("PACKET_VNET_HDR: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("PACKET_IGNORE_OUTGOING: %w", err)
	}
	for _, b := range []struct{ force, plain, size int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.force, b.size) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.plain, b.size); err != nil {
			return fmt.Errorf("buffer size: %w", err)
		}
	}
	all := uint16(unix.ETH_P_ALL)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: ifindex}); err != nil {
		return fmt.Errorf("bind to link %d: %w", ifindex, err)
	}
	return nil
}

// OpenVethFD takes a descriptor that OpenPacketSocket made, possibly in another
// process and namespace; name is for messages. The Veth owns fd from then on;
// after an error the caller still does.
func OpenVethFD(fd int, name string) (*Veth, error) {
	on, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR)
	if err != nil {
		return nil, fmt.Errorf("open veth %s: descriptor %d is no packet socket: %w", name, fd, err)
	}
	if on == 0 {
		return nil, fmt.Errorf("open veth %s: %w", name, errNoVnetHdr)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("open veth %s: %w", name, err)
	}
	return &Veth{descriptor{fd: fd, name: "veth " + name, socket: true}}, nil
}
