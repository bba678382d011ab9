package stacktest

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"podgate/stack"
	"podgate/stack/packet"
)

// receiver is a pod whose acknowledgments another one gets. Each packet has an
// IPv4 identification of its own, by which it is known again.
type receiver struct {
	w        *World
	from, to *Pod
	id       uint16
}

func newReceiver(t testing.TB, cfg stack.Config) *receiver {
	r := &receiver{w: New(t, cfg)}
	r.w.Apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: [{name: c, image: x}]}\n")
	r.from, r.to = r.w.Pod("a"), r.w.Pod("b")
	for _, port := range []uint16{1, 2} {
		syn := r.packet(port, 0)
		syn.TCPFlags = packet.SYN
		r.w.Send(r.from, syn.Frame())
	}
	r.to.Received()
	return r
}

// packet is a bare acknowledgment from a source port.
func (r *receiver) packet(port uint16, ack uint32) Packet {
	r.id++
	return Packet{
		SrcMAC: r.from.MAC, DstMAC: r.to.MAC, ID: r.id, Seq: 7, Ack: ack,
		Tuple: packet.Tuple{Src: packet.AddrFrom(r.from.IP()), Dst: packet.AddrFrom(r.to.IP()), SrcPort: port, DstPort: 80, Proto: packet.TCP},
	}
}

// arrived is what the other pod gets of packets that come together, by their
// places among them, one conversation after the other.
func (r *receiver) arrived(packets ...Packet) (places []int) {
	var frames []packet.Frame
	for _, p := range packets {
		frames = append(frames, p.Frame())
	}
	r.w.Send(r.from, frames...)
	var got []uint16
	for _, f := range r.to.Received() {
		got = append(got, binary.BigEndian.Uint16(f.Eth()[18:]))
	}
	for i, p := range packets {
		if slices.Contains(got, p.ID) {
			places = append(places, i)
		}
	}
	return places
}

func stamps(value uint32) []byte {
	o := []byte{1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 9}
	binary.BigEndian.PutUint32(o[4:], value)
	return o
}

var sack = []byte{1, 1, 5, 10, 0, 0, 1, 0, 0, 0, 2, 0}

func TestAnAcknowledgmentTakesThePlaceOfTheOneBefore(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(r *receiver) []Packet
		want []int
	}{
		{"of each that acknowledges more, the last", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 100), r.packet(1, 200), r.packet(1, 300), r.packet(1, 400)}
		}, []int{3}},
		{"of each conversation", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 100), r.packet(2, 100), r.packet(1, 200), r.packet(2, 200), r.packet(2, 300)}
		}, []int{2, 4}},
		{"across the end of the sequence space", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 1<<31), r.packet(1, 1<<32-1), r.packet(1, 9)}
		}, []int{2}},
		{"one that was overtaken stays, and so does what comes after it", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 200), r.packet(1, 100), r.packet(1, 300), r.packet(1, 400)}
		}, []int{0, 1, 3}},
		{"duplicates stay", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 100), r.packet(1, 100), r.packet(1, 100), r.packet(1, 200)}
		}, []int{0, 1, 2, 3}},
		{"the first may be a duplicate", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 50), r.packet(1, 100), r.packet(1, 200)}
		}, []int{0, 2}},
		{"a window update stays", func(r *receiver) []Packet {
			return []Packet{r.packet(1, 100), r.packet(1, 100), r.packet(1, 200), r.packet(1, 300)}
		}, []int{0, 1, 3}},
		{"what has data, a flag or options stays, and so does what was before it", func(r *receiver) []Packet {
			all := []Packet{r.packet(1, 100), r.packet(1, 200), r.packet(1, 300), r.packet(1, 400), r.packet(1, 500), r.packet(1, 600), r.packet(1, 700), r.packet(1, 800)}
			all[1].Payload = []byte("data")
			all[3].TCPFlags = packet.ACK | packet.ECE
			all[5].Options = sack
			all[6].TCPFlags = packet.ACK | packet.PSH
			return all
		}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{"timestamps that do not go back", func(r *receiver) []Packet {
			all := []Packet{r.packet(1, 100), r.packet(1, 200), r.packet(1, 300), r.packet(1, 400), r.packet(1, 500)}
			for i, v := range []uint32{5, 5, 6, 5, 9} {
				all[i].Options = stamps(v)
			}
			return all
		}, []int{0, 2, 3, 4}}, // the first is not of the kind of those before
		{"a keepalive stays", func(r *receiver) []Packet {
			all := []Packet{r.packet(1, 100), r.packet(1, 200), r.packet(1, 300)}
			all[1].Seq--
			return all
		}, []int{0, 1, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReceiver(t, stack.Config{})
			r.arrived(r.packet(1, 50), r.packet(2, 50))
			packets := c.make(r)
			if got := r.arrived(packets...); !slices.Equal(got, c.want) {
				t.Errorf("arrived: %v, want %v", got, c.want)
			}
			if got, want := r.w.Counters()["ack-superseded"], uint64(len(packets)-len(c.want)); got != want {
				t.Errorf("ack-superseded: got %d, want %d", got, want)
			}
		})
	}
}

func TestEveryAcknowledgmentIsForwardedWhereThatIsWanted(t *testing.T) {
	r := newReceiver(t, stack.Config{AllAcks: true})
	if got := r.arrived(r.packet(1, 50), r.packet(1, 100), r.packet(1, 200)); len(got) != 3 {
		t.Errorf("arrived: %v, want all", got)
	}
}

// What is marked in the IP header stays: congestion on the way, in either family,
// and what is a fragment.
func TestMarkedAcknowledgmentsStay(t *testing.T) {
	for name, mark := range map[string]func(ip []byte){
		"congestion experienced": func(ip []byte) { ip[1] |= 3 },
		"more fragments":         func(ip []byte) { ip[6] |= 0x20 },
	} {
		r := newReceiver(t, stack.Config{})
		var frames []packet.Frame
		for i, ack := range []uint32{50, 100, 200, 300} {
			p := r.packet(1, ack)
			p.Options = stamps(1) // as long as a fragment must be
			f := p.Frame()
			ip := f.Eth()[14:34]
			if i == 2 {
				mark(ip)
			}
			binary.BigEndian.PutUint16(ip[10:], 0)
			binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip))
			frames = append(frames, f)
		}
		r.w.Send(r.from, frames...)
		if got := len(r.to.Received()); got != 4 {
			t.Errorf("%s: %d packets arrived, want 4", name, got)
		}
	}
	r := newReceiver(t, stack.Config{})
	packets := []Packet{r.packet(1, 50), r.packet(1, 100), r.packet(1, 200), r.packet(1, 300)}
	var frames []packet.Frame
	for i, p := range packets {
		p.Src, p.Dst = packet.AddrFrom(r.from.IP6()), packet.AddrFrom(r.to.IP6())
		f := p.Frame()
		if i == 2 {
			f.Eth()[15] |= 3 << 4
		}
		frames = append(frames, f)
	}
	r.w.Send(r.from, frames...)
	if got := len(r.to.Received()); got != 4 {
		t.Errorf("IPv6: %d packets arrived, want 4", got)
	}
}

// Whatever comes, a sender learns the same from what is left: all that is not
// bare, each duplicate, and the last word of each batch, in order.
func TestThinnedAcknowledgmentsSayTheSame(t *testing.T) {
	r := newReceiver(t, stack.Config{})
	rng := rand.New(rand.NewPCG(1, 2))
	var acked [3]uint32 // by port
	for range 500 {
		var packets []Packet
		var must []int
		var last [3]int
		for i := range 1 + rng.IntN(12) {
			port := 1 + rng.IntN(2)
			before := acked[port]
			if rng.IntN(3) != 0 {
				acked[port] += rng.Uint32N(1 << 20)
			}
			p := r.packet(uint16(port), acked[port])
			bare := true
			switch rng.IntN(12) {
			case 0:
				p.Payload, bare = []byte("x"), false
			case 1:
				p.Options, bare = sack, false
			case 2:
				p.TCPFlags, bare = packet.ACK|packet.PSH, false
			}
			if !bare || acked[port] == before {
				must = append(must, i)
			}
			packets = append(packets, p)
			last[port] = i + 1
		}
		for _, i := range last {
			if i > 0 && !slices.Contains(must, i-1) {
				must = append(must, i-1)
			}
		}
		got := r.arrived(packets...)
		for _, i := range must {
			if !slices.Contains(got, i) {
				t.Fatalf("packet %d of %+v is missing; arrived: %v", i, packets, got)
			}
		}
	}
	if r.w.Counters()["ack-superseded"] == 0 {
		t.Error("nothing was superseded")
	}
}
