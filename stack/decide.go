package stack

import (
	"net/netip"

	"podgate/nat"
	"podgate/policy"
	"podgate/stack/packet"
)

// Theory of operation
//
// Decide says what shall happen to the first packet of a flow; every later
// packet replays the answer. It is a pure function of a snapshot, the packet's
// query and a read-only view of what the worker remembers: it takes no lock,
// reads no clock and claims nothing, so that the worker, revalidation and
// `podgate trace` all run the same code. Given a Trace it writes a line a stage.
//
//	anti-spoofing -> service -> egress policy -> ingress policy -> route -> masquerade
//
// (after service, what was sent to a mapping of the uplink: mapping.go).
//
// Policies are judged on the pods' addresses: after the Service was translated,
// before the source is. Replies are never decided: they are the reply leg of a
// flow that was. The node's own addresses are exempt from policies; package
// policy knows them.

// Verdict is what happens to a packet.
type Verdict uint8

const (
	Forward Verdict = iota
	Drop
	Reject // drop, and tell the sender
)

func (v Verdict) String() string { return [...]string{"forward", "drop", "reject"}[v] }

// query is what a decision is about: a packet as it arrived.
type query struct {
	packet.Tuple
	port   *attachment
	dstMAC packet.MAC
}

// view is what Decide may know beside the snapshot.
type view struct {
	now      int64
	affinity *affinity    // nil: nobody is remembered
	loads    nat.Loads    // nil: nobody counts
	mappings *mappings    // nil: there are none
	serving  *nat.Backend // of a flow that exists: kept while eligible, by TCP always
	arrives  uint16       // the port at serving
}

// deps is what a decision rested on. As long as the pointers are those that a
// newer snapshot gives, the decision is the same.
type deps struct {
	service *nat.ServicePort
	backend *nat.Backend
	srcPod  *policy.Pod
	dstPod  *policy.Pod
	egress  uint64 // Snapshot.egress, of a way out of the cluster
}

// decision is the outcome of decide.
type decision struct {
	verdict Verdict
	reason  Reason
	out     *attachment
	to      packet.Tuple // as it leaves; the source port is still to be claimed if masquerade is set
	routed  bool         // the TTL counts down
	deps

	exempt     [2]bool           // by policy.Direction: see Snapshot.exempt
	masquerade bool              // to.Src is the gateway's: a source port must be claimed
	uplink     *attachment       // at whose segment the gateway has to.Src; nil: in the cluster
	mapping    *mapping          // whose external endpoint the packet was sent to
	choice     nat.Choice        // how the backend was chosen
	judged     [2]policy.Verdict // by policy.Direction
}

// denying are the policies that denied: those that isolate a pod, or the one
// that has a rule to deny.
func (d *decision) denying() []*policy.Policy {
	switch d.reason {
	case PolicyEgressDenied:
		return d.judged[policy.Egress].Denying
	case PolicyIngressDenied:
		return d.judged[policy.Ingress].Denying
	}
	return nil
}

func (d *decision) refuse(from *attachment, r Reason) {
	d.reason, d.verdict = r, r.refusal(from)
}

// decide runs the stages until one refuses.
func (s *Snapshot) decide(q query, v view, tr *Trace) (d decision) {
	d.to = q.Tuple
	r := s.antiSpoof(&q)
	tr.antiSpoof(&q, r)
	if r == None {
		r = s.service(&q, &v, &d)
		tr.service(&q, &d, r)
	}
	if r == None {
		r = s.mapped(&q, &v, &d)
		tr.mapped(&q, &d, r)
	}
	if r == None {
		r = s.judge(policy.Egress, &q, &v, &d)
		tr.judge(s, policy.Egress, &d, r)
	}
	if r == None {
		r = s.judge(policy.Ingress, &q, &v, &d)
		tr.judge(s, policy.Ingress, &d, r)
	}
	if r == None {
		r = s.route(&q, &d)
		tr.route(s, &q, &d, r)
	}
	if r == None {
		r = s.masquerade(&q, &d)
		tr.masquerade(&q, &d, r)
	}
	if r != None {
		d.refuse(q.port, r)
	}
	return d
}

// antiSpoof: a pod speaks from its own addresses only. The gateway's own stack
// speaks for clients outside too, but not for pods.
func (s *Snapshot) antiSpoof(q *query) Reason {
	if q.port.Local {
		if at := s.owner[q.Src]; at != nil && at != q.port {
			return SpoofedIP
		}
		return None
	}
	if !s.mayUse(q.port, q.Src) {
		return SpoofedIP
	}
	return None
}

// service turns a Service address into one backend.
func (s *Snapshot) service(q *query, v *view, d *decision) Reason {
	sp, outcome := s.lookup(q.Tuple)
	d.deps.service = sp
	if outcome == nat.Translate {
		external := q.port.Local && !s.own[q.Src] || q.port.Router && !q.port.has(q.Src)
		sticky := v.serving
		if sticky == nil {
			sticky = v.affinity.recall(q.Src, sp, v.now)
		}
		d.choice = sp.Choose(q.Tuple, external, sticky, v.loads)
		if outcome, d.backend = d.choice.Outcome, d.choice.Backend; outcome == nat.Translate {
			d.to.DstPort = sp.TargetPort(q.Tuple, d.backend)
		}
	}
	if v.serving != nil && q.Proto == packet.TCP && d.backend != v.serving {
		outcome, d.backend, d.to.DstPort = nat.Translate, v.serving, v.arrives
	}
	switch outcome {
	case nat.NotService:
		return None
	case nat.Translate:
		d.to.Dst = d.backend.Addr
		return None
	case nat.NoEndpoints:
		return ServiceNoEndpoints
	case nat.UnknownPort:
		return ServiceUnknownPort
	case nat.NoLocal:
		return ServiceNoLocal
	case nat.NotAllowed:
		return ServiceSourceDenied
	default:
		return ServiceUnallocated
	}
}

// judge asks the policies of one end. A pod always reaches itself.
func (s *Snapshot) judge(dir policy.Direction, q *query, v *view, d *decision) Reason {
	subject, peer, denied := s.policyPod(d.to.Src), d.to.Dst, PolicyEgressDenied
	if dir == policy.Egress {
		d.srcPod = subject
	} else {
		subject, peer, denied = s.policyPod(d.to.Dst), d.to.Src, PolicyIngressDenied
		d.dstPod = subject
	}
	d.exempt[dir] = subject != nil && s.exempt(dir, q.port, d.to.Dst)
	if subject == nil || d.to.Src == d.to.Dst || d.exempt[dir] {
		d.judged[dir].Allowed = true
		return None
	}
	d.judged[dir] = s.policies.Judge(dir, subject, peer, d.to.Proto, d.to.DstPort, v.now)
	if d.judged[dir].Allowed {
		return None
	}
	return denied
}

// route finds the port that the packet leaves by.
func (s *Snapshot) route(q *query, d *decision) Reason {
	dst := d.to.Dst
	if q.port.Masquerade != nil && d.backend == nil && d.mapping == nil && s.gateways[dst] == nil {
		return UplinkFiltered
	}
	if out := s.owner[dst]; out != nil {
		toGateway, toPeer := q.dstMAC == s.gatewayMAC, q.dstMAC == out.MAC && q.port.segment == out.segment
		switch {
		case q.port.Local:
		case !toGateway && !toPeer:
			return WrongMAC
		case d.backend != nil:
			d.routed = true
		case toGateway:
			d.routed = !out.Local
		}
		d.out = out
		return None
	}
	behind, known := s.via(dst)
	switch {
	case s.gateways[dst] != nil:
		return GatewayNotServed
	case s.awaited[dst]:
		return PodAwaited
	case s.own[dst] || s.isPods(dst):
		return NoSuchPod
	case behind != nil && q.dstMAC == behind.MAC && q.port.segment == behind.segment && behind != q.port:
		d.out = behind
		return None
	case !q.port.Local && q.dstMAC != s.gatewayMAC:
		return WrongMAC
	case contains(s.serviceCIDRs, dst):
		return ServiceUnallocated
	case forbidden(dst) || contains(s.forbidden, dst):
		return EgressForbidden
	case known && behind == nil:
		return NoRoute
	case known:
		d.out, d.routed = behind, true
		return None
	case s.egressOff:
		return EgressOff
	case s.local == nil || q.port.Local:
		return NoRoute
	}
	d.out, d.routed, d.egress = s.local, true, s.egress
	return None
}

// forbidden are the destinations that never leave, whatever is configured:
// link-local, multicast, broadcast, unspecified and loopback.
func forbidden(a packet.Addr) bool {
	ip := a.Netip()
	return ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || ip.IsLoopback() ||
		ip == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// masquerade: what leaves by an uplink needs the address that the gateway has
// there as source. So does what a client outside sent to a port of the host, or at an
// uplink, if the pod is another node's, which would answer past us, and a packet that a Service
// leads back to the pod that it came from, for the same reason (hairpin). What one
// pod sends to another's mapping comes from its own, as it would outside (RFC 4787,
// REQ-9). The gateway's own stack hands us also what it sends to itself.
func (s *Snapshot) masquerade(q *query, d *decision) Reason {
	if d.mapping != nil && d.mapping.uplink != q.port.id {
		d.uplink = s.port(d.mapping.uplink)
		d.to.Src, d.masquerade = q.Dst, true
		return None
	}
	if (q.port.Local || q.port.Masquerade != nil) && d.out.Router && d.out.Masquerade == nil && !s.isPods(d.to.Src) {
		if gw := s.gateway(d.to.Src); gw != (packet.Addr{}) {
			d.to.Src, d.masquerade = gw, true
			return None
		}
		return NoRoute
	}
	if d.out.Masquerade != nil && d.out != q.port && s.isPods(d.to.Src) {
		d.uplink = d.out
		d.to.Src = s.segment(d.out.segment).gateway(d.to.Src)
		if d.masquerade = true; d.to.Src == (packet.Addr{}) {
			return NoRoute // the uplink is of the other family
		}
		return None
	}
	if q.port.Local || d.out != q.port && (d.backend == nil || d.out.Pod != q.port.Pod) {
		return None
	}
	gw := s.gateway(d.to.Src)
	if d.backend == nil || gw == (packet.Addr{}) {
		return PortLoop
	}
	d.to.Src, d.masquerade = gw, true
	return None
}
