package ingress

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

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
