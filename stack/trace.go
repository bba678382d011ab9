package stack

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"podgate/kube"
	"podgate/nat"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// The stages of a decision, in order.
const (
	stageAntiSpoof  = "anti-spoofing"
	stageService    = "service"
	stageEgress     = "egress policy"
	stageIngress    = "ingress policy"
	stageRoute      = "route"
	stageMasquerade = "masquerade"
	stageMapping    = "mapping"
)

// TraceStage is what one stage found, in a sentence.
type TraceStage struct {
	Stage string `json:"stage"`
	Text  string `json:"text"`
}

// Trace collects a line a stage. A nil Trace collects nothing, and costs nothing.
type Trace struct{ Stages []TraceStage }

// TraceQuery is a packet that might be sent.
type TraceQuery struct {
	Pod     kube.Name   // sender; zero: the local port
	Port    flow.PortID // sender by attachment, instead of Pod
	Name    string      // the interface that Pod sends from; empty: as its routes would have it
	Src     netip.Addr  // zero: the sender's address of Dst's family
	Dst     netip.Addr
	Proto   packet.Proto // ICMP means ICMPv6 when Dst is IPv6
	SrcPort uint16       // zero: 40000; a Service's choice of backend depends on it
	DstPort uint16
}

// TraceResult is the production decision about a TraceQuery, explained.
type TraceResult struct {
	Query    string       `json:"query"` // "tcp 10.244.0.4:40000 > 10.96.0.1:80"
	Stages   []TraceStage `json:"stages"`
	Verdict  string       `json:"verdict"` // forward, drop, reject
	Reason   string       `json:"reason,omitempty"`
	Service  string       `json:"service,omitempty"`  // namespace/name:port
	Backend  string       `json:"backend,omitempty"`  // address:port, and the pod's name
	Policies []string     `json:"policies,omitempty"` // that deny, or the rules that allow
	Audited  []string     `json:"audited,omitempty"`  // policies in audit mode that would have denied
	Out      string       `json:"out,omitempty"`      // "shop/web", "local"
	Sent     string       `json:"sent,omitempty"`     // the tuple as it would leave
}

// Delivered says whether the packet would arrive.
func (r TraceResult) Delivered() bool { return r.Verdict == Forward.String() }

func (r TraceResult) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.Query)
	for _, s := range r.Stages {
		fmt.Fprintf(&b, "  %-15s %s\n", s.Stage, s.Text)
	}
	fmt.Fprintf(&b, "  => %s", r.Verdict)
	if r.Reason != "" {
		fmt.Fprintf(&b, ": %s", r.Reason)
	}
	if r.Out != "" {
		fmt.Fprintf(&b, " to %s as %s", r.Out, r.Sent)
	}
	return b.String()
}

func (t *Trace) add(stage, format string, args ...any) {
	t.Stages = append(t.Stages, TraceStage{stage, fmt.Sprintf(format, args...)})
}

func (t *Trace) antiSpoof(q *query, r Reason) {
	switch {
	case t == nil:
	case r != None:
		t.add(stageAntiSpoof, "%s is not an address of %s", q.Src, q.port.place())
	case q.port.Local:
		t.add(stageAntiSpoof, "%s comes through the gateway's own stack, and is no pod's", q.Src)
	default:
		t.add(stageAntiSpoof, "%s is an address of %s", q.Src, q.port.place())
	}
}

func (t *Trace) service(q *query, d *decision, r Reason) {
	if t == nil {
		return
	}
	name := serviceName(d.service)
	switch r {
	case None:
		switch {
		case d.backend == nil:
			t.add(stageService, "%s is no Service address: unchanged", q.Dst)
		default:
			t.add(stageService, "%s is Service %s: backend %s, %s", addrPort(q.Dst, q.DstPort), name, backendName(d.backend, d.to.DstPort), why(&d.choice))
		}
	case ServiceNoEndpoints:
		t.add(stageService, "Service %s has no ready endpoint", name)
	case ServiceUnknownPort:
		if q.SrcPort == 0 && q.DstPort == 0 {
			t.add(stageService, "%s is a Service address: it answers on its ports alone, not to %s", q.Dst, protoName(q.Proto))
			return
		}
		t.add(stageService, "%s is a Service address, but no Service listens on %s port %d of it", q.Dst, protoName(q.Proto), q.DstPort)
	case ServiceNoLocal:
		t.add(stageService, "Service %s has traffic policy Local and no ready endpoint on this node", name)
	case ServiceSourceDenied:
		t.add(stageService, "%s is not in loadBalancerSourceRanges of Service %s", q.Src, name)
	default:
		t.add(stageService, "%s is in the Service range, but no Service has it", q.Dst)
	}
}

func (t *Trace) mapped(q *query, d *decision, r Reason) {
	switch {
	case t == nil:
	case r != None:
		t.add(stageMapping, "%s is a mapping of a pod, and lets in only whom the pod has spoken to", addrPort(q.Dst, q.DstPort))
	case d.mapping != nil:
		t.add(stageMapping, "%s is a mapping of %s", addrPort(q.Dst, q.DstPort), addrPort(d.to.Dst, d.to.DstPort))
	}
}

// why says how a backend came to be chosen, and from which.
func why(c *nat.Choice) string {
	text := "chosen by hash"
	switch c.Why {
	case nat.ByClient:
		text = "chosen by hash of the client's address (sessionAffinity ClientIP)"
	case nat.ByLoad:
		text = "chosen for having the fewest conversations (least-connections)"
	case nat.BySticky:
		text = "remembered for the client (sessionAffinity ClientIP)"
	}
	from := "of 1 ready"
	if c.From > 1 {
		from = fmt.Sprintf("of %d ready", c.From)
	}
	if c.Leaving {
		from = fmt.Sprintf("of %d that terminate and still serve, as none is ready", c.From)
	}
	if c.Local {
		from += " on this node (traffic policy Local)"
	}
	if c.Hinted {
		from += " hinted for here (topology hints)"
	}
	return text + ", " + from
}

func (t *Trace) judge(s *Snapshot, dir policy.Direction, d *decision, r Reason) {
	if t == nil {
		return
	}
	stage, subject, pod, verb := stageEgress, d.to.Src, d.srcPod, "send to"
	peer := d.to.Dst
	if dir == policy.Ingress {
		stage, subject, pod, verb = stageIngress, d.to.Dst, d.dstPod, "receive from"
		peer = d.to.Src
	}
	v := d.judged[dir]
	switch {
	case s.policies == nil:
		t.add(stage, "there are no policies")
	case pod == nil:
		t.add(stage, "%s is no pod: no policy applies", subject)
	case d.to.Src == d.to.Dst:
		t.add(stage, "a pod may always speak to itself")
	case d.exempt[dir]:
		t.add(stage, "no policy concerns what stays within a further network of %s", s.who(subject))
	case r != None && v.By != nil:
		t.add(stage, "%s may not %s %s: denied by %s", s.who(subject), verb, s.who(peer), v.By)
	case r != None:
		t.add(stage, "%s may not %s %s: isolated by %s, and no rule allows it", s.who(subject), verb, s.who(peer), policyNames(v.Denying))
	case v.By != nil:
		t.add(stage, "%s may %s %s: allowed by %s", s.who(subject), verb, s.who(peer), v.By)
	case v.Isolated:
		t.add(stage, "%s may %s %s: the node is exempt", s.who(subject), verb, s.who(peer))
	case len(v.Audited) == 0 && pod.Selected(dir):
		t.add(stage, "%s may %s %s: no rule of a cluster policy matches, and no other policy selects it", s.who(subject), verb, s.who(peer))
	case len(v.Audited) == 0:
		t.add(stage, "no policy selects %s", s.who(subject))
	}
	if len(v.Audited) > 0 {
		t.add(stage, "%s may %s %s for the time being: %s would deny it, but only audits", s.who(subject), verb, s.who(peer), policyNames(v.Audited))
	}
}

func (t *Trace) route(s *Snapshot, q *query, d *decision, r Reason) {
	if t == nil {
		return
	}
	dst := d.to.Dst
	switch r {
	case None:
		how := "switched within the segment"
		switch {
		case d.routed:
			how = "routed, the TTL counts down"
		case q.port.Local:
			how = "from the gateway, as it is"
		case d.out.Local:
			how = "the gateway itself"
		}
		if d.out.Local && d.routed && d.backend == nil {
			how = "outside the cluster, dialled again from the gateway's own namespace"
		}
		t.add(stageRoute, "%s is behind %s: %s", dst, d.out.place(), how)
	case UplinkFiltered:
		t.add(stageRoute, "%s is not reached by %s: Services are, and mappings", dst, q.port.label())
	case GatewayNotServed:
		t.add(stageRoute, "%s is the gateway's address in network %s, which answers pings alone", dst, s.gateways[dst].Name)
	case NoSuchPod:
		t.add(stageRoute, "%s is a pod address that no attached pod has", dst)
	case PodAwaited:
		t.add(stageRoute, "%s is the address of a pod that is about to be attached again", dst)
	case WrongMAC:
		t.add(stageRoute, "the frame is addressed to neither the gateway nor the owner of %s", dst)
	case EgressForbidden:
		t.add(stageRoute, "%s may not be reached from pods", dst)
	case EgressOff:
		t.add(stageRoute, "%s is outside the cluster, and egress is off", dst)
	case ServiceUnallocated:
		t.add(stageRoute, "%s is in the Service range, but no Service has it", dst)
	default:
		t.add(stageRoute, "there is no way to %s", dst)
	}
}

func (t *Trace) masquerade(q *query, d *decision, r Reason) {
	switch {
	case t == nil:
	case r == NoRoute:
		t.add(stageMasquerade, "the gateway has no address of that family at %s", d.out.label())
	case r != None:
		t.add(stageMasquerade, "%s would get its own packet back", q.port.label())
	case d.masquerade && d.out == d.uplink:
		t.add(stageMasquerade, "by %s: the other side sees the gateway's address there, %s", d.out.label(), d.to.Src)
	case d.masquerade && d.uplink != nil:
		t.add(stageMasquerade, "hairpin: %s sees a mapping of %s, %s, as its client", d.out.label(), d.uplink.label(), d.to.Src)
	case d.masquerade && (q.port.Local || q.port.Masquerade != nil):
		t.add(stageMasquerade, "by %s: the other side sees the gateway, %s, as its client", d.out.label(), d.to.Src)
	case d.masquerade:
		t.add(stageMasquerade, "hairpin: %s sees the gateway, %s, as its client", d.out.label(), d.to.Src)
	default:
		t.add(stageMasquerade, "not needed: %s is seen as it is", d.to.Src)
	}
}

// who names an address: its pod where there is one.
func (s *Snapshot) who(a packet.Addr) string {
	if at := s.owner[a]; at != nil && !at.Local {
		return at.label()
	}
	return a.String()
}

func serviceName(sp *nat.ServicePort) string {
	if sp == nil {
		return ""
	}
	if sp.Service.Name == "" {
		return fmt.Sprintf("hostPort of %s:%d", sp.Pod, sp.Port)
	}
	if sp.Name == "" {
		return fmt.Sprintf("%s:%d", sp.Service, sp.Port)
	}
	return fmt.Sprintf("%s:%s", sp.Service, sp.Name)
}

// backendName names a backend, and the port if the conversation arrives at another
// than its own (0: it does not).
func backendName(b *nat.Backend, port uint16) string {
	if b == nil {
		return ""
	}
	at := addrPort(b.Addr, cmp.Or(port, b.Port))
	if b.Pod.Name == "" {
		return at
	}
	return fmt.Sprintf("%s (%s)", at, b.Pod)
}

func policyNames(ps []*policy.Policy) string {
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.Name.String()
	}
	return strings.Join(words, ", ")
}

func addrPort(a packet.Addr, port uint16) string {
	return netip.AddrPortFrom(a.Netip(), port).String()
}

func protoName(p packet.Proto) string { return strings.ToLower(p.String()) }

// ends are the two sides of a tuple, with their ports where it has any.
func ends(t packet.Tuple) (src, dst string) {
	if t.SrcPort == 0 && t.DstPort == 0 {
		return t.Src.String(), t.Dst.String()
	}
	return addrPort(t.Src, t.SrcPort), addrPort(t.Dst, t.DstPort)
}

func tupleString(t packet.Tuple) string {
	src, dst := ends(t)
	return fmt.Sprintf("%s %s > %s", protoName(t.Proto), src, dst)
}

// ask runs the production decision for a packet that nobody sent.
func (w *worker) ask(tq TraceQuery) TraceResult {
	s := w.snap
	dst := packet.AddrFrom(tq.Dst)
	from := s.local
	if tq.Port != 0 {
		from = s.port(tq.Port)
	} else if tq.Pod.Name != "" {
		from = s.sender(tq, dst)
	}
	if from == nil {
		who := cmpName(tq.Pod)
		if tq.Name != "" {
			who = tq.Name + " of " + who
		}
		return TraceResult{Verdict: Drop.String(), Reason: NoSuchPod.String(),
			Stages: []TraceStage{{stageAntiSpoof, fmt.Sprintf("%s is not attached", who)}}}
	}
	q := query{port: from, dstMAC: s.gatewayMAC}
	q.Tuple = packet.Tuple{Dst: dst, Proto: tq.Proto, SrcPort: tq.SrcPort, DstPort: tq.DstPort}
	switch {
	case tq.Src.IsValid():
		q.Src = packet.AddrFrom(tq.Src)
	case from.Local:
		q.Src = s.gateway(dst)
	default:
		q.Src = from.addrOf(dst)
	}
	if out := s.owner[dst]; out != nil && !out.Local && out.segment == from.segment {
		q.dstMAC = out.MAC // pods of a segment are on-link for each other
	}
	if q.Proto == packet.ICMP && !dst.Is4() {
		q.Proto = packet.ICMPv6
	}
	if q.SrcPort == 0 && tq.Proto != packet.ICMP && tq.Proto != packet.ICMPv6 {
		q.SrcPort = 40000
	}
	var tr Trace
	d := s.decide(q, w.view(nil, 0), &tr)
	res := TraceResult{
		Query:   tupleString(q.Tuple),
		Stages:  tr.Stages,
		Verdict: d.verdict.String(),
		Service: serviceName(d.service),
		Backend: backendName(d.backend, d.to.DstPort),
	}
	if d.verdict == Forward {
		res.Out, res.Sent = d.out.label(), tupleString(d.to)
		if d.masquerade {
			res.Sent += " (source port claimed when sent)"
		}
	} else {
		res.Reason = d.reason.String()
	}
	for _, n := range d.denying() {
		res.Policies = append(res.Policies, n.Name.String())
	}
	for _, v := range d.judged {
		if d.verdict == Forward && v.By != nil {
			res.Policies = append(res.Policies, v.By.String())
		}
		for _, p := range v.Audited {
			res.Audited = append(res.Audited, p.Name.String())
		}
	}
	return res
}

// pod is a pod's own interface.
func (s *Snapshot) pod(name kube.Name) *attachment {
	for _, at := range s.ports {
		if at != nil && !at.Local && at.Pod == name && !at.Secondary {
			return at
		}
	}
	return nil
}

// sender is the interface by which a pod would send to dst: that which is named,
// or has the source address, or is in dst's segment, or has the default route.
func (s *Snapshot) sender(q TraceQuery, dst packet.Addr) *attachment {
	own := s.pod(q.Pod)
	best, rank := own, 0
	for _, at := range s.ports {
		if at == nil || at.Local || at.Pod != q.Pod {
			continue
		}
		r := 0
		switch {
		case q.Name != "":
			if at.Name == q.Name {
				return at
			}
		case q.Src.IsValid() && at.has(packet.AddrFrom(q.Src)):
			r = 3
		case contains(s.segment(at.segment).Prefixes, dst):
			r = 2
		case at.Default:
			r = 1
		}
		if r > rank {
			best, rank = at, r
		}
	}
	if q.Name != "" {
		return nil
	}
	return best
}

// place is the label with the network, if it is not the cluster's own.
func (at *attachment) place() string {
	if at.Network == "" {
		return at.label()
	}
	return fmt.Sprintf("%s (%s, network %s)", at.label(), at.Name, at.Network)
}

func cmpName(n kube.Name) string {
	if n.Name == "" {
		return "the gateway's own stack"
	}
	return "pod " + n.String()
}
