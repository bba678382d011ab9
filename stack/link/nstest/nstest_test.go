package nstest_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"podgate/stack/link/ns"
	"podgate/stack/link/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestTheTestsOwnNamespaceHasOnlyLoopback(t *testing.T) {
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 && l.Flags&net.FlagUp != 0 {
			t.Errorf("link %s is up beside loopback", l.Name)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal("loopback is not up:", err)
	}
	c.Close()
}

func TestVethJoinsTwoNamespaces(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Veth(t, a, "eth0", b, "eth1")
	a.Addr("eth0", "192.0.2.1/24", "2001:db8::1/64")
	b.Addr("eth1", "192.0.2.2/24", "2001:db8::2/64")

	for _, addr := range []string{"192.0.2.2:0", "[2001:db8::2]:0"} {
		var l net.Listener
		b.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err })
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.Write([]byte("hello"))
				c.Close()
			}
		}()
		got := make([]byte, 5)
		a.Do(func() error {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Read(got)
			return err
		})
		if string(got) != "hello" {
			t.Errorf("over %s got %q, want hello", addr, got)
		}
	}
}

func TestRoutesCrossARouterAndABridge(t *testing.T) {
	a, router, sw, b := nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t)
	nstest.Veth(t, a, "eth0", router, "eth0")
	nstest.Veth(t, router, "eth1", sw, "port0")
	nstest.Veth(t, sw, "port1", b, "eth0")
	if err := sw.Bridge("br0", "port0", "port1"); err != nil {
		t.Fatal(err)
	}
	b.MAC("eth0", [6]byte{0x0a, 0x58, 198, 51, 100, 2})
	b.MTU("eth0", 1400)
	a.Addr("eth0", "192.0.2.1/24", "2001:db8:1::1/64")
	router.Addr("eth0", "192.0.2.254/24", "2001:db8:1::fe/64")
	router.Addr("eth1", "198.51.100.254/24", "2001:db8:2::fe/64")
	b.Addr("eth0", "198.51.100.2/24", "2001:db8:2::2/64")
	router.Sysctl("net.ipv4.ip_forward", "1")
	router.Sysctl("net.ipv6.conf.all.forwarding", "1")
	a.Route("default4", "192.0.2.254")
	a.Route("default6", "2001:db8:1::fe")
	b.Route("192.0.2.0/24", "198.51.100.254")
	b.Route("2001:db8:1::/64", "2001:db8:2::fe")
	for _, addr := range []string{"198.51.100.2:0", "[2001:db8:2::2]:0"} {
		var l net.Listener
		b.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err })
		defer l.Close()
		a.Do(func() error {
			c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
}

func TestCommandRunsInside(t *testing.T) {
	n := nstest.New(t)
	var want string
	n.Do(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err })
	out, err := n.Command("readlink", "/proc/self/ns/net").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("process is in %s, want %s", got, want)
	}
	if here, _ := os.Readlink("/proc/self/ns/net"); here == want {
		t.Error("the test process itself is in the namespace")
	}
}

func TestCloseKillsProcesses(t *testing.T) {
	n, err := ns.New("short-lived")
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.Close()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("process ended with %v, want killed", err)
	}
	if err := n.Command("true").Run(); err == nil {
		t.Error("a closed namespace still starts processes")
	}
}

func TestDoReturnsErrorsAndPanics(t *testing.T) {
	n := nstest.New(t)
	want := errors.New("mine")
	if got := n.NS.Do(func() error { return want }); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	defer func() {
		if got := recover(); got != "boom" {
			t.Errorf("recovered %v, want boom", got)
		}
	}()
	n.NS.Do(func() error { panic("boom") })
}

func TestClosedNamespacesLeaveNothing(t *testing.T) {
	count := func() string {
		fds, err1 := os.ReadDir("/proc/self/fd")
		links, err2 := net.Interfaces()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(len(fds), " descriptors, ", len(links), " links")
	}
	use := func() {
		a, err1 := ns.New("a")
		b, err2 := ns.New("b")
		if err := errors.Join(err1, err2, ns.Veth(a, "eth0", b, "eth0")); err != nil {
			t.Fatal(err)
		}
		if err := a.Command("true").Run(); err != nil {
			t.Fatal(err)
		}
		a.Close()
		b.Close()
		b.Close()
	}
	use() // opens what the runtime keeps
	want := count()
	for range 10 {
		use()
	}
	if got := count(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The isolated binary passes on the exit code and the arguments.
func TestExitCodeComesThrough(t *testing.T) {
	if os.Getenv("NSTEST_FAIL") != "" {
		t.Fatal("as asked")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestExitCodeComesThrough$")
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PODGATE_OUTER_NETNS=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "NSTEST_FAIL=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit status 1\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("as asked")) {
		t.Errorf("output lost:\n%s", out)
	}
}
