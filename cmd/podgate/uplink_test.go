package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link/nstest"
)

// forwarding makes the test's own namespace the router between the uplink and
// a host beyond it.
func forwarding(t *testing.T) *nstest.NS {
	t.Helper()
	// What the test sets stays in the namespace: /proc/sys is that of the thread's.
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	far := outsider(t)
	near, err := netlink.LinkByName("outside0")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("2001:db8:2::1/64")
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(near, a); err != nil {
		t.Fatal(err)
	}
	far.Addr("eth0", "2001:db8:2::2/64")
	far.Route("203.0.113.0/24", "192.0.2.1")
	far.Route("2001:db8:3::/64", "2001:db8:2::1")
	far.AwaitCarrier("eth0")
	return far
}

func TestUplink(t *testing.T) {
	nstest.Need(t, "curl", "nc", "ping", "traceroute")
	far := forwarding(t)
	var ln net.Listener
	var pc, pc6 net.PacketConn
	far.Do(func() (err error) {
		if ln, err = net.Listen("tcp", ":7000"); err != nil {
			return err
		}
		if pc, err = net.ListenPacket("udp4", "198.51.100.7:7000"); err != nil {
			return err
		}
		pc6, err = net.ListenPacket("udp6", "[2001:db8:2::2]:7000")
		return err
	})
	defer ln.Close()
	defer pc.Close()
	defer pc6.Close()
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.RemoteAddr+"\n") }))
	go echoPackets(pc)
	go echoPackets(pc6)

	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= --set egress.mode=uplink --set egress.uplink.addresses=203.0.113.10/24,2001:db8:3::10/64 --set egress.uplink.next-hops=203.0.113.1,2001:db8:3::1 " + write(t, "app.yaml", goodPod+`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, image: podgate.dev/workload, args: [http, --port, "80"], readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
`))
	in := "podgate exec -i ok -- "
	for _, c := range []struct{ what, cmd, want string }{
		{"a source port that is free is kept", "curl -s -m 20 --local-port 40123 http://198.51.100.7:7000", "hello 203.0.113.10:40123\n"},
		{"IPv6", "curl -s -m 20 --local-port 40124 http://[2001:db8:2::2]:7000", "hello [2001:db8:3::10]:40124\n"},
		{"ping, IPv6", "ping -c1 -W20 2001:db8:2::2", "1 received"},
		{"UDP", "sh -c 'echo hi | nc -u -W 1 -w 20 198.51.100.7 7000'", "hi"},
		{"UDP, IPv6", "sh -c 'echo hi | nc -u -w 1 2001:db8:2::2 7000'", "hi"},
		{"ping", "ping -c1 -W20 198.51.100.7", "1 received"},
	} {
		if r := s.run(in + c.cmd); !strings.Contains(r.out, c.want) {
			t.Errorf("%s: want %q, got %+v", c.what, c.want, r)
		}
	}
	// Two pods with one source port are told apart.
	if r := s.run("podgate exec -i web -- curl -s -m 20 --local-port 40123 http://198.51.100.7:7000"); !regexp.MustCompile(`^hello 203\.0\.113\.10:\d+\n$`).MatchString(r.out) || strings.Contains(r.out, ":40123") {
		t.Errorf("the same port of another pod: %+v", r)
	}
	if r := s.run(in + "curl -s -m 20 http://198.51.100.7:9"); r.code != 7 {
		t.Errorf("a port that nobody has is not refused: %+v", r)
	}
	run := func(args ...string) string { return s.run(in + "traceroute " + strings.Join(args, " ")).out }
	for _, way := range [][]string{{"10.244.0.1", "203.0.113.1", "198.51.100.7"}, {"fd00:10:244::1", "2001:db8:3::1", "2001:db8:2::2"}} {
		for _, how := range []string{"-U", "-I", "-T -p 7000"} {
			if hops, out := nstest.Traceroute(way[2], run, "-q", "1", "-m", "4", how); !slices.Equal(hops, way) {
				t.Errorf("traceroute %s:\n%s", how, out)
			}
		}
	}
	// Inbound, the client is seen as it is; what is no Service is refused.
	from := func(url string) string {
		out, _ := far.Command("curl", "-s", "-m", "20", url).CombinedOutput()
		return string(out)
	}
	if got := from("http://203.0.113.10:30080/clientip"); !strings.HasPrefix(got, "192.0.2.2:") {
		t.Errorf("the node port sees the client %q", got)
	}
	if got := from("http://[2001:db8:3::10]:30080/clientip"); !strings.HasPrefix(got, "[2001:db8:2::2]:") {
		t.Errorf("the node port sees the client %q over IPv6", got)
	}
	var errno error
	far.Do(func() error { _, errno = net.Dial("tcp", "203.0.113.10:22"); return nil })
	if errno == nil || !strings.Contains(errno.Error(), unix.ECONNREFUSED.Error()) {
		t.Errorf("a port that is no Service's: %v", errno)
	}
	if out := s.must("podgate get routes"); !strings.Contains(out, "masqueraded") {
		t.Errorf("get routes:\n%s", out)
	}
	if out := s.must("podgate trace ok tcp 198.51.100.7:80"); !strings.Contains(out, "203.0.113.10") {
		t.Errorf("trace:\n%s", out)
	}
}

func TestUplinkMistakesAreNamed(t *testing.T) {
	s := newShell(t)
	f := write(t, "app.yaml", goodPod)
	for set, want := range map[string]string{
		"": "egress.uplink.addresses",
		" --set egress.uplink.addresses=203.0.113.10":                                                                          "egress.uplink.addresses",
		" --set egress.uplink.addresses=203.0.113.10/24":                                                                       "egress.uplink.next-hops",
		" --set egress.uplink.addresses=203.0.113.10/24 --set egress.uplink.next-hops=192.0.3.1":                               "egress.uplink.next-hops",
		" --set egress.uplink.addresses=203.0.113.10/24 --set egress.uplink.next-hops=203.0.113.10":                            "egress.uplink.next-hops",
		" --set egress.uplink.addresses=10.244.0.9/16 --set egress.uplink.next-hops=10.244.0.8":                                "overlaps",
		" --set egress.uplink.addresses=203.0.113.10/24,203.0.113.11/24 --set egress.uplink.next-hops=203.0.113.1":             "one a family",
		" --set egress.uplink.ports=70000-80000":                                                                               "not a range of ports",
		" --set egress.uplink.mapping=symmetric":                                                                               "endpoint-independent",
		" --set egress.uplink.mapping-timeout=30s":                                                                             "from 2m",
		" --set egress.uplink.filtering=endpoint-independent":                                                                  "takes egress.uplink.mapping",
		" --set egress.uplink.addresses=203.0.113.10/24 --set egress.uplink.next-hops=me":                                      "not an address",
		" --set egress.uplink.addresses=203.0.113.10/24 --set egress.uplink.next-hops=203.0.113.1 --set egress.uplink.name=lo": "lo",
	} {
		if r := s.run("podgate up --detach --set egress.mode=uplink" + set + " " + f); r.code != 1 || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: exit code %d, want 1 and %q\n%s", set, r.code, want, r.errOut)
		}
	}
}
