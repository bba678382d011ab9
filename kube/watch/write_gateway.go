package watch

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// gatewayStatuses calls write for each status of the Gateway API that differs
// from what the API server has. Of a Route's parents and a policy's ancestors
// those of other controllers stay, and ours go that are no longer so; such a
// status is written only over the version that it was made from.
func gatewayStatuses(r Report, write func(resource string, o kube.API, shared bool, status any)) {
	if r.Statuses == nil {
		return
	}
	for n, want := range r.Statuses.GatewayClasses {
		if o := r.State.GatewayClasses[n]; o != nil && !equality.Semantic.DeepEqual(&o.Status, want) {
			write("gatewayclasses", o, false, want)
		}
	}
	for n, want := range r.Statuses.Gateways {
		if o := r.State.Gateways[n]; o != nil && !equality.Semantic.DeepEqual(&o.Status, want) {
			write("gateways", o, false, want)
		}
	}
	for n, o := range r.State.HTTPRoutes {
		routeStatus("httproutes", o, &o.Status.RouteStatus, r.Statuses.HTTPRoutes[n], write)
	}
	for n, o := range r.State.GRPCRoutes {
		routeStatus("grpcroutes", o, &o.Status.RouteStatus, r.Statuses.GRPCRoutes[n], write)
	}
	for n, o := range r.State.TLSRoutes {
		routeStatus("tlsroutes", o, &o.Status.RouteStatus, r.Statuses.TLSRoutes[n], write)
	}
	for n, o := range r.State.BackendTLSPolicies {
		var ours []gatewayv1.PolicyAncestorStatus
		if s := r.Statuses.BackendTLSPolicies[n]; s != nil {
			ours = s.Ancestors
		}
		want := merge(o.Status.Ancestors, ours, func(a gatewayv1.PolicyAncestorStatus) bool { return a.ControllerName == kube.GatewayController })
		if !equality.Semantic.DeepEqual(o.Status.Ancestors, want) {
			write("backendtlspolicies", o, true, gatewayv1.PolicyStatus{Ancestors: want})
		}
	}
}

func routeStatus(resource string, o kube.API, have, found *gatewayv1.RouteStatus, write func(string, kube.API, bool, any)) {
	var ours []gatewayv1.RouteParentStatus
	if found != nil {
		ours = found.Parents
	}
	want := merge(have.Parents, ours, func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == kube.GatewayController })
	if !equality.Semantic.DeepEqual(have.Parents, want) {
		write(resource, o, true, gatewayv1.RouteStatus{Parents: want})
	}
}

// merge is a list with what is ours in it replaced. Without a change it is equal.
func merge[T any](have, ours []T, isOurs func(T) bool) []T {
	var was []T
	for _, x := range have {
		if isOurs(x) {
			was = append(was, x)
		}
	}
	if equality.Semantic.DeepEqual(was, ours) {
		return have
	}
	return append(slices.DeleteFunc(slices.Clone(have), isOurs), ours...)
}
