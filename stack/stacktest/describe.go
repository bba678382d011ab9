package stacktest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"podgate/stack/packet"
)

// names maps addresses to what scripts call them.
func (w *World) names() map[netip.Addr]string {
	names := map[netip.Addr]string{}
	put := func(a netip.Addr, name string) {
		if a.Is6() {
			name += "@6"
		}
		names[a] = name
	}
	for _, p := range podCIDRs {
		a := p.Addr()
		for _, name := range []string{"gateway", "dns", "ingress"} {
			a = a.Next()
			put(a, name)
		}
	}
	if w.Uplink != nil {
		for i := range uplinkAddrs {
			put(uplinkAddrs[i], "gateway.uplink")
			put(uplinkHops[i], "uplink")
		}
	}
	if w.Node != nil {
		for _, a := range nodeAddrs {
			put(a, "node")
		}
	}
	for name, n := range w.Store.State().Networks {
		for _, a := range n.Gateways() {
			put(a, "gateway."+name.Name)
		}
	}
	for a, name := range w.were {
		put(a, shortName(name.Namespace, name.Name))
	}
	for name, p := range w.pods {
		for _, a := range p.Addrs {
			put(a, shortName(name.Namespace, name.Name))
		}
	}
	for name, svc := range w.Store.State().Services {
		for _, ip := range svc.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				put(a, "svc/"+shortName(name.Namespace, name.Name))
			}
		}
	}
	return names
}

func shortName(namespace, name string) string {
	if namespace == "default" {
		return name
	}
	return namespace + "/" + name
}

// Describe says what a frame is, in one line.
func (w *World) Describe(f packet.Frame) string {
	names := w.names()
	var p packet.Packet
	if fault := packet.Decode(&p, f); fault != packet.OK {
		return "malformed: " + fault.String()
	}
	var b strings.Builder
	switch {
	case p.EtherType == packet.EtherARP:
		describeARP(&b, names, &p)
		return b.String()
	case p.IsND():
		describeND(&b, names, &p)
	case p.Proto == packet.ICMP || p.Proto == packet.ICMPv6:
		describeICMP(&b, names, &p)
	default:
		describeTuple(&b, names, &p)
		if p.Proto == packet.TCP {
			fmt.Fprintf(&b, " %s", flagString(p.TCPFlags))
		}
	}
	describeRest(&b, &p)
	if n := mss(&p); n != 0 {
		fmt.Fprintf(&b, " mss=%d", n)
	}
	if v := verify(&p); v != "" {
		fmt.Fprintf(&b, " BAD %s", v)
	}
	return b.String()
}

func describeRest(b *strings.Builder, p *packet.Packet) {
	if n := p.End - p.Payload; n > 0 && !p.ICMPError() && !p.IsND() {
		fmt.Fprintf(b, " len=%d", n)
	}
	if p.TTL != 64 && !p.IsND() {
		fmt.Fprintf(b, " ttl=%d", p.TTL)
	}
	if p.Fragment() {
		fmt.Fprintf(b, " frag=%d", p.Frag.Offset)
		if p.Frag.More {
			b.WriteByte('+')
		}
	}
	if p.GSOSize != 0 {
		fmt.Fprintf(b, " gso=%d", p.GSOSize)
	}
	if p.Partial {
		b.WriteString(" partial")
	}
	if p.SrcMAC() == GatewayMAC {
		b.WriteString(" via gateway")
	}
}

func named(names map[netip.Addr]string, a packet.Addr) string {
	if n := names[a.Netip()]; n != "" {
		return n
	}
	return a.String()
}

func describeTuple(b *strings.Builder, names map[netip.Addr]string, p *packet.Packet) {
	fmt.Fprintf(b, "%s %s > %s", strings.ToLower(p.Proto.String()), end(names, p.Src, p.SrcPort), end(names, p.Dst, p.DstPort))
}

func end(names map[netip.Addr]string, a packet.Addr, port uint16) string {
	if port == 0 {
		return named(names, a)
	}
	if n := names[a.Netip()]; n != "" {
		return fmt.Sprintf("%s:%d", n, port)
	}
	return netip.AddrPortFrom(a.Netip(), port).String()
}

var icmpNames = map[packet.Proto]map[uint16]string{
	packet.ICMP: {
		packet.ICMPEcho << 8:                                      "echo-request",
		packet.ICMPEchoReply << 8:                                 "echo-reply",
		packet.ICMPUnreachable<<8 | packet.ICMPNetUnreachable:     "net-unreachable",
		packet.ICMPUnreachable<<8 | packet.ICMPHostUnreachable:    "host-unreachable",
		packet.ICMPUnreachable<<8 | packet.ICMPPortUnreachable:    "port-unreachable",
		packet.ICMPUnreachable<<8 | packet.ICMPFragmentationNeeds: "too-big",
		packet.ICMPUnreachable<<8 | packet.ICMPAdminProhibited:    "prohibited",
		packet.ICMPTimeExceeded << 8:                              "time-exceeded",
	},
	packet.ICMPv6: {
		packet.ICMPv6Echo << 8:                                        "echo-request",
		packet.ICMPv6EchoReply << 8:                                   "echo-reply",
		packet.ICMPv6Unreachable<<8 | packet.ICMPv6NoRoute:            "net-unreachable",
		packet.ICMPv6Unreachable<<8 | packet.ICMPv6AddressUnreachable: "host-unreachable",
		packet.ICMPv6Unreachable<<8 | packet.ICMPv6PortUnreachable:    "port-unreachable",
		packet.ICMPv6Unreachable<<8 | packet.ICMPv6AdminProhibited:    "prohibited",
		packet.ICMPv6TooBig << 8:                                      "too-big",
		packet.ICMPv6TimeExceeded << 8:                                "time-exceeded",
	},
}

func describeICMP(b *strings.Builder, names map[netip.Addr]string, p *packet.Packet) {
	kind := icmpNames[p.Proto][uint16(p.ICMPType)<<8|uint16(p.ICMPCode)]
	if kind == "" {
		kind = fmt.Sprintf("%d/%d", p.ICMPType, p.ICMPCode)
	}
	fmt.Fprintf(b, "icmp %s > %s %s", named(names, p.Src), named(names, p.Dst), kind)
	if !p.ICMPError() {
		fmt.Fprintf(b, " id=%d", p.SrcPort|p.DstPort)
		return
	}
	if kind == "too-big" {
		fmt.Fprintf(b, " mtu=%d", binary.BigEndian.Uint32(p.Frame.Eth()[p.L4+4:]))
	}
	var in packet.Packet
	if fault := p.Inner(&in); fault != packet.OK {
		fmt.Fprintf(b, " (%s)", fault)
		return
	}
	b.WriteString(" (")
	describeTuple(b, names, &in)
	b.WriteString(")")
}

func describeARP(b *strings.Builder, names map[netip.Addr]string, p *packet.Packet) {
	var a packet.ARP
	if fault := p.ARP(&a); fault != packet.OK {
		fmt.Fprintf(b, "malformed: %s", fault)
		return
	}
	if a.Op == packet.ARPReply {
		fmt.Fprintf(b, "arp %s is at %s", named(names, a.SenderIP), a.SenderMAC)
		return
	}
	fmt.Fprintf(b, "arp who has %s tell %s", named(names, a.TargetIP), named(names, a.SenderIP))
}

func describeND(b *strings.Builder, names map[netip.Addr]string, p *packet.Packet) {
	var n packet.ND
	if fault := p.ND(&n); fault != packet.OK {
		fmt.Fprintf(b, "malformed: %s", fault)
		return
	}
	if n.Type == packet.ICMPv6NA {
		fmt.Fprintf(b, "nd %s is at %s", named(names, n.Target), n.LinkAddr)
		if n.Router {
			b.WriteString(" router")
		}
		return
	}
	fmt.Fprintf(b, "nd type %d for %s from %s", n.Type, named(names, n.Target), named(names, p.Src))
}

func flagString(flags uint8) string {
	var s []byte
	for i, c := range "FSRPA" {
		if flags&(1<<i) != 0 {
			s = append(s, byte(c))
		}
	}
	if len(s) == 0 {
		return "none"
	}
	return string(s)
}

// mss is what the maximum segment size option of a SYN says that Packet made; 0:
// there is none.
func mss(p *packet.Packet) uint16 {
	for o := p.Frame.Eth()[min(p.L4+20, p.Payload):p.Payload]; p.Proto == packet.TCP && len(o) >= 4; o = o[1:] {
		if o[0] == 2 && o[1] == 4 {
			return binary.BigEndian.Uint16(o[2:])
		}
	}
	return 0
}

// verify recomputes the checksums of p and says which are wrong.
func verify(p *packet.Packet) string {
	eth := p.Frame.Eth()
	at := map[packet.Proto]int{packet.TCP: 16, packet.UDP: 6, packet.ICMP: 2, packet.ICMPv6: 2}[p.Proto]
	if at == 0 || p.Fragment() {
		return ""
	}
	have := binary.BigEndian.Uint16(eth[p.L4+at:])
	want := p.TransportChecksum()
	if p.Partial {
		want = p.PseudoSum()
	}
	if have != want && !(p.Proto == packet.UDP && have == 0 && p.EtherType == packet.EtherIPv4) {
		return fmt.Sprintf("CHECKSUM %04x, want %04x", have, want)
	}
	return ""
}
