package ingress

import (
	"cmp"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// traceGateways says what happens to a GET request that a Gateway's listener is
// for; nil if there is none. The port of the URL chooses among the doors, also as
// that of a listener which was moved to a port without privilege.
func (r *Routes) traceGateways(hostname, path, query string, tls bool) *Trace {
	name := matchHost(hostname)
	port := wellKnown["http"]
	if tls {
		port = wellKnown["https"]
	}
	if u, err := url.Parse("//" + hostname); err == nil && u.Port() != "" {
		n, _ := strconv.ParseUint(u.Port(), 10, 16)
		port = uint16(n)
	}
	at, _ := netip.ParseAddr(name)
	var best *listener
	var door netip.AddrPort
	for _, e := range r.Entrances() {
		l := r.doors[e.At].listeners.first(name)
		if l == nil || e.At.Port() != port && e.At.Port()+r.source.cfg.gateway.LowPorts != port || at.IsValid() && !e.At.Addr().IsUnspecified() && e.At.Addr() != at {
			continue
		}
		if best == nil {
			best, door = l, e.At
		}
	}
	if best == nil || best.https != tls {
		return nil
	}
	t := &Trace{}
	scheme := "http"
	if tls {
		scheme = "https"
	}
	clean := cleanPath(path)
	t.say("request %s://%s%s", scheme, hostname, path)
	if clean != path {
		t.say("path is taken as %s", clean)
	}
	t.say("door %s: listener %s of Gateway %s, for %s", door, best.name, best.gateway, cmp.Or(best.hostname, "every host"))
	in := &http.Request{Method: http.MethodGet, Host: hostname, Header: http.Header{}, URL: &url.URL{Path: decoded(clean), RawQuery: query}}
	h, rt := best.match(name, matchPath(clean), in)
	if rt == nil {
		if h != nil {
			t.others(h, nil, matchPath(clean))
		}
		if _, shared := r.source.cfg.gateway.Ingress[door]; shared {
			return nil // the Ingresses are asked
		}
		t.Status = http.StatusNotFound
		t.say("answered 404 by podgate: no route matches")
		return t
	}
	t.say("path %q: %s %q of %s, %s", clean, rt.kind, rt.path, rt.object(), rt.field)
	if rt.when != nil {
		t.say("and %s", rt.when)
	}
	t.others(h, rt, matchPath(clean))
	if rt.split != nil {
		for i, part := range rt.split.routes {
			weight := rt.split.upTo[i]
			if i > 0 {
				weight -= rt.split.upTo[i-1]
			}
			t.say("share %d of %d: backend %s: %s", weight, rt.split.total, part.backend, cmp.Or(part.backend.why, join(part.backend.endpoints, 8)))
		}
		return t
	}
	t.gatewayAnswer(rt, clean)
	return t
}

func (t *Trace) gatewayAnswer(rt *route, path string) {
	o, b := rt.options, rt.backend
	if o.redirect != nil {
		t.Status = o.redirect.code
		t.say("answered %d by podgate: redirect (filter RequestRedirect)", o.redirect.code)
		return
	}
	if o.path != nil {
		t.say("path is rewritten to %s", o.path.path(path))
	}
	if len(b.endpoints) == 0 {
		t.Status = cmp.Or(b.status, http.StatusServiceUnavailable)
		t.say("backend %s: %s", b, b.why)
		t.say("answered %d by podgate", t.Status)
		return
	}
	t.say("backend %s: %d endpoints in turn: %s", b, len(b.endpoints), join(b.endpoints, 8))
}

// String lists the predicates: "method GET, field Version v2, parameter a b".
func (c *predicates) String() string {
	var out []string
	if c.method != "" {
		out = append(out, "method "+c.method)
	}
	if c.path != nil {
		out = append(out, "path like "+c.path.String())
	}
	for _, f := range c.fields {
		out = append(out, "field "+f.name+" "+f.text())
	}
	for _, q := range c.queries {
		out = append(out, "parameter "+q.name+" "+q.text())
	}
	return strings.Join(out, ", ")
}

func (c *predicate) text() string {
	if c.pattern != nil {
		return "like " + c.pattern.String()
	}
	return c.value
}
