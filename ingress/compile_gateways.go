package ingress

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// Gateways and their listeners: which are ours, where they are reached, what is
// wrong with them. The oldest comes first in everything.

// Entrance is a door that has to be opened for Gateways.
type Entrance struct {
	At     netip.AddrPort // of the host; the port is the listeners'
	TLS    bool           // for ServeTLS
	Inside bool           // open it at the front door's own addresses in the cluster too
	For    []string       // "Gateway shop/web listener http"
	passes bool           // some of its TLS is passed through
}

// GatewayConfig says where Gateways can be. The zero value works.
type GatewayConfig struct {
	// Addr is where the host listens for Gateways, "127.0.0.1". If it is of
	// 127.0.0.0/8, a Gateway that does not fit there beside older ones is at the
	// next address that it fits at.
	Addr netip.Addr

	// Reached are the addresses that clients know Addr by; Addr itself.
	Reached []netip.Addr

	// Inside are the front door's addresses in the cluster, where the Gateways
	// at Addr are reached too.
	Inside []netip.Addr

	// Ingress are the doors that are the Ingresses' too, true where they speak TLS.
	Ingress map[netip.AddrPort]bool

	// Taken are ports that a Gateway cannot have, and why.
	Taken map[netip.AddrPort]string

	// LowPorts is how far above its own a port below 1024 may be served instead.
	LowPorts uint16

	// Failed are doors that could not be opened, and why.
	Failed map[netip.AddrPort]string
}

func (c GatewayConfig) withDefaults() GatewayConfig {
	if !c.Addr.IsValid() {
		c.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if len(c.Reached) == 0 {
		c.Reached = []netip.Addr{c.Addr}
	}
	return c
}

// Entrances are the doors to open for the Gateways, in order.
func (r *Routes) Entrances() []Entrance {
	var out []Entrance
	for _, d := range r.doors {
		out = append(out, d.entrance)
	}
	slices.SortFunc(out, func(a, b Entrance) int { return a.At.Compare(b.At) })
	return out
}

// Statuses are what there is to say about the objects of the Gateway API.
func (r *Routes) Statuses() *kube.Statuses { return r.statuses }

// gatewayObject is a Gateway in the making.
type gatewayObject struct {
	*gatewayv1.Gateway
	name      kube.Name
	listeners []*listenerObject
	accepted  verdict
	program   verdict
	resolved  verdict
	insecure  bool
	addresses []netip.Addr // of the host
	doors     []netip.AddrPort
}

// listenerObject is a listener in the making.
type listenerObject struct {
	*listener
	of       *gatewayObject
	spec     *gatewayv1.Listener
	at       int // index in the Gateway
	kinds    []gatewayv1.RouteGroupKind
	selector labels.Selector
	accepted verdict
	resolved verdict
	conflict verdict // true: it has one
	shut     verdict // its door cannot be opened
	overlaps bool
	attached []*routeObject
}

// verdict is a condition in the making; the zero one is True for the usual reason.
type verdict struct {
	reason, message string
	field           string // that is wrong, where the condition is about several
}

func (v verdict) bad() bool { return v.reason != "" }

// blame sets a verdict unless something else is wrong already.
func (v *verdict) blame(reason any, format string, args ...any) {
	if v.reason == "" {
		v.reason, v.message = fmt.Sprint(reason), fmt.Sprintf(format, args...)
	}
}

// programmed reports whether a listener takes requests.
func (l *listenerObject) programmed() bool {
	return !l.of.accepted.bad() && !l.of.program.bad() && l.valid()
}

// valid reports whether nothing is wrong with a listener itself.
func (l *listenerObject) valid() bool {
	return !l.accepted.bad() && !l.conflict.bad() && !l.shut.bad() && !(l.https && len(l.certs) == 0)
}

// gatewayCompiler makes the doors and the statuses.
type gatewayCompiler struct {
	*compiler
	cfg      GatewayConfig
	now      time.Time
	classes  map[string]bool // ours
	gateways []*gatewayObject
	byName   map[kube.Name]*gatewayObject
	routes   []*routeObject
	policies map[policyTarget]*tlsPolicy

	tlsPolicies []*tlsPolicy
}

func (c *compiler) compileGateways(cfg GatewayConfig, now time.Time) {
	g := &gatewayCompiler{
		compiler: c, cfg: cfg, now: now,
		classes: map[string]bool{}, byName: map[kube.Name]*gatewayObject{},
	}
	c.doors = map[netip.AddrPort]*door{}
	g.findClasses()
	for _, o := range sorted(c.state.Gateways) {
		if g.classes[string(o.Spec.GatewayClassName)] {
			g.addGateway(o)
		}
	}
	for _, gw := range g.gateways {
		g.place(gw)
	}
	g.compileTLSPolicies()
	g.attachRoutes()
	for _, gw := range g.gateways {
		g.open(gw)
	}
	g.compileRoutes()
	c.statuses = g.status()
}

// sorted are objects in the order in which they win ties.
func sorted[T kube.API](m map[kube.Name]T) []T {
	out := make([]T, 0, len(m))
	for _, o := range m {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b T) int { return older(a, b) })
	return out
}

func older(a, b metav1.Object) int {
	at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	return cmp.Or(at.Compare(bt.Time), strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName()))
}

func (g *gatewayCompiler) findClasses() {
	for name, class := range g.state.GatewayClasses {
		if class.Spec.ControllerName == kube.GatewayController && class.Spec.ParametersRef == nil {
			g.classes[name] = true
		}
	}
}

// blame reports what is wrong with an object of the Gateway API.
func (g *gatewayCompiler) blame(o kube.API, kind, field string, v verdict) {
	if v.bad() {
		g.problems = append(g.problems, kube.Problem{
			Severity: kube.Warning, Kind: kind, Object: kube.Name{Namespace: o.GetNamespace(), Name: o.GetName()},
			Field: cmp.Or(v.field, field), Err: v.reason + ": " + v.message,
		})
	}
}

// text is the message of a condition.
func (v verdict) text() string {
	if v.field != "" {
		return v.field + ": " + v.message
	}
	return v.message
}

func (g *gatewayCompiler) addGateway(o *gatewayv1.Gateway) {
	gw := &gatewayObject{Gateway: o, name: kube.Name{Namespace: o.Namespace, Name: o.Name}}
	for i := range o.Spec.Listeners {
		gw.listeners = append(gw.listeners, g.listener(gw, i))
	}
	if i := o.Spec.Infrastructure; i != nil && i.ParametersRef != nil {
		gw.accepted.blame(gatewayv1.GatewayReasonInvalidParameters, "spec.infrastructure.parametersRef: podgate knows no parameters of kind %s", i.ParametersRef.Kind)
	}
	for _, a := range o.Spec.Addresses {
		if *a.Type != gatewayv1.IPAddressType {
			gw.accepted.blame(gatewayv1.GatewayReasonUnsupportedAddress, "addresses of type %s are not supported, only IPAddress", *a.Type)
		}
	}
	if t := o.Spec.TLS; t != nil && t.Backend != nil && t.Backend.ClientCertificateRef != nil {
		_, v := g.secret(*t.Backend.ClientCertificateRef, o, gatewayv1.GatewayReasonInvalidClientCertificateRef)
		gw.resolved.blameAs(v)
	}
	g.conflicts(gw)
	g.gateways = append(g.gateways, gw)
	g.byName[gw.name] = gw
}

func (v *verdict) blameAs(o verdict) {
	if o.bad() {
		v.blame(o.reason, "%s", o.message)
	}
}

var (
	httpKinds = []string{"HTTPRoute", "GRPCRoute"}
	tlsKinds  = []string{"TLSRoute"}
)

func (g *gatewayCompiler) listener(gw *gatewayObject, i int) *listenerObject {
	spec := &gw.Spec.Listeners[i]
	l := &listenerObject{
		listener: &listener{gateway: gw.name, name: string(spec.Name), port: uint16(spec.Port)},
		of:       gw, spec: spec, at: i,
	}
	if spec.Hostname != nil {
		l.hostname = strings.ToLower(string(*spec.Hostname))
	}
	var kinds []string
	switch spec.Protocol {
	case gatewayv1.HTTPProtocolType:
		kinds = httpKinds
	case gatewayv1.HTTPSProtocolType:
		kinds, l.https = httpKinds, true
		g.certificates(l)
		g.clients(l)
	case gatewayv1.TLSProtocolType:
		if spec.TLS != nil && *spec.TLS.Mode == gatewayv1.TLSModePassthrough {
			kinds = tlsKinds
		} else {
			l.accepted.blame(gatewayv1.ListenerReasonUnsupportedValue, "TLS of protocol TLS is passed through only: mode Terminate needs protocol HTTPS")
		}
	default:
		l.accepted.blame(gatewayv1.ListenerReasonUnsupportedProtocol, "protocol %s is not supported: HTTP, HTTPS and TLS are", spec.Protocol)
	}
	l.allowKinds(kinds)
	if ns := spec.AllowedRoutes.Namespaces; *ns.From == gatewayv1.NamespacesFromSelector {
		s, err := metav1.LabelSelectorAsSelector(ns.Selector)
		if err != nil {
			l.accepted.blame(gatewayv1.ListenerReasonUnsupportedValue, "allowedRoutes.namespaces.selector: %v", err)
			s = labels.Nothing()
		}
		l.selector = s
	}
	return l
}

// allowKinds leaves of the kinds that a protocol can carry those that are asked for.
func (l *listenerObject) allowKinds(can []string) {
	group := gatewayv1.Group(gatewayv1.GroupName)
	l.kinds = []gatewayv1.RouteGroupKind{}
	asked := l.spec.AllowedRoutes.Kinds
	if len(asked) == 0 {
		for _, k := range can {
			l.kinds = append(l.kinds, gatewayv1.RouteGroupKind{Group: &group, Kind: gatewayv1.Kind(k)})
		}
		return
	}
	for _, k := range asked {
		switch {
		case *k.Group != group || !slices.Contains(can, string(k.Kind)):
			l.resolved.blame(gatewayv1.ListenerReasonInvalidRouteKinds, "routes of kind %s cannot be attached to a listener of protocol %s", k.Kind, l.spec.Protocol)
		case !slices.ContainsFunc(l.kinds, func(have gatewayv1.RouteGroupKind) bool { return have.Kind == k.Kind }):
			l.kinds = append(l.kinds, gatewayv1.RouteGroupKind{Group: &group, Kind: k.Kind})
		}
	}
}

// certificates finds those of an HTTPS listener.
func (g *gatewayCompiler) certificates(l *listenerObject) {
	if l.spec.TLS == nil {
		l.resolved.blame(gatewayv1.ListenerReasonInvalidCertificateRef, "an HTTPS listener needs tls.certificateRefs")
		return
	}
	for _, ref := range l.spec.TLS.CertificateRefs {
		p, v := g.secret(ref, l.of.Gateway, gatewayv1.ListenerReasonInvalidCertificateRef)
		l.resolved.blameAs(v)
		if p != nil {
			l.certs = append(l.certs, p.cert)
		}
	}
	if len(l.certs) == 0 {
		l.resolved.blame(gatewayv1.ListenerReasonInvalidCertificateRef, "an HTTPS listener needs tls.certificateRefs")
	}
}

// clients finds who signs the certificates of a listener's clients.
func (g *gatewayCompiler) clients(l *listenerObject) {
	t := l.of.Spec.TLS
	if t == nil || t.Frontend == nil {
		return
	}
	v := t.Frontend.Default.Validation
	for _, p := range t.Frontend.PerPort {
		if p.Port == l.spec.Port {
			v = p.TLS.Validation
		}
	}
	if v == nil {
		return
	}
	roots := x509.NewCertPool()
	good := 0
	for _, ref := range v.CACertificateRefs {
		pem, verdict := g.authorities(ref, l.of.Gateway)
		l.resolved.blameAs(verdict)
		if len(pem) > 0 {
			roots.AppendCertsFromPEM(pem)
			good++
		}
	}
	if good == 0 {
		l.accepted.blame(gatewayv1.ListenerReasonNoValidCACertificate, "none of the certificate authorities for clients can be used")
	}
	l.client, l.optional = roots, v.Mode == gatewayv1.AllowInsecureFallback
	l.of.insecure = l.of.insecure || l.optional
}

// conflicts finds the listeners of a Gateway that cannot be told apart, and TLS
// ones that clients may mistake for each other.
func (g *gatewayCompiler) conflicts(gw *gatewayObject) {
	for i, a := range gw.listeners {
		for _, b := range gw.listeners[:i] {
			if a.spec.Port != b.spec.Port || len(a.accepted.reason) > 0 && a.accepted.reason == string(gatewayv1.ListenerReasonUnsupportedProtocol) ||
				b.accepted.reason == string(gatewayv1.ListenerReasonUnsupportedProtocol) {
				continue
			}
			switch {
			case a.encrypted() != b.encrypted():
				for _, l := range []*listenerObject{a, b} {
					l.conflict.blame(gatewayv1.ListenerReasonProtocolConflict, "listeners %s and %s speak %s and %s at port %d", b.name, a.name, b.spec.Protocol, a.spec.Protocol, a.port)
				}
			case a.hostname == b.hostname:
				for _, l := range []*listenerObject{a, b} {
					l.conflict.blame(gatewayv1.ListenerReasonHostnameConflict, "listeners %s and %s are both for hostname %q at port %d", b.name, a.name, a.hostname, a.port)
				}
			case a.https && b.https && intersects(a.hostname, b.hostname):
				a.overlaps, b.overlaps = true, true
			}
		}
	}
}

// encrypted reports whether a listener's port is one for TLS.
func (l *listenerObject) encrypted() bool {
	return l.spec.Protocol == gatewayv1.HTTPSProtocolType || l.spec.Protocol == gatewayv1.TLSProtocolType
}

// usable are the listeners that a Gateway has to have a place for.
func (gw *gatewayObject) usable(yield func(*listenerObject) bool) {
	for _, l := range gw.listeners {
		if !l.accepted.bad() && !l.conflict.bad() && !yield(l) {
			return
		}
	}
}

// allows reports whether routes of a namespace may be attached.
func (l *listenerObject) allows(g *gatewayCompiler, namespace string) bool {
	switch *l.spec.AllowedRoutes.Namespaces.From {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == l.of.Namespace
	case gatewayv1.NamespacesFromSelector:
		ns := g.state.Namespaces[namespace]
		return ns != nil && l.selector.Matches(labels.Set(ns.Labels))
	}
	return false
}

// covers reports whether a hostname, which may be a wildcard, is for all that
// another is for.
func covers(a, b string) bool {
	if a == "" || a == b {
		return true
	}
	parent, wild := strings.CutPrefix(a, "*.")
	return wild && strings.HasSuffix(strings.TrimPrefix(b, "*"), "."+parent)
}

// intersects reports whether two hostnames are for some host both.
func intersects(a, b string) bool { return covers(a, b) || covers(b, a) }
