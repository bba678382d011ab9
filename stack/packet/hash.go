package packet

import (
	"encoding/binary"
	"math/bits"
)

// Odd 64-bit constants with balanced bits, as wyhash uses them.
const (
	mixA = 0xa0761d6478bd642f
	mixB = 0xe7037ed1a0b428db
	mixC = 0x8ebc6af09c88c6e3
	mixD = 0x589965cc75374cc3
	mixE = 0x1d8e4e27c47d124f
)

// Hash is a well distributed 64-bit hash of t. The same seed gives the same
// hash on every machine and in every release, so that a choice derived from it
// survives a restart; a secret random seed keeps others from steering their
// packets into one bucket. It is not symmetric: Reverse hashes differently.
func (t *Tuple) Hash(seed uint64) uint64 {
	src := mix(binary.LittleEndian.Uint64(t.Src[:])^seed^mixA, binary.LittleEndian.Uint64(t.Src[8:])^mixB)
	dst := mix(binary.LittleEndian.Uint64(t.Dst[:])^seed^mixC, binary.LittleEndian.Uint64(t.Dst[8:])^mixD)
	rest := uint64(t.SrcPort) | uint64(t.DstPort)<<16 | uint64(t.Proto)<<32
	return mix(src^rest^mixE, dst^bits.RotateLeft64(rest, 29)^seed)
}

// HashAddr is Hash for an address alone, for choices that look at the client
// only.
func HashAddr(a Addr, seed uint64) uint64 {
	h := mix(binary.LittleEndian.Uint64(a[:])^seed^mixA, binary.LittleEndian.Uint64(a[8:])^mixB)
	return mix(h^mixE, seed^mixC)
}

// mix folds the 128-bit product of a and b.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
