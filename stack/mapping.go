package stack

import (
	"podgate/nat"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Theory of operation
//
// By default a masquerading port maps by conversation: a source port is claimed
// for each, and one external port serves as many pods as it has peers. What a
// peer sees of a pod says nothing about what another sees, and nobody comes in
// who was not asked (RFC 4787: address and port-dependent mapping and filtering).
//
// With Masquerade.IndependentMapping a pod's endpoint (address, port, protocol)
// has one external endpoint for all its peers, and that is nobody else's: what
// STUN and ICE rest on. It is claimed with the first conversation and lives as
// long as any of them does and, but for TCP, Config.MappingTimeout longer. An external
// port that a Service has is never claimed.
//
//	outbound   pod:port -> its mapping -> peer              made here if it is not there
//	inbound    peer -> external endpoint -> pod:port        with IndependentFiltering; else dropped
//	hairpin    pod -> another's external endpoint -> that   its source is its own external endpoint
//
// What comes in, and what turns back, is a conversation like any other: policies
// judge it at both ends, by the pods' addresses.

// Masquerade is how a port gives what leaves by it the gateway's address. The
// behaviours are named as in RFC 4787, and hold for every protocol with ports, and
// for ICMP echo by its identifier (RFC 5382, RFC 5508).
type Masquerade struct {
	// Ports are the first and the last source port that may be used; zero: a pod's
	// own is kept wherever it is free, and of others Config.MasqueradePorts are.
	Ports [2]uint16

	IndependentMapping   bool // else address and port-dependent
	IndependentFiltering bool // likewise; takes IndependentMapping
}

// keeps says whether a pod's own port may be used as it is.
func (m *Masquerade) keeps(port uint16) bool {
	return m.Ports == [2]uint16{} || m.Ports[0] <= port && port <= m.Ports[1]
}

// endpoint is one side of conversations. The port of ICMP is its identifier.
type endpoint struct {
	addr  packet.Addr
	port  uint16
	proto packet.Proto
}

// mapping joins a pod's endpoint with an external one.
type mapping struct {
	inner, outer endpoint
	uplink       flow.PortID
	flows        int   // that go by it
	until        int64 // when it ends, without flows
}

func (m *mapping) over(now int64) bool { return m.flows == 0 && now >= m.until }

// mappings belongs to the worker: decisions read it, commit writes it.
type mappings struct {
	byInner map[mappedFrom]*mapping
	byOuter map[endpoint]*mapping
}

type mappedFrom struct {
	endpoint
	outer packet.Addr
}

// passage is the mappings that a flow goes by: that of its source and, if it was
// sent to one, that of its destination.
type passage struct{ from, to *mapping }

func newMappings() *mappings {
	return &mappings{byInner: map[mappedFrom]*mapping{}, byOuter: map[endpoint]*mapping{}}
}

// at is the mapping that has the external endpoint e, or nil.
func (ms *mappings) at(e endpoint, now int64) *mapping {
	if m := ms.byOuter[e]; m != nil && !m.over(now) {
		return m
	}
	return nil
}

// of is the mapping of a pod's endpoint at an external address, or nil.
func (ms *mappings) of(inner endpoint, outer packet.Addr, now int64) *mapping {
	if m := ms.byInner[mappedFrom{inner, outer}]; m != nil && !m.over(now) {
		return m
	}
	return nil
}

// add makes a mapping, in place of those at both ends that are over.
func (ms *mappings) add(m *mapping) {
	for _, old := range []*mapping{ms.byOuter[m.outer], ms.byInner[mappedFrom{m.inner, m.outer.addr}]} {
		if old != nil {
			ms.forget(old)
		}
	}
	ms.byOuter[m.outer], ms.byInner[mappedFrom{m.inner, m.outer.addr}] = m, m
}

func (ms *mappings) forget(m *mapping) {
	delete(ms.byOuter, m.outer)
	delete(ms.byInner, mappedFrom{m.inner, m.outer.addr})
}

// forgetPort ends the mappings of a port that is gone: of its addresses, which may
// become another's, or at it.
func (ms *mappings) forgetPort(gone *attachment) {
	for _, m := range ms.byOuter {
		if m.uplink == gone.id || gone.has(m.inner.addr) {
			ms.forget(m)
		}
	}
}

// hold notes that a flow goes by p's mappings, release that it is gone, which saw
// its last packet at last.
func (p *passage) hold() {
	for _, m := range []*mapping{p.from, p.to} {
		if m != nil {
			m.flows++
		}
	}
}

func (p *passage) release(last, timeout int64) {
	for _, m := range []*mapping{p.from, p.to} {
		if m != nil {
			m.flows--
			if m.inner.proto != packet.TCP {
				m.until = max(m.until, last+timeout)
			}
		}
	}
}

// release tells the mappings of a flow that it is gone.
func (w *worker) release(f *flow.Flow) {
	if c, ok := w.flows.Deps(f).(*cookie); ok && c.by != nil {
		c.by.release(f.LastSeen, int64(w.cfg.MappingTimeout))
	}
}

// expire looks at some mappings, in the map's random order, and forgets those
// that are over.
func (ms *mappings) expire(now int64) {
	left := 1000
	for _, m := range ms.byOuter {
		if m.over(now) {
			ms.forget(m)
		}
		if left--; left == 0 {
			return
		}
	}
}

// mapped turns the external endpoint of a mapping into the pod's.
func (s *Snapshot) mapped(q *query, v *view, d *decision) Reason {
	if v.mappings == nil || d.service != nil || q.port.Local || s.gateways[q.Dst] == nil {
		return None
	}
	m := v.mappings.at(endpoint{q.Dst, q.DstPort, q.Proto}, v.now)
	if m == nil {
		return None
	}
	if q.port.id == m.uplink && !q.port.Masquerade.IndependentFiltering {
		return UplinkFiltered
	}
	d.mapping = m
	d.to.Dst, d.to.DstPort = m.inner.addr, m.inner.port
	return None
}

// mapping is the mapping of a conversation's source at the uplink that it is
// masqueraded for, made if it is not there; nil if no external port is left.
func (w *worker) mapping(q *query, outer packet.Addr, uplink *attachment) *mapping {
	inner := endpoint{q.Src, q.SrcPort, q.Proto}
	if m := w.mappings.of(inner, outer, w.now); m != nil {
		return m
	}
	free := func(port uint16) bool {
		_, service := w.snap.lookup(packet.Tuple{Dst: outer, DstPort: port, Proto: q.Proto})
		return service == nat.NotService && w.mappings.at(endpoint{outer, port, q.Proto}, w.now) == nil
	}
	port, ok := w.pick(packet.Tuple{Src: outer, Proto: q.Proto}, q.Tuple, uplink.Masquerade, free)
	if !ok {
		return nil
	}
	m := &mapping{inner: inner, outer: endpoint{outer, port, q.Proto}, uplink: uplink.id}
	w.mappings.add(m)
	return m
}
