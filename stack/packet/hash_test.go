package packet

import (
	"encoding/binary"
	"math/bits"
	"testing"
)

// A backend chosen by hash must be chosen again by the next release.
func TestHashIsStable(t *testing.T) {
	for _, c := range []struct {
		t    Tuple
		seed uint64
		want uint64
	}{
		{tcp4, 0, 0xd21231cc5a763480},
		{tcp6, 0x1234567890abcdef, 0xf11b786c99ebc65f},
	} {
		if got := c.t.Hash(c.seed); got != c.want {
			t.Errorf("got %#x, want %#x", got, c.want)
		}
	}
	if got := HashAddr(tcp4.Src, 7); got != 0xd914e5258a648c55 {
		t.Errorf("address: got %#x, want %#x", got, uint64(0xd914e5258a648c55))
	}
}

func TestHashIsDirectedAndSeeded(t *testing.T) {
	if back := tcp4.Reverse(); tcp4.Hash(1) == back.Hash(1) {
		t.Error("reverse hashes alike")
	}
	if tcp4.Hash(1) == tcp4.Hash(2) {
		t.Error("seeds hash alike")
	}
}

// Tuples that differ by little, as real ones do, fall evenly into buckets by
// low, high and middle bits: chi-square over 1024 buckets, whose mean is 1023
// and standard deviation 45.
func TestHashSpreads(t *testing.T) {
	const buckets, n = 1024, 1 << 17
	kinds := map[string]func(i int) Tuple{
		"ports":    func(i int) Tuple { t := tcp4; t.SrcPort = uint16(i); t.DstPort = uint16(i >> 16); return t },
		"clients":  func(i int) Tuple { t := tcp4; binary.BigEndian.PutUint32(t.Src[12:], 0x0af40000+uint32(i)); return t },
		"backends": func(i int) Tuple { t := udp6; binary.BigEndian.PutUint32(t.Dst[12:], uint32(i)); return t },
		"both": func(i int) Tuple {
			t := udp6
			binary.BigEndian.PutUint16(t.Src[14:], uint16(i))
			binary.BigEndian.PutUint16(t.Dst[14:], uint16(i>>9))
			return t
		},
		"swapped": func(i int) Tuple {
			t := tcp4
			binary.BigEndian.PutUint32(t.Src[12:], 0x0af40000+uint32(i>>1))
			if i&1 != 0 {
				t = t.Reverse()
			}
			return t
		},
	}
	for name, tuple := range kinds {
		for _, shift := range []int{0, 32, 54} {
			var count [buckets]int
			for i := range n {
				t := tuple(i)
				count[t.Hash(42)>>shift%buckets]++
			}
			chi := 0.0
			for _, c := range count {
				d := float64(c) - float64(n)/buckets
				chi += d * d / (float64(n) / buckets)
			}
			if chi < 750 || chi > 1300 {
				t.Errorf("%s, bits from %d: chi-square %.0f", name, shift, chi)
			}
		}
	}
}

// One bit of input flips half of the output.
func TestHashAvalanches(t *testing.T) {
	flips, trials := 0, 0
	for bit := range 16 * 8 * 2 {
		for i := range 64 {
			a := udp6
			a.SrcPort = uint16(i * 977)
			b := a
			if bit < 128 {
				b.Src[bit/8] ^= 1 << (bit % 8)
			} else {
				b.Dst[bit/8-16] ^= 1 << (bit % 8)
			}
			flips += bits.OnesCount64(a.Hash(9) ^ b.Hash(9))
			trials++
		}
	}
	if mean := float64(flips) / float64(trials); mean < 31 || mean > 33 {
		t.Errorf("a bit flips %.1f of 64 bits", mean)
	}
}
