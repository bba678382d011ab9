package nat

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"podgate/stack/packet"
)

// Choose names the backend for a conversation that opens with tuple, whose
// destination Lookup answered with sp. External means that the client is
// outside the cluster: only then externalTrafficPolicy matters, as pods that
// use an external address are short-circuited to the whole Service.
//
// The choice is a function of tuple and the eligible backends alone, so that a
// restarted gateway chooses the same. A sticky backend, remembered for the
// client (session affinity) or for the flow (revalidation), is kept while it is
// eligible; the Backend returned is then this Table's. Loads are asked where
// the Service wants least connections; nil: it is chosen as elsewhere.
func (sp *ServicePort) Choose(tuple packet.Tuple, external bool, sticky *Backend, loads Loads) Choice {
	c := Choice{Port: sp, Local: sp.InternalLocal}
	if tuple.Dst != sp.ClusterIP {
		c.Local = external && sp.ExternalLocal
		if !sp.admits(tuple) {
			c.Outcome = NotAllowed
			return c
		}
	}
	from := sp.cluster
	if c.Local {
		from = sp.node
	}
	if from == nil {
		c.Outcome = NoEndpoints
		if c.Local && sp.usable {
			c.Outcome = NoLocal
		}
		return c
	}
	c.Outcome = Translate
	c.From, c.Leaving, c.Hinted = len(from.backends), from.leaving, !c.Local && sp.hinted
	if sticky != nil {
		if c.Backend = from.find(sticky); c.Backend != nil {
			c.Why = BySticky
			return c
		}
	}
	hash := hashTuple(tuple)
	if sp.AffinityTimeout > 0 {
		c.Why, hash = ByClient, hashClient(tuple.Src, sp.ID)
	}
	if sp.LeastConnections && loads != nil {
		c.Why, c.Backend = ByLoad, from.pickLeast(hash, func(b *Backend) int { return loads.Load(sp.ID, b) })
	} else {
		c.Backend = from.pick(hash)
	}
	return c
}

// TargetPort is where a conversation that opens with tuple arrives at b.
func (sp *ServicePort) TargetPort(tuple packet.Tuple, b *Backend) uint16 {
	if sp.LastPort == 0 || tuple.Dst != sp.ClusterIP && !slices.Contains(sp.external, tuple.Dst) {
		return b.Port
	}
	return b.Port + (tuple.DstPort - sp.Port)
}

// Drains says whether the conversations with b are to end after sp.Drain: b is
// no endpoint any more, or not a ready one.
func (sp *ServicePort) Drains(b *Backend) bool {
	return sp.Drain > 0 && !slices.ContainsFunc(sp.Endpoints, func(e Endpoint) bool {
		return e.Ready && compareBackends(e.Backend, b) == 0
	})
}

// admits applies loadBalancerSourceRanges, which guard the load balancer
// addresses alone.
func (sp *ServicePort) admits(tuple packet.Tuple) bool {
	if len(sp.sources) == 0 {
		return true
	}
	for _, a := range sp.balancers {
		if a != tuple.Dst {
			continue
		}
		client := tuple.Src.Netip()
		for _, p := range sp.sources {
			if p.Contains(client) {
				return true
			}
		}
		return false
	}
	return true
}

// Seeds of the hashes: constants, so that a restarted gateway chooses alike.
const (
	seed0 = 0x9e3779b97f4a7c15
	seed1 = 0xbf58476d1ce4e5b9
	seed2 = 0x94d049bb133111eb
	seed3 = 0xd6e8feb86659fd93
)

// mix folds the 128-bit product of a and b.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func hashAddr(h uint64, a packet.Addr) uint64 {
	return mix(h^binary.BigEndian.Uint64(a[:8])^seed1, binary.BigEndian.Uint64(a[8:])^seed2)
}

func hashTuple(t packet.Tuple) uint64 {
	h := hashAddr(seed0, t.Src)
	h = mix(h^seed3, hashAddr(seed1, t.Dst))
	h ^= uint64(t.SrcPort)<<32 | uint64(t.DstPort)<<16 | uint64(t.Proto)
	return mix(mix(h^seed2, seed0), seed3)
}

func hashClient(a packet.Addr, id uint64) uint64 {
	return mix(hashAddr(seed0, a)^id, seed3)
}
