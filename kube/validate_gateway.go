package kube

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// gatewayRules are the rules of the Gateway API's definitions (their
// x-kubernetes-validations) that concern one struct, in their words.
func gatewayRules(o any, at *field.Path) field.ErrorList {
	r := rules{at: at}
	switch o := o.(type) {
	case *gatewayv1.GatewaySpec:
		r.listeners(o.Listeners)
		r.addresses(o.Addresses)
	case *gatewayv1.ListenerTLSConfig:
		r.unless(*o.Mode != gatewayv1.TLSModeTerminate || len(o.CertificateRefs) > 0 || len(o.Options) > 0, "",
			"certificateRefs or options must be specified when mode is Terminate")
	case *gatewayv1.CommonRouteSpec:
		r.parents(o.ParentRefs)
	case *gatewayv1.BackendObjectReference:
		r.unless(o.Port != nil || *o.Group != "" || *o.Kind != "Service", "", "Must have port for Service reference")
	case *gatewayv1.Fraction:
		r.unless(o.Numerator <= *o.Denominator, "", "numerator must be less than or equal to denominator")
	case *gatewayv1.HTTPRequestMirrorFilter:
		r.unless(o.Percent == nil || o.Fraction == nil, "", "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter")
	case *gatewayv1.HTTPRequestRedirectFilter:
		if !slices.Contains(redirectCodes, *o.StatusCode) {
			r.errs = append(r.errs, field.NotSupported(at.Child("statusCode"), *o.StatusCode, []string{"301", "302", "303", "307", "308"}))
		}
	case *gatewayv1.HTTPCORSFilter:
		r.alone("allowOrigins", "AllowOrigins cannot contain '*' alongside other origins", len(o.AllowOrigins), slices.Contains(o.AllowOrigins, "*"))
		r.alone("allowMethods", "AllowMethods cannot contain '*' alongside other methods", len(o.AllowMethods), slices.Contains(o.AllowMethods, "*"))
		r.alone("allowHeaders", "AllowHeaders cannot contain '*' alongside other methods", len(o.AllowHeaders), slices.Contains(o.AllowHeaders, "*"))
	case *gatewayv1.HTTPPathModifier:
		r.union(string(o.Type), "type", map[string]bool{"ReplaceFullPath": o.ReplaceFullPath != nil, "ReplacePrefixMatch": o.ReplacePrefixMatch != nil})
	case *gatewayv1.HTTPRouteTimeouts:
		if o.Request != nil && o.BackendRequest != nil {
			all, err1 := time.ParseDuration(string(*o.Request))
			one, err2 := time.ParseDuration(string(*o.BackendRequest))
			r.unless(err1 != nil || err2 != nil || all == 0 || one <= all, "", "backendRequest timeout cannot be longer than request timeout")
		}
	case *gatewayv1.HTTPPathMatch:
		r.path(string(*o.Type), *o.Value)
	case *gatewayv1.HTTPRouteFilter:
		r.union(string(o.Type), "filter.type", map[string]bool{
			"RequestHeaderModifier": o.RequestHeaderModifier != nil, "ResponseHeaderModifier": o.ResponseHeaderModifier != nil,
			"RequestMirror": o.RequestMirror != nil, "RequestRedirect": o.RequestRedirect != nil, "URLRewrite": o.URLRewrite != nil,
			"CORS": o.CORS != nil, "ExternalAuth": o.ExternalAuth != nil, "ExtensionRef": o.ExtensionRef != nil,
		})
	case *gatewayv1.GRPCRouteFilter:
		r.union(string(o.Type), "filter.type", map[string]bool{
			"RequestHeaderModifier": o.RequestHeaderModifier != nil, "ResponseHeaderModifier": o.ResponseHeaderModifier != nil,
			"RequestMirror": o.RequestMirror != nil, "ExtensionRef": o.ExtensionRef != nil,
		})
	case *gatewayv1.HTTPRouteSpec:
		for _, rule := range o.Rules {
			r.count(rule.Name, len(rule.Matches))
		}
	case *gatewayv1.GRPCRouteSpec:
		for _, rule := range o.Rules {
			r.count(rule.Name, len(rule.Matches))
		}
	case *gatewayv1.HTTPRouteRule:
		r.httpRule(o)
	case *gatewayv1.HTTPBackendRef:
		r.filters(httpTypes(o.Filters))
	case *gatewayv1.GRPCRouteRule:
		r.filters(grpcTypes(o.Filters))
	case *gatewayv1.GRPCBackendRef:
		r.filters(grpcTypes(o.Filters))
	case *gatewayv1.GRPCMethodMatch:
		r.method(o)
	case *gatewayv1.TLSRouteSpec:
		for _, h := range o.Hostnames {
			_, err := netip.ParseAddr(string(h))
			r.unless(err != nil, "hostnames", "Hostnames cannot contain an IP")
		}
	case *gatewayv1.BackendTLSPolicyValidation:
		refs, known := len(o.CACertificateRefs) > 0, o.WellKnownCACertificates != nil && *o.WellKnownCACertificates != ""
		r.unless(!refs || !known, "", "must not contain both CACertificateRefs and WellKnownCACertificates")
		r.unless(refs || known, "", "must specify either CACertificateRefs or WellKnownCACertificates")
	case *gatewayv1.SubjectAltName:
		r.unless((o.Type == gatewayv1.HostnameSubjectAltNameType) == (o.Hostname != ""), "", "SubjectAltName element must contain Hostname, if and only if Type is set to Hostname")
		r.unless((o.Type == gatewayv1.URISubjectAltNameType) == (o.URI != ""), "", "SubjectAltName element must contain URI, if and only if Type is set to URI")
	}
	return r.errs
}

// rules collects what is said against one struct.
type rules struct {
	at   *field.Path
	errs field.ErrorList

	matches int // of the rules of a route so far
	names   []gatewayv1.SectionName
}

func (r *rules) unless(ok bool, child, message string) {
	if ok {
		return
	}
	at := r.at
	if child != "" {
		at = at.Child(child)
	}
	r.errs = append(r.errs, field.Invalid(at, "object", message))
}

func (r *rules) alone(child, message string, n int, wildcard bool) {
	r.unless(!wildcard || n == 1, child, message)
}

// union checks that the one field is set that a type names.
func (r *rules) union(is, typeField string, set map[string]bool) {
	for name, there := range set {
		child := strings.ToLower(name[:1]) + name[1:]
		switch name {
		case "URLRewrite":
			child = "urlRewrite"
		case "CORS":
			child = "cors"
		}
		switch {
		case there && is != name:
			r.unless(false, child, fmt.Sprintf("%s must be nil if the %s is not %s", child, typeField, name))
		case !there && is == name:
			r.unless(false, child, fmt.Sprintf("%s must be specified for %s %s", child, name, typeField))
		}
	}
}

func (r *rules) listeners(all []gatewayv1.Listener) {
	type flow struct {
		port     int32
		protocol gatewayv1.ProtocolType
		hostname string
	}
	seen := map[flow]bool{}
	const child = "listeners"
	for _, l := range all {
		plain := l.Protocol == gatewayv1.HTTPProtocolType || l.Protocol == gatewayv1.TCPProtocolType || l.Protocol == gatewayv1.UDPProtocolType
		r.unless(!plain || l.TLS == nil, child, "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']")
		r.unless(l.Protocol != gatewayv1.HTTPSProtocolType || l.TLS == nil || *l.TLS.Mode == gatewayv1.TLSModeTerminate, child, "tls mode must be Terminate for protocol HTTPS")
		r.unless(l.Protocol != gatewayv1.TLSProtocolType || l.TLS != nil, child, "tls mode must be set for protocol TLS")
		r.unless(l.Protocol != gatewayv1.TCPProtocolType && l.Protocol != gatewayv1.UDPProtocolType || l.Hostname == nil || *l.Hostname == "", child, "hostname must not be specified for protocols ['TCP', 'UDP']")
		f := flow{port: l.Port, protocol: l.Protocol, hostname: "none"}
		if l.Hostname != nil {
			f.hostname = string(*l.Hostname) + "."
		}
		r.unless(!seen[f], child, "Combination of port, protocol and hostname must be unique for each listener")
		seen[f] = true
	}
}

var hostnameValue = regexp.MustCompile(`^(\*\.)?` + subdomain + `$`)

func (r *rules) addresses(all []gatewayv1.GatewaySpecAddress) {
	type key struct {
		kind  gatewayv1.AddressType
		value string
	}
	seen := map[key]bool{}
	for i, a := range all {
		at := r.at.Child("addresses").Index(i)
		k := key{*a.Type, a.Value}
		if a.Value != "" {
			if seen[k] && (k.kind == gatewayv1.IPAddressType || k.kind == gatewayv1.HostnameAddressType) {
				r.errs = append(r.errs, field.Invalid(r.at.Child("addresses"), a.Value, string(k.kind)+" values must be unique"))
			}
			seen[k] = true
		}
		switch _, err := netip.ParseAddr(a.Value); {
		case a.Value == "":
		case k.kind == gatewayv1.HostnameAddressType && !hostnameValue.MatchString(a.Value):
			r.errs = append(r.errs, field.Invalid(at, a.Value, "Hostname value must be empty or contain only valid characters (matching "+hostnameValue.String()+")"))
		case k.kind == gatewayv1.IPAddressType && err != nil:
			r.errs = append(r.errs, field.Invalid(at, a.Value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
		}
	}
}

// parents are the rules about several references to the same parent.
func (r *rules) parents(all []gatewayv1.ParentReference) {
	type section struct {
		name gatewayv1.SectionName
		port int32
	}
	type parent struct {
		group, kind, namespace, name string
	}
	sections := map[parent][]section{}
	for _, p := range all {
		k := parent{string(*p.Group), string(*p.Kind), "", string(p.Name)}
		if p.Namespace != nil {
			k.namespace = string(*p.Namespace)
		}
		var s section
		if p.SectionName != nil {
			s.name = *p.SectionName
		}
		if p.Port != nil {
			s.port = *p.Port
		}
		sections[k] = append(sections[k], s)
	}
	for _, ss := range sections {
		if len(ss) < 2 {
			continue
		}
		r.unless(!slices.ContainsFunc(ss, func(s section) bool { return s == section{} }), "parentRefs",
			"sectionName or port must be specified when parentRefs includes 2 or more references to the same parent")
		for i, s := range ss {
			r.unless(!slices.Contains(ss[:i], s), "parentRefs",
				"sectionName or port must be unique when parentRefs includes 2 or more references to the same parent")
		}
	}
}

const pathCharacters = `^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$`

var pathValue = regexp.MustCompile(pathCharacters)

func (r *rules) path(kind, value string) {
	if kind != string(gatewayv1.PathMatchExact) && kind != string(gatewayv1.PathMatchPathPrefix) {
		return
	}
	const of = " when type one of ['Exact', 'PathPrefix']"
	r.unless(strings.HasPrefix(value, "/"), "", "value must be an absolute path and start with '/'"+of)
	for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F", "#"} {
		r.unless(!strings.Contains(value, bad), "", "must not contain '"+bad+"'"+of)
	}
	for _, bad := range []string{"/..", "/."} {
		r.unless(!strings.HasSuffix(value, bad), "", "must not end with '"+bad+"'"+of)
	}
	r.unless(pathValue.MatchString(value), "", "must only contain valid characters (matching "+pathCharacters+") for types ['Exact', 'PathPrefix']")
}

// count takes one rule of a route.
func (r *rules) count(name *gatewayv1.SectionName, matches int) {
	before := r.matches
	r.matches += matches
	r.unless(before > 128 || r.matches <= 128, "rules", "While 16 rules and 64 matches per rule are allowed, the total number of matches across all rules in a route must be less than 128")
	if name != nil {
		r.unless(!slices.Contains(r.names, *name), "rules", "Rule name must be unique within the route")
		r.names = append(r.names, *name)
	}
}

func httpTypes(fs []gatewayv1.HTTPRouteFilter) (out []string) {
	for _, f := range fs {
		out = append(out, string(f.Type))
	}
	return out
}

func grpcTypes(fs []gatewayv1.GRPCRouteFilter) (out []string) {
	for _, f := range fs {
		out = append(out, string(f.Type))
	}
	return out
}

func (r *rules) filters(types []string) {
	r.unless(!slices.Contains(types, "RequestRedirect") || !slices.Contains(types, "URLRewrite"), "filters",
		"May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite, but not both")
	for _, once := range []string{"CORS", "RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite"} {
		n := 0
		for _, t := range types {
			if t == once {
				n++
			}
		}
		r.unless(n <= 1, "filters", once+" filter cannot be repeated")
	}
}

func (r *rules) httpRule(o *gatewayv1.HTTPRouteRule) {
	r.filters(httpTypes(o.Filters))
	redirects := func(f gatewayv1.HTTPRouteFilter) bool { return f.RequestRedirect != nil }
	r.unless(len(o.BackendRefs) == 0 || !slices.ContainsFunc(o.Filters, redirects), "", "RequestRedirect filter must not be used together with backendRefs")
	one := len(o.Matches) == 1 && o.Matches[0].Path != nil && *o.Matches[0].Path.Type == gatewayv1.PathMatchPathPrefix
	prefixed := func(within string, fs []gatewayv1.HTTPRouteFilter) {
		for _, f := range fs {
			if m := f.RequestRedirect; m != nil && m.Path != nil && m.Path.ReplacePrefixMatch != nil {
				r.unless(one, "", within+"hen using RequestRedirect filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified")
			}
			if m := f.URLRewrite; m != nil && m.Path != nil && m.Path.ReplacePrefixMatch != nil {
				r.unless(one, "", within+"hen using URLRewrite filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified")
			}
		}
	}
	prefixed("W", o.Filters)
	for _, b := range o.BackendRefs {
		prefixed("Within backendRefs, w", b.Filters)
	}
}

var (
	grpcService = regexp.MustCompile(`^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$`)
	grpcMethod  = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9]*$`)
)

func (r *rules) method(o *gatewayv1.GRPCMethodMatch) {
	r.unless(o.Service != nil || o.Method != nil, "", "One or both of 'service' or 'method' must be specified")
	if *o.Type != gatewayv1.GRPCMethodMatchExact {
		return
	}
	r.unless(o.Service == nil || grpcService.MatchString(*o.Service), "", "service must only contain valid characters (matching "+grpcService.String()+")")
	r.unless(o.Method == nil || grpcMethod.MatchString(*o.Method), "", "method must only contain valid characters (matching "+grpcMethod.String()+")")
}
