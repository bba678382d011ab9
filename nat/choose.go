package nat

import (
	"encoding/binary"
	"math/bits"

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
// eligible; the Backend returned is then this Table's.
func (sp *ServicePort) Choose(tuple packet.Tuple, external bool, sticky *Backend) Choice {
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
	if sp.AffinityTimeout > 0 {
		c.Why = ByClient
		c.Backend = from.pick(hashClient(tuple.Src, sp.ID))
	} else {
		c.Backend = from.pick(hashTuple(tuple))
	}
	return c
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
