package kernel

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/link/nstest"
)

// Without offloads in pods, who looks there sees right checksums in both directions:
// of TCP, UDP and ICMP in both families, switched, translated by a Service,
// masqueraded and come back, and with packets that were cut for a smaller MTU.
func TestChecksumsAreRightOnTheWire(t *testing.T) {
	nstest.Need(t, "ethtool", "tcpdump", "ping")
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			c, out := newUplinkOf(t, kind, 9000, 1400, stack.Masquerade{})
			seen := map[string]*sniffer{}
			for name, p := range map[string]*pod{"a": c.a, "b": c.b, "outside": out} {
				if text, err := p.Command("ethtool", "-K", "eth0", "tx", "off").CombinedOutput(); err != nil {
					t.Fatalf("ethtool: %v\n%s", err, text)
				}
				seen[name] = p.sniff(t)
			}
			for _, addr := range []string{net.JoinHostPort(vip4, "80"), net.JoinHostPort(vip6, "80"), net.JoinHostPort(c.b.v4, "8080"), net.JoinHostPort(c.b.v6, "8080")} {
				stream(t, c, addr)
			}
			for _, addr := range []string{net.JoinHostPort(vip4, "53"), net.JoinHostPort(vip6, "53")} {
				datagrams(t, c, addr)
			}
			away := &cluster{plane: c.plane, a: c.a, b: out}
			for _, addr := range []string{outside4, outside6} {
				stream(t, away, net.JoinHostPort(addr, "8080"))
				datagrams(t, away, net.JoinHostPort(addr, "8080"))
			}
			out.echo(t)
			c.b.echo(t)
			for _, addr := range []string{net.JoinHostPort(outside4, "8080"), net.JoinHostPort(outside6, "8080"), net.JoinHostPort(vip4, "53"), net.JoinHostPort(vip6, "53")} {
				conn, err := c.a.dial("udp", addr)
				if err != nil {
					t.Fatal(err)
				}
				conn.Write([]byte("odd"))
				conn.SetReadDeadline(time.Now().Add(30 * time.Second))
				if _, err := conn.Read(make([]byte, 100)); err != nil {
					t.Error(err)
				}
				conn.Close()
			}
			for _, addr := range []string{c.b.v4, c.b.v6, outside4, outside6} {
				for _, size := range []string{"57", "3000"} {
					if text, err := c.a.Command("ping", "-n", "-c", "3", "-i", "0.1", "-W", "10", "-s", size, addr).CombinedOutput(); err != nil {
						t.Errorf("ping -s %s %s: %v\n%s", size, addr, err, text)
					}
				}
			}
			for name, s := range seen {
				text := s.text(t)
				for _, line := range wrong.FindAllString(text, 5) {
					t.Errorf("at %s: %s", name, line)
				}
				for _, want := range []string{"(correct)", "[udp sum ok]", "[icmp6 sum ok]", "ICMP echo reply", "Flags [S.]"} {
					if !strings.Contains(text, want) {
						t.Errorf("at %s nothing is %s", name, want)
					}
				}
			}
		})
	}
}

// wrong is what tcpdump says of a checksum that is.
var wrong = regexp.MustCompile(`(?m)^.*(incorrect|bad cksum|bad udp cksum|bad icmp6 cksum|wrong icmp cksum).*$`)

// sniffer sees what passes a pod's eth0, both ways, as tcpdump does.
type sniffer struct {
	file string
	stop context.CancelFunc
	done chan error
}

func (p *pod) sniff(t *testing.T) *sniffer {
	t.Helper()
	s := &sniffer{file: filepath.Join(t.TempDir(), "seen.pcapng"), done: make(chan error, 1)}
	var fd int
	p.Do(func() (err error) {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		all := int(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50e3})
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: eth0.Index})
	})
	f, err := os.Create(s.file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	t.Cleanup(cancel)
	go func() {
		defer unix.Close(fd)
		defer f.Close()
		s.done <- record(ctx, fd, f)
	}()
	return s
}

// record writes frames to a file until ctx is done and there are no more.
func record(ctx context.Context, fd int, f *os.File) error {
	pw, err := link.NewPcapWriter(f, "test")
	if err != nil {
		return err
	}
	iface, err := pw.Interface("eth0", "")
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == nil:
			if err := pw.Packet(iface, 0, true, buf[:n]); err != nil {
				return err
			}
		case err != unix.EAGAIN && err != unix.EINTR:
			return err
		case ctx.Err() != nil:
			return nil
		}
	}
}

// text is what tcpdump says of it all.
func (s *sniffer) text(t *testing.T) string {
	t.Helper()
	s.stop()
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
	// As nobody in particular: tcpdump would have root become somebody else.
	var errOut bytes.Buffer
	cmd := exec.Command("unshare", "-U", "tcpdump", "-n", "-vv", "-r", s.file)
	cmd.Stderr = &errOut
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("tcpdump: %v\n%s", err, errOut.String())
	}
	return string(text)
}
