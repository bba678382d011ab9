package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"podgate/stack/packet"
)

// publishing runs f with a host address that the gateway listens at, an address
// of the internet that can reach it, and the pod's address, of each family.
func publishing(t *testing.T, f func(t *testing.T, k *kernels, host, client, pod netip.Addr)) {
	podLinks(t, func(t *testing.T, tap bool) {
		t.Run("IPv4", func(t *testing.T) { f(t, newKernels(t, tap), host4, peer4, pod4) })
		t.Run("IPv6", func(t *testing.T) { f(t, newKernels(t, tap), host6, peer6, pod6) })
	})
}

// podListener listens inside the pod.
func (k *kernels) podListener(t *testing.T, at netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	k.pod.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

func publish(t *testing.T, s *Stack, pubs ...Publication) {
	t.Helper()
	if errs := s.Publish(pubs); errs != nil {
		t.Fatal(errs)
	}
}

func TestPublishedPortsAdmitTheirSourcesOnly(t *testing.T) {
	publishing(t, func(t *testing.T, k *kernels, host, client, pod netip.Addr) {
		l := k.podListener(t, netip.AddrPortFrom(pod, 80))
		at := netip.AddrPortFrom(host, 30080)
		pub := Publication{HostAddr: at, Proto: packet.TCP, Target: netip.AddrPortFrom(pod, 80), Name: "x"}
		ask := func() error {
			var c net.Conn
			var err error
			k.net.Do(func() error {
				c, err = net.Dial("tcp", at.String())
				return nil
			})
			if err != nil { // the reset may come before connect returns
				return err
			}
			defer c.Close()
			_, err = c.Read(make([]byte, 1))
			return err
		}
		answers := make(chan error, 1)
		go func() {
			in, err := l.Accept()
			if err == nil {
				_, err = in.Write([]byte("x"))
				in.Close()
			}
			answers <- err
		}()

		pub.Sources = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:ffff::/48")}
		publish(t, k.gw, pub)
		if err := ask(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client outside the ranges: got %v, want a reset", err)
		}
		pub.Sources = append(pub.Sources, netip.PrefixFrom(client, client.BitLen()))
		publish(t, k.gw, pub)
		if err := ask(); err != nil {
			t.Errorf("a client inside the ranges: %v", err)
		}
		if err := <-answers; err != nil {
			t.Error(err)
		}
	})
}

func TestPublishedTCPKeepsTheClientAddress(t *testing.T) {
	publishing(t, func(t *testing.T, k *kernels, host, client, pod netip.Addr) {
		l := k.podListener(t, netip.AddrPortFrom(pod, 80))
		at := netip.AddrPortFrom(host, 30080)
		publish(t, k.gw, Publication{HostAddr: at, Proto: packet.TCP, Target: netip.AddrPortFrom(pod, 80), Name: "Service shop/web: node port 30080"})

		var c net.Conn
		k.net.Do(func() (err error) {
			c, err = net.Dial("tcp", at.String())
			return err
		})
		defer c.Close()
		in := must(l.Accept())(t)
		defer in.Close()
		if got, want := in.RemoteAddr().String(), c.LocalAddr().String(); got != want {
			t.Errorf("pod sees %s, want the client %s", got, want)
		}
		if got := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != client {
			t.Errorf("pod sees %s, want %s", got, client)
		}
		in.Close()
		c.Close()

		// A client on the host itself cannot be answered as what it is.
		c = must(net.Dial("tcp", at.String()))(t)
		defer c.Close()
		in = must(l.Accept())(t)
		node := k.gw.sourceFor(netip.AddrPort{}, at).Addr()
		if got := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != node {
			t.Errorf("pod sees %s for a local client, want the node address %s", got, node)
		}
		go func() {
			io.Copy(in, in)
			in.Close()
		}()
		roundTrip(t, c, 16<<20)
	})
}

func TestPublishedTCPRefusedByThePodIsReset(t *testing.T) {
	publishing(t, func(t *testing.T, k *kernels, host, client, pod netip.Addr) {
		at := netip.AddrPortFrom(host, 30080)
		publish(t, k.gw, Publication{HostAddr: at, Proto: packet.TCP, Target: netip.AddrPortFrom(pod, 80), Name: "x"})
		c, err := net.DialTimeout("tcp", at.String(), 30*time.Second)
		if err == nil { // or the reset was there first
			defer c.Close()
			c.SetDeadline(time.Now().Add(30 * time.Second))
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client gets %v, want connection reset", err)
		}
	})
}

func TestPublishedUDPKeepsTheClientAddress(t *testing.T) {
	publishing(t, func(t *testing.T, k *kernels, host, client, pod netip.Addr) {
		var server net.PacketConn
		k.pod.Do(func() (err error) {
			server, err = net.ListenPacket("udp", netip.AddrPortFrom(pod, 53).String())
			return err
		})
		defer server.Close()
		go func() {
			buf := make([]byte, 65535)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				server.WriteTo(append([]byte(from.String()+" "), buf[:n]...), from)
			}
		}()
		all := netip.IPv4Unspecified()
		if host.Is6() {
			all = netip.IPv6Unspecified()
		}
		publish(t, k.gw,
			Publication{HostAddr: netip.AddrPortFrom(host, 30053), Proto: packet.UDP, Target: netip.AddrPortFrom(pod, 53), Name: "x"},
			Publication{HostAddr: netip.AddrPortFrom(all, 30054), Proto: packet.UDP, Target: netip.AddrPortFrom(pod, 53), Name: "y"})
		for _, port := range []uint16{30053, 30054} {
			var c net.Conn
			k.net.Do(func() (err error) {
				c, err = net.Dial("udp", netip.AddrPortFrom(host, port).String())
				return err
			})
			defer c.Close()
			for _, size := range []int{1, 1472, 30000} {
				payload := bytes.Repeat([]byte("x"), size)
				var who, rest string
				var err error
				for end := time.Now().Add(30 * time.Second); rest != string(payload) && time.Now().Before(end); {
					c.SetDeadline(time.Now().Add(2 * time.Second)) // datagrams may be lost on a busy machine
					if _, err = c.Write(payload); err != nil {
						continue
					}
					buf := make([]byte, 65535)
					var n int
					n, err = c.Read(buf)
					who, rest, _ = strings.Cut(string(buf[:n]), " ")
				}
				if err != nil || who != c.LocalAddr().String() || rest != string(payload) {
					t.Errorf("port %d: %d bytes from a pod that saw %s, %v; want %s", port, len(rest), who, err, c.LocalAddr())
				}
			}
		}
	})
}

func TestPublishIsLevelTriggered(t *testing.T) {
	checkLeaks(t)
	gw := newGateway(t, nil)
	loopback := netip.MustParseAddr("127.0.0.1")
	pub := func(port uint16, target string) Publication {
		return Publication{HostAddr: netip.AddrPortFrom(loopback, port), Proto: packet.TCP, Target: netip.MustParseAddrPort(target),
			Name: fmt.Sprintf("Service shop/web: node port %d", port)}
	}
	busy := must(net.Listen("tcp", "127.0.0.1:30002"))(t)
	defer busy.Close()

	errs := gw.Publish([]Publication{pub(30001, "10.244.0.9:80"), pub(30002, "10.244.0.9:80"), pub(30001, "10.244.0.9:81"),
		{HostAddr: netip.MustParseAddrPort("203.0.113.77:30001"), Proto: packet.TCP, Target: netip.MustParseAddrPort("10.244.0.9:80"), Name: "Pod shop/web: host port 30001"}})
	var got []string
	for _, err := range errs {
		got = append(got, err.Error())
	}
	slices.Sort(got)
	want := []string{
		"Pod shop/web: host port 30001: 203.0.113.77 is not an address of this host",
		"Service shop/web: node port 30001: 127.0.0.1:30001 is taken by Service shop/web: node port 30001",
		"Service shop/web: node port 30002: 127.0.0.1:30002 is in use",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	// A listener that stays is not touched, one in use is tried again, the
	// others go.
	kept := gw.pub.ports[publishKey{netip.AddrPortFrom(loopback, 30001), packet.TCP}]
	busy.Close()
	publish(t, gw, pub(30001, "10.244.0.8:80"), pub(30002, "10.244.0.9:80"))
	if now := gw.pub.ports[publishKey{netip.AddrPortFrom(loopback, 30001), packet.TCP}]; now != kept {
		t.Error("the listener of 30001 was replaced")
	}
	if got := kept.pub.Load().Target.String(); got != "10.244.0.8:80" {
		t.Errorf("30001 leads to %s", got)
	}
	if n := len(gw.Published()); n != 2 {
		t.Errorf("%d published, want 2", n)
	}
	// A closed one refuses, and opens again.
	closed := pub(30001, "10.244.0.8:80")
	closed.Closed = true
	publish(t, gw, closed, pub(30002, "10.244.0.9:80"))
	if c, err := net.Dial("tcp", "127.0.0.1:30001"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: got %v, %v, want connection refused", c, err)
	}
	publish(t, gw, pub(30001, "10.244.0.8:80"))
	must(net.Dial("tcp", "127.0.0.1:30001"))(t).Close()
	publish(t, gw)
	for _, port := range []string{"30001", "30002"} {
		must(net.Listen("tcp", "127.0.0.1:"+port))(t).Close()
	}
}
