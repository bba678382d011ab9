// Package kernel holds the tests of the data plane against real kernels: pods
// are network namespaces, and their own TCP/IP is what talks.
package kernel

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"podgate/kube"
	"podgate/nat"
	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/link/nstest"
	"podgate/stack/stacktest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const (
	gateway4, gateway6 = "10.244.0.1", "fd00:10:244::1"
	vip4, vip6         = "10.96.1.1", "fd00:10:96::1"
)

// cluster is a running plane with pods a and b, and a Service of b.
type cluster struct {
	plane *stack.Plane
	a, b  *pod
}

type pod struct {
	*nstest.NS
	v4, v6 string
}

func newCluster(t *testing.T, kind string, mtu int) *cluster {
	t.Helper()
	return newClusterOf(t, kind, mtu, mtu)
}

// newClusterOf gives a and b MTUs of their own.
func newClusterOf(t *testing.T, kind string, mtu, bmtu int) *cluster {
	t.Helper()
	plane := newPlane(t, nil)
	c := &cluster{plane: plane}
	c.a, c.b = newPod(t, plane, kind, kube.Name{Namespace: "default", Name: "a"}, 4, mtu), newPod(t, plane, kind, kube.Name{Namespace: "default", Name: "b"}, 5, bmtu)
	plane.Publish(stack.Input{Services: services(t)})
	return c
}

// newPlane is a plane that forwards. Its clock may be another than the system's.
func newPlane(t *testing.T, now func() int64) *stack.Plane {
	t.Helper()
	gateways := []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
	plane, err := stack.New(stack.Config{
		GatewayMAC:   stacktest.GatewayMAC,
		GatewayAddrs: gateways, LocalAddrs: gateways, PodCIDRs: cidrs, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- plane.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return plane
}

func newPod(t *testing.T, plane *stack.Plane, kind string, name kube.Name, id byte, mtu int) *pod {
	t.Helper()
	p, dev := newLink(t, kind, name, mtu)
	p.v4, p.v6 = fmt.Sprintf("10.244.0.%d", id), fmt.Sprintf("fd00:10:244::%x", id)
	mac := stacktest.MACOf(netip.MustParseAddr(p.v4))
	p.MAC("eth0", mac)
	p.Addr("eth0", p.v4+"/16", p.v6+"/64")
	p.Route("default4", gateway4)
	p.Route("default6", gateway6)
	if _, err := plane.Attach(stack.PortSpec{
		Pod: name, Name: "eth0", MAC: mac, MTU: mtu,
		Addrs: []netip.Addr{netip.MustParseAddr(p.v4), netip.MustParseAddr(p.v6)},
	}, dev); err != nil {
		t.Fatal(err)
	}
	p.AwaitCarrier("eth0")
	return p
}

// newLink is a namespace with an eth0, and the other end of it.
func newLink(t *testing.T, kind string, name kube.Name, mtu int) (*pod, link.Device) {
	t.Helper()
	p := &pod{NS: nstest.New(t)}
	var dev link.Device
	if kind == "tap" {
		p.Do(func() error {
			fd, err := link.CreateTAP("eth0", mtu)
			if err != nil {
				return err
			}
			dev, err = link.OpenTAPFD(fd, name.String())
			return err
		})
	} else {
		nstest.New(t).Do(func() error {
			index, err := link.CreateVeth("host", "eth0", p.FD(), mtu)
			if err != nil {
				return err
			}
			fd, err := link.OpenPacketSocket(index)
			if err != nil {
				return err
			}
			dev, err = link.OpenVethFD(fd, name.String())
			return err
		})
	}
	return p, dev
}

// servicesOfB is a Service of b at vip4 and vip6, and one without endpoints.
const servicesOfB = `
apiVersion: v1
kind: Service
metadata: {name: b}
spec:
  clusterIPs: ["` + vip4 + `", "` + vip6 + `"]
  ipFamilyPolicy: RequireDualStack
  ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, port: 53, protocol: UDP, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b4, labels: {kubernetes.io/service-name: b}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.5]}]
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b6, labels: {kubernetes.io/service-name: b}}
addressType: IPv6
endpoints: [{addresses: ["fd00:10:244::5"]}]
ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {clusterIP: 10.96.1.2, ports: [{port: 80}]}
`

func services(t *testing.T) *nat.Table {
	t.Helper()
	return compiled(t, servicesOfB, nil)
}

// compiled are the Services of manifests, on a node with these addresses.
func compiled(t *testing.T, manifests string, node []netip.Addr) *nat.Table {
	t.Helper()
	m, problems := kube.LoadBytes("services", []byte(manifests))
	for _, p := range problems {
		t.Fatal(p)
	}
	store := kube.NewStore(kube.Config{}, nil)
	for _, c := range store.Apply(m.Objects) {
		for _, p := range c.Problems {
			if p.Severity == kube.Error {
				t.Fatal(p)
			}
		}
	}
	table, more := nat.Compile(nil, store.State(), nat.Config{NodeName: "podgate", NodeAddrs: node})
	for _, p := range more {
		t.Log(p)
	}
	return table
}

// kinds are the links that this user can have.
func kinds() []string {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		f.Close()
		return []string{"tap", "veth"}
	}
	return []string{"veth"}
}

func eachKind(t *testing.T, mtu int, f func(t *testing.T, c *cluster)) {
	for _, kind := range kinds() {
		t.Run(fmt.Sprintf("%s-%d", kind, mtu), func(t *testing.T) { f(t, newCluster(t, kind, mtu)) })
	}
}

// listen opens a socket in the pod's namespace.
func (p *pod) listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	p.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err })
	t.Cleanup(func() { l.Close() })
	return l
}

func (p *pod) dial(network, addr string) (c net.Conn, err error) {
	p.Do(func() error {
		d := net.Dialer{Timeout: 30 * time.Second}
		c, err = d.Dial(network, addr)
		return nil
	})
	return c, err
}

const volume = 32 << 20

func TestTCPArrivesWhole(t *testing.T) {
	for _, mtu := range []int{1500, 65520} {
		eachKind(t, mtu, func(t *testing.T, c *cluster) {
			l := c.b.listen(t, "[::]:8080")
			type result struct {
				from string
				sum  [32]byte
			}
			got := make(chan result, 1)
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					h := sha256.New()
					io.Copy(h, conn)
					got <- result{conn.RemoteAddr().(*net.TCPAddr).IP.String(), [32]byte(h.Sum(nil))}
					conn.Close()
				}
			}()
			for _, to := range []struct{ addr, client string }{
				{net.JoinHostPort(c.b.v4, "8080"), c.a.v4},
				{net.JoinHostPort(c.b.v6, "8080"), c.a.v6},
				{net.JoinHostPort(vip4, "80"), c.a.v4},
				{net.JoinHostPort(vip6, "80"), c.a.v6},
			} {
				conn, err := c.a.dial("tcp", to.addr)
				if err != nil {
					t.Fatal(err)
				}
				h := sha256.New()
				r := rand.NewChaCha8([32]byte{1})
				if _, err := io.CopyN(io.MultiWriter(conn, h), r, volume); err != nil {
					t.Fatal(err)
				}
				conn.Close()
				if res := <-got; res.sum != [32]byte(h.Sum(nil)) || res.from != to.client {
					t.Errorf("%s: data from %s, want from %s, whole: %v", to.addr, res.from, to.client, res.sum == [32]byte(h.Sum(nil)))
				}
			}
			for name, n := range c.plane.Counters() {
				if n != 0 && !strings.HasSuffix(name, "answered") && !strings.HasSuffix(name, "ignored") &&
					name != "multicast-not-served" && name != "device-full" && name != "ack-superseded" {
					t.Errorf("%s: got %d, want 0", name, n)
				}
			}
		})
	}
}

func TestDatagramsOfEverySize(t *testing.T) {
	eachKind(t, 1500, func(t *testing.T, c *cluster) {
		var server net.PacketConn
		c.b.Do(func() (err error) { server, err = net.ListenPacket("udp", "[::]:8080"); return err })
		defer server.Close()
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				server.WriteTo(buf[:n], from)
			}
		}()
		for _, addr := range []string{net.JoinHostPort(c.b.v4, "8080"), net.JoinHostPort(vip4, "53"), net.JoinHostPort(vip6, "53")} {
			conn, err := c.a.dial("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, n := range []int{0, 1, 1400, 1472, 1473, 4000, 40000} {
				sent := make([]byte, n)
				for i := range sent {
					sent[i] = byte(i * 7)
				}
				if _, err := conn.Write(sent); err != nil {
					t.Fatal(err)
				}
				conn.SetReadDeadline(time.Now().Add(30 * time.Second))
				got := make([]byte, 65536)
				k, err := conn.Read(got)
				if err != nil || string(got[:k]) != string(sent) {
					t.Errorf("%s: %d bytes came back as %d: %v", addr, n, k, err)
				}
			}
		}
	})
}

func TestRefusalsAreFelt(t *testing.T) {
	eachKind(t, 1500, func(t *testing.T, c *cluster) {
		for addr, want := range map[string]string{
			"10.96.1.2:80":                       "connection refused", // no endpoints
			net.JoinHostPort(vip4, "81"):         "connection refused", // unknown port
			net.JoinHostPort(vip6, "81"):         "connection refused",
			net.JoinHostPort("10.244.9.9", "80"): "no route to host",   // nobody answers ARP
			net.JoinHostPort(vip4, "80"):         "connection refused", // nobody listens
		} {
			conn, err := c.a.dial("tcp", addr)
			if err == nil {
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("dial %s: got %v, want %s", addr, err, want)
			}
		}
		// UDP errors come back as ICMP, through the Service too.
		for _, addr := range []string{"10.96.1.2:53", net.JoinHostPort(vip4, "53"), net.JoinHostPort(vip6, "53")} {
			conn, err := c.a.dial("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			conn.Write([]byte("x"))
			conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("udp %s: got %v, want connection refused", addr, err)
			}
			conn.Close()
		}
	})
}

func TestPing(t *testing.T) {
	nstest.Need(t, "ping")
	eachKind(t, 1500, func(t *testing.T, c *cluster) {
		for _, to := range []string{c.b.v4, c.b.v6, gateway4, gateway6} {
			for _, size := range []string{"56", "1400"} {
				out, err := c.a.Command("ping", "-n", "-c", "3", "-i", "0.02", "-W", "5", "-s", size, to).CombinedOutput()
				if err != nil {
					t.Errorf("ping -s %s %s: %v\n%s", size, to, err, out)
				}
			}
		}
		// Big ones go in fragments, from kernel to kernel.
		if out, err := c.a.Command("ping", "-n", "-c", "2", "-i", "0.02", "-W", "5", "-s", "9000", c.b.v6).CombinedOutput(); err != nil {
			t.Errorf("ping in fragments: %v\n%s", err, out)
		}
		out, err := c.a.Command("ping", "-n", "-c", "1", "-W", "5", "-t", "1", vip4).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "From "+gateway4) {
			t.Errorf("ping of a Service with TTL 1: want an error from the gateway\n%s", out)
		}
	})
}
