package dns

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"podgate/kube"
)

// source is what a Zone was made from, so that the next one can share.
type source struct {
	services   map[kube.Name]*corev1.Service
	endpoints  kube.Map[kube.Name, *discoveryv1.EndpointSlice]
	pods       map[kube.Name]*corev1.Pod
	namespaces map[string]*corev1.Namespace
	slicesOf   index[kube.Name, []*discoveryv1.EndpointSlice] // by Service

	selects, selectsIn labels.Selector // Services and pods, and namespaces, that are served
}

// dnsService is the Service in front of this server; its addresses are those of ns.dns.<domain>.
var dnsService = kube.Name{Namespace: "kube-system", Name: "kube-dns"}

// Compile makes the Zone of a state. What did not change since prev, which may
// be nil, is shared with it: the cost beyond one comparison for each Service and
// EndpointSlice is that of the changed Services.
func Compile(prev *Zone, st *kube.State, cfg Config) *Zone {
	cfg = cfg.withDefaults()
	z := &Zone{
		domain: cfg.Domain,
		ttl:    uint32(max(0, cfg.TTL/time.Second)),
		pods:   cfg.Pods,
		kube:   cfg.kube,
		source: source{
			services:   st.Services,
			endpoints:  st.EndpointSlices,
			pods:       st.Pods,
			namespaces: st.Namespaces,
		},
	}
	z.selects, _ = selectorOf(z.kube.labels)
	z.selectsIn, _ = selectorOf(z.kube.inLabels)
	if prev == nil || prev.domain != z.domain || prev.ttl != z.ttl || prev.pods != z.pods || prev.kube != z.kube ||
		z.kube.inLabels != "" && !same(prev.source.namespaces, z.source.namespaces) {
		prev = &Zone{}
	}
	z.compileServices(prev, st)
	z.compileNamespaces(prev)
	z.compilePods(prev)
	z.compileStatic(uint32(st.Generation), cfg)
	return z
}

// compileServices compiles the Services that changed themselves or in their endpoints.
func (z *Zone) compileServices(prev *Zone, st *kube.State) {
	dirty := map[kube.Name]struct{}{}
	kube.Diff(st, prev.source.services, z.source.services, func(name kube.Name, _, _ *corev1.Service) { dirty[name] = struct{}{} })
	slicesOf := prev.slicesOf.edit()
	kube.DiffMap(&prev.endpoints, &z.endpoints, func(name kube.Name, old, now *discoveryv1.EndpointSlice) {
		for _, es := range []*discoveryv1.EndpointSlice{old, now} {
			if es == nil {
				continue
			}
			of := kube.Name{Namespace: name.Namespace, Name: es.Labels[discoveryv1.LabelServiceName]}
			dirty[of] = struct{}{}
			have := slicesOf.get(of)
			if es == old {
				have = slices.DeleteFunc(slices.Clone(have), func(x *discoveryv1.EndpointSlice) bool { return x == es })
			} else {
				have = append(slices.Clip(have), es)
			}
			if len(have) == 0 {
				slicesOf.remove(of)
			} else {
				slicesOf.set(of, have)
			}
		}
	})
	services, pointers := prev.services.edit(), pointersEdit{prev.pointers.edit(), map[netip.Addr]bool{}}
	for name := range dirty {
		key := name.Name + "." + name.Namespace
		if old := services.get(key); old != nil {
			services.remove(key)
			old.forget(pointers)
		}
		if svc := z.source.services[name]; svc != nil && z.serves(name.Namespace) && z.selects.Matches(labels.Set(svc.Labels)) {
			compiled := z.compileService(svc, slicesOf.get(name))
			services.set(key, compiled)
			for _, p := range compiled.pointers {
				pointers.set(p.addr, append(pointers.own(p.addr), p.pointer))
			}
		}
	}
	z.slicesOf, z.services, z.pointers = slicesOf.done(), services.done(), pointers.done()
}

// pointersEdit changes the reverse index. Many Services may share an address: its
// list is copied once.
type pointersEdit struct {
	*indexEdit[netip.Addr, []pointer]
	owned map[netip.Addr]bool
}

// own returns the pointers of an address, to be changed in place and set.
func (e pointersEdit) own(addr netip.Addr) []pointer {
	if e.owned[addr] {
		return e.get(addr)
	}
	e.owned[addr] = true
	return slices.Clone(e.get(addr))
}

// forget takes a Service's pointers out of the reverse index.
func (s *service) forget(pointers pointersEdit) {
	for _, p := range s.pointers {
		left := slices.DeleteFunc(pointers.own(p.addr), func(q pointer) bool { return q.of == s })
		if len(left) == 0 {
			pointers.remove(p.addr)
		} else {
			pointers.set(p.addr, left)
		}
	}
}

func (z *Zone) compileNamespaces(prev *Zone) {
	if prev.source.namespaces != nil && same(prev.source.namespaces, z.source.namespaces) {
		z.namespaces = prev.namespaces
		return
	}
	z.namespaces = make(map[string]struct{}, len(z.source.namespaces))
	for name := range z.source.namespaces {
		if z.serves(name) {
			z.namespaces[name] = struct{}{}
		}
	}
}

func (z *Zone) compilePods(prev *Zone) {
	if z.pods != Verified {
		return
	}
	if prev.podAddrs != nil && same(prev.source.pods, z.source.pods) {
		z.podAddrs = prev.podAddrs
		return
	}
	z.podAddrs = make(map[podAddr]struct{}, len(z.source.pods))
	for name, pod := range z.source.pods {
		if !z.serves(name.Namespace) || !z.selects.Matches(labels.Set(pod.Labels)) {
			continue
		}
		for _, ip := range pod.Status.PodIPs {
			if addr, err := netip.ParseAddr(ip.IP); err == nil {
				z.podAddrs[podAddr{name.Namespace, addr}] = struct{}{}
			}
		}
	}
}

// compileStatic makes the names that every cluster has, and the zone cuts.
func (z *Zone) compileStatic(serial uint32, cfg Config) {
	ns := &node{}
	nsName := "ns.dns." + z.domain
	if svc := z.source.services[dnsService]; svc != nil {
		for _, addr := range clusterIPs(svc) {
			ns.add(z.address(nsName, addr))
		}
	}
	apex := func(name string) *node {
		return &node{
			other: []dns.RR{
				&dns.SOA{
					Hdr: z.header(name, dns.TypeSOA), Ns: nsName, Mbox: "hostmaster." + z.domain, Serial: serial,
					Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: z.ttl,
				},
				&dns.NS{Hdr: z.header(name, dns.TypeNS), Ns: nsName},
			},
			extra: slices.Concat(ns.a, ns.aaaa),
		}
	}
	version := dns.RR_Header{Name: "dns-version." + z.domain, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 28800}
	z.static = map[string]*node{
		"":            apex(z.domain),
		"dns":         empty,
		"ns.dns":      ns,
		"svc":         empty,
		"pod":         empty,
		"dns-version": {other: []dns.RR{&dns.TXT{Hdr: version, Txt: []string{"1.1.0"}}}},
	}
	for _, p := range slices.Concat(cfg.PodCIDRs, cfg.ServiceCIDRs) {
		for _, name := range reverseApexes(p) {
			z.reverse = append(z.reverse, reverseZone{name, apex(name)})
		}
	}
}

// serves says whether a namespace is one of those to be served.
func (z *Zone) serves(namespace string) bool {
	if z.kube.namespaces != "" && !slices.Contains(strings.Fields(z.kube.namespaces), namespace) {
		return false
	}
	ns := z.source.namespaces[namespace]
	return z.selectsIn.Empty() || ns != nil && z.selectsIn.Matches(labels.Set(ns.Labels))
}

// selectorOf reads a label selector; "" selects everything.
func selectorOf(text string) (labels.Selector, error) {
	s, err := labels.Parse(text)
	if err != nil {
		return labels.Everything(), err
	}
	return s, nil
}

// same reports whether two maps are one: a State shares the maps of which nothing changed.
func same[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
