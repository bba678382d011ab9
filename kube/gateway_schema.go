package kube

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// The schema of the Gateway API
//
// Its kinds are custom resources: an API server knows of them what their
// definitions say, that is defaults, limits, patterns and sets of values for
// fields, and rules over several of them. The first four are the tables of this
// file, by type and field, and two walks over an object that follow them; the
// rules are functions in validate_gateway.go.

const gatewayGroup = gatewayv1.GroupName

// isGateway says whether an object is of the Gateway API.
func isGateway(o API) bool { return kindOf(o).group == gatewayGroup }

// gatewayDefaults are the values of fields that are not set, by type and field.
// A field of a struct or list type gets one element, which is then filled too.
var gatewayDefaults = map[string]any{
	"ParentReference.group":                gatewayGroup,
	"ParentReference.kind":                 "Gateway",
	"BackendObjectReference.group":         "",
	"BackendObjectReference.kind":          "Service",
	"BackendRef.weight":                    int32(1),
	"SecretObjectReference.group":          "",
	"SecretObjectReference.kind":           "Secret",
	"Fraction.denominator":                 int32(100),
	"SessionPersistence.type":              "Cookie",
	"CookieConfig.lifetimeType":            "Session",
	"Listener.allowedRoutes":               nil,
	"AllowedRoutes.namespaces":             nil,
	"RouteNamespaces.from":                 "Same",
	"AllowedListeners.namespaces":          nil,
	"ListenerNamespaces.from":              "None",
	"RouteGroupKind.group":                 gatewayGroup,
	"ListenerTLSConfig.mode":               "Terminate",
	"FrontendTLSValidation.mode":           "AllowValidOnly",
	"GatewaySpecAddress.type":              "IPAddress",
	"HTTPRouteSpec.rules":                  nil,
	"HTTPRouteRule.matches":                nil,
	"HTTPRouteMatch.path":                  nil,
	"HTTPPathMatch.type":                   "PathPrefix",
	"HTTPPathMatch.value":                  "/",
	"HTTPHeaderMatch.type":                 "Exact",
	"HTTPQueryParamMatch.type":             "Exact",
	"HTTPRequestRedirectFilter.statusCode": 302,
	"HTTPCORSFilter.maxAge":                int32(5),
	"GRPCMethodMatch.type":                 "Exact",
	"GRPCHeaderMatch.type":                 "Exact",
}

// text is what a string has to be like; 0 characters are no limit.
type text struct {
	min, max int
	pattern  *regexp.Regexp
	oneOf    []string
}

const (
	subdomain     = `[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*`
	qualifiedName = `^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$`
	pathTail      = `\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$`
	headerName    = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"
)

func pattern(min, max int, expr string) text {
	return text{min: min, max: max, pattern: regexp.MustCompile(expr)}
}

func values(v ...string) text { return text{oneOf: v} }

// gatewayTexts are the string types, by name.
var gatewayTexts = map[string]text{
	"Hostname":                    pattern(1, 253, `^(\*\.)?`+subdomain+`$`),
	"PreciseHostname":             pattern(1, 253, `^`+subdomain+`$`),
	"Group":                       pattern(0, 253, `^$|^`+subdomain+`$`),
	"Kind":                        pattern(1, 63, `^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`),
	"ObjectName":                  {min: 1, max: 253},
	"Namespace":                   pattern(1, 63, `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`),
	"SectionName":                 pattern(1, 253, `^`+subdomain+`$`),
	"GatewayController":           pattern(1, 253, `^`+subdomain+pathTail),
	"AnnotationKey":               pattern(1, 253, qualifiedName),
	"AnnotationValue":             {max: 4096},
	"LabelKey":                    pattern(1, 253, qualifiedName),
	"LabelValue":                  pattern(0, 63, `^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`),
	"AddressType":                 pattern(1, 253, `^Hostname|IPAddress|NamedAddress|`+subdomain+pathTail),
	"ProtocolType":                pattern(1, 255, `^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$|`+subdomain+`\/[A-Za-z0-9]+$`),
	"HTTPHeaderName":              pattern(1, 256, headerName),
	"GRPCHeaderName":              pattern(1, 256, headerName),
	"Duration":                    pattern(0, 0, `^([0-9]{1,5}(h|m|s|ms)){1,4}$`),
	"AbsoluteURI":                 pattern(1, 253, `^(([^:/?#]+):)(//([^/?#]*))([^?#]*)(\?([^#]*))?(#(.*))?`),
	"CORSOrigin":                  pattern(1, 253, `(^\*$)|(^(http(s)?):\/\/(((\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9-]+|\*)(:([0-9]{1,5}))?)$)`),
	"WellKnownCACertificatesType": pattern(1, 253, `^(System|(`+subdomain+`/([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]))$`),
	"TLSModeType":                 values("Terminate", "Passthrough"),
	"FrontendValidationModeType":  values("AllowValidOnly", "AllowInsecureFallback"),
	"PathMatchType":               values("Exact", "PathPrefix", "RegularExpression"),
	"HeaderMatchType":             values("Exact", "RegularExpression"),
	"QueryParamMatchType":         values("Exact", "RegularExpression"),
	"GRPCHeaderMatchType":         values("Exact", "RegularExpression"),
	"GRPCMethodMatchType":         values("Exact", "RegularExpression"),
	"HTTPMethod":                  values("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"),
	"HTTPMethodWithWildcard":      values("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"),
	"HTTPRouteFilterType":         values("RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "RequestRedirect", "URLRewrite", "ExtensionRef", "CORS", "ExternalAuth"),
	"GRPCRouteFilterType":         values("ResponseHeaderModifier", "RequestHeaderModifier", "RequestMirror", "ExtensionRef"),
	"HTTPPathModifierType":        values("ReplaceFullPath", "ReplacePrefixMatch"),
	"SubjectAltNameType":          values("Hostname", "URI"),
	"SessionPersistenceType":      values("Cookie", "Header"),
	"CookieLifetimeType":          values("Permanent", "Session"),
	"GatewayDefaultScope":         values("All", "None"),
}

// gatewayFieldTexts are strings whose type says nothing, by type and field.
var gatewayFieldTexts = map[string]text{
	"RouteNamespaces.from":                values("All", "Selector", "Same"),
	"ListenerNamespaces.from":             values("All", "Selector", "Same", "None"),
	"HTTPRequestRedirectFilter.scheme":    values("http", "https"),
	"GatewaySpecAddress.value":            {max: 253},
	"LocalParametersReference.name":       {min: 1, max: 253},
	"ParametersReference.name":            {min: 1, max: 253},
	"GatewayClassSpec.description":        {max: 64},
	"HTTPPathMatch.value":                 {max: 1024},
	"HTTPHeaderMatch.value":               {min: 1, max: 4096},
	"HTTPQueryParamMatch.value":           {min: 1, max: 1024},
	"GRPCHeaderMatch.value":               {min: 1, max: 4096},
	"GRPCMethodMatch.service":             {max: 1024},
	"GRPCMethodMatch.method":              {max: 1024},
	"HTTPHeader.value":                    {min: 1, max: 4096},
	"HTTPPathModifier.replaceFullPath":    {max: 1024},
	"HTTPPathModifier.replacePrefixMatch": {max: 1024},
	"SessionPersistence.sessionName":      {max: 128},
}

type bounds struct{ min, max int }

// gatewaySizes are the numbers of elements that lists and maps may have.
var gatewaySizes = map[string]bounds{
	"CommonRouteSpec.parentRefs":                   {0, 32},
	"GatewaySpec.listeners":                        {1, 64},
	"GatewaySpec.addresses":                        {0, 16},
	"FrontendTLSConfig.perPort":                    {0, 64},
	"FrontendTLSValidation.caCertificateRefs":      {1, 16},
	"ListenerTLSConfig.certificateRefs":            {0, 64},
	"ListenerTLSConfig.options":                    {0, 16},
	"AllowedRoutes.kinds":                          {0, 8},
	"GatewayInfrastructure.labels":                 {0, 8},
	"GatewayInfrastructure.annotations":            {0, 16},
	"HTTPRouteSpec.hostnames":                      {0, 16},
	"HTTPRouteSpec.rules":                          {1, 16},
	"HTTPRouteRule.matches":                        {0, 64},
	"HTTPRouteRule.filters":                        {0, 16},
	"HTTPRouteRule.backendRefs":                    {0, 16},
	"HTTPBackendRef.filters":                       {0, 16},
	"HTTPRouteMatch.headers":                       {0, 16},
	"HTTPRouteMatch.queryParams":                   {0, 16},
	"HTTPHeaderFilter.set":                         {0, 16},
	"HTTPHeaderFilter.add":                         {0, 16},
	"HTTPHeaderFilter.remove":                      {0, 16},
	"HTTPCORSFilter.allowOrigins":                  {0, 64},
	"HTTPCORSFilter.allowMethods":                  {0, 9},
	"HTTPCORSFilter.allowHeaders":                  {0, 64},
	"HTTPCORSFilter.exposeHeaders":                 {0, 64},
	"GRPCRouteSpec.hostnames":                      {0, 16},
	"GRPCRouteSpec.rules":                          {0, 16},
	"GRPCRouteRule.matches":                        {0, 64},
	"GRPCRouteRule.filters":                        {0, 16},
	"GRPCRouteRule.backendRefs":                    {0, 16},
	"GRPCBackendRef.filters":                       {0, 16},
	"GRPCRouteMatch.headers":                       {0, 16},
	"TLSRouteSpec.hostnames":                       {1, 1024},
	"TLSRouteSpec.rules":                           {1, 1},
	"TLSRouteRule.backendRefs":                     {1, 16},
	"ReferenceGrantSpec.from":                      {1, 16},
	"ReferenceGrantSpec.to":                        {1, 16},
	"BackendTLSPolicySpec.targetRefs":              {1, 16},
	"BackendTLSPolicySpec.options":                 {0, 16},
	"BackendTLSPolicyValidation.caCertificateRefs": {0, 8},
	"BackendTLSPolicyValidation.subjectAltNames":   {0, 5},
}

// gatewayNumbers are the values that numbers may have.
var gatewayNumbers = map[string]bounds{
	"ParentReference.port":            {1, 65535},
	"BackendObjectReference.port":     {1, 65535},
	"Listener.port":                   {1, 65535},
	"TLSPortConfig.port":              {1, 65535},
	"HTTPRequestRedirectFilter.port":  {1, 65535},
	"BackendRef.weight":               {0, 1000000},
	"HTTPRequestMirrorFilter.percent": {0, 100},
	"Fraction.numerator":              {0, 1<<31 - 1},
	"Fraction.denominator":            {1, 1<<31 - 1},
	"HTTPCORSFilter.maxAge":           {1, 1<<31 - 1},
	"HTTPRouteRetry.attempts":         {1, 1<<31 - 1},
	"HTTPRouteRetry.codes":            {400, 599},
}

// gatewayKeys are the lists whose elements have a field that no two share.
var gatewayKeys = map[string]string{
	"GatewaySpec.listeners":      "name",
	"HTTPRouteMatch.headers":     "name",
	"HTTPRouteMatch.queryParams": "name",
	"GRPCRouteMatch.headers":     "name",
	"HTTPHeaderFilter.set":       "name",
	"HTTPHeaderFilter.add":       "name",
	"FrontendTLSConfig.perPort":  "port",
}

// redirectCodes are those of HTTPRequestRedirectFilter.statusCode.
var redirectCodes = []int{301, 302, 303, 307, 308}

// defaultGateway fills in what the definitions of the Gateway API fill in.
func defaultGateway(o API) {
	fillIn(reflect.ValueOf(o).Elem().FieldByName("Spec"))
	waiting := func(kind string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: "Pending", Message: "Waiting for controller", LastTransitionTime: metav1.Unix(0, 0)}
	}
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		if o.Status.Conditions == nil {
			o.Status.Conditions = []metav1.Condition{waiting("Accepted")}
		}
	case *gatewayv1.Gateway:
		if o.Status.Conditions == nil {
			o.Status.Conditions = []metav1.Condition{waiting("Accepted"), waiting("Programmed")}
		}
	}
}

func fillIn(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fillIn(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			fillIn(v.Index(i))
		}
	case reflect.Struct:
		if v.Type().PkgPath() != gatewayPackage {
			return
		}
		for f, at := range v.Fields() {
			name := v.Type().Name() + "." + jsonName(f)
			if value, ok := gatewayDefaults[name]; ok && at.IsZero() {
				setDefault(at, value)
			}
			fillIn(at)
		}
	}
}

// setDefault gives a field its value, or one element where that is nil.
func setDefault(at reflect.Value, value any) {
	switch at.Kind() {
	case reflect.Pointer:
		at.Set(reflect.New(at.Type().Elem()))
		at = at.Elem()
	case reflect.Slice:
		at.Set(reflect.MakeSlice(at.Type(), 1, 1))
		return
	}
	if value != nil {
		at.Set(reflect.ValueOf(value).Convert(at.Type()))
	}
}

var gatewayPackage = reflect.TypeFor[gatewayv1.Gateway]().PkgPath()

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// validateGateway says what the definitions of the Gateway API say against an object.
func validateGateway(o API) field.ErrorList {
	s := schemaCheck{}
	s.check(reflect.ValueOf(o).Elem().FieldByName("Spec"), field.NewPath("spec"), "")
	return s.errs
}

type schemaCheck struct{ errs field.ErrorList }

func (s *schemaCheck) add(errs ...*field.Error) { s.errs = append(s.errs, errs...) }

// check walks a value; name is the type and field that it is of.
func (s *schemaCheck) check(v reflect.Value, at *field.Path, name string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			s.check(v.Elem(), at, name)
		}
	case reflect.Slice, reflect.Map:
		s.size(v, at, name)
		if v.Kind() == reflect.Map {
			for _, k := range slices.SortedFunc(maps.Keys(keyed(v)), strings.Compare) {
				s.text(k, v.Type().Key().Name(), at.Key(k), "")
				s.text(keyed(v)[k], v.Type().Elem().Name(), at.Key(k), "")
			}
			return
		}
		for i := range v.Len() {
			s.check(v.Index(i), at.Index(i), name)
		}
	case reflect.String:
		s.text(v.String(), v.Type().Name(), at, name)
	case reflect.Int, reflect.Int32, reflect.Int64:
		if b, ok := gatewayNumbers[name]; ok {
			switch n := int(v.Int()); {
			case n < b.min:
				s.add(field.Invalid(at, n, fmt.Sprintf("%s in body should be greater than or equal to %d", at, b.min)))
			case n > b.max:
				s.add(field.Invalid(at, n, fmt.Sprintf("%s in body should be less than or equal to %d", at, b.max)))
			}
		}
	case reflect.Struct:
		if v.Type().PkgPath() != gatewayPackage {
			return
		}
		for f, value := range v.Fields() {
			below, json := at, f.Tag.Get("json")
			name := v.Type().Name() + "." + jsonName(f)
			if jsonName(f) != "" {
				below = at.Child(jsonName(f))
			}
			optional := strings.Contains(json, "omitempty") || strings.Contains(json, "omitzero") || strings.Contains(json, "inline")
			switch {
			case value.IsZero() && optional:
			case value.IsZero() && value.Kind() == reflect.String && f.Type.Name() != "Group":
				s.add(field.Required(below, ""))
			default:
				s.check(value, below, name)
			}
		}
		s.add(gatewayRules(v.Addr().Interface(), at)...)
	}
}

func keyed(m reflect.Value) map[string]string {
	out := map[string]string{}
	for _, k := range m.MapKeys() {
		out[k.String()] = m.MapIndex(k).String()
	}
	return out
}

func (s *schemaCheck) size(v reflect.Value, at *field.Path, name string) {
	if b, ok := gatewaySizes[name]; ok {
		switch n := v.Len(); {
		case n < b.min:
			s.add(field.Invalid(at, n, fmt.Sprintf("%s in body should have at least %d items", at, b.min)))
		case n > b.max:
			s.add(field.TooMany(at, n, b.max))
		}
	}
	key, ok := gatewayKeys[name]
	if !ok {
		return
	}
	seen := map[string]bool{}
	for i := range v.Len() {
		for f, value := range v.Index(i).Fields() {
			if jsonName(f) != key {
				continue
			}
			k := fmt.Sprint(value)
			if seen[k] {
				s.add(field.Duplicate(at.Index(i), map[string]string{key: k}))
			}
			seen[k] = true
		}
	}
}

func (s *schemaCheck) text(value, typeName string, at *field.Path, name string) {
	t, ok := gatewayFieldTexts[name]
	if !ok {
		t, ok = gatewayTexts[typeName]
	}
	switch n := utf8.RuneCountInString(value); {
	case !ok:
	case t.oneOf != nil && !slices.Contains(t.oneOf, value):
		s.add(field.NotSupported(at, value, t.oneOf))
	case n < t.min:
		s.add(field.Invalid(at, value, fmt.Sprintf("%s in body should be at least %d chars long", at, t.min)))
	case t.max > 0 && n > t.max:
		s.add(field.TooLong(at, value, t.max))
	case t.pattern != nil && !t.pattern.MatchString(value):
		s.add(field.Invalid(at, value, fmt.Sprintf("%s in body should match '%s'", at, t.pattern)))
	}
}
