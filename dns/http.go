package dns

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
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
			if _, err := time.ParseDuration(strings.Join(o.words[1:], " ")); err != nil {
				p.problem(o.n, "health: lameduck is a duration such as 5s")
			}
		}
	}
}

// Health answers /health while the server is there.
func (s *Server) Health() http.Handler {
	return at("/health", func(w http.ResponseWriter) { io.WriteString(w, "OK") })
}

// Ready answers /ready: with 503 until the first Zone, and from Shutdown on.
func (s *Server) Ready() http.Handler {
	return at("/ready", func(w http.ResponseWriter) {
		if s.zone.Load() == nil || s.ctx.Err() != nil {
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

// countedTypes are the types that CoreDNS's metrics tell apart.
var countedTypes = [...]uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeCNAME, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypeHTTPS,
	dns.TypeSVCB, dns.TypeDNSKEY, dns.TypeDS, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG, dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR,
}

// Who made an answer, in CoreDNS's words.
const (
	byNobody = iota // the server itself: refusals, failures
	byZone
	byCache
	byUpstream
	makers
)

var makerNames = [makers]string{"", "kubernetes", "cache", "forward"}

// tally counts requests and answers as CoreDNS's metrics do.
type tally struct {
	requests  [2][2][len(countedTypes) + 1]atomic.Uint64 // UDP, TCP; IPv4, IPv6
	responses [makers][24]atomic.Uint64                  // by rcode
}

func (t *tally) add(udp bool, client netip.Addr, qtype uint16, maker, rcode int) {
	proto, family := 0, 0
	if !udp {
		proto = 1
	}
	if client.Is6() {
		family = 1
	}
	kind := slices.Index(countedTypes[:], qtype)
	if kind < 0 {
		kind = len(countedTypes)
	}
	t.requests[proto][family][kind].Add(1)
	t.responses[maker][min(rcode, len(t.responses[maker])-1)].Add(1)
}

func (s *Server) writeMetrics(w io.Writer) {
	var b strings.Builder
	head := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s counter\n", name, help, name) }
	const server = `server="dns://:53",zone=".",view=""`
	head("coredns_dns_requests_total", "Counter of DNS requests made per zone, protocol and family.")
	for p, proto := range []string{"udp", "tcp"} {
		for family := range 2 {
			for kind := range len(countedTypes) + 1 {
				name := "other"
				if kind < len(countedTypes) {
					name = dns.TypeToString[countedTypes[kind]]
				}
				if n := s.tally.requests[p][family][kind].Load(); n > 0 {
					fmt.Fprintf(&b, "coredns_dns_requests_total{%s,proto=%q,family=\"%d\",type=%q} %d\n", server, proto, family+1, name, n)
				}
			}
		}
	}
	head("coredns_dns_responses_total", "Counter of response status codes.")
	for maker := range makers {
		for rcode := range s.tally.responses[maker] {
			if n := s.tally.responses[maker][rcode].Load(); n > 0 {
				fmt.Fprintf(&b, "coredns_dns_responses_total{%s,rcode=%q,plugin=%q} %d\n", server, dns.RcodeToString[rcode], makerNames[maker], n)
			}
		}
	}
	head("coredns_autopath_success_total", "Counter of requests that did autopath.")
	fmt.Fprintf(&b, "coredns_autopath_success_total{server=\"dns://:53\"} %d\n", s.autopathed.Load())
	counters := s.Counters()
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		fmt.Fprintf(&b, "# TYPE podgate_%s counter\npodgate_%s %d\n", name, name, counters[name])
	}
	io.WriteString(w, b.String())
}
