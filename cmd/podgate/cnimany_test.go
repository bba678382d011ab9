package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"podgate/cni"
	"podgate/control"
	"podgate/stack/link/nstest"
)

// plugin runs the plugin as a runtime does, without cnitool.
func (n *node) plugin(command string, s sandbox, container, conf string) (string, error) {
	cmd := exec.Command("podgate-cni")
	for _, dir := range strings.Split(envOf(n.shell, "PATH"), ":") {
		if path, err := exec.LookPath(dir + "/podgate-cni"); err == nil {
			cmd = exec.Command(path)
			break
		}
	}
	cmd.Env = append(slices.Clone(n.env), "CNI_COMMAND="+command, "CNI_CONTAINERID="+container, "CNI_IFNAME=eth0", "CNI_NETNS="+s.path)
	cmd.Stdin = strings.NewReader(conf)
	out, err := cmd.Output()
	return string(out), err
}

// 64 at a time: no address twice; and a client that goes away in the middle
// leaves nothing.
func TestCNIManyAtOnce(t *testing.T) {
	const count, conf = 64, `{"cniVersion": "1.0.0", "name": "many", "type": "podgate-cni"}`
	n := newNode(t, nil)
	client := control.NewClient(filepath.Join(envOf(n.shell, "XDG_RUNTIME_DIR"), "podgate/default/control.sock"))
	before, err := client.Attachable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	boxes := make([]sandbox, count)
	for i := range boxes {
		boxes[i] = newSandbox(t)
	}
	var mu sync.Mutex
	owner := map[string]int{}
	every := func(f func(i int)) {
		var wg sync.WaitGroup
		for i := range boxes {
			wg.Go(func() { f(i) })
		}
		wg.Wait()
	}
	for round := range 2 {
		every(func(i int) {
			out, err := n.plugin("ADD", boxes[i], fmt.Sprint("c", i), conf)
			res := &current.Result{}
			if json.Unmarshal([]byte(out), res); err != nil || len(res.IPs) == 0 {
				t.Errorf("ADD %d: %v: %s", i, err, out)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range res.IPs {
				if other, twice := owner[ip.Address.String()]; twice {
					t.Errorf("%s for %d and %d", ip.Address, other, i)
				}
				owner[ip.Address.String()] = i
			}
		})
		every(func(i int) {
			if i%4 == round { // who was promised and goes
				ctx, cancel := context.WithCancel(t.Context())
				q := control.AttachRequest{Container: fmt.Sprint("gone", i), IfName: "eth0", Network: "many", Namespace: "default", Pod: fmt.Sprint("gone", i)}
				client.Attach(ctx, q, func(control.AttachPlan) (nic control.NIC, err error) {
					cancel()
					return nic, ctx.Err()
				})
				cancel()
			}
			if out, err := n.plugin("DEL", boxes[i], fmt.Sprint("c", i), conf); err != nil {
				t.Errorf("DEL %d: %v: %s", i, err, out)
			}
		})
		clear(owner)
	}
	until(t, "all addresses are free", func() bool {
		after, err := client.Attachable(t.Context())
		return err == nil && after.Free == before.Free
	})
	for i, s := range boxes {
		if got := s.links(); !slices.Equal(got, []string{"lo"}) {
			t.Errorf("namespace %d has %v", i, got)
		}
	}
}

// What the runtime asks for by capabilities, and the ways in.
func TestCNICapabilities(t *testing.T) {
	nstest.Need(t, "curl")
	n := newNode(t, map[string]string{"caps": `{"type": "podgate-cni", "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "dns": true, "ipRanges": true, "aliases": true}}`})
	a := newSandbox(t)
	caps := `CAP_ARGS='{"portMappings": [{"hostPort": 18181, "containerPort": 80, "protocol": "tcp"}], "bandwidth": {"ingressRate": 80000000, "egressRate": 8000000},
		"ips": ["10.244.44.4/16"], "mac": "0a:58:0a:00:00:44", "dns": {"servers": ["192.0.2.53"], "searches": ["a.example"]}}'`
	res := n.add("caps", a, caps)
	if got := fmt.Sprintf("%s %s %v", res.IPs[0].Address.IP, res.Interfaces[len(res.Interfaces)-1].Mac, res.DNS); got != "10.244.44.4 0a:58:0a:00:00:44 {[192.0.2.53]  [a.example] []}" {
		t.Errorf("the result says %s", got)
	}
	n.cni("check", "caps", a, caps)
	if out := n.must("podgate get ports -o json"); !strings.Contains(out, "rate=80000000,rate-from=8000000,queue=100ms") {
		t.Errorf("no rates in %s", out)
	}
	server := a.Command("/proc/self/exe", "workload", "http", "--port", "80")
	server.Args[0] = "podgate"
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the port of the host answers", func() bool {
		return exec.Command("curl", "-s", "-m", "2", "http://127.0.0.1:18181/").Run() == nil
	})
	n.cni("del", "caps", a, caps)
	if err := exec.Command("curl", "-s", "-m", "2", "http://127.0.0.1:18181/").Run(); err == nil {
		t.Error("the port of the host still answers")
	}
}

// What a gateway cannot open when it starts again waits for the plugin; what is
// gone the plugin says.
func TestCNIReattach(t *testing.T) {
	nstest.Need(t, "ping")
	const conf = `{"cniVersion": "1.1.0", "name": "podnet", "type": "podgate-cni"}`
	n := newNode(t, nil)
	a, b := newSandbox(t), newSandbox(t)
	for i, s := range []sandbox{a, b} {
		if out, err := n.plugin("ADD", s, fmt.Sprint("c", i), conf); err != nil {
			t.Fatal(out)
		}
	}
	if err := syscall.Kill(n.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	if err := (cni.Interface{Netns: b.path, Name: "eth0", Owner: "c1"}).Remove(); err != nil {
		t.Fatal(err)
	}
	n.gateway()
	client := control.NewClient(filepath.Join(envOf(n.shell, "XDG_RUNTIME_DIR"), "podgate/default/control.sock"))
	until(t, "one is served, one waits", func() bool {
		list, err := client.Attached(t.Context())
		return err == nil && len(list) == 2 && list[0].Waiting != list[1].Waiting
	})
	if out, err := n.plugin("STATUS", a, "", conf); err != nil {
		t.Fatal(out)
	}
	list, err := client.Attached(t.Context())
	if err != nil || len(list) != 1 || list[0].Request.Addrs[0] != netip.MustParseAddr("10.244.0.4") {
		t.Errorf("%+v, %v", list, err)
	}
	a.reaches(t, "10.244.0.2")
}
