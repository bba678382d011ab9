package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// node is a machine of the cluster: network, mount and UTS namespaces.
type node struct {
	name  string
	addrs [2]string // IPv4 and IPv6
	pid   int       // of a process in it
	hold  io.Closer // what that process waits for: it ends when this is collected
}

var (
	node1 = &node{name: "node-1", addrs: [2]string{"192.0.2.10", "2001:db8::10"}}
	node2 = &node{name: "node-2", addrs: [2]string{"192.0.2.11", "2001:db8::11"}}
)

// ownFolders are a node's own: what its programs write by default, and what
// deploy/podgate.yaml mounts of the host.
var ownFolders = []string{"/var/lib/kubelet", "/var/lib/cni", "/var/lib/podgate", "/var/log", "/etc/cni", "/opt"}

// tunables are what a kubelet would set for the whole machine: it finds them set.
var tunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// beNode makes the namespaces that it is in a node's, says so, and keeps them
// until its input ends.
func beNode(name, dir string) error {
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return err
	}
	// Shared within the node only, for pods that want to see new mounts of it.
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE); err != nil {
		return err
	}
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", 0); err != nil {
		return err
	}
	for _, target := range ownFolders {
		source := filepath.Join(dir, name, target)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount(source, target, "", syscall.MS_BIND); err != nil {
			return err
		}
	}
	for key, value := range tunables {
		file := filepath.Join(dir, name, filepath.Base(key))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, filepath.Join("/proc/sys", key), "", syscall.MS_BIND); err != nil {
			return err
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("lo: %w: %s", err, out)
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte("1"), 0); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// start makes the node.
func (n *node) start(dir string) error {
	cmd := exec.Command("/proc/self/exe", "node", n.name, dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS}
	var err error
	if n.hold, err = cmd.StdinPipe(); err != nil {
		return err
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	n.pid = cmd.Process.Pid
	if _, err := io.ReadFull(said, make([]byte, len("ready\n"))); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	return nil
}

// join makes the link between two nodes.
func join(a, b *node) error {
	if out, err := a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(b.pid)); err != nil {
		return fmt.Errorf("link: %w: %s", err, out)
	}
	for _, n := range []*node{a, b} {
		for _, args := range [][]string{
			{"ip", "addr", "add", n.addrs[0] + "/24", "dev", "eth0"},
			{"ip", "addr", "add", n.addrs[1] + "/64", "dev", "eth0", "nodad"},
			{"ip", "link", "set", "eth0", "up"},
		} {
			if out, err := n.run(args...); err != nil {
				return fmt.Errorf("%s: %v: %w: %s", n.name, args, err, out)
			}
		}
	}
	return nil
}

// command is a program in the node. (`ip netns exec` would hide control groups.)
func (n *node) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(n.pid), "-m", "-n", "-u"}, args...)...)
}

func (n *node) run(args ...string) (string, error) {
	out, err := n.command(args...).CombinedOutput()
	return string(out), err
}
