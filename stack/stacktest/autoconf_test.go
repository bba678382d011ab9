package stacktest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"podgate/stack"
	"podgate/stack/packet"
)

// A port's address belongs to it: whatever a client asks, it hears that one.
func TestDHCP(t *testing.T) {
	addr := func(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }
	hardware := func(m packet.MAC) dhcpv4.Modifier { return dhcpv4.WithHwAddr(m[:]) }
	const offer, ack, nak = dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	own, gateway, other := net.IPv4(10, 244, 0, 4), net.IPv4(10, 244, 0, 1), net.IPv4(10, 244, 0, 9)
	for name, c := range map[string]struct {
		mods    []dhcpv4.Modifier
		src     string // of the packet; empty: 0.0.0.0, to the broadcast address
		want    dhcpv4.MessageType
		to      string
		counter string
	}{
		"discover":             {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)}, "", offer, "10.244.0.4", "dhcp-answered"},
		"discover, broadcast":  {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithBroadcast(true)}, "", offer, "255.255.255.255", "dhcp-answered"},
		"request":              {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(own)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(gateway))}, "", ack, "10.244.0.4", "dhcp-answered"},
		"request of another's": {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(other))}, "", nak, "255.255.255.255", "dhcp-answered"},
		"renewal":              {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(own)}, "10.244.0.4", ack, "10.244.0.4", "dhcp-answered"},
		"information":          {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(own)}, "10.244.0.4", ack, "10.244.0.4", "dhcp-answered"},
		"another server's":     {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(other))}, "", 0, "", "dhcp-ignored"},
		"release":              {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease), dhcpv4.WithClientIP(own)}, "10.244.0.4", 0, "", "dhcp-ignored"},
		"another's MAC":        {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), hardware(packet.MAC{2, 2, 2, 2, 2, 2})}, "", 0, "", "spoofed-dhcp"},
		"another's address":    {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(other)}, "10.244.0.9", 0, "", "spoofed-dhcp"},
		"a server's answer":    {[]dhcpv4.Modifier{func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootReply }}, "", 0, "", "bad-dhcp"},
	} {
		t.Run(name, func(t *testing.T) {
			w := New(t, stack.Config{})
			w.Apply(shop)
			pod := w.Pod("web")
			if pod.IP().String() != own.String() {
				pod = w.Pod("api")
			}
			req, err := dhcpv4.New(append([]dhcpv4.Modifier{hardware(pod.MAC)}, c.mods...)...)
			if err != nil {
				t.Fatal(err)
			}
			p := Packet{
				Tuple:  packet.Tuple{Src: addr("0.0.0.0"), Dst: addr("255.255.255.255"), SrcPort: 68, DstPort: 67, Proto: packet.UDP},
				SrcMAC: pod.MAC, DstMAC: packet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, Payload: req.ToBytes(),
			}
			if c.src != "" {
				p.Src, p.Dst, p.DstMAC = addr(c.src), addr(gateway.String()), GatewayMAC
			}
			w.Send(pod, p.Frame())
			got := pod.Received()
			if w.Counters()[c.counter] != 1 {
				t.Errorf("counters %v, want one %s", w.Counters(), c.counter)
			}
			if c.want == 0 {
				if len(got) != 0 {
					t.Errorf("answered: %s", w.Describe(got[0]))
				}
				return
			}
			if len(got) != 1 {
				t.Fatalf("%d answers, want 1", len(got))
			}
			var a packet.Packet
			if fault := packet.Decode(&a, got[0]); fault != packet.OK {
				t.Fatal(fault)
			}
			if a.Src != addr(gateway.String()) || a.Dst != addr(c.to) || a.SrcPort != 67 || a.DstPort != 68 {
				t.Errorf("the answer is %s", w.Describe(got[0]))
			}
			reply, err := dhcpv4.FromBytes(a.UDPData())
			if err != nil || reply.MessageType() != c.want || reply.TransactionID != req.TransactionID || !reply.ServerIdentifier().Equal(gateway) {
				t.Fatalf("%v, %v; want %v", reply, err, c.want)
			}
			given := own
			if c.want == nak || req.MessageType() == dhcpv4.MessageTypeInform {
				given = net.IPv4zero
			}
			if !reply.YourIPAddr.Equal(given) {
				t.Errorf("the address is %v, want %v", reply.YourIPAddr, given)
			}
			if c.want != nak && (!net.IP(reply.SubnetMask()).Equal(net.IPv4(255, 255, 0, 0)) || len(reply.Router()) != 1 || !reply.Router()[0].Equal(gateway)) {
				t.Errorf("mask %v, router %v", reply.SubnetMask(), reply.Router())
			}
		})
	}
}

// Pods are told their IPv6 addresses: a router that advertised a prefix would have
// them make, and use, others.
func TestNoAdvertisementWhereAddressesAreTold(t *testing.T) {
	w := New(t, stack.Config{})
	w.Apply(shop)
	web := w.Pod("web")
	w.Send(web, packet.BuildRS(make([]byte, packet.MaxBuilt), web.MAC, packet.EUI64(netip.MustParseAddr("fe80::"), web.MAC)))
	if got := web.Received(); len(got) != 0 || w.Counters()["nd-ignored"] != 1 {
		t.Errorf("%d answers, counters %v", len(got), w.Counters())
	}
}
