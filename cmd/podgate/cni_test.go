package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"podgate/stack/link/nstest"
)

const nothing = "{apiVersion: v1, kind: ConfigMap, metadata: {name: nothing}}"

// node is a place where containers are attached by cnitool.
type node struct {
	*shell
	conf string // folder of network configurations
	data string // folder of leases
}

// varLib hides the machine's /var/lib: cnitool writes there.
var varLib sync.Once

// newNode starts a gateway and writes network configurations, each a list of
// plugins named like the network.
func newNode(t *testing.T, networks map[string]string) *node {
	t.Helper()
	varLib.Do(func() {
		if err := unix.Mount("none", "/var/lib", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	})
	n := &node{newShell(t), t.TempDir(), t.TempDir()}
	n.env = append(n.env, "NETCONFPATH="+n.conf)
	for name, plugins := range networks {
		n.network(name, "1.1.0", plugins)
	}
	n.gateway()
	return n
}

func (n *node) gateway() {
	n.t.Helper()
	n.up(write(n.t, "nothing.yaml", nothing) + " --set ingress.http= --set ingress.https=")
}

func (n *node) network(name, version, plugins string) {
	n.t.Helper()
	plugins = strings.ReplaceAll(plugins, "DATA", n.data)
	conf := fmt.Sprintf(`{"cniVersion": %q, "name": %q, "plugins": [%s]}`, version, name, plugins)
	if err := os.WriteFile(filepath.Join(n.conf, name+".conflist"), []byte(conf), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// sandbox is a network namespace with the path by which others find it.
type sandbox struct {
	*nstest.NS
	path string
}

func newSandbox(t *testing.T) sandbox {
	t.Helper()
	ns := nstest.New(t)
	return sandbox{ns, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD())}
}

func (s sandbox) links() (names []string) {
	list, err := s.Netlink().LinkList()
	if err == nil {
		for _, l := range list {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// add attaches a sandbox and returns the result.
func (n *node) add(network string, s sandbox, env ...string) *current.Result {
	n.t.Helper()
	out := n.must(strings.Join(env, " ") + " cnitool add " + network + " " + s.path)
	res := &current.Result{}
	if err := json.Unmarshal([]byte(out), res); err != nil {
		n.t.Fatalf("%v in %s", err, out)
	}
	return res
}

func (n *node) cni(what, network string, s sandbox, env ...string) {
	n.t.Helper()
	n.must(strings.Join(env, " ") + " cnitool " + what + " " + network + " " + s.path)
}

func (s sandbox) reaches(t *testing.T, addr string) {
	t.Helper()
	if out, err := s.Command("ping", "-q", "-n", "-c", "3", "-i", "0.1", "-W", "5", addr).CombinedOutput(); err != nil {
		t.Fatalf("ping %s: %v\n%s", addr, err, out)
	}
}

func kubernetes(namespace, name string) string {
	return fmt.Sprintf("CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=0-1-2;K8S_POD_INFRA_CONTAINER_ID=x'", namespace, name)
}

// Containers of a runtime are pods like any other.
func TestCNI(t *testing.T) {
	nstest.Need(t, "ping")
	n := newNode(t, map[string]string{"podnet": `{"type": "podgate-cni"}`})
	a, b := newSandbox(t), newSandbox(t)
	n.cni("status", "podnet", a)
	first := n.add("podnet", a, kubernetes("shop", "web-0"))
	n.add("podnet", b)
	if len(first.IPs) != 2 || first.Interfaces[len(first.Interfaces)-1].Name != "eth0" || len(first.DNS.Nameservers) != 2 {
		t.Errorf("the result is %+v", first)
	}
	n.cni("check", "podnet", a, kubernetes("shop", "web-0"))
	for _, ip := range first.IPs {
		b.reaches(t, ip.Address.IP.String())
	}
	if out := n.must("podgate get pods -n shop -o wide"); !strings.Contains(out, first.IPs[0].Address.IP.String()) || !strings.Contains(out, "1/1     Running") {
		t.Errorf("get pods:\n%s", out)
	}
	if r := n.run("cnitool add podnet " + a.path); r.code == 0 || !strings.Contains(r.out+r.errOut, "eth0") {
		t.Errorf("a second ADD: exit code %d, %s%s", r.code, r.out, r.errOut)
	}
	n.cni("check", "podnet", a, kubernetes("shop", "web-0"))
	n.cni("del", "podnet", a)
	n.cni("del", "podnet", a)
	if got := a.links(); !slices.Equal(got, []string{"lo"}) {
		t.Errorf("after DEL the namespace has %v", got)
	}
	if out := n.must("podgate get pods -n shop"); strings.Contains(out, "web-0") {
		t.Errorf("after DEL:\n%s", out)
	}
	if r := n.run("cnitool check podnet " + b.path); r.code != 0 {
		t.Errorf("the other one: %s%s", r.out, r.errOut)
	}
	n.cni("gc", "podnet", a) // cnitool names no attachment as valid
	if got := b.links(); !slices.Equal(got, []string{"lo"}) {
		t.Errorf("after GC the namespace has %v", got)
	}
	if out := n.must("podgate get ports -o json"); strings.Contains(out, "eth0") {
		t.Errorf("after GC:\n%s", out)
	}
}

// What a runtime attached stays attached while the gateway is another one.
func TestCNISurvivesTheGateway(t *testing.T) {
	nstest.Need(t, "ping")
	n := newNode(t, map[string]string{"podnet": `{"type": "podgate-cni"}`})
	a, b := newSandbox(t), newSandbox(t)
	to := n.add("podnet", a).IPs[0].Address.IP.String()
	n.add("podnet", b)
	b.reaches(t, to)
	if err := syscall.Kill(n.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	if r := n.run("cnitool status podnet " + a.path); r.code == 0 || !strings.Contains(r.errOut+r.out, "not running") {
		t.Errorf("status without a gateway: exit code %d, %s%s", r.code, r.out, r.errOut)
	}
	c := newSandbox(t)
	if r := n.run("cnitool add podnet " + c.path); r.code == 0 || len(c.links()) != 1 {
		t.Errorf("ADD without a gateway: exit code %d, %v", r.code, c.links())
	}
	n.cni("del", "podnet", c)
	n.gateway()
	until(t, "attached again", func() bool {
		return n.run("cnitool check podnet "+a.path).code == 0 && n.run("cnitool check podnet "+b.path).code == 0
	})
	b.reaches(t, to)
	if got := n.add("podnet", c).IPs[0].Address.IP.String(); got == to {
		t.Errorf("the address %s was given twice", got)
	}
	for _, s := range []sandbox{a, b, c} {
		n.cni("del", "podnet", s)
	}
}
