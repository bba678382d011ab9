package dns

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// What probes and scrapers ask over HTTP
//
// kubeadm's Corefile makes CoreDNS answer at :8080/health, :8181/ready and
// :9153/metrics; so does this server, at its own address, unless a Corefile says
// otherwise. Metrics have CoreDNS's names where they mean the same.

// HTTPPorts are where to serve Health, Ready and Metrics; 0: nowhere.
type HTTPPorts struct{ Health, Ready, Metrics uint16 }

// HTTPPorts are those that a Corefile names, or kubeadm's for none.
func (c *Corefile) HTTPPorts() HTTPPorts {
	if c == nil {
		return HTTPPorts{8080, 8181, 9153}
	}
	return c.http
}

// maxLameduck is less than `podgate down` waits.
const maxLameduck = 45 * time.Second

// Lameduck is for how long names are to be answered after the end was asked for.
func (c *Corefile) Lameduck() time.Duration {
	if c == nil {
		return 0
	}
	return c.lame
}

// httpPort reads [ADDRESS] of health, ready and prometheus.
func (p *corefileParser) httpPort(d corefileLine, port uint16) uint16 {
	if len(d.words) < 2 {
		return port
	}
	host, text, err := net.SplitHostPort(d.words[1])
	n, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil || n == 0 || len(d.words) > 2 {
		p.problem(d.n, "%s: an address such as :%d is expected", d.words[0], port)
		return port
	}
	if a, err := netip.ParseAddr(host); host != "" && (err != nil || !a.IsUnspecified()) {
		p.problem(d.n, "%s: port %d is served at the DNS server's own address, not at %s", d.words[0], n, host)
	}
	return uint16(n)
}

// probes reads health, ready and prometheus.
func (p *corefileParser) probes(d corefileLine, options []corefileLine) {
	known := ""
	switch d.words[0] {
	case "health":
		p.out.http.Health, known = p.httpPort(d, 8080), "lameduck"
	case "ready":
		p.out.http.Ready, known = p.httpPort(d, 8181), "monitor"
	case "prometheus":
		p.out.http.Metrics = p.httpPort(d, 9153)
	}
	for _, o := range options {
		if o.words[0] != known {
			p.problem(o.n, "%s: option %s is not supported and does nothing", d.words[0], o.words[0])
		} else if known == "lameduck" {
			lame, err := time.ParseDuration(strings.Join(o.words[1:], " "))
			if err != nil || lame < 0 || lame > maxLameduck {
				p.problem(o.n, "health: lameduck is a duration such as 5s, at most %v", maxLameduck)
				continue
			}
			p.out.lame = lame
		}
	}
}

// Health answers /health while the server is there.
func (s *Server) Health() http.Handler {
	return at("/health", func(w http.ResponseWriter) { io.WriteString(w, "OK") })
}

// Retire makes Ready say that others are to be asked; queries are answered on.
func (s *Server) Retire() { s.retired.Store(true) }

// Ready answers /ready: with 503 until the first Zone, and from Retire or Shutdown on.
func (s *Server) Ready() http.Handler {
	return at("/ready", func(w http.ResponseWriter) {
		if s.zone.Load() == nil || s.retired.Load() || s.ctx.Err() != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "kubernetes")
			return
		}
		io.WriteString(w, "OK")
	})
}

// Metrics answers /metrics in Prometheus's text format.
func (s *Server) Metrics() http.Handler {
	return at("/metrics", func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		s.writeMetrics(w)
	})
}

func at(path string, say func(http.ResponseWriter)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { say(w) })
	return mux
}
