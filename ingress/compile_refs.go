package ingress

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"podgate/kube"
)

// What Ingresses refer to: Secrets as certificates, Services as endpoints.

// compileTLS enters the certificate of one element of spec.tls.
func (c *compiler) compileTLS(ing *networkingv1.Ingress, i int) {
	entry := ing.Spec.TLS[i]
	field := fmt.Sprintf("spec.tls[%d]", i)
	e := &cert{secret: kube.Name{Namespace: ing.Namespace, Name: entry.SecretName}}
	if entry.SecretName != "" {
		if secret := c.state.Secrets[e.secret]; secret == nil {
			c.warn(ing, field+".secretName", "no Secret %q in namespace %q", e.secret.Name, e.secret.Namespace)
		} else if p := c.pair(secret); p.err != nil {
			c.warn(ing, field+".secretName", "Secret %q %v", e.secret.Name, p.err)
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
			c.warn(ing, field, "the certificate of Secret %q is not valid for host %q", e.secret.Name, name)
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
		crt, key := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
		if len(crt) == 0 || len(key) == 0 {
			p.err = fmt.Errorf("has no %s and %s", corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
		} else if cert, err := tls.X509KeyPair(crt, key); err != nil {
			p.err = fmt.Errorf("is no certificate with its key: %w", err)
		} else {
			p.cert = &cert
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
		c.warn(ing, field+".resource", "backend is a resource: podgate serves Services only")
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
	at := field + ".service"
	if field != "spec.defaultBackend" {
		at = field + ".backend.service"
	}
	switch svc := c.state.Services[k.service]; {
	case svc == nil:
		c.warn(ing, at+".name", "no Service %q in namespace %q", k.service.Name, k.service.Namespace)
	case servicePort(svc, port) != nil:
	case ref.Service.Port.Name != "":
		c.warn(ing, at+".port.name", "Service %q has no port named %q", svc.Name, port)
	default:
		c.warn(ing, at+".port.number", "Service %q has no port %s", svc.Name, port)
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
