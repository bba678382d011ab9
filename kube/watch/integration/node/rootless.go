package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// nobody is who the rootless node and its gateway belong to.
const nobody = "65534"

// rootless is examples/rootless-cluster: a control plane as before, and a node
// and its gateway that are an ordinary user's.
func (c *cluster) rootless() error {
	c.gateways = map[*node]*process{}
	if err := c.writeFiles(); err != nil {
		return err
	}
	if err := node1.start(c.dir); err != nil {
		return err
	}
	if out, err := node1.run("ip", "addr", "add", node1.addrs[0]+"/32", "dev", "lo"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := c.startControlPlane("--kubelet-preferred-address-types=Hostname"); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("node.json"), []byte(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "localhost"}}`), 0o644); err != nil {
		return err
	}
	if _, err := c.kubectl("apply", "-f", c.path("manifests/rights.yaml"), "-f", c.path("node.json")); err != nil {
		return err
	}
	if _, err := c.kubectl("patch", "node", "localhost", "--subresource=status", "-p", `{"status": {"addresses": [{"type": "InternalIP", "address": "10.244.0.250"}]}}`); err != nil {
		return err
	}
	for key := range tunables { // no kubelet may set them, and a covered /proc cannot be mounted again
		if out, err := node1.run("umount", filepath.Join("/proc/sys", key)); err != nil {
			return fmt.Errorf("%s: %w: %s", key, err, out)
		}
	}
	// What the README has the administrator do.
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if out, err := node1.run("mount", "--bind", c.path("subid"), file); err != nil {
			return fmt.Errorf("%s: %w: %s", file, err, out)
		}
	}
	dir := c.path("rootless")
	env := fmt.Sprintf("NODE=localhost\nNODE_IP=10.244.0.250\nSOCKET=%s/run/podgate/default/control.sock\nCLUSTER_DNS=%s\nPAUSE_IMAGE=%s\n", dir, clusterDNS, pauseImage+tag)
	script := fmt.Sprintf(`set -e; cd %s; mkdir -p rootless/bin rootless/run
cp %s podgate podgate-cni %s rootless/bin; cp images.tar rootless; cp localhost.kubeconfig rootless/kubelet.kubeconfig; cp podgate.kubeconfig ca.crt rootless
sed -i s,%s/ca.crt,%s/ca.crt, rootless/*.kubeconfig
cp manifests/rootless-cluster/node.sh rootless; printf '%s' >rootless/node.env
chown -R %s:%s rootless; chmod 711 .`, c.dir, bin("kubelet"), loopback, c.dir, dir, strings.ReplaceAll(env, "\n", `\n`), nobody, nobody)
	if out, err := node1.run("bash", "-c", script); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := c.startRootlessGateway(); err != nil {
		return err
	}
	if _, err := c.spawn(node1, c.asNobody(filepath.Join(dir, "node.sh"), dir)...); err != nil {
		return err
	}
	_, err := c.kubectl("wait", "--for=condition=Ready", "--timeout=90s", "node/localhost")
	return err
}

func (c *cluster) asNobody(args ...string) []string {
	return append([]string{"setpriv", "--reuid=" + nobody, "--regid=" + nobody, "--clear-groups", "--reset-env",
		"env", "PATH=" + os.Getenv("PATH"), "HOME=" + c.path("rootless"), "XDG_RUNTIME_DIR=" + c.path("rootless/run")}, args...)
}

func (c *cluster) startRootlessGateway() error {
	dir := c.path("rootless")
	p, err := c.spawn(node1, c.asNobody(dir+"/bin/podgate", "gateway", "--set", "kubernetes.kubeconfig="+dir+"/podgate.kubeconfig", "--set", "kubernetes.node-name=localhost",
		"--set", "gateway.interface=", "--set", "publish.address=127.0.0.1", "--set", "egress.allow="+node1.addrs[0]+"/32", "--set", "gateway.drain=1s")...)
	if err != nil {
		return err
	}
	c.gateways[node1] = p
	_, err = await(60*time.Second, func() (string, error) { return node1.fetch("http://127.0.0.1:10256/readyz", c) })
	if err != nil {
		return fmt.Errorf("%s is not ready: %w", p.name, err)
	}
	return nil
}

// rootlessProofs are those of the rootless node.
func (c *cluster) rootlessProofs() ([]proof, error) {
	for _, f := range []string{"shop/namespaces", "shop/policies", "shop/db", "shop/api", "shop/web", "shop/batch"} {
		if err := c.apply(f + ".yaml"); err != nil {
			return nil, err
		}
	}
	return []proof{
		says("the node is ready", func() (string, error) {
			return c.field(`{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.status.addresses[*].address}{end}`, "nodes")
		}, "localhost True"),
		{"the gateway and the kubelet have no privileges on the host", func() (string, error) {
			out, err := node1.run("sh", "-c", `for p in gateway kubelet containerd; do pid=$(pgrep -u `+nobody+` -f "$p" | head -n 1); echo "$p uid $(awk '/^Uid/ {print $2}' /proc/$pid/status)"; done`)
			if err == nil && strings.Count(out, "uid "+nobody) != 3 {
				err = errors.New(out)
			}
			return out, err
		}},
		c.rolledOut("shop-data", "statefulset/db"),
		c.rolledOut("shop", "deployment/web", "deployment/api"),
		says("DNS", func() (string, error) { return c.exec("shop/batch", "nslookup", "web.shop.svc.cluster.local") }, "Address", "10.96."),
		says("Service: batch asks web, which asks api, which asks db",
			kept(func() (string, error) { return c.fetch("shop/batch", "http://web/") }, "pod", "client", "database", "upstream-error"), "pod web", "pod api", "database db-0 answers"),
		denied("NetworkPolicy: batch may not ask api", func() (string, error) { return c.fetch("shop/batch", "http://api/") }, "deadline exceeded"),
		says("Ingress, on the host", kept(func() (string, error) { return node1.fetch("http://127.0.0.1:8080/", c, "--host", "shop.example") }, "pod", "client"), "pod web", "pod api"),
		says("node port, on the host", func() (string, error) { return node1.fetch("http://127.0.0.1:30080/hostname", c) }, "web-"),
		says("kubectl get ingress: the address", func() (string, error) { return c.kubectl("get", "ingress", "-n", "shop", "--no-headers") }, "127.0.0.1"),
		says("kubectl logs", func() (string, error) { return c.kubectl("logs", "-n", "shop", "deployment/web") }, "http on"),
		{"the gateway starts again, and is brought the interfaces", func() (string, error) {
			c.gateways[node1].stop()
			if err := c.startRootlessGateway(); err != nil {
				return "", errFatal{err}
			}
			return await(patience, func() (string, error) {
				return kept(func() (string, error) { return c.fetch("shop/batch", "http://web/") }, "pod", "client", "upstream-error")()
			})
		}},
		{"no iptables, no nftables on the host", func() (string, error) {
			out, err := node1.run("sh", "-c", "iptables-save; ip6tables-save; nft list ruleset; ip -o -br link")
			if err == nil && strings.Join(strings.Fields(out)[:1], "") != "lo" {
				err = errors.New(out)
			}
			return out, err
		}},
	}, nil
}
