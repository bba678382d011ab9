package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"podgate/control"
	"podgate/stack/link/nstest"
)

// TestMain makes this binary the plugin where it is started under its name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "podgate-cni" {
		os.Exit(Main("podgate-cni"))
	}
	nstest.Main(m)
}

// stage is a plugin, a namespace, and a gateway that answers as it is told.
type stage struct {
	*testing.T
	dir   string
	netns string
	ns    *nstest.NS

	mu       sync.Mutex
	attached map[string]control.Attachment
	held     []*os.File
	refuse   *control.Refused
}

func newStage(t *testing.T) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "podgate-cni"))
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{T: t, dir: dir, ns: nstest.New(t), attached: map[string]control.Attachment{}}
	s.netns = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns.FD())
	t.Cleanup(func() {
		for _, f := range s.held {
			f.Close()
		}
	})
	return s
}

func (s *stage) socket() string { return filepath.Join(s.dir, "control.sock") }

// gateway starts one that gives 10.1.0.5 to whoever wants no other.
func (s *stage) gateway() {
	s.Helper()
	g, err := control.Listen(s.socket(), control.Verbs{
		Readiness: func() control.Readiness { return control.Readiness{Ready: true, Free: 1} },
		Attached: func() (list []control.Attachment) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, a := range s.attached {
				list = append(list, a)
			}
			return list
		},
		Detach: func(_ context.Context, q control.DetachRequest) (control.DetachResult, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.attached, q.Container)
			return control.DetachResult{}, nil
		},
		Attach: func(_ context.Context, q control.AttachRequest, build func(control.AttachPlan) (control.NIC, error)) error {
			if s.refuse != nil {
				return s.refuse
			}
			if len(q.Addrs) == 0 {
				q.Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.5")}
			}
			plan := control.AttachPlan{Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, MAC: "0a:58:0a:01:00:05", MTU: 1500}
			for _, a := range q.Addrs {
				plan.Addrs = append(plan.Addrs, netip.PrefixFrom(a, 16))
			}
			nic, err := build(plan)
			if err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.held = append(s.held, nic.File)
			s.attached[q.Container] = control.Attachment{Request: q, Plan: plan}
			return nil
		},
	})
	if err != nil {
		s.Fatal(err)
	}
	done := make(chan struct{})
	go func() { g.Serve(); close(done) }()
	s.Cleanup(func() { g.Close(); <-done })
}

// call runs the plugin and returns what it printed, and the error object if it
// ended with one.
func (s *stage) call(command, conf string, env ...string) (string, *types.Error) {
	s.Helper()
	cmd := exec.Command(filepath.Join(s.dir, "podgate-cni"))
	cmd.Env = append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + s.netns, "CNI_PATH=" + s.dir, "GORACE=atexit_sleep_ms=0"}, env...)
	conf = strings.NewReplacer("SOCKET", s.socket(), "DATA", filepath.Join(s.dir, "leases")).Replace(conf)
	cmd.Stdin = strings.NewReader(conf)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.String(), nil
	case !errors.As(err, &exit):
		s.Fatal(err)
	}
	e := &types.Error{}
	if err := json.Unmarshal(out.Bytes(), e); err != nil {
		s.Fatalf("%s: %v in %q %s", command, err, &out, &errOut)
	}
	return out.String(), e
}

func (s *stage) must(command, conf string, env ...string) string {
	s.Helper()
	out, err := s.call(command, conf, env...)
	if err != nil {
		s.Fatalf("%s: %d %v", command, err.Code, err)
	}
	return out
}

func (s *stage) fails(code uint, want, command, conf string, env ...string) {
	s.Helper()
	_, err := s.call(command, conf, env...)
	if err == nil || err.Code != code || !strings.Contains(err.Error(), want) {
		s.Errorf("%s: %+v; want code %d and %q", command, err, code, want)
	}
}

// withKeys adds keys to a JSON object.
func withKeys(object, keys string) string { return strings.TrimSuffix(object, "}") + ", " + keys + "}" }

func decode(t *testing.T, out string) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return v
}

// dbnet is the bridge of the specification's example, with podgate in its place.
const dbnet = `{"cniVersion": "1.1.0", "name": "dbnet", "type": "podgate-cni", "bridge": "cni0", "socket": "SOCKET",
	"ipam": {"type": "host-local", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "DATA"},
	"dns": {"nameservers": ["10.1.0.1"]}}`

// plain leaves addresses to the gateway.
const plain = `{"cniVersion": "1.1.0", "name": "plain", "type": "podgate-cni", "socket": "SOCKET"}`

func TestVersion(t *testing.T) {
	s := newStage(t)
	got := decode(t, s.must("VERSION", `{"cniVersion": "1.1.0"}`))
	want := []any{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	if !cmp.Equal(got["supportedVersions"], any(want)) {
		t.Errorf("VERSION: %v", got)
	}
	for asked, want := range map[string]string{`{"cniVersion": "0.4.0"}`: "0.4.0", `{}`: "1.1.0", "": "1.1.0", plain: "1.1.0"} {
		if got := decode(t, s.must("VERSION", asked)); got["cniVersion"] != want {
			t.Errorf("VERSION %s: %v; want it in version %s", asked, got, want)
		}
	}
	s.fails(types.ErrDecodingFailure, "", "VERSION", "{")
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.2.0"} {
		out, err := s.call("ADD", strings.Replace(plain, "1.1.0", v, 1), "CNI_NETNS=/no/such/netns")
		if got := decode(t, out); err == nil || got["cniVersion"] != v || got["code"] == nil || got["msg"] == nil {
			t.Errorf("an error in version %s: %s", v, out)
		}
	}
	s.fails(types.ErrIncompatibleCNIVersion, "incompatible", "ADD", strings.Replace(plain, "1.1.0", "0.2.0", 1))
	s.fails(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND", "FROB", plain)
}

// The specification's example, as far as it is about the first plugin.
func TestSpecificationExample(t *testing.T) {
	s := newStage(t)
	s.gateway()
	got := decode(t, s.must("ADD", dbnet))
	last := got["interfaces"].([]any)
	eth0 := last[len(last)-1].(map[string]any)
	if eth0["name"] != "eth0" || eth0["sandbox"] != s.netns || eth0["mac"] != "0a:58:0a:01:00:05" {
		t.Errorf("interfaces: %v", last)
	}
	want := map[string]any{
		"cniVersion": "1.1.0",
		"interfaces": got["interfaces"],
		"ips":        []any{map[string]any{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": float64(len(last) - 1)}},
		"routes":     []any{map[string]any{"dst": "0.0.0.0/0"}},
		"dns":        map[string]any{"nameservers": []any{"10.1.0.1"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ADD (-want +got):\n%s", diff)
	}
	prev, _ := json.Marshal(got)
	again := withKeys(dbnet, `"prevResult": `+string(prev))
	s.must("CHECK", again)
	s.must("STATUS", dbnet)
	s.must("DEL", again)
	s.fails(ErrNotAsMade, "no interface eth0", "CHECK", again)
	s.must("DEL", dbnet, "CNI_NETNS=")
	s.must("DEL", dbnet, "CNI_NETNS=/no/such/netns")
	if files, _ := filepath.Glob(filepath.Join(s.dir, "leases/dbnet/10.*")); len(files) > 0 {
		t.Errorf("leases are left: %v", files)
	}
}

// Each result is in the version that was asked for.
func TestResultVersions(t *testing.T) {
	s := newStage(t)
	s.gateway()
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		conf := strings.Replace(plain, "1.1.0", v, 1)
		got := decode(t, s.must("ADD", conf))
		ip := got["ips"].([]any)[0].(map[string]any)
		if got["cniVersion"] != v || (ip["version"] == "4") != (v < "1") {
			t.Errorf("%s: %v", v, got)
		}
		s.must("DEL", conf)
	}
	s.fails(types.ErrIncompatibleCNIVersion, "CHECK", "CHECK", strings.Replace(plain, "1.1.0", "0.3.1", 1))
	s.fails(types.ErrIncompatibleCNIVersion, "GC", "GC", strings.Replace(plain, "1.1.0", "1.0.0", 1))
}

// What earlier plugins of a chain did is in the result.
func TestPrevResult(t *testing.T) {
	s := newStage(t)
	s.gateway()
	prev := `{"cniVersion": "1.1.0", "interfaces": [{"name": "lo", "sandbox": "x"}], "ips": [{"address": "127.0.0.1/8", "interface": 0}]}`
	got := decode(t, s.must("ADD", withKeys(plain, `"prevResult": `+prev)))
	ips := got["ips"].([]any)
	if len(ips) != 2 || ips[0].(map[string]any)["address"] != "127.0.0.1/8" || ips[1].(map[string]any)["interface"] == 0.0 {
		t.Errorf("ips: %v", ips)
	}
	s.fails(types.ErrInvalidNetworkConfig, "prevResult: is required", "CHECK", plain)
	s.must("DEL", plain)
}

// Each error has the specification's code, and a word of what is wrong.
func TestErrors(t *testing.T) {
	s := newStage(t)
	s.fails(types.ErrPluginNotAvailable, s.socket(), "STATUS", plain)
	s.fails(types.ErrTryAgainLater, s.socket(), "ADD", plain)
	s.must("DEL", plain)
	s.gateway()
	s.fails(types.ErrInvalidNetNS, "/no/such/netns", "ADD", plain, "CNI_NETNS=/no/such/netns")
	s.fails(types.ErrInvalidNetNS, "/dev/null", "ADD", plain, "CNI_NETNS=/dev/null")
	s.fails(ErrExists, "lo", "ADD", plain, "CNI_IFNAME=lo")
	s.fails(types.ErrInvalidEnvironmentVariables, "odd/id", "ADD", plain, "CNI_CONTAINERID=odd/id")
	s.fails(types.ErrInvalidEnvironmentVariables, "CNI_NETNS", "ADD", plain, "CNI_NETNS=")
	s.fails(types.ErrInvalidEnvironmentVariables, "COLOUR", "ADD", plain, "CNI_ARGS=COLOUR=red")
	s.fails(types.ErrInvalidEnvironmentVariables, "interface name", "ADD", plain, "CNI_IFNAME=a-very-long-interface-name")
	s.fails(types.ErrInvalidEnvironmentVariables, "percent", "ADD", plain, "CNI_IFNAME=eth%d")
	s.fails(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID", "DEL", plain, "CNI_CONTAINERID=")
	s.fails(types.ErrInvalidEnvironmentVariables, "-id", "ADD", plain, "CNI_CONTAINERID=-id")
	s.fails(types.ErrInvalidEnvironmentVariables, "pair", "ADD", plain, "CNI_ARGS=a=b=c")
	s.fails(types.ErrInvalidEnvironmentVariables, "IgnoreUnknown", "ADD", plain, "CNI_ARGS=IgnoreUnknown=perhaps")
	s.fails(types.ErrDecodingFailure, "", "ADD", "")
	s.fails(types.ErrDecodingFailure, "", "ADD", "[]")
	s.fails(types.ErrInvalidNetworkConfig, "network name", "ADD", "null")
	s.fails(types.ErrIncompatibleCNIVersion, "banana", "ADD", strings.Replace(plain, "1.1.0", "banana", 1))
	s.fails(types.ErrDecodingFailure, "", "ADD", `{"name"`)
	s.fails(types.ErrDecodingFailure, "mtu: must be a int", "ADD", withKeys(plain, `"mtu": "many"`))
	s.fails(types.ErrInvalidNetworkConfig, "network name", "ADD", `{"cniVersion": "1.1.0", "type": "podgate-cni"}`)
	s.fails(types.ErrInvalidNetworkConfig, `"isGatway"`, "ADD", withKeys(plain, `"isGatway": true`))
	s.fails(types.ErrUnsupportedField, `"vlan": 5`, "ADD", withKeys(plain, `"vlan": 5`))
	s.refuse = &control.Refused{Reason: control.Exhausted, Text: "all in use"}
	s.fails(ErrExhausted, "all in use", "ADD", plain)
	s.refuse = &control.Refused{Reason: control.Taken, Text: "10.1.0.5 belongs to a/b"}
	s.fails(ErrAddressTaken, "10.1.0.5 belongs to a/b", "ADD", dbnet)
	if files, _ := filepath.Glob(filepath.Join(s.dir, "leases/dbnet/10.*")); len(files) > 0 {
		t.Errorf("a refused ADD leaves leases: %v", files)
	}
	s.refuse = nil
	if links, err := s.ns.Netlink().LinkList(); err != nil || len(links) != 1 {
		t.Errorf("links are left: %v, %v", links, err)
	}
	s.must("ADD", plain, "CNI_ARGS=")
	s.must("DEL", plain, "CNI_ARGS=COLOUR=red")
	s.must("ADD", plain, "CNI_ARGS=IgnoreUnknown=true;COLOUR=red")
	s.must("DEL", plain)
	for _, id := range []string{"c.1_x-Y", strings.Repeat("a", 64), strings.Repeat("Z", 200)} {
		s.must("ADD", plain, "CNI_CONTAINERID="+id)
		s.must("DEL", plain, "CNI_CONTAINERID="+id)
	}
}

// The bridge plugin's isGateway and isDefaultGateway, beside IPAM's gateway.
func TestGateways(t *testing.T) {
	s := newStage(t)
	s.gateway()
	for _, c := range []struct{ keys, gateway, route string }{
		{`"isGateway": true`, "10.1.0.1", ""},
		{`"isGateway": false`, "10.1.7.7", ""},
		{`"isDefaultGateway": true`, "10.1.0.1", "10.1.0.1"},
		{`"isGateway": false, "isDefaultGateway": true`, "10.1.0.1", "10.1.0.1"},
	} {
		conf := withKeys(plain, c.keys+`, "ipam": {"subnet": "10.1.0.0/16", "gateway": "10.1.7.7", "dataDir": "DATA"}`)
		got := decode(t, s.must("ADD", conf))
		ip := got["ips"].([]any)[0].(map[string]any)
		route := ""
		if list, _ := got["routes"].([]any); len(list) > 0 {
			route = list[0].(map[string]any)["gw"].(string)
		}
		if ip["gateway"] != c.gateway || route != c.route {
			t.Errorf("%s: gateway %v, default route via %q; want %q and %q", c.keys, ip["gateway"], route, c.gateway, c.route)
		}
		s.must("DEL", conf)
	}
}

func TestIdentity(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{"abc", "ABC", "a_b", "a.b", "a-b", "0", strings.Repeat("f", 64), strings.Repeat("f", 65), "_._"} {
		c := &config{}
		_, name := c.identity(args(id))
		if len(name) > 63 || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Trim(name, "-") != name {
			t.Errorf("container %s: pod %q", id, name)
		}
		if other, twice := seen[name]; twice {
			t.Errorf("containers %s and %s: both pod %q", id, other, name)
		}
		seen[name] = id
	}
}

// The examples are configurations that the plugin takes.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/cni/*.conflist")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			CNIVersion, Name string
			Plugins          []map[string]any
		}
		if err := json.Unmarshal(data, &list); err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		for _, p := range list.Plugins {
			if p["type"] != "podgate-cni" {
				continue
			}
			p["cniVersion"], p["name"] = list.CNIVersion, list.Name
			conf, _ := json.Marshal(p)
			if _, err := load(&skel.CmdArgs{StdinData: conf}, true); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
}
