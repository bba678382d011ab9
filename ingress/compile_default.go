package ingress

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"podgate/kube"
)

// The default backend of all Ingresses: the Service that an IngressClass of ours
// names in spec.parameters, else that of the settings. The API leaves parameters
// to controllers; what no default backend of an Ingress answers comes here.

// standIn finds it, if no Ingress has a default backend for all hosts.
func (c *compiler) standIn() {
	var classes []*networkingv1.IngressClass
	for _, class := range c.state.IngressClasses {
		if c.controls(class) && class.Spec.Parameters != nil {
			classes = append(classes, class)
		}
	}
	isDefault := c.defaultClass()
	slices.SortFunc(classes, func(a, b *networkingv1.IngressClass) int {
		if (a.Name == isDefault) != (b.Name == isDefault) {
			return map[bool]int{true: -1, false: 1}[a.Name == isDefault]
		}
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	for _, class := range classes {
		p := class.Spec.Parameters
		name := kube.Name{Name: p.Name}
		if p.Namespace != nil {
			name.Namespace = *p.Namespace
		}
		at := origin{"IngressClass", kube.Name{Name: class.Name}, "spec.parameters"}
		if p.Kind != "Service" || p.APIGroup != nil && *p.APIGroup != "" {
			at.warn(c, "has no effect: podgate takes a Service, the default backend of the class")
		} else {
			c.standInAt(at, name, "")
		}
	}
	if c.source.cfg.fallback != "" {
		path, port, _ := strings.Cut(c.source.cfg.fallback, ":")
		namespace, service, _ := strings.Cut(path, "/")
		c.standInAt(origin{"Setting", kube.Name{Name: "ingress.default-backend"}, "value"}, kube.Name{Namespace: namespace, Name: service}, port)
	}
}

// origin is where a default backend is named.
type origin struct {
	kind   string
	object kube.Name
	field  string
}

func (o origin) warn(c *compiler, format string, args ...any) {
	c.problems = append(c.problems, kube.Problem{
		Severity: kube.Warning, Kind: o.kind, Object: o.object, Field: o.field, Err: fmt.Sprintf(format, args...),
	})
}

// standInAt makes a Service the default backend unless there is one. Without a
// port it is the Service's first.
func (c *compiler) standInAt(at origin, service kube.Name, port string) {
	switch svc := c.state.Services[service]; {
	case svc == nil:
		at.warn(c, "no Service %q in namespace %q", service.Name, service.Namespace)
	case port == "" && len(svc.Spec.Ports) > 0:
		port = strconv.Itoa(int(svc.Spec.Ports[0].Port))
	case servicePort(svc, port) == nil:
		at.warn(c, "Service %q has no port %q", service.Name, port)
	}
	if c.fallback != nil {
		return
	}
	o := c.options(&networkingv1.Ingress{})
	r := &route{of: at.kind, ingress: at.object, field: at.field, kind: defaultBackend, options: o, backend: c.backendOf(service, port, o.wire)}
	r.stats = c.stats(r)
	c.fallback = r
}
