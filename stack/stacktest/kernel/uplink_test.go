package kernel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/kube"
	"podgate/stack"
	"podgate/stack/link/nstest"
	"podgate/stack/stacktest"
)

// The gateway's addresses at the uplink, and two hosts outside, one of each family.
const (
	external4, external6 = "203.0.113.10", "2001:db8:3::10"
	outside4, outside6   = "198.51.100.7", "2001:db8:9::7"
)

// newUplink is a cluster with a way out, and the namespace beyond it. The Service
// web of b has node port 30080 and 30053, the Service away has 30081 and 30054, and
// its only endpoint is on another node.
func newUplink(t *testing.T, kind string, masquerade stack.Masquerade) (*cluster, *pod) {
	t.Helper()
	return newUplinkOf(t, kind, 1500, 1500, masquerade)
}

// newUplinkOf gives a and b MTUs of their own.
func newUplinkOf(t *testing.T, kind string, mtu, bmtu int, masquerade stack.Masquerade) (*cluster, *pod) {
	t.Helper()
	c := newClusterOf(t, kind, mtu, bmtu)
	out, dev := newLink(t, kind, kube.Name{Name: "uplink"}, 1500)
	out.v4, out.v6 = outside4, outside6
	hops := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:3::1")}
	mac := stacktest.MACOf(hops[0])
	out.MAC("eth0", mac)
	out.Addr("eth0", "203.0.113.1/24", "2001:db8:3::1/64")
	out.Addr("lo", outside4+"/32", outside6+"/128")

	in := stack.Input{Segments: []stack.Segment{{Name: "uplink", Gateways: []netip.Addr{netip.MustParseAddr(external4), netip.MustParseAddr(external6)}}}}
	c.plane.Publish(in)
	if _, err := c.plane.Attach(stack.PortSpec{
		Pod: kube.Name{Name: "uplink"}, Name: "eth0", MAC: mac, MTU: 1500, Addrs: hops, Network: "uplink", Router: true, Masquerade: &masquerade,
	}, dev); err != nil {
		t.Fatal(err)
	}
	out.AwaitCarrier("eth0")
	in.Routes = []stack.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Via: hops[0]}, {Prefix: netip.MustParsePrefix("::/0"), Via: hops[1]}}
	in.Services = compiled(t, servicesOfB+"---"+nodePort("web", "", 30080, 30053, "podgate")+nodePort("away", "externalTrafficPolicy: Local", 30081, 30054, "other"), in.Segments[0].Gateways)
	c.plane.Publish(in)
	return c, out
}

// nodePort is a Service of pod b, which is on a node.
func nodePort(name, policy string, tcp, udp int, node string) string {
	text := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: NodePort
  %[2]s
  ipFamilyPolicy: RequireDualStack
  ports: [{name: tcp, port: 80, targetPort: 8080, nodePort: %[3]d}, {name: udp, port: 53, protocol: UDP, targetPort: 8080, nodePort: %[4]d}]
---`, name, policy, tcp, udp)
	for family, addr := range map[string]string{"IPv4": "10.244.0.5", "IPv6": "fd00:10:244::5"} {
		text += fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-%s, labels: {kubernetes.io/service-name: %s}}
addressType: %s
endpoints: [{addresses: ["%s"], nodeName: %s}]
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
---`, name, map[string]string{"IPv4": "four", "IPv6": "six"}[family], name, family, addr, node)
	}
	return text
}

// echo answers every connection and datagram to port 8080 with its client.
func (p *pod) echo(t *testing.T) {
	t.Helper()
	l := p.listen(t, ":8080")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, c.RemoteAddr().String())
			c.Close()
		}
	}()
	for _, addr := range []string{p.v4, p.v6} {
		pc := p.socket(t, addr, 8080)
		go func() {
			buf := make([]byte, 1500)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo([]byte(from.String()), from)
			}
		}()
	}
}

// socket is one of UDP, at that address.
func (p *pod) socket(t *testing.T, addr string, port int) (pc net.PacketConn) {
	t.Helper()
	p.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String())
		return err
	})
	t.Cleanup(func() { pc.Close() })
	return pc
}

// tell sends a datagram from one socket to another by way of an address, until it
// arrives, and returns whom the receiver sees.
func tell(t *testing.T, from net.PacketConn, via string, to net.PacketConn) net.Addr {
	t.Helper()
	dst := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(via))
	text := fmt.Sprintf("from %s by %s", from.LocalAddr(), via)
	buf := make([]byte, 1500)
	for range 50 {
		from.WriteTo([]byte(text), dst) // an error is that of an earlier one
		to.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if n, peer, err := to.ReadFrom(buf); err == nil && string(buf[:n]) == text {
			return peer
		}
	}
	t.Fatalf("nothing comes %s to %s", text, to.LocalAddr())
	return nil
}

func TestNodePortsAtTheUplinkKeepTheClient(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			c, out := newUplink(t, kind, stack.Masquerade{})
			c.b.echo(t)
			for external, client := range map[string]string{external4: outside4, external6: outside6} {
				var conn net.Conn
				// A loaded machine may not find the gateway's MAC at the first try.
				await(t, "the client is connected", func() bool {
					out.Do(func() error {
						d := net.Dialer{Timeout: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
						conn, _ = d.Dial("tcp", net.JoinHostPort(external, "30080"))
						return nil
					})
					return conn != nil
				})
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				if got, err := io.ReadAll(conn); string(got) != conn.LocalAddr().String() || err != nil {
					t.Errorf("TCP: the pod sees %q, want %s (%v)", got, conn.LocalAddr(), err)
				}
				conn.Close()
				pc := out.socket(t, client, 5000)
				// The echo is a datagram of another text than tell waits for.
				pc.WriteTo([]byte("hi"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(net.JoinHostPort(external, "30053"))))
				pc.SetReadDeadline(time.Now().Add(30 * time.Second))
				buf := make([]byte, 1500)
				if n, _, err := pc.ReadFrom(buf); string(buf[:n]) != pc.LocalAddr().String() {
					t.Errorf("UDP: the pod sees %q, want %s (%v)", buf[:n], pc.LocalAddr(), err)
				}
				// Without an endpoint of this node, Local says nothing at all.
				before := c.plane.Counters()["service-no-local-endpoint"]
				pc.WriteTo([]byte("hi"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(net.JoinHostPort(external, "30054"))))
				await(t, "the datagram is dropped", func() bool { return c.plane.Counters()["service-no-local-endpoint"] > before })
			}
		})
	}
}

// await polls a condition that becomes true.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// A pod has one external endpoint for all, strangers come in by it, and so does
// another pod, which is seen by its own. Filtering by address and port keeps strangers out.
func TestIndependentMappingsByRealDatagrams(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			c, out := newUplink(t, kind, stack.Masquerade{IndependentMapping: true, IndependentFiltering: true})
			for _, f := range []struct{ a, b, outside, external string }{{c.a.v4, c.b.v4, outside4, external4}, {c.a.v6, c.b.v6, outside6, external6}} {
				one, two, stranger := out.socket(t, f.outside, 3478), out.socket(t, f.outside, 3479), out.socket(t, f.outside, 3480)
				a, b := c.a.socket(t, f.a, 40000), c.b.socket(t, f.b, 40000)
				ofA := tell(t, a, one.LocalAddr().String(), one)
				if again := tell(t, a, two.LocalAddr().String(), two); again.String() != ofA.String() || ofA.String() != net.JoinHostPort(f.external, "40000") {
					t.Errorf("peers see %s and %s, want %s:40000 both times", ofA, again, f.external)
				}
				ofB := tell(t, b, one.LocalAddr().String(), one)
				if ofB.String() == ofA.String() {
					t.Errorf("two pods are both seen as %s", ofB)
				}
				if peer := tell(t, stranger, ofA.String(), a); peer.String() != stranger.LocalAddr().String() {
					t.Errorf("the pod sees %s, want %s", peer, stranger.LocalAddr())
				}
				if peer := tell(t, a, stranger.LocalAddr().String(), stranger); peer.String() != ofA.String() {
					t.Errorf("a stranger is answered by %s, want %s", peer, ofA)
				}
				if peer := tell(t, b, ofA.String(), a); peer.String() != ofB.String() {
					t.Errorf("a pod sees another as %s, want %s", peer, ofB)
				}
				if peer := tell(t, a, ofB.String(), b); peer.String() != ofA.String() {
					t.Errorf("a pod is answered by %s, want %s", peer, ofA)
				}
			}
		})
	}
}

func TestICMPErrorsComeBackThroughTheUplink(t *testing.T) {
	for _, masquerade := range []stack.Masquerade{{}, {IndependentMapping: true}} {
		t.Run(fmt.Sprintf("independent=%v", masquerade.IndependentMapping), func(t *testing.T) {
			nstest.Need(t, "traceroute")
			c, out := newUplink(t, kinds()[0], masquerade)
			out.listen(t, ":7000")
			for _, to := range []struct{ addr, gateway string }{{outside4, gateway4}, {outside6, gateway6}} {
				// Nobody listens: the answer is a port unreachable.
				conn, err := c.a.dial("udp", net.JoinHostPort(to.addr, "9"))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				await(t, "a refusal by "+to.addr, func() bool {
					_, err := conn.Write([]byte("anybody?"))
					return errors.Is(err, unix.ECONNREFUSED)
				})
				for _, how := range [][]string{{"-U"}, {"-I"}, {"-T", "-p", "7000"}} {
					hops, text := c.a.Traceroute(to.addr, append(how, "-q", "1", "-w", "5", "-m", "4")...)
					if !slices.Equal(hops, []string{to.gateway, to.addr}) {
						t.Errorf("traceroute %v %s:\n%s", how, to.addr, text)
					}
				}
			}
		})
	}
}
