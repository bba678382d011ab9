package nat

import (
	"fmt"
	"testing"

	"podgate/stack/packet"
)

func backends(n int) []*Backend {
	bs := make([]*Backend, n)
	for i := range bs {
		a := addr("10.244.0.0")
		a[14], a[15] = byte(i>>8), byte(i)
		bs[i] = &Backend{Addr: a, Port: 8080}
	}
	return bs
}

// hashes are those of n clients.
func hashes(n int) []uint64 {
	hs := make([]uint64, n)
	for i := range hs {
		hs[i] = hashTuple(packet.Tuple{Src: client, Dst: addr("10.96.0.1"), SrcPort: uint16(i), DstPort: uint16(i >> 16), Proto: packet.TCP})
	}
	return hs
}

var poolSizes = []int{1, 2, 3, 4, 5, 10, 64, tableFrom, tableFrom + 1, 500, 1000}

func TestPoolIsBalanced(t *testing.T) {
	for _, n := range poolSizes {
		p := newPool(group{backends: backends(n)})
		const each = 400
		got := map[*Backend]int{}
		for _, h := range hashes(each * n) {
			got[p.pick(h)]++
		}
		for _, b := range p.backends {
			if c := got[b]; c < each*6/10 || c > each*14/10 {
				t.Errorf("%d backends: %v got %d of %d picks, want about %d", n, b.Addr, c, each*n, each)
			}
		}
	}
}

func TestPoolMovesOnlyTheShareOfWhatGoes(t *testing.T) {
	hs := hashes(50_000)
	for _, n := range poolSizes {
		if n == 1 || n == tableFrom+1 { // at the one size where the method changes, all moves
			continue
		}
		bs := backends(n)
		gone := n / 3
		before := newPool(group{backends: bs})
		after := newPool(group{backends: append(append([]*Backend(nil), bs[:gone]...), bs[gone+1:]...)})
		moved, lost := 0, 0
		for _, h := range hs {
			was := before.pick(h)
			switch is := after.pick(h); {
			case was == bs[gone]:
				lost++
			case was != is:
				moved++
			}
		}
		limit := 0
		if n > tableFrom {
			limit = len(hs) / 50 // what Maglev moves besides (paper, 5.3)
		}
		if moved > limit {
			t.Errorf("one of %d backends gone: %d of %d others moved, want at most %d (its own share: %d)", n, moved, len(hs), limit, lost)
		}
	}
}

func TestMaglevTableIsBalanced(t *testing.T) {
	p := newPool(group{backends: backends(1000)})
	got := make([]int, 1000)
	for _, i := range p.table {
		got[i]++
	}
	for i, c := range got {
		if want := tableSize / 1000; c < want || c > want+1 {
			t.Errorf("backend %d has %d slots, want %d or one more", i, c, want)
		}
	}
}

func TestPoolBeyondHalfTheTable(t *testing.T) {
	p := newPool(group{backends: backends(tableSize/2 + 1)})
	if p.table != nil {
		t.Error("a table of crude shares was made")
	}
	if p.pick(1) == p.pick(2) && p.pick(2) == p.pick(3) {
		t.Error("all hashes get one backend")
	}
}

// The choice must survive a restart: these are values of an earlier process.
func TestChoiceIsTheSameAfterARestart(t *testing.T) {
	few, many := newPool(group{backends: backends(5)}), newPool(group{backends: backends(300)})
	var got []string
	for _, h := range hashes(6) {
		got = append(got, fmt.Sprintf("%s %s", few.pick(h).Addr, many.pick(h).Addr))
	}
	want := []string{
		"10.244.0.4 10.244.0.71", "10.244.0.4 10.244.0.183", "10.244.0.1 10.244.0.161",
		"10.244.0.1 10.244.0.158", "10.244.0.3 10.244.0.196", "10.244.0.0 10.244.0.54",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestChooseDoesNotAllocate(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, balancer(30080, "198.51.100.7"))
	w.st.Services[kubeName("web")].Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8", "192.0.2.0/24"}
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"))
	tab, _ := w.compile()
	for _, dst := range []string{"10.96.0.1", "198.51.100.7", "10.244.0.9", "10.96.9.9"} {
		tuple := tcp(client, addr(dst), 80)
		if n := testing.AllocsPerRun(100, func() { decide(tab, tuple, true) }); n != 0 {
			t.Errorf("to %s: %v allocations, want 0", dst, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 30, tableFrom, 1000} {
		p := newPool(group{backends: backends(n)})
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := uint64(0)
			for b.Loop() {
				h += seed0
				p.pick(h)
			}
		})
	}
}
