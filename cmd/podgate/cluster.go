package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"podgate/control"
	"podgate/ingress"
	"podgate/kube"
	kubewatch "podgate/kube/watch"
	"podgate/pod"
	"podgate/stack"
)

func newGatewayCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Serve one node of a real cluster: the API server says what, CNI attaches the pods",
		Long: `Serve one node of a real cluster. What is desired comes from its API server, the
node's pods are attached by the CNI plugin podgate-cni, and Services, DNS, Ingress
and NetworkPolicy are as with "podgate up". Runs in the foreground; on SIGTERM it
is no longer ready, goes on serving for gateway.drain, and ends.`,
		Example: `  podgate gateway                                            # in a pod of a DaemonSet
  podgate gateway --set kubernetes.kubeconfig=/etc/podgate/kubeconfig --set kubernetes.node-name=node-1`,
		Args: cobra.NoArgs,
	}
	addConfigFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		name, _ := cmd.Flags().GetString("name")
		file, _ := cmd.Flags().GetString("config")
		cfg, from, err := loadConfig(cmd.Flags(), file, nil)
		if err != nil {
			return err
		}
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: logLevel(cfg.LogLevel)}))
		return runGateway(cmd.Context(), name, cfg, from, log, signals)
	}
	return cmd
}

// runGateway serves until a signal comes, and a while longer.
func runGateway(ctx context.Context, name string, cfg config, from map[string]origin, log *slog.Logger, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &cluster{instance: name, log: log}
	health, err := c.serveHealth(cfg.Health)
	if err != nil {
		return err
	}
	defer health.Close()
	stopped := make(chan struct{})
	go func() { // ends with the process
		<-signals
		close(stopped)
		cancel()
	}()
	if err := c.join(ctx, &cfg, from, log); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	g, err := startGateway(name, cfg, log, c)
	if err != nil {
		return err
	}
	defer g.stop()
	if c.awaitSynced(ctx) {
		if err := g.enforce(ctx); err == nil {
			c.ready.Store(true)
			st := g.store.State()
			log.Info("ready", "node", cfg.Kube.NodeName, "pods", len(st.Pods), "services", len(st.Services), "endpointslices", st.EndpointSlices.Len(),
				"ingresses", len(st.Ingresses), "networkpolicies", len(st.NetworkPolicies))
		}
	}
	select {
	case <-stopped:
		c.ready.Store(false)
		drain := max(cfg.Drain, g.retire())
		log.Info("told to stop; serving on", "for", drain)
		select {
		case <-time.After(drain):
		case <-signals:
		case <-g.quit:
		}
	case <-g.quit:
	}
	c.ready.Store(false)
	return g.failure()
}

// cluster is a node of a real cluster as the source of a gateway.
type cluster struct {
	instance string
	log      *slog.Logger
	api      *kubewatch.Cluster
	node     *corev1.Node // as it was at the start
	ready    atomic.Bool
	synced   chan struct{} // closed once the store has what the API server has
	writer   *kubewatch.Writer
	link     *nodeLink // nil: none

	memory *kubewatch.Memory         // what this gateway starts with, as the API server is away; nil: it is not
	stale  atomic.Pointer[time.Time] // when what is served was written down; nil: the API server said it to this gateway

	published []netip.Addr // addresses of this gateway's listeners, for statuses
	ports     []uint16     // of those of Ingresses
}

// join finds the API server and this node, and lets them decide what the
// configuration leaves open.
func (c *cluster) join(ctx context.Context, cfg *config, from map[string]origin, log *slog.Logger) (err error) {
	c.synced = make(chan struct{})
	cfg.Kube.NodeName = cfg.ThisNode
	if cfg.Kube.NodeName == "" {
		cfg.Kube.NodeName = os.Getenv("NODE_NAME")
	}
	if cfg.Kube.NodeName == "" {
		if cfg.Kube.NodeName, err = os.Hostname(); err != nil {
			return fmt.Errorf("kubernetes.node-name: %w", err)
		}
	}
	c.api, err = kubewatch.Connect(kubewatch.Config{Kubeconfig: cfg.Kubeconfig, Log: log, References: references})
	if err != nil {
		return fmt.Errorf("%w; set it with --set kubernetes.kubeconfig=FILE", err)
	}
	log.Info("asking the API server", "server", c.api.Host(), "node", cfg.Kube.NodeName)
	open := func(key string) bool { return from[key].From == "default" }
	needed := kubewatch.HasAddresses
	if !open("pods.cidrs") {
		needed = func(*corev1.Node) error { return nil }
	}
	if err := c.findNode(ctx, cfg.Kube.NodeName, c.memoryFile(*cfg), needed); err != nil {
		return err
	}
	if open("pods.cidrs") {
		if cfg.Kube.PodCIDRs, err = parsePrefixes(c.node.Spec.PodCIDRs); err != nil {
			return fmt.Errorf("node %s: spec.podCIDRs: %w", c.node.Name, err)
		}
	}
	switch {
	case !open("services.cidrs"):
	case c.memory != nil:
		cfg.Kube.ServiceCIDRs = c.memory.ServiceCIDRs
	default:
		switch cidrs, err := c.api.ServiceCIDRs(ctx); {
		case err != nil:
			log.Warn("the API server does not say where its ClusterIPs come from; set services.cidrs", "taken", cfg.Kube.ServiceCIDRs, "err", err)
		case len(cidrs) > 0:
			cfg.Kube.ServiceCIDRs = cidrs
		}
	}
	if addrs := c.addrs(); open("publish.address") && len(addrs) > 0 {
		cfg.PublishAddr, cfg.Kube.PublishedIPs = addrs[0], addrs[:1]
	}
	c.published, c.ports = []netip.Addr{cfg.PublishAddr}, cfg.Kube.IngressPorts
	log.Info("this node", "node", cfg.Kube.NodeName, "addresses", c.addrs(), "pods", cfg.Kube.PodCIDRs, "services", cfg.Kube.ServiceCIDRs)
	return cfg.check()
}

// patience is how long a gateway that knows the cluster of old waits for the API
// server to say what it is now.
const patience = 5 * time.Second

// findNode asks the API server for this node. If that does not answer, or not us,
// the node is what it was when it was written down, and so is the rest.
func (c *cluster) findNode(ctx context.Context, name, file string, needed func(*corev1.Node) error) (err error) {
	if _, missing := os.Stat(file); missing == nil {
		soon, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if c.node, err = c.api.Node(soon, name, needed); err == nil {
			return nil
		}
		if c.node == nil && !apierrors.IsNotFound(err) {
			why := err
			if c.memory, err = c.api.Recall(file, name); err != nil {
				c.log.Warn("the state of the cluster that was written down cannot be used", "err", err)
			} else if c.node = c.memory.Node(name); c.node != nil && needed(c.node) == nil {
				c.stale.Store(&c.memory.Written)
				c.log.Warn("the API server does not answer; what it said last stays in force", "server", c.api.Host(), "written", c.memory.Written.Format(time.RFC3339), "err", why)
				return nil
			}
			c.memory = nil
		}
	}
	c.node, err = c.api.Node(ctx, name, needed)
	return err
}

// memoryFile is where the state of the cluster is written down; empty: nowhere.
func (c *cluster) memoryFile(cfg config) string {
	dir := stateDir(cfg, c.instance)
	if !cfg.Remember || dir == "" {
		return ""
	}
	return filepath.Join(filepath.Dir(dir), "cluster")
}

func parsePrefixes(texts []string) (all []netip.Prefix, err error) {
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// references are the Secrets and ConfigMaps that any part of the gateway reads.
func references(st *kube.State) (secrets, configMaps []kube.Name) {
	secrets, configMaps = ingress.References(st)
	return secrets, append(configMaps, corefileMap)
}

// addrs are the node's own, in the network that it is in.
func (c *cluster) addrs() []netip.Addr { return internalAddrs(c.node) }

// otherNodes are the addresses of the nodes that this one is not.
func (c *cluster) otherNodes(st *kube.State) map[netip.Addr]bool {
	others := map[netip.Addr]bool{}
	if c == nil {
		return others
	}
	for name, n := range st.Nodes {
		for _, a := range internalAddrs(n) {
			if name != c.node.Name {
				others[a] = true
			}
		}
	}
	return others
}

func (c *cluster) store(cfg kube.Config) *kube.Store { return kube.NewReplica(cfg, time.Now) }

func (c *cluster) run(ctx context.Context, g *gateway) error {
	g.cluster = c
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	if err := c.linkNode(ctx, g); err != nil {
		return err
	}
	c.writer = c.api.NewWriter(fmt.Sprintf("%s_%s_%d", c.node.Name, host, os.Getpid()))
	g.wg.Go(func() { c.writer.Run(ctx) })
	synced := func() { close(c.synced) }
	if c.memory != nil {
		g.store.Follow(c.memory.Batch())
		c.memory = nil
		synced()
		synced = func() {
			c.stale.Store(nil)
			g.log.Info("the API server has said what there is; nothing that was written down is served any more")
		}
	}
	g.wg.Go(func() {
		c.api.Follow(ctx, g.store, func() {
			synced()
			if file := c.memoryFile(g.cfg); file != "" {
				g.wg.Go(func() { c.api.Keep(ctx, g.store, file, c.node.Name, g.cfg.Kube.ServiceCIDRs) })
			}
		})
	})
	return nil
}

// report has the API server told what became of a state.
func (c *cluster) report(t tables, cfg ingress.Config) {
	c.writer.Report(kubewatch.Report{State: t.state, Addrs: c.reachedAt(t.state), Ports: c.ports, Ingresses: ingress.Served(t.state, cfg), Statuses: t.routes.Statuses(), Problems: t.problems})
}

// gatewayLabels are those of the pods that gateways run in, see deploy/podgate.yaml.
var gatewayLabels = map[string]string{"app.kubernetes.io/name": "podgate", "app.kubernetes.io/component": "gateway"}

// reachedAt are the addresses of all gateways of the cluster, as far as they run
// in pods that are ready; otherwise of this one.
func (c *cluster) reachedAt(st *kube.State) (all []netip.Addr) {
	for _, p := range st.Pods {
		if p.Namespace != "podgate-system" || !kube.IsReady(p) || p.DeletionTimestamp != nil || !labels.SelectorFromSet(gatewayLabels).Matches(labels.Set(p.Labels)) {
			continue
		}
		for _, ip := range p.Status.HostIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	if len(all) == 0 {
		return c.published
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// awaitSynced waits until the store has what the API server has.
func (c *cluster) awaitSynced(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c.synced:
		return true
	}
}

// trouble says how what is served is not what the API server says now; empty: it
// is.
func (c *cluster) trouble() string {
	var all []string
	if away := c.api.Away(); !away.IsZero() {
		all = append(all, "the API server cannot be reached since "+away.Format(time.RFC3339))
	}
	if written := c.stale.Load(); written != nil {
		all = append(all, "what is served was written down at "+written.Format(time.RFC3339))
	}
	return strings.Join(all, "; ")
}

// status is what `podgate status` shows of it.
func (c *cluster) status() *control.Cluster {
	return &control.Cluster{Server: c.api.Host(), Node: c.node.Name, Trouble: c.trouble()}
}

// serveHealth answers /healthz as long as the process lives, and /readyz with 200
// from the first complete state to the order to stop. That the API server is away
// makes a gateway no less ready: it serves what it knows.
func (c *cluster) serveHealth(at netip.AddrPort) (*http.Server, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !c.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, strings.TrimSuffix("ok; "+c.trouble(), "; "))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	if !at.IsValid() {
		return srv, nil
	}
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("health: cannot listen on %s: %w; choose another with --set gateway.health=ADDR:PORT", at, cause(err))
	}
	go srv.Serve(ln) // ends with Close
	return srv, nil
}

// nodeAddrs are those of this node: inside the cluster, and in the network that
// it is in, if that is a cluster's.
func (g *gateway) nodeAddrs() []netip.Addr {
	own := ownAddrs(g.cfg.Kube.PodCIDRs).node
	if g.cluster == nil {
		return own
	}
	return slices.Concat(own, g.cluster.addrs())
}

// resolver is what a pod's resolver was told, by who runs its processes.
func (g *gateway) resolver(p *corev1.Pod) pod.Resolver {
	if g.pods == nil {
		return pod.ResolverOf(p, g.dnsService(), g.cfg.Kube.ClusterDomain)
	}
	return g.pods.Resolver(p)
}

// peers are the routes to the pods of other nodes.
func (g *gateway) peers(st *kube.State) []stack.Route {
	if g.cluster == nil {
		return nil
	}
	return g.cluster.link.follow(st, g.cfg.Kube.NodeName)
}

// errElsewhere refuses what a real cluster has other tools for.
func errElsewhere(with string) error {
	return errors.New("this instance serves a real cluster, whose objects and pods are not its own: use " + with)
}
