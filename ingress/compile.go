package ingress

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"podgate/kube"
)

// source is what Routes were made from, so that the next ones can share.
type source struct {
	state    *kube.State
	cfg      sourceConfig
	problems []kube.Problem
	backends map[backendKey]*backend
	pairs    map[*corev1.Secret]*pair
}

// sourceConfig is the part of Config that Compile depends on.
type sourceConfig struct{ class, controller string }

type backendKey struct {
	service kube.Name
	port    string
}

// pair is a Secret as a certificate, or why it is none.
type pair struct {
	cert *tls.Certificate
	err  error
}

// Annotations that are honoured, under "nginx.ingress.kubernetes.io/" and "podgate.dev/".
const (
	sslRedirect      = "ssl-redirect"
	forceSSLRedirect = "force-ssl-redirect"
)

var annotationPrefixes = []string{"podgate.dev/", "nginx.ingress.kubernetes.io/"}

const (
	legacyClass = "kubernetes.io/ingress.class" // older than spec.ingressClassName and stronger, as the API says
	heirClass   = "nginx"                       // what manifests written for ingress-nginx name
	heirOf      = "k8s.io/ingress-nginx"        // and its controller
)

// Compile makes the Routes of a state. What did not change since prev, which
// may be nil, is shared with it. Problems are Ingresses that are ignored, and
// references to what does not exist: these are answered with 503.
func Compile(prev *Routes, st *kube.State, cfg Config) (*Routes, []kube.Problem) {
	cfg = cfg.withDefaults()
	if prev == nil {
		prev = &Routes{}
	}
	sc := sourceConfig{cfg.Class, cfg.Controller}
	if prev.source.cfg == sc && unchanged(prev.state, st) {
		return prev, prev.problems
	}
	c := &compiler{
		Routes: &Routes{
			exact:    map[string]*host{},
			wildcard: map[string]*host{},
			certs:    certs{exact: map[string]*cert{}, wildcard: map[string]*cert{}},
			source: source{
				state: st, cfg: sc,
				backends: map[backendKey]*backend{},
				pairs:    map[*corev1.Secret]*pair{},
			},
		},
		prev: prev,
	}
	ours := c.ours()
	c.groupSlices(ours)
	for _, ing := range ours {
		c.compile(ing)
	}
	// Ingresses with rules offer their default backend to other hosts last.
	for _, withRules := range []bool{false, true} {
		for _, ing := range ours {
			if c.fallback == nil && ing.Spec.DefaultBackend != nil && (len(ing.Spec.Rules) > 0) == withRules {
				c.fallback = c.defaultRoute(ing, "")
			}
		}
	}
	return c.Routes, c.problems
}

// unchanged reports whether two states are the same for ingress.
func unchanged(a, b *kube.State) bool {
	return a != nil && same(a.Ingresses, b.Ingresses) && same(a.IngressClasses, b.IngressClasses) &&
		same(a.Services, b.Services) && same(a.EndpointSlices, b.EndpointSlices) && same(a.Secrets, b.Secrets)
}

// same reports whether two maps are one: a State shares the maps of which nothing changed.
func same[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// compiler is Routes in the making.
type compiler struct {
	*Routes
	prev   *Routes
	slices map[kube.Name][]*discoveryv1.EndpointSlice // of the Services that Ingresses name
}

func (c *compiler) problem(ing *networkingv1.Ingress, field, format string, args ...any) {
	c.problems = append(c.problems, kube.Problem{
		Kind: "Ingress", Object: kube.Name{Namespace: ing.Namespace, Name: ing.Name},
		Field: field, Err: fmt.Sprintf(format, args...),
	})
}

// ours returns the Ingresses that are served here, those first that win a tie.
func (c *compiler) ours() []*networkingv1.Ingress {
	all := make([]*networkingv1.Ingress, 0, len(c.state.Ingresses))
	for _, ing := range c.state.Ingresses {
		all = append(all, ing)
	}
	slices.SortFunc(all, func(a, b *networkingv1.Ingress) int {
		if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
			return d
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return slices.DeleteFunc(all, func(ing *networkingv1.Ingress) bool {
		field, why := c.notOurs(ing)
		if why != "" {
			c.problem(ing, field, "ignored: %s", why)
		}
		return why != ""
	})
}

// notOurs says why an Ingress is another controller's, "" if it is not.
func (c *compiler) notOurs(ing *networkingv1.Ingress) (field, why string) {
	classes := c.state.IngressClasses
	var class string
	if v, ok := ing.Annotations[legacyClass]; ok {
		field, class = "metadata.annotations["+legacyClass+"]", v
	} else if ing.Spec.IngressClassName != nil {
		field, class = "spec.ingressClassName", *ing.Spec.IngressClassName
	}
	if len(classes) == 0 {
		return "", "" // nobody else is there to serve it
	}
	if class == "" {
		field, class = "spec.ingressClassName", c.defaultClass()
		if class == "" {
			return field, "it names no class, and no IngressClass has the annotation " + networkingv1.AnnotationIsDefaultIngressClass + ": \"true\""
		}
	}
	object, ok := classes[class]
	switch {
	case ok && !c.controls(object):
		return field, fmt.Sprintf("class %q belongs to controller %q", class, object.Spec.Controller)
	case !ok && class != c.source.cfg.class && class != heirClass:
		return field, fmt.Sprintf("there is no IngressClass %q", class)
	}
	return "", ""
}

func (c *compiler) controls(class *networkingv1.IngressClass) bool {
	return class.Spec.Controller == c.source.cfg.controller || class.Spec.Controller == heirOf
}

// defaultClass is the class of Ingresses that name none: the newest that is
// marked, then by name, as the API server chooses.
func (c *compiler) defaultClass() string {
	var best *networkingv1.IngressClass
	for _, class := range c.state.IngressClasses {
		if class.Annotations[networkingv1.AnnotationIsDefaultIngressClass] != "true" {
			continue
		}
		newer := best == nil
		if !newer {
			d := class.CreationTimestamp.Compare(best.CreationTimestamp.Time)
			newer = d > 0 || d == 0 && class.Name < best.Name
		}
		if newer {
			best = class
		}
	}
	if best == nil {
		return ""
	}
	return best.Name
}

// compile enters the rules, default backend and certificates of one Ingress.
func (c *compiler) compile(ing *networkingv1.Ingress) {
	c.noteAnnotations(ing)
	for i, rule := range ing.Spec.Rules {
		h := c.hostTable(strings.ToLower(rule.Host))
		if h.fallback == nil && ing.Spec.DefaultBackend != nil {
			h.fallback = c.defaultRoute(ing, h.name)
		}
		if rule.HTTP == nil {
			continue // all of the host is for the default backend
		}
		for j, p := range rule.HTTP.Paths {
			r := c.route(ing, fmt.Sprintf("spec.rules[%d].http.paths[%d]", i, j), &p.Backend)
			r.host, r.path, r.kind = h.name, p.Path, kindOf(p.PathType)
			if r.path == "" {
				r.path = "/"
			}
			if taken := h.add(r); taken != nil {
				c.problem(ing, r.field, "ignored: host %q path %q is taken by %s of Ingress %s", r.host, r.path, taken.field, taken.ingress)
			}
		}
	}
	for i := range ing.Spec.TLS {
		c.compileTLS(ing, i)
	}
}

func kindOf(t *networkingv1.PathType) kind {
	switch {
	case t == nil:
		return implementationSpecific
	case *t == networkingv1.PathTypeExact:
		return exactPath
	case *t == networkingv1.PathTypePrefix:
		return prefixPath
	}
	return implementationSpecific
}

// hostTable returns the rules for a host, made if need be.
func (c *compiler) hostTable(name string) *host {
	at := func(m map[string]*host, key string) *host {
		if m[key] == nil {
			m[key] = &host{name: name, exact: map[string]*route{}, prefix: map[string]*route{}}
		}
		return m[key]
	}
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		return at(c.wildcard, parent)
	}
	if name != "" {
		return at(c.exact, name)
	}
	if c.any == nil {
		c.any = at(map[string]*host{}, "")
	}
	return c.any
}

func (c *compiler) defaultRoute(ing *networkingv1.Ingress, hostname string) *route {
	r := c.route(ing, "spec.defaultBackend", ing.Spec.DefaultBackend)
	r.host, r.kind = hostname, defaultBackend
	return r
}

func (c *compiler) route(ing *networkingv1.Ingress, field string, ref *networkingv1.IngressBackend) *route {
	return &route{
		ingress:  kube.Name{Namespace: ing.Namespace, Name: ing.Name},
		field:    field,
		redirect: annotation(ing, sslRedirect) != "false",
		tls:      slices.ContainsFunc(ing.Spec.TLS, func(t networkingv1.IngressTLS) bool { return len(t.Hosts) == 0 }),
		force:    annotation(ing, forceSSLRedirect) == "true",
		backend:  c.backend(ing, field, ref),
	}
}

func annotation(ing *networkingv1.Ingress, name string) string {
	for _, prefix := range annotationPrefixes {
		if v, ok := ing.Annotations[prefix+name]; ok {
			return v
		}
	}
	return ""
}

// noteAnnotations reports what was meant for ingress-nginx and has no effect here.
func (c *compiler) noteAnnotations(ing *networkingv1.Ingress) {
	var names []string
	for key := range ing.Annotations {
		for _, prefix := range annotationPrefixes {
			if name, ok := strings.CutPrefix(key, prefix); ok && name != sslRedirect && name != forceSSLRedirect {
				names = append(names, key)
			}
		}
	}
	slices.Sort(names)
	for _, key := range names {
		c.problem(ing, "metadata.annotations["+key+"]", "has no effect: podgate does not have this")
	}
}

// compileTLS enters the certificate of one element of spec.tls.
func (c *compiler) compileTLS(ing *networkingv1.Ingress, i int) {
	entry := ing.Spec.TLS[i]
	field := fmt.Sprintf("spec.tls[%d]", i)
	e := &cert{secret: kube.Name{Namespace: ing.Namespace, Name: entry.SecretName}}
	if entry.SecretName != "" {
		if secret := c.state.Secrets[e.secret]; secret == nil {
			c.problem(ing, field+".secretName", "Secret %s does not exist: a self-signed certificate stands in", e.secret)
		} else if p := c.pair(secret); p.err != nil {
			c.problem(ing, field+".secretName", "Secret %s: %v: a self-signed certificate stands in", e.secret, p.err)
		} else {
			e.pair = p.cert
		}
	}
	names := entry.Hosts
	if len(names) == 0 { // all hosts of this Ingress
		for _, rule := range ing.Spec.Rules {
			names = append(names, rule.Host)
		}
		if len(names) == 0 {
			names = []string{""}
		}
	}
	for _, name := range names {
		name = strings.ToLower(name)
		if name == "" {
			if c.certs.fallback == nil {
				c.certs.fallback = e
			}
			continue
		}
		if e.pair != nil && e.pair.Leaf.VerifyHostname(strings.Replace(name, "*", "x", 1)) != nil {
			c.problem(ing, field, "the certificate of Secret %s is not valid for host %q", e.secret, name)
		}
		c.certs.add(name, e)
	}
}

// pair reads a Secret's certificate, once for each Secret.
func (c *compiler) pair(secret *corev1.Secret) *pair {
	p := c.pairs[secret]
	if p == nil {
		p = c.prev.pairs[secret]
	}
	if p == nil {
		p = &pair{}
		for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if len(secret.Data[key]) == 0 && p.err == nil {
				p.err = fmt.Errorf("it has no %s", key)
			}
		}
		if p.err == nil {
			cert, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
			p.cert, p.err = &cert, err
		}
	}
	c.pairs[secret] = p
	return p
}

// groupSlices finds the EndpointSlices of the Services that the Ingresses name.
func (c *compiler) groupSlices(ours []*networkingv1.Ingress) {
	c.slices = map[kube.Name][]*discoveryv1.EndpointSlice{}
	want := func(namespace string, ref *networkingv1.IngressBackend) {
		if ref != nil && ref.Service != nil {
			c.slices[kube.Name{Namespace: namespace, Name: ref.Service.Name}] = nil
		}
	}
	for _, ing := range ours {
		want(ing.Namespace, ing.Spec.DefaultBackend)
		for _, rule := range ing.Spec.Rules {
			if rule.HTTP != nil {
				for _, p := range rule.HTTP.Paths {
					want(ing.Namespace, &p.Backend)
				}
			}
		}
	}
	for name, es := range c.state.EndpointSlices {
		of := kube.Name{Namespace: name.Namespace, Name: es.Labels[discoveryv1.LabelServiceName]}
		if have, ok := c.slices[of]; ok {
			c.slices[of] = append(have, es)
		}
	}
}

// backend resolves what a path refers to. One that did not change is that of
// the Routes before; one whose endpoints did goes on where it was in turn.
func (c *compiler) backend(ing *networkingv1.Ingress, field string, ref *networkingv1.IngressBackend) *backend {
	if ref.Service == nil {
		what := "no Service"
		if ref.Resource != nil {
			what = fmt.Sprintf("resource %s %s", ref.Resource.Kind, ref.Resource.Name)
		}
		c.problem(ing, field+".resource", "backend is a resource: podgate serves Services only")
		return &backend{port: what, why: "podgate serves Services only", next: new(atomic.Uint32)}
	}
	port := ref.Service.Port.Name
	if port == "" {
		port = strconv.Itoa(int(ref.Service.Port.Number))
	}
	k := backendKey{kube.Name{Namespace: ing.Namespace, Name: ref.Service.Name}, port}
	b := c.backends[k]
	if b == nil {
		b = &backend{service: k.service, port: port}
		b.fill(c.state.Services[k.service], c.slices[k.service])
		if old := c.prev.backends[k]; old != nil {
			b.next = old.next
			if old.h2c == b.h2c && old.why == b.why && slices.Equal(old.endpoints, b.endpoints) {
				b = old
			}
		} else {
			b.next = new(atomic.Uint32)
		}
		c.backends[k] = b
	}
	if svc := c.state.Services[k.service]; svc == nil || servicePort(svc, port) == nil {
		c.problem(ing, field+".service", "%s", b.why)
	}
	return b
}

// servicePort returns the port that an Ingress names by name or number.
func servicePort(svc *corev1.Service, port string) *corev1.ServicePort {
	for i, p := range svc.Spec.Ports {
		if p.Name == port || strconv.Itoa(int(p.Port)) == port {
			return &svc.Spec.Ports[i]
		}
	}
	return nil
}

// fill finds a backend's endpoints: the ready ones, or if there are none those
// that still serve while they terminate; of the Service's first address family.
func (b *backend) fill(svc *corev1.Service, all []*discoveryv1.EndpointSlice) {
	if svc == nil {
		b.why = fmt.Sprintf("Service %s does not exist", b.service)
		return
	}
	port := servicePort(svc, b.port)
	if port == nil {
		b.why = fmt.Sprintf("Service %s has no port %s", b.service, b.port)
		return
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		b.why = "a Service of type ExternalName has no endpoints"
		return
	}
	b.h2c = port.AppProtocol != nil && *port.AppProtocol == "kubernetes.io/h2c"
	var draining []netip.AddrPort
	total := 0
	for _, es := range all {
		if len(svc.Spec.IPFamilies) > 0 && string(es.AddressType) != string(svc.Spec.IPFamilies[0]) {
			continue
		}
		number := slicePort(es, port.Name)
		if number == 0 {
			continue
		}
		for _, e := range es.Endpoints {
			is := e.Conditions
			ready := is.Ready == nil || *is.Ready || svc.Spec.PublishNotReadyAddresses
			drains := is.Serving != nil && *is.Serving && is.Terminating != nil && *is.Terminating
			for _, ip := range e.Addresses {
				addr, err := netip.ParseAddr(ip)
				if err != nil {
					continue
				}
				total++
				if ap := netip.AddrPortFrom(addr, number); ready {
					b.endpoints = append(b.endpoints, ap)
				} else if drains {
					draining = append(draining, ap)
				}
			}
		}
	}
	if len(b.endpoints) == 0 {
		b.endpoints = draining
	}
	slices.SortFunc(b.endpoints, netip.AddrPort.Compare)
	b.endpoints = slices.Compact(b.endpoints)
	switch {
	case len(b.endpoints) > 0:
	case total > 0:
		b.why = fmt.Sprintf("none of its %d endpoints is ready", total)
	default:
		b.why = "it has no endpoints"
	}
}

// slicePort is the number of a named port in a slice, 0 if it has none.
func slicePort(es *discoveryv1.EndpointSlice, name string) uint16 {
	for _, p := range es.Ports {
		if p.Port != nil && (p.Name == nil && name == "" || p.Name != nil && *p.Name == name) &&
			(p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP) {
			return uint16(*p.Port)
		}
	}
	return 0
}
