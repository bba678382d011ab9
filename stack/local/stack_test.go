package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// families runs a test with the gateway's and the pod's addresses of each family.
func families(t *testing.T, f func(t *testing.T, node, pod netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { f(t, node4, pod4) })
	t.Run("IPv6", func(t *testing.T) { f(t, node6, pod6) })
}

func linked(t *testing.T) (gw, pod *Stack) {
	checkLeaks(t)
	gw, pod = newGateway(t, nil), newPod(t)
	wire(t, gw.Device(), pod.Device(), localMAC, podMAC)
	return gw, pod
}

// echoTCP answers one connection after the other with what it hears.
func echoTCP(t testing.TB, l net.Listener) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
}

// roundTrip sends n random bytes through an echoing c, closes its writing half
// and compares what comes back.
func roundTrip(t testing.TB, c net.Conn, n int) {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	sent := sha256.New()
	go func() {
		src := io.LimitReader(rand.NewChaCha8([32]byte{1}), int64(n))
		io.Copy(io.MultiWriter(c, sent), src)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got := sha256.New()
	m, err := io.Copy(got, c)
	if err != nil || m != int64(n) {
		t.Fatalf("echoed %d bytes, %v; want %d", m, err, n)
	}
	if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Fatal("echoed bytes differ")
	}
}

func TestTCPBetweenGatewayAndPod(t *testing.T) {
	families(t, func(t *testing.T, node, podAddr netip.Addr) {
		gw, pod := linked(t)
		l, err := pod.ListenTCP(netip.AddrPortFrom(podAddr, 80))
		if err != nil {
			t.Fatal(err)
		}
		echoTCP(t, l)
		c, err := gw.DialTCP(ctxFor(t), netip.AddrPort{}, netip.AddrPortFrom(podAddr, 80))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != node {
			t.Errorf("dialled from %s, want the node address %s", got, node)
		}
		roundTrip(t, c, 10<<20)

		l, err = gw.ListenTCP(netip.AddrPortFrom(node, 80))
		if err != nil {
			t.Fatal(err)
		}
		echoTCP(t, l)
		c, err = pod.DialTCP(ctxFor(t), netip.AddrPort{}, netip.AddrPortFrom(node, 80))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, 10<<20)
	})
}

func TestDialTCPSaysWhatHappened(t *testing.T) {
	families(t, func(t *testing.T, node, podAddr netip.Addr) {
		gw, pod := linked(t)
		if _, err := gw.DialTCP(ctxFor(t), netip.AddrPort{}, netip.AddrPortFrom(podAddr, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial of a closed port: %v, want connection refused", err)
		}
		if _, err := pod.DialTCP(ctxFor(t), netip.AddrPort{}, netip.AddrPortFrom(node, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial of a closed port of the node: %v, want connection refused", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := gw.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(podAddr, 81)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled dial: %v", err)
		}
	})
}

func TestDialTCPFromForeignAddress(t *testing.T) {
	families(t, func(t *testing.T, _, podAddr netip.Addr) {
		gw, pod := linked(t)
		from := netip.MustParseAddrPort("203.0.113.7:40000")
		if podAddr.Is6() {
			from = netip.MustParseAddrPort("[2001:db8::7]:40000")
		}
		l, err := pod.ListenTCP(netip.AddrPortFrom(podAddr, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := gw.DialTCP(ctxFor(t), from, netip.AddrPortFrom(podAddr, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if got := in.RemoteAddr().(*net.TCPAddr).AddrPort(); got != from {
			t.Errorf("the pod sees %s, want %s", got, from)
		}
	})
}

func TestUDPBetweenGatewayAndPod(t *testing.T) {
	families(t, func(t *testing.T, node, podAddr netip.Addr) {
		gw, pod := linked(t)
		l, err := gw.ListenUDP(netip.AddrPortFrom(node, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			buf := make([]byte, 65535)
			for {
				n, from, err := l.ReadFrom(buf)
				if err != nil {
					return
				}
				l.WriteTo(buf[:n], from)
			}
		}()
		c, err := pod.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(node, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		for _, size := range []int{0, 1, 1472, 1473, 9000, 60000} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(want); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65535)
			n, err := c.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], want) {
				t.Errorf("echo of %d bytes: %d bytes, %v", size, n, err)
			}
		}
		closed, err := pod.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(node, 54))
		if err != nil {
			t.Fatal(err)
		}
		defer closed.Close()
		closed.SetDeadline(time.Now().Add(30 * time.Second))
		closed.Write([]byte("anyone?"))
		if _, err := closed.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("datagram to a closed port: %v, want connection refused", err)
		}
	})
}

func TestPing(t *testing.T) {
	families(t, func(t *testing.T, node, podAddr netip.Addr) {
		gw, pod := linked(t)
		for _, p := range []struct {
			from *Stack
			to   netip.Addr
		}{{gw, podAddr}, {pod, node}} {
			if rtt, err := p.from.Ping(ctxFor(t), p.to); err != nil || rtt <= 0 {
				t.Errorf("ping %s: %s, %v", p.to, rtt, err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if _, err := gw.Ping(ctx, podAddr.Next()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping of nobody: %v, want deadline exceeded", err)
		}
	})
}

// Packets to the gateway's own addresses leave too: the plane translates node
// ports, and answers come from where it sent them.
func TestDialOfOwnAddressGoesThroughThePlane(t *testing.T) {
	gw, pod := linked(t)
	_, err := gw.DialTCP(ctxFor(t), netip.MustParseAddrPort("203.0.113.7:40001"), netip.AddrPortFrom(node4, 30080))
	// It arrives at the pod, which is told to refuse what is not its own.
	if !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("got %v, want the pod's ICMP error", err)
	}
	if n := pod.Counters()["egress_tcp_refused_total"]; n != 1 {
		t.Errorf("the pod refused %d connections, want 1", n)
	}
}

func TestListenTwiceIsAnError(t *testing.T) {
	checkLeaks(t)
	gw := newGateway(t, nil)
	at := netip.AddrPortFrom(node4, 80)
	l := must(gw.ListenTCP(at))(t)
	if _, err := gw.ListenTCP(at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second TCP listener: %v, want address in use", err)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	must(gw.ListenTCP(at))(t).Close()
	u := must(gw.ListenUDP(at))(t)
	defer u.Close()
	if _, err := gw.ListenUDP(at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second UDP listener: %v, want address in use", err)
	}
}
