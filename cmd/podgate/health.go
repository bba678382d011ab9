package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"podgate/kube"
	"podgate/nat"
)

// healthChecks answers at the healthCheckNodePorts of Services, on the host and,
// for pods, at the node's addresses, as kube-proxy does: 200 with endpoints on
// this node, 503 without, and a body that counts them.
//
// Each listener has a goroutine, which ends with it; close waits for them.
type healthChecks struct {
	listenNode func(netip.AddrPort) (net.Listener, error)
	log        *slog.Logger
	wg         sync.WaitGroup

	checks map[checked]*healthCheck // the compile loop's
}

// checked is one family of a Service.
type checked struct {
	service kube.Name
	is4     bool
}

// healthCheck is one Service's.
type healthCheck struct {
	service kube.Name
	port    uint16
	local   atomic.Int64
	servers map[listenAt]*http.Server
}

// listenAt is an address of the host, or of the node inside the cluster.
type listenAt struct {
	addr netip.AddrPort
	node bool
}

func newHealthChecks(listenNode func(netip.AddrPort) (net.Listener, error), log *slog.Logger) *healthChecks {
	return &healthChecks{listenNode: listenNode, log: log, checks: map[checked]*healthCheck{}}
}

// serve answers for exactly all; listeners that stay are left alone, and those
// that could not be opened are tried again.
func (h *healthChecks) serve(all []nat.HealthCheck) {
	want := map[checked]bool{}
	for _, c := range all {
		want[checked{c.Service, c.Is4}] = true
	}
	for k := range h.checks {
		if !want[k] {
			h.end(k)
		}
	}
	for _, c := range all {
		k := checked{c.Service, c.Is4}
		if old := h.checks[k]; old != nil && old.port != c.Port {
			h.end(k)
		}
		check := h.checks[k]
		if check == nil {
			check = &healthCheck{service: c.Service, port: c.Port, servers: map[listenAt]*http.Server{}}
			h.checks[k] = check
		}
		check.local.Store(int64(c.Local))
		for _, a := range c.Hosts {
			h.listen(check, listenAt{netip.AddrPortFrom(a, c.Port), false})
		}
		for _, a := range c.Nodes {
			h.listen(check, listenAt{netip.AddrPortFrom(a, c.Port), true})
		}
	}
}

func (h *healthChecks) listen(c *healthCheck, at listenAt) {
	if c.servers[at] != nil {
		return
	}
	listen := h.listenNode
	if !at.node {
		listen = func(a netip.AddrPort) (net.Listener, error) { return net.Listen("tcp", a.String()) }
	}
	ln, err := listen(at.addr)
	if err != nil {
		h.log.Warn("healthCheckNodePort is not served", "service", c.service, "address", at.addr, "err", cause(err))
		return
	}
	srv := &http.Server{Handler: c, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	c.servers[at] = srv
	h.wg.Go(func() { srv.Serve(ln) })
}

func (h *healthChecks) end(k checked) {
	for _, srv := range h.checks[k].servers {
		srv.Close()
	}
	delete(h.checks, k)
}

func (h *healthChecks) close() {
	for k := range h.checks {
		h.end(k)
	}
	h.wg.Wait()
}

// ServeHTTP answers in kube-proxy's form, to the byte.
func (c *healthCheck) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	n := c.local.Load()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", fmt.Sprint(n))
	if n == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}",
		c.service.Namespace, c.service.Name, n)
}
