package stack

import (
	"net/netip"
	"testing"

	"podgate/kube"
	"podgate/stack/packet"
)

// A client outside that came in by a port of this node is not known to the pods of
// other nodes as itself: they would answer it past us.
func TestDecideClientOutsideToAnotherNodesPod(t *testing.T) {
	d := newDecider(t)
	node := &attachment{id: 100, PortSpec: PortSpec{Pod: kube.Name{Name: "node"}, Name: "podgate0", Router: true, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}}}
	node.addrs = []packet.Addr{d.addr("192.0.2.10")}
	d.Snapshot = d.withPort(node)
	d.Snapshot = d.withInput(Input{Routes: []Route{{Prefix: netip.MustParsePrefix("10.245.0.0/16"), Via: netip.MustParseAddr("192.0.2.10")}}})
	for _, c := range []struct {
		name, from, src, dst string
		wantSrc              string
		claim                bool
	}{
		{"of another node", "", "198.51.100.7", "10.245.0.9", "10.244.0.1", true},
		{"of another node, from the gateway", "", "10.244.0.1", "10.245.0.9", "10.244.0.1", false},
		{"of another node, from a pod", "client", "client", "10.245.0.9", "client", false},
		{"of this node", "", "198.51.100.7", "server", "198.51.100.7", false},
		{"on the node itself", "", "198.51.100.7", "192.0.2.10", "10.244.0.1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := query{port: d.ports[c.from], dstMAC: d.gatewayMAC}
			q.Tuple = packet.Tuple{Src: d.addr(c.src), Dst: d.addr(c.dst), SrcPort: 40000, DstPort: 8080, Proto: packet.TCP}
			var tr Trace
			got := d.decide(q, view{}, &tr)
			if got.verdict != Forward || got.to.Src != d.addr(c.wantSrc) || got.masquerade != c.claim {
				t.Errorf("got %s %s as %s, claim %v; want source %s, claim %v; trace:", got.verdict, got.reason, tupleString(got.to), got.masquerade, c.wantSrc, c.claim)
				for _, s := range tr.Stages {
					t.Log(s)
				}
			}
		})
	}
}
