package kernel

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"podgate/stack/link/nstest"
)

// TestSmallerMTUBehindTheGateway has kernels talk whose MTUs differ.
func TestSmallerMTUBehindTheGateway(t *testing.T) {
	nstest.Need(t, "ping")
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			c := newClusterOf(t, kind, 9000, 1400)
			ping := func(want string, args ...string) {
				t.Helper()
				args = append([]string{"-n", "-c", "2", "-i", "0.02", "-W", "5"}, args...)
				out, err := c.a.Command("ping", args...).CombinedOutput()
				if want == "" && err != nil || want != "" && !strings.Contains(string(out), want) {
					t.Errorf("ping %v: %v, want %q\n%s", args, err, want, out)
				}
			}
			ping("", "-M", "dont", "-s", "5000", c.b.v4)
			ping("mtu = 1400", "-M", "do", "-s", "3000", c.b.v4)
			ping("mtu=1400", "-M", "do", "-s", "3000", c.b.v6)
			// IPv6 fragments at the source, once it knows.
			ping("", "-s", "3000", c.b.v6)
			stream(t, c, net.JoinHostPort(vip4, "80"))
			stream(t, c, net.JoinHostPort(vip6, "80"))
			datagrams(t, c, net.JoinHostPort(vip4, "53"))
			datagrams(t, c, net.JoinHostPort(vip6, "53"))
		})
	}
}

// stream sends a volume through TCP with segments as long as a's MTU lets them be.
func stream(t *testing.T, c *cluster, addr string) {
	t.Helper()
	l := c.b.listen(t, "[::]:8080")
	defer l.Close()
	got := make(chan [32]byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		h := sha256.New()
		io.Copy(h, conn)
		got <- [32]byte(h.Sum(nil))
	}()
	conn, err := c.a.dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(conn, h), rand.NewChaCha8([32]byte{2}), 4<<20); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if <-got != [32]byte(h.Sum(nil)) {
		t.Errorf("%s: the stream differs", addr)
	}
}

// datagrams sends ones over the MTU of the way: the first tells the sender, who
// then fragments.
func datagrams(t *testing.T, c *cluster, addr string) {
	t.Helper()
	var server net.PacketConn
	c.b.Do(func() (err error) { server, err = net.ListenPacket("udp", "[::]:8080"); return err })
	defer server.Close()
	conn, err := c.a.dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("0123456789"), 400)
	buf := make([]byte, 65536)
	for range 50 {
		conn.Write(sent) // "message too long" once, where the error came in between
		server.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, _, err := server.ReadFrom(buf); err == nil {
			if !bytes.Equal(buf[:n], sent) {
				t.Errorf("%s: %d bytes differ from the %d sent", addr, n, len(sent))
			}
			return
		}
	}
	t.Errorf("%s: no datagram of %d bytes came", addr, len(sent))
}

func TestTracerouteShowsTheHops(t *testing.T) {
	nstest.Need(t, "traceroute")
	nstest.Need(t, "ping")
	eachKind(t, 1500, func(t *testing.T, c *cluster) {
		// A probe is sent once; what is sent before a link carries is lost.
		for _, addr := range []string{c.b.v4, c.b.v6} {
			if out, err := c.a.Command("ping", "-n", "-c", "1", "-i", "0.2", "-w", "10", addr).CombinedOutput(); err != nil {
				t.Fatalf("ping %s: %v\n%s", addr, err, out)
			}
		}
		l := c.b.listen(t, "[::]:8080")
		defer l.Close()
		for _, to := range []struct{ addr, gateway string }{{vip4, gateway4}, {vip6, gateway6}} {
			for _, how := range [][]string{{"-T", "-p", "80"}, {"-U", "-p", "53"}} {
				hops, out := c.a.Traceroute(to.addr, append(how, "-q", "1", "-w", "2", "-m", "4")...)
				if !slices.Equal(hops, []string{to.gateway, to.addr}) {
					t.Errorf("traceroute %v %s:\n%s", how, to.addr, out)
				}
			}
		}
	})
}
