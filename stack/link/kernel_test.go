package link_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/link/nstest"
	"podgate/stack/packet"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// pod is a namespace whose eth0 ends in a device of ours.
type pod struct {
	*nstest.NS
	dev    link.Device
	v4, v6 string
}

// tunError is what opening /dev/net/tun says to this user.
func tunError() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func newPod(t *testing.T, kind string, id, mtu int) pod {
	t.Helper()
	p := pod{NS: nstest.New(t), v4: fmt.Sprintf("192.0.2.%d", id), v6: fmt.Sprintf("2001:db8::%d", id)}
	switch kind {
	case "tap":
		p.Do(func() error {
			fd, err := link.CreateTAP("eth0", mtu)
			if err != nil {
				return err
			}
			p.dev, err = link.OpenTAPFD(fd, t.Name())
			return err
		})
	case "veth":
		nstest.New(t).Do(func() error {
			index, err := link.CreateVeth("host", "eth0", p.FD(), mtu)
			if err != nil {
				return err
			}
			fd, err := link.OpenPacketSocket(index)
			if err != nil {
				return err
			}
			p.dev, err = link.OpenVethFD(fd, t.Name())
			return err
		})
	}
	t.Cleanup(func() { p.dev.Close() })
	p.Addr("eth0", p.v4+"/24", p.v6+"/64")
	return p
}

// wire carries frames between two devices, and counts what they look like.
type wire struct {
	super, datagrams, partial, lost atomic.Int64
}

// connect starts the loop; it ends before the devices are closed.
func connect(t *testing.T, a, b link.Device) *wire {
	t.Helper()
	w := new(wire)
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		bufs := make([]packet.Frame, 16)
		for i := range bufs {
			bufs[i] = make(packet.Frame, link.MaxFrame)
		}
		poll := []unix.PollFd{
			{Fd: int32(a.FD()), Events: unix.POLLIN},
			{Fd: int32(b.FD()), Events: unix.POLLIN},
			{Fd: int32(stop), Events: unix.POLLIN},
		}
		for {
			if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
				t.Error(err)
				return
			}
			if poll[2].Revents != 0 {
				return
			}
			w.carry(t, a, b, bufs)
			w.carry(t, b, a, bufs)
		}
	})
	t.Cleanup(func() {
		unix.Write(stop, []byte{7: 1})
		done.Wait()
		unix.Close(stop)
	})
	return w
}

func (w *wire) carry(t *testing.T, from, to link.Device, bufs []packet.Frame) {
	n, err := from.ReadBatch(bufs)
	if err != nil {
		t.Error(err)
	}
	for _, f := range bufs[:n] {
		h := f.Vnet()
		switch h.GSOType &^ packet.GSOECN {
		case packet.GSOTCP4, packet.GSOTCP6:
			w.super.Add(1)
		case packet.GSOUDPL4:
			w.datagrams.Add(1)
		}
		if h.Flags&packet.NeedsCsum != 0 {
			w.partial.Add(1)
		}
	}
	sent, err := to.WriteBatch(bufs[:n])
	if err != nil {
		t.Error(err)
	}
	w.lost.Add(int64(n - sent))
}

func TestPodsTalkThroughDevices(t *testing.T) {
	pairs := [][2]string{{"veth", "veth"}, {"tap", "tap"}, {"tap", "veth"}, {"veth", "tap"}}
	if err := tunError(); err != nil {
		t.Logf("only veth pairs: /dev/net/tun: %v", err)
		pairs = pairs[:1]
	}
	for _, kinds := range pairs {
		for _, mtu := range []int{1500, 65520} {
			t.Run(fmt.Sprintf("%s to %s, MTU %d", kinds[0], kinds[1], mtu), func(t *testing.T) {
				a, b := newPod(t, kinds[0], 1, mtu), newPod(t, kinds[1], 2, mtu)
				w := connect(t, a.dev, b.dev)
				for _, family := range []struct{ name, from, to string }{
					{"IPv4", a.v4, b.v4},
					{"IPv6", a.v6, b.v6},
				} {
					t.Run(family.name, func(t *testing.T) {
						ping(t, a, family.to)
						before := w.super.Load()
						tcp(t, a, b, family.to)
						if mtu == 1500 && w.super.Load() == before {
							t.Error("no TCP super-frame was seen")
						}
						udp(t, a, b, family.from, family.to)
						datagrams(t, a, b, family.to, w)
					})
				}
				if w.partial.Load() == 0 {
					t.Error("no partial checksum was seen: the kernels compute them all")
				}
			})
		}
	}
}

func ping(t *testing.T, from pod, to string) {
	t.Helper()
	network, proto := "ip4:icmp", 1
	var ask, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if strings.Contains(to, ":") {
		network, proto = "ip6:ipv6-icmp", 58
		ask, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	want := bytes.Repeat([]byte("podgate"), 150)
	from.Do(func() error {
		c, err := icmp.ListenPacket(network, "")
		if err != nil {
			return err
		}
		defer c.Close()
		m := icmp.Message{Type: ask, Body: &icmp.Echo{ID: 7, Seq: 1, Data: want}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		buf := make([]byte, 2000)
		for {
			n, peer, err := c.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("no echo reply from %s: %w", to, err)
			}
			got, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil {
				return err
			}
			if e, ok := got.Body.(*icmp.Echo); ok && got.Type == answer && peer.String() == to {
				if !bytes.Equal(e.Data, want) {
					return errors.New("the echo reply carries other bytes")
				}
				return nil
			}
		}
	})
}

// tcp sends enough for a kernel to make super-frames of it, and compares what
// arrives.
func tcp(t *testing.T, from, to pod, addr string) {
	t.Helper()
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	var l net.Listener
	to.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")); return err })
	defer l.Close()
	got := make(chan [sha256.Size]byte, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		h := sha256.New()
		if _, err := io.Copy(h, c); err != nil {
			t.Error(err)
			return
		}
		got <- [sha256.Size]byte(h.Sum(nil))
	}()
	from.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write(data); err != nil {
			return err
		}
		return c.(*net.TCPConn).CloseWrite()
	})
	if got := <-got; got != sha256.Sum256(data) {
		t.Errorf("%d bytes to %s arrived changed", len(data), addr)
	}
}

// udp sends datagrams of many sizes back and forth.
func udp(t *testing.T, from, to pod, src, addr string) {
	t.Helper()
	server, client := udpPair(t, from, to, addr)
	go func() {
		buf := make([]byte, 2000)
		for {
			n, peer, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(buf[:n], peer)
		}
	}()
	want, got := make([]byte, 1400), make([]byte, 2000)
	rand.NewChaCha8([32]byte{2}).Read(want)
	client.SetDeadline(time.Now().Add(30 * time.Second))
	for n := 0; n <= len(want); n += 100 {
		if _, err := client.Write(want[:n]); err != nil {
			t.Fatal(err)
		}
		m, err := client.Read(got)
		if err != nil {
			t.Fatalf("no answer to %d bytes from %s to %s: %v", n, src, addr, err)
		}
		if !bytes.Equal(got[:m], want[:n]) {
			t.Fatalf("%d bytes came back changed", n)
		}
	}
}

// datagrams sends with UDP_SEGMENT, which crosses as one super-frame where the
// device takes it.
func datagrams(t *testing.T, from, to pod, addr string, w *wire) {
	t.Helper()
	const count, size = 10, 1000
	server, client := udpPair(t, from, to, addr)
	raw, err := client.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal("UDP_SEGMENT:", err)
	}
	want := make([]byte, count*size)
	rand.NewChaCha8([32]byte{3}).Read(want)
	before := w.datagrams.Load()
	if _, err := client.Write(want); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 20000)
	server.SetReadDeadline(time.Now().Add(30 * time.Second))
	for range count {
		n, _, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		if n != size {
			t.Errorf("got a datagram of %d bytes, want %d", n, size)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, want) {
		t.Error("segmented datagrams arrived changed")
	}
	if w.datagrams.Load() == before {
		t.Error("no UDP super-frame was seen")
	}
}

func udpPair(t *testing.T, from, to pod, addr string) (server net.PacketConn, client net.Conn) {
	t.Helper()
	to.Do(func() (err error) { server, err = net.ListenPacket("udp", net.JoinHostPort(addr, "0")); return err })
	t.Cleanup(func() { server.Close() })
	from.Do(func() (err error) { client, err = net.Dial("udp", server.LocalAddr().String()); return err })
	t.Cleanup(func() { client.Close() })
	return server, client
}

func TestTAPErrorNamesTheDevice(t *testing.T) {
	if tunError() == nil {
		t.Log("/dev/net/tun can be opened here")
		return
	}
	nstest.New(t).Do(func() error {
		_, err := link.CreateTAP("eth0", 1500)
		if err == nil {
			return errors.New("CreateTAP worked without /dev/net/tun")
		}
		want := "open /dev/net/tun: permission denied (a TAP needs read and write permission there; without it a veth does)"
		if errors.Is(err, os.ErrPermission) && err.Error() != want {
			return fmt.Errorf("got %q, want %q", err, want)
		}
		return nil
	})
}

func TestTAPNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", "sixteen-bytes-xx"} {
		nstest.New(t).Do(func() error {
			if _, err := link.CreateTAP(name, 1500); err == nil || !strings.Contains(err.Error(), "1 to 15 bytes") {
				return fmt.Errorf("%q: got %v", name, err)
			}
			return nil
		})
	}
}

func kinds() []string {
	if tunError() != nil {
		return []string{"veth"}
	}
	return []string{"tap", "veth"}
}

func TestDeviceIsGoneWithItsLink(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := newPod(t, kind, 1, 1500)
			l, err := p.Netlink().LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Netlink().LinkDel(l); err != nil {
				t.Fatal(err)
			}
			bufs := []packet.Frame{make(packet.Frame, link.MaxFrame)}
			deadline := time.Now().Add(30 * time.Second)
			for err = nil; err == nil && time.Now().Before(deadline); {
				_, err = p.dev.ReadBatch(bufs)
			}
			if err == nil {
				t.Error("a device without its link still reads")
			}
			if _, err := p.dev.WriteBatch([]packet.Frame{make(packet.Frame, 70)}); err == nil {
				t.Error("a device without its link still writes")
			}
		})
	}
}

func TestDownLinkTakesNothingAndComesBack(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := newPod(t, kind, 1, 1500)
			l, err := p.Netlink().LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Netlink().LinkSetDown(l); err != nil {
				t.Fatal(err)
			}
			bufs := []packet.Frame{make(packet.Frame, link.MaxFrame)}
			if _, err := p.dev.ReadBatch(bufs); err != nil {
				t.Error("read while down:", err)
			}
			if _, err := p.dev.WriteBatch([]packet.Frame{make(packet.Frame, 70)}); err != nil {
				t.Error("write while down:", err)
			}
			p.Up("eth0")
			if n, err := p.dev.WriteBatch([]packet.Frame{make(packet.Frame, 70)}); n != 1 || err != nil {
				t.Errorf("write once up again: %d, %v", n, err)
			}
		})
	}
}

func TestCloseDuringUse(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := newPod(t, kind, 1, 1500)
			done := make(chan error)
			go func() {
				bufs := []packet.Frame{make(packet.Frame, link.MaxFrame)}
				for {
					if _, err := p.dev.ReadBatch(bufs); err != nil {
						done <- err
						return
					}
					if _, err := p.dev.WriteBatch([]packet.Frame{make(packet.Frame, 70)}); err != nil {
						done <- err
						return
					}
				}
			}()
			if err := p.dev.Close(); err != nil {
				t.Error(err)
			}
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("the loop ended with %v, want %v", err, net.ErrClosed)
			}
			if err := p.dev.Close(); err != nil {
				t.Error("second Close:", err)
			}
			if err := unix.SetNonblock(p.dev.FD(), true); err != unix.EBADF {
				t.Errorf("the descriptor is still open (%v)", err)
			}
		})
	}
}

func TestBatchesDoNotAllocate(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := newPod(t, kind, 1, 1500)
			bufs := []packet.Frame{make(packet.Frame, link.MaxFrame)}
			frames := []packet.Frame{make(packet.Frame, 70)}
			got := testing.AllocsPerRun(100, func() {
				p.dev.WriteBatch(frames)
				p.dev.ReadBatch(bufs)
			})
			if got != 0 {
				t.Errorf("got %v allocations a batch, want none", got)
			}
		})
	}
}

func TestWrongDescriptorsAreRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := link.OpenTAPFD(int(f.Fd()), "x"); err == nil {
		t.Error("/dev/null is no TAP")
	}
	if _, err := link.OpenVethFD(int(f.Fd()), "x"); err == nil {
		t.Error("/dev/null is no packet socket")
	}
}
