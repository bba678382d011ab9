package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// The Corefile
//
// A Corefile is accepted as it is: blocks of zones with directives. What podgate
// does by nature (errors, reload, loadbalance) is accepted and changes
// nothing; what it does not do is a problem that names the line, and the rest
// works. Each query belongs to the block with the longest zone that its name is
// in, and passes its directives in CoreDNS's order: rewrite, template, hosts,
// kubernetes, cache, forward.

// Corefile is what a Corefile says.
type Corefile struct {
	blocks []block
	kube   *kubeOptions // of the kubernetes directive; nil: there is none
	http   HTTPPorts
	lame   time.Duration // lameduck of the health directive
}

// block is what happens to the names of some zones.
type block struct {
	zones     []string // canonical
	kube      bool
	fall      []string // zones whose unknown names go on to forward
	rewrites  []rewrite
	hosts     *hosts
	templates []templateRule
	forwards  []forwardRule
	cache     cacheRule
	log       bool
	loop      bool
	autopath  bool
}

// kubeOptions are those of the kubernetes directive.
type kubeOptions struct {
	ttl         time.Duration
	pods        PodMode
	podNames    bool   // endpoint_pod_names
	noEndpoints bool   // noendpoints
	ignoreEmpty bool   // ignore empty_service
	namespaces  string // joined by blanks; "": all
	zonal       bool
	labels      string // selector of Services and pods; "": all
	inLabels    string // selector of namespaces
}

// forwardRule is one forward directive.
type forwardRule struct {
	from      string
	except    []string
	upstreams []Upstream
	policy    string // random, round_robin, sequential
	maxFails  int
	check     time.Duration
	tcp       bool // force_tcp
	max       int  // max_concurrent
}

// cacheRule is one cache directive; the zero value is no cache.
type cacheRule struct {
	on               bool
	success, denial  time.Duration
	size             int
	stale            time.Duration // 0: never
	prefetch         int           // hits that make an answer be asked for again; 0: never
	noHits, noDenial []string      // zones that are not cached
}

// CorefileProblem is what is wrong with, or not done about, one line.
type CorefileProblem struct {
	Line int
	Err  string
}

func (p CorefileProblem) String() string { return fmt.Sprintf("Corefile line %d: %s", p.Line, p.Err) }

// Upstream is one server that names are forwarded to.
type Upstream struct {
	Addr       netip.AddrPort
	TLS        bool   // DNS over TLS (RFC 7858)
	ServerName string // in its certificate, if TLS
}

func (u Upstream) String() string {
	if u.TLS {
		return "tls://" + u.Addr.String()
	}
	return u.Addr.String()
}

// ParseCorefile reads the Corefile of a cluster with this domain. Problems are
// warnings: what they do not name is in force.
func ParseCorefile(text, domain string) (*Corefile, []CorefileProblem) {
	p := &corefileParser{domain: dns.CanonicalName(domain)}
	for _, l := range lexCorefile(text) {
		p.line(l)
	}
	p.end()
	return &p.out, p.problems
}

// Options is cfg with what the kubernetes directive says instead.
func (c *Corefile) Options(cfg Config) Config {
	if c == nil || c.kube == nil {
		return cfg
	}
	if cfg.TTL = c.kube.ttl; cfg.TTL == 0 {
		cfg.TTL = NoTTL
	}
	cfg.Pods = c.kube.pods
	cfg.kube = *c.kube
	return cfg
}

// corefileParser collects blocks; current and directive are the open ones.
type corefileParser struct {
	domain    string
	out       Corefile
	problems  []CorefileProblem
	current   *block
	directive *corefileLine
	options   []corefileLine
	skip      int // braces of something unknown that are open
	last      int
}

func (p *corefileParser) problem(line int, format string, args ...any) {
	p.problems = append(p.problems, CorefileProblem{line, fmt.Sprintf(format, args...)})
}

func (p *corefileParser) line(l corefileLine) {
	p.last = l.n
	opens := l.words[len(l.words)-1] == "{"
	closes := len(l.words) == 1 && l.words[0] == "}"
	switch {
	case p.skip > 0:
		if opens {
			p.skip++
		} else if closes {
			p.skip--
		}
	case p.directive != nil:
		if closes {
			d, options := *p.directive, p.options
			p.directive, p.options = nil, nil
			p.apply(d, options)
		} else if opens {
			p.problem(l.n, "%s: nested braces", p.directive.words[0])
			p.skip = 1
		} else {
			p.options = append(p.options, l)
		}
	case p.current == nil:
		if !opens {
			p.problem(l.n, "%q: a server block such as `.:53 {` is expected", l.words[0])
			return
		}
		p.open(corefileLine{l.n, l.words[:len(l.words)-1]})
	case closes:
		p.out.blocks = append(p.out.blocks, *p.current)
		p.current = nil
	case opens:
		if len(l.words) == 1 {
			p.problem(l.n, "a brace without a directive")
			p.skip = 1
			return
		}
		p.directive = &corefileLine{l.n, l.words[:len(l.words)-1]}
	default:
		p.apply(l, nil)
	}
}

func (p *corefileParser) end() {
	if p.skip > 0 || p.directive != nil || p.current != nil {
		p.problem(p.last, "a closing brace is missing")
	}
	if p.current != nil {
		p.out.blocks = append(p.out.blocks, *p.current)
	}
}

// open begins a server block.
func (p *corefileParser) open(l corefileLine) {
	b := &block{}
	for _, word := range l.words {
		for _, key := range strings.FieldsFunc(word, func(r rune) bool { return r == ',' }) {
			zones, err := serverKey(key)
			if err != nil {
				p.problem(l.n, "%v", err)
				continue
			}
			b.zones = append(b.zones, zones...)
		}
	}
	if len(b.zones) == 0 {
		p.skip = 1
		if len(l.words) == 0 {
			p.problem(l.n, "a server block without a zone")
		}
		return
	}
	p.current = b
}

// serverKey reads a server block's key: [dns://]ZONE[:53].
func serverKey(key string) ([]string, error) {
	zone := strings.TrimPrefix(key, "dns://")
	if strings.Contains(zone, "://") {
		return nil, fmt.Errorf("%s: podgate serves plain DNS only", key)
	}
	if strings.HasPrefix(zone, "(") {
		return nil, fmt.Errorf("%s: snippets are not supported", key)
	}
	if i := strings.LastIndexByte(zone, ':'); i >= 0 && !strings.Contains(zone, "/") {
		if port := zone[i+1:]; port != "53" {
			return nil, fmt.Errorf("%s: podgate serves port 53 only", key)
		}
		zone = zone[:i]
	}
	return zonesOf(zone)
}

// zonesOf reads a zone, or the reverse zones of a CIDR.
func zonesOf(s string) ([]string, error) {
	if prefix, err := netip.ParsePrefix(s); err == nil {
		return reverseApexes(prefix), nil
	}
	if s == "" {
		s = "."
	}
	if _, ok := dns.IsDomainName(s); !ok || strings.ContainsAny(s, "{}()/") {
		return nil, fmt.Errorf("%q is not a zone", s)
	}
	return []string{dns.CanonicalName(s)}, nil
}

// apply does what one directive says.
func (p *corefileParser) apply(d corefileLine, options []corefileLine) {
	b, name := p.current, d.words[0]
	switch name {
	case "errors", "reload", "loadbalance", "debug", "cancel", "metadata", "minimal", "bufsize", "any":
		// In podgate's nature.
	case "health", "ready", "prometheus":
		p.probes(d, options)
	case "log":
		b.log = true
	case "loop":
		b.loop = true
	case "autopath":
		if slices.Equal(d.words[1:], []string{"@kubernetes"}) {
			b.autopath = true
		} else {
			p.problem(d.n, "autopath: only `autopath @kubernetes` is supported: the search list is the asking pod's")
		}
	case "kubernetes":
		p.kubernetes(b, d, options)
	case "forward":
		p.forward(b, d, options)
	case "cache":
		p.cache(b, d, options)
	case "template":
		p.template(b, d, options)
	case "hosts":
		p.hosts(b, d, options)
	case "rewrite":
		p.rewrite(b, d, options)
	default:
		p.problem(d.n, "%s: this directive is not supported and does nothing", name)
	}
}

func (p *corefileParser) kubernetes(b *block, d corefileLine, options []corefileLine) {
	if p.out.kube != nil {
		p.problem(d.n, "kubernetes: only one such directive is supported")
		return
	}
	k := &kubeOptions{ttl: 5 * time.Second, pods: Disabled}
	b.kube, p.out.kube = true, k
	for _, z := range p.zones(corefileLine{d.n, d.words[:1]}, d.words[1:]) {
		if z != p.domain && z != "." && !strings.HasSuffix(z, "arpa.") {
			p.problem(d.n, "kubernetes: zone %s is not served: the cluster's domain is %s", z, p.domain)
		}
	}
	for _, o := range options {
		args := o.words[1:]
		switch o.words[0] {
		case "pods":
			modes := map[string]PodMode{"disabled": Disabled, "insecure": Insecure, "verified": Verified}
			mode, ok := modes[strings.Join(args, " ")]
			if !ok {
				p.problem(o.n, "kubernetes: pods is one of disabled, insecure, verified")
				continue
			}
			k.pods = mode
		case "ttl":
			n, err := strconv.Atoi(strings.Join(args, " "))
			if err != nil || n < 0 || n > 3600 {
				p.problem(o.n, "kubernetes: ttl is a number of seconds from 0 to 3600")
				continue
			}
			k.ttl = time.Duration(n) * time.Second
		case "fallthrough":
			b.fall = append(b.fall, p.zones(o, args)...)
		case "endpoint_pod_names":
			k.podNames = true
		case "noendpoints":
			k.noEndpoints = true
		case "ignore":
			if strings.Join(args, " ") != "empty_service" {
				p.problem(o.n, "kubernetes: ignore what? empty_service is known")
				continue
			}
			k.ignoreEmpty = true
		case "namespaces":
			k.namespaces = strings.Join(args, " ")
		case "zonal":
			k.zonal = true
		case "labels", "namespace_labels":
			selector := strings.Join(args, " ")
			if _, err := selectorOf(selector); err != nil || selector == "" {
				p.problem(o.n, "kubernetes: %s is a label selector such as app=web,tier!=db", o.words[0])
				continue
			}
			if o.words[0] == "labels" {
				k.labels = selector
			} else {
				k.inLabels = selector
			}
		case "endpoint", "tls", "kubeconfig", "startup_timeout", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight":
			// podgate has its own source of objects.
		default:
			p.problem(o.n, "kubernetes: option %s is not supported and does nothing", o.words[0])
		}
	}
}

// zones reads zones after a word; none are all.
func (p *corefileParser) zones(l corefileLine, args []string) (zones []string) {
	if len(args) == 0 {
		return []string{"."}
	}
	for _, a := range args {
		z, err := zonesOf(a)
		if err != nil {
			p.problem(l.n, "%s: %v", l.words[0], err)
			continue
		}
		zones = append(zones, z...)
	}
	return zones
}
