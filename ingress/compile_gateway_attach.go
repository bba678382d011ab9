package ingress

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// To which listeners routes are attached.

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
		if n := len(l.attached); n == 0 || l.attached[n-1] != r { // by another parent
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
