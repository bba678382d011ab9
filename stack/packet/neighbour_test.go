package packet

import (
	"encoding/binary"
	"slices"
	"testing"
)

func TestARPRequestAndReply(t *testing.T) {
	f := BuildARPRequest(make([]byte, MaxBuilt), macA, addr("10.244.0.5"), addr("10.244.0.9"))
	p := must(f)
	var a ARP
	if fault := p.ARP(&a); fault != OK {
		t.Fatal(fault)
	}
	want := ARP{Op: ARPRequest, SenderMAC: macA, SenderIP: addr("10.244.0.5"), TargetIP: addr("10.244.0.9")}
	if a != want || p.DstMAC() != broadcastMAC || p.SrcMAC() != macA {
		t.Errorf("got %+v to %v", a, p.DstMAC())
	}

	p = must(BuildARPReply(make([]byte, MaxBuilt), &a, macB))
	var r ARP
	if fault := p.ARP(&r); fault != OK {
		t.Fatal(fault)
	}
	want = ARP{Op: ARPReply, SenderMAC: macB, SenderIP: addr("10.244.0.9"), TargetMAC: macA, TargetIP: addr("10.244.0.5")}
	if r != want || p.DstMAC() != macA || p.SrcMAC() != macB {
		t.Errorf("got %+v, want %+v", r, want)
	}
}

func TestBadARP(t *testing.T) {
	good := BuildARPRequest(make([]byte, MaxBuilt), macA, addr("10.244.0.5"), addr("10.244.0.9"))
	for name, f := range map[string]Frame{
		"token ring":         edit(good, ip, 0, 6),
		"not IPv4":           edit(good, ip+2, 0x86, 0xdd),
		"long MAC":           edit(good, ip+4, 8),
		"RARP":               edit(good, ip+6, 0, 3),
		"multicast sender":   edit(good, ip+8, 1),
		"sender is a group":  edit(good, ip+14, 224),
		"sender broadcasts":  edit(good, ip+14, 255, 255, 255, 255),
		"target is multicat": edit(good, ip+24, 239),
	} {
		var a ARP
		if got := must(f).ARP(&a); got != BadARP {
			t.Errorf("%s: got %v, want %v", name, got, BadARP)
		}
	}
	var a ARP
	if got := must(edit(good, ip+14, 0, 0, 0, 0)).ARP(&a); got != OK {
		t.Errorf("probe (RFC 5227): got %v, want ok", got)
	}
}

var (
	hostA = addr("fd00:10:244::5")
	hostB = addr("fd00:10:244::1:2:9")
)

func TestNeighbourSolicitationAndAdvertisement(t *testing.T) {
	f := BuildNS(make([]byte, MaxBuilt), macA, hostA, hostB)
	checkSums(t, f)
	p := must(f)
	var nd ND
	if fault := p.ND(&nd); fault != OK {
		t.Fatal(fault)
	}
	want := ND{Type: ICMPv6NS, Target: hostB, LinkAddr: macA, HasLinkAddr: true}
	if nd != want || p.Dst != addr("ff02::1:ff02:9") || p.DstMAC() != (MAC{0x33, 0x33, 0xff, 2, 0, 9}) {
		t.Errorf("got %+v to %v (%v), want %+v", nd, p.Dst, p.DstMAC(), want)
	}

	f = BuildNA(make([]byte, MaxBuilt), p, &nd, macB, true)
	checkSums(t, f)
	a := must(f)
	var got ND
	if fault := a.ND(&got); fault != OK {
		t.Fatal(fault)
	}
	want = ND{Type: ICMPv6NA, Router: true, Solicited: true, Override: true, Target: hostB, LinkAddr: macB, HasLinkAddr: true}
	if got != want || a.Src != hostB || a.Dst != hostA || a.DstMAC() != macA || a.TTL != 255 {
		t.Errorf("got %+v from %v to %v, want %+v", got, a.Src, a.Dst, want)
	}
}

// RFC 4861, 7.2.4: who has no address yet is told through all nodes, unsolicited.
func TestAnswerToDuplicateAddressDetection(t *testing.T) {
	p := must(BuildNS(make([]byte, MaxBuilt), macA, Addr{}, hostB))
	var nd ND
	if fault := p.ND(&nd); fault != OK || nd.HasLinkAddr {
		t.Fatalf("got %v, %+v", fault, nd)
	}
	a := must(BuildNA(make([]byte, MaxBuilt), p, &nd, macB, false))
	var got ND
	if fault := a.ND(&got); fault != OK {
		t.Fatal(fault)
	}
	if got.Solicited || got.Router || a.Dst != addr("ff02::1") || a.DstMAC() != (MAC{0x33, 0x33, 0, 0, 0, 1}) {
		t.Errorf("got %+v to %v", got, a.Dst)
	}
}

func TestRouterSolicitation(t *testing.T) {
	p := must(BuildRS(make([]byte, MaxBuilt), macA, addr("fe80::5")))
	var nd ND
	if fault := p.ND(&nd); fault != OK || nd.Type != ICMPv6RS || nd.LinkAddr != macA || p.Dst != addr("ff02::2") {
		t.Errorf("got %v %+v", fault, nd)
	}
}

// RFC 4861, 6.1.1, 7.1.1, 7.1.2; RFC 6980.
func TestBadND(t *testing.T) {
	ns := BuildNS(make([]byte, MaxBuilt), macA, hostA, hostB)
	dad := BuildNS(make([]byte, MaxBuilt), macA, Addr{}, hostB)
	na := BuildNA(make([]byte, MaxBuilt), must(ns), &ND{Target: hostB}, macB, false)
	icmp := ip + 40
	// reseal sets bytes and makes the checksum right for them.
	reseal := func(f Frame, at int, b ...byte) Frame {
		f = edit(f, at, b...)
		eth := f.Eth()
		eth[icmp+2], eth[icmp+3] = 0, 0
		tu := Tuple{Src: Addr(eth[ip+8:]), Dst: Addr(eth[ip+24:]), Proto: ICMPv6}
		binary.BigEndian.PutUint16(eth[icmp+2:], naiveChecksum(tu, eth[icmp:]))
		return f
	}
	cut := func(f Frame, n int) Frame {
		f = slices.Clone(f[:VnetHdrLen+icmp+n])
		return reseal(f, ip+4, 0, byte(n))
	}
	all := addr("ff02::1")
	seg := ns.Eth()[icmp:]
	for name, f := range map[string]Frame{
		"hop limit 254":              edit(ns, ip+7, 254),
		"checksum":                   flip(slices.Clone(ns), icmp+3),
		"code":                       reseal(ns, icmp+1, 1),
		"router advertisement":       reseal(ns, icmp, 134),
		"short":                      cut(ns, 23),
		"option of length 0":         reseal(ns, icmp+25, 0),
		"option over packet":         reseal(ns, icmp+25, 2),
		"option cut":                 cut(ns, 28),
		"target is a group":          reseal(ns, icmp+8, 0xff, 2),
		"multicast link address":     reseal(ns, icmp+26, 1),
		"DAD to another group":       reseal(dad, ip+24, all[:]...),
		"DAD with link address":      reseal(ns, ip+8, make([]byte, 16)...),
		"solicited to a group":       reseal(na, ip+24, all[:]...),
		"behind a hop-by-hop header": ndBehind(0, make([]byte, 8), seg),
		"in a fragment header":       ndBehind(44, fragHdr(1, 0, false), seg),
	} {
		var nd ND
		p := must(f)
		if !p.IsND() {
			t.Errorf("%s: is no ND", name)
		}
		if got := p.ND(&nd); got != BadND {
			t.Errorf("%s: got %v, want %v", name, got, BadND)
		}
	}
}

func ndBehind(kind byte, ext, seg []byte) Frame {
	f := wrap6(Tuple{Src: hostA, Dst: SolicitedNode(hostB), Proto: ICMPv6}, []byte{kind}, [][]byte{ext}, seg)
	f.Eth()[ip+7] = 255
	return f
}

func TestMulticastMAC(t *testing.T) {
	for a, want := range map[string]MAC{
		"224.128.1.2":     {0x01, 0x00, 0x5e, 0, 1, 2},
		"255.255.255.255": broadcastMAC,
		"ff02::1:ff00:42": {0x33, 0x33, 0xff, 0, 0, 0x42},
	} {
		if got := MulticastMAC(addr(a)); got != want {
			t.Errorf("%s: got %v, want %v", a, got, want)
		}
	}
}
