package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"podgate/control"
	"podgate/dns"
	"podgate/kube"
	"podgate/nat"
	"podgate/policy"
	"podgate/stack"
	"podgate/stack/local"
	"podgate/stack/packet"
)

// compileLoop follows the store until ctx ends.
func (g *gateway) compileLoop(ctx context.Context) {
	if g.cluster != nil && !g.cluster.awaitSynced(ctx) {
		return
	}
	tick, cancel := g.store.Subscribe()
	defer cancel()
	var reread <-chan time.Time
	if g.cfg.Corefile != "" {
		t := time.NewTicker(corefileEvery)
		defer t.Stop()
		reread = t.C
	}
	var settled <-chan time.Time
	var freed time.Time
	for {
		if g.compile(g.store.State()) {
			settled = time.After(max(settleTime, freeEvery-time.Since(freed)))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		case <-reread:
		case <-settled:
			settled, freed = nil, time.Now()
			debug.FreeOSMemory()
		}
	}
}

// Reading manifests and compiling leave as much behind as they make. It is given
// back to the system when nothing has changed for settleTime, at most every
// freeEvery: the heap is small enough for a collection then not to be noticed.
const (
	settleTime = time.Second
	freeEvery  = 10 * time.Second
)

// compile turns a state into tables and publishes them: the data path before
// names and routes that would lead to it. It reports whether there was anything new.
func (g *gateway) compile(st *kube.State) bool {
	g.mu.Lock()
	prev := g.compiled
	g.mu.Unlock()
	if prev.state == st && !g.corefile.changed(g.cfg.Corefile) {
		return false
	}
	next := tables{state: st}
	var problems [3][]kube.Problem
	next.services, problems[0] = nat.Compile(prev.services, st, nat.Config{
		NodeName: g.cfg.Kube.NodeName, NodeAddrs: slices.Concat(g.nodeAddrs(), g.uplink.own()), ServiceCIDRs: g.cfg.Kube.ServiceCIDRs, HostIPs: []netip.Addr{g.cfg.PublishAddr},
		Pending: g.cluster != nil,
	})
	next.policies, problems[1] = policy.Compile(prev.policies, st, g.policyConfig())
	segments, routes := stack.SegmentsOf(st)
	g.plane.Publish(stack.Input{Services: next.services, Policies: next.policies, Segments: slices.Concat(segments, g.uplink.segments()), Routes: slices.Concat(g.cfg.Routes, routes, g.peers(st), g.uplink.routes()), Forbidden: g.forbiddenPrefixes(), EgressOff: g.cfg.Egress == "none", Awaited: g.attachments.awaited()})
	corefile, corefileProblems := g.corefile.read(g.cfg.Corefile, g.cfg.Kube.ClusterDomain, st)
	next.zone = dns.Compile(prev.zone, st, corefile.Options(g.dnsConfig(nil)))
	if corefile != prev.corefile {
		g.dns.SetCorefile(corefile)
	}
	next.corefile = corefile
	g.dns.SetZone(next.zone)
	g.dnsHTTP.serve(corefile.HTTPPorts(), g.dns)
	var doors []control.Listener
	next.routes, problems[2], doors = g.compileRoutes(prev.routes, st, next.services)
	next.problems = slices.Concat(st.Problems, problems[0], problems[1], problems[2], corefileProblems, faultProblems(st))
	published := g.publish(next.services, g.cluster.otherNodes(st))
	g.health.serve(next.services.HealthChecks())
	g.local.SetHostPorts(hostPorts(next.services))
	if g.pods != nil {
		g.pods.Sync(st)
	}
	for _, name := range sortedNames(st.Pods) {
		g.followFault(st.Pods[name])
	}

	for _, p := range next.problems {
		if !slices.Contains(prev.problems, p) {
			g.log.Warn("problem", "of", p.String())
		}
	}
	g.mu.Lock()
	g.compiled = next
	g.listeners = slices.Concat(slices.DeleteFunc(g.listeners, func(l control.Listener) bool { return !isFixed(l) }), doors, published)
	g.mu.Unlock()
	g.changed.Broadcast()
	if g.cluster != nil {
		g.cluster.report(next, g.ingressConfig(ownAddrs(g.cfg.Kube.PodCIDRs)))
	}
	return true
}

// isFixed says whether a listener is there whatever the state.
func isFixed(l control.Listener) bool {
	return slices.Contains([]string{"Ingress (HTTP)", "Ingress (HTTPS)", quicFor, "Metrics", proxyFor, proxyDNSFor}, l.For)
}

// enforce waits until the data path has taken everything that the store holds now.
func (g *gateway) enforce(ctx context.Context) error {
	want := g.store.State().Generation
	return g.await(ctx, func() bool { return g.compiled.state != nil && g.compiled.state.Generation >= want })
}

// await waits, g.mu held while cond is asked, until cond or the end of ctx.
func (g *gateway) await(ctx context.Context, cond func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changed.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !cond() {
		if g.failed != nil {
			return g.failed
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.changed.Wait()
	}
	return nil
}

// hostPorts are where Services lead to pods with hostNetwork.
func hostPorts(t *nat.Table) (all []local.HostPort) {
	for _, e := range t.HostEndpoints() {
		all = append(all, local.HostPort{Addr: e.Addr, Proto: e.Proto})
	}
	return all
}

// publish makes the host listen for node ports, load balancers and host ports.
func (g *gateway) publish(t *nat.Table, others map[netip.Addr]bool) []control.Listener {
	var pubs []local.Publication
	var out []control.Listener
	said := map[string]bool{}
	defer func() { g.said = said }()
	for _, p := range t.Published() {
		what := fmt.Sprintf("Service %s", p.Service)
		if others[p.HostIP] {
			continue // its own gateway listens there
		}
		if p.Service == (kube.Name{}) {
			what = fmt.Sprintf("Pod %s", p.Pod)
		}
		if p.Name != "" {
			what += " port " + p.Name
		}
		host := p.HostIP
		pubs = append(pubs, local.Publication{
			Proto: p.Proto, HostAddr: netip.AddrPortFrom(host, p.Port), Target: p.Target, Sources: p.Sources, Name: what,
			AcceptProxy: p.AcceptProxy, SendProxy: p.SendProxy, Closed: p.Closed,
		})
		l := control.Listener{Address: fmt.Sprintf("%s/%s", netip.AddrPortFrom(host, p.Port), protoName(p.Proto)), For: what}
		if p.Closed {
			l.Problem = "no endpoint is ready: connections are refused"
		}
		out = append(out, l)
	}
	for _, err := range g.local.Publish(pubs) {
		var pe *local.PublishError
		if !errors.As(err, &pe) {
			continue
		}
		i := slices.IndexFunc(pubs, func(p local.Publication) bool {
			return p.HostAddr == pe.HostAddr && p.Proto == pe.Proto && p.Name == pe.Name
		})
		if pe.Instead.IsValid() {
			out[i].Address = fmt.Sprintf("%s/%s", pe.Instead, protoName(pe.Proto))
			out[i].For += fmt.Sprintf(", as port %d needs privilege", pe.HostAddr.Port())
		} else {
			out[i].Problem = pe.Err.Error()
		}
		if said[pe.Error()] = true; !g.said[pe.Error()] {
			g.log.Warn("published port", "err", pe)
		}
	}
	return out
}

// forbiddenPrefixes are what pods may not reach outside the cluster: the host
// itself and what only the host should see.
func (g *gateway) forbiddenPrefixes() (out []netip.Prefix) {
	for _, s := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128"} {
		out = append(out, netip.MustParsePrefix(s))
	}
	if g.cluster != nil {
		return out // nodes are for pods to reach
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		g.log.Error("cannot list the host's addresses", "err", err)
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) }) {
				out = append(out, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			}
		}
	}
	return slices.DeleteFunc(out, func(p netip.Prefix) bool {
		return slices.ContainsFunc(g.cfg.EgressAllow, func(a netip.Prefix) bool { return a.Bits() <= p.Bits() && a.Contains(p.Addr()) })
	})
}

func protoName(p packet.Proto) string {
	switch p {
	case packet.TCP:
		return "tcp"
	case packet.UDP:
		return "udp"
	}
	return "sctp"
}
