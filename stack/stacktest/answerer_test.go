package stacktest

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// echoing answers what begins with "?" by itself in reverse, and nothing else.
type echoing struct{ asked int }

func (e *echoing) Answer(out, query []byte, _ netip.Addr) int {
	e.asked++
	if len(query) == 0 || query[0] != '?' {
		return 0
	}
	for i, c := range query {
		out[len(query)-1-i] = c
	}
	return len(query)
}

const asking = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mute, labels: {app: mute}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silence}
spec:
  podSelector: {matchLabels: {app: mute}}
  policyTypes: [Egress]
`

func TestAnswererAnswersInTheDataPath(t *testing.T) {
	e := &echoing{}
	at := []netip.AddrPort{netip.MustParseAddrPort("10.244.0.2:53"), netip.MustParseAddrPort("[fd00:10:244::2]:53")}
	w := New(t, stack.Config{Answerer: e, AnswerAt: at})
	w.Apply(asking)
	web, mute := w.Pod("web"), w.Pod("mute")
	query := func(from *Pod, src netip.Addr, dst string, port uint16, data string) packet.Frame {
		return Packet{
			Tuple: packet.Tuple{
				Src: packet.AddrFrom(src), Dst: packet.AddrFrom(netip.MustParseAddr(dst)),
				SrcPort: 40000, DstPort: port, Proto: packet.UDP,
			},
			SrcMAC: from.MAC, DstMAC: GatewayMAC, Payload: []byte(data),
		}.Frame()
	}
	for _, c := range []struct {
		name         string
		from         *Pod
		frame        packet.Frame
		answer       string
		asked, local int
	}{
		{"to the DNS Service", web, query(web, web.IP(), "10.96.0.10", 53, "?abc"), "cba?", 1, 0},
		{"to the pod behind it", web, query(web, web.IP(), "10.244.0.2", 53, "?abc"), "cba?", 1, 0},
		{"over IPv6", web, query(web, web.IP6(), "fd00:10:244::2", 53, "?six"), "xis?", 1, 0},
		{"one that it leaves to the server", web, query(web, web.IP(), "10.96.0.10", 53, "abc"), "", 1, 1},
		{"another port", web, query(web, web.IP(), "10.244.0.2", 54, "?abc"), "", 0, 1},
		{"another address", web, query(web, web.IP(), "10.244.0.1", 53, "?abc"), "", 0, 1},
		{"a source that is not the pod's", web, query(web, mute.IP(), "10.96.0.10", 53, "?abc"), "", 0, 0},
		{"a pod that may not ask", mute, query(mute, mute.IP(), "10.96.0.10", 53, "?abc"), "", 0, 0},
	} {
		e.asked = 0
		w.Send(c.from, c.frame)
		var sent packet.Packet
		if fault := packet.Decode(&sent, c.frame); fault != packet.OK {
			t.Fatal(c.name, fault)
		}
		answer := ""
		for _, f := range c.from.Received() {
			var p packet.Packet
			if fault := packet.Decode(&p, f); fault != packet.OK {
				t.Fatalf("%s: %v", c.name, fault)
			}
			if data := p.UDPData(); data != nil && p.Tuple == sent.Tuple.Reverse() && p.DstMAC() == c.from.MAC {
				answer = string(bytes.Clone(data))
			}
		}
		if local := len(w.Local.Received()); answer != c.answer || e.asked != c.asked || local != c.local {
			t.Errorf("%s: answer %q, asked %d, %d to the local stack; want %q, %d, %d", c.name, answer, e.asked, local, c.answer, c.asked, c.local)
		}
	}
}

func TestAnswersOfABusyPodLeaveTogether(t *testing.T) {
	w := New(t, stack.Config{Answerer: &echoing{}, AnswerAt: []netip.AddrPort{netip.MustParseAddrPort("10.244.0.2:53")}})
	w.Apply(asking)
	web := w.Pod("web")
	ask := func(n int) (frames int) {
		t.Helper()
		var queries []packet.Frame
		want := map[uint16][]string{}
		for i := range n {
			socket, name := uint16(40000+i%3), fmt.Sprint(i*i)
			want[socket] = append(want[socket], name)
			queries = append(queries, Packet{
				Tuple: packet.Tuple{
					Src: packet.AddrFrom(web.IP()), Dst: packet.AddrFrom(netip.MustParseAddr("10.96.0.10")),
					SrcPort: socket, DstPort: 53, Proto: packet.UDP,
				},
				SrcMAC: web.MAC, DstMAC: GatewayMAC, Payload: []byte("?" + name),
			}.Frame())
		}
		w.Send(web, queries...)
		answers := map[uint16][]string{}
		for _, f := range web.Received() {
			frames++
			link.OnWire(f, func(f packet.Frame) {
				var p packet.Packet
				if fault := packet.Decode(&p, f); fault != packet.OK {
					t.Fatal(fault)
				}
				b := bytes.Clone(p.UDPData())
				slices.Reverse(b)
				answers[p.DstPort] = append(answers[p.DstPort], strings.TrimPrefix(string(b), "?"))
			})
		}
		if !reflect.DeepEqual(answers, want) {
			t.Errorf("got %v, want %v", answers, want)
		}
		return frames
	}
	if frames := ask(4); frames != 4 {
		t.Errorf("4 answers came in %d frames", frames)
	}
	if frames := ask(60); frames > 20 {
		t.Errorf("60 answers came in %d frames", frames)
	}
	if n := w.Plane.Counters()["dns-answered"]; n != 64 {
		t.Errorf("%d answers are counted", n)
	}
}
