package kube

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	kjson "sigs.k8s.io/json"
	policyv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
)

// version is one apiVersion in which a kind is accepted.
type version struct {
	kind    *kind
	new     func() API
	convert func(API) API // to the kind's own type, nil if it is that already
}

// versions are by apiVersion and kind.
var versions = func() map[[2]string]version {
	m := map[[2]string]version{}
	for _, k := range kinds {
		m[[2]string{k.apiVersion(), k.name}] = version{kind: k, new: k.new}
	}
	ingress := kindByName["Ingress"]
	m[[2]string{"extensions/v1beta1", "Ingress"}] = version{ingress,
		func() API { return new(networkingv1beta1.Ingress) },
		func(o API) API { return ingressFromV1beta1(o.(*networkingv1beta1.Ingress)) }}
	m[[2]string{"networking.k8s.io/v1beta1", "Ingress"}] = version{ingress,
		func() API { return new(networkingv1beta1.Ingress) },
		func(o API) API { return ingressFromV1beta1(o.(*networkingv1beta1.Ingress)) }}
	m[[2]string{"networking.k8s.io/v1beta1", "IngressClass"}] = version{kindByName["IngressClass"],
		func() API { return new(networkingv1beta1.IngressClass) },
		func(o API) API { return ingressClassFromV1beta1(o.(*networkingv1beta1.IngressClass)) }}
	cluster := kindByName["ClusterNetworkPolicy"]
	m[[2]string{"policy.networking.k8s.io/v1alpha1", adminPolicy}] = version{cluster,
		func() API { return new(policyv1alpha1.AdminNetworkPolicy) },
		func(o API) API { return fromAdminPolicy(o.(*policyv1alpha1.AdminNetworkPolicy)) }}
	m[[2]string{"policy.networking.k8s.io/v1alpha1", baselinePolicy}] = version{cluster,
		func() API { return new(policyv1alpha1.BaselineAdminNetworkPolicy) },
		func(o API) API { return fromBaselinePolicy(o.(*policyv1alpha1.BaselineAdminNetworkPolicy)) }}
	for _, name := range []string{"GatewayClass", "Gateway", "HTTPRoute", "ReferenceGrant"} {
		k := kindByName[name] // its beta is the same, field by field
		m[[2]string{gatewayGroup + "/v1beta1", name}] = version{kind: k, new: k.new}
	}
	return m
}()

// lookupVersion finds how to read a kind. A kind that is not known is either a
// mistake, and what says which, or something to ignore.
func lookupVersion(apiVersion, kindName string) (v version, known bool, what string) {
	if v, ok := versions[[2]string{apiVersion, kindName}]; ok {
		return v, true, ""
	}
	group, _, hasGroup := strings.Cut(apiVersion, "/")
	if !hasGroup {
		group = ""
	}
	switch group {
	case "", "apps", "extensions", "networking.k8s.io", "discovery.k8s.io", "policy.networking.k8s.io", "k8s.cni.cncf.io", gatewayGroup, "core":
	default:
		return v, false, ""
	}
	if group == gatewayGroup && slices.Contains(otherGateway, kindName) {
		return v, false, ""
	}
	noMatch := fmt.Sprintf("no matches for kind %q in version %q", kindName, apiVersion)
	if k := kindByName[kindName]; k != nil {
		return v, false, noMatch + suggestVersion(kindName)
	}
	for at := range versions {
		if at[1] == kindName {
			return v, false, noMatch + fmt.Sprintf(" (did you mean %s?)", at[0])
		}
	}
	for _, k := range kinds {
		if close := max(1, min(2, len(k.name)/4)); editDistance(strings.ToLower(k.name), strings.ToLower(kindName)) <= close {
			return v, false, noMatch + fmt.Sprintf(" (did you mean %s, %s?)", k.name, k.apiVersion())
		}
	}
	return v, false, ""
}

// otherGateway are the kinds of the Gateway API that podgate does not serve.
var otherGateway = []string{"TCPRoute", "UDPRoute", "ListenerSet"}

func suggestVersion(kindName string) string {
	if k := kindByName[kindName]; k != nil {
		return fmt.Sprintf(" (did you mean %s?)", k.apiVersion())
	}
	return ""
}

// editDistance is the number of letters to insert, remove or replace (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// decode reads one object strictly, as kubectl does with --validate=strict.
func (v version) decode(js []byte, lines lineIndex) (API, []Problem) {
	obj := v.new()
	var ps []Problem
	strict, err := kjson.UnmarshalStrict(js, obj, kjson.DisallowUnknownFields)
	if err != nil {
		p := Problem{Err: err.Error()}
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			p.Field = jsonPathAt(js, te.Offset)
			p.Line = lines.find(p.Field)
			if te.Type.Kind() == reflect.String && te.Value != "object" && te.Value != "array" {
				p.Err += " (quote it: a plain yes, no, on, off, y, n or number is not text in YAML)"
			}
		} else if key := badBase64(v, js); key != "" {
			p.Field = "data[" + key + "]"
			p.Line = lines.find(p.Field)
		}
		return nil, append(ps, p)
	}
	for _, err := range strict {
		p := Problem{Err: "strict decoding error: " + err.Error()}
		if fe, ok := err.(kjson.FieldError); ok {
			p.Field = fe.FieldPath()
			p.Line = lines.find(p.Field)
			p.Err += suggestField(obj, p.Field)
		}
		ps = append(ps, p)
	}
	if len(ps) > 0 {
		return nil, ps
	}
	if v.convert != nil {
		obj = v.convert(obj)
	}
	obj.GetObjectKind().SetGroupVersionKind(v.kind.gvk())
	return obj, nil
}

// badBase64 is the key of the first value of a Secret that cannot be decoded: the
// decoder does not say which.
func badBase64(v version, js []byte) string {
	var secret struct {
		Data map[string]string `json:"data"`
	}
	if v.kind.name != "Secret" || json.Unmarshal(js, &secret) != nil {
		return ""
	}
	for _, k := range slices.Sorted(maps.Keys(secret.Data)) {
		if _, err := base64.StdEncoding.DecodeString(secret.Data[k]); err != nil {
			return k
		}
	}
	return ""
}
