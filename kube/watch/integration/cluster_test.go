package integration

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	server = "https://127.0.0.1:6443"

	// Whom podgate is: what deploy/podgate.yaml gives rights to.
	serviceAccount = "system:serviceaccount:podgate-system:podgate"
)

// controlPlane is etcd, kube-apiserver and kube-controller-manager.
type controlPlane struct {
	t    testing.TB
	dir  string
	etcd *process
	api  *process
}

// process is one that the test started.
type process struct {
	cmd  *exec.Cmd
	log  *safeBuffer
	done chan struct{}
}

// safeBuffer is written by a process's copier and read by the test.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts a program; it is killed at the end of the test, and what it said
// last is printed if the test failed.
func start(t testing.TB, name string, env []string, args ...string) *process {
	t.Helper()
	p := &process{log: &safeBuffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel kills the process when the thread that made it ends, as those
		// do that entered a namespace: this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			text := p.log.String()
			t.Logf("%s said last:\n%s", name, text[max(0, len(text)-1500):])
		}
	})
	return p
}

// stop asks the process to end, and kills it if it does not.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.kill()
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

func bin(name string) string { return filepath.Join(os.Getenv(binEnv), name) }

// newControlPlane starts all of it and returns when the API server is ready.
func newControlPlane(t testing.TB) *controlPlane {
	c := &controlPlane{t: t, dir: t.TempDir()}
	c.write("tokens.csv", "admin,admin,admin,system:masters\npodgate,"+serviceAccount+",podgate\nstranger,stranger,stranger\n")
	c.write("audit.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: Metadata, users: ["+`"`+serviceAccount+`"`+"]}\n- {level: None}\n")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	for _, user := range []string{"admin", "podgate", "stranger", "nobody"} {
		c.write(user+".kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
`, server, user))
	}
	c.etcd = start(t, "etcd", nil, "etcd", "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380")
	c.startAPI()
	start(t, "kube-controller-manager", nil, bin("kube-controller-manager"), "--kubeconfig", c.path("admin.kubeconfig"), "--leader-elect=false",
		"--allocate-node-cidrs", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
		"--controllers=*,-node-lifecycle-controller,-taint-eviction-controller", "--authentication-skip-lookup", "--bind-address=127.0.0.1", "--cert-dir", c.path("kcm-certs"))
	return c
}

func (c *controlPlane) startAPI() {
	c.t.Helper()
	c.api = start(c.t, "kube-apiserver", nil, bin("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--allow-privileged", "--advertise-address=192.0.2.1", "--secure-port=6443", "--cert-dir", c.path("certs"), "--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112", "--token-auth-file", c.path("tokens.csv"), "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file", c.path("sa.key"), "--service-account-signing-key-file", c.path("sa.key"),
		"--audit-policy-file", c.path("audit.yaml"), "--audit-log-path", c.path("audit.log"), "--shutdown-delay-duration=0")
	await(c.t, "the API server is ready", func() error {
		select {
		case <-c.api.done:
			c.t.Fatal("it ended")
		default:
		}
		_, err := c.call("GET", "/readyz", nil)
		return err
	})
}

// stopAPI ends the API server at once; etcd stays.
func (c *controlPlane) stopAPI() { c.api.kill() }

func (c *controlPlane) path(name string) string { return filepath.Join(c.dir, name) }

func (c *controlPlane) write(name, text string) string {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c.path(name)
}

var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}

// call asks the API server as the administrator. The body is sent as a merge patch with
// PATCH, else as JSON.
func (c *controlPlane) call(method, path string, body any) (map[string]any, error) {
	var send io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		send = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, server+path, send)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer admin")
	req.Header.Set("Content-Type", "application/json")
	if method == "PATCH" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, raw)
	}
	var out map[string]any
	json.Unmarshal(raw, &out) // /readyz says "ok"
	return out, nil
}

func (c *controlPlane) do(method, path string, body any) map[string]any {
	c.t.Helper()
	out, err := c.call(method, path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// kubectl runs the real one, and returns what it prints.
func (c *controlPlane) kubectl(args ...string) string {
	c.t.Helper()
	out, err := exec.Command(bin("kubectl"), append([]string{"--kubeconfig", c.path("admin.kubeconfig")}, args...)...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// addNode makes a Node and waits until the controller manager gave it pod ranges.
func (c *controlPlane) addNode(name string, addrs ...string) {
	c.t.Helper()
	c.do("POST", "/api/v1/nodes", map[string]any{"metadata": map[string]any{"name": name}})
	var list []any
	for _, a := range addrs {
		list = append(list, map[string]any{"type": "InternalIP", "address": a})
	}
	c.do("PATCH", "/api/v1/nodes/"+name+"/status", map[string]any{"status": map[string]any{"addresses": list}})
}

// kubelet schedules pods to nodes, gives them addresses and says that they are
// ready, until the test ends; it also lets go of pods that are deleted.
func (c *controlPlane) kubelet(node string) {
	stop, done := make(chan struct{}), make(chan struct{})
	c.t.Cleanup(func() { close(stop); <-done })
	go func() {
		defer close(done)
		next := 10
		for {
			if list, err := c.call("GET", "/api/v1/pods", nil); err == nil {
				items, _ := list["items"].([]any)
				for _, item := range items {
					c.care(node, item.(map[string]any), &next)
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
}

func (c *controlPlane) care(node string, pod map[string]any, next *int) {
	path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s", get(pod, "metadata", "namespace"), get(pod, "metadata", "name"))
	switch {
	case get(pod, "metadata", "deletionTimestamp") != nil:
		c.call("DELETE", path, map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})
	case get(pod, "spec", "nodeName") == nil:
		c.call("POST", path+"/binding", map[string]any{"apiVersion": "v1", "kind": "Binding", "metadata": map[string]any{"name": get(pod, "metadata", "name")}, "target": map[string]any{"kind": "Node", "name": node}})
	case get(pod, "status", "podIP") == nil:
		*next++
		ip := fmt.Sprintf("10.244.0.%d", *next)
		ready := []any{map[string]any{"type": "Ready", "status": "True"}, map[string]any{"type": "ContainersReady", "status": "True"}}
		c.call("PATCH", path+"/status", map[string]any{"status": map[string]any{"phase": "Running", "podIP": ip, "podIPs": []any{map[string]any{"ip": ip}}, "conditions": ready}})
	}
}

// get follows keys and, through lists, indices.
func get(v any, keys ...any) any {
	for _, k := range keys {
		switch k := k.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

// await polls until f succeeds, and returns how long that took.
func await(t testing.TB, what string, f func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := f()
		took := time.Since(begin)
		if err == nil {
			return took
		}
		if took > 90*time.Second {
			t.Fatalf("after %s it is not so that %s: %v", took.Round(time.Second), what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// gateway is `podgate gateway` for a node.
type gateway struct {
	*process
	t    testing.TB
	name string
}

const healthAddr = "127.0.0.1:10256"

func (c *controlPlane) gateway(name, node, user string, sets ...string) *gateway {
	c.t.Helper()
	return c.gatewayIn(here(c.t), name, node, user, append([]string{"publish.address=127.0.0.1"}, sets...)...)
}

// gatewayIn runs it in a namespace.
func (c *controlPlane) gatewayIn(in machine, name, node, user string, sets ...string) *gateway {
	c.t.Helper()
	args := in.command(os.Getenv(podgateEnv), "--name", name, "gateway")
	for _, s := range append([]string{"kubernetes.kubeconfig=" + c.path(user+".kubeconfig"), "kubernetes.node-name=" + node, "gateway.drain=0s"}, sets...) {
		args = append(args, "--set", s)
	}
	return &gateway{start(c.t, "podgate gateway "+name, []string{"XDG_RUNTIME_DIR=" + runtimeDir(c.t)}, args...), c.t, name}
}

func runtimeDir(t testing.TB) string {
	dir := "/tmp/podgate-it-" + fmt.Sprint(os.Getpid())
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.MkdirAll(dir, 0o700)
	return dir
}

func (g *gateway) awaitReady() {
	g.t.Helper()
	await(g.t, "the gateway is ready", func() error {
		resp, err := http.Get("http://" + healthAddr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
}

// get is what `podgate get` says of one object or of all of a kind, as a list.
func (g *gateway) get(args ...string) ([]any, error) {
	cmd := exec.Command(os.Getenv(podgateEnv), append([]string{"--name", g.name, "get", "-o", "json"}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR=/tmp/podgate-it-"+fmt.Sprint(os.Getpid()))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%v: %s", err, out)
	}
	var v map[string]any
	if err := json.Unmarshal(out, &v); err != nil {
		return nil, err
	}
	if items, ok := v["items"].([]any); ok {
		return items, nil
	}
	return []any{v}, nil
}

// applyShop applies the example, its namespaces first: kubectl goes by file names.
func (c *controlPlane) applyShop() {
	c.t.Helper()
	c.kubectl("apply", "-f", "../../../examples/shop/namespaces.yaml")
	c.kubectl("apply", "-f", "../../../examples/shop")
}
