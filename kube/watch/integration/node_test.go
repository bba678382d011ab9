package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	node1 = "192.0.2.10"
	node2 = "192.0.2.11"

	node1v6 = "2001:db8::10"
	node2v6 = "2001:db8::11"
)

// machine is a network namespace: a node's, or a pod's.
type machine struct {
	t   testing.TB
	pid int // of a process in it
}

func newMachine(t testing.TB, name string) machine {
	t.Helper()
	p := start(t, name, nil, "unshare", "-n", "sleep", "infinity")
	own, _ := os.Readlink("/proc/self/ns/net")
	await(t, name+" has a namespace", func() error {
		is, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.cmd.Process.Pid))
		if err == nil && is == own {
			err = errors.New("not yet")
		}
		return err
	})
	m := machine{t, p.cmd.Process.Pid}
	m.run("ip", "link", "set", "lo", "up")
	return m
}

// command is args as run in the namespace.
func (m machine) command(args ...string) []string {
	return append([]string{"nsenter", "-t", fmt.Sprint(m.pid), "-n"}, args...)
}

func (m machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

func (m machine) try(args ...string) (string, error) {
	all := m.command(args...)
	out, err := exec.Command(all[0], all[1:]...).CombinedOutput()
	return string(out), err
}

// here is the test's own namespace, that of the first node.
func here(t testing.TB) machine { return machine{t, os.Getpid()} }

// pod makes a Pod of a node as a kubelet and a container runtime would: CNI
// attaches a namespace, the status says so, and a workload serves HTTP in it.
func (c *controlPlane) pod(g *gateway, node machine, nodeName, name string, labels map[string]any) (m machine, ips []string) {
	c.t.Helper()
	o := object("v1", "Pod", "default", name, map[string]any{"spec": map[string]any{
		"nodeName": nodeName, "containers": []any{map[string]any{"name": "web", "image": "none", "ports": []any{map[string]any{"containerPort": 8080}}}},
	}})
	o["metadata"].(map[string]any)["labels"] = labels
	c.do("POST", "/api/v1/namespaces/default/pods", o)
	m = newMachine(c.t, name)
	plugin := filepath.Join(c.dir, "podgate-cni")
	if err := os.Symlink(os.Getenv(podgateEnv), plugin); err != nil && !os.IsExist(err) {
		c.t.Fatal(err)
	}
	all := node.command(plugin)
	add := exec.Command(all[0], all[1:]...)
	add.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+name, "CNI_NETNS="+fmt.Sprintf("/proc/%d/ns/net", m.pid), "CNI_IFNAME=eth0", "CNI_PATH="+c.dir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME="+name, "XDG_RUNTIME_DIR="+runtimeDir(c.t))
	add.Stdin = strings.NewReader(`{"cniVersion":"1.0.0","name":"podnet","type":"podgate-cni","instance":"` + g.name + `"}`)
	out, err := add.CombinedOutput()
	var result struct {
		IPs []struct{ Address string }
	}
	if err == nil {
		err = json.Unmarshal(out, &result)
	}
	if err != nil || len(result.IPs) == 0 {
		c.t.Fatalf("ADD: %v: %s", err, out)
	}
	var podIPs []any
	for _, p := range result.IPs {
		ip, _, _ := strings.Cut(p.Address, "/")
		ips, podIPs = append(ips, ip), append(podIPs, map[string]any{"ip": ip})
	}
	ready := []any{map[string]any{"type": "Ready", "status": "True"}}
	c.do("PATCH", "/api/v1/namespaces/default/pods/"+name+"/status", map[string]any{"status": map[string]any{"phase": "Running", "podIP": ips[0], "podIPs": podIPs, "conditions": ready}})
	start(c.t, "workload "+name, nil, m.command(os.Getenv(podgateEnv), "workload", "http", "--port", "8080")...)
	return m, ips
}

// fetch asks from a namespace, and says what came.
func (m machine) fetch(url string) (string, error) {
	out, err := m.try(os.Getenv(podgateEnv), "workload", "fetch", "--timeout", "3s", url)
	if err != nil {
		return "", fmt.Errorf("%s: %s", url, out)
	}
	return out, nil
}

// says is a condition for await: url answers from m with text.
func (m machine) says(url, text string) func() error {
	return func() error {
		out, err := m.fetch(url)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("%s answers %q, not %q", url, out, text)
		}
		return err
	}
}

// TestNode: the node's own processes and the pods of two nodes reach each other,
// Services and names, each at its own address and without iptables.
func TestNode(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: nodes have forwarding kernels")
	}
	c := newControlPlane(t)
	first, second := here(t), newMachine(t, "node-2")
	first.run("ip", "link", "add", "uplink1", "type", "veth", "peer", "name", "uplink2")
	t.Cleanup(func() { first.run("ip", "link", "del", "uplink1") })
	first.run("ip", "link", "set", "uplink2", "netns", fmt.Sprint(second.pid))
	for _, n := range []struct {
		m                   machine
		dev, addr, v6, name string
	}{{first, "uplink1", node1, node1v6, "node-1"}, {second, "uplink2", node2, node2v6, "node-2"}} {
		n.m.run("ip", "addr", "add", n.addr+"/24", "dev", n.dev)
		n.m.run("ip", "addr", "add", n.v6+"/64", "dev", n.dev, "nodad")
		n.m.run("ip", "link", "set", n.dev, "up")
		n.m.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		c.addNode(n.name, n.addr, n.v6)
	}
	config, err := os.ReadFile(c.path("podgate.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	c.write("remote.kubeconfig", strings.ReplaceAll(string(config), "127.0.0.1", node1))
	c.kubectl("apply", "-f", deploy)
	g1 := c.gateway("node1", "node-1", "podgate", "state.dir="+c.path("state1"))
	g1.awaitReady()
	g2 := c.gatewayIn(second, "node2", "node-2", "remote", "state.dir="+c.path("state2"))
	await(t, "the second node is ready", func() error {
		if !strings.Contains(g2.log.String(), "msg=ready") {
			return errors.New("it does not say so")
		}
		return nil
	})
	web := map[string]any{"app": "web"}
	p1, ips1 := c.pod(g1, first, "node-1", "p1", web)
	p2, ips2 := c.pod(g2, second, "node-2", "p2", map[string]any{"app": "other"})
	c.do("POST", "/api/v1/namespaces/default/services", object("v1", "Service", "default", "web", map[string]any{"spec": map[string]any{
		"clusterIP": "10.96.0.80", "clusterIPs": []any{"10.96.0.80", "fd00:10:96::80"}, "ipFamilyPolicy": "RequireDualStack", "selector": web, "ports": []any{map[string]any{"port": 80, "targetPort": 8080}},
	}}))

	for i, family := range []struct{ name, node, web, onNode, gateway, dns string }{
		{"IPv4", node1, "10.96.0.80", "10.96.0.81", "10.244.", "10.96.0.10"},
		{"IPv6", node1v6, "fd00:10:96::80", "fd00:10:96::81", "[fd00:10:244:", "fd00:10:96::a"},
	} {
		port := c.serveOnNode(family.name, family.node, family.onNode)
		url := func(host string, port int, path string) string {
			return "http://" + net.JoinHostPort(host, fmt.Sprint(port)) + path
		}
		from := func(ip string) string { return net.JoinHostPort(ip, "") }
		ip1, ip2 := ips1[i], ips2[i]
		for _, check := range []struct {
			what string
			f    func() error
		}{
			{"the node reaches a pod, as a probe does", first.says(url(ip1, 8080, "/clientip"), from(family.node))},
			{"the node reaches a Service", first.says(url(family.web, 80, "/clientip"), from(family.node))},
			{"the node reaches a Service whose endpoint is the node", first.says(url(family.onNode, 80, "/"), "client "+family.gateway)},
			{"the node asks the cluster's DNS", lookup(family.dns, "web.default.svc.cluster.local", family.web)},
			{"a pod reaches the node at its address, with its own", p1.says(url(family.node, port, "/"), "client "+from(ip1))},
			{"a pod reaches a Service whose endpoint is the node", p1.says(url(family.onNode, 80, "/"), "client "+from(ip1))},
			{"pods of two nodes reach each other without NAT", p1.says(url(ip2, 8080, "/clientip"), from(ip1))},
			{"and back", p2.says(url(ip1, 8080, "/clientip"), from(ip2))},
			{"a pod reaches a Service whose endpoint is on the other node", p2.says(url(family.web, 80, "/clientip"), from(ip2))},
			{"a node reaches a pod of the other node", first.says(url(ip2, 8080, "/clientip"), from(family.node))},
			{"the other node reaches a Service here", second.says(url(family.web, 80, "/clientip"), family.gateway)},
		} {
			t.Logf("%s: %-60s after %s", family.name, check.what, await(t, family.name+": "+check.what, check.f).Round(time.Millisecond))
		}
	}

	c.do("POST", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", object("networking.k8s.io/v1", "NetworkPolicy", "default", "deny", map[string]any{"spec": map[string]any{"podSelector": map[string]any{"matchLabels": web}}}))
	await(t, "the policy is enforced for pods of the other node", func() error {
		for _, ip := range ips1 {
			if out, err := p2.fetch("http://" + net.JoinHostPort(ip, "8080") + "/"); err == nil {
				return fmt.Errorf("it answers %q", out)
			}
		}
		return nil
	})
	for _, ip := range ips1 {
		if _, err := first.fetch("http://" + net.JoinHostPort(ip, "8080") + "/"); err != nil {
			t.Errorf("a policy keeps probes out: %v", err)
		}
	}
	for _, args := range [][]string{{"iptables-save"}, {"ip6tables-save"}, {"nft", "list", "ruleset"}} {
		if out := first.run(args...); strings.TrimSpace(out) != "" {
			t.Errorf("%v: got %q, want nothing", args, out)
		}
	}
	t.Logf("\n%s%s", first.run("ip", "route"), first.run("ip", "-6", "route", "show", "proto", "88"))
	g1.stop()
	for _, family := range []string{"-4", "-6"} {
		if out := first.run("ip", family, "route", "show", "proto", "88"); out != "" {
			t.Errorf("routes are left: %s", out)
		}
	}
}

// serveOnNode makes a Service whose endpoint is a server on the first node that
// says who asks, and returns the server's port.
func (c *controlPlane) serveOnNode(family, addr, clusterIP string) int {
	c.t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		c.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "client "+r.RemoteAddr) })}
	go srv.Serve(ln)
	c.t.Cleanup(func() { srv.Close() })
	port := ln.Addr().(*net.TCPAddr).Port
	name := "onnode-" + strings.ToLower(family)
	c.do("POST", "/api/v1/namespaces/default/services", object("v1", "Service", "default", name, map[string]any{"spec": map[string]any{
		"clusterIP": clusterIP, "ipFamilies": []any{family}, "ports": []any{map[string]any{"name": "http", "port": 80, "targetPort": port}},
	}}))
	slice := object("discovery.k8s.io/v1", "EndpointSlice", "default", name, map[string]any{
		"addressType": family, "endpoints": []any{map[string]any{"addresses": []any{addr}}}, "ports": []any{map[string]any{"name": "http", "port": port}},
	})
	slice["metadata"].(map[string]any)["labels"] = map[string]any{"kubernetes.io/service-name": name}
	c.do("POST", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice)
	return port
}

// lookup asks the cluster's DNS from here, at an address, with or without a port.
func lookup(dns, name, want string) func() error {
	if _, _, err := net.SplitHostPort(dns); err != nil {
		dns = net.JoinHostPort(dns, "53")
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, dns)
	}}
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		addrs, err := r.LookupHost(ctx, name)
		if err == nil && !slices.Contains(addrs, want) {
			err = fmt.Errorf("got %v", addrs)
		}
		return err
	}
}

// TestNodeWithoutTAP: where there is no interface in the node's namespace, a proxy
// and a DNS server on loopback lead the node's own processes into the cluster.
func TestNodeWithoutTAP(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: pods are attached as on a node")
	}
	c := newControlPlane(t)
	c.addNode("node-1", "127.0.0.1")
	c.kubectl("apply", "-f", deploy)
	g := c.gateway("without", "node-1", "podgate", "gateway.interface=", "state.dir="+c.path("state"))
	g.awaitReady()
	node, web := here(t), map[string]any{"app": "web"}
	_, ips := c.pod(g, node, "node-1", "p1", web)
	c.do("POST", "/api/v1/namespaces/default/services", object("v1", "Service", "default", "web", map[string]any{"spec": map[string]any{
		"clusterIP": "10.96.0.80", "selector": web, "ports": []any{map[string]any{"port": 80, "targetPort": 8080}},
	}}))
	for _, scheme := range []string{"http", "socks5"} {
		by := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyURL(&url.URL{Scheme: scheme, Host: "127.0.0.1:10258"})}}
		for _, target := range []string{"web.default.svc.cluster.local", "web.default.svc", "10.96.0.80", ips[0] + ":8080", "[" + ips[1] + "]:8080"} {
			await(t, scheme+" leads to "+target, func() error {
				resp, err := by.Get("http://" + target + "/clientip")
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if text, _ := io.ReadAll(resp.Body); !strings.HasPrefix(string(text), "10.244.0.1:") && !strings.HasPrefix(string(text), "[fd00:10:244::1]:") {
					return fmt.Errorf("%s: the client is %q", resp.Status, text)
				}
				return nil
			})
		}
	}
	await(t, "the cluster's DNS answers", lookup("127.0.0.1:10253", "web.default.svc.cluster.local", "10.96.0.80"))
}
