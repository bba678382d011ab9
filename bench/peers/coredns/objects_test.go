package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

// builder makes the objects of the comparison.
type builder struct{ *kube.State }

func (b builder) namespace(names ...string) {
	for _, n := range names {
		b.Namespaces[n] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}
	}
}

// service adds a Service; ips are its ClusterIPs, "None" or nothing.
func (b builder) service(ns, name string, ips []string, ports ...corev1.ServicePort) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: ips, Ports: ports}}
	if len(ips) > 0 {
		svc.Spec.ClusterIP = ips[0]
	}
	b.Services[kube.Name{Namespace: ns, Name: name}] = svc
	return svc
}

func (b builder) external(ns, name, target string) {
	b.service(ns, name, nil).Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}
}

// slice adds an EndpointSlice of a Service.
func (b builder) slice(ns, service, suffix string, ports []discoveryv1.EndpointPort, eps ...discoveryv1.Endpoint) {
	family := discoveryv1.AddressTypeIPv4
	if len(eps) > 0 && strings.Contains(eps[0].Addresses[0], ":") {
		family = discoveryv1.AddressTypeIPv6
	}
	name := service + "-" + suffix
	b.EndpointSlices = b.EndpointSlices.With(kube.Name{Namespace: ns, Name: name}, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: family, Ports: ports, Endpoints: eps,
	})
}

func (b builder) pod(ns, name string, ips ...string) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ips[0]}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	b.Pods[kube.Name{Namespace: ns, Name: name}] = p
}

func port(name string, proto corev1.Protocol, n int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: proto, Port: n}
}

func eport(name string, proto corev1.Protocol, n int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &n}
}

func endpoint(ready bool, host string, addrs ...string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: addrs, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if host != "" {
		e.Hostname = &host
	}
	return e
}

// objects is a cluster with something of everything.
func objects() *kube.State {
	b := builder{&kube.State{
		Namespaces: map[string]*corev1.Namespace{}, Pods: map[kube.Name]*corev1.Pod{},
		Services: map[kube.Name]*corev1.Service{},
	}}
	const tcp, udp, sctp = corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP
	b.namespace("default", "kube-system", "shop", "empty", "pod", "svc")
	http, metrics := []discoveryv1.EndpointPort{eport("http", tcp, 8080)}, []discoveryv1.EndpointPort{eport("http", tcp, 8080), eport("metrics", udp, 9090)}

	b.service("default", "kubernetes", []string{"10.96.0.1"}, port("https", tcp, 443))
	b.service("kube-system", "kube-dns", []string{"10.96.0.10"}, port("dns", udp, 53), port("dns-tcp", tcp, 53))
	b.slice("kube-system", "kube-dns", "a", []discoveryv1.EndpointPort{eport("dns", udp, 53), eport("dns-tcp", tcp, 53)}, endpoint(true, "", "10.244.0.2"))
	b.service("shop", "web", []string{"10.96.0.20", "fd00:10:96::14"}, port("http", tcp, 80), port("metrics", udp, 9090))
	b.slice("shop", "web", "a", metrics, endpoint(true, "", "10.244.0.10"), endpoint(true, "", "10.244.0.11"), endpoint(false, "", "10.244.0.12"))
	b.slice("shop", "web", "b", http, endpoint(true, "", "fd00:10:244::a"), endpoint(true, "", "fd00:10:244::1:0"))
	b.service("shop", "six", []string{"fd00:10:96::15"}, port("http", tcp, 80))
	b.service("shop", "noports", []string{"10.96.0.29"}, port("", tcp, 80))
	b.service("shop", "sctp", []string{"10.96.0.30"}, port("http", sctp, 80), port("HTTP2", tcp, 81))
	b.service("shop", "lb", []string{"10.96.0.31"}, port("http", tcp, 80)).Spec.Type = corev1.ServiceTypeLoadBalancer
	b.service("shop", "none", []string{"10.96.0.32"}, port("http", tcp, 80)) // without endpoints
	b.service("pod", "svc", []string{"10.96.0.33"}, port("svc", tcp, 80))
	b.service("svc", "pod", []string{"10.96.0.34"}, port("pod", tcp, 80))

	b.service("shop", "db", []string{"None"}, port("sql", tcp, 5432))
	b.slice("shop", "db", "a", []discoveryv1.EndpointPort{eport("sql", tcp, 5432)}, endpoint(true, "db-0", "10.244.1.1"), endpoint(true, "db-1", "10.244.1.2"), endpoint(false, "db-2", "10.244.1.3"))
	b.slice("shop", "db", "b", []discoveryv1.EndpointPort{eport("sql", tcp, 5432)}, endpoint(true, "db-0", "fd00:10:244::b"), endpoint(true, "", "fd00:10:244::c"))
	b.service("shop", "pub", []string{"None"}, port("sql", tcp, 5432)).Spec.PublishNotReadyAddresses = true
	b.slice("shop", "pub", "a", http, endpoint(true, "pub-0", "10.244.1.11"), endpoint(true, "pub-1", "10.244.1.12"))
	b.service("shop", "headless-none", []string{"None"}, port("http", tcp, 80))
	b.service("shop", "headless-unready", []string{"None"}, port("http", tcp, 80))
	b.slice("shop", "headless-unready", "a", http, endpoint(false, "", "10.244.1.20"))
	b.service("shop", "headless-noports", []string{"None"})
	b.slice("shop", "headless-noports", "a", nil, endpoint(true, "a", "10.244.1.30"), endpoint(true, "", "10.244.1.31"))
	b.service("shop", "headless-ports", []string{"None"}, port("http", tcp, 80), port("metrics", udp, 9090))
	b.slice("shop", "headless-ports", "a", metrics, endpoint(true, "", "10.244.1.40"), endpoint(true, "", "10.244.1.41"))
	b.slice("shop", "headless-ports", "c", http, endpoint(true, "", "10.244.1.42"))
	b.service("shop", "unnamed", []string{"None"}, port("", tcp, 80))
	b.slice("shop", "unnamed", "a", []discoveryv1.EndpointPort{eport("", tcp, 80)}, endpoint(true, "", "10.244.1.50"))
	b.service("shop", "same-host", []string{"None"}, port("http", tcp, 80))
	b.slice("shop", "same-host", "a", http, endpoint(true, "peer", "10.244.1.60"), endpoint(true, "peer", "10.244.1.61"))
	b.service("shop", "many", []string{"None"}, port("http", tcp, 80))
	var hundred []discoveryv1.Endpoint
	for i := range 100 {
		hundred = append(hundred, endpoint(true, "", fmt.Sprintf("10.244.2.%d", i+1)))
	}
	b.slice("shop", "many", "a", http, hundred...)
	b.service("shop", "outside", []string{"10.96.0.40"}, port("http", tcp, 80))
	b.slice("shop", "outside", "a", http, endpoint(true, "", "192.0.2.80"), endpoint(true, "gate", "192.0.2.81"))
	b.slice("shop", "stray", "a", http, endpoint(true, "", "10.244.9.9")) // of no Service

	b.external("shop", "ext", "www.example.com")
	b.external("shop", "ext-in", "web.shop.svc.cluster.local")
	b.external("shop", "ext-ext", "ext-in.shop.svc.cluster.local")
	b.external("shop", "ext-gone", "gone.shop.svc.cluster.local")
	b.external("shop", "ext-headless", "db.shop.svc.cluster.local")
	b.external("shop", "ext-addr", "192.0.2.9")
	b.external("shop", "ext-loop", "ext-loop.shop.svc.cluster.local")

	b.pod("shop", "web-1", "10.244.0.10", "fd00:10:244::a")
	b.pod("default", "client", "10.244.0.77", "fd00:10:244::4d")
	return b.State
}

var questionTypes = []uint16{
	mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypeCNAME, mdns.TypeTXT, mdns.TypeNS, mdns.TypeSOA, mdns.TypePTR,
	mdns.TypeMX, mdns.TypeHTTPS, mdns.TypeCAA, mdns.TypeNAPTR, mdns.TypeDS, 65280, mdns.TypeAXFR, mdns.TypeANY, mdns.TypeSVCB, mdns.TypeHINFO, mdns.TypeDNAME, mdns.TypeIXFR,
}

// questions are all types for every name that is there, and for as many that
// nearly are; a third of them again in another case.
func questions(st *kube.State) (qs []mdns.Question) {
	names := map[string]bool{}
	add := func(format string, args ...any) { names[fmt.Sprintf(format, args...)] = true }
	const zone = "cluster.local."
	for _, n := range []string{"", "dns-version.", "x.dns-version.", "ns.dns.", "dns.", "svc.", "pod.", "nosuch.", "a.b.c.d.e.", "_tcp.", "*.", "nosvc.svc.", "*.svc.", "*.pod.", "web.shop.", "shop.", "svc.svc.", "pod.svc.", "svc.pod.", "pod.pod."} {
		add("%s%s", n, zone)
	}
	for ns := range st.Namespaces {
		add("%s.svc.%s", ns, zone)
		add("%s.pod.%s", ns, zone)
		add("nosuch.%s.svc.%s", ns, zone)
		for _, ip := range []string{"10-244-0-10", "10-244-0-77", "10-244-0-99", "fd00-10-244--a", "fd00-10-244--4d", "10-244-0", "10-244-0-256", "web-1", "1-2-3-4-5", "--1", "--"} {
			add("%s.%s.pod.%s", ip, ns, zone)
		}
		add("x.10-244-0-10.%s.pod.%s", ns, zone)
	}
	for name := range st.Services {
		svc := name.Name + "." + name.Namespace + ".svc." + zone
		for _, sub := range []string{"", "_http._tcp.", "_metrics._udp.", "_sql._tcp.", "_http._udp.", "_nosuch._tcp.", "_tcp.", "_udp.", "_http.", "nosuch.", "*.", "a.b.c.", "_http._tcp.x.", "x._http._tcp."} {
			add("%s%s", sub, svc)
		}
		add("%s.%s.pod.%s", name.Name, name.Namespace, zone)
		add("%s.nosuch.svc.%s", name.Name, zone)
	}
	add("_https._tcp.kubernetes.default.svc.%s", zone)
	add("_dns._udp.kube-dns.kube-system.svc.%s", zone)
	add("_dns-tcp._tcp.kube-dns.kube-system.svc.%s", zone)
	add("_http2._tcp.sctp.shop.svc.%s", zone)
	add("_http._sctp.sctp.shop.svc.%s", zone)
	for name, es := range st.EndpointSlices.All() {
		of := es.Labels[discoveryv1.LabelServiceName]
		for i, e := range es.Endpoints {
			if rev, err := mdns.ReverseAddr(e.Addresses[0]); err == nil {
				names[rev] = true
			}
			if i > 4 {
				continue
			}
			host := strings.NewReplacer(".", "-", ":", "-").Replace(e.Addresses[0])
			add("%s.%s.%s.svc.%s", host, of, name.Namespace, zone)
			if e.Hostname != nil {
				add("%s.%s.%s.svc.%s", *e.Hostname, of, name.Namespace, zone)
			}
		}
	}
	for _, svc := range st.Services {
		for _, ip := range svc.Spec.ClusterIPs {
			if rev, err := mdns.ReverseAddr(ip); err == nil {
				names[rev] = true
			}
		}
	}
	for _, n := range []string{"99.99.244.10", "0.96.10", "244.10", "96.10", "x.0.96.10", "1.1.0.96.10", "256.0.96.10", "01.0.96.10"} {
		add("%s.in-addr.arpa.", n)
	}
	for _, n := range []string{`web\.shop.svc.`, `we\ b.shop.svc.`, `\000.shop.svc.`, `web.shop.svc\.`, `\255web.shop.svc.`, `_\.http._tcp.web.shop.svc.`, `10\.244\.0\.10.shop.pod.`} {
		add("%s%s", n, zone)
	}
	for _, n := range []string{"_HTTP._TCP.web.shop.svc.", "_http._Tcp.WEB.shop.SVC.", "_HTTP2._TCP.sctp.shop.svc.", "_SQL._tcp.DB.shop.svc.", "DB-0.db.shop.svc.", "_http.tcp.web.shop.svc.", "http._tcp.web.shop.svc.", "__http._tcp.web.shop.svc.", "_._tcp.noports.shop.svc.", "_*._tcp.web.shop.svc.", "*._tcp.web.shop.svc.", "_http.*.web.shop.svc.", "_http._tcp.db-0.db.shop.svc.", "endpoint.db.shop.svc.", "a.db-0.db.shop.svc.", "web.*.svc.", "any.any.svc.", "any.web.shop.svc."} {
		add("%s%s", n, zone)
	}
	label := strings.Repeat("a", 63)
	add("%s.shop.svc.%s", label, zone)
	add("%[1]s.%[1]s.%[1]s.svc.%[2]s", label, zone)
	for _, n := range []string{".", "local.", "xcluster.local.", "cluster.local.example.com.", "www.example.com.", "a.www.example.com.", "in-addr.arpa.", "ip6.arpa.", "10.in-addr.arpa.", "0.244.10.in-addr.arpa.", "0.0.d.f.ip6.arpa.", "g.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa."} {
		names[n] = true
	}
	for i, name := range slices.Sorted(maps.Keys(names)) {
		if i%7 == 0 {
			qs = append(qs, mdns.Question{Name: name, Qtype: mdns.TypeA, Qclass: mdns.ClassCHAOS}, mdns.Question{Name: name, Qtype: mdns.TypeTXT, Qclass: mdns.ClassANY})
		}
		for j, t := range questionTypes {
			qs = append(qs, mdns.Question{Name: name, Qtype: t, Qclass: mdns.ClassINET})
			if (i+j)%3 == 0 {
				qs = append(qs, mdns.Question{Name: mixed(name), Qtype: t, Qclass: mdns.ClassINET})
			}
		}
	}
	return qs
}

// mixed is name in another case.
func mixed(name string) string {
	b := []byte(name)
	for i := range b {
		if b[i] >= 'a' && b[i] <= 'z' && i%2 == 0 {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}
