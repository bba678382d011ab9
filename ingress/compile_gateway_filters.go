package ingress

import (
	"fmt"
	"net/http"
	"strconv"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// filters compiles the filters of a rule, or of one of its backends.
type filters struct {
	g      *gatewayCompiler
	r      *routeObject
	u      *ruleObject
	prefix string
	broken string // why requests of this rule are answered with 500
}

func (f *filters) http(o *options, all []gatewayv1.HTTPRouteFilter) {
	for i, x := range all {
		switch x.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			o.requestEdits = f.edits(o, x.RequestHeaderModifier, o.requestEdits)
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			o.answerEdits = f.edits(nil, x.ResponseHeaderModifier, o.answerEdits)
		case gatewayv1.HTTPRouteFilterRequestMirror:
			f.mirror(o, i, x.RequestMirror)
		case gatewayv1.HTTPRouteFilterRequestRedirect:
			to := &redirectTo{
				scheme: deref(x.RequestRedirect.Scheme), hostname: string(deref(x.RequestRedirect.Hostname)),
				port: uint16(deref(x.RequestRedirect.Port)), path: f.path(x.RequestRedirect.Path),
			}
			o.redirect = &redirection{code: deref(x.RequestRedirect.StatusCode), to: template{{of: to.location}}}
		case gatewayv1.HTTPRouteFilterURLRewrite:
			if h := x.URLRewrite.Hostname; h != nil {
				o.host = template{{text: string(*h)}}
			}
			o.path = f.path(x.URLRewrite.Path)
		case gatewayv1.HTTPRouteFilterCORS:
			o.cors = newCORSFilter(x.CORS)
		case gatewayv1.HTTPRouteFilterExtensionRef:
			f.extension(i, x.ExtensionRef)
		default:
			f.u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "filters[%d].type: %s is not supported", i, x.Type)
		}
	}
}

func (f *filters) grpc(o *options, all []gatewayv1.GRPCRouteFilter) {
	for i, x := range all {
		switch x.Type {
		case gatewayv1.GRPCRouteFilterRequestHeaderModifier:
			o.requestEdits = f.edits(o, x.RequestHeaderModifier, o.requestEdits)
		case gatewayv1.GRPCRouteFilterResponseHeaderModifier:
			o.answerEdits = f.edits(nil, x.ResponseHeaderModifier, o.answerEdits)
		case gatewayv1.GRPCRouteFilterRequestMirror:
			f.mirror(o, i, x.RequestMirror)
		case gatewayv1.GRPCRouteFilterExtensionRef:
			f.extension(i, x.ExtensionRef)
		default:
			f.u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "filters[%d].type: %s is not supported", i, x.Type)
		}
	}
}

// extension is a filter of somebody else's: never left out, so its requests fail.
func (f *filters) extension(i int, ref *gatewayv1.LocalObjectReference) {
	what := kindText(string(ref.Group), string(ref.Kind))
	f.broken = fmt.Sprintf("the rule has a filter of kind %s, which podgate does not know", what)
	f.r.resolve(fmt.Sprintf("%s.filters[%d]", f.u.field, i), verdict{reason: string(gatewayv1.RouteReasonInvalidKind), message: "podgate knows no filters of kind " + what})
}

// edits of a backend come after those of its rule. The Host of a request is no
// field of its header.
func (f *filters) edits(o *options, x *gatewayv1.HTTPHeaderFilter, first *edits) *edits {
	out := &edits{}
	if first != nil {
		*out = *first
	}
	fields := func(had []fieldValue, more []gatewayv1.HTTPHeader) []fieldValue {
		had = append([]fieldValue(nil), had...)
		for _, h := range more {
			name := http.CanonicalHeaderKey(string(h.Name))
			if o != nil && name == "Host" {
				o.host = template{{text: h.Value}}
				continue
			}
			had = append(had, fieldValue{name, h.Value})
		}
		return had
	}
	out.set, out.add = fields(out.set, x.Set), fields(out.add, x.Add)
	out.remove = append([]string(nil), out.remove...)
	for _, name := range x.Remove {
		out.remove = append(out.remove, http.CanonicalHeaderKey(name))
	}
	return out
}

func (f *filters) path(p *gatewayv1.HTTPPathModifier) *pathEdit {
	if p == nil {
		return nil
	}
	switch p.Type {
	case gatewayv1.FullPathHTTPPathModifier:
		return &pathEdit{full: true, to: deref(p.ReplaceFullPath)}
	case gatewayv1.PrefixMatchHTTPPathModifier:
		return &pathEdit{to: deref(p.ReplacePrefixMatch), prefix: f.prefix}
	}
	f.u.invalid.blame(gatewayv1.RouteReasonUnsupportedValue, "path modifier %s is not supported", p.Type)
	return nil
}

// mirror adds a mirror; one that cannot be resolved is left out, as the
// specification says.
func (f *filters) mirror(o *options, i int, x *gatewayv1.HTTPRequestMirrorFilter) {
	b, v := f.g.service(f.r, x.BackendRef)
	if v.bad() {
		f.r.resolve(fmt.Sprintf("%s.filters[%d].requestMirror.backendRef", f.u.field, i), v)
		return
	}
	m := &mirror{remote: &remote{backend: b, uri: template{{of: (*request).target}}}, body: true}
	if x.Percent != nil {
		m.share = &[2]int{int(*x.Percent), 100}
	} else if x.Fraction != nil {
		m.share = &[2]int{int(x.Fraction.Numerator), int(deref(x.Fraction.Denominator))}
	}
	o.mirrors = append(o.mirrors, m)
}

func newCORSFilter(x *gatewayv1.HTTPCORSFilter) *corsFilter {
	c := &corsFilter{credentials: deref(x.AllowCredentials), maxAge: strconv.Itoa(int(x.MaxAge))}
	for _, o := range x.AllowOrigins {
		c.origins = append(c.origins, string(o))
	}
	for _, m := range x.AllowMethods {
		c.methods = append(c.methods, string(m))
	}
	for _, h := range x.AllowHeaders {
		c.headers = append(c.headers, string(h))
	}
	for _, h := range x.ExposeHeaders {
		c.expose = append(c.expose, string(h))
	}
	return c
}
