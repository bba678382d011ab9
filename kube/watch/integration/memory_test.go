package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dial connects from the namespace.
func (m machine) dial(addr string) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		ns, e := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.pid))
		if e != nil {
			err = e
			return
		}
		defer ns.Close()
		if _, _, e := syscall.RawSyscall(sysSetns, ns.Fd(), syscall.CLONE_NEWNET, 0); e != 0 {
			err = e
			return
		}
		conn, err = net.DialTimeout("tcp", addr, 5*time.Second)
	}()
	<-done
	return conn, err
}

const sysSetns = 308 // of amd64

// echoes says whether what is sent comes back.
func echoes(conn net.Conn, text string) error {
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := io.WriteString(conn, text+"\n"); err != nil {
		return err
	}
	for got := ""; ; {
		b := make([]byte, 512)
		n, err := conn.Read(b)
		if got += string(b[:n]); strings.Contains(got, text) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("got %q: %w", got, err)
		}
	}
}

func readyz() (string, error) {
	resp, err := http.Get("http://" + healthAddr + "/readyz")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = errors.New(resp.Status)
	}
	return string(text), err
}

// TestStartsAlone: a gateway that is killed while the API server is away, and
// started again, serves what it knew, and says that it does. Connections that
// were open go on, also through a Service. When the API server is back it is
// followed again.
func TestStartsAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: pods are attached as on a node")
	}
	c := newControlPlane(t)
	node := here(t)
	node.run("ip", "addr", "add", node1+"/32", "dev", "lo")
	t.Cleanup(func() { node.run("ip", "addr", "del", node1+"/32", "dev", "lo") })
	c.addNode("node-1", node1)
	c.kubectl("apply", "-f", deploy)
	state := "state.dir=" + c.path("state")
	g := c.gateway("alone", "node-1", "podgate", state)
	g.awaitReady()
	client, _ := c.pod(g, node, "node-1", "client", map[string]any{"app": "client"})
	server, _ := c.pod(g, node, "node-1", "server", map[string]any{"app": "server"})
	closed, closedIPs := c.pod(g, node, "node-1", "closed", map[string]any{"app": "closed"})
	closedIP := closedIPs[0]
	start(t, "echo", nil, server.command(os.Getenv(podgateEnv), "workload", "echo", "--port", "7")...)
	c.do("POST", "/api/v1/namespaces/default/services", object("v1", "Service", "default", "server", map[string]any{"spec": map[string]any{
		"clusterIP": "10.96.0.70", "selector": map[string]any{"app": "server"},
		"ports": []any{map[string]any{"name": "echo", "port": 7}, map[string]any{"name": "http", "port": 80, "targetPort": 8080}},
	}}))
	c.do("POST", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", object("networking.k8s.io/v1", "NetworkPolicy", "default", "closed", map[string]any{"spec": map[string]any{"podSelector": map[string]any{"matchLabels": map[string]any{"app": "closed"}}}}))
	await(t, "the policy is enforced", func() error {
		if _, err := client.fetch("http://" + closedIP + ":8080/"); err == nil {
			return errors.New("it is not")
		}
		return nil
	})
	var conn net.Conn
	await(t, "the client is connected", func() (err error) {
		conn, err = client.dial("10.96.0.70:7")
		return err
	})
	defer conn.Close()
	if err := echoes(conn, "before"); err != nil {
		t.Fatal(err)
	}
	c.do("POST", "/api/v1/namespaces", object("v1", "Namespace", "", "last", nil))
	await(t, "the state is written down", func() error {
		data, err := os.ReadFile(c.path("state/alone/cluster"))
		if err == nil && !strings.Contains(string(data), `"name":"last"`) {
			err = errors.New("what came last is not there")
		}
		return err
	})

	c.stopAPI()
	g.kill()
	g = c.gateway("alone", "node-1", "podgate", state)
	g.awaitReady()
	text, err := readyz()
	if err != nil || !strings.Contains(text, "written down at") {
		t.Errorf("/readyz: got %q, %v; want it to say that this is of old", text, err)
	}
	if n := strings.Count(g.log.String(), "the API server does not answer"); n != 1 {
		t.Errorf("it is said %d times that the API server does not answer, want once", n)
	}
	if err := echoes(conn, "after"); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
	for _, check := range []struct {
		what string
		f    func() error
	}{
		{"a pod reaches a Service", client.says("http://10.96.0.70/", "")},
		{"the node reaches a Service, and asks DNS", func() error {
			return errors.Join(node.says("http://10.96.0.70/", "")(), lookup("10.96.0.10", "server.default.svc.cluster.local", "10.96.0.70")())
		}},
		{"a closed pod has its connections", closed.says("http://10.96.0.70/", "")},
	} {
		t.Logf("%-45s after %s", check.what, await(t, check.what, check.f).Round(time.Millisecond))
	}
	if out, err := client.fetch("http://" + closedIP + ":8080/"); err == nil {
		t.Errorf("a policy that was written down is not enforced: %q", out)
	}

	c.startAPI()
	await(t, "nothing of old is served", func() error {
		text, err := readyz()
		if err == nil && text != "ok\n" {
			err = errors.New(text)
		}
		return err
	})
	if err := echoes(conn, "afterwards"); err != nil {
		t.Errorf("the connection did not survive the API server's return: %v", err)
	}
	c.do("DELETE", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/closed", nil)
	await(t, "the policy is gone", client.says("http://"+closedIP+":8080/", ""))
}
