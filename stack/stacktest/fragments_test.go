package stacktest

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"podgate/stack"
	"podgate/stack/packet"
)

const fragmentShop = webAndAPI + `
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  selector: {app: api}
  clusterIP: 10.96.1.1
  ports: [{name: dns, port: 53, protocol: UDP, targetPort: 5353}, {name: n2, port: 38412, protocol: SCTP, targetPort: 38413}]
`

func toService(w *World, proto packet.Proto, port uint16, n int) Packet {
	web := w.Pod("web")
	p := Packet{SrcMAC: web.MAC, DstMAC: GatewayMAC, Payload: bytes.Repeat([]byte{1, 2, 3}, n/3)}
	p.Tuple = packet.Tuple{Src: packet.AddrFrom(web.IP()), Dst: packet.Addr{10: 0xff, 11: 0xff, 12: 10, 13: 96, 14: 1, 15: 1}, SrcPort: 40000, DstPort: port, Proto: proto}
	return p
}

// An SCTP checksum covers all fragments, and has no pseudo-header: it follows
// the ports only if the length of the whole is known.
func TestSCTPInFragmentsKeepsItsChecksum(t *testing.T) {
	for name, order := range map[string][]int{"in order": {0, 1, 2}, "backwards": {2, 1, 0}, "mixed": {1, 0, 2}} {
		w := New(t, stack.Config{})
		w.Apply(fragmentShop)
		f := toService(w, packet.SCTP, 38412, 3000).Frame()
		seg := f.Eth()[34:]
		binary.LittleEndian.PutUint32(seg[8:], packet.SCTPChecksum(seg))
		all := Fragments(f, 9, 1480)
		for _, i := range order {
			w.Send(w.Pod("web"), all[i])
		}
		whole := make([]byte, len(seg))
		got := w.Pod("api").Received()
		for _, g := range got {
			var p packet.Packet
			if fault := packet.Decode(&p, g); fault != packet.OK {
				t.Fatal(fault)
			}
			copy(whole[p.Frag.Offset:], g.Eth()[p.L4:p.End])
		}
		if port := binary.BigEndian.Uint16(whole[2:]); len(got) != 3 || port != 38413 {
			t.Errorf("%s: %d fragments came, for port %d", name, len(got), port)
		}
		if have, want := binary.LittleEndian.Uint32(whole[8:]), packet.SCTPChecksum(whole); have != want {
			t.Errorf("%s: checksum %08x, want %08x", name, have, want)
		}
	}
}

// A router quotes the fragment that it dropped, be it the first or not.
func TestErrorsAboutLaterFragmentsFindTheirFlow(t *testing.T) {
	w := New(t, stack.Config{})
	w.Apply(fragmentShop)
	w.Send(w.Pod("web"), Fragments(toService(w, packet.UDP, 53, 3000).Frame(), 9, 1480)...)
	api := w.Pod("api")
	var last packet.Packet
	if fault := packet.Decode(&last, api.last); fault != packet.OK || !last.LaterFragment() {
		t.Fatalf("the last frame is no later fragment: %s", fault)
	}
	last.Frag = packet.Frag{} // or no error would be built
	e := packet.BuildICMPError(make([]byte, packet.MaxBuilt), &last, packet.AddrFrom(api.IP()), packet.ICMPTimeExceeded, 0, 0)
	copy(e.Eth(), GatewayMAC[:])
	copy(e.Eth()[6:], api.MAC[:])
	w.Send(api, e)
	got := w.Pod("web").Received()
	if len(got) != 1 {
		t.Fatalf("web got %d frames, want the error; counters %v", len(got), w.Counters())
	}
	if s := w.Describe(got[0]); !strings.Contains(s, "svc/api > web time-exceeded (udp web > svc/api)") || strings.Contains(s, "BAD") {
		t.Errorf("web got %s", s)
	}
	// Of a datagram that nobody remembers there is nothing to say.
	binary.BigEndian.PutUint16(last.Frame.Eth()[18:], 77)
	e = packet.BuildICMPError(make([]byte, packet.MaxBuilt), &last, packet.AddrFrom(api.IP()), packet.ICMPTimeExceeded, 0, 0)
	copy(e.Eth(), GatewayMAC[:])
	copy(e.Eth()[6:], api.MAC[:])
	w.Send(api, e)
	if n := w.Counters()["icmp-error-unmatched"]; n != 1 {
		t.Errorf("icmp-error-unmatched: got %d, want 1", n)
	}
}
