package stacktest

import (
	"net/netip"
	"testing"
	"time"

	"podgate/stack"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

const floodShop = `
apiVersion: v1
kind: Pod
metadata: {name: api}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c, image: x}]}
`

// segment sends one TCP segment between pods.
func segment(w *World, from, to *Pod, src, dst uint16, flags uint8) {
	w.Send(from, from.segment(to, src, dst, flags))
}

// segment is a TCP segment to another pod.
func (p *Pod) segment(to *Pod, src, dst uint16, flags uint8) packet.Frame {
	return Packet{
		Tuple:  packet.Tuple{Src: packet.AddrFrom(p.IP()), Dst: packet.AddrFrom(to.IP()), SrcPort: src, DstPort: dst, Proto: packet.TCP},
		SrcMAC: p.MAC, DstMAC: to.MAC, TCPFlags: flags,
	}.Frame()
}

func connect(t *testing.T, w *World, from, to *Pod, src uint16) {
	t.Helper()
	segment(w, from, to, src, 80, packet.SYN)
	segment(w, to, from, 80, src, packet.SYN|packet.ACK)
	segment(w, from, to, src, 80, packet.ACK)
	if got := len(to.Received()); got != 2 {
		t.Errorf("connection %d: %d segments came, want SYN and ACK; counters %v", src, got, w.Counters())
	}
	from.Received()
}

// states counts the flows of each state.
func states(w *World) map[string]int {
	n := map[string]int{}
	for _, f := range w.Plane.Flows() {
		n[f.State]++
	}
	return n
}

// A flood of SYNs and a scan cost the flooder's embryonic flows, and nobody's
// connections.
func TestFloodsAndScansTakeNothingFromOthers(t *testing.T) {
	for name, answer := range map[string]bool{"SYN flood": false, "scan": true} {
		t.Run(name, func(t *testing.T) {
			w := New(t, stack.Config{MaxFlows: 200})
			w.Apply(floodShop)
			api, bad, web := w.Pod("api"), w.Pod("bad"), w.Pod("web")
			for i := range uint16(30) {
				connect(t, w, web, api, 1000+i)
				connect(t, w, bad, api, 1000+i)
			}
			for i := range 2000 {
				segment(w, bad, api, uint16(2000+i), uint16(100+i), packet.SYN)
				if answer {
					segment(w, api, bad, uint16(100+i), uint16(2000+i), packet.RST|packet.ACK)
				}
			}
			if n := len(api.Received()); n != 2000 {
				t.Errorf("%d of 2000 SYNs came through: a flood evicts its own, and is not refused", n)
			}
			bad.Received()
			if got := states(w); got["established"] != 60 || got["syn-sent"]+got["closed"] > 70 {
				t.Errorf("flows after the flood: %v; want 60 established, and no more than its share of the flooder's", got)
			}
			// Others open new connections, and theirs work.
			connect(t, w, web, api, 5000)
			segment(w, web, api, 1007, 80, packet.ACK|packet.PSH)
			segment(w, api, web, 80, 1007, packet.ACK)
			if len(api.Received()) != 1 || len(web.Received()) != 1 {
				t.Error("an open connection does not work any more")
			}
			for name, n := range w.Counters() {
				t.Errorf("%s: %d", name, n)
			}
		})
	}
}

// A pod that opens more connections than its share is refused; others are not.
func TestOnePodCannotFillTheTable(t *testing.T) {
	w := New(t, stack.Config{MaxFlows: 100, PortShare: 0.3})
	w.Apply(floodShop)
	api, bad, web := w.Pod("api"), w.Pod("bad"), w.Pod("web")
	for i := range uint16(30) {
		connect(t, w, bad, api, 1000+i)
	}
	segment(w, bad, api, 2000, 80, packet.SYN)
	if got := w.Counters()["flow-share-full"]; got != 1 || len(api.Received()) != 0 {
		t.Errorf("flow-share-full: got %d, want 1", got)
	}
	connect(t, w, web, api, 1000)
}

// A pod's broadcasts and multicasts reach everybody in the segment, as many as
// a second's worth at once, and no more than that a second.
func TestBroadcastStormsAreLimited(t *testing.T) {
	w := New(t, stack.Config{})
	w.Apply(floodShop)
	bad := w.Pod("bad")
	storm := func(from *Pod, n int) {
		for i := range n {
			p := Packet{
				Tuple:  packet.Tuple{Src: packet.AddrFrom(from.IP()), Dst: packet.AddrFrom(netip.MustParseAddr("255.255.255.255")), SrcPort: 137, DstPort: 137, Proto: packet.UDP},
				SrcMAC: from.MAC, DstMAC: packet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
			}
			if i%2 == 1 {
				p.Tuple = packet.Tuple{Src: packet.AddrFrom(from.IP6()), Dst: packet.AddrFrom(netip.MustParseAddr("ff02::fb")), SrcPort: 5353, DstPort: 5353, Proto: packet.UDP}
				p.DstMAC = packet.MAC{0x33, 0x33, 0, 0, 0, 0xfb}
			}
			w.Send(from, p.Frame())
		}
	}
	for _, step := range []struct {
		after         time.Duration
		from          string
		sent, arrives int
	}{{0, "bad", 1000, 100}, {0, "bad", 10, 0}, {0, "web", 50, 50}, {500 * time.Millisecond, "bad", 1000, 50}, {2 * time.Second, "bad", 1000, 100}} {
		w.Advance(step.after)
		limited := w.Counters()["multicast-limited"]
		storm(w.Pod(step.from), step.sent)
		for _, name := range []string{"api", "bad", "web"} {
			want := step.arrives
			if name == step.from {
				want = 0
			}
			if got := len(w.Pod(name).Received()); got != want {
				t.Errorf("%s sends %d: %s got %d, want %d", step.from, step.sent, name, got, want)
			}
		}
		if got, want := w.Counters()["multicast-limited"]-limited, uint64(step.sent-step.arrives); got != want {
			t.Errorf("%s sends %d: %d are counted as limited, want %d", step.from, step.sent, got, want)
		}
	}
	connect(t, w, bad, w.Pod("api"), 1000) // what it says to one is not concerned
}

func TestTimeoutsAreThoseConfigured(t *testing.T) {
	w := New(t, stack.Config{Timeouts: flow.Timeouts{TCPSynSent: 5 * time.Second, TCPEstablished: time.Minute}})
	w.Apply(floodShop)
	api, web := w.Pod("api"), w.Pod("web")
	connect(t, w, web, api, 1000)
	segment(w, web, api, 1001, 80, packet.SYN)
	for _, step := range []struct {
		after       time.Duration
		established int
		embryonic   int
	}{{4 * time.Second, 1, 1}, {2 * time.Second, 1, 0}, {50 * time.Second, 1, 0}, {5 * time.Second, 0, 0}} {
		w.Advance(step.after)
		if got := states(w); got["established"] != step.established || got["syn-sent"] != step.embryonic {
			t.Errorf("%s later: %v, want %d established, %d embryonic", step.after, got, step.established, step.embryonic)
		}
	}
}
