package stack

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"podgate/kube"
	"podgate/nat"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// Config is what a plane knows for all its life. The zero value works for
// tests: no gateway addresses, no CIDRs, defaults for the rest.
type Config struct {
	GatewayMAC   packet.MAC     // the MAC that answers for the gateway; 0a:58:00:00:00:01
	GatewayAddrs []netip.Addr   // the node's own addresses, at most one a family
	LocalAddrs   []netip.Addr   // every address that lives on the local port, GatewayAddrs among them
	PodCIDRs     []netip.Prefix // the segment, at most one a family
	ServiceCIDRs []netip.Prefix // never routed outwards

	MTU             int          // of a port that names none; 1500
	MaxFlows        int          // flow.Config's default
	MasqueradePorts [2]uint16    // first and last source port that may be claimed; 32768-60999
	FloodRate       int          // flooded frames a second and port; 100
	ErrorRate       int          // ICMP errors and resets made by the gateway, a second and port; 1000
	Log             *slog.Logger // slog.DiscardHandler
	Now             func() int64 // nanoseconds, never going back; the wall clock at start plus the monotonic clock
}

func (c Config) withDefaults() Config {
	if c.GatewayMAC == (packet.MAC{}) {
		c.GatewayMAC = packet.MAC{0x0a, 0x58, 0, 0, 0, 1}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.MasqueradePorts == [2]uint16{} {
		c.MasqueradePorts = [2]uint16{32768, 60999}
	}
	if c.FloodRate == 0 {
		c.FloodRate = 100
	}
	if c.ErrorRate == 0 {
		c.ErrorRate = 1000
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		start := time.Now()
		base := start.UnixNano()
		c.Now = func() int64 { return base + int64(time.Since(start)) }
	}
	return c
}

// PortSpec describes an attachment.
type PortSpec struct {
	Pod   kube.Name    // zero for the local port
	Name  string       // interface name, for people
	MAC   packet.MAC   // the only source MAC that is accepted, and where frames are sent
	Addrs []netip.Addr // the only source addresses that are accepted; of the local port: ignored, Config.LocalAddrs counts
	MTU   int          // Config.MTU when 0
	Local bool         // the gateway's own stack: exempt from anti-spoofing, way out for everything else
}

// Input is one published configuration. Both tables may be nil: no Services,
// no policies.
type Input struct {
	Services  *nat.Table
	Policies  *policy.Table
	Forbidden []netip.Prefix // destinations outside the cluster that pods may not reach
	EgressOff bool           // nothing outside the cluster may be reached
}

// Plane is the data path of one gateway.
type Plane struct {
	w *worker
}

// New makes a plane without ports. It forwards once Run is called.
func New(cfg Config) (*Plane, error) {
	cfg = cfg.withDefaults()
	return &Plane{w: &worker{snap: newSnapshot(&cfg)}}, nil
}

// Run forwards until ctx is done. It is called once.
func (p *Plane) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Attach takes dev, and returns once frames from it are read. The device is
// the plane's to close from then on: at Detach, or when Run ends.
func (p *Plane) Attach(spec PortSpec, dev link.Device) (flow.PortID, error) { return 1, nil }

// Detach ends a port and its flows, closes its device, and returns once no
// frame of it is on the way. An unknown port is no error.
func (p *Plane) Detach(id flow.PortID) error { return nil }

// Publish makes in the configuration, and returns its generation once every
// frame is decided by it and no flow lives that it denies.
func (p *Plane) Publish(in Input) uint64 { return 1 }

// Trace runs the production decision for a packet that nobody sent.
func (p *Plane) Trace(q TraceQuery) TraceResult { return p.w.ask(q) }

// Flows lists the conversations.
func (p *Plane) Flows() []FlowRecord { return nil }

// Drops lists the last n frames that were not forwarded, oldest first.
func (p *Plane) Drops(n int) []DropRecord { return nil }

// Ports lists the attachments by ID.
func (p *Plane) Ports() []PortRecord { return nil }

// Counters are all reasons by name with how often they came up, and, as
// "policy-ingress-denied{shop/deny-all}", the denials of each policy.
func (p *Plane) Counters() map[string]uint64 { return nil }

type worker struct {
	snap     *Snapshot
	now      int64
	affinity *affinity
}

type affinity struct{}

func (a *affinity) recall(client packet.Addr, sp *nat.ServicePort, now int64) *nat.Backend {
	return nil
}
