package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/control"
	"podgate/kube"
)

// gatewayObjects are objects of the Gateway API, with what was found about them.
func (g *gateway) gatewayObjects(st *kube.State, q control.GetRequest) []any {
	g.mu.Lock()
	found := &kube.Statuses{}
	if r := g.compiled.routes; r != nil {
		found = r.Statuses()
	}
	g.mu.Unlock()
	switch q.Kind {
	case "gatewayclasses":
		return withStatus(pickNamed(st.GatewayClasses, q.Name), func(o *gatewayv1.GatewayClass) { put(&o.Status, found.GatewayClasses[o.Name]) })
	case "gateways":
		return withStatus(pick(st.Gateways, q), func(o *gatewayv1.Gateway) { put(&o.Status, found.Gateways[nameOf(o)]) })
	case "httproutes":
		return withStatus(pick(st.HTTPRoutes, q), func(o *gatewayv1.HTTPRoute) { put(&o.Status.RouteStatus, found.HTTPRoutes[nameOf(o)]) })
	case "grpcroutes":
		return withStatus(pick(st.GRPCRoutes, q), func(o *gatewayv1.GRPCRoute) { put(&o.Status.RouteStatus, found.GRPCRoutes[nameOf(o)]) })
	case "tlsroutes":
		return withStatus(pick(st.TLSRoutes, q), func(o *gatewayv1.TLSRoute) { put(&o.Status.RouteStatus, found.TLSRoutes[nameOf(o)]) })
	case "backendtlspolicies":
		return withStatus(pick(st.BackendTLSPolicies, q), func(o *gatewayv1.BackendTLSPolicy) { put(&o.Status, found.BackendTLSPolicies[nameOf(o)]) })
	}
	return pick(st.ReferenceGrants, q)
}

// withStatus are copies of objects, which are shared and immutable.
func withStatus[T kube.API](items []any, put func(T)) []any {
	for i, item := range items {
		o := item.(T).DeepCopyObject().(T)
		put(o)
		items[i] = o
	}
	return items
}

func put[T any](to, found *T) {
	if found != nil {
		*to = *found
	}
}

func nameOf(o metav1.Object) kube.Name {
	return kube.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// condition is the status of a condition, as a column of kubectl's has it.
func condition(all []metav1.Condition, kind string) string {
	if c := meta.FindStatusCondition(all, kind); c != nil {
		return string(c.Status)
	}
	return ""
}

func (p *getPrinter) gatewayClasses(items []json.RawMessage) error {
	heads := []string{"CONTROLLER", "ACCEPTED", "AGE"}
	return object(p, items, func(o *gatewayv1.GatewayClass) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *gatewayv1.GatewayClass) []string {
		return []string{string(o.Spec.ControllerName), condition(o.Status.Conditions, "Accepted"), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) gateways(items []json.RawMessage) error {
	heads := []string{"CLASS", "ADDRESS", "PROGRAMMED", "AGE"}
	if p.wide {
		heads = append(heads, "LISTENERS")
	}
	return object(p, items, func(o *gatewayv1.Gateway) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *gatewayv1.Gateway) []string {
		var addrs, listeners []string
		for _, a := range o.Status.Addresses {
			addrs = append(addrs, a.Value)
		}
		row := []string{string(o.Spec.GatewayClassName), strings.Join(addrs, ","), condition(o.Status.Conditions, "Programmed"), since(&o.ObjectMeta)}
		if p.wide {
			for _, l := range o.Spec.Listeners {
				listeners = append(listeners, fmt.Sprintf("%s:%d/%s", l.Name, l.Port, l.Protocol))
			}
			row = append(row, strings.Join(listeners, ","))
		}
		return row
	})
}

func hostnames[T ~string](all []T) string {
	var out []string
	for _, h := range all {
		out = append(out, string(h))
	}
	return strings.Join(out, ",")
}

// parents says which Gateways took a route, and why others did not.
func parents(s *gatewayv1.RouteStatus) string {
	var out []string
	for _, p := range s.Parents {
		name := string(p.ParentRef.Name)
		if c := meta.FindStatusCondition(p.Conditions, string(gatewayv1.RouteConditionAccepted)); c != nil && c.Status != metav1.ConditionTrue {
			name += " (" + c.Reason + ")"
		} else if c := meta.FindStatusCondition(p.Conditions, string(gatewayv1.RouteConditionResolvedRefs)); c != nil && c.Status != metav1.ConditionTrue {
			name += " (" + c.Reason + ")"
		}
		out = append(out, name)
	}
	return strings.Join(out, ",")
}

// routeTable prints one of the kinds of routes.
func routeTable[T any](p *getPrinter, items []json.RawMessage, of func(*T) (*metav1.ObjectMeta, []gatewayv1.Hostname, *gatewayv1.RouteStatus)) error {
	heads := []string{"HOSTNAMES", "PARENTS", "AGE"}
	return object(p, items, func(o *T) *metav1.ObjectMeta { m, _, _ := of(o); return m }, heads, func(o *T) []string {
		m, hosts, status := of(o)
		return []string{hostnames(hosts), parents(status), since(m)}
	})
}

func (p *getPrinter) httpRoutes(items []json.RawMessage) error {
	return routeTable(p, items, func(o *gatewayv1.HTTPRoute) (*metav1.ObjectMeta, []gatewayv1.Hostname, *gatewayv1.RouteStatus) {
		return &o.ObjectMeta, o.Spec.Hostnames, &o.Status.RouteStatus
	})
}

func (p *getPrinter) grpcRoutes(items []json.RawMessage) error {
	return routeTable(p, items, func(o *gatewayv1.GRPCRoute) (*metav1.ObjectMeta, []gatewayv1.Hostname, *gatewayv1.RouteStatus) {
		return &o.ObjectMeta, o.Spec.Hostnames, &o.Status.RouteStatus
	})
}

func (p *getPrinter) tlsRoutes(items []json.RawMessage) error {
	return routeTable(p, items, func(o *gatewayv1.TLSRoute) (*metav1.ObjectMeta, []gatewayv1.Hostname, *gatewayv1.RouteStatus) {
		return &o.ObjectMeta, o.Spec.Hostnames, &o.Status.RouteStatus
	})
}

func (p *getPrinter) referenceGrants(items []json.RawMessage) error {
	return object(p, items, func(o *gatewayv1.ReferenceGrant) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"FROM", "TO", "AGE"}, func(o *gatewayv1.ReferenceGrant) []string {
		var from, to []string
		for _, f := range o.Spec.From {
			from = append(from, fmt.Sprintf("%s/%s", f.Namespace, f.Kind))
		}
		for _, t := range o.Spec.To {
			s := string(t.Kind)
			if t.Name != nil {
				s += "/" + string(*t.Name)
			}
			to = append(to, s)
		}
		return []string{strings.Join(from, ","), strings.Join(to, ","), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) backendTLSPolicies(items []json.RawMessage) error {
	return object(p, items, func(o *gatewayv1.BackendTLSPolicy) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"TARGETS", "AGE"}, func(o *gatewayv1.BackendTLSPolicy) []string {
		var to []string
		for _, t := range o.Spec.TargetRefs {
			to = append(to, fmt.Sprintf("%s/%s", t.Kind, t.Name))
		}
		return []string{strings.Join(to, ","), since(&o.ObjectMeta)}
	})
}
