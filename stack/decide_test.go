package stack

import (
	"net/netip"
	"strings"
	"testing"

	"podgate/kube"
	"podgate/nat"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

const manifests = `
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.1.1
  publishNotReadyAddresses: true
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: void}
spec: {clusterIP: 10.96.1.2, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]
`

// decider is a snapshot with the manifests' pods attached.
type decider struct {
	*Snapshot
	ports map[string]*attachment
}

func newDecider(t testing.TB) decider {
	t.Helper()
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")}
	services := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	node := []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:10:244::1")}
	m, problems := kube.LoadBytes("manifests", []byte(manifests))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	store := kube.NewStore(kube.Config{PodCIDRs: cidrs, ServiceCIDRs: services}, nil)
	store.Apply(m.Objects)
	state := store.State()
	cfg := Config{GatewayAddrs: node, LocalAddrs: node, PodCIDRs: cidrs, ServiceCIDRs: services}.withDefaults()
	d := decider{newSnapshot(&cfg), map[string]*attachment{}}
	add := func(id flow.PortID, spec PortSpec) {
		at := &attachment{PortSpec: spec, id: id}
		for _, a := range spec.Addrs {
			at.addrs = append(at.addrs, packet.AddrFrom(a))
		}
		d.Snapshot = d.withPort(at)
		d.ports[spec.Pod.Name] = at
	}
	add(1, PortSpec{Local: true, MAC: packet.MAC{2, 0, 0, 0, 0, 1}})
	for name, pod := range state.Pods {
		if pod.Annotations[kube.LocalAnnotation] != "" {
			continue
		}
		spec := PortSpec{Pod: name, MAC: packet.MAC{2, 1, 0, 0, 0, byte(len(d.ports))}}
		for _, ip := range pod.Status.PodIPs {
			spec.Addrs = append(spec.Addrs, netip.MustParseAddr(ip.IP))
		}
		add(flow.PortID(len(d.ports)+1), spec)
	}
	var in Input
	in.Services, _ = nat.Compile(nil, state, nat.Config{NodeName: "podgate", NodeAddrs: node, ServiceCIDRs: services})
	in.Policies, _ = policy.Compile(nil, state, policy.Config{NodeAddrs: node})
	in.Forbidden = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	d.Snapshot = d.withInput(in)
	return d
}

// addr is a literal, or a pod's address: "client", "client/6".
func (d decider) addr(s string) packet.Addr {
	name, six, _ := strings.Cut(s, "/")
	if at := d.ports[name]; at != nil {
		for _, a := range at.addrs {
			if a.Is4() == (six == "") {
				return a
			}
		}
	}
	return packet.AddrFrom(netip.MustParseAddr(s))
}

func TestDecide(t *testing.T) {
	d := newDecider(t)
	for _, c := range []struct {
		name          string
		from          string // pod; "" the local port
		src, dst      string
		proto         packet.Proto
		port          uint16
		verdict       Verdict
		reason        Reason
		out, to       string
		routed, claim bool
	}{
		{name: "pod to pod", from: "client", src: "client", dst: "other", port: 1, out: "default/other", to: "other", routed: true},
		{name: "pod to pod, IPv6", from: "client", src: "client/6", dst: "other/6", port: 1, out: "default/other", to: "other/6", routed: true},
		{name: "another's address", from: "client", src: "other", dst: "server", port: 8080, verdict: Drop, reason: SpoofedIP},
		{name: "another's address of the other family", from: "client", src: "other/6", dst: "server/6", port: 8080, verdict: Drop, reason: SpoofedIP},
		{name: "allowed by policy", from: "client", src: "client", dst: "server", port: 8080, out: "default/server", to: "server", routed: true},
		{name: "allowed by policy behind a Service", from: "client", src: "client", dst: "10.96.1.1", port: 80, out: "default/server", to: "server", routed: true},
		{name: "port not allowed", from: "client", src: "client", dst: "server", port: 80, verdict: Drop, reason: PolicyIngressDenied},
		{name: "protocol not allowed", from: "client", src: "client", dst: "server", proto: packet.UDP, port: 8080, verdict: Drop, reason: PolicyIngressDenied},
		{name: "peer not allowed behind a Service", from: "other", src: "other", dst: "10.96.1.1", port: 80, verdict: Drop, reason: PolicyIngressDenied},
		{name: "hairpin, whatever the policy", from: "server", src: "server", dst: "10.96.1.1", port: 80, out: "default/server", to: "server", routed: true, claim: true},
		{name: "to itself without a Service", from: "other", src: "other", dst: "other", port: 1, verdict: Drop, reason: PortLoop},
		{name: "no endpoints", from: "client", src: "client", dst: "10.96.1.2", port: 80, verdict: Reject, reason: ServiceNoEndpoints},
		{name: "unknown port", from: "client", src: "client", dst: "10.96.1.1", port: 81, verdict: Reject, reason: ServiceUnknownPort},
		{name: "nobody's Service address", from: "client", src: "client", dst: "10.96.3.3", port: 80, verdict: Drop, reason: ServiceUnallocated},
		{name: "nobody's pod address", from: "client", src: "client", dst: "10.244.3.3", port: 80, verdict: Reject, reason: NoSuchPod},
		{name: "the gateway", from: "client", src: "client", dst: "10.244.0.1", port: 22, out: "local", to: "10.244.0.1"},
		{name: "outside", from: "client", src: "client", dst: "192.0.2.1", port: 443, out: "local", to: "192.0.2.1", routed: true},
		{name: "outside, forbidden", from: "client", src: "client", dst: "203.0.113.1", port: 443, verdict: Reject, reason: EgressForbidden},
		{name: "metadata service", from: "client", src: "client", dst: "169.254.169.254", port: 80, verdict: Reject, reason: EgressForbidden},
		{name: "link-local", from: "client", src: "client/6", dst: "fe80::1", port: 80, verdict: Reject, reason: EgressForbidden},
		{name: "node to isolated pod", src: "10.244.0.1", dst: "server", port: 1, out: "default/server", to: "server"},
		{name: "client outside to isolated pod", src: "192.0.2.1", dst: "server", port: 8080, verdict: Reject, reason: PolicyIngressDenied},
		{name: "client outside to a Service", src: "192.0.2.1", dst: "10.96.1.2", port: 80, verdict: Reject, reason: ServiceNoEndpoints},
		{name: "local side in the name of a pod", src: "client", dst: "other", port: 80, verdict: Drop, reason: SpoofedIP},
		{name: "from the local side outwards", src: "10.244.0.1", dst: "192.0.2.1", port: 80, verdict: Reject, reason: NoRoute},
	} {
		t.Run(c.name, func(t *testing.T) {
			proto := c.proto
			if proto == 0 {
				proto = packet.TCP
			}
			q := query{port: d.ports[c.from], dstMAC: d.gatewayMAC}
			q.Tuple = packet.Tuple{Src: d.addr(c.src), Dst: d.addr(c.dst), SrcPort: 40000, DstPort: c.port, Proto: proto}
			var tr Trace
			got := d.decide(q, view{}, &tr)
			out := ""
			if got.out != nil && got.verdict == Forward {
				out = got.out.label()
			}
			bad := got.verdict != c.verdict || got.reason != c.reason || out != c.out
			if c.verdict == Forward {
				bad = bad || got.to.Dst != d.addr(c.to) || got.routed != c.routed || got.masquerade != c.claim
			}
			if bad {
				t.Errorf("got %s %s to %q as %s, routed %v, claim %v; trace:", got.verdict, got.reason, out, tupleString(got.to), got.routed, got.masquerade)
				for _, s := range tr.Stages {
					t.Logf("  %-15s %s", s.Stage, s.Text)
				}
			}
			if again := d.decide(q, view{}, nil); again.verdict != got.verdict || again.reason != got.reason || again.to != got.to || again.deps != got.deps {
				t.Errorf("without a trace the decision is another one: %v %v", again.verdict, again.reason)
			}
		})
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	d := newDecider(t)
	q := query{port: d.ports["client"], dstMAC: d.gatewayMAC}
	q.Tuple = packet.Tuple{Src: d.addr("client"), Dst: d.addr("10.96.1.1"), SrcPort: 40000, DstPort: 80, Proto: packet.TCP}
	if n := testing.AllocsPerRun(100, func() {
		if got := d.decide(q, view{}, nil); got.verdict != Forward {
			t.Fatal(got.reason)
		}
	}); n != 0 {
		t.Errorf("a decision allocates %v times, want 0", n)
	}
}
