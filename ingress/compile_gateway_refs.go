package ingress

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

// What objects of the Gateway API refer to: Secrets, ConfigMaps, Services. A
// reference into another namespace needs a ReferenceGrant there; without one
// nothing is said about what it leads to.

// gatewayReferences adds what objects of the Gateway API name to References.
func gatewayReferences(st *kube.State, secrets, configMaps []kube.Name) (s, c []kube.Name) {
	for _, gw := range st.Gateways {
		for _, l := range gw.Spec.Listeners {
			if l.TLS == nil {
				continue
			}
			for _, ref := range l.TLS.CertificateRefs {
				secrets = appendName(secrets, string(cmp.Or(deref(ref.Namespace), gatewayv1.Namespace(gw.Namespace))), string(ref.Name))
			}
		}
		if t := gw.Spec.TLS; t != nil && t.Frontend != nil {
			for _, v := range append([]gatewayv1.TLSPortConfig{{TLS: t.Frontend.Default}}, t.Frontend.PerPort...) {
				if v.TLS.Validation == nil {
					continue
				}
				for _, ref := range v.TLS.Validation.CACertificateRefs {
					namespace := string(cmp.Or(deref(ref.Namespace), gatewayv1.Namespace(gw.Namespace)))
					if ref.Kind == "Secret" {
						secrets = appendName(secrets, namespace, string(ref.Name))
					} else {
						configMaps = appendName(configMaps, namespace, string(ref.Name))
					}
				}
			}
		}
	}
	for _, p := range st.BackendTLSPolicies {
		for _, ref := range p.Spec.Validation.CACertificateRefs {
			if ref.Kind == "Secret" {
				secrets = appendName(secrets, p.Namespace, string(ref.Name))
			} else {
				configMaps = appendName(configMaps, p.Namespace, string(ref.Name))
			}
		}
	}
	return secrets, configMaps
}

// granted reports whether an object may refer to one of another namespace.
func (g *gatewayCompiler) granted(from kube.API, fromKind string, toGroup, toKind string, to kube.Name) bool {
	if from.GetNamespace() == to.Namespace {
		return true
	}
	for n, grant := range g.state.ReferenceGrants {
		if n.Namespace != to.Namespace {
			continue
		}
		for _, f := range grant.Spec.From {
			if string(f.Group) != gatewayv1.GroupName || string(f.Kind) != fromKind || string(f.Namespace) != from.GetNamespace() {
				continue
			}
			for _, t := range grant.Spec.To {
				if string(t.Group) == toGroup && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == to.Name) {
					return true
				}
			}
		}
	}
	return false
}

// secret is the certificate that a Gateway refers to.
func (g *gatewayCompiler) secret(ref gatewayv1.SecretObjectReference, from *gatewayv1.Gateway, invalid any) (p *pair, v verdict) {
	name := kube.Name{Namespace: from.Namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	if *ref.Group != "" || *ref.Kind != "Secret" {
		v.blame(invalid, "certificates are in Secrets, not in %s", kindText(string(*ref.Group), string(*ref.Kind)))
		return nil, v
	}
	if !g.granted(from, "Gateway", "", "Secret", name) {
		v.blame(gatewayv1.ListenerReasonRefNotPermitted, "no ReferenceGrant in namespace %q allows Gateways of namespace %q to use Secret %q", name.Namespace, from.Namespace, name.Name)
		return nil, v
	}
	secret := g.state.Secrets[name]
	if secret == nil {
		v.blame(invalid, "no Secret %q in namespace %q", name.Name, name.Namespace)
		return nil, v
	}
	if p = g.pair(secret); p.err != nil {
		v.blame(invalid, "Secret %s %v", name, p.err)
		return nil, v
	}
	return p, v
}

// authorities are the certificates that a Gateway trusts its clients to be signed by.
func (g *gatewayCompiler) authorities(ref gatewayv1.ObjectReference, from *gatewayv1.Gateway) (pem []byte, v verdict) {
	name := kube.Name{Namespace: from.Namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	if ref.Group != "" || ref.Kind != "ConfigMap" && ref.Kind != "Secret" {
		v.blame(gatewayv1.ListenerReasonInvalidCACertificateKind, "certificate authorities are in ConfigMaps and Secrets, not in %s", kindText(string(ref.Group), string(ref.Kind)))
		return nil, v
	}
	if !g.granted(from, "Gateway", "", string(ref.Kind), name) {
		v.blame(gatewayv1.ListenerReasonRefNotPermitted, "no ReferenceGrant in namespace %q allows Gateways of namespace %q to use %s %q", name.Namespace, from.Namespace, ref.Kind, name.Name)
		return nil, v
	}
	pem, why := g.bundle(string(ref.Kind), name)
	if why != "" {
		v.blame(gatewayv1.ListenerReasonInvalidCACertificateRef, "%s", why)
		return nil, v
	}
	return pem, v
}

// bundle reads the certificates under ca.crt of a ConfigMap or Secret.
func (g *gatewayCompiler) bundle(kind string, name kube.Name) (pem []byte, why string) {
	switch kind {
	case "ConfigMap":
		cm := g.state.ConfigMaps[name]
		if cm == nil {
			return nil, fmt.Sprintf("no ConfigMap %q in namespace %q", name.Name, name.Namespace)
		}
		pem = []byte(cm.Data["ca.crt"])
	default:
		secret := g.state.Secrets[name]
		if secret == nil {
			return nil, fmt.Sprintf("no Secret %q in namespace %q", name.Name, name.Namespace)
		}
		pem = secret.Data["ca.crt"]
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, fmt.Sprintf("%s %s has no certificate under ca.crt", kind, name)
	}
	return bytes.Clone(pem), ""
}

func kindText(group, kind string) string {
	if group == "" {
		return kind
	}
	return kind + "." + group
}

// service resolves a reference of a route to a port of a Service. The backend is
// never nil: what cannot be resolved answers with 500.
func (g *gatewayCompiler) service(r *routeObject, ref gatewayv1.BackendObjectReference) (*backend, verdict) {
	var v verdict
	name := kube.Name{Namespace: r.GetNamespace(), Name: string(ref.Name)}
	if ref.Namespace != nil {
		name.Namespace = string(*ref.Namespace)
	}
	if *ref.Group != "" || *ref.Kind != "Service" {
		v.blame(gatewayv1.RouteReasonInvalidKind, "backends are Services, not %s", kindText(string(*ref.Group), string(*ref.Kind)))
		return invalid(name, v), v
	}
	r.backends = append(r.backends, name)
	if !g.granted(r, r.kind, "", "Service", name) {
		v.blame(gatewayv1.RouteReasonRefNotPermitted, "no ReferenceGrant in namespace %q allows %ss of namespace %q to use Service %q", name.Namespace, r.kind, r.GetNamespace(), name.Name)
		return invalid(name, v), v
	}
	svc := g.state.Services[name]
	if svc == nil {
		v.blame(gatewayv1.RouteReasonBackendNotFound, "no Service %q in namespace %q", name.Name, name.Namespace)
		return invalid(name, v), v
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		v.blame(gatewayv1.RouteReasonInvalidKind, "Service %s is of type ExternalName, which routes do not use", name)
		return invalid(name, v), v
	}
	var port *corev1.ServicePort
	for i, p := range svc.Spec.Ports {
		if ref.Port != nil && p.Port == *ref.Port && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			port = &svc.Spec.Ports[i]
		}
	}
	if port == nil {
		v.blame(gatewayv1.RouteReasonBackendNotFound, "Service %s has no TCP port %d", name, deref(ref.Port))
		return invalid(name, v), v
	}
	w := wire{}
	if r.kind == "GRPCRoute" {
		w.protocol = h2c
		if p := deref(port.AppProtocol); p == "kubernetes.io/ws" || p == "kubernetes.io/wss" {
			v.blame(gatewayv1.RouteReasonUnsupportedProtocol, "port %d of Service %s speaks %s, which carries no gRPC", port.Port, name, p)
			return invalid(name, v), v
		}
	}
	if policy := g.policyFor(name, port.Name); policy != nil && r.kind != "TLSRoute" {
		if policy.broken.bad() {
			b := invalid(name, verdict{reason: "Invalid", message: "BackendTLSPolicy " + policy.name.String() + " cannot be met: " + policy.broken.message})
			return b, verdict{}
		}
		w.tls = policy.tls
		w.protocol = https
		if r.kind == "GRPCRoute" || deref(port.AppProtocol) == "kubernetes.io/h2c" {
			w.protocol = h2
		}
	}
	return g.backendOf(name, strconv.Itoa(int(port.Port)), w), v
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// invalid is the backend that a reference without a good end is.
func invalid(name kube.Name, v verdict) *backend {
	return &backend{service: name, port: "?", why: v.message, status: 500, next: new(atomic.Uint32)}
}

// tlsPolicy is a BackendTLSPolicy in the making.
type tlsPolicy struct {
	*gatewayv1.BackendTLSPolicy
	name       kube.Name
	tls        tlsKey
	broken     verdict
	conflicted bool
	used       map[*gatewayObject]bool
}

// policyTarget is a Service, or one port of it by name.
type policyTarget struct {
	service kube.Name
	port    string
}

func (g *gatewayCompiler) policyFor(service kube.Name, port string) *tlsPolicy {
	if p := g.policies[policyTarget{service, port}]; p != nil && port != "" {
		return p
	}
	return g.policies[policyTarget{service: service}]
}

func (g *gatewayCompiler) compileTLSPolicies() {
	g.policies = map[policyTarget]*tlsPolicy{}
	for _, o := range sorted(g.state.BackendTLSPolicies) {
		p := &tlsPolicy{BackendTLSPolicy: o, name: kube.Name{Namespace: o.Namespace, Name: o.Name}, used: map[*gatewayObject]bool{}}
		v := &o.Spec.Validation
		p.tls = tlsKey{name: string(v.Hostname), sni: true, roots: g.policyRoots(p)}
		if len(v.SubjectAltNames) > 0 {
			p.tls.names = subjectNames(v.SubjectAltNames)
		}
		for _, t := range o.Spec.TargetRefs {
			if t.Group != "" || t.Kind != "Service" {
				continue
			}
			at := policyTarget{kube.Name{Namespace: o.Namespace, Name: string(t.Name)}, string(deref(t.SectionName))}
			if g.policies[at] != nil {
				p.conflicted = true // the older has it
				continue
			}
			g.policies[at] = p
		}
		g.tlsPolicies = append(g.tlsPolicies, p)
	}
}

// policyRoots are who signs the certificates of the endpoints of a policy.
func (g *gatewayCompiler) policyRoots(p *tlsPolicy) *x509.CertPool {
	v := &p.Spec.Validation
	if v.WellKnownCACertificates != nil && *v.WellKnownCACertificates != "" {
		if *v.WellKnownCACertificates != gatewayv1.WellKnownCACertificatesSystem {
			p.broken.blame(gatewayv1.PolicyReasonInvalid, "well-known certificates %s are not known", *v.WellKnownCACertificates)
			return nil
		}
		return systemRoots()
	}
	var all []byte
	for _, ref := range v.CACertificateRefs {
		if ref.Group != "" || ref.Kind != "ConfigMap" && ref.Kind != "Secret" {
			p.broken.blame(gatewayv1.BackendTLSPolicyReasonInvalidKind, "certificate authorities are in ConfigMaps and Secrets, not in %s", kindText(string(ref.Group), string(ref.Kind)))
			continue
		}
		pem, why := g.bundle(string(ref.Kind), kube.Name{Namespace: p.Namespace, Name: string(ref.Name)})
		if why != "" {
			p.broken.blame(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef, "%s", why)
			continue
		}
		all = append(append(all, pem...), '\n')
	}
	if p.broken.bad() {
		return nil
	}
	return g.pool(string(all))
}

// pool is the same for the same certificates, so that connections are used again.
func (g *gatewayCompiler) pool(pem string) *x509.CertPool {
	if had := g.bundles[pem]; had != nil {
		return had
	}
	p := g.prev.bundles[pem]
	if p == nil {
		p = x509.NewCertPool()
		p.AppendCertsFromPEM([]byte(pem))
	}
	g.bundles[pem] = p
	return p
}

// systemRoots are those that the host trusts.
var systemRoots = sync.OnceValue(func() *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // nobody
	}
	return pool
})

// hasName checks that a certificate is for one of subjectNames; any will do if
// there are none.
func hasName(cert *x509.Certificate, names string) error {
	if names == "" {
		return nil
	}
	for name := range strings.Lines(names) {
		name = strings.TrimSuffix(name, "\n")
		if dns, ok := strings.CutPrefix(name, "dns:"); ok && cert.VerifyHostname(dns) == nil {
			return nil
		}
		for _, u := range cert.URIs {
			if "uri:"+u.String() == name {
				return nil
			}
		}
	}
	return fmt.Errorf("the certificate is for none of %q", names)
}

// subjectNames is a set of names, as text so that it can be part of a key: "dns:a.b\nuri:spiffe://c".
func subjectNames(all []gatewayv1.SubjectAltName) string {
	var out []string
	for _, n := range all {
		if n.Type == gatewayv1.URISubjectAltNameType {
			out = append(out, "uri:"+string(n.URI))
		} else {
			out = append(out, "dns:"+string(n.Hostname))
		}
	}
	return strings.Join(out, "\n")
}
