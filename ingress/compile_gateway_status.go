package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// supportedFeatures are the names of the specification's features that are here.
// They are sorted, as the specification wants.
var supportedFeatures = []gatewayv1.FeatureName{
	"BackendTLSPolicy", "BackendTLSPolicySANValidation", "GRPCRoute", "GRPCRouteNamedRouteRule", "Gateway", "GatewayAddressEmpty",
	"GatewayFrontendClientCertificateValidation", "GatewayFrontendClientCertificateValidationInsecureFallback",
	"GatewayHTTPListenerIsolation", "GatewayHTTPSListenerDetectMisdirectedRequests", "GatewayPort8080", "GatewayStaticAddresses",
	"HTTPRoute", "HTTPRoute303RedirectStatusCode", "HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode",
	"HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket", "HTTPRouteBackendRequestHeaderModification", "HTTPRouteBackendTimeout",
	"HTTPRouteCORS", "HTTPRouteDestinationPortMatching", "HTTPRouteHostRewrite", "HTTPRouteMethodMatching", "HTTPRouteNamedRouteRule",
	"HTTPRouteParentRefPort", "HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect", "HTTPRouteQueryParamMatching",
	"HTTPRouteRequestMirror", "HTTPRouteRequestMultipleMirrors", "HTTPRouteRequestPercentageMirror", "HTTPRouteRequestTimeout",
	"HTTPRouteResponseHeaderModification", "HTTPRouteRetry", "HTTPRouteRetryBackendTimeout", "HTTPRouteRetryConnectionError",
	"HTTPRouteSchemeRedirect", "ReferenceGrant", "TLSRoute",
}

// status says what became of every object that is ours.
func (g *gatewayCompiler) status() *kube.Statuses {
	prev := g.prev.statuses
	if prev == nil {
		prev = &kube.Statuses{}
	}
	out := &kube.Statuses{
		GatewayClasses: map[string]*gatewayv1.GatewayClassStatus{}, Gateways: map[kube.Name]*gatewayv1.GatewayStatus{},
		HTTPRoutes: map[kube.Name]*gatewayv1.RouteStatus{}, GRPCRoutes: map[kube.Name]*gatewayv1.RouteStatus{}, TLSRoutes: map[kube.Name]*gatewayv1.RouteStatus{},
		BackendTLSPolicies: map[kube.Name]*gatewayv1.PolicyStatus{},
	}
	for name, class := range g.state.GatewayClasses {
		if class.Spec.ControllerName == kube.GatewayController {
			keep(out.GatewayClasses, prev.GatewayClasses, name, g.classStatus(class, cmp.Or(prev.GatewayClasses[name], &class.Status)))
		}
	}
	for _, gw := range g.gateways {
		keep(out.Gateways, prev.Gateways, gw.name, g.gatewayStatus(gw, cmp.Or(prev.Gateways[gw.name], &gw.Status)))
	}
	for _, r := range g.routes {
		if len(r.bound) == 0 {
			continue
		}
		into, from := out.HTTPRoutes, prev.HTTPRoutes
		var old *gatewayv1.RouteStatus
		switch o := r.API.(type) {
		case *gatewayv1.HTTPRoute:
			old = &o.Status.RouteStatus
		case *gatewayv1.GRPCRoute:
			into, from, old = out.GRPCRoutes, prev.GRPCRoutes, &o.Status.RouteStatus
		case *gatewayv1.TLSRoute:
			into, from, old = out.TLSRoutes, prev.TLSRoutes, &o.Status.RouteStatus
		}
		keep(into, from, r.name(), g.routeStatus(r, cmp.Or(from[r.name()], old)))
	}
	for _, p := range g.tlsPolicies {
		if s := g.policyStatus(p, cmp.Or(prev.BackendTLSPolicies[p.name], &p.Status)); len(s.Ancestors) > 0 {
			keep(out.BackendTLSPolicies, prev.BackendTLSPolicies, p.name, s)
		}
	}
	return out
}

// keep enters a status, the one before if it is the same.
func keep[K comparable, T any](into, from map[K]*T, k K, v *T) {
	if had := from[k]; had != nil && equality.Semantic.DeepEqual(had, v) {
		v = had
	}
	into[k] = v
}

// conditionList is a list of conditions in the making.
type conditionList struct {
	all        []metav1.Condition
	before     []metav1.Condition
	generation int64
	now        time.Time
}

// set adds a condition. Its time is that of the one before, if the status is the same.
func (l *conditionList) set(kind any, status bool, reason any, message string) {
	c := metav1.Condition{
		Type: fmt.Sprint(kind), Status: metav1.ConditionFalse, Reason: fmt.Sprint(reason), Message: message,
		ObservedGeneration: l.generation, LastTransitionTime: metav1.NewTime(l.now.UTC().Truncate(time.Second)),
	}
	if status {
		c.Status = metav1.ConditionTrue
	}
	if had := meta.FindStatusCondition(l.before, c.Type); had != nil && had.Status == c.Status {
		c.LastTransitionTime = had.LastTransitionTime
	}
	l.all = append(l.all, c)
}

// judge adds a condition that is True unless something is wrong.
func (l *conditionList) judge(kind any, v verdict, good any, message string) {
	if v.bad() {
		l.set(kind, false, v.reason, v.text())
	} else {
		l.set(kind, true, good, message)
	}
}

func (g *gatewayCompiler) list(o metav1.Object, before []metav1.Condition) *conditionList {
	return &conditionList{before: before, generation: o.GetGeneration(), now: g.now}
}

func (g *gatewayCompiler) classStatus(class *gatewayv1.GatewayClass, before *gatewayv1.GatewayClassStatus) *gatewayv1.GatewayClassStatus {
	out := &gatewayv1.GatewayClassStatus{}
	var v verdict
	if p := class.Spec.ParametersRef; p != nil {
		v.blame(gatewayv1.GatewayClassReasonInvalidParameters, "podgate knows no parameters of kind %s", kindText(string(p.Group), string(p.Kind)))
		g.blame(class, "GatewayClass", "spec.parametersRef", v)
	}
	l := g.list(class, before.Conditions)
	l.judge(gatewayv1.GatewayClassConditionStatusAccepted, v, gatewayv1.GatewayClassReasonAccepted, "podgate serves Gateways of this class")
	out.Conditions = l.all
	for _, name := range supportedFeatures {
		out.SupportedFeatures = append(out.SupportedFeatures, gatewayv1.SupportedFeature{Name: name})
	}
	return out
}

func (g *gatewayCompiler) gatewayStatus(gw *gatewayObject, before *gatewayv1.GatewayStatus) *gatewayv1.GatewayStatus {
	out := &gatewayv1.GatewayStatus{}
	var broken, unresolved []string
	programmed := false
	for _, l := range gw.listeners {
		i := slices.IndexFunc(before.Listeners, func(s gatewayv1.ListenerStatus) bool { return string(s.Name) == l.name })
		var had []metav1.Condition
		if i >= 0 {
			had = before.Listeners[i].Conditions
		}
		out.Listeners = append(out.Listeners, g.listenerStatus(l, had))
		programmed = programmed || l.programmed()
		if !l.valid() {
			broken = append(broken, l.name)
		}
		if l.resolved.bad() {
			unresolved = append(unresolved, l.name)
		}
	}
	if !gw.accepted.bad() && !gw.program.bad() && !programmed {
		gw.program.blame(gatewayv1.GatewayReasonInvalid, "none of the listeners can be served")
	}
	g.blame(gw.Gateway, "Gateway", "spec", gw.accepted)
	g.blame(gw.Gateway, "Gateway", "spec.addresses", gw.program)
	if len(unresolved) > 0 {
		gw.resolved.blame(gatewayv1.GatewayReasonListenersNotResolved, "listeners refer to what cannot be used: %s", strings.Join(unresolved, ", "))
	}
	l := g.list(gw.Gateway, before.Conditions)
	reason, message := gatewayv1.GatewayReasonAccepted, "podgate serves this Gateway"
	if len(broken) > 0 {
		reason, message = gatewayv1.GatewayReasonListenersNotValid, "listeners that are not served: "+strings.Join(broken, ", ")
	}
	l.judge(gatewayv1.GatewayConditionAccepted, gw.accepted, reason, message)
	program := gw.program
	if gw.accepted.bad() {
		program = verdict{reason: string(gatewayv1.GatewayReasonInvalid), message: "the Gateway is not accepted"}
	}
	l.judge(gatewayv1.GatewayConditionProgrammed, program, gatewayv1.GatewayReasonProgrammed, "requests are served")
	l.judge(gatewayv1.GatewayConditionResolvedRefs, gw.resolved, gatewayv1.GatewayReasonResolvedRefs, "all references are resolved")
	if gw.insecure {
		l.set(gatewayv1.GatewayConditionInsecureFrontendValidationMode, true, gatewayv1.GatewayReasonConfigurationChanged, "clients without a valid certificate are admitted")
	}
	out.Conditions = l.all
	if program.bad() {
		return out
	}
	kind := gatewayv1.IPAddressType
	add := func(addrs ...netip.Addr) {
		for _, a := range addrs {
			out.Addresses = append(out.Addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: a.String()})
		}
	}
	for _, a := range gw.addresses {
		if a != g.cfg.Addr {
			add(a)
			continue
		}
		add(g.cfg.Reached...)
		add(g.cfg.Inside...)
	}
	return out
}

func (g *gatewayCompiler) listenerStatus(l *listenerObject, before []metav1.Condition) gatewayv1.ListenerStatus {
	field := fmt.Sprintf("spec.listeners[%d]", l.at)
	for _, v := range []verdict{l.accepted, l.conflict, l.shut, l.resolved} {
		g.blame(l.of.Gateway, "Gateway", field, v)
	}
	c := g.list(l.of.Gateway, before)
	accepted := l.accepted
	accepted.blameAs(l.conflict)
	accepted.blameAs(l.shut)
	accepted.blameAs(l.of.accepted)
	c.judge(gatewayv1.ListenerConditionAccepted, accepted, gatewayv1.ListenerReasonAccepted, "the listener is valid")
	var program verdict
	if !l.programmed() {
		program = verdict{reason: string(gatewayv1.ListenerReasonInvalid), message: "the listener is not served"}
		for _, v := range []verdict{accepted, l.resolved, l.of.program} {
			if v.bad() {
				program.message += ": " + v.message
				break
			}
		}
	}
	c.judge(gatewayv1.ListenerConditionProgrammed, program, gatewayv1.ListenerReasonProgrammed, "requests are served")
	c.judge(gatewayv1.ListenerConditionResolvedRefs, l.resolved, gatewayv1.ListenerReasonResolvedRefs, "all references are resolved")
	if l.conflict.bad() {
		c.set(gatewayv1.ListenerConditionConflicted, true, l.conflict.reason, l.conflict.message)
	} else {
		c.set(gatewayv1.ListenerConditionConflicted, false, gatewayv1.ListenerReasonNoConflicts, "no other listener is in the way")
	}
	if l.overlaps {
		c.set(gatewayv1.ListenerConditionOverlappingTLSConfig, true, gatewayv1.ListenerReasonOverlappingHostnames, "another listener at this port is for some of the same hosts")
	}
	return gatewayv1.ListenerStatus{
		Name: l.spec.Name, SupportedKinds: l.kinds, AttachedRoutes: int32(len(l.attached)), Conditions: c.all,
	}
}

func (g *gatewayCompiler) routeStatus(r *routeObject, before *gatewayv1.RouteStatus) *gatewayv1.RouteStatus {
	out := &gatewayv1.RouteStatus{}
	g.blame(r, r.kind, "spec", r.resolved)
	g.blame(r, r.kind, "spec", r.partial)
	for _, p := range r.bound {
		g.blame(r, r.kind, "spec.parentRefs", p.accepted)
		var had []metav1.Condition
		for _, s := range before.Parents {
			if s.ControllerName == kube.GatewayController && equality.Semantic.DeepEqual(s.ParentRef, p.ref) {
				had = s.Conditions
			}
		}
		l := g.list(r, had)
		l.judge(gatewayv1.RouteConditionAccepted, p.accepted, gatewayv1.RouteReasonAccepted, "attached to "+p.names())
		l.judge(gatewayv1.RouteConditionResolvedRefs, r.resolved, gatewayv1.RouteReasonResolvedRefs, "all references are resolved")
		if r.partial.bad() && !p.accepted.bad() {
			l.set(gatewayv1.RouteConditionPartiallyInvalid, true, r.partial.reason, r.partial.message)
		}
		out.Parents = append(out.Parents, gatewayv1.RouteParentStatus{ParentRef: p.ref, ControllerName: kube.GatewayController, Conditions: l.all})
	}
	return out
}

// names lists the listeners that a route is attached to.
func (p *parentObject) names() string {
	var out []string
	for _, l := range p.listeners {
		out = append(out, l.name)
	}
	if len(out) == 1 {
		return "listener " + out[0]
	}
	return "listeners " + strings.Join(out, ", ")
}

// policyStatus has an entry for each Gateway whose routes lead to a target.
func (g *gatewayCompiler) policyStatus(p *tlsPolicy, before *gatewayv1.PolicyStatus) *gatewayv1.PolicyStatus {
	out := &gatewayv1.PolicyStatus{}
	var missing verdict
	for i, t := range p.Spec.TargetRefs {
		name := kube.Name{Namespace: p.Namespace, Name: string(t.Name)}
		if t.Group != "" || t.Kind != "Service" || g.state.Services[name] == nil {
			missing.blame(gatewayv1.PolicyReasonTargetNotFound, "spec.targetRefs[%d]: no Service %q in namespace %q", i, t.Name, p.Namespace)
		}
	}
	accepted := missing
	if p.conflicted {
		accepted.blame(gatewayv1.PolicyReasonConflicted, "an older BackendTLSPolicy has the same target")
	}
	if p.broken.bad() {
		accepted.blame(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate, "%s", p.broken.message)
	}
	g.blame(p.BackendTLSPolicy, "BackendTLSPolicy", "spec", accepted)
	for _, gw := range g.gateways {
		if !g.leads(gw, p) {
			continue
		}
		group, kind, ns := gatewayv1.Group(gatewayv1.GroupName), gatewayv1.Kind("Gateway"), gatewayv1.Namespace(gw.Namespace)
		ref := gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &ns, Name: gatewayv1.ObjectName(gw.Name)}
		var had []metav1.Condition
		for _, s := range before.Ancestors {
			if s.ControllerName == kube.GatewayController && equality.Semantic.DeepEqual(s.AncestorRef, ref) {
				had = s.Conditions
			}
		}
		l := g.list(p, had)
		l.judge(gatewayv1.PolicyConditionAccepted, accepted, gatewayv1.PolicyReasonAccepted, "TLS is spoken to the endpoints")
		l.judge(gatewayv1.BackendTLSPolicyConditionResolvedRefs, p.broken, gatewayv1.BackendTLSPolicyReasonResolvedRefs, "all references are resolved")
		out.Ancestors = append(out.Ancestors, gatewayv1.PolicyAncestorStatus{AncestorRef: ref, ControllerName: kube.GatewayController, Conditions: l.all})
	}
	return out
}

// leads reports whether a route of a Gateway has a backend that a policy is for.
func (g *gatewayCompiler) leads(gw *gatewayObject, p *tlsPolicy) bool {
	for _, r := range g.routes {
		if !slices.ContainsFunc(r.bound, func(b *parentObject) bool { return b.gateway == gw }) {
			continue
		}
		for _, name := range r.backends {
			for _, t := range p.Spec.TargetRefs {
				if name == (kube.Name{Namespace: p.Namespace, Name: string(t.Name)}) {
					return true
				}
			}
		}
	}
	return false
}
