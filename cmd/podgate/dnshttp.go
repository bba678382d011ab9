package main

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"podgate/dns"
)

// dnsHTTP answers what probes and scrapers ask DNS over HTTP, at its own addresses.
//
// Each listener has a goroutine, which ends with it; close waits for them.
type dnsHTTP struct {
	listen func(netip.AddrPort) (net.Listener, error)
	at     []netip.Addr
	log    *slog.Logger
	wg     sync.WaitGroup

	serving dns.HTTPPorts // the compile loop's
	servers []*http.Server
}

// serve answers at exactly these ports.
func (h *dnsHTTP) serve(ports dns.HTTPPorts, s *dns.Server) {
	if ports == h.serving {
		return
	}
	h.end()
	h.serving = ports
	for _, l := range []struct {
		port    uint16
		handler http.Handler
	}{{ports.Health, s.Health()}, {ports.Ready, s.Ready()}, {ports.Metrics, s.Metrics()}} {
		if l.port == 0 {
			continue
		}
		for _, a := range h.at {
			ln, err := h.listen(netip.AddrPortFrom(a, l.port))
			if err != nil {
				h.log.Warn("health, readiness or metrics of DNS are not served", "address", netip.AddrPortFrom(a, l.port), "err", cause(err))
				continue
			}
			srv := &http.Server{Handler: l.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
			h.servers = append(h.servers, srv)
			h.wg.Go(func() { srv.Serve(ln) })
		}
	}
}

func (h *dnsHTTP) end() {
	for _, srv := range h.servers {
		srv.Close()
	}
	h.servers = nil
}

func (h *dnsHTTP) close() {
	h.end()
	h.wg.Wait()
}

// retire has DNS's /ready send askers elsewhere, and returns for how long, says the
// Corefile's health directive, they are to be answered still.
func (g *gateway) retire() time.Duration {
	g.dns.Retire()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.compiled.corefile.Lameduck()
}

// lameduck lets everything go on for as long as the Corefile wants, or until
// another signal.
func (g *gateway) lameduck(signals <-chan os.Signal) {
	if d := g.retire(); d > 0 && g.failure() == nil {
		g.log.Info("names are answered a while longer", "lameduck", d)
		select {
		case <-signals:
		case <-time.After(d):
		}
	}
}
