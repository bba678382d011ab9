package kube

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Statuses are what podgate found about the objects of the Gateway API, by
// object: those of whom there is something to say. They are immutable; a status
// that did not change is the same pointer as in the Statuses before.
//
// Of a Route's parents and a policy's ancestors only those of [GatewayController]
// are there: who writes them to an API server leaves other controllers' alone.
type Statuses struct {
	GatewayClasses     map[string]*gatewayv1.GatewayClassStatus
	Gateways           map[Name]*gatewayv1.GatewayStatus
	HTTPRoutes         map[Name]*gatewayv1.RouteStatus
	GRPCRoutes         map[Name]*gatewayv1.RouteStatus
	TLSRoutes          map[Name]*gatewayv1.RouteStatus
	BackendTLSPolicies map[Name]*gatewayv1.PolicyStatus
}
