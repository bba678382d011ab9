package main

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podgate/control"
	"podgate/kube"
	"podgate/stack"
	"podgate/stack/packet"
)

func (g *gateway) trace(q control.TraceRequest) (any, error) {
	if q.URL != "" {
		u, err := url.Parse(q.URL)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		routes := g.compiled.routes
		g.mu.Unlock()
		return routes.Trace(u.Host, u.RequestURI(), u.Scheme == "https"), nil
	}
	st := g.store.State()
	p, err := findPod(st, q.Namespace, q.Pod)
	if err != nil {
		return nil, err
	}
	proto, ok := map[string]packet.Proto{"tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP, "icmp": packet.ICMP}[q.Proto]
	if !ok {
		return nil, fmt.Errorf("%q is none of tcp, udp, sctp, icmp", q.Proto)
	}
	dst, note, err := resolveTarget(st, g.cfg.Kube.ClusterDomain, q.Namespace, q.Target, podFamilies(p))
	if err != nil {
		return nil, err
	}
	res := g.plane.Trace(stack.TraceQuery{Pod: kube.Name{Namespace: p.Namespace, Name: p.Name}, Name: q.Interface, Dst: dst, Proto: proto, DstPort: q.Port})
	if note != "" {
		res.Stages = slices.Insert(res.Stages, 0, stack.TraceStage{Stage: "name", Text: note})
	}
	return res, nil
}

// podFamilies lists a pod's addresses: they say which families it can speak.
func podFamilies(p *corev1.Pod) (out []netip.Addr) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// resolveTarget turns what a person types into an address: an address, a Service
// or pod by the names that DNS gives them, or the plain name of a pod.
func resolveTarget(st *kube.State, domain, namespace, target string, speak []netip.Addr) (netip.Addr, string, error) {
	if a, err := netip.ParseAddr(target); err == nil {
		return a, "", nil
	}
	usable := func(ips []string) (netip.Addr, bool) {
		for _, own := range speak {
			for _, ip := range ips {
				if a, err := netip.ParseAddr(ip); err == nil && a.Is4() == own.Is4() {
					return a, true
				}
			}
		}
		return netip.Addr{}, false
	}
	name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(target, "."), "."+domain), ".svc")
	host, ns, cut := strings.Cut(name, ".")
	if !cut {
		ns = namespace
	}
	n := kube.Name{Namespace: ns, Name: host}
	if svc := st.Services[n]; svc != nil && svc.Spec.Type == corev1.ServiceTypeExternalName {
		return netip.Addr{}, "", fmt.Errorf("service %s is an ExternalName: it has no address of its own, clients are sent to %s by DNS", n, svc.Spec.ExternalName)
	}
	if svc := st.Services[n]; svc != nil && svc.Spec.ClusterIP != corev1.ClusterIPNone {
		if a, ok := usable(svc.Spec.ClusterIPs); ok {
			return a, fmt.Sprintf("%s is Service %s, %s", target, n, a), nil
		}
		return netip.Addr{}, "", fmt.Errorf("service %s has no address of a family that the pod speaks", n)
	}
	if svc := st.Services[n]; svc != nil {
		all := maps.Collect(st.EndpointSlices.All())
		for _, sn := range sortedNames(all) {
			s := all[sn]
			if sn.Namespace != ns || s.Labels["kubernetes.io/service-name"] != host {
				continue
			}
			for _, e := range s.Endpoints {
				if a, ok := usable(e.Addresses); ok && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					return a, fmt.Sprintf("%s is headless Service %s; its first ready endpoint is %s", target, n, a), nil
				}
			}
		}
		return netip.Addr{}, "", fmt.Errorf("headless Service %s has no ready endpoint", n)
	}
	if p := st.Pods[n]; p != nil {
		var ips []string
		for _, ip := range p.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		if a, ok := usable(ips); ok {
			return a, fmt.Sprintf("%s is pod %s, %s", target, n, a), nil
		}
	}
	return netip.Addr{}, "", fmt.Errorf("%q is neither an address nor a Service or pod of the cluster (seen from namespace %s)", target, namespace)
}
