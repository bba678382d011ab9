package main

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"podgate/control"
	"podgate/dns"
	"podgate/kube"
)

// searchLists are the search lists of the pods that are attached, by address.
type searchLists struct{ m sync.Map }

func (l *searchLists) set(a netip.Addr, list []string) { l.m.Store(a, list) }

func (l *searchLists) of(a netip.Addr) []string {
	list, _ := l.m.Load(a)
	s, _ := list.([]string)
	return s
}

// dnsTTL is a TTL in seconds as package dns takes it.
func dnsTTL(seconds uint32) time.Duration {
	if seconds == 0 {
		return dns.NoTTL
	}
	return time.Duration(seconds) * time.Second
}

// topMisses is how many names without answer `get dns` shows.
const topMisses = 20

// dnsRecords are those of `get dns`.
func (g *gateway) dnsRecords(q control.GetRequest) (out []any) {
	pods := map[netip.Addr]kube.Name{}
	for name, p := range g.store.State().Pods {
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				pods[a] = name
			}
		}
	}
	of := func(a netip.Addr) (string, bool) {
		name, ok := pods[a]
		if !ok {
			return "", q.Name == ""
		}
		return name.String(), q.Name == "" || q.Name == name.Name || q.Name == name.String()
	}
	for _, a := range g.dns.Asked() {
		if pod, ok := of(a.Client); ok {
			out = append(out, dnsRecord{Pod: pod, Asked: &a})
		}
	}
	for _, m := range g.dns.Missing(topMisses) {
		if pod, ok := of(m.Last); ok {
			out = append(out, dnsRecord{Pod: pod, Miss: &m})
		}
	}
	return out
}

// explainDNS asks what a pod's resolver asks, in its order, until there is data.
func (g *gateway) explainDNS(q control.DNSRequest) (any, error) {
	p, err := findPod(g.store.State(), q.Namespace, q.Pod)
	if err != nil {
		return nil, err
	}
	r := g.resolver(p)
	a := dnsAnswer{Pod: q.Namespace + "/" + q.Pod, Nameservers: r.Nameservers, Searches: r.Searches, Ndots: ndots(r.Options), Hosts: inHosts(p, q)}
	cluster := g.dnsService()
	a.Elsewhere = p.Spec.HostNetwork || !slices.ContainsFunc(r.Nameservers, func(s string) bool {
		at, err := netip.ParseAddr(s)
		return err == nil && slices.Contains(cluster, at)
	})
	if a.Hosts != "" || a.Elsewhere {
		return a, nil
	}
	var client netip.Addr
	if len(p.Status.PodIPs) > 0 {
		client, _ = netip.ParseAddr(p.Status.PodIPs[0].IP)
	}
	for _, name := range candidates(q.Name, r.Searches, a.Ndots) {
		e := g.dns.Explain(client, name, mdns.StringToType[q.Type])
		a.Steps = append(a.Steps, e)
		if e.Found || e.Rcode == "SERVFAIL" || e.Rcode == "REFUSED" {
			break
		}
	}
	return a, nil
}

// candidates are the names that a resolver asks for, in its order.
func candidates(name string, searches []string, ndots int) (names []string) {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	for _, in := range searches {
		names = append(names, strings.TrimSuffix(name+"."+in, ".")+".")
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{name + "."}, names...)
	}
	return append(names, name+".")
}

// ndots is the option's value, the resolvers' own default without one.
func ndots(options []string) int {
	for _, o := range options {
		if v, ok := strings.CutPrefix(o, "ndots:"); ok {
			if n, err := strconv.Atoi(v); err == nil {
				return max(0, min(n, 15))
			}
		}
	}
	return 1
}

// inHosts is the address that the pod's hostAliases give a name.
func inHosts(p *corev1.Pod, q control.DNSRequest) string {
	if q.Type != "A" && q.Type != "AAAA" || strings.HasSuffix(q.Name, ".") {
		return ""
	}
	for _, alias := range p.Spec.HostAliases {
		a, err := netip.ParseAddr(alias.IP)
		if err != nil || a.Is4() != (q.Type == "A") {
			continue
		}
		if slices.ContainsFunc(alias.Hostnames, func(h string) bool { return strings.EqualFold(h, q.Name) }) {
			return alias.IP
		}
	}
	return ""
}
