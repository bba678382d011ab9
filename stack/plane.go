package stack

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
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
	PodCIDRs     []netip.Prefix // the cluster's own segment, at most one a family
	ServiceCIDRs []netip.Prefix // never routed outwards

	MTU             int           // of a port that names none; 1500
	MaxFlows        int           // flow.DefaultMaxFlows
	PortShare       float64       // the part of MaxFlows that one port may open; one half
	Timeouts        flow.Timeouts // each with its default
	MasqueradePorts [2]uint16     // first and last source port that may be claimed; 32768-60999
	MappingTimeout  time.Duration // how long a mapping outlives its conversations: see Masquerade; 5 min, which RFC 4787 recommends
	FloodRate       int           // flooded frames a second and port; 100
	ErrorRate       int           // ICMP errors and resets made by the gateway, a second and port; 1000
	AllAcks         bool          // forward each bare TCP acknowledgment: see acks.go
	Spin            time.Duration // how long Run looks for more, at the cost of a CPU, before it sleeps; 0: not at all
	Answerer        Answerer      // answers UDP to AnswerAt in the data path; nil: nobody does
	AnswerAt        []netip.AddrPort
	Nameservers     []netip.Addr // that DHCP and router advertisements name
	Domain          string       // of the cluster, likewise; empty: none is named
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
	if c.MappingTimeout == 0 {
		c.MappingTimeout = 5 * time.Minute
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

	Router bool // forwards for others: may send from every address that is nobody's in the cluster

	// Masquerade, unless nil, gives what pods send out by this port the gateway's
	// address in its segment as source. Answers, what comes to Services at that
	// address or their own, and what it lets in besides, come in; nothing else does.
	Masquerade *Masquerade

	Network   string // the Segment, published before; empty: the cluster's own
	Secondary bool   // a further interface of its pod, not the one that NetworkPolicy is about
	Default   bool   // the pod's default route leads here, for Trace; no interface: its own one's
}

// Input is one published configuration. Both tables may be nil: no Services,
// no policies.
type Input struct {
	Services  *nat.Table
	Policies  *policy.Table
	Segments  []Segment      // pod networks beside the cluster's own
	Routes    []Route        // networks behind pods, apart from every segment and Config.ServiceCIDRs
	Forbidden []netip.Prefix // destinations outside the cluster that pods may not reach
	EgressOff bool           // nothing outside the cluster may be reached

	// Awaited are addresses of pods that ran before this gateway did and are not
	// attached yet: what is sent there is dropped, where it is rejected otherwise,
	// so that conversations outlive the wait.
	Awaited []netip.Addr
}

// Plane is the data path of one gateway. Its methods may be called from any
// goroutine, before, while and after Run.
type Plane struct {
	cfg      Config
	snapshot atomic.Pointer[Snapshot] // replaced by the worker alone
	worker   *worker
	mail     mailbox
}

// New makes a plane without ports. It forwards once Run is called.
func New(cfg Config) (*Plane, error) {
	p := &Plane{cfg: cfg.withDefaults()}
	if ports := p.cfg.MasqueradePorts; ports[0] == 0 || ports[0] > ports[1] {
		return nil, fmt.Errorf("masquerade ports %d-%d: not a range", ports[0], ports[1])
	}
	p.snapshot.Store(newSnapshot(&p.cfg))
	p.worker = newWorker(&p.cfg, &p.snapshot)
	return p, nil
}

// Attach takes dev, and returns once frames from it are read. The device is
// the plane's to close from then on: at Detach, or when Run ends.
func (p *Plane) Attach(spec PortSpec, dev link.Device) (id flow.PortID, err error) {
	p.do(func(w *worker) { id, err = w.attach(spec, dev) })
	if err != nil {
		return 0, fmt.Errorf("attach %s: %w", spec.title(), err)
	}
	p.cfg.Log.Info("port attached", "port", id, "pod", spec.title(), "gen", p.snapshot.Load().Generation)
	return id, nil
}

// Detach forwards what the port has sent so far, such as the last words of
// processes that have just ended, and ends it and its flows, and closes its
// device. No frame of it is on the way when it returns. An unknown port is an error.
func (p *Plane) Detach(id flow.PortID) (err error) {
	p.do(func(w *worker) {
		w.drain(id)
		err = w.detach(id)
	})
	if err == nil {
		p.cfg.Log.Info("port detached", "port", id)
	}
	return err
}

// Publish makes in the configuration, and returns its generation once every
// frame is decided by it and no flow lives that it denies.
func (p *Plane) Publish(in Input) (gen uint64) {
	var more bool
	p.do(func(w *worker) {
		next := w.snap.withInput(in)
		more = w.snap.denies(next) || in.Services.Hurries(w.snap.services)
		w.install(next)
		gen = w.snap.Generation
	})
	for c := flow.Cursor(0); more; more = c != 0 {
		p.do(func(w *worker) { c = w.audit(c) })
	}
	return gen
}

// Trace runs the production decision for a packet that nobody sent.
func (p *Plane) Trace(q TraceQuery) (r TraceResult) {
	p.do(func(w *worker) { r = w.ask(q) })
	return r
}

// Flows lists the conversations that the configuration of now lets go on, in no
// particular order.
func (p *Plane) Flows() []FlowRecord {
	var list []FlowRecord
	var c flow.Cursor
	for more := true; more; more = c != 0 {
		p.do(func(w *worker) {
			c = w.flows.Scan(c, auditChunk, func(f *flow.Flow) {
				if !f.Expired(w.now) && w.endorse(f) != moved {
					list = append(list, w.record(f))
				}
			})
		})
	}
	return list
}

// FlowCount is how many conversations are remembered.
func (p *Plane) FlowCount() (n int) {
	p.do(func(w *worker) { n = w.flows.Len() })
	return n
}

// Drops lists the last n frames that were not forwarded (of which 1024 are
// remembered), oldest first.
func (p *Plane) Drops(n int) (list []DropRecord) {
	p.do(func(w *worker) {
		for _, e := range w.drops.last(n) {
			list = append(list, e.record(w.snap))
		}
	})
	return list
}

// Ports lists the attachments by ID.
func (p *Plane) Ports() (list []PortRecord) {
	p.do(func(w *worker) {
		for _, pt := range w.ports {
			if pt != nil {
				list = append(list, pt.record())
			}
		}
	})
	return list
}

// Counters are all reasons by name with how often they came up, and, as
// "policy-ingress-denied{shop/deny-all}", the denials of each policy.
func (p *Plane) Counters() map[string]uint64 {
	all := map[string]uint64{}
	for _, r := range Reasons() {
		all[r.String()] = p.worker.reasons[r].load()
	}
	p.do(func(w *worker) {
		for d, n := range w.denials {
			all[fmt.Sprintf("%s{%s}", d.reason, d.policy)] += n.packets
		}
	})
	return all
}

// Denials are the packets that policies denied, and the conversations that
// policies in audit mode would have, by policy, rule, pod and peer. Of some
// thousands of these on, peers are no longer told apart.
func (p *Plane) Denials() (list []DenialRecord) {
	p.do(func(w *worker) {
		for d, n := range w.denials {
			list = append(list, d.record(n))
		}
	})
	slices.SortFunc(list, compareDenials)
	return list
}

// WouldCut lists the conversations that go on now and that other policies would
// deny.
func (p *Plane) WouldCut(policies *policy.Table) (list []CutRecord) {
	p.do(func(w *worker) {
		s := *w.snap
		s.policies = policies
		for f := range w.flows.All() {
			if r, ok := w.wouldCut(&s, f); ok {
				list = append(list, r)
			}
		}
	})
	return list
}

// LogVerdicts writes a line of JSON for each verdict of a policy, until ctx ends
// or out fails: denials and what audits would have denied, and with all also the
// conversations that policies let through. It writes at most a thousand lines a second, and
// says how many it left out. One caller at a time.
func (p *Plane) LogVerdicts(ctx context.Context, out io.Writer, all bool) error {
	l := &verdictLog{entries: make(chan verdictEntry, 1024), all: all}
	p.do(func(w *worker) { w.verdicts = l })
	defer p.do(func(w *worker) { w.verdicts = nil })
	return l.run(ctx, out)
}

// Now is the plane's clock, in nanoseconds: that by which names learned from DNS end.
func (p *Plane) Now() int64 { return p.cfg.Now() }

// Generation is that of the configuration in force.
func (p *Plane) Generation() uint64 { return p.snapshot.Load().Generation }

// Poll takes one batch from every port and returns how many frames came: the
// worker's step, for who drives a plane by hand instead of with Run. While Run
// runs it does nothing.
func (p *Plane) Poll() int {
	p.mail.mu.Lock()
	defer p.mail.mu.Unlock()
	if p.mail.running {
		return 0
	}
	return p.worker.poll(p.cfg.Now())
}
