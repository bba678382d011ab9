package pod

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
	"podgate/stack/packet"
)

// The kinds of NIC.
const (
	TAP  = "tap"  // eth0 is a TAP device, FD its descriptor with vnet_hdr turned on
	Veth = "veth" // eth0 is one end of a veth, FD an AF_PACKET socket on the other
)

// NIC is the gateway's end of one of a pod's interfaces.
type NIC struct {
	Kind  string // TAP or Veth
	FD    int    // owned by the receiver, who closes it to give the link up
	Name  string // in the pod: eth0, net1
	MAC   packet.MAC
	MTU   int // bytes of IP packet
	Addrs []netip.Addr

	Network   *kube.Network // nil: the cluster's own
	Secondary bool          // not the pod's first
	Default   bool          // the pod's default route leads here
}

// Config is what a Runtime needs to know. Dir, Attach, Detach, Status, Gone and
// Dial are required; everything else has a default.
//
// The functions are called from many goroutines at once.
type Config struct {
	Dir string       // the instance's runtime directory, existing, mode 0700, an absolute path
	Log *slog.Logger // slog.DiscardHandler if nil

	Images        map[string][]string // image to the command that stands for it
	Gateway       []netip.Addr        // the node's addresses: default routes, and hostIP
	PodCIDRs      []netip.Prefix      // on-link prefixes of eth0
	Nameservers   []netip.Addr        // ClusterIPs of the cluster's DNS Service
	ClusterDomain string              // "cluster.local"
	NodeName      string              // "podgate"
	MTU           int                 // of interfaces whose network says nothing, bytes; 65520
	NICKind       string              // TAP or Veth to insist on one; empty takes a TAP where /dev/net/tun opens

	Exe  string // program that is re-executed as the keeper; /proc/self/exe
	Self string // program that pods find as "podgate" on their PATH; os.Executable()

	// Lock, if not nil, is held open by the keeper until the last process of
	// the last pod is gone and everything is removed, also after the gateway
	// was killed: a flock(2) on it says that the instance still exists.
	Lock *os.File
	// Remove lists further files that the keeper deletes when the gateway dies
	// without a Close.
	Remove []string

	// Attach makes the data path know an interface of the pod and returns when it
	// does. It owns nic.FD in any case. The first interface, which every pod has,
	// comes first.
	Attach func(ctx context.Context, pod *corev1.Pod, nic NIC) error
	// Detach is Attach undone, for all interfaces of the pod. It is called for pods
	// that Attach succeeded for.
	Detach func(name kube.Name)
	// Status reports a pod's new status.
	Status func(name kube.Name, uid string, status corev1.PodStatus)
	// Gone reports that nothing is left of a pod.
	Gone func(name kube.Name, uid string)
	// Dial connects from the node address into the cluster: probes and hooks.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	Clock    Clock         // the system's if nil
	StopTime time.Duration // how long Close lets processes end by themselves; 2 s
	LogBytes int64         // size at which a container's log file is rotated; 4 MiB
}

// Clock is the time source for back-off, probes and grace periods.
type Clock interface {
	Now() time.Time
	// After is time.After.
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// ExecRequest is a command to run within a pod, with the environment of one of
// its containers.
type ExecRequest struct {
	Pod       kube.Name
	Container string // the first (or kubectl.kubernetes.io/default-container) if empty
	Command   []string

	// Files are stdin, stdout and stderr; borrowed until Exec returns. A
	// missing or nil one is /dev/null.
	Files []*os.File

	// TTY gives the command a terminal of its own, of the size Rows x Cols if
	// they are not zero. Terminal, if not nil, is handed the master side before
	// the command runs, owns it, and uses it for input, output and window
	// size; without it Exec copies between the master and Files itself, and
	// follows the window size of stdin.
	TTY        bool
	Term       string // TERM; "xterm" if empty
	Rows, Cols uint16
	Terminal   func(master *os.File)
}

// LogOptions select what Logs returns.
type LogOptions struct {
	Follow     bool // wait for more until the container ends
	Previous   bool // of the run before the last restart
	Timestamps bool // begin every line with its RFC 3339 time
	Tail       int  // only so many last lines; 0 all
	Since      time.Time
}
