package stack

import (
	"net/netip"
	"testing"

	"podgate/stack/packet"
)

// A router speaks for all the world, but for nobody in the cluster.
func TestRouterMaySendFromOutside(t *testing.T) {
	addr := func(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }
	s := newSnapshot(&Config{
		GatewayAddrs: []netip.Addr{netip.MustParseAddr("10.244.0.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")},
	})
	pod := &attachment{PortSpec: PortSpec{Name: "pod"}, id: 1, addrs: []packet.Addr{addr("10.244.0.4")}}
	node := &attachment{PortSpec: PortSpec{Name: "node", Router: true}, id: 2, addrs: []packet.Addr{addr("192.0.2.10")}}
	s = s.withPort(pod).withPort(node)
	for src, want := range map[string]bool{
		"192.0.2.10":  true, // its own
		"192.0.2.11":  true, // another node
		"10.244.1.4":  true, // a pod there
		"2001:db8::1": true,
		"10.244.0.4":  false, // a pod here
		"10.244.0.99": false, // nobody yet
		"10.244.0.1":  false, // the gateway
		"127.0.0.1":   false,
		"224.0.0.1":   false,
	} {
		if got := s.mayUse(node, addr(src)); got != want {
			t.Errorf("router from %s: got %v, want %v", src, got, want)
		}
	}
	if s.mayUse(pod, addr("192.0.2.11")) {
		t.Error("a pod may send from outside addresses")
	}
}
