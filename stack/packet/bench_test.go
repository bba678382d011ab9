package packet

import (
	"testing"
	"unsafe"
)

func TestHitPathDoesNotAllocate(t *testing.T) {
	var p, in Packet
	f := full(tcp4, "payload")
	rst, buf := full(tcp4, ""), make([]byte, MaxBuilt)
	e := icmpError(ICMPUnreachable, 3, udp4.Dst, udp4.Src, full(udp4, "x").Eth()[ip:])
	r, back := NewRewrite(tcp4, nat(tcp4)), NewRewrite(nat(tcp4), tcp4)
	er, eback := NewRewrite(udp4.Reverse(), nat(udp4.Reverse())), NewRewrite(nat(udp4.Reverse()), udp4.Reverse())
	sink := uint64(0)
	for name, do := range map[string]func(){
		"Decode": func() { Decode(&p, f) },
		"Apply": func() {
			Decode(&p, f)
			r.Apply(&p)
			Decode(&p, f)
			back.Apply(&p)
		},
		"ApplyError": func() {
			Decode(&p, e)
			p.Inner(&in)
			er.ApplyError(&p, &in)
			Decode(&p, e)
			p.Inner(&in)
			eback.ApplyError(&p, &in)
		},
		"Hash":     func() { sink += tcp4.Hash(1) },
		"BuildRST": func() { Decode(&p, rst); BuildRST(buf, &p) },
		"BuildICMPError": func() {
			Decode(&p, f)
			BuildICMPError(buf, &p, tcp4.Dst, ICMPUnreachable, 0, 0)
		},
	} {
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func TestRewriteFitsACacheLine(t *testing.T) {
	if n := unsafe.Sizeof(Rewrite{}); n > 64 {
		t.Errorf("a Rewrite takes %d bytes", n)
	}
}

func benchFrames() map[string]Frame {
	return map[string]Frame{
		"TCP4": full(tcp4, "payload"), "TCP6": full(tcp6, "payload"),
		"UDP4": full(udp4, "payload"), "GSO4": gso(tcp4, 60000, 1448),
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, f := range benchFrames() {
		b.Run(name, func(b *testing.B) {
			var p Packet
			for b.Loop() {
				if Decode(&p, f) != OK {
					b.Fatal("fault")
				}
			}
		})
	}
}

func BenchmarkApply(b *testing.B) {
	for name, f := range benchFrames() {
		b.Run(name, func(b *testing.B) {
			p := must(f)
			r := NewRewrite(p.Tuple, nat(p.Tuple))
			for b.Loop() {
				r.Apply(p)
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	t, sum := tcp4, uint64(0)
	for b.Loop() {
		sum += t.Hash(sum)
	}
}

func BenchmarkNewRewrite(b *testing.B) {
	old, new := tcp4, nat(tcp4)
	for b.Loop() {
		_ = NewRewrite(old, new)
	}
}

func BenchmarkChecksum(b *testing.B) {
	buf := make([]byte, 65536)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		Checksum(buf)
	}
}
