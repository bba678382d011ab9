package local

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/link/nstest"
	"podgate/stack/packet"
)

// Real kernels: a pod namespace whose eth0 is wired to the gateway's local
// port, the gateway's own namespace, and an internet namespace behind it.
//
//	pod 10.244.0.9 == local stack -- 192.0.2.1 gateway ns == 192.0.2.2 internet
//
// The internet answers at 203.0.113.1 and 2001:db8:1::1, has a black hole at
// 203.0.113.99, refuses to route 203.0.113.50 and prohibits 203.0.113.51; the
// gateway has no route to 198.51.100.0/24.
type kernels struct {
	gw       *Stack
	pod, net *nstest.NS
}

var (
	host4 = netip.MustParseAddr("192.0.2.1")
	host6 = netip.MustParseAddr("2001:db8::1")
	peer4 = netip.MustParseAddr("192.0.2.2")
	peer6 = netip.MustParseAddr("2001:db8::2")
	out4  = netip.MustParseAddr("203.0.113.1")
	out6  = netip.MustParseAddr("2001:db8:1::1")
)

// podLinks are the ways to give a pod its eth0; TAPs need /dev/net/tun.
func podLinks(t *testing.T, f func(t *testing.T, tap bool)) {
	if file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		file.Close()
		t.Run("TAP", func(t *testing.T) { f(t, true) })
	}
	t.Run("veth", func(t *testing.T) { f(t, false) })
}

func newKernels(t *testing.T, tap bool) *kernels {
	t.Helper()
	return newKernelsWith(t, tap, nil)
}

func newKernelsWith(t *testing.T, tap bool, change func(*Config)) *kernels {
	t.Helper()
	return newKernelsOver(t, tap, change, func(d link.Device) link.Device { return d })
}

// newKernelsOver has the pod's device be what over makes of it.
func newKernelsOver(t *testing.T, tap bool, change func(*Config), over func(link.Device) link.Device) *kernels {
	t.Helper()
	checkLeaks(t)
	k := &kernels{pod: nstest.New(t), net: nstest.New(t)}
	joinInternet(t, k.net)
	k.gw = newGateway(t, change)
	dev := podDevice(t, k.pod, tap)
	k.pod.MAC("eth0", podMAC)
	k.pod.Addr("eth0", pod4.String()+"/16", pod6.String()+"/64")
	eth0 := must(k.pod.Netlink().LinkByName("eth0"))(t)
	for _, a := range []netip.Addr{node4, dns4, node6, dns6} {
		family := unix.AF_INET
		if a.Is6() {
			family = unix.AF_INET6
		}
		check(t, k.pod.Netlink().NeighAdd(&netlink.Neigh{
			LinkIndex: eth0.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: gatewayMAC[:],
		}))
	}
	k.pod.Route("default4", node4.String())
	k.pod.Route("default6", node6.String())
	k.pod.AwaitCarrier("eth0")
	wire(t, k.gw.Device(), over(ipOnly{dev}), localMAC, podMAC)
	return k
}

// ipOnly drops what a plane would answer itself: ARP, ND and multicast.
type ipOnly struct{ link.Device }

func (d ipOnly) ReadBatch(bufs []packet.Frame) (int, error) {
	n, err := d.Device.ReadBatch(bufs)
	kept := 0
	for i := range n {
		if bufs[i].Eth()[0]&1 == 0 {
			bufs[kept], bufs[i] = bufs[i], bufs[kept]
			kept++
		}
	}
	if n > 0 && kept == 0 {
		return d.ReadBatch(bufs)
	}
	return kept, err
}

func podDevice(t *testing.T, pod *nstest.NS, tap bool) link.Device {
	t.Helper()
	var dev link.Device
	if tap {
		var fd int
		pod.Do(func() (err error) {
			fd, err = link.CreateTAP("eth0", 1500)
			return err
		})
		dev = must(link.OpenTAPFD(fd, "eth0"))(t)
	} else {
		holder := nstest.New(t)
		var fd int
		holder.Do(func() error {
			ifindex, err := link.CreateVeth("pod", "eth0", pod.FD(), 1500)
			if err != nil {
				return err
			}
			fd, err = link.OpenPacketSocket(ifindex)
			return err
		})
		dev = must(link.OpenVethFD(fd, "eth0"))(t)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// joinInternet gives the gateway's namespace, which is the test's own, an
// uplink to n, for the time of the test.
func joinInternet(t *testing.T, n *nstest.NS) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	up := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.FD())}
	check(t, netlink.LinkAdd(up))
	t.Cleanup(func() { netlink.LinkDel(up) })
	addr := func(cidr string) {
		a := must(netlink.ParseAddr(cidr))(t)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		check(t, netlink.AddrAdd(up, a))
	}
	route := func(dst string, via netip.Addr) {
		check(t, netlink.RouteAdd(&netlink.Route{Dst: must(netlink.ParseIPNet(dst))(t), Gw: net.IP(via.AsSlice())}))
	}
	n.Addr("eth0", peer4.String()+"/24", peer6.String()+"/64")
	n.Addr("lo", out4.String()+"/32", out6.String()+"/128")
	check(t, netlink.LinkSetUp(up))
	addr(host4.String() + "/24")
	addr(host6.String() + "/64")
	n.AwaitCarrier("eth0")
	eventually(t, func() bool {
		l, err := netlink.LinkByName("uplink")
		return err == nil && l.Attrs().OperState == netlink.OperUp
	}, func() string { return "the uplink has no carrier" })
	for _, a := range []netip.Addr{host4, host6} {
		eventually(t, func() bool {
			r, err := netlink.RouteGet(a.AsSlice())
			return err == nil && r[0].Type == unix.RTN_LOCAL
		}, func() string { return a.String() + " does not become an address of the gateway" })
	}
	route("203.0.113.0/24", peer4)
	route("2001:db8:1::/64", peer6)
	n.Sysctl("net.ipv4.icmp_ratelimit", "0")
	n.Sysctl("net.ipv6.icmp.ratelimit", "0")
	n.Sysctl("net.ipv4.ip_forward", "1")
	n.Sysctl("net.ipv6.conf.all.forwarding", "1")
	for dst, kind := range map[string]int{
		"203.0.113.99/32": unix.RTN_BLACKHOLE, "203.0.113.50/32": unix.RTN_UNREACHABLE, "203.0.113.51/32": unix.RTN_PROHIBIT,
		"2001:db8:1::99/128": unix.RTN_BLACKHOLE, "2001:db8:1::50/128": unix.RTN_UNREACHABLE, "2001:db8:1::51/128": unix.RTN_PROHIBIT,
	} {
		check(t, n.Netlink().RouteAdd(&netlink.Route{Dst: must(netlink.ParseIPNet(dst))(t), Type: kind}))
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must unwraps the two results of a call: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}
