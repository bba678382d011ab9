package ingress

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// Routes of the Gateway API: to which listeners they are attached, and what
// their rules compile to.

// routeObject is a route in the making.
type routeObject struct {
	kube.API
	kind     string
	parents  []gatewayv1.ParentReference
	hosts    []string // none: any
	rules    []*ruleObject
	invalid  verdict // all of the rules
	partial  verdict // some of the rules
	resolved verdict
	bound    []*parentObject
	backends []kube.Name // Services that it names
}

// parentObject is what became of one reference to a Gateway of ours.
type parentObject struct {
	ref       gatewayv1.ParentReference
	gateway   *gatewayObject
	listeners []*listenerObject
	accepted  verdict
}

// ruleObject is a rule: what its matches lead to.
type ruleObject struct {
	field   string
	invalid verdict
	matches []matchObject
	route   *route // a copy for each match and hostname is what is entered
}

type matchObject struct {
	path    string
	kind    kind
	pattern *regexp.Regexp // of the path
	when    *predicates
}

func (r *routeObject) name() kube.Name {
	return kube.Name{Namespace: r.GetNamespace(), Name: r.GetName()}
}

// attachRoutes finds the listeners of every route.
func (g *gatewayCompiler) attachRoutes() {
	for _, o := range g.state.HTTPRoutes {
		g.routes = append(g.routes, g.httpRoute(o))
	}
	for _, o := range g.state.GRPCRoutes {
		g.routes = append(g.routes, g.grpcRoute(o))
	}
	for _, o := range g.state.TLSRoutes {
		g.routes = append(g.routes, g.tlsRoute(o))
	}
	slices.SortFunc(g.routes, func(a, b *routeObject) int { return cmp.Or(older(a, b), cmp.Compare(a.kind, b.kind)) })
	for _, r := range g.routes {
		for i, ref := range r.parents {
			g.attach(r, i, ref)
		}
	}
}

func lower(all []gatewayv1.Hostname) (out []string) {
	for _, h := range all {
		out = append(out, strings.ToLower(string(h)))
	}
	return out
}

// attach finds the listeners that one of a route's parents is.
func (g *gatewayCompiler) attach(r *routeObject, i int, ref gatewayv1.ParentReference) {
	if *ref.Group != gatewayv1.GroupName || *ref.Kind != "Gateway" {
		return
	}
	name := kube.Name{Namespace: r.GetNamespace(), Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	gw := g.byName[name]
	if gw == nil {
		if g.state.Gateways[name] == nil {
			g.blame(r, r.kind, fmt.Sprintf("spec.parentRefs[%d]", i), verdict{reason: string(gatewayv1.RouteReasonNoMatchingParent), message: fmt.Sprintf("no Gateway %q in namespace %q", name.Name, name.Namespace)})
		}
		return
	}
	p := &parentObject{ref: ref, gateway: gw}
	r.bound = append(r.bound, p)
	v := verdict{reason: string(gatewayv1.RouteReasonNoMatchingParent), message: fmt.Sprintf("Gateway %s has no such listener", name)}
	rank := 0
	worst := func(n int, reason gatewayv1.RouteConditionReason, format string, args ...any) {
		if n > rank {
			rank, v = n, verdict{reason: string(reason), message: fmt.Sprintf(format, args...)}
		}
	}
	for _, l := range gw.listeners {
		switch {
		case ref.SectionName != nil && string(*ref.SectionName) != l.name, ref.Port != nil && *ref.Port != l.spec.Port:
		case !slices.ContainsFunc(l.kinds, func(k gatewayv1.RouteGroupKind) bool { return string(k.Kind) == r.kind }):
			worst(1, gatewayv1.RouteReasonNotAllowedByListeners, "listener %s takes no %ss", l.name, r.kind)
		case !l.allows(g, r.GetNamespace()):
			worst(1, gatewayv1.RouteReasonNotAllowedByListeners, "listener %s takes no routes of namespace %q", l.name, r.GetNamespace())
		case !r.meets(l.hostname):
			worst(2, gatewayv1.RouteReasonNoMatchingListenerHostname, "none of the hostnames is for one of listener %s, %q", l.name, l.hostname)
		default:
			if other := l.rival(r); other != nil {
				worst(3, "HostnameConflict", "%s %s is attached to listener %s with a hostname that is also this route's: a hostname has routes of one kind", other.kind, other.name(), l.name)
				continue
			}
			p.listeners = append(p.listeners, l)
		}
	}
	if len(p.listeners) == 0 {
		p.accepted = v
		return
	}
	if r.invalid.bad() {
		p.accepted = r.invalid
		return
	}
	for _, l := range p.listeners {
		if !slices.Contains(l.attached, r) {
			l.attached = append(l.attached, r)
		}
	}
}

// meets reports whether some host is for a listener's hostname and the route's.
func (r *routeObject) meets(hostname string) bool {
	return len(r.hosts) == 0 || slices.ContainsFunc(r.hosts, func(h string) bool { return intersects(h, hostname) })
}

// rival is the route of another kind that has a hostname of this one already.
func (l *listenerObject) rival(r *routeObject) *routeObject {
	for _, other := range l.attached {
		if other.kind == r.kind {
			continue
		}
		for _, a := range l.served(other) {
			for _, b := range l.served(r) {
				if intersects(a, b) {
					return other
				}
			}
		}
	}
	return nil
}

// served are the hostnames that a route has at a listener.
func (l *listenerObject) served(r *routeObject) (out []string) {
	if len(r.hosts) == 0 {
		return []string{l.hostname}
	}
	for _, h := range r.hosts {
		switch {
		case covers(l.hostname, h):
			out = append(out, h)
		case covers(h, l.hostname):
			out = append(out, l.hostname)
		}
	}
	return out
}

// compileRoutes enters the rules of all routes in the tables of their listeners.
func (g *gatewayCompiler) compileRoutes() {
	tables := map[*host]map[place][]*route{}
	for _, r := range g.routes {
		for _, l := range r.taken() {
			if r.kind == "TLSRoute" {
				g.pass(l, r)
				continue
			}
			hosts := r.hosts
			if len(hosts) == 0 {
				hosts = []string{""}
			}
			for _, h := range hosts {
				if !intersects(h, l.hostname) {
					continue
				}
				table, ok := l.routes.get(h)
				if !ok {
					table = &host{name: cmp.Or(h, l.hostname), exact: map[string]*route{}, prefix: map[string]*route{}}
					l.routes.set(h, table)
					tables[table] = map[place][]*route{}
				}
				for _, rule := range r.rules {
					rule.enter(table, tables[table])
					l.conditional = l.conditional || slices.ContainsFunc(rule.matches, func(m matchObject) bool { return m.when != nil })
				}
			}
		}
	}
	for table, places := range tables {
		table.chain(places)
	}
}

// taken are the listeners that a route is attached to.
func (r *routeObject) taken() (out []*listenerObject) {
	for _, p := range r.bound {
		if p.accepted.bad() {
			continue
		}
		for _, l := range p.listeners {
			if !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	return out
}

// place is a path in the tables of a host.
type place struct {
	kind kind
	path string
}

// patterns is the place of regular expressions.
var patterns = place{kind: implementationSpecific}

// enter adds the routes of a rule, in order, at their places.
func (u *ruleObject) enter(table *host, places map[place][]*route) {
	if u.invalid.bad() {
		return
	}
	for _, m := range u.matches {
		r := *u.route
		r.host, r.path, r.kind, r.when, r.pattern = table.name, m.path, m.kind, m.when, m.pattern
		at := place{m.kind, matchPath(m.path)}
		switch m.kind {
		case implementationSpecific:
			at = patterns
		case prefixPath:
			at.path = strings.TrimSuffix(at.path, "/")
			table.depth = max(table.depth, strings.Count(at.path, "/"))
		}
		if r.split != nil {
			r.split = r.split.at(&r)
		}
		places[at] = append(places[at], &r)
	}
}

// at is the split of a copy of its route.
func (s *shares) at(r *route) *shares {
	out := &shares{total: s.total, upTo: s.upTo}
	for _, part := range s.routes {
		p := *r
		p.options, p.backend, p.stats, p.split = part.options, part.backend, part.stats, nil
		out.routes = append(out.routes, &p)
	}
	return out
}

// chain orders the routes at each place by precedence.
func (h *host) chain(places map[place][]*route) {
	for at, all := range places {
		slices.SortStableFunc(all, func(a, b *route) int {
			if at == patterns {
				if d := cmp.Compare(len(b.path), len(a.path)); d != 0 {
					return d
				}
			}
			return b.when.compare(a.when)
		})
		if at == patterns {
			h.regexes = all
			continue
		}
		for i := range all[1:] {
			all[i].next = all[i+1]
		}
		if at.kind == exactPath {
			h.exact[at.path] = all[0]
		} else {
			h.prefix[at.path] = all[0]
		}
	}
}

// compare orders conditions by precedence, the weaker first: with a method, then
// by the number of fields, then of parameters.
func (c *predicates) compare(d *predicates) int {
	count := func(c *predicates) (method, fields, queries int) {
		if c == nil {
			return 0, 0, 0
		}
		if c.method != "" || c.path != nil {
			method = 1
		}
		return method, len(c.fields), len(c.queries)
	}
	cm, cf, cq := count(c)
	dm, df, dq := count(d)
	return cmp.Or(cmp.Compare(cm, dm), cmp.Compare(cf, df), cmp.Compare(cq, dq))
}

// httpRoute compiles an HTTPRoute, wherever it will be attached.
func (g *gatewayCompiler) httpRoute(o *gatewayv1.HTTPRoute) *routeObject {
	r := &routeObject{API: o, kind: "HTTPRoute", parents: o.Spec.ParentRefs, hosts: lower(o.Spec.Hostnames)}
	for i := range o.Spec.Rules {
		rule := &o.Spec.Rules[i]
		u := &ruleObject{field: fmt.Sprintf("spec.rules[%d]", i)}
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for _, m := range matches {
			u.matches = append(u.matches, u.httpMatch(m))
		}
		f := filters{g: g, r: r, u: u, prefix: u.prefix()}
		o := gatewayOptions()
		f.http(o, rule.Filters)
		u.times(o, rule.Timeouts, rule.Retry)
		if rule.SessionPersistence != nil {
			u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "sessionPersistence is not supported")
		}
		var parts []share
		for j, b := range rule.BackendRefs {
			backend, v := g.service(r, b.BackendObjectReference)
			r.resolve(fmt.Sprintf("%s.backendRefs[%d]", u.field, j), v)
			own := o
			if len(b.Filters) > 0 {
				own = o.clone()
				f.http(own, b.Filters)
			}
			parts = append(parts, share{backend, own, int(deref(b.Weight))})
		}
		g.finish(r, u, f, o, parts)
	}
	r.judge()
	return r
}

// share is one backend of a rule.
type share struct {
	backend *backend
	options *options
	weight  int
}

// finish makes the route of a rule.
func (g *gatewayCompiler) finish(r *routeObject, u *ruleObject, f filters, o *options, parts []share) {
	rt := func(b *backend, o *options) *route {
		out := &route{of: r.kind, ingress: r.name(), field: u.field, options: o, backend: b}
		out.stats = g.stats(out)
		return out
	}
	u.route = rt(&backend{port: "none", why: "the rule has no backends", status: http.StatusInternalServerError}, o)
	if f.broken != "" {
		u.route.backend, u.route.options = &backend{port: "none", why: f.broken, status: http.StatusInternalServerError}, gatewayOptions()
	} else if len(parts) == 1 && parts[0].weight > 0 {
		u.route = rt(parts[0].backend, parts[0].options)
	} else if len(parts) > 0 {
		s := &shares{}
		for _, p := range parts {
			if p.weight > 0 {
				s.total += p.weight
				s.routes, s.upTo = append(s.routes, rt(p.backend, p.options)), append(s.upTo, s.total)
			}
		}
		if s.total > 0 {
			u.route = rt(s.routes[0].backend, o)
			u.route.split = s
		} else {
			u.route.backend.why = "all backends of the rule have weight 0"
		}
	}
	r.rules = append(r.rules, u)
}

// resolve notes a reference that leads nowhere.
func (r *routeObject) resolve(field string, v verdict) {
	if v.bad() && !r.resolved.bad() {
		r.resolved = verdict{v.reason, v.message, field}
	}
}

// judge says what invalid rules mean for their route.
func (r *routeObject) judge() {
	bad := 0
	var first verdict
	for _, u := range r.rules {
		if u.invalid.bad() {
			bad++
			if !first.bad() {
				first = verdict{u.invalid.reason, u.invalid.message, u.field}
			}
		}
	}
	switch {
	case bad == 0:
	case bad == len(r.rules):
		r.invalid = first
	default:
		r.partial = verdict{first.reason, "Dropped Rule: " + first.text(), first.field}
	}
}

// gatewayOptions are those of a rule that asks for nothing.
func gatewayOptions() *options {
	return &options{retry: retry{on: onError, tries: 3}}
}

func (o *options) clone() *options {
	c := *o
	c.mirrors = slices.Clone(o.mirrors)
	return &c
}

func (u *ruleObject) pattern(what, expr string, whole bool) *regexp.Regexp {
	if whole {
		expr = "^(?:" + expr + ")$"
	}
	p, err := regexp.Compile(expr)
	if err != nil {
		u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "%s: %v", what, err)
	}
	return p
}

func (u *ruleObject) httpMatch(m gatewayv1.HTTPRouteMatch) matchObject {
	out := matchObject{path: "/", kind: prefixPath}
	if p := m.Path; p != nil {
		out.path = cmp.Or(deref(p.Value), "/")
		switch t := deref(p.Type); t {
		case gatewayv1.PathMatchExact:
			out.kind = exactPath
		case gatewayv1.PathMatchRegularExpression:
			out.kind, out.pattern = implementationSpecific, u.pattern("path", out.path, true)
		case gatewayv1.PathMatchPathPrefix, "":
		default:
			u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "path type %s", t)
		}
	}
	c := &predicates{method: string(deref(m.Method))}
	for _, h := range m.Headers {
		c.fields = u.condition(c.fields, http.CanonicalHeaderKey(string(h.Name)), h.Value, string(deref(h.Type)))
	}
	for _, q := range m.QueryParams {
		c.queries = u.condition(c.queries, string(q.Name), q.Value, string(deref(q.Type)))
	}
	if c.method != "" || len(c.fields)+len(c.queries) > 0 {
		out.when = c
	}
	return out
}

// condition adds one of a field or parameter; the first of each name counts.
func (u *ruleObject) condition(all []predicate, name, value, kind string) []predicate {
	if slices.ContainsFunc(all, func(c predicate) bool { return c.name == name }) {
		return all
	}
	c := predicate{name: name, value: value}
	switch kind {
	case "RegularExpression":
		c.pattern = u.pattern(name, value, true)
	case "Exact", "":
	default:
		u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "match type %s", kind)
	}
	return append(all, c)
}

// prefix is what a ReplacePrefixMatch replaces.
func (u *ruleObject) prefix() string {
	if len(u.matches) == 1 && u.matches[0].kind == prefixPath {
		return strings.TrimSuffix(u.matches[0].path, "/")
	}
	return ""
}

func (u *ruleObject) times(o *options, t *gatewayv1.HTTPRouteTimeouts, again *gatewayv1.HTTPRouteRetry) {
	duration := func(d *gatewayv1.Duration) time.Duration {
		if d == nil {
			return 0
		}
		out, err := time.ParseDuration(string(*d))
		if err != nil {
			u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "%v", err)
		}
		return out
	}
	if t != nil {
		o.within, o.attempt = duration(t.Request), duration(t.BackendRequest)
	}
	if again != nil {
		o.retry = retry{on: onError | onTimeout | nonIdempotent, same: true, tries: 1 + defaultRetries, backoff: duration(again.Backoff), codes: map[int]bool{}}
		if again.Attempts != nil {
			o.retry.tries = 1 + *again.Attempts
		}
		for _, code := range again.Codes {
			o.retry.codes[int(code)] = true
		}
	}
}

// defaultRetries are those of a retry stanza that says no number.
const defaultRetries = 2

// grpcRoute compiles a GRPCRoute: a method is a path.
func (g *gatewayCompiler) grpcRoute(o *gatewayv1.GRPCRoute) *routeObject {
	r := &routeObject{API: o, kind: "GRPCRoute", parents: o.Spec.ParentRefs, hosts: lower(o.Spec.Hostnames)}
	rules := o.Spec.Rules
	if len(rules) == 0 {
		rules = []gatewayv1.GRPCRouteRule{{}}
	}
	for i := range rules {
		rule := &rules[i]
		u := &ruleObject{field: fmt.Sprintf("spec.rules[%d]", i)}
		matches := rule.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.GRPCRouteMatch{{}}
		}
		for _, m := range matches {
			u.matches = append(u.matches, u.grpcMatch(m))
		}
		f := filters{g: g, r: r, u: u}
		o := gatewayOptions()
		f.grpc(o, rule.Filters)
		if rule.SessionPersistence != nil {
			u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "sessionPersistence is not supported")
		}
		var parts []share
		for j, b := range rule.BackendRefs {
			backend, v := g.service(r, b.BackendObjectReference)
			r.resolve(fmt.Sprintf("%s.backendRefs[%d]", u.field, j), v)
			own := o
			if len(b.Filters) > 0 {
				own = o.clone()
				f.grpc(own, b.Filters)
			}
			parts = append(parts, share{backend, own, int(deref(b.Weight))})
		}
		g.finish(r, u, f, o, parts)
	}
	r.judge()
	return r
}

func (u *ruleObject) grpcMatch(m gatewayv1.GRPCRouteMatch) matchObject {
	out := matchObject{path: "/", kind: prefixPath}
	c := &predicates{}
	if p := m.Method; p != nil {
		service, method := deref(p.Service), deref(p.Method)
		if deref(p.Type) == gatewayv1.GRPCMethodMatchRegularExpression {
			out.kind = implementationSpecific
			out.path = "/" + cmp.Or(service, "[^/]+") + "/" + cmp.Or(method, "[^/]+")
			out.pattern = u.pattern("method", "/(?:"+cmp.Or(service, "[^/]+")+")/(?:"+cmp.Or(method, "[^/]+")+")", true)
		} else if service != "" && method != "" {
			out.path, out.kind = "/"+service+"/"+method, exactPath
		} else if service != "" {
			out.path = "/" + service
		} else {
			c.path = regexp.MustCompile("^/[^/]+/" + regexp.QuoteMeta(method) + "$")
		}
	}
	for _, h := range m.Headers {
		c.fields = u.condition(c.fields, http.CanonicalHeaderKey(string(h.Name)), h.Value, string(deref(h.Type)))
	}
	if c.path != nil || len(c.fields) > 0 {
		out.when = c
	}
	return out
}

// tlsRoute compiles a TLSRoute: its one rule has backends only.
func (g *gatewayCompiler) tlsRoute(o *gatewayv1.TLSRoute) *routeObject {
	r := &routeObject{API: o, kind: "TLSRoute", parents: o.Spec.ParentRefs, hosts: lower(o.Spec.Hostnames)}
	for i := range o.Spec.Rules {
		u := &ruleObject{field: fmt.Sprintf("spec.rules[%d]", i)}
		var parts []share
		for j, b := range o.Spec.Rules[i].BackendRefs {
			backend, v := g.service(r, b.BackendObjectReference)
			r.resolve(fmt.Sprintf("%s.backendRefs[%d]", u.field, j), v)
			parts = append(parts, share{backend, gatewayOptions(), int(deref(b.Weight))})
		}
		g.finish(r, u, filters{}, gatewayOptions(), parts)
	}
	return r
}

// pass enters a TLSRoute at a listener; the oldest has a name.
func (g *gatewayCompiler) pass(l *listenerObject, r *routeObject) {
	for _, h := range l.served(r) {
		if _, taken := l.passed.get(h); !taken && len(r.rules) > 0 {
			l.passed.set(h, r.rules[0].route)
		}
	}
}
