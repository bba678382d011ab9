package packet

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

var (
	tcp4  = tuple(TCP, "10.244.0.5:40000", "10.96.0.10:80")
	tcp6  = tuple(TCP, "[fd00:10:244::5]:40000", "[fd00:10:96::a]:80")
	udp4  = tuple(UDP, "10.244.0.5:40000", "10.96.0.10:53")
	udp6  = tuple(UDP, "[fd00:10:244::5]:40000", "[fd00:10:96::a]:53")
	lite4 = tuple(UDPLite, "10.244.0.5:40000", "10.96.0.10:53")
	sctp4 = tuple(SCTP, "10.244.0.5:40000", "10.96.0.10:3868")
	sctp6 = tuple(SCTP, "[fd00:10:244::5]:40000", "[fd00:10:96::a]:3868")
	ping4 = tuple(ICMP, "10.244.0.5:77", "10.244.0.9:0")
	ping6 = tuple(ICMPv6, "[fd00:10:244::5]:77", "[fd00:10:244::9]:0")
	pong4 = tuple(ICMP, "10.244.0.9:0", "10.244.0.5:77")
	pong6 = tuple(ICMPv6, "[fd00:10:244::9]:0", "[fd00:10:244::5]:77")

	allTuples = []Tuple{tcp4, tcp6, udp4, udp6, lite4, sctp4, sctp6, ping4, ping6, pong4, pong6}
)

func TestDecodeFindsTupleAndOffsets(t *testing.T) {
	for _, want := range allTuples {
		t.Run(fmt.Sprint(want.Proto, want.Src), func(t *testing.T) {
			p := must(full(want, "hello"))
			if p.Tuple != want {
				t.Errorf("got tuple %+v, want %+v", p.Tuple, want)
			}
			if got := string(p.TransportPayload()); got != "hello" {
				t.Errorf("got payload %q", got)
			}
			if p.SrcMAC() != macA || p.DstMAC() != macB || p.TTL != 64 || p.Fragment() {
				t.Errorf("got %v > %v, TTL %d, fragment %v", p.SrcMAC(), p.DstMAC(), p.TTL, p.Fragment())
			}
			checkSums(t, p.Frame)
		})
	}
}

func TestPaddingIsNotPayload(t *testing.T) {
	f := append(full(udp4, "x"), make([]byte, 17)...)
	p := must(f)
	if got := string(p.TransportPayload()); got != "x" {
		t.Errorf("got payload %q, want %q", got, "x")
	}
	if got, want := p.Len(), 20+8+1; got != want {
		t.Errorf("got length %d, want %d", got, want)
	}
}

// GSO super-frame against MTU: compare headers and gso_size, not the frame.
func TestSegmentLenOfSuperFrame(t *testing.T) {
	for _, c := range []struct {
		name string
		f    Frame
		want int
	}{
		{"plain", full(tcp4, "hello"), 45},
		{"TCP4", gso(tcp4, 60000, 1448), 40 + 1448},
		{"TCP6", gso(tcp6, 60000, 1428), 60 + 1428},
		{"USO", gso(udp4, 60000, 1400), 28 + 1400},
		{"one segment", gso(tcp4, 100, 1448), 140},
	} {
		if got := must(c.f).SegmentLen(); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestIPv4OptionsAreStepped(t *testing.T) {
	f := withOptions(full(udp4, "x"), 1, 1, 148, 4, 0, 0, 1, 0) // NOP NOP router-alert NOP end
	p := must(f)
	if p.Tuple != udp4 || p.L4 != ethLen+28 {
		t.Errorf("got %+v, L4 at %d", p.Tuple, p.L4)
	}
}

func TestExtensionHeadersAreWalked(t *testing.T) {
	opts := make([]byte, 8)
	long := make([]byte, 24)
	long[1] = 2
	routing := []byte{0, 0, 3, 0, 0, 0, 0, 0} // type 3, no segments left
	f := wrap6(udp6, []byte{0, 60, 43, 44, 60}, [][]byte{opts, long, routing, fragHdr(9, 0, false), opts}, segment(udp6, []byte("x")))
	p := must(f)
	if p.Tuple != udp6 || string(p.TransportPayload()) != "x" {
		t.Errorf("got %+v %q", p.Tuple, p.TransportPayload())
	}
	if p.Fragment() {
		t.Error("an atomic fragment counts as a fragment (RFC 6946)")
	}
}

// Later fragments follow the first by (src, dst, proto, id).
func TestFragmentsShareAKey(t *testing.T) {
	body := string(make([]byte, 16))
	first := must(fragment4(wrap(udp4, segmentOf(udp4, 24, 48)), 7, 0, true))
	later := must(fragment4(wrap(udp4, []byte(body)), 7, 24, false))
	if first.FragKey() != later.FragKey() {
		t.Errorf("keys differ: %+v, %+v", first.FragKey(), later.FragKey())
	}
	if first.Tuple != udp4 || !first.Fragment() || first.LaterFragment() {
		t.Errorf("first: got %+v", first)
	}
	if later.SrcPort != 0 || later.DstPort != 0 || later.Frag.Offset != 24 || !later.LaterFragment() {
		t.Errorf("later: got %+v", later)
	}

	// In IPv6 a later fragment names the header that follows, which need not
	// be the transport's.
	opts := make([]byte, 8)
	first = must(wrap6(udp6, []byte{44, 60}, [][]byte{fragHdr(7, 0, true), opts}, segmentOf(udp6, 24, 48)))
	l := wrap6(udp6, []byte{44}, [][]byte{fragHdr(7, 32, false)}, []byte(body))
	l.Eth()[ethLen+40] = 60
	later = must(l)
	if first.FragKey() != later.FragKey() {
		t.Errorf("IPv6 keys differ: %+v, %+v", first.FragKey(), later.FragKey())
	}
}

// segmentOf is the first n bytes of a UDP datagram of total bytes.
func segmentOf(t Tuple, n, total int) []byte {
	return segment(t, make([]byte, total-8))[:n]
}

func withOptions(f Frame, opts ...byte) Frame {
	eth := f.Eth()
	g := append(Frame{}, f[:VnetHdrLen+ethLen+20]...)
	g = append(g, opts...)
	g = append(g, eth[ethLen+20:]...)
	h := g.Eth()[ethLen:]
	h[0] = 4<<4 | byte(20+len(opts))>>2
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)))
	return fixIP(g)
}

// edit is f with bytes of the Ethernet frame set, and the IPv4 header's
// checksum made right for it.
func edit(f Frame, at int, b ...byte) Frame {
	f = slices.Clone(f)
	copy(f.Eth()[at:], b)
	if f.Eth()[12] == 8 && f.Eth()[13] == 0 {
		fixIP(f)
	}
	return f
}

func vnet(f Frame, change func(h *VnetHdr)) Frame {
	f = slices.Clone(f)
	h := f.Vnet()
	change(&h)
	f.SetVnet(h)
	return f
}

// from and to are tcp4 or tcp6 with another address.
func from(t Tuple, a string) Frame { t.Src = addr(a); return full(t, "") }
func to(t Tuple, a string) Frame   { t.Dst = addr(a); return full(t, "") }

// land is sent by a host to itself, from the port that it goes to.
func land(t Tuple) Frame {
	t.Dst, t.DstPort = t.Src, t.SrcPort
	return full(t, "")
}

const ip = ethLen

// faultCases is one or more malformed frames for every fault of Decode.
func faultCases() map[string]struct {
	want  Fault
	frame Frame
} {
	type c = struct {
		want  Fault
		frame Frame
	}
	opts := make([]byte, 8)
	v6 := func(kinds []byte, exts ...[]byte) Frame { return wrap6(udp6, kinds, exts, segment(udp6, nil)) }
	frag := func(n, offset int, more bool) Frame {
		return fragment4(wrap(tcp4, segment(tcp4, make([]byte, 64))[:n]), 1, offset, more)
	}
	flags := func(b byte) Frame { return edit(full(tcp4, ""), ip+20+13, b) }
	super := gso(tcp4, 3000, 1448)
	chain := make([][]byte, 9)
	for i := range chain {
		chain[i] = opts
	}
	return map[string]c{
		"empty":                         {ShortFrame, nil},
		"vnet header only":              {ShortFrame, make(Frame, VnetHdrLen)},
		"half an Ethernet header":       {ShortFrame, full(tcp4, "")[:VnetHdrLen+13]},
		"802.1Q":                        {VLANTag, edit(full(tcp4, ""), 12, 0x81, 0)},
		"802.1ad":                       {VLANTag, edit(full(tcp4, ""), 12, 0x88, 0xa8)},
		"LLDP":                          {UnknownEtherType, edit(full(tcp4, ""), 12, 0x88, 0xcc)},
		"multicast Ethernet source":     {GroupSourceMAC, edit(full(tcp4, ""), 6, 0x33)},
		"IPv4 header cut":               {ShortIP, full(tcp4, "")[:VnetHdrLen+ip+19]},
		"IPv4 options cut":              {ShortIP, edit(full(tcp4, ""), ip, 0x4f)[:VnetHdrLen+ip+30]},
		"IPv6 header cut":               {ShortIP, full(tcp6, "")[:VnetHdrLen+ip+39]},
		"IPv6 in IPv4":                  {BadVersion, edit(full(tcp4, ""), ip, 0x65)},
		"IPv4 in IPv6":                  {BadVersion, edit(full(tcp6, ""), ip, 0x45)},
		"IHL 4":                         {BadIHL, edit(full(tcp4, ""), ip, 0x44)},
		"total length over frame":       {LyingLength, edit(full(tcp4, ""), ip+2, 0, 41)},
		"total length under header":     {LyingLength, edit(full(tcp4, ""), ip+2, 0, 19)},
		"payload length over frame":     {LyingLength, edit(full(tcp6, ""), ip+4, 0, 21)},
		"header checksum":               {BadHeaderChecksum, flip(full(tcp4, ""), ip+10)},
		"header checksum, options":      {BadHeaderChecksum, flip(withOptions(full(tcp4, ""), 1, 1, 1, 1), ip+10)},
		"option of length 1":            {BadOption, withOptions(full(tcp4, ""), 7, 1, 0, 0)},
		"option over header":            {BadOption, withOptions(full(tcp4, ""), 7, 5, 0, 0)},
		"option without length":         {BadOption, withOptions(full(tcp4, ""), 1, 1, 1, 7)},
		"loose source route":            {SourceRoute, withOptions(full(tcp4, ""), 131, 3, 4, 0)},
		"strict source route":           {SourceRoute, withOptions(full(tcp4, ""), 1, 137, 3, 4)},
		"routing header type 0":         {SourceRoute, v6([]byte{43}, opts)},
		"routing header, segments left": {SourceRoute, v6([]byte{43}, []byte{0, 0, 4, 1, 0, 0, 0, 0})},
		"hop-by-hop not first":          {BadExtension, v6([]byte{60, 0}, opts, opts)},
		"extension over packet":         {BadExtension, v6([]byte{60}, []byte{0, 9, 0, 0, 0, 0, 0, 0})},
		"two fragment headers":          {BadExtension, v6([]byte{44, 44}, fragHdr(1, 0, false), fragHdr(1, 0, false))},
		"nine extensions":               {BadExtension, v6([]byte{60, 60, 60, 60, 60, 60, 60, 60, 60}, chain...)},
		"jumbogram":                     {Jumbogram, edit(v6([]byte{0}, []byte{0, 0, 0xc2, 4, 0, 1, 0, 0}), ip+4, 0, 0)},
		"source loopback":               {MartianSource, from(tcp4, "127.0.0.1")},
		"source 0/8":                    {MartianSource, from(tcp4, "0.0.0.1")},
		"source unspecified":            {MartianSource, from(tcp4, "0.0.0.0")},
		"source multicast":              {MartianSource, from(tcp4, "224.0.0.1")},
		"source broadcast":              {MartianSource, from(tcp4, "255.255.255.255")},
		"source ::1":                    {MartianSource, from(tcp6, "::1")},
		"source :: to unicast":          {MartianSource, from(tcp6, "::")},
		"source multicast IPv6":         {MartianSource, from(tcp6, "ff02::1")},
		"source v4-mapped":              {MartianSource, edit(full(tcp6, ""), ip+8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10)},
		"destination loopback":          {MartianDestination, to(tcp4, "127.0.0.1")},
		"destination 0/8":               {MartianDestination, to(tcp4, "0.0.0.0")},
		"destination ::1":               {MartianDestination, to(tcp6, "::1")},
		"destination ::":                {MartianDestination, to(tcp6, "::")},
		"destination v4-mapped":         {MartianDestination, edit(full(tcp6, ""), ip+24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10)},
		"land":                          {Land, land(tcp4)},
		"land IPv6":                     {Land, land(tcp6)},
		"first fragment cuts TCP":       {TinyFragment, frag(16, 0, true)},
		"TCP options cut by fragment":   {TinyFragment, edit(frag(24, 0, true), ip+20+12, 8<<4)},
		"fragment over TCP flags":       {TinyFragment, frag(16, 8, false)},
		"first fragment without chain": {TinyFragment, wrap6(udp6, []byte{44, 60},
			[][]byte{fragHdr(1, 0, true), {0, 4, 0, 0, 0, 0, 0, 0}}, nil)},
		"first fragment cuts UDP":     {TinyFragment, wrap6(udp6, []byte{44, 60}, [][]byte{fragHdr(1, 0, true), opts}, nil)},
		"fragment past 65535":         {BadFragment, frag(40, 65528, false)},
		"fragment not of eights":      {BadFragment, frag(33, 0, true)},
		"empty fragment":              {BadFragment, frag(0, 64, false)},
		"fragment with offload":       {BadFragment, vnet(frag(24, 0, true), func(h *VnetHdr) { h.Flags, h.CsumStart, h.CsumOffset = 1, ip+20, 16 })},
		"fragment with GSO":           {BadFragment, vnet(frag(24, 0, true), func(h *VnetHdr) { h.GSOType, h.GSOSize = GSOTCP4, 8 })},
		"TCP header cut":              {ShortTransport, wrap(tcp4, segment(tcp4, nil)[:19])},
		"UDP header cut":              {ShortTransport, wrap(udp6, segment(udp6, nil)[:7])},
		"SCTP header cut":             {ShortTransport, wrap(sctp4, segment(sctp4, nil)[:11])},
		"ICMP header cut":             {ShortTransport, wrap(ping4, segment(ping4, nil)[:7])},
		"TCP data offset 4":           {BadTCPHeader, edit(full(tcp4, ""), ip+20+12, 4<<4)},
		"TCP data offset over packet": {BadTCPHeader, edit(full(tcp4, ""), ip+20+12, 6<<4)},
		"SYN FIN":                     {BadTCPFlags, flags(SYN | FIN)},
		"SYN RST":                     {BadTCPFlags, flags(SYN | RST)},
		"FIN RST":                     {BadTCPFlags, flags(FIN | RST | ACK)},
		"no flags":                    {BadTCPFlags, flags(0)},
		"FIN without ACK":             {BadTCPFlags, flags(FIN)},
		"christmas tree":              {BadTCPFlags, flags(FIN | URG | PSH)},
		"UDP length over packet":      {BadUDPLength, edit(full(udp4, ""), ip+20+4, 0, 9)},
		"UDP length under header":     {BadUDPLength, edit(full(udp4, ""), ip+20+4, 0, 7)},
		"UDP length 0":                {BadUDPLength, edit(full(udp6, ""), ip+40+4, 0, 0)},
		"UDP-Lite coverage 7":         {BadUDPLength, edit(full(lite4, ""), ip+20+4, 0, 7)},
		"to TCP port 0":               {PortZero, edit(full(tcp4, ""), ip+20+2, 0, 0)},
		"from TCP port 0":             {PortZero, edit(full(tcp4, ""), ip+20, 0, 0)},
		"to UDP port 0":               {PortZero, edit(full(udp4, ""), ip+20+2, 0, 0)},
		"to SCTP port 0":              {PortZero, edit(full(sctp4, ""), ip+20+2, 0, 0)},
		"ICMP over IPv6":              {WrongFamily, edit(full(ping6, ""), ip+6, 1)},
		"ICMPv6 over IPv4":            {WrongFamily, edit(full(ping4, ""), ip+9, 58)},
		"ICMP redirect":               {Redirect, edit(full(ping4, ""), ip+20, 5)},
		"ICMPv6 redirect":             {Redirect, edit(full(ping6, ""), ip+40, 137)},
		"short ARP":                   {BadARP, BuildARPRequest(make([]byte, MaxBuilt), macA, addr("10.244.0.5"), addr("10.244.0.9"))[:VnetHdrLen+ip+27]},

		"checksum before transport":  {BadVnetHdr, vnet(partial(tcp4, ""), func(h *VnetHdr) { h.CsumStart = ip })},
		"checksum past frame":        {BadVnetHdr, vnet(partial(tcp4, ""), func(h *VnetHdr) { h.CsumOffset = 65535 })},
		"checksum in the ports":      {BadVnetHdr, vnet(partial(tcp4, ""), func(h *VnetHdr) { h.CsumOffset = 0 })},
		"GSO without checksum":       {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.Flags = 0 })},
		"GSO of size 0":              {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.GSOSize = 0 })},
		"GSO of the other family":    {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.GSOType = GSOTCP6 })},
		"GSO of the other transport": {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.GSOType = GSOUDPL4 })},
		"GSO of unknown type":        {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.GSOType = 9 })},
		"GSO into dust":              {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.GSOSize = 7 })},
		"USO into dust":              {BadVnetHdr, gso(udp4, 3000, 20)},
		"GSO with padding":           {BadVnetHdr, append(slices.Clone(super), 0)},
		"GSO headers past frame":     {BadVnetHdr, vnet(super, func(h *VnetHdr) { h.HdrLen = 60000 })},
	}
}

// flip changes a byte and nothing else.
func flip(f Frame, at int) Frame {
	f.Eth()[at] ^= 1
	return f
}

func TestEveryMalformationHasItsFault(t *testing.T) {
	seen := map[Fault]bool{OK: true, BadND: true, BadQuote: true} // those two have tests of their own
	for name, c := range faultCases() {
		var p Packet
		if got := Decode(&p, c.frame); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
		seen[c.want] = true
	}
	for f := range Fault(NumFaults) {
		if !seen[f] {
			t.Errorf("no frame has fault %v", f)
		}
	}
}

func TestFaultNames(t *testing.T) {
	names := map[string]bool{}
	for f := range Fault(NumFaults) {
		n := f.String()
		if n == "" || names[n] || n != strings.ToLower(n) || strings.ContainsAny(n, " _") {
			t.Errorf("fault %d has the name %q", f, n)
		}
		names[n] = true
	}
}

func TestUnusualButLegal(t *testing.T) {
	dhcp := tuple(UDP, "0.0.0.0:68", "255.255.255.255:67")
	for name, f := range map[string]Frame{
		"DHCP from 0.0.0.0":     full(dhcp, ""),
		"class E":               from(tcp4, "240.0.0.1"),
		"UDP from port 0":       edit(full(udp4, ""), ip+20, 0, 0),
		"SYN with ECN":          edit(full(tcp4, ""), ip+20+13, SYN|ECE|CWR),
		"UDP with trailer":      edit(full(udp4, "options"), ip+20+4, 0, 9), // RFC 9868
		"UDP-Lite, all covered": edit(full(lite4, "x"), ip+20+4, 0, 0),
		"no next header":        edit(full(udp6, ""), ip+6, 59),
		"ESP":                   edit(full(udp6, ""), ip+6, 50),
		"GRE":                   edit(full(udp4, ""), ip+9, 47),
		"UFO":                   vnet(gso(udp4, 3000, 1480), func(h *VnetHdr) { h.GSOType = GSOUDP }),
		"TSO with ECN":          vnet(gso(tcp4, 3000, 1448), func(h *VnetHdr) { h.GSOType |= GSOECN }),
		"partial SCTP":          partialSCTP(),
	} {
		var p Packet
		if got := Decode(&p, f); got != OK {
			t.Errorf("%s: got %v, want ok", name, got)
		}
	}
}

func partialSCTP() Frame {
	return vnet(full(sctp4, "x"), func(h *VnetHdr) { *h = VnetHdr{Flags: NeedsCsum, CsumStart: ip + 20, CsumOffset: 8} })
}

func TestDecodeForgetsThePacketBefore(t *testing.T) {
	p := must(gso(tcp4, 3000, 1448))
	var want Packet
	f := edit(full(udp6, ""), ip+6, 59)
	Decode(&want, f)
	if Decode(p, f); p.Tuple != want.Tuple || p.Partial || p.GSOSize != 0 || p.TCPFlags != 0 {
		t.Errorf("got %+v, want %+v", *p, want)
	}
}
