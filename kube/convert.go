package kube

import (
	"reflect"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The v1beta1 Ingresses of networking.k8s.io and extensions have one form; it
// differs from v1 in how a backend is written (serviceName, servicePort), in
// the name of the default backend, and in that pathType may be left out:
// ImplementationSpecific then.

func ingressFromV1beta1(in *networkingv1beta1.Ingress) *networkingv1.Ingress {
	out := &networkingv1.Ingress{ObjectMeta: in.ObjectMeta}
	out.Spec.IngressClassName = in.Spec.IngressClassName
	if b := in.Spec.Backend; b != nil {
		out.Spec.DefaultBackend = new(ingressBackend(b.ServiceName, b.ServicePort))
		out.Spec.DefaultBackend.Resource = b.Resource
	}
	for _, t := range in.Spec.TLS {
		out.Spec.TLS = append(out.Spec.TLS, networkingv1.IngressTLS{Hosts: t.Hosts, SecretName: t.SecretName})
	}
	for _, r := range in.Spec.Rules {
		rule := networkingv1.IngressRule{Host: r.Host}
		if r.HTTP != nil {
			rule.HTTP = &networkingv1.HTTPIngressRuleValue{}
			for _, p := range r.HTTP.Paths {
				backend := ingressBackend(p.Backend.ServiceName, p.Backend.ServicePort)
				backend.Resource = p.Backend.Resource
				rule.HTTP.Paths = append(rule.HTTP.Paths, ingressPath(p.Path, (*string)(p.PathType), backend))
			}
		}
		out.Spec.Rules = append(out.Spec.Rules, rule)
	}
	return out
}

func ingressBackend(service string, port intstr.IntOrString) networkingv1.IngressBackend {
	if service == "" {
		return networkingv1.IngressBackend{}
	}
	b := &networkingv1.IngressServiceBackend{Name: service}
	if port.Type == intstr.String {
		b.Port.Name = port.StrVal
	} else {
		b.Port.Number = port.IntVal
	}
	return networkingv1.IngressBackend{Service: b}
}

func ingressPath(path string, pathType *string, b networkingv1.IngressBackend) networkingv1.HTTPIngressPath {
	t := networkingv1.PathTypeImplementationSpecific
	if pathType != nil {
		t = networkingv1.PathType(*pathType)
	}
	return networkingv1.HTTPIngressPath{Path: path, PathType: &t, Backend: b}
}

func ingressClassFromV1beta1(in *networkingv1beta1.IngressClass) *networkingv1.IngressClass {
	out := &networkingv1.IngressClass{ObjectMeta: in.ObjectMeta}
	out.Spec.Controller = in.Spec.Controller
	if p := in.Spec.Parameters; p != nil {
		out.Spec.Parameters = &networkingv1.IngressClassParametersReference{
			APIGroup: p.APIGroup, Kind: p.Kind, Name: p.Name, Scope: p.Scope, Namespace: p.Namespace,
		}
	}
	return out
}

// suggestField names the field of an object that was probably meant by one that
// does not exist.
func suggestField(o any, path string) string {
	steps := splitPath(path)
	t := reflect.TypeOf(o)
	for _, step := range steps[:len(steps)-1] {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Slice, reflect.Map:
			t = t.Elem()
		case reflect.Struct:
			f, ok := jsonField(t, step)
			if !ok {
				return ""
			}
			t = f
		default:
			return ""
		}
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return ""
	}
	wrong := steps[len(steps)-1]
	best, bestDistance := "", 1+min(2, len(wrong)/3)
	eachJSONField(t, func(name string, _ reflect.Type) {
		if d := editDistance(strings.ToLower(name), strings.ToLower(wrong)); d < bestDistance {
			best, bestDistance = name, d
		}
	})
	if best == "" {
		return ""
	}
	return " (did you mean \"" + best + "\"?)"
}

func jsonField(t reflect.Type, name string) (found reflect.Type, ok bool) {
	eachJSONField(t, func(n string, ft reflect.Type) {
		if n == name {
			found, ok = ft, true
		}
	})
	return found, ok
}

func eachJSONField(t reflect.Type, yield func(name string, t reflect.Type)) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name != "" && name != "-":
			yield(name, f.Type)
		case f.Anonymous && name == "" && (options == "inline" || options == ""):
			if f.Type.Kind() == reflect.Struct {
				eachJSONField(f.Type, yield)
			}
		}
	}
}
