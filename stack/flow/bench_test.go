package flow

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"podgate/stack/packet"
)

// filled is a table of n established flows and their keys in random order.
func filled(b testing.TB, n int) (*Table, []Key) {
	table := New(Config{MaxFlows: n, PortShare: 1})
	keys := make([]Key, 0, 2*n)
	for i := range n {
		f := mustInsert(b, table, packet.TCP, i*2, 0)
		establish(table, f)
		keys = append(keys, f.Orig.Key, f.Reply.Key)
	}
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return table, keys
}

// BenchmarkHit is what the table costs a frame.
func BenchmarkHit(b *testing.B) {
	for _, n := range []int{1, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, keys := filled(b, n)
			i := 0
			for b.Loop() {
				f, l := table.Lookup(&keys[i], 1)
				table.Hit(f, l, packet.ACK, 1500, 1)
				if i++; i == len(keys) {
					i = 0
				}
			}
		})
	}
}

// BenchmarkHitWarm is BenchmarkHit in batches that are warmed first.
func BenchmarkHitWarm(b *testing.B) {
	for _, n := range []int{1, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, keys := filled(b, n)
			var hashes [MaxWarm]uint64
			var refs [MaxWarm]Ref
			for len(keys)%MaxWarm != 0 {
				keys = append(keys, keys...)
			}
			i := 0
			for b.Loop() {
				if i%MaxWarm == 0 {
					for j := range hashes {
						hashes[j] = table.Hash(&keys[i+j])
					}
					table.Warm(hashes[:], refs[:])
				}
				f, l := table.LookupAt(refs[i%MaxWarm], &keys[i], hashes[i%MaxWarm], 1)
				table.Hit(f, l, packet.ACK, 1500, 1)
				if i++; i == len(keys) {
					i = 0
				}
			}
		})
	}
}

// BenchmarkMiss is what a packet without a flow costs before it is decided.
func BenchmarkMiss(b *testing.B) {
	table, keys := filled(b, 100_000)
	i := 0
	for b.Loop() {
		keys[i].Port = 77
		table.Lookup(&keys[i], 1)
		if i++; i == len(keys) {
			i = 0
		}
	}
}

func BenchmarkInsertRemove(b *testing.B) {
	table, _ := filled(b, 100_000)
	table.cfg.MaxFlows *= 2
	table.portLimit *= 2
	o, r := legs(packet.UDP, 3, 1)
	for b.Loop() {
		f, _ := table.Insert(&o, &r, 0)
		table.Remove(f)
	}
}

// BenchmarkEvict is what a flood costs a full table, per packet.
func BenchmarkEvict(b *testing.B) {
	table := New(Config{MaxFlows: 100_000, PortShare: 1})
	i := 0
	for b.Loop() {
		mustInsert(b, table, packet.UDP, i, 0)
		i += 2
	}
}

// BenchmarkGrow is the cost of a flow while the table grows to a million, and
// the longest that one insertion took.
func BenchmarkGrow(b *testing.B) {
	const n = 1_000_000
	for b.Loop() {
		table := New(Config{MaxFlows: n, PortShare: 1})
		longest := time.Duration(0)
		for i := range n {
			start := time.Now()
			mustInsert(b, table, packet.UDP, i*2, 0)
			longest = max(longest, time.Since(start))
		}
		b.ReportMetric(float64(longest.Microseconds()), "longest-us")
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/flow")
}

// BenchmarkCollect is a garbage collection with a million flows.
func BenchmarkCollect(b *testing.B) {
	table, _ := filled(b, 1_000_000)
	for b.Loop() {
		runtime.GC()
	}
	runtime.KeepAlive(table)
}

func BenchmarkSweep(b *testing.B) {
	table, _ := filled(b, 100_000)
	for b.Loop() {
		table.Sweep(1, 64, nil)
	}
}

// frameOf is a TCP segment without payload that has key k.
func frameOf(k *Key) [64]byte {
	var b [64]byte
	eth := b[packet.VnetHdrLen:]
	eth[12] = 8
	h := eth[14:]
	h[0], h[3], h[8], h[9] = 0x45, 40, 64, byte(k.Proto)
	copy(h[12:], k.Src[12:])
	copy(h[16:], k.Dst[12:])
	binary.BigEndian.PutUint16(h[10:], packet.Checksum(h[:20]))
	binary.BigEndian.PutUint16(h[20:], k.SrcPort)
	binary.BigEndian.PutUint16(h[22:], k.DstPort)
	h[32], h[33] = 5<<4, packet.ACK
	return b
}

// BenchmarkPath is all that a frame of a known flow costs, reading and writing
// it excepted: decode, find, take note, rewrite; in batches of MaxWarm frames
// of as many flows, chosen at random.
func BenchmarkPath(b *testing.B) {
	for _, n := range []int{1, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, keys := filled(b, n)
			for len(keys)%MaxWarm != 0 {
				keys = append(keys, keys...)
			}
			frames := make([][64]byte, len(keys))
			for i := range keys {
				frames[i] = frameOf(&keys[i])
			}
			ports := make([]PortID, len(keys))
			for i := range keys {
				ports[i] = keys[i].Port
			}
			var (
				batch  [MaxWarm][64]byte
				pkts   [MaxWarm]packet.Packet
				ks     [MaxWarm]Key
				hashes [MaxWarm]uint64
				refs   [MaxWarm]Ref
			)
			at := 0
			b.ResetTimer()
			for done := 0; done < b.N; done += MaxWarm {
				copy(batch[:], frames[at:])
				for i := range batch {
					if fault := packet.Decode(&pkts[i], batch[i][:]); fault != packet.OK {
						b.Fatal(fault)
					}
					ks[i] = Key{pkts[i].Tuple, ports[at+i]}
					hashes[i] = table.Hash(&ks[i])
				}
				table.Warm(hashes[:], refs[:])
				for i := range batch {
					f, l := table.LookupAt(refs[i], &ks[i], hashes[i], 1)
					table.Hit(f, l, pkts[i].TCPFlags, pkts[i].Len(), 1)
					l.Rewrite.Apply(&pkts[i])
				}
				if at += MaxWarm; at == len(keys) {
					at = 0
				}
			}
		})
	}
}
