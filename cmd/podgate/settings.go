package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"podgate/dns"
	"podgate/kube"
	"podgate/stack"
	"podgate/stack/flow"
)

// setting is one key of the configuration. The table below is the only place
// that knows a key; docs/configuration.md and `podgate config` follow it.
type setting struct {
	Key     string
	Default any
	Doc     string
	set     func(*config, string) error // parses the value; nil: taken as it is elsewhere
}

var settings = []setting{
	{"cluster.domain", "cluster.local", "DNS domain of the cluster", func(c *config, v string) error {
		c.Kube.ClusterDomain = strings.TrimSuffix(v, ".")
		return nil
	}},
	{"cluster.node", "podgate", "name of the one node that pods are said to run on", func(c *config, v string) error {
		c.Kube.NodeName = v
		return nil
	}},
	{"pods.cidrs", "10.244.0.0/16,fd00:10:244::/64", "pod addresses, at most one range a family", func(c *config, v string) (err error) {
		c.Kube.PodCIDRs, err = prefixes(v)
		return err
	}},
	{"pods.mtu", 65520, "MTU of the pods' eth0 in bytes", func(c *config, v string) (err error) {
		c.MTU, err = between(v, 1280, 65520)
		return err
	}},
	{"pods.attach", "auto", "how pods are attached: tap, veth, or auto (tap where /dev/net/tun can be opened)", func(c *config, v string) (err error) {
		c.Attach, err = oneOf(v, "auto", "tap", "veth")
		return err
	}},
	{"pods.routes", "", "networks behind pods, which forward to them: PREFIX=NAMESPACE/POD such as 192.0.2.0/24=default/vpn", func(c *config, v string) error {
		for _, s := range list(v) {
			prefix, pod, _ := strings.Cut(s, "=")
			ns, name, ok := strings.Cut(pod, "/")
			p, err := netip.ParsePrefix(prefix)
			if err != nil || !ok || ns == "" || name == "" || p != p.Masked() {
				return fmt.Errorf("%q is not PREFIX=NAMESPACE/POD such as 192.0.2.0/24=default/vpn", s)
			}
			c.Routes = append(c.Routes, stack.Route{Prefix: p, Pod: kube.Name{Namespace: ns, Name: name}})
		}
		return nil
	}},
	{"services.cidrs", "10.96.0.0/16,fd00:10:96::/112", "ClusterIPs, at most one range a family", func(c *config, v string) (err error) {
		c.Kube.ServiceCIDRs, err = prefixes(v)
		return err
	}},
	{"services.nodeports", "30000-32767", "range of node ports", func(c *config, v string) error {
		ports, err := portRange(v, "30000-32767")
		c.Kube.NodePortMin, c.Kube.NodePortMax = ports[0], ports[1]
		return err
	}},
	{"publish.address", "127.0.0.1", "host address that node ports, load balancers and host ports listen on", func(c *config, v string) (err error) {
		c.PublishAddr, err = netip.ParseAddr(v)
		c.Kube.PublishedIPs = []netip.Addr{c.PublishAddr}
		return err
	}},
	{"publish.lowports", 10000, "added to published ports that this process may not listen on for want of privilege (80 becomes 10080); 0: they are not published", func(c *config, v string) (err error) {
		c.LowPortOffset, err = between(v, 0, 60000)
		return err
	}},
	{"services.loadbalancers", "", "ranges that give each LoadBalancer an address of its own; empty: they share publish.address", func(c *config, v string) (err error) {
		c.Kube.LoadBalancerCIDRs, err = prefixes(v)
		return err
	}},
	{"ingress.http", "127.0.0.1:8080", "where Ingress answers HTTP; empty: nowhere", func(c *config, v string) error {
		return c.ingressAt(v, &c.IngressHTTP)
	}},
	{"ingress.https", "127.0.0.1:8443", "where Ingress answers HTTPS; empty: nowhere", func(c *config, v string) error {
		return c.ingressAt(v, &c.IngressHTTPS)
	}},
	{"ingress.http3", true, "answer HTTP/3 where HTTPS is, by UDP at the same ports, and say so in its answers (Alt-Svc)", func(c *config, v string) error {
		v, err := oneOf(v, "true", "false")
		c.HTTP3 = v == "true"
		return err
	}},
	{"ingress.trusted-proxies", "", "clients of Ingress whose X-Forwarded-* fields are believed and continued: prefixes such as 192.0.2.7/32", func(c *config, v string) (err error) {
		c.Trusted, err = prefixes(v)
		return err
	}},
	{"ingress.default-backend", "", "Service that answers what no Ingress does: NAMESPACE/NAME or NAMESPACE/NAME:PORT; empty: none, and it is 404", func(c *config, v string) error {
		path, _, _ := strings.Cut(v, ":")
		if namespace, name, ok := strings.Cut(path, "/"); v != "" && (!ok || namespace == "" || name == "" || strings.Contains(name, "/")) {
			return errors.New("want NAMESPACE/NAME or NAMESPACE/NAME:PORT")
		}
		c.IngressDefault = v
		return nil
	}},
	{"ingress.access-log", "", "file that a line for each request of Ingress is appended to; empty: none", func(c *config, v string) error {
		c.AccessLog = v
		return nil
	}},
	{"ingress.access-log-format", "combined", "of these lines: combined (then upstream and pod) or json", func(c *config, v string) error {
		format, err := oneOf(v, "combined", "json")
		c.AccessJSON = format == "json"
		return err
	}},
	{"metrics.listen", "", "where /metrics answers with the numbers of Ingress for Prometheus, such as 127.0.0.1:9090; empty: nowhere", func(c *config, v string) error {
		return optionalAddrPort(v, &c.Metrics)
	}},
	{"egress.mode", "sockets", "way out of the cluster: sockets (dialled again from the gateway's namespace), uplink (packets, masqueraded, by a TAP or veth in that namespace, which takes CAP_NET_ADMIN there) or none", func(c *config, v string) (err error) {
		c.Egress, err = oneOf(v, "sockets", "uplink", "none")
		return err
	}},
	{"egress.uplink.name", "podgate-up", "the uplink's interface", func(c *config, v string) error {
		c.UplinkName = v
		return nil
	}},
	{"egress.uplink.addresses", "", "the gateway's own at the uplink, which pods come from: at most one a family, with the length of the link's prefix, such as 192.0.2.10/24", func(c *config, v string) (err error) {
		c.UplinkAddrs, err = interfaces(v)
		return err
	}},
	{"egress.uplink.next-hops", "", "the interface's, in the gateway's namespace: one in the prefix of each of those", func(c *config, v string) error {
		for _, s := range list(v) {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return fmt.Errorf("%q is not an address", s)
			}
			c.UplinkNextHops = append(c.UplinkNextHops, a)
		}
		return nil
	}},
	{"egress.uplink.ports", "", "source ports at the uplink, such as 40000-49999; empty: a pod's own wherever it is free, else one of 32768-60999", func(c *config, v string) (err error) {
		if v != "" {
			c.UplinkNAT.Ports, err = portRange(v, "40000-49999")
		}
		return err
	}},
	{"egress.uplink.mapping", dependent, "mapping behaviour at the uplink (RFC 4787): address-and-port-dependent (a source port for each conversation) or endpoint-independent (one for each address and port of a pod, whoever the peer is)", behaviour(func(n *stack.Masquerade) *bool { return &n.IndependentMapping })},
	{"egress.uplink.filtering", dependent, "filtering behaviour at the uplink (RFC 4787): address-and-port-dependent (in comes whom the pod has spoken to) or endpoint-independent (in comes who sends to a mapping, as far as policies let them; takes that mapping)", behaviour(func(n *stack.Masquerade) *bool { return &n.IndependentFiltering })},
	{"egress.uplink.mapping-timeout", "5m", "how long an endpoint-independent mapping of UDP outlives its last packet, at least 2m (RFC 4787)", func(c *config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 2*time.Minute || d > 24*time.Hour {
			return fmt.Errorf("%q is not a duration from 2m to 24h, such as 5m", v)
		}
		c.MappingTimeout = d
		return nil
	}},
	{"egress.allow", "", "host addresses, otherwise forbidden, that pods may reach: prefixes such as 192.0.2.7/32", func(c *config, v string) (err error) {
		c.EgressAllow, err = prefixes(v)
		return err
	}},
	{"dns.upstreams", "", "servers for names outside the cluster, ADDR or ADDR:PORT; empty: those of /etc/resolv.conf", func(c *config, v string) error {
		for _, s := range list(v) {
			ap, err := netip.ParseAddrPort(s)
			if err != nil {
				a, aerr := netip.ParseAddr(s)
				if aerr != nil {
					return fmt.Errorf("%q is neither an address nor ADDR:PORT", s)
				}
				ap = netip.AddrPortFrom(a, 53)
			}
			c.Upstreams = append(c.Upstreams, ap)
		}
		return nil
	}},
	{"dns.ttl", 30, "TTL of cluster records in seconds", func(c *config, v string) error {
		n, err := between(v, 0, 3600)
		c.DNSTTL = uint32(n)
		return err
	}},
	{"dns.pods", "insecure", "which names such as 10-244-0-7.shop.pod.cluster.local have addresses: insecure (all), verified (those of pods that are in that namespace), disabled", func(c *config, v string) error {
		modes := map[string]dns.PodMode{"insecure": dns.Insecure, "verified": dns.Verified, "disabled": dns.Disabled}
		v, err := oneOf(v, "insecure", "verified", "disabled")
		c.DNSPods = modes[v]
		return err
	}},
	{"dns.cache", 30, "how long, in seconds, answers of other servers are remembered at most; 0: not at all", func(c *config, v string) error {
		n, err := between(v, 0, 86400)
		if c.DNSCache = time.Duration(n) * time.Second; n == 0 {
			c.DNSCache = -1
		}
		return err
	}},
	{"dns.autopath", false, "answer a pod's first question of its search list with what the list leads to; off, as whoever asks for that long name itself then gets an answer to another", func(c *config, v string) error {
		v, err := oneOf(v, "true", "false")
		c.DNSAutopath = v == "true"
		return err
	}},
	{"dns.random-case", false, "ask other servers in random case and believe only answers that have it too (DNS 0x20)", func(c *config, v string) error {
		v, err := oneOf(v, "true", "false")
		c.DNSRandomCase = v == "true"
		return err
	}},
	{"dns.corefile", "", "a Corefile that says what DNS does, instead of the other dns keys; read again when it changes. Empty: key Corefile of the ConfigMap kube-system/coredns, if there is one", func(c *config, v string) error {
		c.Corefile = v
		return nil
	}},
	{"policy.log", "", "file that a line of JSON is appended to for each denial of a policy, and for what one in audit mode would deny, at most 1000 a second; empty: none", func(c *config, v string) error {
		c.PolicyLog = v
		return nil
	}},
	{"policy.log-verdicts", "denied", "what policy.log has: denied, or all (also the conversations that a policy's rule allows)", func(c *config, v string) error {
		v, err := oneOf(v, "denied", "all")
		c.PolicyLogAll = v == "all"
		return err
	}},
	{"policy.broken", "closed", "the pods that a policy selects which was rejected and never was right: closed (nothing passes but what its sound rules allow) or open", func(c *config, v string) error {
		v, err := oneOf(v, "closed", "open")
		c.PolicyFailOpen = v == "open"
		return err
	}},
	{"flows.max", 262144, "conversations remembered at once", func(c *config, v string) (err error) {
		c.MaxFlows, err = between(v, 16, 1<<24)
		return err
	}},
	{"flows.share", 50, "the part of flows.max that one pod may open, in percent", func(c *config, v string) error {
		n, err := between(v, 1, 100)
		c.FlowShare = float64(n) / 100
		return err
	}},
	{"flows.thin-acks", true, "of TCP packets of a conversation that do nothing but acknowledge, and that wait together, only the last is forwarded", func(c *config, v string) error {
		v, err := oneOf(v, "true", "false")
		c.AllAcks = v == "false"
		return err
	}},
	{"flows.spin", "0s", "how long the gateway looks for further packets before it sleeps, while they come often: 50us makes connections and round trips faster, and takes up to a CPU; 0s: not at all", func(c *config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > time.Millisecond {
			return fmt.Errorf("%q is not a duration from 0s to 1ms, such as 50us", v)
		}
		c.Spin = d
		return nil
	}},
	{"flows.timeouts.tcp-syn-sent", "2m", "silence after which a TCP handshake without answer is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPSynSent })},
	{"flows.timeouts.tcp-syn-recv", "1m", "silence after which a TCP handshake without its last packet is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPSynRecv })},
	{"flows.timeouts.tcp-established", "24h", "silence after which an open TCP connection is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPEstablished })},
	{"flows.timeouts.tcp-fin-wait", "2m", "silence after which a TCP connection that one side closed is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPFinWait })},
	{"flows.timeouts.tcp-close-wait", "1h", "silence after which a TCP connection that one side closed, the other having seen it is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPCloseWait })},
	{"flows.timeouts.tcp-last-ack", "30s", "silence after which a TCP connection that both sides closed is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPLastAck })},
	{"flows.timeouts.tcp-time-wait", "2m", "silence after which a TCP connection that is over is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPTimeWait })},
	{"flows.timeouts.tcp-closed", "10s", "silence after which a TCP connection that was reset is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.TCPClosed })},
	{"flows.timeouts.udp", "30s", "silence after which UDP without answer is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.UDP })},
	{"flows.timeouts.udp-replied", "2m", "silence after which UDP that was answered is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.UDPReplied })},
	{"flows.timeouts.icmp", "30s", "silence after which ICMP echo is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.ICMP })},
	{"flows.timeouts.other", "10m", "silence after which any other protocol is forgotten", timeout(func(t *flow.Timeouts) *time.Duration { return &t.Other })},
	{"ready.timeout", "60s", "how long `up --detach` waits for pods to be attached and started", func(c *config, v string) (err error) {
		c.ReadyTimeout, err = time.ParseDuration(v)
		return err
	}},
	{"kubernetes.kubeconfig", "", "kubeconfig by which `podgate gateway` finds the API server; empty: the service account of the pod that it runs in", func(c *config, v string) error {
		c.Kubeconfig = v
		return nil
	}},
	{"kubernetes.node-name", "", "name of the Node that `podgate gateway` serves; empty: $NODE_NAME, else the host's name", func(c *config, v string) error {
		c.ThisNode = v
		return nil
	}},
	{"kubernetes.remember", true, "whether `podgate gateway` writes what the API server said, with the Secrets that Ingresses name, into state.dir, to serve it when it starts while the API server is away", func(c *config, v string) error {
		v, err := oneOf(v, "true", "false")
		c.Remember = v == "true"
		return err
	}},
	{"gateway.interface", "podgate0", "TAP that `podgate gateway` makes in the node's network, by which the node's own processes reach pods and Services, and other nodes' pods are reached; empty: none", func(c *config, v string) error {
		c.NodeInterface = v
		return nil
	}},
	{"gateway.proxy", "127.0.0.1:10258", "where `podgate gateway`, if it has no gateway.interface, serves a SOCKS5 and HTTP proxy by which the node's own processes reach pods and Services; empty: nowhere", func(c *config, v string) error {
		return optionalAddrPort(v, &c.NodeProxy)
	}},
	{"gateway.proxy-dns", "127.0.0.1:10253", "where it answers the cluster's DNS then, by UDP and TCP; empty: nowhere", func(c *config, v string) error {
		return optionalAddrPort(v, &c.NodeProxyDNS)
	}},
	{"gateway.health", "127.0.0.1:10256", "where `podgate gateway` answers /healthz and /readyz; empty: nowhere", func(c *config, v string) error {
		return optionalAddrPort(v, &c.Health)
	}},
	{"gateway.drain", "5s", "how long `podgate gateway` goes on serving, no longer ready, after it was told to stop", func(c *config, v string) (err error) {
		c.Drain, err = time.ParseDuration(v)
		return err
	}},
	{"log.level", "info", "least level that is logged: debug, info, warn, error", func(c *config, v string) (err error) {
		c.LogLevel, err = oneOf(v, "debug", "info", "warn", "error")
		return err
	}},
	{"state.dir", "", "folder that remembers attachments of CNI, and the state of the cluster, while the gateway is not running; /var/lib/podgate for root, else podgate below $XDG_STATE_HOME", func(c *config, v string) error {
		c.StateDir = v
		return nil
	}},
	{"images", "podgate.dev/workload: [podgate, workload]", "which command stands for an image (a map; podgate.yaml only)", nil},
}

// The behaviours of an uplink that RFC 4787 names.
const dependent, independent = "address-and-port-dependent", "endpoint-independent"

func behaviour(field func(*stack.Masquerade) *bool) func(*config, string) error {
	return func(c *config, v string) error {
		v, err := oneOf(v, dependent, independent)
		*field(&c.UplinkNAT) = v == independent
		return err
	}
}

// timeout sets one of the times after which silent flows are forgotten.
func timeout(field func(*flow.Timeouts) *time.Duration) func(*config, string) error {
	return func(c *config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < time.Second || d > 30*24*time.Hour {
			return fmt.Errorf("%q is not a duration from 1s to 720h, such as 2m", v)
		}
		*field(&c.Timeouts) = d
		return nil
	}
}

func list(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
}

func prefixes(v string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list(v) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not a CIDR such as 10.244.0.0/16", s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has bits set beyond its prefix; did you mean %s?", p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// interfaces reads addresses with the lengths of their prefixes.
func interfaces(v string) (out []netip.Prefix, err error) {
	for _, s := range list(v) {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.IsSingleIP() {
			return nil, fmt.Errorf("%q is not an address with a prefix length such as 192.0.2.10/24", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// ingressAt reads where Ingresses are; their status names the ports.
func (c *config) ingressAt(v string, at *netip.AddrPort) error {
	err := optionalAddrPort(v, at)
	if err == nil && at.IsValid() {
		c.Kube.IngressPorts = append(c.Kube.IngressPorts, at.Port())
	}
	return err
}

func optionalAddrPort(v string, into *netip.AddrPort) (err error) {
	if v == "" {
		*into = netip.AddrPort{}
		return nil
	}
	if *into, err = netip.ParseAddrPort(v); err != nil {
		return fmt.Errorf("%q is not ADDR:PORT", v)
	}
	return nil
}

// portRange parses a range of ports such as the example.
func portRange(v, example string) (ports [2]uint16, err error) {
	lo, hi, ok := strings.Cut(v, "-")
	a, err1 := between(lo, 1, 65535)
	b, err2 := between(hi, 1, 65535)
	if !ok || err1 != nil || err2 != nil || a > b {
		return ports, fmt.Errorf("%q is not a range of ports such as %s", v, example)
	}
	return [2]uint16{uint16(a), uint16(b)}, nil
}

func between(v string, lo, hi int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		return 0, fmt.Errorf("%q is not a number from %d to %d", v, lo, hi)
	}
	return n, nil
}

func oneOf(v string, allowed ...string) (string, error) {
	if !slices.Contains(allowed, v) {
		return "", fmt.Errorf("%q is none of %s", v, strings.Join(allowed, ", "))
	}
	return v, nil
}
