package flow

import "podgate/stack/packet"

// PortID names an attachment; 0 is none. It is not an L4 port.
type PortID uint16

// Key finds a leg: the tuple as it arrives, and where it arrives.
type Key struct {
	packet.Tuple
	Port PortID
}

// Hash spreads keys; equal tuples of different ports have different hashes.
func (k *Key) Hash(seed uint64) uint64 {
	return k.Tuple.Hash(seed + uint64(k.Port)*0x9e3779b97f4a7c15)
}

// is compares keys word by word.
func (k *Key) is(o *Key) bool {
	return k.Src == o.Src && k.Dst == o.Dst && k.SrcPort == o.SrcPort && k.DstPort == o.DstPort &&
		k.Proto == o.Proto && k.Port == o.Port
}
