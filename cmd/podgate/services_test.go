package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"podgate/stack/link/nstest"
)

// workloadPod is a pod with labels app=NAME that runs a workload.
func workloadPod(name, args, spec string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  %s
  containers:
  - name: c
    image: podgate.dev/workload
    args: [%s]
---
`, name, name, spec, args)
}

func serviceOf(name, app, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  selector: {app: %s}\n  %s\n---\n", name, app, strings.ReplaceAll(spec, "\n", "\n  "))
}

// get asks until somebody answers.
func get(t *testing.T, url string) (status int, header http.Header, body string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(runTime)
	for {
		resp, err := client.Get(url)
		if err == nil {
			data, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			return resp.StatusCode, resp.Header, string(data)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// outsider is a host beside this one: 198.51.100.7, this one being 192.0.2.1.
func outsider(t *testing.T) *nstest.NS {
	t.Helper()
	far := nstest.New(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "outside0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(far.FD())}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	near, err := netlink.LinkByName("outside0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(near) })
	addr, _ := netlink.ParseAddr("192.0.2.1/24")
	_, test, _ := net.ParseCIDR("198.51.100.0/24")
	for _, err := range []error{
		netlink.AddrAdd(near, addr), netlink.LinkSetUp(near),
		netlink.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Dst: test, Gw: net.IPv4(192, 0, 2, 2)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	far.Addr("eth0", "192.0.2.2/24", "198.51.100.7/32")
	return far
}

// A client outside is seen by the pod as himself, over TCP and UDP, whatever
// externalTrafficPolicy says.
func TestPodsSeeTheirClientsFromOutside(t *testing.T) {
	far := outsider(t)
	s := newShell(t)
	f := write(t, "app.yaml", workloadPod("web", "http", "")+workloadPod("echo", `echo, --port, "7"`, "")+
		serviceOf("web", "web", "type: NodePort\nports: [{port: 80, targetPort: 8080, nodePort: 30080}]")+
		serviceOf("lb", "web", "type: LoadBalancer\nports: [{port: 8800, targetPort: 8080}]")+
		serviceOf("echo", "echo", "type: NodePort\nports: [{port: 7, protocol: UDP, nodePort: 30007}]"))
	s.up("--set publish.address=192.0.2.1 " + f)
	for _, port := range []string{"30080", "8800"} {
		var said string
		until(t, "answered at "+port, func() bool {
			far.Do(func() error {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 51, 100, 7)}, Timeout: 20 * time.Second}
				c, err := d.Dial("tcp", "192.0.2.1:"+port)
				if err != nil {
					return nil
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				fmt.Fprint(c, "GET /clientip HTTP/1.0\r\n\r\n")
				data, _ := io.ReadAll(c)
				said = string(data)
				return nil
			})
			return said != ""
		})
		if !strings.Contains(said, "\r\n\r\n198.51.100.7:") {
			t.Errorf("port %s: the pod saw %q", port, said)
		}
	}
	var udp net.Conn
	far.Do(func() (err error) {
		udp, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(198, 51, 100, 7)}, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 30007})
		return err
	})
	defer udp.Close()
	buf := make([]byte, 16)
	until(t, "echoed", func() bool {
		udp.Write([]byte("hello"))
		udp.SetReadDeadline(time.Now().Add(time.Second))
		n, err := udp.Read(buf)
		return err == nil && string(buf[:n]) == "hello"
	})
	if out := s.must("podgate flows -o json"); !strings.Contains(out, `"`+udp.LocalAddr().String()+`"`) {
		t.Errorf("no flow from %s:\n%s", udp.LocalAddr(), out)
	}
}

func TestHealthCheckNodePortAnswersAsKubeProxyDoes(t *testing.T) {
	s := newShell(t)
	pod := workloadPod("web", "http", "")
	f := write(t, "app.yaml", workloadPod("client", "pause", "")+
		serviceOf("web", "web", "type: LoadBalancer\nexternalTrafficPolicy: Local\nhealthCheckNodePort: 30999\nports: [{port: 8800, targetPort: 8080}]"))
	s.up(f)
	expect := func(status, local int) {
		t.Helper()
		want := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}", local)
		until(t, fmt.Sprintf("%d local endpoints", local), func() bool {
			code, header, body := get(t, "http://127.0.0.1:30999/")
			return code == status && body == want && header.Get("X-Load-Balancing-Endpoint-Weight") == fmt.Sprint(local)
		})
	}
	expect(http.StatusServiceUnavailable, 0)
	w := write(t, "web.yaml", pod)
	s.must("podgate apply -f " + w)
	expect(http.StatusOK, 1)
	if out := s.must("podgate exec client -- podgate workload fetch http://10.244.0.1:30999/"); !strings.Contains(out, `"localEndpoints": 1`) {
		t.Errorf("a pod was told %s", out)
	}
	s.must("podgate delete -f " + w)
	expect(http.StatusServiceUnavailable, 0)
}

// A Service reaches the listener of a pod with hostNetwork, and nothing else of
// the host.
func TestServiceReachesPodsWithHostNetwork(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := newShell(t)
	f := write(t, "app.yaml", workloadPod("client", "pause", "")+workloadPod("agent", `http, --port, "18099"`, "hostNetwork: true")+
		serviceOf("agent", "agent", "ports: [{port: 80, targetPort: 18099}]"))
	s.up(f)
	until(t, "reached", func() bool {
		r := s.run("podgate exec client -- podgate workload fetch http://agent/healthz")
		return r.code == 0 && strings.HasPrefix(r.out, "ok")
	})
	for _, at := range []string{"10.244.0.1:18099"} { // the pod itself, by its address
		if r := s.run("podgate exec client -- podgate workload connect " + at); r.code != 0 {
			t.Errorf("%s: %s%s", at, r.out, r.errOut)
		}
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	if r := s.run("podgate exec client -- podgate workload connect 10.244.0.1:" + port); !strings.Contains(r.errOut, connectRefused) {
		t.Errorf("another listener of the host: exit code %d %s%s, want %s", r.code, r.out, r.errOut, connectRefused)
	}
}

// Published ports keep to their addresses: an explicit hostIP, a load balancer's
// own address; and a port that needs privilege is found elsewhere.
func TestWherePortsArePublished(t *testing.T) {
	nstest.Need(t, "setpriv")
	s := newShell(t)
	f := write(t, "app.yaml", workloadPod("web", "http", "")+
		strings.Replace(workloadPod("host", "http", ""), "image:", "ports: [{containerPort: 8080, hostPort: 8088, hostIP: 127.0.0.5}]\n    image:", 1)+
		serviceOf("one", "web", "type: LoadBalancer\nports: [{port: 80, targetPort: 8080}]")+
		serviceOf("two", "host", "type: LoadBalancer\nports: [{port: 80, targetPort: 8080}]"))
	t.Cleanup(func() { s.run("podgate down") })
	out := s.must("setpriv --bounding-set=-net_bind_service podgate up --detach --set services.loadbalancers=127.0.1.0/24 --set publish.address=127.0.0.3 " + f)
	for svc, want := range map[string]string{"one": "web", "two": "host"} {
		ip := strings.TrimSpace(s.must("podgate get svc " + svc + " -o json | grep -o '127.0.1.[0-9]*'"))
		if _, _, got := get(t, "http://"+ip+":10080/hostname"); got != want {
			t.Errorf("Service %s at %s: got %q, want %q", svc, ip, got, want)
		}
		if !strings.Contains(out, ip+":10080/tcp") || !strings.Contains(out, "port 80 needs privilege") {
			t.Errorf("up does not say where Service %s is:\n%s", svc, out)
		}
	}
	if _, _, got := get(t, "http://127.0.0.5:8088/hostname"); got != "host" {
		t.Errorf("hostIP: got %q", got)
	}
	wide := s.must("podgate get services -o wide")
	if !regexp.MustCompile(`:8080 ready \d+ flows`).MatchString(wide) {
		t.Errorf("get services -o wide shows no backends:\n%s", wide)
	}
	if got := s.must("podgate get backends"); !strings.Contains(got, "default/web") {
		t.Errorf("get backends: %s", got)
	}
}
