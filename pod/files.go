package pod

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Limits that the kubelet puts on resolv.conf.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
	maxHostname    = 63
	maxFQDN        = 64
)

// hostname is what the pod's containers see: the short name, or with
// setHostnameAsFQDN the whole.
func hostname(p *corev1.Pod, domain string) (string, error) {
	short := shortName(p)
	full := short
	if p.Spec.Subdomain != "" {
		full = fmt.Sprintf("%s.%s.%s.svc.%s", short, p.Spec.Subdomain, p.Namespace, domain)
	}
	if p.Spec.SetHostnameAsFQDN == nil || !*p.Spec.SetHostnameAsFQDN {
		return short, nil
	}
	if len(full) > maxFQDN {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)",
			full, maxFQDN, len(full))
	}
	return full, nil
}

// shortName is spec.hostname or the pod's name, cut as the kubelet does.
func shortName(p *corev1.Pod) string {
	name := p.Spec.Hostname
	if name == "" {
		name = p.Name
	}
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}

// hostsFile is /etc/hosts as the kubelet writes it. host is the node's own
// file, which pods with hostNetwork get.
func hostsFile(p *corev1.Pod, ips []netip.Addr, domain string, host []byte) []byte {
	var b bytes.Buffer
	if p.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		name := shortName(p)
		for _, ip := range ips {
			if p.Spec.Subdomain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s.%s.svc.%s\t%s\n", ip, name, p.Spec.Subdomain, p.Namespace, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(p.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range p.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.Bytes()
}

// Resolver is the content of a resolv.conf.
type Resolver struct {
	Nameservers, Searches, Options []string
}

func parseResolver(b []byte) (r Resolver) {
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.Nameservers = append(r.Nameservers, f[1])
		case "search", "domain": // the last one counts
			r.Searches = nil
			for _, d := range f[1:] {
				if d != "." {
					d = strings.TrimSuffix(d, ".")
				}
				r.Searches = append(r.Searches, d)
			}
		case "options":
			r.Options = f[1:]
		}
	}
	return r
}

// hostResolver reads the node's resolv.conf; where that points only at a local
// stub, which pods cannot reach, systemd-resolved's list of the real servers.
func hostResolver() Resolver {
	b, _ := os.ReadFile("/etc/resolv.conf")
	r := parseResolver(b)
	if slices.ContainsFunc(r.Nameservers, reachable) {
		return r
	}
	if b, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
		if real := parseResolver(b); slices.ContainsFunc(real.Nameservers, reachable) {
			return real
		}
	}
	return r
}

// reachable says whether a nameserver is one outside the host.
func reachable(server string) bool {
	a, err := netip.ParseAddr(server)
	return err == nil && !a.IsLoopback() && !a.IsUnspecified()
}

// podResolver is what dnsPolicy and dnsConfig make of the cluster's and the
// node's settings.
func podResolver(p *corev1.Pod, cluster []netip.Addr, domain string, host Resolver) Resolver {
	policy := p.Spec.DNSPolicy
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	if policy != corev1.DNSNone && (len(cluster) == 0 || policy == corev1.DNSClusterFirst && p.Spec.HostNetwork) {
		policy = corev1.DNSDefault
	}
	var r Resolver
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		r = host
		if !p.Spec.HostNetwork && !slices.ContainsFunc(host.Nameservers, reachable) {
			// Only the node itself reaches those; the cluster's DNS asks them for us.
			r.Nameservers = addrStrings(cluster)
		}
	default: // ClusterFirst, ClusterFirstWithHostNet
		r.Nameservers = addrStrings(cluster)
		r.Searches = append([]string{p.Namespace + ".svc." + domain, "svc." + domain, domain}, host.Searches...)
		r.Options = []string{"ndots:5"}
	}
	if c := p.Spec.DNSConfig; c != nil {
		r.Nameservers = union(r.Nameservers, c.Nameservers)
		r.Searches = union(r.Searches, c.Searches)
		r.Options = mergeOptions(r.Options, c.Options)
	}
	r.Nameservers = r.Nameservers[:min(len(r.Nameservers), maxNameservers)]
	r.Searches = r.Searches[:min(len(r.Searches), maxSearches)]
	for len(strings.Join(r.Searches, " ")) > maxSearchChars {
		r.Searches = r.Searches[:len(r.Searches)-1]
	}
	return r
}

func addrStrings(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// union keeps the order and the first of equals.
func union(a, b []string) (out []string) {
	for _, s := range slices.Concat(a, b) {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions lets dnsConfig replace options of the same name.
func mergeOptions(have []string, want []corev1.PodDNSConfigOption) []string {
	name := func(o string) string {
		n, _, _ := strings.Cut(o, ":")
		return n
	}
	out := slices.Clone(have)
	for _, o := range want {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		out = slices.DeleteFunc(out, func(h string) bool { return name(h) == o.Name })
		out = append(out, text)
	}
	return out
}

// Resolver is what a pod's resolver is told.
func (r *Runtime) Resolver(p *corev1.Pod) Resolver {
	return podResolver(p, r.cfg.Nameservers, r.cfg.ClusterDomain, r.host)
}

// ResolverOf is what a kubelet tells a pod whose processes it runs; dns are the
// addresses of the cluster's DNS Service.
func ResolverOf(p *corev1.Pod, dns []netip.Addr, domain string) Resolver {
	return podResolver(p, dns, domain, hostResolver())
}

// file is the text of resolv.conf.
func (r Resolver) file() []byte {
	var b bytes.Buffer
	if len(r.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.Searches, " "))
	}
	for _, n := range r.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(r.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.Options, " "))
	}
	return b.Bytes()
}

// switchFile is the host's nsswitch.conf with names looked up in /etc/hosts and
// by DNS only: other modules (resolve, mymachines, mdns) ask daemons of the host
// by their sockets, past the pod's network.
func switchFile(host []byte) []byte {
	var b bytes.Buffer
	for line := range strings.Lines(string(host)) {
		if db, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(db) == "hosts" {
			line = "hosts: files dns\n"
		}
		b.WriteString(line)
	}
	return b.Bytes()
}
