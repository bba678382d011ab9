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
)

// What the rules of HTTPRoutes, GRPCRoutes and TLSRoutes compile to, wherever
// they will be attached.

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
			own := o
			if len(b.Filters) > 0 {
				own = o.clone()
				f.http(own, b.Filters)
			}
			parts = append(parts, g.share(r, u, j, b.BackendRef, own))
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

// share reads backend j of a rule, which has these options.
func (g *gatewayCompiler) share(r *routeObject, u *ruleObject, j int, b gatewayv1.BackendRef, o *options) share {
	backend, v := g.service(r, b.BackendObjectReference)
	r.resolve(fmt.Sprintf("%s.backendRefs[%d]", u.field, j), v)
	return share{backend, o, int(deref(b.Weight))}
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
			own := o
			if len(b.Filters) > 0 {
				own = o.clone()
				f.grpc(own, b.Filters)
			}
			parts = append(parts, g.share(r, u, j, b.BackendRef, own))
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
