package stacktest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"podgate/policy"
	"podgate/stack"
	"podgate/stack/packet"
)

// FuzzWorld sends what the input says, well formed and broken, while policies,
// readiness and pods come and go, and wants of every frame that a pod gets:
//
//   - it is addressed to that pod, by MAC and by IP;
//   - its source is who sent it, or the gateway;
//   - it crossed from one network to another by way of the gateway, if at all;
//   - the policies in force allow its conversation: the packet itself, or the
//     one that it answers, which must have been delivered before.
func FuzzWorld(f *testing.F) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		newFuzzed(t, input).run()
	})
}

const fuzzPods = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: storage}
spec: {config: '{"type": "podgate", "ipam": {"ranges": [[{"subnet": "172.30.0.0/24"}], [{"subnet": "fd00:30::/64"}]]}}'}
---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}, annotations: {k8s.v1.cni.cncf.io/networks: storage}}
spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: b}, annotations: {k8s.v1.cni.cncf.io/networks: storage}}
spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, labels: {app: c}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec:
  selector: {app: b}
  clusterIP: 10.96.1.1
  ports:
  - {name: http, port: 80}
  - {name: dns, port: 53, targetPort: 81, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: all}
spec:
  clusterIP: 10.96.1.2
  sessionAffinity: ClientIP
  ports: [{port: 80}]
  selector: {}
`

// fuzzPolicies come and go.
var fuzzPolicies = []string{
	fuzzPolicy("deny", "{}", "Ingress, Egress", ""),
	fuzzPolicy("deny-in-b", "{matchLabels: {app: b}}", "Ingress", ""),
	fuzzPolicy("deny-out-a", "{matchLabels: {app: a}}", "Egress", ""),
	fuzzPolicy("a-to-b", "{matchLabels: {app: b}}", "Ingress", "  ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: http}]}]\n"),
	fuzzPolicy("a-out", "{matchLabels: {app: a}}", "Egress", "  egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}]\n"),
	fuzzPolicy("cidr", "{matchLabels: {app: c}}", "Ingress", "  ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 80, endPort: 90}]}]\n"),
}

func fuzzPolicy(name, selector, types, rules string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec:\n  podSelector: %s\n  policyTypes: [%s]\n%s", name, selector, types, rules)
}

type fuzzed struct {
	t         *testing.T
	in        []byte
	w         *World
	pods      []*Pod
	addrs     []packet.Addr
	delivered map[packet.Tuple]bool // as seen by the receiver
	frags     map[packet.FragKey]packet.Tuple
}

func newFuzzed(t *testing.T, in []byte) *fuzzed {
	w := New(t, stack.Config{})
	w.Apply(fuzzPods)
	z := &fuzzed{t: t, in: in, w: w, delivered: map[packet.Tuple]bool{}, frags: map[packet.FragKey]packet.Tuple{}}
	z.pods = []*Pod{w.Pod("a"), w.Pod("b"), w.Pod("c"), w.Pod("a.net1"), w.Pod("b.net1"), w.Local}
	for _, p := range z.pods[:5] {
		z.addrs = append(z.addrs, packet.AddrFrom(p.IP()), packet.AddrFrom(p.IP6()))
	}
	for _, s := range []string{
		"10.244.0.1", "fd00:10:244::1", "10.244.0.2", "10.96.1.1", "10.96.1.2", "10.96.9.9", "10.244.99.99",
		"172.30.0.1", "fd00:30::1", "198.51.100.7", "2001:db8::7", "169.254.169.254", "224.0.0.251", "ff02::fb", "255.255.255.255", "fe80::1",
	} {
		z.addrs = append(z.addrs, packet.AddrFrom(netip.MustParseAddr(s)))
	}
	return z
}

// pick takes the next byte of the input, modulo n.
func (z *fuzzed) pick(n int) int {
	if len(z.in) == 0 {
		return 0
	}
	b := z.in[0]
	z.in = z.in[1:]
	return int(b) % n
}

func (z *fuzzed) run() {
	for steps := 0; len(z.in) > 0 && steps < 200; steps++ {
		switch z.pick(16) {
		case 0:
			z.w.Apply(fuzzPolicies[z.pick(len(fuzzPolicies))])
		case 1:
			z.w.Delete(fuzzPolicies[z.pick(len(fuzzPolicies))])
		case 2:
			z.w.Ready(z.pods[z.pick(3)].Name, z.pick(2) == 0)
		case 3:
			z.w.Advance(time.Duration(z.pick(256)) * time.Second / 4)
		case 4:
			z.w.Input.EgressOff = z.pick(2) == 0
			z.w.Publish()
		case 5:
			z.send(z.raw())
		case 6:
			z.send(Fragments(z.packet().Frame(), uint32(z.pick(4)), 8+8*z.pick(3))...)
		case 7:
			z.answer()
		default:
			z.send(z.packet().Frame())
		}
	}
}

func (z *fuzzed) packet() Packet {
	from := z.pods[z.pick(len(z.pods))]
	p := Packet{SrcMAC: from.MAC, DstMAC: GatewayMAC}
	p.Dst = z.addrs[z.pick(len(z.addrs))]
	p.Src = z.addrs[z.pick(len(z.addrs))]
	if z.pick(4) != 0 && from != z.w.Local {
		p.Src = packet.AddrFrom(from.IP())
		if !p.Dst.Is4() {
			p.Src = packet.AddrFrom(from.IP6())
		}
	}
	if p.Src.Is4() != p.Dst.Is4() {
		p.Src = p.Dst
	}
	if z.pick(2) == 0 {
		p.DstMAC = z.pods[z.pick(5)].MAC
	}
	if p.Dst.IsMulticast() || p.Dst.IsBroadcast() {
		p.DstMAC = packet.MulticastMAC(p.Dst)
	}
	p.Proto = []packet.Proto{packet.TCP, packet.UDP, packet.ICMP, packet.SCTP}[z.pick(4)]
	if p.Proto == packet.ICMP && !p.Dst.Is4() {
		p.Proto = packet.ICMPv6
	}
	ports := []uint16{80, 81, 53, 40000, 40001, 33000}
	p.SrcPort = ports[z.pick(len(ports))]
	if p.Proto != packet.ICMP && p.Proto != packet.ICMPv6 {
		p.DstPort = ports[z.pick(len(ports))]
	}
	p.TCPFlags = []uint8{packet.SYN, packet.ACK, packet.SYN | packet.ACK, packet.FIN | packet.ACK, packet.RST}[z.pick(5)]
	p.TTL = []uint8{64, 1, 2, 255}[z.pick(4)]
	p.Payload = make([]byte, 12+z.pick(60))
	if p.Proto == packet.SCTP {
		p.Payload[0], p.Payload[1] = byte(p.SrcPort>>8), byte(p.SrcPort)
		p.Payload[2], p.Payload[3] = byte(p.DstPort>>8), byte(p.DstPort)
	}
	if z.pick(8) == 0 {
		p.GSOSize = 16
	}
	return p
}

// raw is a frame that somebody bent.
func (z *fuzzed) raw() packet.Frame {
	f := z.packet().Frame()
	for range z.pick(8) {
		f[z.pick(len(f))] ^= byte(1 + z.pick(255))
	}
	return f[:max(packet.VnetHdrLen, len(f)-z.pick(4)*10)]
}

// answer replies to what a pod got last: by a packet, or by an ICMP error.
func (z *fuzzed) answer() {
	from := z.pods[z.pick(len(z.pods))]
	var last packet.Packet
	if packet.Decode(&last, from.last) != packet.OK || last.EtherType == packet.EtherARP {
		return
	}
	if z.pick(2) == 0 {
		buf := make([]byte, packet.MaxBuilt)
		if f := packet.BuildICMPError(buf, &last, last.Dst, 3, 3, 0); f != nil {
			copy(f.Eth()[6:], from.MAC[:])
			copy(f.Eth(), GatewayMAC[:])
			z.send(f)
		}
		return
	}
	p := Packet{Tuple: last.Tuple.Reverse(), SrcMAC: from.MAC, DstMAC: GatewayMAC, Payload: make([]byte, 12)}
	z.send(p.Frame())
}

func (z *fuzzed) send(frames ...packet.Frame) {
	for _, f := range frames {
		from := z.pods[z.pick(len(z.pods))]
		for _, p := range z.pods {
			if len(f) >= packet.VnetHdrLen+12 && packet.MAC(f.Eth()[6:]) == p.MAC {
				from = p
			}
		}
		z.w.Send(from, f)
		for _, p := range z.pods {
			for _, got := range p.Received() {
				z.check(p, from, got)
			}
		}
	}
}

func (z *fuzzed) check(to, from *Pod, f packet.Frame) {
	var p packet.Packet
	if fault := packet.Decode(&p, f); fault != packet.OK {
		z.t.Fatalf("%s got a frame that is %s", to.Name, fault)
	}
	if p.EtherType == packet.EtherARP || p.IsND() {
		return
	}
	bad := func(format string, args ...any) {
		z.t.Helper()
		z.t.Fatalf("%s got from %s: %s: %s", to.Name, from.Name, z.w.Describe(f), fmt.Sprintf(format, args...))
	}
	group := p.DstMAC().Group()
	if !group && p.DstMAC() != to.MAC {
		bad("MAC %s is not its own", p.DstMAC())
	}
	if crossed := to.spec.Network != from.spec.Network; crossed && to != z.w.Local && (group || p.SrcMAC() != GatewayMAC) {
		bad("it came from another network as it was")
	}
	if to == z.w.Local {
		z.note(&p)
		return
	}
	dst := p.Dst
	if group {
		dst = packet.AddrFrom(to.IP())
		if !p.Dst.Is4() {
			dst = packet.AddrFrom(to.IP6())
		}
	} else if !slices.Contains(to.Addrs, dst.Netip()) {
		bad("the address is not its own")
	}
	if p.LaterFragment() {
		first, ok := z.frags[p.FragKey()]
		if !ok {
			bad("no first fragment was delivered")
		}
		p.SrcPort, p.DstPort, p.Proto = first.SrcPort, first.DstPort, first.Proto
	}
	if p.ICMPError() {
		var q packet.Packet
		if fault := p.Inner(&q); fault != packet.OK {
			bad("the quote is %s", fault)
		}
		return // it is about what the pod itself sent
	}
	if z.allowed(p.Src, dst, p.Proto, p.DstPort) || z.answers(&p, dst) {
		z.note(&p)
	} else if p.Proto != packet.TCP || p.TCPFlags&packet.RST == 0 || p.Fragment() {
		bad("no policy allows it, and it answers nothing")
	} // else a reset by the gateway, in the name of who refuses
}

// answers says whether p belongs to a conversation that dst may have opened and
// whose packets were delivered. A Service shows itself as the source of answers.
func (z *fuzzed) answers(p *packet.Packet, dst packet.Addr) bool {
	for t := range z.delivered {
		if t.Proto != p.Proto || t.Src != dst && !z.gateway(t.Src) {
			continue
		}
		service := p.Src.Is4() && p.Src[12] == 10 && p.Src[13] == 96
		if (t.Dst == p.Src && t.DstPort == p.SrcPort || service) && z.allowed(dst, t.Dst, t.Proto, t.DstPort) {
			return true
		}
	}
	return false
}

func (z *fuzzed) note(p *packet.Packet) {
	z.delivered[p.Tuple] = true
	if p.Frag.More && !p.LaterFragment() {
		z.frags[p.FragKey()] = p.Tuple
	}
}

func (z *fuzzed) gateway(a packet.Addr) bool {
	return a == packet.AddrFrom(podCIDRs[0].Addr().Next()) || a == packet.AddrFrom(podCIDRs[1].Addr().Next())
}

// allowed asks the policies in force about a conversation from src to dst.
func (z *fuzzed) allowed(src, dst packet.Addr, proto packet.Proto, port uint16) bool {
	table := z.w.Input.Policies
	storage := netip.MustParsePrefix("172.30.0.0/24")
	if !src.Is4() {
		storage = netip.MustParsePrefix("fd00:30::/64")
	}
	if src == dst || storage.Contains(src.Netip()) && (storage.Contains(dst.Netip()) || src.Netip() == storage.Addr().Next()) {
		return true // of what stays within, no policy says anything; the gateway is exempt
	}
	out := table.Judge(policy.Egress, table.Pod(src), dst, proto, port, 0)
	in := table.Judge(policy.Ingress, table.Pod(dst), src, proto, port, 0)
	return out.Allowed && in.Allowed
}
