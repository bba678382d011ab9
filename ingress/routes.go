package ingress

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"podgate/kube"
)

// Routing
//
// A request is first evaluated for its host and then for its path, as the API's
// IngressRule says. The host is looked up exactly, then as a wildcard of one
// label, then among the rules without host; the first of these tables that
// exists is the one that counts: a host with rules of its own is not served by
// another host's. In it the path is looked up exactly, then by its prefixes
// from the longest to the shortest: as many map lookups as the longest rule has
// elements, however many rules there are. What no rule matches goes to the
// default backend of an Ingress with rules for that host, else to the default
// backend of any Ingress, those without rules first; else it is 404.
//
// Among rules for one host and path the oldest Ingress wins, then the first in
// order of namespace and name, then the first in the Ingress.

// Routes is where every request goes, at one moment. It is immutable; backends
// and certificates that did not change are shared with the Routes before.
type Routes struct {
	exact    map[string]*host
	wildcard map[string]*host // by parent domain
	patterns []hostPattern    // further names of hosts: server-alias
	any      *host            // rules without host; nil: none
	fallback *route           // default backend for what has no other; nil: 404
	certs    certs

	doors       map[netip.AddrPort]*door // of Gateways, see gateway.go
	statuses    *kube.Statuses
	passthrough map[string]*backend // by name: TLS is the endpoints'
	asksClients map[string]bool     // names whose clients are asked for a certificate
	pods        map[netip.Addr]string
	believed    []netip.Prefix // clients whose X-Forwarded-* count, besides Config.TrustedProxies
	blocked     blocked

	source // of compile.go: what it was made from
}

// host is the rules for one host.
type host struct {
	name     string            // as in the rule: "shop.example", "*.foo.com", ""
	exact    map[string]*route // by path
	prefix   map[string]*route // by path without its last slash: "" is "/"
	depth    int               // elements of the longest prefix
	fallback *route            // nil: that of the Routes
	patterns []*route          // where paths are regular expressions, in order; nil: they are not
	root     *route            // of "/" whatever the rules: app-root; nil: none
	regexes  []*route          // between exact paths and prefixes, in order; of HTTPRoutes
}

// kind is how a route matches.
type kind uint8

const (
	exactPath kind = iota
	prefixPath
	implementationSpecific // matches as a prefix
	defaultBackend
)

func (k kind) String() string {
	return [...]string{"Exact", "Prefix", "ImplementationSpecific", "default backend"}[k]
}

// route is one path of one rule, or a default backend.
type route struct {
	of      string    // kind of the object, "" for Ingress
	ingress kube.Name // the object
	field   string    // "spec.rules[0].http.paths[1]", "spec.defaultBackend"
	host    string    // as in the rule
	path    string    // as in the rule
	kind    kind

	tls     bool // any host has TLS, as spec.tls lists none
	clear   bool // not redirected to HTTPS: no-tls-redirect-locations
	open    bool // nobody is asked for a password or by auth-url: no-auth-locations
	options *options
	backend *backend
	canary  *canary        // nil: none
	pattern *regexp.Regexp // of the path, on hosts where paths are patterns
	stats   *stats

	when  *predicates // besides the path; nil: none
	next  *route      // at the same path, asked after this one; nil: none
	split *shares     // of requests among several backends; nil: all go to backend
}

// backend is one port of one Service, with who answers there.
type backend struct {
	service   kube.Name
	port      string // as in the Ingress: name or number
	wire      wire
	endpoints []*endpoint
	why       string // why there are no endpoints
	status    int    // what requests are answered without any; 0: 503
	next      *atomic.Uint32
}

// match returns the host table and the route of a request; both may be nil.
func (r *Routes) match(hostname, path string) (*host, *route) {
	h := r.host(hostname)
	if h == nil {
		return nil, r.fallback
	}
	if found := h.match(path, nil); found != nil {
		return h, found
	}
	return h, cmp.Or(h.fallback, r.fallback)
}

// host returns the rules that count for a host, nil if there are none.
func (r *Routes) host(name string) *host {
	if h := r.exact[name]; h != nil {
		return h
	}
	if h := r.wildcard[parentDomain(name)]; h != nil {
		return h
	}
	for _, p := range r.patterns {
		if p.names.MatchString(name) {
			return p.host
		}
	}
	return r.any
}

// hostPattern are names of a host.
type hostPattern struct {
	names *regexp.Regexp
	host  *host
}

// match returns the route of a path that a rule names. The request is asked
// where rules have conditions besides the path: those of Ingresses have none.
func (h *host) match(path string, in *http.Request) *route {
	if h.root != nil && path == "/" {
		return h.root
	}
	if h.patterns != nil {
		plain := decoded(path)
		for _, r := range h.patterns {
			if r.pattern.MatchString(plain) {
				return r
			}
		}
		return nil
	}
	if r := h.exact[path].first(in); r != nil {
		return r
	}
	for _, r := range h.regexes {
		if r.pattern.MatchString(decoded(path)) && r.when.hold(in) {
			return r
		}
	}
	// A path of more elements than any rule cannot match as a whole.
	end, elements := len(path), 0
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			if elements++; elements > h.depth {
				end = i
				break
			}
		}
	}
	for prefix := path[:end]; ; {
		if r := h.prefix[prefix].first(in); r != nil {
			return r
		}
		i := strings.LastIndexByte(prefix, '/')
		if i < 0 {
			return nil
		}
		prefix = prefix[:i]
	}
}

// object names the object that made a route.
func (r *route) object() string { return cmp.Or(r.of, "Ingress") + " " + r.ingress.String() }

// first is the first of the routes from r on whose conditions hold.
func (r *route) first(in *http.Request) *route {
	for r != nil && !r.when.hold(in) {
		r = r.next
	}
	return r
}

// add enters a route under its host. It returns the route that has the place
// already, which keeps it; nil if r was entered.
func (h *host) add(r *route) (taken *route) {
	path := matchPath(r.path)
	table, key := h.exact, path
	if r.kind != exactPath {
		table, key = h.prefix, strings.TrimSuffix(path, "/")
	}
	// "/foo/" matches what "/foo" matches and is the longer path.
	if have := table[key]; have != nil && len(have.path) >= len(r.path) {
		return have
	}
	table[key] = r
	if r.kind != exactPath {
		h.depth = max(h.depth, strings.Count(key, "/"))
	}
	return nil
}

// at returns the route that a rule of this path and type made, nil if none did.
func (h *host) at(path string, k kind) *route {
	table, key := h.exact, matchPath(path)
	if k != exactPath {
		table, key = h.prefix, strings.TrimSuffix(key, "/")
	}
	if r := table[key]; r != nil && r.kind == k {
		return r
	}
	return nil
}

// Entry is one line of the routing table, for people.
type Entry struct {
	Host    string // "" any
	Path    string // "" for a default backend
	Type    string // "Exact", "Prefix", "ImplementationSpecific", "default backend"
	TLS     bool   // the host is listed for TLS
	Ingress kube.Name
	Service kube.Name
	Port    string
	Ready   int    // endpoints that requests go to
	Why     string // why there are none
}

// Entries is the routing table, in order of host and path.
func (r *Routes) Entries() []Entry {
	var out []Entry
	add := func(rt *route) {
		if rt == nil {
			return
		}
		tls := r.encrypts(rt, strings.Replace(rt.host, "*", "x", 1))
		out = append(out, Entry{
			Host: rt.host, Path: rt.path, Type: rt.kind.String(), TLS: tls, Ingress: rt.ingress,
			Service: rt.backend.service, Port: rt.backend.port, Ready: len(rt.backend.endpoints), Why: rt.backend.why,
		})
	}
	for h := range r.hosts() {
		for _, rt := range h.exact {
			add(rt)
		}
		for _, rt := range h.prefix {
			add(rt)
		}
		add(h.fallback)
	}
	add(r.fallback)
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Type, b.Type))
	})
	return slices.Compact(out)
}

// hosts yields every host table.
func (r *Routes) hosts() func(yield func(*host) bool) {
	return func(yield func(*host) bool) {
		for _, h := range r.exact {
			if !yield(h) {
				return
			}
		}
		for _, h := range r.wildcard {
			if !yield(h) {
				return
			}
		}
		if r.any != nil {
			yield(r.any)
		}
	}
}

// redirects reports whether a plain HTTP request for this host is sent to HTTPS.
func (r *Routes) redirects(rt *route, hostname string) bool {
	return !rt.clear && (rt.options.forceSSL || rt.options.sslRedirect && r.encrypts(rt, hostname))
}

// asks reports whether clients of a host are asked for a certificate.
func (r *Routes) asks(name string) bool {
	return r.asksClients[name] || r.asksClients["*."+parentDomain(name)] || r.asksClients[""]
}

// encrypts reports whether an Ingress wants TLS for this host.
func (r *Routes) encrypts(rt *route, hostname string) bool {
	return rt.tls || r.certs.listed(hostname) != nil
}

func (b *backend) String() string {
	if b.service.Name == "" {
		return b.port
	}
	return fmt.Sprintf("Service %s port %s", b.service, b.port)
}
