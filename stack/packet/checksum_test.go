package packet

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// RFC 1071, 3: the sum of 00 01 f2 03 f4 f5 f6 f7 is ddf2.
func TestRFC1071Example(t *testing.T) {
	if got := Checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != 0x220d {
		t.Errorf("got %#04x, want 0x220d", got)
	}
}

// RFC 1624, 4: a word 5555 that becomes 3285 takes checksum dd2f to 0000.
func TestRFC1624Example(t *testing.T) {
	d := Delta([]byte{0x55, 0x55}, []byte{0x32, 0x85})
	if got := UpdateChecksum(0xdd2f, d); got != 0 {
		t.Errorf("got %#04x, want 0", got)
	}
}

func TestChecksumOfAnyLengthEqualsNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 300)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	ones := make([]byte, 300)
	for i := range ones {
		ones[i] = 0xff
	}
	for n := range b {
		for _, b := range [][]byte{b, ones} {
			if got, want := Checksum(b[:n]), ^uint16(naiveSum(0, b[:n])); got != want {
				t.Fatalf("%d bytes: got %#04x, want %#04x", n, got, want)
			}
		}
	}
	if got, want := sum20(b), sum(0, b[:20]); got != want {
		t.Errorf("sum20 is %#04x, want %#04x", got, want)
	}
}

func TestTransportChecksumIsFromScratch(t *testing.T) {
	for _, tu := range []Tuple{tcp4, tcp6, udp4, udp6, lite4, ping4, ping6} {
		p := must(full(tu, "payload"))
		at := p.L4 + checksumOffset(tu.Proto)
		got := p.TransportChecksum()
		if want := uint16(p.Frame.Eth()[at])<<8 | uint16(p.Frame.Eth()[at+1]); got != want {
			t.Errorf("%v: got %#04x, want %#04x", tu.Proto, got, want)
		}
		if got, want := p.PseudoSum(), uint16(naivePseudo(tu, p.End-p.L4)); got != want {
			t.Errorf("%v: pseudo sum %#04x, want %#04x", tu.Proto, got, want)
		}
	}
}

// RFC 3720, B.4: 32 bytes of zero have the CRC32c 8a9136aa.
func TestCRCIsCastagnoli(t *testing.T) {
	if got := crc32.Checksum(make([]byte, 32), castagnoli); got != 0x8a9136aa {
		t.Errorf("got %#08x", got)
	}
}

func TestCRCDeltaEqualsRecomputation(t *testing.T) {
	for _, n := range []int{12, 13, 100, 4100, 9000} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i * 7)
		}
		old := SCTPChecksum(b)
		diff := []byte{0x12, 0x34, 0xfe, 0x01}
		for i := range diff {
			b[i] ^= diff[i]
		}
		if got, want := old^crcDelta(diff, n), SCTPChecksum(b); got != want {
			t.Errorf("%d bytes: got %#08x, want %#08x", n, got, want)
		}
	}
}
