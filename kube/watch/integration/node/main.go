// Command node runs a whole cluster of two nodes on this machine and proves that
// podgate is all the network that it needs: etcd, kube-apiserver, controller
// manager, scheduler, and on each node containerd, runc, a kubelet, podgate-cni
// and `podgate gateway`; no bridge, no kube-proxy, no CoreDNS, no iptables.
//
//	apt-get install -y --no-install-recommends busybox-static containerd containernetworking-plugins etcd-server iptables nftables runc
//	cd kube/watch/integration && go run ./node
//
// With the argument "rootless" it is one node, set up as examples/rootless-cluster
// says: containerd, the kubelet and the gateway belong to an ordinary user.
//
// It prints a line for each proof, and exits with 1 if one failed. Kubernetes is
// built once by build.sh. It has to be root: a kubelet is.
//
// # Theory of operation
//
// There are three processes of this program. The one that the user started
// builds, starts the second and, however that ends, removes what outlives
// processes: a temporary folder and control groups. The second is the first
// process of a PID namespace and starts all others, so that its end is theirs,
// the containers' and their shims' too. The third kind is a node (node.go): it
// holds the network, mount and UTS namespaces that the programs of a node are
// entered into. Nothing has an uplink, all mounts end with their namespaces, and
// paths such as /run and /var/lib are folders of the node's own in there.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	prefix = "podgate-node-" // of the temporary folder and of control groups
	binEnv = "PODGATE_TEST_KUBERNETES"
)

func main() {
	runtime.LockOSThread() // children end with the thread that started them
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "inside":
		err = inside(os.Args[2], os.Args[3] == "rootless")
	case len(os.Args) == 4 && os.Args[1] == "node":
		err = beNode(os.Args[2], os.Args[3])
	case len(os.Args) == 1:
		err = outside("root")
	case len(os.Args) == 2 && os.Args[1] == "rootless":
		err = outside("rootless")
	default:
		err = errors.New("usage: go run ./node [rootless]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

// outside builds, runs the second process, and cleans up after it.
func outside(mode string) error {
	if os.Getuid() != 0 {
		return errors.New("this needs root, as a kubelet does; see examples/rootless-cluster for one without")
	}
	for tool, debian := range map[string]string{
		"busybox": "busybox-static", "containerd": "containerd", "etcd": "etcd-server", "iptables-save": "iptables",
		"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "runc": "runc", loopback: "containernetworking-plugins",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install -y --no-install-recommends %s", tool, debian)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return err
	}
	group := filepath.Base(dir)
	defer func() {
		if err := errors.Join(removeGroups(group), os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "node: left behind:", err)
		}
	}()
	bin, err := build(ctx, dir)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "inside", dir, mode)
	cmd.Env = append(os.Environ(), binEnv+"="+bin)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Setpgid: true, Pdeathsig: syscall.SIGKILL,
	}
	begin, err := cmd.StdinPipe() // it waits for the end of it
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = makeGroups(group, cmd.Process.Pid)
	begin.Close()
	if err != nil {
		cmd.Process.Kill()
		return errors.Join(err, cmd.Wait())
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		cmd.Process.Kill()
		<-done
		err = context.Cause(ctx)
	}
	return err
}

// build makes Kubernetes' programs, and podgate's in dir.
func build(ctx context.Context, dir string) (bin string, err error) {
	kubernetes := exec.CommandContext(ctx, "./build.sh", "kube-scheduler", "kubelet")
	kubernetes.Stderr = os.Stderr
	out, err := kubernetes.Output()
	if err != nil {
		return "", fmt.Errorf("build.sh: %w; this program runs in its folder, kube/watch/integration", err)
	}
	for _, command := range []string{"podgate", "podgate-cni"} {
		compile := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, command), "./cmd/"+command)
		compile.Dir = "../../.."
		compile.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := compile.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", command, err, out)
		}
	}
	for _, f := range []string{"examples/shop", "examples/rootless-cluster", "deploy", "kube/watch/integration/node/testdata"} {
		if err := os.CopyFS(filepath.Join(dir, "manifests", filepath.Base(f)), os.DirFS(filepath.Join("../../..", f))); err != nil {
			return "", err
		}
	}
	return strings.TrimSpace(string(out)), nil
}

// controllers are the folders of version 1's control groups that are mounted.
func controllers() (dirs []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		if fields := strings.Fields(before); len(fields) > 4 && strings.HasPrefix(after, "cgroup") && !slices.Contains(dirs, fields[4]) {
			dirs = append(dirs, fields[4])
		}
	}
	return dirs
}

// makeGroups gives a process, and with it all that it starts, control groups of
// its own, with one below for the pods of each node.
func makeGroups(name string, pid int) error {
	for _, root := range controllers() {
		dir := root
		for _, part := range []string{name, node1.name, node2.name} {
			if part == name {
				dir = filepath.Join(root, name)
			} else {
				dir = filepath.Join(root, name, part)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new one
				if above, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file)); err == nil && filepath.Base(root) == "cpuset" {
					if err := os.WriteFile(filepath.Join(dir, file), above, 0); err != nil {
						return err
					}
				}
			}
		}
		if err := os.WriteFile(filepath.Join(root, name, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
			return err
		}
	}
	return nil
}

// removeGroups removes control groups whose processes are ending.
func removeGroups(name string) (err error) {
	for _, root := range controllers() {
		var dirs []string
		filepath.WalkDir(filepath.Join(root, name), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, dir := range dirs {
			e := os.Remove(dir)
			for deadline := time.Now().Add(10 * time.Second); errors.Is(e, syscall.EBUSY) && time.Now().Before(deadline); e = os.Remove(dir) {
				time.Sleep(20 * time.Millisecond)
			}
			err = errors.Join(err, e)
		}
	}
	return err
}

// inside is the second process: the cluster and its proofs.
func inside(dir string, rootless bool) error {
	io.Copy(io.Discard, os.Stdin)
	if err := mount("proc", "/proc", "proc", 0); err != nil {
		return err
	}
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE); err != nil {
		return err
	}
	c := &cluster{dir: dir}
	defer c.stop()
	start, parts := c.start, []part{
		{"podgate gateway as a service of the nodes", c.shop},
		{"pods, probes and ports", c.pods},
		{"the nodes themselves", c.nodes},
		{"restarts", c.restarts},
		{"deploy/podgate.yaml instead of the services", c.daemonSet},
		{"afterwards", c.afterwards},
	}
	if rootless {
		start, parts = c.rootless, []part{{"a node and a gateway without root", c.rootlessProofs}}
	}
	if err := start(); err != nil {
		c.tails()
		return err
	}
	if failed := prove(parts...); failed > 0 {
		c.tails()
		return fmt.Errorf("%d proofs failed", failed)
	}
	return nil
}

func mount(source, target, kind string, flags uintptr) error {
	if err := syscall.Mount(source, target, kind, flags, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
