package ingress

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"podgate/kube"
)

// source is what Routes were made from, so that the next ones can share.
type source struct {
	state    *kube.State
	cfg      sourceConfig
	problems []kube.Problem
	backends map[backendKey]*backend
	pairs    map[*corev1.Secret]*pair
	pools    map[*corev1.Secret]*x509.CertPool // certificate authorities
	bundles  map[string]*x509.CertPool         // those of BackendTLSPolicies, by their text
	placed   map[types.UID][]netip.Addr        // Gateways
	limiters map[kube.Name]*limit              // by Ingress
	reached  map[poolKey]*endpoint
	seen     map[statsKey]*stats
}

// sourceConfig is the part of Config that Compile depends on.
type sourceConfig struct {
	class, controller string
	gateway           GatewayConfig
	fallback          string // Config.DefaultBackend
	out               bool   // there is a way out
}

type backendKey struct {
	service kube.Name
	port    string
	wire    wire // as the Ingress asks
}

// pair is a Secret as a certificate, or why it is none.
type pair struct {
	cert *tls.Certificate
	err  error
}

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
	sc := sourceConfig{cfg.Class, cfg.Controller, cfg.Gateway, cfg.DefaultBackend, cfg.DialOut != nil}
	if reflect.DeepEqual(prev.source.cfg, sc) && unchanged(prev.state, st) {
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
				pools:    map[*corev1.Secret]*x509.CertPool{},
				bundles:  map[string]*x509.CertPool{},
				placed:   map[types.UID][]netip.Addr{},
				limiters: map[kube.Name]*limit{},
				reached:  map[poolKey]*endpoint{},
				seen:     map[statsKey]*stats{},
			},
			passthrough: map[string]*backend{},
			asksClients: map[string]bool{},
			pods:        map[netip.Addr]string{},
		},
		prev:   prev,
		now:    cfg.Now(),
		asked:  map[*networkingv1.Ingress]*options{},
		regex:  map[string]bool{},
		slices: map[kube.Name][]*discoveryv1.EndpointSlice{},
	}
	ours := c.ours()
	if len(ours)+len(st.Gateways)+len(st.IngressClasses)+len(cfg.DefaultBackend) > 0 {
		c.groupSlices()
	}
	c.noteConfig()
	for _, ing := range ours {
		c.asked[ing] = c.options(ing)
	}
	canaries, main := split(ours, func(ing *networkingv1.Ingress) bool { return c.asked[ing].canary != nil })
	ours = main
	for _, ing := range ours {
		c.compile(ing)
	}
	for _, ing := range canaries {
		c.compileCanary(ing)
	}
	// Ingresses with rules offer their default backend to other hosts last.
	for _, withRules := range []bool{false, true} {
		for _, ing := range ours {
			if c.fallback == nil && ing.Spec.DefaultBackend != nil && (len(ing.Spec.Rules) > 0) == withRules {
				c.fallback = c.defaultRoute(ing, "")
			}
		}
	}
	c.standIn()
	c.compilePatterns()
	for _, ing := range ours {
		c.otherNames(ing)
	}
	c.compileGateways(cfg.Gateway, c.now)
	return c.Routes, c.problems
}

// split parts a list, each part in order.
func split[T any](all []T, first func(T) bool) (yes, no []T) {
	for _, x := range all {
		if first(x) {
			yes = append(yes, x)
		} else {
			no = append(no, x)
		}
	}
	return yes, no
}

// unchanged reports whether two states are the same for ingress.
func unchanged(a, b *kube.State) bool {
	return a != nil && same(a.Ingresses, b.Ingresses) && same(a.IngressClasses, b.IngressClasses) &&
		same(a.Services, b.Services) && a.EndpointSlices.Same(&b.EndpointSlices) && same(a.Secrets, b.Secrets) &&
		same(a.ConfigMaps, b.ConfigMaps) && same(a.GatewayClasses, b.GatewayClasses) && same(a.Gateways, b.Gateways) &&
		same(a.HTTPRoutes, b.HTTPRoutes) && same(a.GRPCRoutes, b.GRPCRoutes) && same(a.TLSRoutes, b.TLSRoutes) &&
		same(a.ReferenceGrants, b.ReferenceGrants) && same(a.BackendTLSPolicies, b.BackendTLSPolicies) &&
		(len(a.Gateways) == 0 || same(a.Namespaces, b.Namespaces))
}

// same reports whether two maps are one: a State shares the maps of which nothing changed.
func same[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// compiler is Routes in the making.
type compiler struct {
	*Routes
	prev     *Routes
	now      time.Time
	slices   map[kube.Name][]*discoveryv1.EndpointSlice // by Service
	asked    map[*networkingv1.Ingress]*options
	regex    map[string]bool // hosts whose paths are regular expressions
	names    map[string]bool // hosts of rules; nil: not made yet
	defaults *options        // of Ingresses without annotations; nil: not made yet

	config     map[string]string // the controller's ConfigMap
	configName kube.Name
}

// warn reports what is wrong with an Ingress of which the rest applies. What a
// reader of manifests can see too is said in kube's words.
func (c *compiler) warn(ing *networkingv1.Ingress, field, format string, args ...any) {
	c.problems = append(c.problems, kube.Problem{
		Severity: kube.Warning, Kind: "Ingress", Object: kube.Name{Namespace: ing.Namespace, Name: ing.Name},
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
		p := c.notOurs(ing)
		if p.Err != "" {
			c.problems = append(c.problems, p)
		}
		return p.Err != ""
	})
}

// notOurs says why an Ingress is ignored: another controller's as a matter of
// fact, nobody's as a warning. The zero Problem: it is ours.
func (c *compiler) notOurs(ing *networkingv1.Ingress) kube.Problem {
	p := kube.Problem{
		Severity: kube.Warning, Kind: "Ingress", Object: kube.Name{Namespace: ing.Namespace, Name: ing.Name},
		Field: "spec.ingressClassName",
	}
	class := c.defaultClass()
	if v, ok := ing.Annotations[legacyClass]; ok {
		p.Field, class = "metadata.annotations["+legacyClass+"]", v
	} else if ing.Spec.IngressClassName != nil {
		class = *ing.Spec.IngressClassName
	}
	switch object, ok := c.state.IngressClasses[class]; {
	case class == "" && len(c.state.IngressClasses) == 0: // nobody else is there to serve it
	case class == "":
		p.Err = "ignored: it names no class, and no IngressClass has the annotation " + networkingv1.AnnotationIsDefaultIngressClass + ": \"true\""
	case ok && !c.controls(object):
		p.Severity = kube.Info
		p.Err = fmt.Sprintf("ignored: class %q belongs to controller %q", class, object.Spec.Controller)
	case !ok && class != c.source.cfg.class && class != heirClass:
		p.Err = fmt.Sprintf("ignored: there is no IngressClass %q", class)
	}
	return p
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
	o := c.asked[ing]
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
			if o.passthrough && c.passthrough[h.name] == nil {
				c.passthrough[h.name] = r.backend
			}
			if o.client != nil {
				c.asksClients[h.name] = true
			}
			if r.path == "" {
				r.path = "/"
			}
			if o.appRoot != "" && h.root == nil {
				root := *r // the server's, not the path's, in ingress-nginx
				root.path, root.kind, root.field = "/", exactPath, "metadata.annotations[app-root]"
				h.root = &root
			}
			r.clear = c.locations("no-tls-redirect-locations", r.path)
			r.open = c.locations("no-auth-locations", r.path)
			if o.enforcesRegex(r.path) {
				c.regex[h.name] = true
			}
			if taken := h.add(r); taken != nil {
				c.warn(ing, r.field, "ignored: host %q path %q is taken by %s of Ingress %s", r.host, r.path, taken.field, taken.ingress)
			}
		}
	}
	for i := range ing.Spec.TLS {
		c.compileTLS(ing, i)
	}
}

// compileCanary makes the paths of a canary Ingress second backends of what
// others have at the same host and path.
func (c *compiler) compileCanary(ing *networkingv1.Ingress) {
	enter := func(field string, ref *networkingv1.IngressBackend, r *route) {
		switch {
		case r == nil:
			c.warn(ing, field, "ignored: a canary, and no other Ingress has this host and path")
		case r.canary != nil:
			c.warn(ing, field, "ignored: %s has the canary of Ingress %s already", r.field, r.canary.ingress)
		default:
			second := *c.asked[ing].canary
			second.backend = c.backend(ing, field, ref)
			r.canary = &second
		}
	}
	for _, prefix := range annotationPrefixes {
		for _, name := range []string{"load-balance", "upstream-hash-by"} {
			if _, ok := ing.Annotations[prefix+name]; ok {
				c.warn(ing, "metadata.annotations["+prefix+name+"]", "has no effect on a canary: what the other Ingress says counts")
			}
		}
	}
	for i, rule := range ing.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		h := c.hostTable(strings.ToLower(rule.Host))
		for j, p := range rule.HTTP.Paths {
			enter(fmt.Sprintf("spec.rules[%d].http.paths[%d]", i, j), &p.Backend, h.at(cmp.Or(p.Path, "/"), kindOf(p.PathType)))
		}
	}
	if ref := ing.Spec.DefaultBackend; ref != nil {
		enter("spec.defaultBackend", ref, c.fallback)
	}
}

// compilePatterns makes patterns of all paths of the hosts that have one, the
// longest first, as ingress-nginx does.
func (c *compiler) compilePatterns() {
	for h := range c.hosts() {
		if !c.regex[h.name] {
			continue
		}
		all := slices.AppendSeq(slices.Collect(maps.Values(h.exact)), maps.Values(h.prefix))
		slices.SortFunc(all, func(a, b *route) int {
			return cmp.Or(cmp.Compare(len(b.path), len(a.path)), cmp.Compare(b.path, a.path), cmp.Compare(a.kind, b.kind))
		})
		h.patterns = []*route{}
		for _, r := range all {
			pattern, err := compileRegex(r, h.exact[matchPath(r.path)] != nil)
			if err != nil {
				c.problems = append(c.problems, kube.Problem{
					Severity: kube.Warning, Kind: "Ingress", Object: r.ingress, Field: r.field + ".path", Err: "ignored: " + err.Error(),
				})
				continue
			}
			r.pattern = pattern
			h.patterns = append(h.patterns, r)
		}
	}
}

// otherNames enters the aliases of an Ingress's hosts, and redirects between
// those with and without "www.", where no rules of their own are.
func (c *compiler) otherNames(ing *networkingv1.Ingress) {
	o := c.asked[ing]
	for _, rule := range ing.Spec.Rules {
		name := strings.ToLower(rule.Host)
		if name == "" {
			continue
		}
		h := c.hostTable(name)
		for _, alias := range o.aliases {
			table, key := c.exact, alias
			if parent, ok := strings.CutPrefix(alias, "*."); ok {
				table, key = c.wildcard, parent
			}
			if table[key] == nil {
				table[key] = h
			}
		}
		for _, re := range o.patterns {
			c.Routes.patterns = append(c.Routes.patterns, hostPattern{re, h})
		}
		if o.www && !strings.HasPrefix(name, "*.") {
			other, ok := strings.CutPrefix(name, "www.")
			if !ok {
				other = "www." + name
			}
			if c.exact[other] == nil {
				to := *o
				to.redirect = &redirection{o.code, template{part{of: variables["scheme"]}, part{text: "://" + name}, part{of: variables["request_uri"]}}}
				r := &route{
					ingress: kube.Name{Namespace: ing.Namespace, Name: ing.Name}, field: "metadata.annotations[from-to-www-redirect]",
					host: other, path: "/", kind: prefixPath, options: &to, backend: &backend{port: name, why: "redirected", next: new(atomic.Uint32)},
				}
				r.stats = c.stats(r)
				c.hostTable(other).add(r)
			}
		}
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
	r := &route{
		ingress: kube.Name{Namespace: ing.Namespace, Name: ing.Name},
		field:   field,
		options: c.asked[ing],
		tls:     slices.ContainsFunc(ing.Spec.TLS, func(t networkingv1.IngressTLS) bool { return len(t.Hosts) == 0 }),
		backend: c.backend(ing, field, ref),
	}
	r.stats = c.stats(r)
	return r
}
