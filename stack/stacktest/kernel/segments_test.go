package kernel

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"podgate/kube"
	"podgate/stack"
	"podgate/stack/stacktest"
)

// What one pod multicasts its neighbours hear, and pods of another segment do not.
func TestMulticastStaysWithinItsSegment(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			plane := newPlane(t, nil)
			plane.Publish(stack.Input{Segments: []stack.Segment{{Name: "default/lab",
				Prefixes: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("172.30.0.1")}}}})
			a := newPod(t, plane, kind, kube.Name{Namespace: "default", Name: "a"}, 4, 1500)
			b := newPod(t, plane, kind, kube.Name{Namespace: "default", Name: "b"}, 5, 1500)
			c := newPodOn(t, plane, kind, kube.Name{Namespace: "default", Name: "c"}, "default/lab", "172.30.0.2", 1500)
			heard := make(chan string, 2)
			hear := func(p *pod, name string) {
				conn := p.join(t, "224.0.0.251:5353")
				go func() {
					buf := make([]byte, 64)
					for {
						n, err := conn.Read(buf)
						if err != nil {
							return
						}
						select {
						case heard <- name + " " + string(buf[:n]):
						case <-t.Context().Done():
							return
						}
					}
				}()
			}
			hear(b, "b")
			hear(c, "c")
			sender := a.multicaster(t, "224.0.0.251:5353")
			got := ""
			for deadline := time.Now().Add(30 * time.Second); got == "" && time.Now().Before(deadline); {
				sender.Write([]byte("hello")) // again: a link needs a moment to carry
				select {
				case got = <-heard:
				case <-time.After(50 * time.Millisecond):
				}
			}
			if got != "b hello" {
				t.Fatalf("heard %q", got)
			}
			// What c's own segment says it does hear; so it would have heard a too.
			d := newPodOn(t, plane, kind, kube.Name{Namespace: "default", Name: "d"}, "default/lab", "172.30.0.3", 1500)
			sender = d.multicaster(t, "224.0.0.251:5353")
			for deadline := time.Now().Add(30 * time.Second); got != "c from d" && time.Now().Before(deadline); {
				sender.Write([]byte("from d"))
				select {
				case got = <-heard:
				case <-time.After(50 * time.Millisecond):
				}
				if got == "c hello" || got == "b from d" {
					t.Fatalf("heard %q across segments", got)
				}
			}
			if got != "c from d" {
				t.Errorf("c heard %q", got)
			}
			if out, err := c.Command("ping", "-n", "-c", "1", "-W", "5", a.v4).CombinedOutput(); err != nil {
				t.Errorf("c to a, across: %v\n%s", err, out)
			}
		})
	}
}

// newPodOn is newPod for a segment with IPv4 alone.
func newPodOn(t *testing.T, plane *stack.Plane, kind string, name kube.Name, network, addr string, mtu int) *pod {
	t.Helper()
	ip := netip.MustParseAddr(addr)
	p, dev := newLink(t, kind, name, mtu)
	p.v4 = addr
	mac := stacktest.MACOf(ip)
	p.MAC("eth0", mac)
	p.Addr("eth0", addr+"/24")
	p.Route("default4", "172.30.0.1")
	if _, err := plane.Attach(stack.PortSpec{Pod: name, Name: "eth0", MAC: mac, MTU: mtu, Addrs: []netip.Addr{ip}, Network: network}, dev); err != nil {
		t.Fatal(err)
	}
	p.AwaitCarrier("eth0")
	return p
}

// join listens to a group on eth0.
func (p *pod) join(t *testing.T, group string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	p.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err = net.ListenMulticastUDP("udp4", eth0, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(group)))
		return err
	})
	if conn == nil {
		t.Fatal("cannot join " + group)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// multicaster sends to a group by eth0.
func (p *pod) multicaster(t *testing.T, group string) net.Conn {
	t.Helper()
	var conn net.Conn
	p.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if conn, err = (&net.Dialer{}).DialContext(context.Background(), "udp4", group); err != nil {
			return err
		}
		return ipv4.NewPacketConn(conn.(net.PacketConn)).SetMulticastInterface(eth0)
	})
	if conn == nil {
		t.Fatal("cannot send to " + group)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
