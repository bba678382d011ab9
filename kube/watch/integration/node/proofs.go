package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// patience is how long a proof is tried: probes, rollouts and leases take their
// time on a small machine.
const patience = time.Minute

// proof is something that has to become true, and what shows it.
type proof struct {
	what string
	show func() (string, error)
}

// part is proofs that follow from the same.
type part struct {
	title string
	f     func() ([]proof, error)
}

// prove prints a line for each proof, and returns how many failed.
func prove(parts ...part) (failed int) {
	for _, part := range parts {
		fmt.Printf("\n%s\n", part.title)
		proofs, err := part.f()
		if err != nil {
			fmt.Printf("FAIL %v\n", err)
			failed++
			continue
		}
		for _, p := range proofs {
			begin := time.Now()
			shown, err := await(patience, p.show)
			took := time.Since(begin).Round(100 * time.Millisecond)
			if err != nil {
				fmt.Printf("FAIL %s (%s): %v\n", p.what, took, err)
				failed++
				continue
			}
			fmt.Printf("ok   %s (%s): %s\n", p.what, took, strings.Join(strings.Fields(shown), " "))
		}
	}
	return failed
}

// exec is a command in a pod's container, by kubectl.
func (c *cluster) exec(pod string, args ...string) (string, error) {
	namespace, name, _ := strings.Cut(pod, "/")
	return c.kubectl(append([]string{"exec", "-n", namespace, name, "--"}, args...)...)
}

// fetch is an HTTP request of a pod.
func (c *cluster) fetch(pod, url string) (string, error) {
	return c.exec(pod, "/podgate", "workload", "fetch", "--timeout", "3s", url)
}

// connect has a pod open a connection to each of some addresses.
func (c *cluster) connect(pod string, addrs ...string) (string, error) {
	for _, a := range addrs {
		if out, err := c.exec(pod, "/podgate", "workload", "connect", a, "--timeout", "3s"); err != nil {
			return out, err
		}
	}
	return strings.Join(addrs, " and ") + " accept", nil
}

// field is what a JSON path of an object says.
func (c *cluster) field(path string, object ...string) (string, error) {
	out, err := c.kubectl(append(append([]string{"get"}, object...), "-o", "jsonpath="+path)...)
	return strings.TrimSpace(out), err
}

// says is a proof that something prints all of some texts.
func says(what string, f func() (string, error), texts ...string) proof {
	return proof{what, func() (string, error) {
		out, err := f()
		for _, t := range texts {
			if err == nil && !strings.Contains(out, t) {
				err = fmt.Errorf("%q is not in %q", t, out)
			}
		}
		return out, err
	}}
}

// lines are those of a text with one of some words.
func lines(text string, words ...string) string {
	var kept []string
	for line := range strings.Lines(text) {
		for _, w := range words {
			if strings.HasPrefix(strings.TrimSpace(line), w) {
				kept = append(kept, strings.Join(strings.Fields(line), " "))
				break
			}
		}
	}
	return strings.Join(kept, ", ")
}

// kept is f, with the lines of interest of what it prints.
func kept(f func() (string, error), words ...string) func() (string, error) {
	return func() (string, error) {
		out, err := f()
		if err != nil {
			return out, err
		}
		return lines(out, words...), nil
	}
}

// denied is a proof that a command in a pod fails, and says why.
func denied(what string, f func() (string, error), text string) proof {
	return proof{what, func() (string, error) {
		out, err := f()
		if err == nil {
			return "", fmt.Errorf("it succeeds: %q", out)
		}
		if !strings.Contains(err.Error(), text) {
			return "", err
		}
		return lastLine(strings.ReplaceAll(out, "command terminated with exit code 1", "")), nil
	}}
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndex(text, "\n")+1:]
}

// rolledOut is a proof that workloads are there as they should be.
func (c *cluster) rolledOut(namespace string, workloads ...string) proof {
	return proof{"rolled out: " + strings.Join(workloads, ", "), func() (string, error) {
		for _, w := range workloads {
			if _, err := c.kubectl("rollout", "status", "-n", namespace, w, "--timeout=100s"); err != nil {
				return "", err
			}
		}
		return c.field(`{range .items[*]}{.metadata.name}={.status.podIP}@{.spec.nodeName} {end}`, "pods", "-n", namespace)
	}}
}

// shop is the example: Deployments behind Services and an Ingress, with policies.
func (c *cluster) shop() ([]proof, error) {
	for _, f := range []string{"namespaces", "policies", "db", "api", "web", "batch"} {
		if err := c.apply("shop/" + f + ".yaml"); err != nil {
			return nil, err
		}
	}
	front := func(n *node, at string) func() (string, error) {
		return kept(func() (string, error) { return n.fetch("http://"+at+"/", c, "--host", "shop.example") }, "pod", "client", "forwarded-for", "database", "upstream-error")
	}
	return []proof{
		says("nodes are ready", func() (string, error) {
			return c.field(`{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.spec.podCIDRs} {.status.nodeInfo.containerRuntimeVersion} {.status.nodeInfo.kubeletVersion}; {end}`, "nodes")
		}, "node-1 True", "node-2 True"),
		c.rolledOut("shop-data", "statefulset/db"),
		c.rolledOut("shop", "deployment/web", "deployment/api"),
		says("DNS: a Service by its short name", func() (string, error) { return c.exec("shop/batch", "nslookup", "web.shop.svc.cluster.local") }, "Address", "10.96."),
		says("DNS: an endpoint of a headless Service", func() (string, error) { return c.exec("shop/batch", "nslookup", "db-0.db.shop-data.svc.cluster.local") }, "10.244."),
		says("Service: batch asks web, which asks api, which asks db",
			kept(func() (string, error) { return c.fetch("shop/batch", "http://web/") }, "pod", "client", "database", "upstream-error"), "pod web", "pod api", "database db-0 answers"),
		denied("NetworkPolicy: batch may not ask api", func() (string, error) { return c.fetch("shop/batch", "http://api/") }, "deadline exceeded"),
		says("Ingress at node-1", front(node2, node1.addrs[0]), "pod web", "pod api"),
		says("Ingress at node-2", front(node1, node2.addrs[0]), "pod web", "pod api"),
		c.both("Ingress: both pods answer, whose policy admits the front doors of both nodes", node1.addrs[0], "--host", "shop.example"),
		says("kubectl get ingress: the address", func() (string, error) { return c.kubectl("get", "ingress", "-n", "shop", "--no-headers") }, node1.addrs[0]),
		says("kubectl get svc: the load balancer's address", func() (string, error) { return c.kubectl("get", "svc", "-n", "shop", "web-public", "--no-headers") }, node1.addrs[0]),
		says("kubectl logs", func() (string, error) { return c.kubectl("logs", "-n", "shop", "deployment/web") }, "http on"),
	}, nil
}

// pods are testdata/pods.yaml: probes of every kind, a host port, exec.
func (c *cluster) pods() ([]proof, error) {
	if err := c.apply("testdata/pods.yaml"); err != nil {
		return nil, err
	}
	ready := func() (string, error) {
		return c.field(`{.status.conditions[?(@.type=="Ready")].status} {.status.containerStatuses[0].restartCount}`, "pod", "probed")
	}
	endpoint := func() (string, error) {
		return c.field(`{range .items[*]}{.addressType}={.endpoints[*].conditions.ready} {end}`, "endpointslices", "-l", "kubernetes.io/service-name=probed")
	}
	return []proof{
		says("probes: TCP at the start, HTTP for liveness, a command for readiness", ready, "True 0"),
		says("probes: a liveness probe that fails restarts its container", func() (string, error) {
			out, err := c.field(`{.status.containerStatuses[0].restartCount}`, "pod", "sick")
			if n, _ := strconv.Atoi(out); err == nil && n < 1 {
				err = fmt.Errorf("restarts: %s", out)
			}
			return "restarts: " + out, err
		}),
		{"probes: a pod that says it is not ready is no endpoint", func() (string, error) {
			if _, err := c.exec("default/probed", "rm", "-f", "/tmp/ready"); err != nil {
				return "", err
			}
			out, err := endpoint()
			if err == nil && strings.Contains(out, "true") {
				err = errors.New(out)
			}
			if err != nil {
				return "", err
			}
			if _, err := c.fetch("default/far", "http://probed/"); err == nil || !strings.Contains(err.Error(), "refused") {
				return "", fmt.Errorf("its Service: %v", err)
			}
			return out + "; its Service refuses", nil
		}},
		{"probes: and becomes one again", func() (string, error) {
			if _, err := c.exec("default/probed", "touch", "/tmp/ready"); err != nil {
				return "", err
			}
			return c.fetch("default/far", "http://probed/hostname")
		}},
		says("hostPort, from the other node", func() (string, error) { return node2.fetch("http://"+node1.addrs[0]+":8088/hostname", c) }, "probed"),
		c.both("node port: a pod here and one on the other node", node1.addrs[0]+":30090"),
		c.both("load balancer: likewise", node1.addrs[0]+":8090"),
		{"pods of two nodes see each other's addresses", func() (string, error) {
			ip, err := c.field("{.status.podIPs[0].ip}", "pod", "far")
			if err != nil {
				return "", err
			}
			to, err := c.field("{.status.podIPs[0].ip}", "pod", "probed")
			if err != nil {
				return "", err
			}
			out, err := c.fetch("default/far", "http://"+to+":8080/clientip")
			if err == nil && !strings.HasPrefix(out, ip+":") {
				err = fmt.Errorf("%s sees %s, not %s", to, out, ip)
			}
			return to + " sees " + out, err
		}},
		{"and with IPv6", func() (string, error) {
			ip, err := c.field("{.status.podIPs[1].ip}", "pod", "far")
			if err != nil {
				return "", err
			}
			to, err := c.field("{.status.podIPs[1].ip}", "pod", "probed")
			if err != nil {
				return "", err
			}
			out, err := c.fetch("default/far", "http://["+to+"]:8080/clientip")
			if err == nil && !strings.HasPrefix(out, "["+ip+"]:") {
				err = fmt.Errorf("%s sees %s, not %s", to, out, ip)
			}
			return to + " sees " + out, err
		}},
		{"Service with IPv6", func() (string, error) {
			vip, err := c.field("{.spec.clusterIPs[1]}", "service", "probed")
			if err != nil {
				return "", err
			}
			out, err := c.fetch("default/far", "http://["+vip+"]/hostname")
			return vip + " is " + out, err
		}},
		{"a pod reaches the API server by its Service", func() (string, error) { return c.connect("default/far", "kubernetes.default:443") }},
		denied("kubectl exec: the exit code", func() (string, error) { return c.exec("default/far", "sh", "-c", "echo exits with 7; exit 7") }, "exit status 7"),
		{"kubectl port-forward", c.portForward},
	}, nil
}

// both is a proof that the two pods of a Service answer at an address, to the second
// node.
func (c *cluster) both(what, at string, args ...string) proof {
	return proof{what, func() (string, error) {
		seen := map[string]bool{}
		for range 40 {
			who, err := node2.fetch("http://"+at+"/hostname", c, args...)
			if err != nil {
				return "", err
			}
			seen[strings.TrimSpace(who)] = true
		}
		all := strings.Join(slices.Sorted(maps.Keys(seen)), " and ")
		if len(seen) != 2 {
			return "", fmt.Errorf("of 40 requests all were answered by %s", all)
		}
		return all, nil
	}}
}

// portForward asks a pod by a port of the first node's loopback.
func (c *cluster) portForward() (string, error) {
	p, err := c.spawn(node1, bin("kubectl"), "--kubeconfig", c.path("admin.kubeconfig"), "port-forward", "pod/far", "18080:8080")
	if err != nil {
		return "", err
	}
	c.processes = c.processes[:len(c.processes)-1]
	defer p.stop()
	return await(10*time.Second, func() (string, error) { return node1.fetch("http://127.0.0.1:18080/hostname", c) })
}

// nodes is about the nodes' own processes.
func (c *cluster) nodes() ([]proof, error) {
	vip, err := c.field("{.spec.clusterIP}", "service", "probed")
	if err != nil {
		return nil, err
	}
	proofs := []proof{
		says("a process of the node reaches a Service", kept(func() (string, error) { return node1.fetch("http://"+vip+"/", c) }, "pod", "client"), "probed"),
		says("a process of the other node too", kept(func() (string, error) { return node2.fetch("http://"+vip+"/", c) }, "pod", "client"), "probed"),
		says("a process of the node asks the cluster's DNS", func() (string, error) {
			return node1.run("busybox", "nslookup", "probed.default.svc.cluster.local", clusterDNS)
		}, vip),
		says("a pod with hostNetwork reaches a Service by its name", kept(func() (string, error) { return c.fetch("default/onhost", "http://probed/") }, "pod", "client"), "probed"),
		{"a pod reaches the kubelet of its node, and of the other one", func() (string, error) {
			return c.connect("default/far", node2.addrs[0]+":10250", node1.addrs[0]+":10250")
		}},
	}
	for _, n := range []*node{node1, node2} {
		proofs = append(proofs, proof{"no iptables, no nftables, no bridge on " + n.name, n.isBare})
	}
	return proofs, nil
}

// isBare says that the node's kernel translates and filters nothing, and has no
// interfaces but its own and podgate's.
func (n *node) isBare() (string, error) {
	for _, args := range [][]string{{"iptables-save"}, {"ip6tables-save"}, {"nft", "list", "ruleset"}} {
		if out, err := n.run(args...); err != nil || strings.TrimSpace(out) != "" {
			return "", fmt.Errorf("%v: %v: %q", args, err, out)
		}
	}
	out, err := n.run("ip", "-o", "-br", "link")
	var names []string
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "@")
		names = append(names, name)
	}
	if got := strings.Join(names, " "); err == nil && got != "lo eth0 podgate0" {
		err = fmt.Errorf("interfaces: %s", got)
	}
	return "interfaces: " + strings.Join(names, " "), err
}

// restarts are of gateways, while pods talk.
func (c *cluster) restarts() ([]proof, error) {
	again := func(n *node) func() error {
		return func() error {
			c.gateways[n].stop()
			return c.startGateway(n)
		}
	}
	return []proof{
		{"a connection outlives the server's gateway", func() (string, error) { return c.survives(again(node1)) }},
		{"and the client's", func() (string, error) { return c.survives(again(node2)) }},
	}, nil
}

// survives has a pod of the second node hold a connection to one of the first while
// f works.
func (c *cluster) survives(f func() error) (string, error) {
	ip, err := c.field("{.status.podIP}", "pod", "probed")
	if err != nil {
		return "", err
	}
	type said struct {
		out string
		err error
	}
	done := make(chan said, 1)
	go func() {
		out, err := c.exec("default/far", "sh", "-c", "rm -f /tmp/go; (echo before; until [ -e /tmp/go ]; do sleep 1; done; echo after; sleep 2) | nc "+ip+" 7000")
		done <- said{out, err}
	}()
	if _, err := await(30*time.Second, func() (string, error) { return c.exec("default/far", "sh", "-c", "[ ! -e /tmp/go ] && pidof nc") }); err != nil {
		return "", err
	}
	if err := f(); err != nil {
		return "", errFatal{err}
	}
	if _, err := c.exec("default/far", "touch", "/tmp/go"); err != nil {
		return "", err
	}
	got := <-done
	if got.err == nil && !(strings.Contains(got.out, "before") && strings.Contains(got.out, "after")) {
		got.err = errors.New(got.out)
	}
	return got.out, got.err
}

// daemonSet has the cluster run the gateways itself.
func (c *cluster) daemonSet() ([]proof, error) {
	for _, n := range []*node{node1, node2} {
		c.gateways[n].stop()
	}
	text, err := os.ReadFile(c.path("manifests/deploy/podgate.yaml"))
	if err != nil {
		return nil, err
	}
	named := strings.Replace(string(text), "image: podgate ", "image: "+gatewayImage+tag+" ", 1)
	named = strings.Replace(named, "# - {name: KUBERNETES_SERVICE_HOST, value: 192.0.2.1}", "- {name: KUBERNETES_SERVICE_HOST, value: "+node1.addrs[0]+"}", 1)
	named = strings.Replace(named, `# - {name: KUBERNETES_SERVICE_PORT`, `- {name: KUBERNETES_SERVICE_PORT`, 1)
	if err := os.WriteFile(c.path("daemonset.yaml"), []byte(named), 0o600); err != nil {
		return nil, err
	}
	if _, err := c.kubectl("apply", "-f", c.path("daemonset.yaml")); err != nil {
		return nil, err
	}
	vip, err := c.field("{.spec.clusterIP}", "service", "probed")
	if err != nil {
		return nil, err
	}
	both := strings.Join([]string{node1.addrs[0], node2.addrs[0]}, ",")
	return []proof{
		c.rolledOut("podgate-system", "daemonset/podgate"),
		says("pods that were there before go on", kept(func() (string, error) { return c.fetch("shop/batch", "http://web/") }, "pod", "client", "upstream-error"), "pod web", "pod api"),
		{"new pods are attached", func() (string, error) {
			if _, err := c.kubectl("rollout", "restart", "-n", "shop", "deployment/web"); err != nil {
				return "", errFatal{err}
			}
			out, err := c.kubectl("rollout", "status", "-n", "shop", "deployment/web", "--timeout=100s")
			return lastLine(out), err
		}},
		says("Ingress at node-2", kept(func() (string, error) { return node1.fetch("http://"+node2.addrs[0]+"/", c, "--host", "shop.example") }, "pod", "client"), "pod web", "pod api"),
		says("kubectl get ingress: the addresses of both gateways", func() (string, error) { return c.kubectl("get", "ingress", "-n", "shop", "--no-headers") }, both),
		says("kubectl get svc: likewise", func() (string, error) { return c.kubectl("get", "svc", "-n", "shop", "web-public", "--no-headers") }, both),
		says("a process of the node reaches a Service", func() (string, error) { return node1.fetch("http://"+vip+"/hostname", c) }, "probed"),
		c.both("load balancer at node-1", node1.addrs[0]+":8090"),
		c.both("load balancer at node-2", node2.addrs[0]+":8090"),
		{"the gateways log no refusals, and no ports that they cannot have", func() (string, error) {
			out, err := c.kubectl("logs", "-n", "podgate-system", "daemonset/podgate")
			if err == nil && (strings.Contains(out, "forbidden") || strings.Contains(out, "level=ERROR") || strings.Contains(out, "published port")) {
				err = errors.New(out)
			}
			return lastLine(out), err
		}},
		{"they roll, and a connection goes on", func() (string, error) {
			return c.survives(c.rollGateways)
		}},
	}, nil
}

// rollGateways restarts the DaemonSet's pods, one after the other.
func (c *cluster) rollGateways() error {
	_, err := c.kubectl("rollout", "restart", "-n", "podgate-system", "daemonset/podgate")
	if err == nil {
		_, err = c.kubectl("rollout", "status", "-n", "podgate-system", "daemonset/podgate", "--timeout=100s")
	}
	return err
}

// afterwards is what is left when everything was deleted.
func (c *cluster) afterwards() ([]proof, error) {
	if _, err := c.kubectl("delete", "namespace", "shop", "shop-data", "--timeout=120s"); err != nil {
		return nil, err
	}
	if _, err := c.kubectl("delete", "pods", "--all", "--timeout=120s"); err != nil {
		return nil, err
	}
	var proofs []proof
	for _, n := range []*node{node1, node2} {
		proofs = append(proofs, proof{"no attachment and no namespace is left on " + n.name, func() (string, error) {
			out, err := n.run("env", "XDG_RUNTIME_DIR=/run", c.path("podgate"), "get", "ports", "-o", "json")
			if err != nil {
				return "", errors.New(out)
			}
			var list []any
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				return "", err
			}
			namespaces, _ := n.run("sh", "-c", "ls /run/netns | wc -l")
			if strings.Contains(out, "eth0") || strings.TrimSpace(namespaces) != "0" {
				return "", fmt.Errorf("namespaces: %s, ports: %s", namespaces, out)
			}
			return "ports of podgate's own: " + strconv.Itoa(len(list)), nil
		}})
	}
	return proofs, nil
}
