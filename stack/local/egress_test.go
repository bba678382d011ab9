package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/link/nstest"
	"podgate/stack/packet"
)

// outside runs f for an address of the internet of each family.
func outside(t *testing.T, f func(t *testing.T, k *kernels, out netip.Addr)) {
	podLinks(t, func(t *testing.T, tap bool) {
		t.Run("IPv4", func(t *testing.T) { f(t, newKernels(t, tap), out4) })
		t.Run("IPv6", func(t *testing.T) { f(t, newKernels(t, tap), out6) })
	})
}

// listen opens a TCP listener in the internet.
func (k *kernels) listen(t *testing.T, at netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	k.net.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects from inside the pod.
func (k *kernels) dial(t *testing.T, network string, to netip.AddrPort) (c net.Conn, err error) {
	t.Helper()
	k.pod.Do(func() error {
		d := net.Dialer{Timeout: 30 * time.Second}
		// A dialled connection's socket is made on this thread.
		c, err = d.DialContext(context.Background(), network, to.String())
		return nil
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return c, err
}

func TestEgressTCPBothWays(t *testing.T) {
	outside(t, func(t *testing.T, k *kernels, out netip.Addr) {
		at := netip.AddrPortFrom(out, 80)
		l := k.listen(t, at)
		echoTCP(t, l)
		c, err := k.dial(t, "tcp", at)
		check(t, err)
		roundTrip(t, c, 16<<20)
	})
}

// Each half closes on its own, and what was sent before arrives.
func TestEgressTCPHalfClose(t *testing.T) {
	outside(t, func(t *testing.T, k *kernels, out netip.Addr) {
		at := netip.AddrPortFrom(out, 80)
		l := k.listen(t, at)
		c, err := k.dial(t, "tcp", at)
		check(t, err)
		in := must(l.Accept())(t).(*net.TCPConn)
		defer in.Close()
		in.SetDeadline(time.Now().Add(30 * time.Second))
		if got, want := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Is4(), out.Is4(); got != want {
			t.Errorf("the internet sees %s", in.RemoteAddr())
		}

		io.WriteString(c, "question")
		c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(in); string(got) != "question" || err != nil {
			t.Errorf("internet read %q, %v", got, err)
		}
		io.WriteString(in, "late answer")
		in.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "late answer" || err != nil {
			t.Errorf("pod read %q, %v", got, err)
		}
	})
}

func TestEgressTCPResetBothWays(t *testing.T) {
	outside(t, func(t *testing.T, k *kernels, out netip.Addr) {
		at := netip.AddrPortFrom(out, 80)
		l := k.listen(t, at)
		for _, podResets := range []bool{true, false} {
			c, err := k.dial(t, "tcp", at)
			check(t, err)
			in := must(l.Accept())(t)
			in.SetDeadline(time.Now().Add(30 * time.Second))
			a, b := c, in
			if !podResets {
				a, b = in, c
			}
			a.(*net.TCPConn).SetLinger(0)
			a.Close()
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("pod resets %v: the other side reads %v, want connection reset", podResets, err)
			}
			b.Close()
		}
		// A half that has ended still tells of a reset.
		c, err := k.dial(t, "tcp", at)
		check(t, err)
		in := must(l.Accept())(t)
		defer in.Close()
		in.(*net.TCPConn).CloseWrite()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("pod reads %v, want EOF", err)
		}
		in.(*net.TCPConn).SetLinger(0)
		in.Close()
		for err == nil {
			_, err = c.Write([]byte("x"))
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("pod writes %v, want a reset", err)
		}
	})
}

func TestEgressTCPFailsAsItDid(t *testing.T) {
	outside(t, func(t *testing.T, k *kernels, out netip.Addr) {
		sub := func(v4, v6 string) netip.AddrPort {
			if out.Is4() {
				return netip.MustParseAddrPort(v4)
			}
			return netip.MustParseAddrPort(v6)
		}
		// What the kernel makes of a router's answers differs by family.
		unreachable, adminProhibited := syscall.EHOSTUNREACH, syscall.EHOSTUNREACH
		if out.Is6() {
			unreachable, adminProhibited = syscall.ENETUNREACH, syscall.EACCES
		}
		for _, c := range []struct {
			name string
			to   netip.AddrPort
			want error
		}{
			{"refused", netip.AddrPortFrom(out, 81), syscall.ECONNREFUSED},
			{"unreachable", sub("203.0.113.50:80", "[2001:db8:1::50]:80"), unreachable},
			{"prohibited by a router", sub("203.0.113.51:80", "[2001:db8:1::51]:80"), adminProhibited},
			{"no route", sub("198.51.100.1:80", "[2001:db8:ffff::1]:80"), syscall.ENETUNREACH},
		} {
			_, err := k.dial(t, "tcp", c.to)
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
		k.pod.Do(func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond}
			_, err := d.Dial("tcp", sub("203.0.113.99:80", "[2001:db8:1::99]:80").String())
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("black hole: %v, want a timeout", err)
			}
			return nil
		})
	})
}

func TestEgressRefusesForbiddenDestinations(t *testing.T) {
	podLinks(t, func(t *testing.T, tap bool) {
		k := newKernels(t, tap)
		// Something listens on every address of the gateway's namespace.
		l := must(net.Listen("tcp", ":7777"))(t)
		defer l.Close()
		var accepted atomic.Int32
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted.Add(1)
				c.Close()
			}
		}()
		for _, a := range []string{
			host4.String(), host6.String(), "169.254.169.254", "fd00:ec2::254",
			"0.1.2.3", "64:ff9b::127.0.0.1", "64:ff9b::192.0.2.1", "2002:7f00:1::1",
		} {
			to := netip.AddrPortFrom(netip.MustParseAddr(a), 7777)
			if _, err := k.dial(t, "tcp", to); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) {
				t.Errorf("dial %s: %v, want administratively prohibited", to, err)
			}
		}
		// These no pod's kernel would send out; the stack is asked itself.
		for _, a := range []string{
			"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "fe80::1",
			"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "10.244.7.7", "fd00:10:244::7",
		} {
			if !k.gw.Refuses(netip.MustParseAddr(a)) {
				t.Errorf("%s is not refused", a)
			}
		}
		for _, a := range []string{out4.String(), out6.String(), "64:ff9b::203.0.113.1", peer4.String()} {
			if k.gw.Refuses(netip.MustParseAddr(a)) {
				t.Errorf("%s is refused", a)
			}
		}
		if n := accepted.Load(); n != 0 {
			t.Errorf("%d connections reached the gateway's own listener", n)
		}
	})
}

func TestEgressOffRefusesAll(t *testing.T) {
	checkLeaks(t)
	gw, pod := newGateway(t, func(c *Config) { c.EgressOff = true }), newPod(t)
	wire(t, gw.Device(), pod.Device(), localMAC, podMAC)
	_, err := pod.DialTCP(ctxFor(t), netip.AddrPort{}, netip.AddrPortFrom(out4, 80))
	if !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("got %v, want prohibited", err)
	}
}

func TestEgressUDP(t *testing.T) {
	outside(t, func(t *testing.T, k *kernels, out netip.Addr) {
		var server *net.UDPConn
		k.net.Do(func() (err error) {
			server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(out, 53)))
			return err
		})
		defer server.Close()
		go func() {
			buf := make([]byte, 65535)
			for {
				n, from, err := server.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				server.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		c, err := k.dial(t, "udp", netip.AddrPortFrom(out, 53))
		check(t, err)
		for _, size := range []int{0, 1, 512, 1472, 1473, 9000, 65000} {
			want, got := bytes.Repeat([]byte{byte(size)}, size), []byte(nil)
			for end := time.Now().Add(time.Minute); err == nil && (got == nil || !bytes.Equal(got, want)) && time.Now().Before(end); {
				c.SetDeadline(time.Now().Add(2 * time.Second)) // datagrams may be lost on a busy machine
				must(c.Write(want))(t)
				buf := make([]byte, 65535)
				var n int
				if n, err = c.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
					err = nil
					continue
				}
				got = buf[:n]
			}
			if err != nil || got == nil || !bytes.Equal(got, want) {
				t.Errorf("echo of %d bytes: %d bytes, %v", size, len(got), err)
			}
		}
		for name, to := range map[string]netip.AddrPort{
			"closed port": netip.AddrPortFrom(out, 54),
		} {
			c, err := k.dial(t, "udp", to)
			check(t, err)
			must(c.Write([]byte("anyone?")))(t)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v, want connection refused", name, err)
			}
		}
	})
}

// Ping sockets where the group may, else raw ones.
func TestEgressPing(t *testing.T) {
	nstest.Need(t, "ping")
	t.Run("ping socket", func(t *testing.T) {
		const groups = "/proc/sys/net/ipv4/ping_group_range"
		before := must(os.ReadFile(groups))(t)
		t.Cleanup(func() { os.WriteFile(groups, before, 0) })
		check(t, os.WriteFile(groups, []byte("0 0"), 0))
		outside(t, func(t *testing.T, k *kernels, out netip.Addr) { testPing(t, k, out, false) })
	})
	t.Run("raw socket", func(t *testing.T) {
		rawSocket := func(c *Config) {
			c.echoSocket = func(a netip.Addr) (int, bool, error) {
				fd, err := connectEcho(a, unix.SOCK_RAW)
				return fd, true, err
			}
		}
		for _, out := range []netip.Addr{out4, out6} {
			t.Run(out.String(), func(t *testing.T) { testPing(t, newKernelsWith(t, false, rawSocket), out, true) })
		}
	})
}

func testPing(t *testing.T, k *kernels, out netip.Addr, raw bool) {
	unreachable, forbidden, own := "203.0.113.50", host4.String(), node4
	if out.Is6() {
		unreachable, forbidden, own = "2001:db8:1::50", host6.String(), node6
	}
	for _, size := range []string{"0", "56", "4000"} {
		if b, err := k.pod.Command("ping", "-c2", "-i0.05", "-W5", "-s", size, out.String()).CombinedOutput(); err != nil {
			t.Errorf("ping with %s bytes: %v\n%s", size, err, b)
		}
	}
	k.gw.egress.echo.flows.removeAll(func(echoKey) bool { return true }) // what it holds is asked below
	for to, want := range map[string][]string{unreachable: {"nreachable", "No route"}, forbidden: {"rohibited", "iltered"}} {
		b, err := k.pod.Command("ping", "-c1", "-W5", to).CombinedOutput()
		if err == nil || !strings.Contains(string(b), want[0]) && !strings.Contains(string(b), want[1]) {
			t.Errorf("ping %s: %v\n%s", to, err, b)
		}
	}
	k.gw.egress.echo.flows.mu.Lock()
	for key, e := range k.gw.egress.echo.flows.m {
		if e.v.isRaw != raw {
			t.Errorf("raw socket for %v: %v, want %v", key, e.v.isRaw, raw)
		}
	}
	k.gw.egress.echo.flows.mu.Unlock()
	// The gateway's own addresses answer themselves.
	if b, err := k.pod.Command("ping", "-c1", "-W5", own.String()).CombinedOutput(); err != nil {
		t.Errorf("ping of the node: %v\n%s", err, b)
	}
}

func TestEgressPingWithoutPermission(t *testing.T) {
	nstest.Need(t, "ping")
	var log lines
	k := newKernelsWith(t, false, func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
		c.echoSocket = func(netip.Addr) (int, bool, error) { return -1, false, unix.EPERM }
	})
	for range 2 {
		b, err := k.pod.Command("ping", "-c1", "-W5", out4.String()).CombinedOutput()
		if err == nil || !strings.Contains(string(b), "iltered") {
			t.Errorf("ping: %v\n%s", err, b)
		}
	}
	if got := log.String(); strings.Count(got, "net.ipv4.ping_group_range") != 1 {
		t.Errorf("log names the sysctl %d times, want once:\n%s", strings.Count(got, "net.ipv4.ping_group_range"), got)
	}
}

// A second router behind the first, and a host behind that.
func TestEgressTraceroute(t *testing.T) {
	nstest.Need(t, "traceroute")
	podLinks(t, func(t *testing.T, tap bool) {
		k := newKernels(t, tap)
		far := nstest.New(t)
		nstest.Veth(t, k.net, "far", far, "eth0")
		k.net.Addr("far", "203.0.113.129/25", "2001:db8:1:1::1/64")
		far.Addr("eth0", "203.0.113.200/25", "2001:db8:1:1::200/64")
		far.Route("default4", "203.0.113.129")
		far.Route("default6", "2001:db8:1:1::1")
		check(t, netlink.RouteAdd(&netlink.Route{Dst: must(netlink.ParseIPNet("2001:db8:1:1::/64"))(t), Gw: net.IP(peer6.AsSlice())}))

		for _, how := range []string{"-U", "-I", "-T"} {
			for to, router := range map[string]netip.Addr{"203.0.113.200": peer4, "2001:db8:1:1::200": peer6} {
				hops, out := k.pod.Traceroute(to, how, "-q1", "-m4", "-w5")
				if !slices.Equal(hops, []string{router.String(), to}) {
					t.Errorf("traceroute %s %s, want %s and the host itself:\n%s", how, to, router, out)
				}
			}
		}
	})
}

// One send of many datagrams crosses as one frame and arrives as many.
func TestEgressUDPSegmentationOffload(t *testing.T) {
	outside(t, func(t *testing.T, k *kernels, out netip.Addr) {
		var server *net.UDPConn
		k.net.Do(func() (err error) {
			server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(out, 4433)))
			return err
		})
		defer server.Close()
		c, err := k.dial(t, "udp", netip.AddrPortFrom(out, 4433))
		check(t, err)
		raw := must(c.(*net.UDPConn).SyscallConn())(t)
		check(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) }))
		check(t, err)
		want := bytes.Repeat([]byte("0123456789"), 1000) // 10 datagrams
		must(c.Write(want))(t)
		server.SetDeadline(time.Now().Add(30 * time.Second))
		var got []byte
		for range 10 {
			buf := make([]byte, 65535)
			n, err := server.Read(buf)
			if err != nil || n != 1000 {
				t.Fatalf("datagram of %d bytes, %v; want 1000", n, err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, want) {
			t.Error("datagrams differ")
		}
	})
}

// lossy loses one frame in n each way.
type lossy struct {
	link.Device
	n   int
	rng *rand.Rand
}

func (d *lossy) keep(frames []packet.Frame) int {
	kept := 0
	for i := range frames {
		if d.rng.IntN(d.n) != 0 {
			frames[kept], frames[i] = frames[i], frames[kept]
			kept++
		}
	}
	return kept
}

func (d *lossy) ReadBatch(bufs []packet.Frame) (int, error) {
	for {
		n, err := d.Device.ReadBatch(bufs)
		if kept := d.keep(bufs[:n]); kept > 0 || n == 0 || err != nil {
			return kept, err
		}
	}
}

func (d *lossy) WriteBatch(frames []packet.Frame) (int, error) {
	d.Device.WriteBatch(frames[:d.keep(frames)])
	return len(frames), nil
}

// What a link loses arrives all the same.
func TestEgressTCPOverALossyLink(t *testing.T) {
	podLinks(t, func(t *testing.T, tap bool) {
		k := newKernelsOver(t, tap, nil, func(d link.Device) link.Device {
			return &lossy{d, 25, rand.New(rand.NewPCG(1, 2))}
		})
		at := netip.AddrPortFrom(out4, 80)
		echoTCP(t, k.listen(t, at))
		c, err := k.dial(t, "tcp", at)
		check(t, err)
		roundTrip(t, c, 1<<20)
	})
}

// Dials under way are counted by pod; Close does not wait for their end.
func TestEgressDialsAreLimited(t *testing.T) {
	checkLeaks(t)
	n := nstest.New(t)
	joinInternet(t, n)
	gw := newGateway(t, func(c *Config) { c.Limits.DialsPerSource = 2 })
	pod := newPod(t)
	wire(t, gw.Device(), pod.Device(), localMAC, podMAC)
	ctx, cancel := context.WithCancel(context.Background())
	var dials sync.WaitGroup
	for range 3 {
		dials.Go(func() { pod.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort("203.0.113.99:80")) })
	}
	eventually(t, func() bool {
		c := gw.Counters()
		return c["egress_tcp_connections_total"] == 2 && c["egress_tcp_over_limit_total"] >= 1
	}, func() string { return fmt.Sprint(gw.Counters()) })
	start := time.Now()
	gw.Close()
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("Close took %s", d)
	}
	cancel()
	dials.Wait()
}

// A pod that never completes the handshake holds nothing up.
func TestCloseDuringHandshake(t *testing.T) {
	checkLeaks(t)
	n := nstest.New(t)
	joinInternet(t, n)
	k := &kernels{net: n}
	l := k.listen(t, netip.AddrPortFrom(out4, 80))
	gw, pod := newGateway(t, nil), newPod(t)
	dials := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(dials)
		pod.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(out4, 80))
	}()
	// Only the SYN goes over; the answer is lost.
	read := func(d link.Device) []packet.Frame {
		bufs := []packet.Frame{make(packet.Frame, link.MaxFrame)}
		eventually(t, func() bool {
			n, _ := d.ReadBatch(bufs)
			return n == 1
		}, func() string { return "no frame" })
		return bufs
	}
	gw.Device().WriteBatch(read(pod.Device()))
	must(l.Accept())(t).Close()
	read(gw.Device()) // SYN-ACK
	start := time.Now()
	gw.Close()
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("Close took %s", d)
	}
	cancel()
	<-dials
}

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
