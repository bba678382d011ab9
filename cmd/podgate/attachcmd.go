package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podgate/cni"
	"podgate/control"
	"podgate/stack/link"
)

// enteredEnv is the instance's socket, for the command as it runs again within a
// user namespace: there the user has another number.
const enteredEnv = "PODGATE_ATTACH_SOCKET"

func newAttachCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attach [NS/]NAME (--netns PATH | --pid PID | --socket KIND:PATH | --pcap FILE)",
		Short: "Make a pod of a network namespace that somebody else made",
		Long: `Make a pod of a network namespace that somebody else made: a container's, a
virtual machine's, or one of "ip netns" or "unshare -Urn"; or of the network card of
a virtual machine, which gets its addresses by DHCP and router advertisements. It gets an interface and
addresses, and is in Services, policies and names like any pod, until
"podgate detach" or the end of the instance. What runs in it is not podgate's.

With --pcap a pod is made of a capture (pcapng or pcap): it sends what one
sender of it sent, at the pace of then or with --fast at once, with the addresses
of then or, where these are not free, with others. What it is answered goes
nowhere. When all is sent the command says what became of it and takes the
pod away, or with --keep leaves it for "podgate flows" and "podgate trace".

It takes the right to make interfaces in the namespace: be root, or the user who
made the user namespace that it belongs to (then with --pid).`,
		Example: `  podgate attach vpn --netns /run/netns/vpn
  podgate attach shop/web-9 --pid 4711 --labels app=web --ip 10.244.9.9
  podgate attach again --pcap web.pcapng --fast
  podgate detach vpn`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	ns := f.StringP("namespace", "n", "default", "namespace of the pod")
	netns := f.String("netns", "", "network namespace, as a `PATH`")
	pid := f.Int("pid", 0, "network namespace of the process `PID`")
	var q control.AttachRequest
	f.StringVar(&q.IfName, "ifname", "eth0", "`NAME` of the interface")
	f.StringToStringVarP(&q.Labels, "labels", "l", nil, "labels of the pod, `K=V,...`")
	ips := f.StringSlice("ip", nil, "`ADDRESS`es, instead of those that are free")
	f.StringVar(&q.MAC, "mac", "", "Ethernet `ADDRESS`, instead of one that follows from the IP address")
	f.IntVar(&q.MTU, "mtu", 0, "of the interface, in `BYTES`; pods.mtu")
	f.StringVar(&q.Kind, "kind", "", "`tap` or veth; a TAP where /dev/net/tun can be opened")
	socket := f.String("socket", "", "of a virtual machine: `stream:PATH or dgram:PATH` of a unix socket that podgate is to make")
	var play replay
	f.StringVar(&play.file, "pcap", "", "capture that the pod's frames are taken of, a `FILE`")
	f.StringVar(&play.from, "from", "", "with --pcap: the sender, by its MAC `ADDRESS`; who sent first")
	f.BoolVar(&play.fast, "fast", false, "with --pcap: as fast as possible")
	f.BoolVar(&play.keep, "keep", false, "with --pcap: leave the pod attached at the end")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.Namespace, q.Pod = podName(*ns, args[0])
		given := 0
		for _, g := range []bool{*netns != "", *pid != 0, *socket != "", play.file != ""} {
			if g {
				given++
			}
		}
		switch {
		case given != 1:
			return usageError{errors.New("attach: give one of --netns PATH, --pid PID, --socket KIND:PATH and --pcap FILE")}
		case play.file == "" && (play.fast || play.keep || play.from != ""):
			return usageError{errors.New("attach: --from, --fast and --keep are for --pcap FILE")}
		case play.file != "" && q.Kind != "":
			return usageError{errors.New("attach: --kind is not for --pcap FILE")}
		case play.file != "":
			q.Kind = link.Dgram
		case *socket != "":
			kind, path, _ := strings.Cut(*socket, ":")
			if kind != link.Stream && kind != link.Dgram || path == "" {
				return usageError{fmt.Errorf("attach: --socket %q: must be stream:PATH or dgram:PATH", *socket)}
			}
			path, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			q.Kind, q.Netns = kind, path
		case *pid != 0:
			q.Netns = fmt.Sprintf("/proc/%d/ns/net", *pid)
		default:
			var err error
			if q.Netns, err = filepath.Abs(*netns); err != nil {
				return err
			}
		}
		for _, s := range *ips {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return usageError{fmt.Errorf("attach: --ip: %w", err)}
			}
			q.Addrs = append(q.Addrs, a)
		}
		q.Container = q.Namespace + "/" + q.Pod
		if play.file != "" {
			return play.attach(cmd, q)
		}
		if *socket != "" {
			return attachSocket(cmd, q)
		}
		return attachByHand(cmd, q, *pid)
	}
	return cmd
}

// podName splits NS/NAME.
func podName(namespace, arg string) (ns, name string) {
	if ns, name, ok := strings.Cut(strings.TrimPrefix(arg, "pod/"), "/"); ok {
		return ns, name
	}
	return namespace, strings.TrimPrefix(arg, "pod/")
}

// byHandTime bounds an attachment by hand.
const byHandTime = 30 * time.Second

func attachByHand(cmd *cobra.Command, q control.AttachRequest, pid int) error {
	c, name, err := client(cmd)
	if err != nil {
		return err
	}
	if s := os.Getenv(enteredEnv); s != "" {
		c = control.NewClient(s)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), byHandTime)
	defer cancel()
	iface := cni.Interface{Netns: q.Netns, Name: q.IfName, Owner: q.Container}
	exists, err := iface.Exists()
	switch {
	case errors.Is(err, unix.EPERM) && pid != 0 && os.Getenv(enteredEnv) == "":
		return enter(pid, control.SocketPath(name))
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; it takes root, or with --pid the user who made its user namespace", err)
	case err != nil:
		return err
	case exists:
		return fmt.Errorf("there is an interface %s in %s already; choose another with --ifname", q.IfName, q.Netns)
	}
	var plan control.AttachPlan
	var nic control.NIC
	err = c.Attach(ctx, q, func(p control.AttachPlan) (_ control.NIC, err error) {
		plan = p
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return nic, err
		}
		shape := cni.Shape{MAC: mac, MTU: p.MTU, Kind: p.Kind, Addrs: p.Addrs}
		for _, gw := range p.Gateways {
			any := netip.IPv6Unspecified()
			if gw.Is4() {
				any = netip.IPv4Unspecified()
			}
			shape.Routes = append(shape.Routes, cni.Route{Dst: netip.PrefixFrom(any, 0), Gateway: gw})
		}
		nic, err = iface.Create(shape)
		return nic, err
	})
	if nic.File != nil {
		nic.File.Close()
		if err != nil {
			err = errors.Join(err, iface.Remove())
		}
	}
	if err != nil {
		return explain(err, name)
	}
	return sayAttached(cmd, q, plan, nic.Kind)
}

func sayAttached(cmd *cobra.Command, q control.AttachRequest, plan control.AttachPlan, kind string) error {
	var addrs []string
	for _, p := range plan.Addrs {
		addrs = append(addrs, p.Addr().String())
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "pod/%s attached in namespace %s: %s %s (%s)\n", q.Pod, q.Namespace, q.IfName, strings.Join(addrs, " "), kind)
	return err
}

// attachSocket makes a socket that a virtual machine's card connects to.
func attachSocket(cmd *cobra.Command, q control.AttachRequest) error {
	c, name, err := client(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), byHandTime)
	defer cancel()
	f, err := link.ListenQEMU(q.Kind, q.Netns)
	if err != nil {
		return err
	}
	defer f.Close()
	var plan control.AttachPlan
	err = c.Attach(ctx, q, func(p control.AttachPlan) (control.NIC, error) {
		plan = p
		return control.NIC{Kind: q.Kind, File: f}, nil
	})
	if err != nil {
		return errors.Join(explain(err, name), os.Remove(q.Netns))
	}
	if err := sayAttached(cmd, q, plan, q.Kind+" socket "+q.Netns); err != nil {
		return err
	}
	peer := "-netdev stream,id=n0,server=off,addr.type=unix,addr.path=" + q.Netns
	if q.Kind == link.Dgram {
		peer = "-netdev dgram,id=n0,local.type=unix,local.path=" + q.Netns + ".vm,remote.type=unix,remote.path=" + q.Netns
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "for QEMU: %s -device virtio-net-pci,netdev=n0,mac=%s\n", peer, plan.MAC)
	return err
}

// enter runs the command again within the user namespace of a process: a program
// with threads, as this one is, cannot go there by itself.
func enter(pid int, socket string) error {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return errors.New("to enter the user namespace nsenter is needed; install it: apt-get install -y util-linux")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append([]string{"nsenter", "-t", strconv.Itoa(pid), "-U", "--preserve-credentials", "--", self}, os.Args[1:]...)
	return syscall.Exec(nsenter, args, append(os.Environ(), enteredEnv+"="+socket))
}

func newDetachCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "detach [NS/]NAME",
		Short:   "End what `podgate attach` made",
		Example: `  podgate detach shop/web-9`,
		Args:    cobra.ExactArgs(1),
	}
	ns := cmd.Flags().StringP("namespace", "n", "default", "namespace of the pod")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		namespace, name := podName(*ns, args[0])
		c, instance, err := client(cmd)
		if err != nil {
			return err
		}
		list, err := c.Attached(cmd.Context())
		if err != nil {
			return explain(err, instance)
		}
		i := slices.IndexFunc(list, func(a control.Attachment) bool {
			return a.Request.Namespace == namespace && a.Request.Pod == name
		})
		switch {
		case i < 0:
			return fmt.Errorf("pod %s/%s is not attached from outside", namespace, name)
		case list[i].Request.Network != "":
			return fmt.Errorf("pod %s/%s was attached by CNI, in the network %s: its runtime detaches it", namespace, name, list[i].Request.Network)
		}
		q := list[i].Request
		err = c.Call(cmd.Context(), "detach", control.DetachRequest{Container: q.Container, IfName: q.IfName}, new(control.DetachResult))
		if err != nil {
			return explain(err, instance)
		}
		// It goes with its descriptor, but at once only if we may.
		_ = cni.Interface{Netns: q.Netns, Name: q.IfName, Owner: q.Container}.Remove()
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "pod/%s detached from namespace %s\n", name, namespace)
		return err
	}
	return cmd
}
