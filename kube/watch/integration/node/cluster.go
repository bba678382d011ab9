package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	clusterCIDR = "10.244.0.0/16,fd00:10:244::/56"
	serviceCIDR = "10.96.0.0/16,fd00:10:96::/112"
	clusterDNS  = "10.96.0.10"

	loopback = "/usr/lib/cni/loopback" // containerd 1.x has this plugin bring lo up
)

// cluster is two nodes, the first of which has the control plane as well.
type cluster struct {
	dir       string
	processes []*process // in the order of their starts
	gateways  map[*node]*process
}

// process is one that was started; what it says is in a file.
type process struct {
	name string
	log  string
	pid  int
	done chan struct{}
}

// spawn starts a program of a node.
func (c *cluster) spawn(n *node, args ...string) (*process, error) {
	p := &process{name: filepath.Base(args[0]) + " " + fmt.Sprint(len(c.processes)) + " of " + n.name, done: make(chan struct{})}
	p.log = filepath.Join(c.dir, strings.ReplaceAll(p.name, " ", "-")+".log")
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := n.command(args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "XDG_RUNTIME_DIR=/run"}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	p.pid = cmd.Process.Pid
	go func() { cmd.Wait(); close(p.done) }()
	c.processes = append(c.processes, p)
	return p, nil
}

// stop ends it as its service would.
func (p *process) stop() {
	syscall.Kill(p.pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		syscall.Kill(p.pid, syscall.SIGKILL)
		<-p.done
	}
}

// stop ends what there is in the opposite order: the API server before etcd.
func (c *cluster) stop() {
	for len(c.processes) > 0 {
		p := c.processes[len(c.processes)-1]
		c.processes = c.processes[:len(c.processes)-1]
		p.stop()
	}
}

// tails prints what the processes said last.
func (c *cluster) tails() {
	for _, p := range c.processes {
		text, _ := os.ReadFile(p.log)
		fmt.Fprintf(os.Stderr, "\n== %s said last:\n%s\n", p.name, text[max(0, len(text)-1000):])
	}
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func bin(name string) string { return filepath.Join(os.Getenv(binEnv), name) }

// start starts everything, gateways included, and returns when the nodes are ready.
func (c *cluster) start() error {
	c.gateways = map[*node]*process{}
	if err := c.writeFiles(); err != nil {
		return err
	}
	for _, n := range []*node{node1, node2} {
		if err := n.start(c.dir); err != nil {
			return err
		}
	}
	if err := join(node1, node2); err != nil {
		return err
	}
	if err := c.startControlPlane("--kubelet-preferred-address-types=InternalIP"); err != nil {
		return err
	}
	for _, n := range []*node{node1, node2} {
		if err := c.startNode(n); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	if _, err := c.kubectl("apply", "-f", c.path("manifests/rights.yaml")); err != nil {
		return err
	}
	for _, n := range []*node{node1, node2} {
		if err := c.startGateway(n); err != nil {
			return err
		}
	}
	_, err := c.kubectl("wait", "--for=condition=Ready", "--timeout=90s", "node/node-1", "node/node-2")
	return err
}

// startControlPlane returns when the API server is ready.
func (c *cluster) startControlPlane(args ...string) error {
	_, err := c.spawn(node1, "etcd", "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	api, err := c.spawn(node1, append([]string{bin("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--advertise-address=" + node1.addrs[0], "--secure-port=6443", "--tls-cert-file=" + c.path("tls.crt"), "--tls-private-key-file=" + c.path("tls.key"),
		"--allow-privileged", "--service-cluster-ip-range=" + serviceCIDR, "--token-auth-file=" + c.path("tokens.csv"), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.path("sa.key"), "--service-account-signing-key-file=" + c.path("sa.key"), "--shutdown-delay-duration=0"}, args...)...)
	if err != nil {
		return err
	}
	_, err = await(90*time.Second, func() (string, error) {
		select {
		case <-api.done:
			return "", errFatal{errors.New("kube-apiserver ended")}
		default:
		}
		return c.kubectl("get", "--raw", "/readyz")
	})
	if err != nil {
		return err
	}
	if _, err := c.spawn(node1, bin("kube-controller-manager"), "--kubeconfig="+c.path("admin.kubeconfig"), "--leader-elect=false", "--allocate-node-cidrs",
		"--cluster-cidr="+clusterCIDR, "--service-cluster-ip-range="+serviceCIDR, "--use-service-account-credentials",
		"--service-account-private-key-file="+c.path("sa.key"), "--root-ca-file="+c.path("ca.crt"), "--authentication-skip-lookup", "--bind-address=127.0.0.1", "--cert-dir="+c.path("kcm")); err != nil {
		return err
	}
	_, err = c.spawn(node1, bin("kube-scheduler"), "--kubeconfig="+c.path("admin.kubeconfig"), "--leader-elect=false", "--authentication-skip-lookup", "--bind-address=127.0.0.1", "--cert-dir="+c.path("scheduler"))
	return err
}

// startNode starts containerd and the kubelet.
func (c *cluster) startNode(n *node) error {
	if _, err := c.spawn(n, "containerd", "--config", c.path("containerd.toml")); err != nil {
		return err
	}
	if _, err := await(60*time.Second, func() (string, error) { return n.run("ctr", "version") }); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	if err := n.importImages(c.path("images.tar")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkdir", "-p", "/etc/cni/net.d", "/opt/cni/bin"},
		{"cp", c.path("podgate-cni"), "/opt/cni/bin/podgate-cni"},
		{"cp", loopback, "/opt/cni/bin/loopback"},
		{"cp", c.path("10-podgate.conflist"), "/etc/cni/net.d/10-podgate.conflist"},
	} {
		if out, err := n.run(args...); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	_, err := c.spawn(n, bin("kubelet"), "--config="+c.path(n.name+".yaml"), "--kubeconfig="+c.path(n.name+".kubeconfig"),
		"--hostname-override="+n.name, "--node-ip="+n.addrs[0]+","+n.addrs[1])
	return err
}

// startGateway runs podgate as a service of the node would.
func (c *cluster) startGateway(n *node) error {
	p, err := c.spawn(n, c.path("podgate"), "gateway", "--set", "kubernetes.kubeconfig="+c.path("podgate.kubeconfig"), "--set", "kubernetes.node-name="+n.name,
		"--set", "ingress.http=0.0.0.0:80", "--set", "ingress.https=0.0.0.0:443", "--set", "gateway.drain=1s")
	if err != nil {
		return err
	}
	c.gateways[n] = p
	_, err = await(60*time.Second, func() (string, error) {
		select {
		case <-p.done:
			return "", errFatal{errors.New("podgate ended")}
		default:
		}
		return n.fetch("http://127.0.0.1:10256/readyz", c)
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w", p.name, err)
	}
	return nil
}

// kubectl is the real one, as the administrator on the first node.
func (c *cluster) kubectl(args ...string) (string, error) {
	out, err := node1.run(append([]string{bin("kubectl"), "--kubeconfig", c.path("admin.kubeconfig")}, args...)...)
	if err != nil {
		return out, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out))
	}
	return out, nil
}

// apply applies a manifest that images are made for.
func (c *cluster) apply(manifest string) error {
	text, err := os.ReadFile(c.path("manifests/" + manifest))
	if err != nil {
		return err
	}
	named := strings.ReplaceAll(string(text), "image: "+workloadImage+"\n", "image: "+workloadImage+tag+"\n")
	cmd := node1.command(bin("kubectl"), "--kubeconfig", c.path("admin.kubeconfig"), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(named)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply %s: %w: %s", manifest, err, out)
	}
	return nil
}

// fetch is an HTTP request of a process of the node's own.
func (n *node) fetch(url string, c *cluster, more ...string) (string, error) {
	out, err := n.run(append([]string{c.path("podgate"), "workload", "fetch", "--timeout", "5s", url}, more...)...)
	if err != nil {
		err = fmt.Errorf("%s from %s: %s", url, n.name, strings.TrimSpace(out))
	}
	return out, err
}

// errFatal ends waiting.
type errFatal struct{ error }

// await polls until f succeeds.
func await(patience time.Duration, f func() (string, error)) (string, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		out, err := f()
		if err == nil || errors.As(err, new(errFatal)) || time.Now().After(deadline) {
			return out, err
		}
	}
}

// writeFiles writes what all programs are configured with.
func (c *cluster) writeFiles() error {
	files := map[string]string{
		"tokens.csv": "admin,admin,admin,system:masters\n" +
			"podgate,system:serviceaccount:podgate-system:podgate,podgate\n" +
			"localhost,system:node:localhost,localhost,system:nodes\nnode-1,system:node:node-1,node-1,system:nodes\nnode-2,system:node:node-2,node-2,system:nodes\n",
		"containerd.toml": `version = 2
root = "/opt/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + tag + `"
  restrict_oom_score_adj = true
`,
		"10-podgate.conflist": `{
  "cniVersion": "1.0.0",
  "name": "podnet",
  "plugins": [
    {"type": "podgate-cni", "socket": "/run/podgate/default/control.sock", "capabilities": {"portMappings": true, "bandwidth": true}}
  ]
}
`,
		"resolv.conf": "",
		"subid":       "nobody:200000:65536\n",
	}
	for _, user := range []string{"admin", "podgate", "localhost", node1.name, node2.name} {
		files[user+".kubeconfig"] = fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://%s:6443", certificate-authority: %q}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
`, node1.addrs[0], c.path("ca.crt"), user)
	}
	for _, n := range []*node{node1, node2} {
		files[n.name+".yaml"] = fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%s/%s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: %s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
syncFrequency: 10s
`, filepath.Base(c.dir), n.name, clusterDNS, c.path("resolv.conf"))
	}
	// What the gateway may do, without the DaemonSet.
	deploy, err := os.ReadFile(c.path("manifests/deploy/podgate.yaml"))
	if err != nil {
		return err
	}
	rights, _, found := strings.Cut(string(deploy), "---\napiVersion: apps/v1\nkind: DaemonSet")
	if !found {
		return errors.New("deploy/podgate.yaml: its last document is no DaemonSet")
	}
	files["manifests/rights.yaml"] = rights
	if err := certificates(files); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(c.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return writeImages(c.path("images.tar"), c.path("podgate"))
}

// certificates makes a CA, the API server's certificate, and the key of service
// accounts.
func certificates(files map[string]string) error {
	var keys [3]*rsa.PrivateKey
	for i, name := range []string{"ca.key", "tls.key", "sa.key"} {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return err
		}
		files[name] = string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(keys[i])}))
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(node1.addrs[0]), net.ParseIP("10.96.0.1")},
	}
	for name, cert := range map[string]struct {
		*x509.Certificate
		key *rsa.PrivateKey
	}{"ca.crt": {ca, keys[0]}, "tls.crt": {server, keys[1]}} {
		der, err := x509.CreateCertificate(rand.Reader, cert.Certificate, ca, &cert.key.PublicKey, keys[0])
		if err != nil {
			return err
		}
		files[name] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return nil
}
