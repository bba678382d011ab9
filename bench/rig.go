package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/link/ns"
	"podgate/stack/packet"
)

// system is one way from a client to a server, ready to be loaded.
type system struct {
	name           string
	mtu            int
	client, server *ns.NS
	target, listen netip.Addr // where the client sends, where the server is
	gateways       []int      // processes that forward; none: the kernel does
}

// title names the system and, where systems differ by it, its MTU.
func (s *system) title() string {
	if s.mtu == 0 {
		return s.name
	}
	return fmt.Sprintf("%s, MTU %d", s.name, s.mtu)
}

// rig is everything that one run sets up.
type rig struct {
	systems []*system
	missing []absence
	closers []func()
}

// absence is a system that could not be measured here.
type absence struct {
	System string `json:"system"`
	Why    string `json:"why"`
}

func (r *rig) close() {
	for i := len(r.closers) - 1; i >= 0; i-- {
		r.closers[i]()
	}
}

func (r *rig) ns(name string) (*ns.NS, error) {
	n, err := ns.New(name)
	if err == nil {
		r.closers = append(r.closers, func() { n.Close() })
	}
	return n, err
}

// hosts makes the two ends of a system. Connections come and go by the ten
// thousand, so that the client's ports must return quickly.
func (r *rig) hosts() (client, server *ns.NS, err error) {
	client, err1 := r.ns("client")
	server, err2 := r.ns("server")
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, err
	}
	return client, server, manyConnections(client)
}

// manyConnections makes ports return quickly.
func manyConnections(n *ns.NS) error {
	return errors.Join(
		n.Sysctl("net.ipv4.ip_local_port_range", "1024 65535"),
		n.Sysctl("net.ipv4.tcp_tw_reuse", "1"),
	)
}

const (
	bridgeName   = "kernel bridge"
	iptablesName = "kernel iptables DNAT"
)

// bridge is the yardstick: two namespaces on a kernel bridge.
func (r *rig) bridge(mtu int) error {
	client, server, err := r.hosts()
	if err != nil {
		return err
	}
	mid, err := r.ns("bridge")
	if err != nil {
		return err
	}
	s := &system{
		name: bridgeName, mtu: mtu, client: client, server: server,
		target: netip.MustParseAddr("10.244.0.5"), listen: netip.MustParseAddr("10.244.0.5"),
	}
	r.systems = append(r.systems, s)
	return errors.Join(
		wire(client, mid, "port0", mtu),
		wire(server, mid, "port1", mtu),
		mid.Bridge("br0", "port0", "port1"),
		mid.MTU("br0", mtu),
		client.Addr("eth0", netip.MustParsePrefix("10.244.0.4/16")),
		server.Addr("eth0", netip.MustParsePrefix("10.244.0.5/16")),
	)
}

// wire joins a host's eth0 with a port of a middle namespace.
func wire(host, mid *ns.NS, port string, mtu int) error {
	return errors.Join(
		ns.Veth(host, "eth0", mid, port),
		host.MTU("eth0", mtu),
		mid.MTU(port, mtu),
	)
}

// The addresses of the Service that the iptables rules and podgate translate.
var (
	serviceAddr = netip.MustParseAddr("10.96.0.80")
	everything  = netip.MustParsePrefix("0.0.0.0/0")
)

// rules are kube-proxy's in iptables mode for one Service with one endpoint, as
// for a client that must be masqueraded.
const rules = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BENCH - [0:0]
:KUBE-SEP-BENCH - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.80/32 -p tcp -j KUBE-SVC-BENCH
-A KUBE-SERVICES -d 10.96.0.80/32 -p udp -j KUBE-SVC-BENCH
-A KUBE-SVC-BENCH -j KUBE-MARK-MASQ
-A KUBE-SVC-BENCH -j KUBE-SEP-BENCH
-A KUBE-SEP-BENCH -p tcp -j DNAT --to-destination 10.244.2.5
-A KUBE-SEP-BENCH -p udp -j DNAT --to-destination 10.244.2.5
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// iptables is what a node with kube-proxy does: route, DNAT, masquerade.
func (r *rig) iptables(mtu int) error {
	restore, err := exec.LookPath("iptables-restore")
	if err != nil {
		r.absent(iptablesName, mtu, "iptables-restore is missing; install it: apt-get install -y iptables")
		return nil
	}
	client, server, mid, err := r.router(mtu)
	if err != nil {
		return err
	}
	cmd := mid.Command(restore)
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.absent(iptablesName, mtu, strings.TrimSpace(fmt.Sprintf("iptables-restore: %v: %s", err, out)))
		return nil
	}
	// Exists once the rules made connection tracking load.
	if err := mid.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1"); err != nil {
		return err
	}
	r.systems = append(r.systems, &system{
		name: iptablesName, mtu: mtu, client: client, server: server,
		target: serviceAddr, listen: netip.MustParseAddr("10.244.2.5"),
	})
	return nil
}

// router is a namespace in the kernel that routes between a client at 10.244.1.4
// and a server at 10.244.2.5.
func (r *rig) router(mtu int) (client, server, mid *ns.NS, err error) {
	client, server, err = r.hosts()
	if err != nil {
		return nil, nil, nil, err
	}
	if mid, err = r.ns("router"); err != nil {
		return nil, nil, nil, err
	}
	return client, server, mid, errors.Join(
		wire(client, mid, "port0", mtu),
		wire(server, mid, "port1", mtu),
		client.Addr("eth0", netip.MustParsePrefix("10.244.1.4/24")),
		server.Addr("eth0", netip.MustParsePrefix("10.244.2.5/24")),
		mid.Addr("port0", netip.MustParsePrefix("10.244.1.1/24")),
		mid.Addr("port1", netip.MustParsePrefix("10.244.2.1/24")),
		client.Route(everything, netip.MustParseAddr("10.244.1.1")),
		server.Route(everything, netip.MustParseAddr("10.244.2.1")),
		mid.Sysctl("net.ipv4.ip_forward", "1"),
	)
}

// feed runs a tool that loads rules from its stdin, and says what that took. It
// is given up after limit.
func feed(mid *ns.NS, limit time.Duration, rules string, tool string, args ...string) (time.Duration, error) {
	cmd := mid.Command(tool, args...)
	cmd.Stdin = strings.NewReader(rules)
	late := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer late.Stop()
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	switch {
	case took >= limit:
		return took, fmt.Errorf("the rules were not loaded within %s", limit)
	case err != nil:
		return took, fmt.Errorf("%s: %v: %.200s", filepath.Base(tool), err, strings.TrimSpace(string(out)))
	}
	return took, nil
}

// Kinds of pods' interfaces.
const (
	tapKind  = "TAP"
	tapNoUSO = "TAP without USO" // the pod's kernel cuts UDP_SEGMENT up
	tapSpin  = "TAP, spinning"   // the gateway looks for more for a while before it sleeps
)

func podToPod(kind string) string     { return "podgate pod to pod, " + kind }
func podToService(kind string) string { return "podgate pod to ClusterIP, " + kind }

// podgate is two pods on one gateway process, reached at the pod's address and
// at a Service's.
func (r *rig) podgate(kind string, mtu int) error {
	client, server, err := r.hosts()
	if err != nil {
		return err
	}
	g := gatewaySpec{Service: serviceAddr}
	if kind == tapSpin {
		g.Spin = spin
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for i, host := range []*ns.NS{client, server} {
		p := podSpec{Kind: kind, Name: host.Name, Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(4 + i)}), MTU: mtu}
		fd, err := r.eth0(host, kind, mtu)
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			r.absent(podToPod(kind), mtu, err.Error())
			r.absent(podToService(kind), mtu, err.Error())
			return nil
		}
		if err != nil {
			return err
		}
		files = append(files, os.NewFile(uintptr(fd), kind))
		err = errors.Join(
			host.MAC("eth0", p.mac()),
			host.Addr("eth0", netip.PrefixFrom(p.Addr, 16)),
			host.Route(everything, gatewayAddr),
		)
		if err != nil {
			return err
		}
		g.Pods = append(g.Pods, p)
	}
	pid, err := r.start(g, files)
	if err != nil {
		return err
	}
	pods := &system{
		name: podToPod(kind), mtu: mtu, client: client, server: server,
		target: g.Pods[1].Addr, listen: g.Pods[1].Addr, gateways: []int{pid},
	}
	service := *pods
	service.name, service.target = podToService(kind), serviceAddr
	if kind != tapSpin { // one row says it
		r.systems = append(r.systems, pods)
	}
	r.systems = append(r.systems, &service)
	return nil
}

// eth0 makes a pod's interface and returns the gateway's descriptor for it.
func (r *rig) eth0(host *ns.NS, kind string, mtu int) (fd int, err error) {
	if kind != "veth" {
		err = host.Do(func() error {
			fd, err = link.CreateTAP("eth0", mtu)
			return err
		})
		if err == nil && kind == tapNoUSO {
			const csumAndTSO = 0xf // of TUN_F_*
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, csumAndTSO)
		}
		return fd, err
	}
	outside, err := r.ns("outside")
	if err != nil {
		return -1, err
	}
	err = outside.Do(func() error {
		index, err := link.CreateVeth("pod", "eth0", host.FD(), mtu)
		if err == nil {
			fd, err = link.OpenPacketSocket(index)
		}
		return err
	})
	return fd, err
}

// start runs the gateway as a process of its own, which holds the descriptors.
func (r *rig) start(g gatewaySpec, files []*os.File) (pid int, err error) {
	spec, err := json.Marshal(g)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", "gateway", string(spec))
	cmd.ExtraFiles = files
	return r.run(cmd, cmd.Start)
}

// run starts a gateway's process, which ends with the rig.
func (r *rig) run(cmd *exec.Cmd, start func() error) (pid int, err error) {
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := start(); err != nil {
		return 0, fmt.Errorf("start the gateway: %w", err)
	}
	r.closers = append(r.closers, func() {
		in.Close() // is how the gateway learns to end
		cmd.Wait()
	})
	return cmd.Process.Pid, ready(bufio.NewReader(out), "the gateway")
}

func (r *rig) absent(name string, mtu int, why string) {
	r.missing = append(r.missing, absence{fmt.Sprintf("%s, MTU %d", name, mtu), why})
}

// podSpec and gatewaySpec tell the gateway process what it serves; descriptor
// 3+i belongs to pod i.
type podSpec struct {
	Kind string
	Name string
	Addr netip.Addr
	MTU  int
}

type gatewaySpec struct {
	Pods    []podSpec // the last one is behind the Service
	Service netip.Addr
	Egress  bool // has a way out by sockets
	Spin    time.Duration
}

func (p podSpec) mac() packet.MAC {
	a := p.Addr.As4()
	return packet.MAC{0x0a, 0x58, a[0], a[1], a[2], a[3]}
}

func (p podSpec) open(fd int) (link.Device, error) {
	if p.Kind == "veth" {
		return link.OpenVethFD(fd, p.Name)
	}
	return link.OpenTAPFD(fd, p.Name)
}

// scratch makes a directory for a run's files, which also goes when the run is
// interrupted: its processes end with this one, files do not.
func scratch() (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp("", "podgate-bench-"); err != nil {
		return "", nil, err
	}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case <-stopped:
			os.RemoveAll(dir)
			os.Exit(130)
		case <-done:
		}
	}()
	return dir, func() {
		signal.Stop(stopped)
		close(done)
		os.RemoveAll(dir)
	}, nil
}
