package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	mdns "github.com/miekg/dns"

	"podgate/control"
	"podgate/dns"
	"podgate/ingress"
	"podgate/kube"
	"podgate/nat"
	"podgate/pod"
	"podgate/policy"
	"podgate/stack"
	"podgate/stack/flow"
	"podgate/stack/local"
	"podgate/stack/packet"
)

// gateway is one running instance: the rooms, and the wires between them.
//
// Desired state flows one way: the store changes, the compile loop turns the
// whole state into tables and publishes them, data path first. Everything else
// (pods' status, files, apply) only changes the store.
//
// Goroutines, all started by start and waited for by stop: the plane's worker,
// the compile loop, one for each listener of DNS and ingress (in the cluster and on
// the host) and of metrics, the control server, the manifest watcher.
type gateway struct {
	name    string
	cfg     config
	log     *slog.Logger
	started time.Time
	quit    chan struct{} // closed when somebody asked for the teardown
	once    sync.Once

	lock  *instanceLock
	store *kube.Store
	plane *stack.Plane
	names *policy.Names // what pods learned from DNS

	searches searchLists
	local    *local.Stack
	dns      *dns.Server
	dnsHTTP  *dnsHTTP
	front    *ingress.Server
	access   *accessLog   // nil: none
	metrics  *http.Server // nil: none
	pods     *pod.Runtime // nil: pods are somebody else's
	cluster  *cluster     // nil: what is desired comes from manifests
	uplink   *uplink      // nil: no packets leave
	control  *control.Server

	attachments attachments // of namespaces that are somebody else's
	stateDir    string      // where they are written down

	cancel context.CancelFunc
	wg     sync.WaitGroup

	corefile corefileSource // of the compile loop

	health *healthChecks
	doors  doors           // of Gateways; the compile loop's
	said   map[string]bool // of published ports, at the last compile; the compile loop's

	mu        sync.Mutex // guards all below
	changed   *sync.Cond // told when compiled or ports change
	compiled  tables
	ports     map[kube.Name][]flow.PortID
	faults    map[kube.Name]string // annotations that were followed, of ports
	listeners []control.Listener
	nicKind   string
	failed    error // why the instance cannot go on
}

// tables are what one state compiled to.
type tables struct {
	state    *kube.State
	services *nat.Table
	policies *policy.Table
	zone     *dns.Zone
	corefile *dns.Corefile
	routes   *ingress.Routes
	problems []kube.Problem
}

// addrs are the gateway's own addresses, those of each family side by side.
type addrs struct {
	node, dns, ingress []netip.Addr
}

func (a addrs) all() []netip.Addr { return slices.Concat(a.node, a.dns, a.ingress) }

func ownAddrs(cidrs []netip.Prefix) addrs {
	nth := func(n int) (out []netip.Addr) {
		for _, p := range cidrs {
			a := p.Addr()
			for range n {
				a = a.Next()
			}
			out = append(out, a)
		}
		return out
	}
	return addrs{nth(kube.GatewayOffset), nth(kube.DNSOffset), nth(kube.IngressOffset)}
}

// start brings everything up, or takes down again what it had brought up.
func startGateway(name string, cfg config, log *slog.Logger, from source) (_ *gateway, err error) {
	lock, err := lockInstance(name)
	if err != nil {
		return nil, err
	}
	cfg.Kube = cfg.Kube.WithDefaults()
	g := &gateway{name: name, cfg: cfg, log: log, started: time.Now(), lock: lock, quit: make(chan struct{}), names: &policy.Names{}, ports: map[kube.Name][]flow.PortID{}, faults: map[kube.Name]string{}}
	g.changed = sync.NewCond(&g.mu)
	g.attachments = attachments{all: map[control.Endpoint]*attachment{}, byPod: map[kube.Name]*attachment{}, opened: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	defer func() {
		if err != nil {
			g.stop()
		}
	}()

	g.store = from.store(cfg.Kube)
	g.stateDir = stateDir(cfg, name)
	g.restore()
	own := ownAddrs(cfg.Kube.PodCIDRs)
	upstreams := cfg.Upstreams
	if len(upstreams) == 0 {
		upstreams = hostResolvers("/etc/resolv.conf")
	}
	g.dns = dns.NewServer(g.dnsConfig(upstreams))
	if err := g.startPlane(ctx, own); err != nil {
		return nil, err
	}
	if err := g.startServers(own); err != nil {
		return nil, err
	}
	if g.control, err = control.Listen(socketPath(lock.dir), g.verbs()); err != nil {
		return nil, err
	}
	if err := from.run(ctx, g); err != nil {
		return nil, err
	}
	g.wg.Go(func() { g.compileLoop(ctx) })
	g.wg.Go(func() {
		if from.awaitSynced(ctx) && g.enforce(ctx) == nil {
			g.attachments.open()
			g.reopen()
		}
	})
	g.wg.Go(func() { g.fatal("control socket", g.control.Serve()) })
	return g, nil
}

// source is where the desired state comes from, and with it the pods.
type source interface {
	store(kube.Config) *kube.Store
	run(context.Context, *gateway) error // starts what keeps the store current
	awaitSynced(context.Context) bool    // until the store is complete for the first time
}

// manifests are files, whose pods are run here.
type manifests struct {
	paths    []string
	objs     *kube.Manifests
	problems []kube.Problem
}

func (manifests) awaitSynced(context.Context) bool { return true }

func (manifests) store(cfg kube.Config) *kube.Store { return kube.NewStore(cfg, time.Now) }

func (m manifests) run(ctx context.Context, g *gateway) (err error) {
	own := ownAddrs(g.cfg.Kube.PodCIDRs)
	g.pods, err = pod.Start(ctx, pod.Config{
		Dir: g.lock.dir, Lock: g.lock.f, Remove: []string{g.lock.dir}, Log: g.log,
		Images: g.cfg.Images, Gateway: own.node, PodCIDRs: g.cfg.Kube.PodCIDRs, Nameservers: g.dnsService(), ClusterDomain: g.cfg.Kube.ClusterDomain,
		NodeName: g.cfg.Kube.NodeName, MTU: g.cfg.MTU, NICKind: nicKind(g.cfg.Attach),
		Attach: g.attach, Detach: g.detach, Status: g.store.SetPodStatus, Gone: g.store.PodGone,
		Dial: g.dialFrom(own.node),
	})
	if err != nil {
		return err
	}
	g.store.Sync(m.objs.Objects, m.problems)
	m.objs.Objects = nil // the store has its own
	g.wg.Go(func() {
		select {
		case <-g.pods.Done():
			g.fatal("keeper", errors.New("it ended, and with it every pod"))
		case <-g.quit: // it ends in good order
		}
	})
	watcher := &kube.Watcher{Store: g.store, Paths: m.paths, Log: g.log}
	g.wg.Go(func() {
		if err := watcher.Run(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("manifests are no longer watched", "err", err)
		}
	})
	return nil
}

func nicKind(attach string) string {
	if attach == "auto" {
		return ""
	}
	return attach
}

func (g *gateway) startPlane(ctx context.Context, own addrs) (err error) {
	if g.uplink, err = newUplink(g.cfg); err != nil {
		return err
	}
	mac := macOf(own.node)
	var answerAt []netip.AddrPort
	for _, a := range own.dns {
		answerAt = append(answerAt, netip.AddrPortFrom(a, 53))
	}
	g.plane, err = stack.New(stack.Config{
		GatewayMAC: mac, GatewayAddrs: own.node, LocalAddrs: own.all(),
		PodCIDRs: g.cfg.Kube.PodCIDRs, ServiceCIDRs: g.cfg.Kube.ServiceCIDRs, MTU: g.cfg.MTU, MaxFlows: g.cfg.MaxFlows, PortShare: g.cfg.FlowShare, AllAcks: g.cfg.AllAcks, Spin: g.cfg.Spin, Timeouts: g.cfg.Timeouts, MappingTimeout: g.cfg.MappingTimeout, Log: g.log,
		Answerer: g.dns.Responder(), AnswerAt: answerAt,
		Nameservers: g.dnsService(), Domain: g.cfg.Kube.ClusterDomain,
	})
	if err != nil {
		return err
	}
	g.local, err = local.New(local.Config{
		Addrs: own.all(), MAC: macOf(own.dns), GatewayMAC: mac, MTU: g.cfg.MTU, Log: g.log,
		EgressOff: g.cfg.Egress == "none", Allowed: g.cfg.EgressAllow, LowPortOffset: uint16(g.cfg.LowPortOffset),
	})
	if err != nil {
		return err
	}
	g.health = newHealthChecks(g.local.ListenTCP, g.log)
	g.dnsHTTP = &dnsHTTP{listen: g.local.ListenTCP, at: own.dns, log: g.log}
	g.wg.Go(func() { g.fatal("data path", g.plane.Run(ctx)) })
	if g.cfg.PolicyLog != "" {
		f, err := openVerdictLog(g.cfg.PolicyLog)
		if err != nil {
			return err
		}
		g.wg.Go(func() {
			defer f.Close()
			if err := g.plane.LogVerdicts(ctx, f, g.cfg.PolicyLogAll); ctx.Err() == nil {
				g.log.Error("verdicts are no longer logged", "err", err)
			}
		})
	}
	if err := g.linkUplink(); err != nil {
		return err
	}
	_, err = g.plane.Attach(stack.PortSpec{Name: "local", MAC: macOf(own.dns), Addrs: own.all(), MTU: g.cfg.MTU, Local: true}, g.local.Device())
	return err
}

// startServers makes DNS listen in the local stack, and the front door there, for
// pods, and on the host.
func (g *gateway) startServers(own addrs) error {
	for _, a := range own.dns {
		pc, err := g.local.ListenUDP(netip.AddrPortFrom(a, 53))
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		ln, err := g.local.ListenTCP(netip.AddrPortFrom(a, 53))
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		g.wg.Go(func() { g.fatal("dns", g.dns.ServeUDP(pc)) })
		g.wg.Go(func() { g.fatal("dns", g.dns.ServeTCP(ln)) })
	}
	front := g.ingressConfig(own)
	if g.cfg.AccessLog != "" {
		var err error
		if g.access, err = openAccessLog(g.cfg.AccessLog, g.cfg.AccessJSON); err != nil {
			return err
		}
		front.AccessLog = g.access.write
	}
	g.front = ingress.NewServer(front)
	if err := g.serveMetrics(); err != nil {
		return err
	}
	for _, l := range []struct {
		at    netip.AddrPort
		key   string
		what  string
		serve func(net.Listener) error
	}{{g.cfg.IngressHTTP, "ingress.http", "Ingress (HTTP)", g.front.Serve}, {g.cfg.IngressHTTPS, "ingress.https", "Ingress (HTTPS)", g.front.ServeTLS}} {
		if !l.at.IsValid() {
			continue
		}
		ln, err := soon(func() (net.Listener, error) { return net.Listen("tcp", l.at.String()) })
		if err != nil {
			return fmt.Errorf("%s: cannot listen on %s: %w; choose another with --set %s=ADDR:PORT, or none with --set %s=", l.what, l.at, cause(err), l.key, l.key)
		}
		g.listeners = append(g.listeners, control.Listener{Address: ln.Addr().String() + "/tcp", For: l.what})
		g.wg.Go(func() { g.fatal(l.what, l.serve(ingress.At(ln, l.at, true))) })
		if l.at == g.cfg.IngressHTTPS && g.cfg.HTTP3 {
			line := control.Listener{Address: ln.Addr().String() + "/udp", For: quicFor}
			if _, err := g.openQUIC(addrPortOf(ln), false, l.at, true); err != nil {
				line.Problem = fmt.Sprintf("cannot listen: %v", cause(err))
			}
			g.listeners = append(g.listeners, line)
		}
	}
	for _, a := range own.ingress {
		for port, serve := range map[uint16]func(net.Listener) error{80: g.front.Serve, 443: g.front.ServeTLS} {
			ln, err := g.local.ListenTCP(netip.AddrPortFrom(a, port))
			if err != nil {
				return fmt.Errorf("ingress: %w", err)
			}
			inside := ingress.At(ln, netip.AddrPortFrom(g.cfg.PublishAddr, port), true)
			g.wg.Go(func() { g.fatal("Ingress in the cluster", serve(inside)) })
		}
		g.openQUIC(netip.AddrPortFrom(a, 443), true, netip.AddrPortFrom(g.cfg.PublishAddr, 443), true)
	}
	return nil
}

// cause is the innermost error: "address already in use".
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func (g *gateway) dnsConfig(upstreams []netip.AddrPort) dns.Config {
	return dns.Config{
		Told: func(client netip.Addr, name string, addrs []netip.Addr, ttl time.Duration) {
			now := g.plane.Now()
			var learned []packet.Addr
			for _, a := range addrs {
				learned = append(learned, packet.AddrFrom(a))
			}
			g.names.Learn(packet.AddrFrom(client), name, learned, now, now+int64(ttl))
		},
		Domain: g.cfg.Kube.ClusterDomain, PodCIDRs: g.cfg.Kube.PodCIDRs, ServiceCIDRs: g.cfg.Kube.ServiceCIDRs,
		TTL: dnsTTL(g.cfg.DNSTTL), Pods: g.cfg.DNSPods, CacheTTL: g.cfg.DNSCache, Upstreams: upstreams, Log: g.log,
		Autopath: g.cfg.DNSAutopath, RandomCase: g.cfg.DNSRandomCase, Search: g.searches.of,
	}
}

func (g *gateway) ingressConfig(own addrs) ingress.Config {
	return ingress.Config{Dial: g.dialFrom(own.ingress), DialAs: g.dialAs(own.ingress), DialOut: g.dialOut(own.ingress), DefaultBackend: g.cfg.IngressDefault, TrustedProxies: g.cfg.Trusted, Log: g.log, Gateway: g.cfg.gatewayConfig(own)}
}

// dialFrom dials into the cluster with one of the gateway's own addresses.
func (g *gateway) dialFrom(from []netip.Addr) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		for _, a := range from {
			if a.Is4() == to.Addr().Is4() {
				return g.local.DialTCP(ctx, netip.AddrPortFrom(a, 0), to)
			}
		}
		return nil, fmt.Errorf("dial %s: no address of that family", addr)
	}
}

// dialAs dials into the cluster with a client's address, where it can be answered.
func (g *gateway) dialAs(from []netip.Addr) func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
	dial := g.dialFrom(from)
	return func(ctx context.Context, client netip.Addr, to netip.AddrPort) (net.Conn, error) {
		if g.local.Answers(to.Addr(), client) {
			return g.local.DialTCP(ctx, netip.AddrPortFrom(client, 0), to)
		}
		return dial(ctx, "tcp", to.String())
	}
}

// dnsService is where pods find DNS: the ClusterIPs of kube-system/kube-dns.
func (g *gateway) dnsService() (out []netip.Addr) {
	svc := g.store.State().Services[kube.Name{Namespace: "kube-system", Name: "kube-dns"}]
	if svc == nil {
		return nil
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// fatal ends the instance because a part of it ended by itself.
func (g *gateway) fatal(what string, err error) {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return
	}
	g.log.Error("cannot go on", "part", what, "err", err)
	g.mu.Lock()
	if g.failed == nil {
		g.failed = fmt.Errorf("%s: %w", what, err)
	}
	g.mu.Unlock()
	g.changed.Broadcast()
	g.shutdown()
}

// shutdown asks for the teardown; stop does it.
func (g *gateway) shutdown() { g.once.Do(func() { close(g.quit) }) }

// stop takes everything down, in the reverse order of start.
func (g *gateway) stop() {
	g.shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if g.front != nil {
		g.front.Shutdown(ctx)
	}
	if g.metrics != nil {
		g.metrics.Close()
	}
	if g.pods != nil {
		g.pods.Close()
	}
	if g.dns != nil {
		g.dns.Shutdown(ctx)
	}
	g.cancel()
	if g.control != nil {
		g.control.Close()
	}
	g.wg.Wait()
	if g.access != nil {
		g.access.file.Close()
	}
	g.doors.close()
	if g.local != nil {
		g.health.close()
		g.dnsHTTP.close()
		g.local.Close()
	}
	g.lock.release()
}

// podCount says how many pods that run processes there are, and how many are ready.
func podCount(st *kube.State) control.PodCount {
	var n control.PodCount
	for _, p := range st.Pods {
		if kube.IsLocal(p) {
			continue
		}
		n.Total++
		if kube.IsReady(p) {
			n.Ready++
		}
	}
	return n
}

// hostResolvers are the servers that a resolv.conf names.
func hostResolvers(file string) (out []netip.AddrPort) {
	c, err := mdns.ClientConfigFromFile(file)
	if err != nil {
		return nil
	}
	for _, s := range c.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}
