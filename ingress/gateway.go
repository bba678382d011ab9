package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"podgate/kube"
)

// Gateways
//
// A Gateway's listeners are reached at doors: an address of the host and a port.
// A request that comes by a door is first given to one listener, the one whose
// hostname is the most specific for the request's host (for TLS, the server
// name that the client asked for): exactly it, else the longest wildcard, which
// stands for any number of labels, else none. No other listener sees it: what
// the routes of that one do not match is 404. Routes are in tables by their own
// hostnames, the same as those of Ingresses, and are asked from the most specific
// hostname to the least; within one, exact paths go before regular expressions
// and these before prefixes, longer before shorter, and at one path they are in
// the order of precedence that the specification gives them.
//
// A door may be the Ingress's too (127.0.0.1:8080 by default): there, what no
// listener matches goes to the Ingresses.

// door is an address and port where Gateways have listeners.
type door struct {
	tls       bool
	listeners byHost[*listener]
	entrance  Entrance
}

// listener is one listener of a Gateway.
type listener struct {
	gateway  kube.Name
	name     string
	hostname string // "" any
	port     uint16
	https    bool
	certs    []*tls.Certificate // of HTTPS, the first is for those who ask for none of them
	client   *x509.CertPool     // who signs the clients' certificates; nil: they are not asked for any
	optional bool               // a client may have none, or a bad one
	routes   byHost[*host]

	conditional bool           // some routes have predicates besides the path
	passed      byHost[*route] // TLS that is passed through, by server name
}

// byHost are things by hostname.
type byHost[T any] struct {
	exact    map[string]T
	wildcard map[string]T // by parent domain
	any      *T
}

func (b *byHost[T]) set(hostname string, v T) {
	if b.exact == nil {
		b.exact, b.wildcard = map[string]T{}, map[string]T{}
	}
	if parent, ok := strings.CutPrefix(hostname, "*."); ok {
		b.wildcard[parent] = v
	} else if hostname != "" {
		b.exact[hostname] = v
	} else {
		b.any = &v
	}
}

// get returns what is set for just this hostname.
func (b *byHost[T]) get(hostname string) (v T, ok bool) {
	if parent, wild := strings.CutPrefix(hostname, "*."); wild {
		v, ok = b.wildcard[parent]
	} else if hostname != "" {
		v, ok = b.exact[hostname]
	} else if b.any != nil {
		v, ok = *b.any, true
	}
	return v, ok
}

// matching yields what a host matches, the most specific hostname first.
func (b *byHost[T]) matching(name string) func(yield func(T) bool) {
	return func(yield func(T) bool) {
		if v, ok := b.exact[name]; ok && !yield(v) {
			return
		}
		for parent := parentDomain(name); parent != "" && len(b.wildcard) > 0; parent = parentDomain(parent) {
			if v, ok := b.wildcard[parent]; ok && !yield(v) {
				return
			}
		}
		if b.any != nil {
			yield(*b.any)
		}
	}
}

// first is the most specific of those that match.
func (b *byHost[T]) first(name string) (v T) {
	for v := range b.matching(name) {
		return v
	}
	return v
}

// all yields everything.
func (b *byHost[T]) all(yield func(T) bool) {
	for _, m := range []map[string]T{b.exact, b.wildcard} {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
	if b.any != nil {
		yield(*b.any)
	}
}

// match returns the host table and the route of a request; both may be nil.
func (l *listener) match(hostname, path string, in *http.Request) (table *host, found *route) {
	for h := range l.routes.matching(hostname) {
		if table == nil {
			table = h
		}
		if r := h.match(path, in); r != nil {
			return h, r
		}
	}
	return table, nil
}

// entrance is a net.Listener at a door.
type entrance struct {
	net.Listener
	door netip.AddrPort
	both bool // the Ingresses are served there too
}

type entranceKey struct{} // of the entrance in a context

// entered is a connection whose TLS is ours.
type entered struct {
	net.Conn
	by entrance
}

// cameBy is the entrance that a listener is; the zero one is the Ingresses'.
func cameBy(l net.Listener) entrance {
	switch l := l.(type) {
	case entrance:
		return l
	case *sniffer:
		return l.entry
	}
	return entrance{}
}

// entranceOf is the entrance of a connection that net/http was given.
func entranceOf(c net.Conn) (by entrance) {
	switch c := c.(type) {
	case *given:
		return c.by
	case *tls.Conn:
		if e, ok := c.NetConn().(entered); ok {
			return e.by
		}
	}
	return by
}

// ingress reports whether Ingresses are served at an entrance. The zero one is theirs.
func (e entrance) ingress() bool { return !e.door.IsValid() || e.both }

// At makes a listener that leads to the Gateways which have listeners at a door
// of [Routes.Entrances], and with ingress to the Ingresses too. It is for Serve
// and ServeTLS.
func At(l net.Listener, door netip.AddrPort, ingress bool) net.Listener {
	return entrance{Listener: l, door: door, both: ingress}
}

// find sets the table and the route of a request. The status is what it is
// answered if there is no route.
func (q *request) find() (status int) {
	if d := q.live.doors[q.entry.door]; d != nil {
		l := d.listeners.first(q.host)
		if status := d.misdirected(q.tls, l); status != 0 {
			return status
		}
		if l != nil {
			q.listener = l
			if q.table, q.route = l.match(q.host, q.match, q.in); q.route != nil {
				return 0
			}
		}
	}
	if q.entry.ingress() {
		q.table, q.route = q.live.match(q.host, q.match)
	}
	return http.StatusNotFound
}

// conditional reports whether find has to know more of a request than its path.
func (q *request) conditional() bool {
	d := q.live.doors[q.entry.door]
	if d == nil {
		return false
	}
	l := d.listeners.first(q.host)
	return l != nil && l.conditional
}

// share chooses among the backends of a route that has several.
func (q *request) share() {
	if q.route.split != nil {
		q.route = q.route.split.choose(rand.IntN)
	}
}

// misdirected is the status for a request of another listener than the one that
// TLS was made for: clients use one connection for all hosts of a certificate.
func (d *door) misdirected(state *tls.ConnectionState, l *listener) int {
	if state == nil || state.ServerName == "" || d.listeners.first(matchHost(state.ServerName)) == l {
		return 0
	}
	if l == nil {
		return http.StatusNotFound
	}
	return http.StatusMisdirectedRequest
}

// listenerOf is the listener that a TLS client asks for, nil if it is no Gateway's.
func (r *Routes) listenerOf(hello *tls.ClientHelloInfo) *listener {
	e, _ := hello.Context().Value(entranceKey{}).(entrance)
	d := r.doors[e.door]
	if d == nil {
		return nil
	}
	l := d.listeners.first(matchHost(hello.ServerName))
	if l == nil && hello.ServerName == "" && !e.ingress() {
		for l = range d.listeners.all { // the client knows an address only
			break
		}
	}
	if l == nil || !l.https {
		return nil
	}
	return l
}

// certificate is the first that suits the client.
func (l *listener) certificate(hello *tls.ClientHelloInfo) *tls.Certificate {
	for _, c := range l.certs {
		if hello.SupportsCertificate(c) == nil {
			return c
		}
	}
	return l.certs[0]
}

// config is what TLS is like at a listener; nil: as it is everywhere.
func (l *listener) config(base *tls.Config) (*tls.Config, error) {
	if l.client == nil {
		return nil, nil
	}
	c := base.Clone()
	c.GetConfigForClient = nil
	c.ClientCAs, c.ClientAuth = l.client, tls.RequireAndVerifyClientCert
	if l.optional {
		c.ClientAuth = tls.RequestClientCert
	}
	return c, nil
}

// passes reports whether TLS may be an endpoint's at an entrance.
func (r *Routes) passes(e entrance) bool {
	if d := r.doors[e.door]; d != nil && d.entrance.passes {
		return true
	}
	return e.ingress() && len(r.passthrough) > 0
}

// passed is the backend whose TLS that of a server name is, nil for ours.
func (r *Routes) passed(e entrance, name string) *backend {
	if d := r.doors[e.door]; d != nil {
		if l := d.listeners.first(name); l != nil {
			if l.https {
				return nil
			}
			r := l.passed.first(name)
			if r == nil {
				return nobody
			}
			if r.split != nil {
				r = r.split.choose(rand.IntN)
			}
			return r.backend
		}
	}
	if e.ingress() {
		return r.passthrough[name]
	}
	return nil
}

// nobody is the backend of what is closed at once.
var nobody = &backend{why: "no TLSRoute is for this name"}

// predicates are what a request has to have besides its path.
type predicates struct {
	method  string // "" any
	fields  []predicate
	queries []predicate
	path    *regexp.Regexp // of a GRPCRoute that names a method and no service
}

// predicate is one field of the header, or one parameter of the query.
type predicate struct {
	name    string
	value   string
	pattern *regexp.Regexp // instead of value
}

func (c *predicate) holds(got string) bool {
	if c.pattern != nil {
		return c.pattern.MatchString(got)
	}
	return got == c.value
}

// hold reports whether a request has them; nil are no conditions.
func (c *predicates) hold(in *http.Request) bool {
	switch {
	case c == nil:
		return true
	case c.method != "" && in.Method != c.method:
		return false
	case c.path != nil && !c.path.MatchString(in.URL.Path):
		return false
	}
	for i := range c.fields {
		f := &c.fields[i]
		values := in.Header[f.name]
		if f.name == "Host" {
			values = []string{in.Host}
		}
		if len(values) == 0 || !f.holds(strings.Join(values, ",")) {
			return false
		}
	}
	if len(c.queries) == 0 {
		return true
	}
	query, _ := url.ParseQuery(in.URL.RawQuery) // what can be read of it
	for i := range c.queries {
		p := &c.queries[i]
		if values := query[p.name]; len(values) == 0 || !p.holds(values[0]) {
			return false
		}
	}
	return true
}

// shares divide the requests of a route among several backends by weight. Each
// has a route of its own, as its filters may differ.
type shares struct {
	total  int
	routes []*route
	upTo   []int // sums of the weights
}

func (s *shares) choose(dice func(n int) int) *route {
	n := dice(s.total)
	for i, end := range s.upTo {
		if n < end {
			return s.routes[i]
		}
	}
	return s.routes[len(s.routes)-1]
}
