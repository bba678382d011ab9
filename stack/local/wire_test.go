package local

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/link/nstest"
	"podgate/stack/packet"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var (
	gatewayMAC = packet.MAC{0x0a, 0x58, 10, 244, 0, 1}
	localMAC   = packet.MAC{0x0a, 0x58, 10, 244, 0, 3}
	podMAC     = packet.MAC{0x0a, 0x58, 10, 244, 0, 9}

	node4 = netip.MustParseAddr("10.244.0.1")
	dns4  = netip.MustParseAddr("10.244.0.2")
	pod4  = netip.MustParseAddr("10.244.0.9")
	node6 = netip.MustParseAddr("fd00:10:244::1")
	dns6  = netip.MustParseAddr("fd00:10:244::2")
	pod6  = netip.MustParseAddr("fd00:10:244::9")

	podPrefixes = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
)

// wire is a plane that forwards everything from a to b and back, with the
// receiver's MAC, and stops with the test.
func wire(t testing.TB, a, b link.Device, aMAC, bMAC packet.MAC) {
	t.Helper()
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		bufs := make([]packet.Frame, 32)
		for i := range bufs {
			bufs[i] = make(packet.Frame, link.MaxFrame)
		}
		move := func(from, to link.Device, mac packet.MAC) {
			for {
				for i := range bufs {
					bufs[i] = bufs[i][:cap(bufs[i])]
				}
				n, err := from.ReadBatch(bufs)
				if n == 0 || err != nil {
					return
				}
				for _, f := range bufs[:n] {
					copy(f.Eth(), mac[:])
				}
				to.WriteBatch(bufs[:n])
			}
		}
		fds := []unix.PollFd{{Fd: int32(a.FD()), Events: unix.POLLIN}, {Fd: int32(b.FD()), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
			if fds[2].Revents != 0 {
				return
			}
			move(a, b, bMAC)
			move(b, a, aMAC)
		}
	}()
	t.Cleanup(func() {
		unix.Write(stop, []byte{7: 1})
		<-done
		unix.Close(stop)
	})
}

func inPods(a netip.Addr) bool {
	for _, p := range podPrefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// newGateway is a local stack as the product configures it; whatever it
// leaves behind fails the test.
func newGateway(t testing.TB, change func(*Config)) *Stack {
	t.Helper()
	cfg := Config{
		Addrs: []netip.Addr{node4, dns4, node6, dns6},
		MAC:   localMAC, GatewayMAC: gatewayMAC,
		Forbidden: inPods,
		Log:       slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	return newStack(t, cfg)
}

func newStack(t testing.TB, cfg Config) *Stack {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if n := s.egress.flows.len() + s.pub.clients.len() + s.egress.echo.flows.len() + s.device.splicer.Len(); n != 0 {
			t.Errorf("%d sessions, dials and connections outlive Close", n)
		}
	})
	return s
}

// checkLeaks, called first, fails the test if goroutines of this package or
// gVisor, or descriptors, are left once all its cleanups have run.
func checkLeaks(t testing.TB) {
	files := descriptors()
	t.Cleanup(func() {
		eventually(t, func() bool { return len(goroutines()) == 0 && descriptors() <= files }, func() string {
			return fmt.Sprintf("left behind: %d descriptors, goroutines:\n%s", descriptors()-files, strings.Join(goroutines(), "\n\n"))
		})
	})
}

func goroutines() (ours []string) {
	buf := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if !strings.Contains(g, "testing.") && (strings.Contains(g, "podgate/stack/local.") || strings.Contains(g, "gvisor.dev/")) {
			ours = append(ours, g)
		}
	}
	return ours
}

func descriptors() int {
	fds, _ := os.ReadDir("/proc/self/fd")
	return len(fds)
}

// newPod is a pod whose kernel is a netstack.
func newPod(t testing.TB) *Stack {
	t.Helper()
	return newStack(t, Config{Addrs: []netip.Addr{pod4, pod6}, MAC: podMAC, GatewayMAC: gatewayMAC, EgressOff: true})
}

func eventually(t testing.TB, ok func() bool, say func() string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Error(say())
			return
		}
		<-time.After(time.Millisecond)
	}
}

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
