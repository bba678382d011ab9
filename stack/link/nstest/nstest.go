// Package nstest puts a package's tests into network namespaces of their own,
// as root or as any user, so that they may use real links and addresses
// without touching the machine's network:
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//
//	func TestPing(t *testing.T) {
//		nstest.Need(t, "ping")
//		a, b := nstest.New(t), nstest.New(t)
//		nstest.Veth(t, a, "eth0", b, "eth0")
//		a.Addr("eth0", "192.0.2.1/24")
//		b.Addr("eth0", "192.0.2.2/24")
//		out, err := a.Command("ping", "-c1", "192.0.2.2").CombinedOutput()
//		...
//	}
package nstest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link/ns"
)

// Main is TestMain: it runs the tests in a new network namespace (and a new
// user namespace, in which the caller is root, unless it is root already) and
// exits with their code. Every flag of go test works as ever.
func Main(m *testing.M) {
	code, inside, err := ns.Isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		os.Exit(1)
	}
	if inside {
		code = m.Run()
	}
	os.Exit(code)
}

// NS is a further network namespace, closed with its test, its processes
// killed. Whatever goes wrong in its methods fails the test.
type NS struct {
	*ns.NS
	t testing.TB
}

// New makes a namespace with loopback up.
func New(t testing.TB) *NS {
	t.Helper()
	n, err := ns.New(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return &NS{n, t}
}

// Do calls f on a thread inside n.
func (n *NS) Do(f func() error) {
	n.t.Helper()
	n.check(n.NS.Do(f))
}

// Addr adds addresses such as "192.0.2.1/24" to a link and brings it up.
func (n *NS) Addr(link string, prefixes ...string) {
	n.t.Helper()
	for _, p := range prefixes {
		n.check(n.NS.Addr(link, netip.MustParsePrefix(p)))
	}
}

// Route adds a route; dst "default4" and "default6" are 0.0.0.0/0 and ::/0.
func (n *NS) Route(dst, via string) {
	n.t.Helper()
	switch dst {
	case "default4":
		dst = "0.0.0.0/0"
	case "default6":
		dst = "::/0"
	}
	n.check(n.NS.Route(netip.MustParsePrefix(dst), netip.MustParseAddr(via)))
}

// Up brings a link up.
func (n *NS) Up(link string) {
	n.t.Helper()
	n.check(n.NS.Up(link))
}

// MTU sets a link's MTU in bytes.
func (n *NS) MTU(link string, mtu int) {
	n.t.Helper()
	n.check(n.NS.MTU(link, mtu))
}

// MAC sets a link's Ethernet address.
func (n *NS) MAC(link string, mac [6]byte) {
	n.t.Helper()
	n.check(n.NS.MAC(link, mac))
}

// Sysctl sets a key such as net.ipv4.ip_forward.
func (n *NS) Sysctl(key, value string) {
	n.t.Helper()
	n.check(n.NS.Sysctl(key, value))
}

func (n *NS) check(err error) {
	if err != nil {
		n.t.Helper()
		n.t.Fatal(err)
	}
}

// Veth joins two namespaces by a pair of links, both down.
func Veth(t testing.TB, a *NS, aName string, b *NS, bName string) {
	t.Helper()
	if err := ns.Veth(a.NS, aName, b.NS, bName); err != nil {
		t.Fatal(err)
	}
}

// packages are the Debian packages of tools that are not called like them.
var packages = map[string]string{
	"dig":        "bind9-dnsutils",
	"nslookup":   "bind9-dnsutils",
	"busybox":    "busybox-static",
	"musl-gcc":   "musl-tools gcc",
	"ip":         "iproute2",
	"ss":         "iproute2",
	"ping":       "iputils-ping",
	"tracepath":  "iputils-tracepath",
	"nc":         "netcat-openbsd",
	"setpriv":    "util-linux",
	"nsenter":    "util-linux",
	"unshare":    "util-linux",
	"ip6tables":  "iptables",
	"nft":        "nftables",
	"websocat":   "websocat",
	"capinfos":   "tshark",
	"traceroute": "traceroute",
	"script":     "bsdutils",

	"/usr/lib/cni/host-local": "containernetworking-plugins",
}

// Need fails the test if a tool is missing, with the line that installs it.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			pkg := packages[tool]
			if pkg == "" {
				pkg = tool
			}
			t.Fatalf("%s is missing; install it: apt-get install -y %s", tool, pkg)
		}
	}
}

// AwaitCarrier waits until a link may send and its addresses receive: until the
// kernel has noticed that the other end is up, it drops what is sent, and has no
// route for the link's IPv6 addresses.
func (n *NS) AwaitCarrier(link string) {
	n.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !n.ready(link) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s has no carrier after 30 s", link)
		}
		<-tick.C
	}
}

func (n *NS) ready(link string) bool {
	n.t.Helper()
	l, err := n.Netlink().LinkByName(link)
	n.check(err)
	if s := l.Attrs().OperState; s != netlink.OperUp && s != netlink.OperUnknown {
		return false
	}
	addrs, err := n.Netlink().AddrList(l, netlink.FAMILY_V6)
	n.check(err)
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() { // which no test gave it: it waits for duplicates
			continue
		}
		routes, err := n.Netlink().RouteGet(a.IP)
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return false
		}
	}
	return true
}

var hop = regexp.MustCompile(`(?m)^ *\d+ +(\S+)`)

// Traceroute is the hops on the way to an address, "*" for one that did not
// answer. run executes the tool with the arguments that it is given and returns
// what it printed.
//
// The kernel queues an ICMP error on a raw socket first and marks the socket
// second; a traceroute that reads in between takes the mark for one more error,
// finds none, and never reads an answer again. So one that did not arrive is
// asked again.
func Traceroute(to string, run func(args ...string) string, args ...string) (hops []string, out string) {
	args = append(append([]string{"-n"}, args...), to)
	for range 4 {
		out, hops = run(args...), nil
		for _, m := range hop.FindAllStringSubmatch(out, -1) {
			hops = append(hops, m[1])
		}
		if slices.Contains(hops, to) {
			break
		}
	}
	return hops, out
}

// Traceroute runs the tool inside the namespace.
func (n *NS) Traceroute(to string, args ...string) (hops []string, out string) {
	return Traceroute(to, func(args ...string) string {
		out, _ := n.Command("traceroute", args...).CombinedOutput()
		return string(out)
	}, args...)
}
