package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podgate/stack/link/ns"
)

// The egress benchmark
//
// A pod talks to a server beyond the host through a TCP/IP stack in user space,
// which ends its connections and dials them again: podgate, and the peers that
// do the same, each at the MTUs that it takes. All use one server, in a namespace
// of its own behind one veth, and the kernel's routing is shown beside them. The
// best of the peers is the yardstick.

const (
	bestPeer     = "best peer"
	kernelRouted = "kernel, routed"
	egressMTU    = 65520
)

func egressName(system string, mtu int) string { return fmt.Sprintf("%s, MTU %d", system, mtu) }

var (
	outsideHost   = netip.MustParsePrefix("192.0.2.1/24")
	outsideServer = netip.MustParsePrefix("192.0.2.2/24")
)

var egressMetrics = []metric{
	{
		id: "up", title: "up", unit: "Gb/s", load: "stream", port: 5001, streams: 1,
		value: func(s sample) float64 { return float64(s.Count) * 8 / s.Seconds / 1e9 },
	},
	{
		id: "down", title: "down", unit: "Gb/s", load: "fetch", port: 5002, streams: 1,
		value: func(s sample) float64 { return float64(s.Count) * 8 / s.Seconds / 1e9 },
	},
	{
		id: "conn", title: "connections", unit: "k/s", load: "connect", port: 5003, streams: 1,
		value: func(s sample) float64 { return float64(s.Count) / s.Seconds / 1e3 },
	},
	{
		id: "rr", title: "RR, one CPU, p50", unit: "us", load: "rr", port: 5004, streams: 1, oneCPU: true, smaller: true,
		value: func(s sample) float64 { return s.P50 },
	},
}

func egress(o options) (result, error) {
	dir, remove, err := scratch()
	if err != nil {
		return nil, err
	}
	defer remove()
	e := &egressRig{rig: new(rig), dir: dir}
	defer e.close()
	if err := e.outside(); err != nil {
		return nil, err
	}
	for _, err := range []error{
		e.routed(),
		e.podgate(1500), e.podgate(egressMTU),
		e.slirp(1500), e.slirp(egressMTU),
		e.pasta(1500), e.pasta(egressMTU),
		e.gvproxy(),
	} {
		if err != nil {
			return nil, err
		}
	}
	p := o.plan()
	rep := newReport("egress", p, e.missing)
	rep.metrics, rep.yardstick = egressMetrics, bestPeer
	rounds(e.rig, rep, o, p)
	rep.best(bestPeer, func(name string) bool {
		return name == egressName("slirp4netns", 1500) || name == egressName("slirp4netns", egressMTU) ||
			name == egressName("pasta", 1500) || name == egressName("pasta", egressMTU) || name == egressName("gvproxy", 1500)
	})
	rep.finish()
	return rep, nil
}

// egressRig has a host, where the stacks in user space run, and a server behind it.
type egressRig struct {
	*rig
	dir          string
	host, server *ns.NS
}

func (e *egressRig) outside() error {
	var err1, err2 error
	e.host, err1 = e.ns("host")
	e.server, err2 = e.ns("server")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return errors.Join(
		ns.Veth(e.host, "up0", e.server, "eth0"),
		e.host.Addr("up0", outsideHost), e.server.Addr("eth0", outsideServer),
		e.host.Route(everything, outsideServer.Addr()), // pasta looks for the way out
		manyConnections(e.host), manyConnections(e.server),
	)
}

// pod makes a namespace for a system.
func (e *egressRig) pod(name string) (*ns.NS, error) {
	n, err := e.ns(name)
	if err != nil {
		return nil, err
	}
	return n, manyConnections(n)
}

func (e *egressRig) add(name string, pod *ns.NS, pids ...int) {
	e.systems = append(e.systems, &system{
		name: name, client: pod, server: e.server,
		target: outsideServer.Addr(), listen: outsideServer.Addr(), gateways: pids,
	})
}

// routed is what the kernel does with root's help, without masquerade.
func (e *egressRig) routed() error {
	pod, err := e.pod(kernelRouted)
	if err != nil {
		return err
	}
	e.add(kernelRouted, pod)
	return errors.Join(
		ns.Veth(pod, "eth0", e.host, "down0"),
		pod.Addr("eth0", netip.MustParsePrefix("10.0.1.2/24")), e.host.Addr("down0", netip.MustParsePrefix("10.0.1.1/24")),
		pod.Route(everything, netip.MustParseAddr("10.0.1.1")),
		e.host.Sysctl("net.ipv4.ip_forward", "1"),
		e.server.Route(netip.MustParsePrefix("10.0.1.0/24"), outsideHost.Addr()),
	)
}

func (e *egressRig) podgate(mtu int) error {
	name := egressName("podgate", mtu)
	pod, err := e.pod(name)
	if err != nil {
		return err
	}
	p := podSpec{Kind: "TAP", Name: "pod", Addr: netip.MustParseAddr("10.244.0.4"), MTU: mtu}
	fd, err := e.eth0(pod, p.Kind, mtu)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		e.missing = append(e.missing, absence{name, err.Error()})
		return nil
	}
	if err != nil {
		return err
	}
	tap := os.NewFile(uintptr(fd), "tap")
	defer tap.Close()
	err = errors.Join(
		pod.MAC("eth0", p.mac()),
		pod.Addr("eth0", netip.PrefixFrom(p.Addr, 16)),
		pod.Route(everything, gatewayAddr),
	)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(gatewaySpec{Pods: []podSpec{p}, Service: serviceAddr, Egress: true})
	if err != nil {
		return err
	}
	cmd := e.host.Command("/proc/self/exe", "gateway", string(spec))
	cmd.ExtraFiles = []*os.File{tap}
	pid, err := e.run(cmd.Cmd, cmd.Start)
	if err == nil {
		e.add(name, pod, pid)
	}
	return err
}

// podNS is the pod's namespace as a peer may open it: it inherits the descriptor,
// since one that has left its privileges behind cannot look into our /proc.
const podNS = "/proc/self/fd/3"

func (e *egressRig) slirp(mtu int) error {
	return e.peer("slirp4netns", "slirp4netns", mtu, "-c", "-m", fmt.Sprint(mtu), "--netns-type=path", podNS, "eth0")
}

func (e *egressRig) pasta(mtu int) error {
	return e.peer("pasta", "passt", mtu,
		"-f", "--runas", "0", "--netns", podNS, "--config-net", "-m", fmt.Sprint(mtu), "-I", "eth0",
		"-4", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "-t", "none", "-u", "none", "-T", "none", "-U", "none")
}

// peer runs a program of a Debian package, which makes and sets up the pod's
// eth0 itself.
func (e *egressRig) peer(program, pkg string, mtu int, args ...string) error {
	name := egressName(program, mtu)
	exe, err := exec.LookPath(program)
	if err != nil {
		e.missing = append(e.missing, absence{name, fmt.Sprintf("%s is missing; install it: apt-get install -y %s", program, pkg)})
		return nil
	}
	pod, err := e.pod(name)
	if err != nil {
		return err
	}
	namespace, err := unix.FcntlInt(uintptr(pod.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	inherited := os.NewFile(uintptr(namespace), name)
	defer inherited.Close()
	cmd := e.host.Command(exe, args...)
	cmd.ExtraFiles = []*os.File{inherited}
	pid, err := e.background(cmd)
	if err != nil {
		return err
	}
	if err := e.reaches(pod); err != nil {
		e.missing = append(e.missing, absence{name, err.Error()})
		return nil
	}
	e.add(name, pod, pid)
	return nil
}

// gvproxy is built from its module, and its forwarder in the pod with it.
func (e *egressRig) gvproxy() error {
	const mtu = 1500
	name := egressName("gvproxy", mtu)
	const module = "github.com/containers/gvisor-tap-vsock/cmd/"
	build := exec.Command("go", "build", "-o", e.dir+"/", module+"gvproxy", module+"vm")
	build.Dir, build.Env = "bench/peers/gvproxy", append(os.Environ(), "GOPROXY=off", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		e.missing = append(e.missing, absence{name, "cannot be built: run `go mod download` in bench/peers/gvproxy (" + firstLine(out) + ")"})
		return nil
	}
	pod, err := e.pod(name)
	if err != nil {
		return err
	}
	err = pod.Do(func() error {
		tap := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS}
		tap.Name = "eth0"
		return netlink.LinkAdd(tap)
	})
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		e.missing = append(e.missing, absence{name, err.Error()})
		return nil
	}
	err = errors.Join(err,
		pod.MAC("eth0", [6]byte{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}), // whom its DHCP would give this address
		pod.Addr("eth0", netip.MustParsePrefix("192.168.127.2/24")),
		pod.Route(everything, netip.MustParseAddr("192.168.127.1")),
	)
	if err != nil {
		return err
	}
	socket := filepath.Join(e.dir, "gvproxy.sock")
	proxy, err := e.background(e.host.Command(filepath.Join(e.dir, "gvproxy"), "-listen", "unix://"+socket, "-ssh-port", "-1"))
	if err != nil {
		return err
	}
	vm, err := e.background(pod.Command(filepath.Join(e.dir, "vm"), "-url", "unix://"+socket, "-iface", "eth0", "-preexisting", "-stop-if-exist", "", "-mtu", fmt.Sprint(mtu)))
	if err != nil {
		return err
	}
	if err := e.reaches(pod); err != nil {
		e.missing = append(e.missing, absence{name, err.Error()})
		return nil
	}
	e.add(name, pod, proxy, vm)
	return nil
}

// background starts a peer, which ends with the rig.
func (e *egressRig) background(cmd *ns.Cmd) (pid int, err error) {
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	e.closers = append(e.closers, func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid, nil
}

// reaches waits until a peer carries a connection to a port of the server where
// something listens.
func (e *egressRig) reaches(pod *ns.NS) error {
	o := order{what: "connect", addr: netip.AddrPortFrom(outsideServer.Addr(), 5000).String(), streams: 1, cpu: -1}
	server, err := begin(e.server, "agent-serve", o)
	if err != nil {
		return err
	}
	defer server.kill()
	if err := ready(server.out, "the server"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		o.window = time.Millisecond
		client, err := begin(pod, "agent-load", o)
		if err != nil {
			return err
		}
		select {
		case <-client.ended:
		case <-ctx.Done():
		}
		ok := ctx.Err() == nil && client.ProcessState.Success()
		client.kill()
		if ok {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("carries nothing after 10 s: %s", client.complaint())
		}
		time.Sleep(100 * time.Millisecond)
	}
}
