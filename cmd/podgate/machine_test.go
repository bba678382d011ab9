package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/link/nstest"
	"podgate/stack/packet"
)

// machine is a namespace whose eth0 is the network card of a virtual machine: its
// frames go through a unix socket in one of QEMU's framings.
func machine(t *testing.T, kind, path, mac string) *nstest.NS {
	t.Helper()
	vm, card := nstest.New(t), nstest.New(t)
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	card.Do(func() error {
		index, err := link.CreateVeth("card", "eth0", vm.FD(), 1500)
		if err == nil {
			fd, err = link.OpenPacketSocket(index)
		}
		return err
	})
	dev, err := link.OpenVethFD(fd, "card")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	var c net.Conn
	if kind == link.Stream {
		c, err = net.Dial("unix", path)
	} else {
		c, err = net.DialUnix("unixgram", &net.UnixAddr{Name: path + ".vm", Net: "unixgram"}, &net.UnixAddr{Name: path, Net: "unixgram"})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() { // the machine sends
		bufs := make([]packet.Frame, 16)
		for {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			for i := range bufs {
				bufs[i] = make(packet.Frame, link.MaxFrame)
			}
			n, err := dev.ReadBatch(bufs)
			if err != nil {
				return
			}
			for _, f := range bufs[:n] {
				link.OnWire(f, func(f packet.Frame) {
					b := bytes.Clone(f.Eth())
					if kind == link.Stream {
						b = append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
					}
					_, err = c.Write(b)
				})
				if err != nil {
					return
				}
			}
		}
	}()
	go func() { // and receives
		buf := make([]byte, 1<<16)
		for {
			var n int
			if kind == link.Stream {
				if _, err := io.ReadFull(c, buf[:4]); err != nil {
					return
				}
				n = int(binary.BigEndian.Uint32(buf))
				if _, err := io.ReadFull(c, buf[:n]); err != nil {
					return
				}
			} else if n, err = c.Read(buf); err != nil {
				return
			}
			dev.WriteBatch([]packet.Frame{append(make(packet.Frame, packet.VnetHdrLen), buf[:n]...)})
		}
	}()
	vm.MAC("eth0", [6]byte(hw))
	vm.Sysctl("net.ipv6.conf.eth0.accept_ra", "2")
	vm.Up("eth0")
	return vm
}

// dhcpScript does with what udhcpc heard as a distribution's would.
const dhcpScript = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip link set $interface mtu $mtu
ip route add default via $router
echo "hostname=$hostname dns=$dns domain=$domain search=$search mtu=$mtu"
`

func TestMachinesConfigureThemselves(t *testing.T) {
	nstest.Need(t, "busybox", "ping", "nc")
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= " + write(t, "app.yaml", goodPod+`
apiVersion: v1
kind: Service
metadata: {name: machines}
spec: {selector: {role: machine}, ports: [{port: 80, targetPort: 7000}], ipFamilyPolicy: RequireDualStack}
`))
	script := filepath.Join(t.TempDir(), "udhcpc.sh")
	if err := os.WriteFile(script, []byte(dhcpScript), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{link.Stream, link.Dgram} {
		t.Run(kind, func(t *testing.T) {
			s := s.in(t)
			path := filepath.Join(shortTempDir(t), "vm.sock")
			out := s.must("podgate attach --socket " + kind + ":" + path + " -l role=machine vm")
			defer func() {
				s.must("podgate detach vm")
				if _, err := os.Stat(path); err == nil {
					t.Error("the socket is left behind")
				}
			}()
			m := regexp.MustCompile(`eth0 (\S+) (\S+) \(` + kind + `[^\n]*\n.*mac=(\S+)`).FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("attach says %q", out)
			}
			vm := machine(t, kind, path, m[3])
			got, err := vm.Command("busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "10", "-T", "1", "-O", "search", "-O", "mtu", "-s", script).CombinedOutput()
			want := "hostname=vm dns=10.96.0.10 domain=cluster.local search=default.svc.cluster.local svc.cluster.local cluster.local mtu=1500"
			if err != nil || !strings.Contains(string(got), want) || !strings.Contains(string(got), m[1]) {
				t.Fatalf("udhcpc: %v\n%s\nwant %s and %q", err, got, m[1], want)
			}
			// The IPv6 address, made of an advertisement.
			deadline := time.Now().Add(runTime)
			for a := addresses(vm); !strings.Contains(a, m[2]+"/64") || strings.Contains(a, "tentative"); a = addresses(vm) {
				if time.Now().After(deadline) {
					t.Fatalf("no address %s after %v:\n%s", m[2], runTime, addresses(vm))
				}
				vm.Command("ping", "-c1", "-W1", "-q", "ff02::2%eth0").Run() // a moment, and something to hear
			}
			pod := s.must(`podgate exec ok -- ip -o addr show dev eth0 scope global`)
			for _, a := range regexp.MustCompile(`inet6? ([^/]+)/`).FindAllStringSubmatch(pod, -1) {
				if out, err := vm.Command("ping", "-c1", "-W20", a[1]).CombinedOutput(); err != nil {
					t.Errorf("the machine does not reach the pod's %s: %v\n%s", a[1], err, out)
				}
			}
			var server net.Listener
			vm.Do(func() (err error) { server, err = net.Listen("tcp", ":7000"); return err })
			defer server.Close()
			go func() {
				for c, err := server.Accept(); err == nil; c, err = server.Accept() {
					io.WriteString(c, "from the machine\n")
					c.Close()
				}
			}()
			for _, to := range []string{m[1] + " 7000", m[2] + " 7000", "machines 80"} {
				if r := s.run("podgate exec ok -- sh -c 'nc -w 5 " + to + " </dev/null'"); !strings.Contains(r.out, "from the machine") {
					t.Errorf("the pod does not reach the machine at %s: %+v", to, r)
				}
			}
		})
	}
}

func addresses(n *nstest.NS) string {
	out, _ := n.Command("ip", "-6", "-o", "addr", "show", "dev", "eth0").CombinedOutput()
	return string(out)
}
