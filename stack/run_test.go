package stack

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/kube"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// pairDevice is one end of a socket pair: a Device that epoll can wait for.
type pairDevice struct {
	fd   int
	once sync.Once
}

func newPair(t *testing.T) (near *pairDevice, far int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	return &pairDevice{fd: fds[0]}, fds[1]
}

func (d *pairDevice) ReadBatch(bufs []packet.Frame) (int, error) {
	for i := range bufs {
		n, err := unix.Read(d.fd, bufs[i])
		if err == unix.EAGAIN {
			return i, nil
		}
		if err != nil || n == 0 {
			return i, io.EOF
		}
		bufs[i] = bufs[i][:n]
	}
	return len(bufs), nil
}

func (d *pairDevice) WriteBatch(frames []packet.Frame) (int, error) {
	for i, f := range frames {
		if _, err := unix.Write(d.fd, f); err != nil {
			return i, nil
		}
	}
	return len(frames), nil
}

func (d *pairDevice) FD() int { return d.fd }

func (d *pairDevice) Close() error {
	d.once.Do(func() { unix.Close(d.fd) })
	return nil
}

var (
	macA, macB = packet.MAC{2, 0, 0, 0, 0, 1}, packet.MAC{2, 0, 0, 0, 0, 2}
	ipA, ipB   = netip.MustParseAddr("10.244.0.4"), netip.MustParseAddr("10.244.0.5")
)

func arpFor(mac packet.MAC, ip, target netip.Addr) packet.Frame {
	return packet.BuildARPRequest(make([]byte, packet.MaxBuilt), mac, packet.AddrFrom(ip), packet.AddrFrom(target))
}

// running starts a plane with Run, to be stopped by the test's end.
func running(t *testing.T) (*Plane, context.CancelFunc) {
	t.Helper()
	p, err := New(Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return p, stop
}

func attachPair(t *testing.T, p *Plane, name string, mac packet.MAC, ip netip.Addr) (flow.PortID, int) {
	t.Helper()
	near, far := newPair(t)
	id, err := p.Attach(PortSpec{Pod: kube.Name{Namespace: "default", Name: name}, MAC: mac, Addrs: []netip.Addr{ip}}, near)
	if err != nil {
		t.Fatal(err)
	}
	return id, far
}

// await reads one frame, within the time that a loaded machine may need.
func await(t *testing.T, fd int) packet.Frame {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Fatalf("no frame came: %v", err)
	}
	buf := make([]byte, 2000)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	return packet.Frame(buf[:n])
}

func TestRunForwardsAndAnswers(t *testing.T) {
	p, stop := running(t)
	_, a := attachPair(t, p, "a", macA, ipA)
	idB, b := attachPair(t, p, "b", macB, ipB)

	ask := arpFor(macA, ipA, ipB)
	if _, err := unix.Write(a, ask); err != nil {
		t.Fatal(err)
	}
	var got packet.Packet
	if fault := packet.Decode(&got, await(t, a)); fault != packet.OK || got.SrcMAC() != macB {
		t.Errorf("ARP answer: %v from %s, want one from %s", fault, got.SrcMAC(), macB)
	}
	if n := p.Counters()["arp-answered"]; n != 1 {
		t.Errorf("arp-answered: got %d, want 1", n)
	}
	if err := p.Detach(idB); err != nil {
		t.Fatal(err)
	}
	if n, _ := unix.Read(b, make([]byte, 10)); n != 0 {
		t.Error("the device of a detached port is still open")
	}
	if err := p.Detach(idB); err == nil {
		t.Error("a port could be detached twice")
	}
	stop()
	if n, _ := unix.Read(a, make([]byte, 10)); n != 0 {
		t.Error("a device is still open after Run ended")
	}
	if got := p.Ports(); len(got) != 0 {
		t.Errorf("ports after Run ended: %v", got)
	}
}

func TestADeviceThatDiesIsDetached(t *testing.T) {
	p, _ := running(t)
	_, far := attachPair(t, p, "a", macA, ipA)
	unix.Close(far)
	for deadline := time.Now().Add(30 * time.Second); len(p.Ports()) != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the port of a dead device stays")
		}
	}
	// Its addresses are free again.
	attachPair(t, p, "a", macA, ipA)
}

func TestControlFromManyGoroutines(t *testing.T) {
	p, _ := running(t)
	_, a := attachPair(t, p, "a", macA, ipA)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ip := netip.AddrFrom4([4]byte{10, 244, 1, byte(i)})
			for range 20 {
				near, _ := newPair(t)
				id, err := p.Attach(PortSpec{MAC: packet.MAC{2, 1, 0, 0, 0, byte(i)}, Addrs: []netip.Addr{ip}}, near)
				if err != nil {
					t.Error(err)
					return
				}
				p.Publish(Input{EgressOff: i%2 == 0})
				p.Flows()
				p.Drops(10)
				p.Counters()
				unix.Write(a, arpFor(macA, ipA, ip))
				p.Trace(TraceQuery{Port: id, Dst: ipA, Proto: packet.TCP, DstPort: 80})
				if err := p.Detach(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestAttachRefusesWhatIsTaken(t *testing.T) {
	p, err := New(Config{LocalAddrs: []netip.Addr{netip.MustParseAddr("10.244.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	near, _ := newPair(t)
	if _, err := p.Attach(PortSpec{MAC: macA, Addrs: []netip.Addr{ipA}}, near); err != nil {
		t.Fatal(err)
	}
	for name, spec := range map[string]PortSpec{
		"MAC":               {MAC: macA, Addrs: []netip.Addr{ipB}},
		"address":           {MAC: macB, Addrs: []netip.Addr{ipA}},
		"gateway's MAC":     {MAC: packet.MAC{0x0a, 0x58, 0, 0, 0, 1}},
		"group MAC":         {MAC: packet.MAC{1}},
		"no MAC":            {},
		"gateway's address": {MAC: macB, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.1")}},
	} {
		dev, _ := newPair(t)
		if _, err := p.Attach(spec, dev); err == nil {
			t.Errorf("%s: a port with it could be attached", name)
		}
		dev.Close()
	}
}

// A worker that is to spin does so for a while after there was something to do,
// where that comes often, and where no goroutines of the local stack wait for it.
func TestSpinsWhilePacketsComeOften(t *testing.T) {
	const us = 1000
	for _, c := range []struct {
		name           string
		spin           time.Duration
		now, last, gap int64
		shared         int64
		want           bool
	}{
		{"just now, often", 50 * time.Microsecond, 1e9, 1e9 - 20*us, 100 * us, 0, true},
		{"a while ago", 50 * time.Microsecond, 1e9, 1e9 - 60*us, 100 * us, 0, false},
		{"just now, seldom", 50 * time.Microsecond, 1e9, 1e9 - 20*us, 900 * us, 0, false},
		{"with others to let run", 50 * time.Microsecond, 1e9, 1e9 - 20*us, 100 * us, 1e9 - 30*us, false},
		{"not wanted", 0, 1e9, 1e9, 0, 0, false},
	} {
		w := &worker{cfg: &Config{Spin: c.spin}, now: c.now, stirred: c.last, gap: c.gap, shared: c.shared}
		if got := w.spins(); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		if got := w.patience() == 0; got != c.want {
			t.Errorf("%s: looks again at once: %v, want %v", c.name, got, c.want)
		}
	}
}
