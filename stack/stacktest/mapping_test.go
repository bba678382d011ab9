package stacktest

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"podgate/stack"
	"podgate/stack/packet"
)

// However conversations come and go, an endpoint of a pod has one external port as
// long as it speaks, and that is nobody else's; answers find it, and strangers do
// not get in by it, nor by anything else.
func TestMappingsAreOneToOne(t *testing.T) {
	w := New(t, stack.Config{})
	w.Apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: [{name: c, image: x}]}\n")
	w.AddUplink(stack.Masquerade{Ports: [2]uint16{40000, 40007}, IndependentMapping: true})
	pods := []*Pod{w.Pod("a"), w.Pod("b")}
	type inner struct {
		pod   *Pod
		port  uint16
		proto packet.Proto
	}
	type outer struct {
		port  uint16
		proto packet.Proto
	}
	type conversation struct {
		inner
		peer packet.Addr
	}
	spoken := map[conversation]bool{}
	owner := map[outer]inner{}
	seen := map[outer]time.Duration{}
	now, exhausted := time.Duration(0), 0
	r := rand.New(rand.NewPCG(1, 2))
	for range 1500 {
		guess := Packet{SrcMAC: w.Uplink.MAC, DstMAC: GatewayMAC, TCPFlags: packet.SYN, Tuple: packet.Tuple{
			Src: packet.AddrFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + r.IntN(4))})), SrcPort: 9,
			Dst:     packet.AddrFrom([]netip.Addr{uplinkAddrs[0], pods[0].IP(), pods[1].IP()}[r.IntN(3)]),
			DstPort: uint16(40000 + r.IntN(12)), Proto: []packet.Proto{packet.UDP, packet.TCP}[r.IntN(2)],
		}}
		w.Send(w.Uplink, guess.Frame())
		w.Uplink.Received()
		for _, pod := range pods {
			for _, f := range pod.Received() {
				var p packet.Packet
				if packet.Decode(&p, f); !spoken[conversation{inner{pod, p.DstPort, p.Proto}, p.Src}] {
					t.Fatalf("%s came in to %s", w.Describe(f), pod.Name)
				}
			}
		}
		if r.IntN(4) == 0 {
			d := time.Duration(r.IntN(120)) * time.Second
			now += d
			w.Advance(d)
		}
		in := inner{pods[r.IntN(2)], uint16(40000 + r.IntN(12)), []packet.Proto{packet.UDP, packet.TCP}[r.IntN(2)]}
		peer := netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + r.IntN(3))})
		w.Send(in.pod, Packet{
			Tuple:  packet.Tuple{Src: packet.AddrFrom(in.pod.IP()), Dst: packet.AddrFrom(peer), SrcPort: in.port, DstPort: 9, Proto: in.proto},
			SrcMAC: in.pod.MAC, DstMAC: GatewayMAC, TCPFlags: packet.SYN,
		}.Frame())
		got := w.Uplink.Received()
		if len(got) == 0 {
			exhausted++
			continue
		}
		var p packet.Packet
		packet.Decode(&p, got[0])
		out := outer{p.SrcPort, p.Proto}
		if p.SrcPort < 40000 || p.SrcPort > 40007 {
			t.Fatalf("port %d is none of the uplink's", p.SrcPort)
		}
		if was, taken := owner[out]; taken && was != in && in.proto == packet.UDP && now-seen[out] < 5*time.Minute {
			t.Fatalf("port %d was taken from %v after %v", p.SrcPort, was, now-seen[out])
		}
		for o, i := range owner {
			if i == in && o != out && now-seen[o] < time.Minute {
				t.Fatalf("%v has ports %d and %d", in, o.port, out.port)
			}
		}
		owner[out], seen[out] = in, now
		spoken[conversation{in, p.Dst}] = true
		w.Send(w.Uplink, Packet{Tuple: p.Tuple.Reverse(), SrcMAC: w.Uplink.MAC, DstMAC: GatewayMAC, TCPFlags: packet.SYN | packet.ACK}.Frame())
		if n := len(in.pod.Received()); n != 1 {
			t.Fatalf("%d frames answered", n)
		}
	}
	if n := w.Counters()["source-ports-exhausted"]; int(n) != exhausted || n == 0 {
		t.Errorf("%d conversations had no port, %d were counted", exhausted, n)
	}
}
