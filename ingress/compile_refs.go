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

// groupSlices finds the EndpointSlices of each Service.
func (c *compiler) groupSlices() {
	for name, es := range c.state.EndpointSlices.All() {
		of := kube.Name{Namespace: name.Namespace, Name: es.Labels[discoveryv1.LabelServiceName]}
		c.slices[of] = append(c.slices[of], es)
	}
}

// backend resolves what a path refers to.
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
	name := kube.Name{Namespace: ing.Namespace, Name: ref.Service.Name}
	at := field + ".service"
	if field != "spec.defaultBackend" {
		at = field + ".backend.service"
	}
	switch svc := c.state.Services[name]; {
	case svc == nil:
		c.warn(ing, at+".name", "no Service %q in namespace %q", name.Name, name.Namespace)
	case servicePort(svc, port) != nil, svc.Spec.Type == corev1.ServiceTypeExternalName:
	case ref.Service.Port.Name != "":
		c.warn(ing, at+".port.name", "Service %q has no port named %q", svc.Name, port)
	default:
		c.warn(ing, at+".port.number", "Service %q has no port %s", svc.Name, port)
	}
	return c.backendOf(name, port, c.asked[ing].wire)
}

// backendOf is a port of a Service, spoken to in one way. One that did not change
// is that of the Routes before; one whose endpoints did goes on where it was in turn.
func (c *compiler) backendOf(service kube.Name, port string, w wire) *backend {
	k := backendKey{service, port, w}
	b := c.backends[k]
	if b == nil {
		b = &backend{service: service, port: port, wire: w}
		b.fill(c, c.state.Services[service], c.slices[service])
		if old := c.prev.backends[k]; old != nil {
			b.next = old.next
			if old.why == b.why && slices.Equal(old.endpoints, b.endpoints) {
				b = old
			}
		} else {
			b.next = new(atomic.Uint32)
		}
		c.backends[k] = b
	}
	return b
}

// endpoint is that of the Routes before, if they had it.
func (c *compiler) endpoint(k poolKey) *endpoint {
	e := c.reached[k]
	if e == nil {
		if e = c.prev.reached[k]; e == nil {
			e = newEndpoint(k)
			if c.prev.state != nil {
				e.since = c.now
			}
		}
		c.reached[k] = e
	}
	return e
}

// inCluster is the Service that a DNS name such as "web.shop.svc.cluster.local" is of.
func inCluster(name string) (kube.Name, bool) {
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(name, ".")), ".")
	if len(labels) < 3 || labels[2] != "svc" {
		return kube.Name{}, false
	}
	return kube.Name{Namespace: labels[1], Name: labels[0]}, true
}

// servicePort returns the TCP port that an Ingress names by name or number.
func servicePort(svc *corev1.Service, port string) *corev1.ServicePort {
	for i, p := range svc.Spec.Ports {
		if tcp := p.Protocol == "" || p.Protocol == corev1.ProtocolTCP; tcp && (p.Name == port || strconv.Itoa(int(p.Port)) == port) {
			return &svc.Spec.Ports[i]
		}
	}
	return nil
}

// fill finds a backend's endpoints: the ready ones, or if there are none those
// that still serve while they terminate; of the Service's first address family.
func (b *backend) fill(c *compiler, svc *corev1.Service, all []*discoveryv1.EndpointSlice) {
	if svc == nil {
		b.why = fmt.Sprintf("Service %s does not exist", b.service)
		return
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		alias, ok := inCluster(svc.Spec.ExternalName)
		if !ok && c.source.cfg.out {
			b.outside(c, svc)
			return
		}
		if !ok {
			b.why = fmt.Sprintf("a Service of type ExternalName has no endpoints, and %s is not in the cluster", svc.Spec.ExternalName)
			return
		}
		svc, all = c.state.Services[alias], c.slices[alias]
		if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
			b.why = fmt.Sprintf("the Service %s that it is a name for has no endpoints", alias)
			return
		}
	}
	port := servicePort(svc, b.port)
	if port == nil {
		b.why = fmt.Sprintf("Service %s has no port %s", b.service, b.port)
		return
	}
	if b.wire.protocol == byPort {
		b.wire.protocol = http1
		if port.AppProtocol != nil && *port.AppProtocol == "kubernetes.io/h2c" {
			b.wire.protocol = h2c
		}
	}
	if ip, err := netip.ParseAddr(svc.Spec.ClusterIP); b.wire.cluster && err == nil {
		b.endpoints = []*endpoint{c.endpoint(poolKey{addr: netip.AddrPortFrom(ip, uint16(port.Port)), wire: b.wire})}
		return
	}
	var usable, draining []netip.AddrPort
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
				if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
					c.pods[addr] = e.TargetRef.Namespace + "/" + e.TargetRef.Name
				}
				if ap := netip.AddrPortFrom(addr, number); ready {
					usable = append(usable, ap)
				} else if drains {
					draining = append(draining, ap)
				}
			}
		}
	}
	if len(usable) == 0 {
		usable = draining
	}
	slices.SortFunc(usable, netip.AddrPort.Compare)
	for _, addr := range slices.Compact(usable) {
		b.endpoints = append(b.endpoints, c.endpoint(poolKey{addr: addr, wire: b.wire}))
	}
	switch {
	case len(b.endpoints) > 0:
	case total > 0:
		b.why = fmt.Sprintf("none of its %d endpoints is ready", total)
	default:
		b.why = "it has no endpoints"
	}
}

// outside makes the host that an ExternalName Service is a name for the one
// endpoint. Its port is the Service's target port, else its port, else the
// number that the Ingress says.
func (b *backend) outside(c *compiler, svc *corev1.Service) {
	number := 0
	if port := servicePort(svc, b.port); port != nil {
		if number = port.TargetPort.IntValue(); number == 0 {
			number = int(port.Port)
		}
	} else if n, err := strconv.ParseUint(b.port, 10, 16); err == nil {
		number = int(n)
	}
	if number == 0 {
		b.why = fmt.Sprintf("Service %s, a name for %s, has no port %s", b.service, svc.Spec.ExternalName, b.port)
		return
	}
	if b.wire.protocol == byPort {
		b.wire.protocol = http1
	}
	name := strings.ToLower(strings.TrimSuffix(svc.Spec.ExternalName, "."))
	b.endpoints = []*endpoint{c.endpoint(poolKey{name: name, addr: netip.AddrPortFrom(netip.Addr{}, uint16(number)), wire: b.wire})}
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
