package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// icmpError is the error about the packet quote (from its IP header on), sent by
// from to to.
func icmpError(typ, code byte, from, to Addr, quote []byte) Frame {
	t := Tuple{Src: from, Dst: to, Proto: ICMP}
	if !from.Is4() {
		t.Proto = ICMPv6
	}
	seg := make([]byte, 8, 8+len(quote))
	seg[0], seg[1] = typ, code
	seg = append(seg, quote...)
	binary.BigEndian.PutUint16(seg[2:], naiveChecksum(t, seg))
	return wrap(t, seg)
}

func unreachable(t Tuple) byte {
	if t.Src.Is4() {
		return ICMPUnreachable
	}
	return ICMPv6Unreachable
}

// ICMP error quoting a flow: look the inner tuple up reversed; rewrite inner and
// outer. A client speaks to a Service (orig), its backend sees other addresses
// (sent), and what is quoted is what the backend saw.
func TestErrorIsRewrittenAsTheClientSentIt(t *testing.T) {
	for _, orig := range []Tuple{tcp4, tcp6, udp4, udp6, sctp4, ping4, ping6} {
		for _, n := range []int{8, 11, 18, 20, 200} {
			t.Run(fmt.Sprint(orig.Proto, orig.Src, n), func(t *testing.T) {
				sent := nat(orig)
				reply := NewRewrite(sent.Reverse(), orig.Reverse())
				quote := func(tu Tuple) []byte {
					b := full(tu, "some payload of the flow").Eth()[ip:]
					hdr := len(b) - len(segment(tu, []byte("some payload of the flow")))
					return b[:min(len(b), hdr+n)]
				}
				f := icmpError(unreachable(orig), 3, sent.Dst, sent.Src, quote(sent))
				p := must(f)
				var in Packet
				if !p.ICMPError() {
					t.Fatal("not seen as an ICMP error")
				}
				if fault := p.Inner(&in); fault != OK {
					t.Fatal(fault)
				}
				if in.Tuple != sent {
					t.Fatalf("quoted tuple %+v, want %+v", in.Tuple, sent)
				}
				reply.ApplyError(p, &in)
				checkSums(t, f)
				want := icmpError(unreachable(orig), 3, orig.Dst, orig.Src, quote(orig))
				if orig.Proto == SCTP {
					// The CRC needs the whole packet; it stays.
					copy(want.Eth()[ip+20+8+20+8:], f.Eth()[ip+20+8+20+8:][:min(4, n-8)])
					copy(want.Eth()[ip+20+2:], f.Eth()[ip+20+2:][:2])
				}
				if !bytes.Equal(f, want) {
					t.Errorf("got\n%x\nwant\n%x", f, want)
				}
			})
		}
	}
}

// A router on the way is not the Service: it keeps its address.
func TestErrorOfARouterKeepsItsSource(t *testing.T) {
	for _, orig := range []Tuple{udp4, udp6} {
		sent := nat(orig)
		router := addr("198.51.100.1")
		if !orig.Src.Is4() {
			router = addr("2001:db8::1")
		}
		f := icmpError(unreachable(orig), 0, router, sent.Src, full(sent, "x").Eth()[ip:])
		p := must(f)
		var in Packet
		p.Inner(&in)
		r := NewRewrite(sent.Reverse(), orig.Reverse())
		r.ApplyError(p, &in)
		checkSums(t, f)
		if want := icmpError(unreachable(orig), 0, router, orig.Src, full(orig, "x").Eth()[ip:]); !bytes.Equal(f, want) {
			t.Errorf("got\n%x\nwant\n%x", f, want)
		}
	}
}

func TestErrorAboutALaterFragment(t *testing.T) {
	sent := nat(udp4)
	body := bytes.Repeat([]byte{0x77}, 16)
	quoteOf := func(tu Tuple) []byte { return fragment4(wrap(tu, body), 9, 64, false).Eth()[ip:] }
	f := icmpError(ICMPTimeExceeded, 1, sent.Dst, sent.Src, quoteOf(sent))
	p := must(f)
	var in Packet
	if fault := p.Inner(&in); fault != OK || !in.LaterFragment() {
		t.Fatalf("got %v, later %v", fault, in.LaterFragment())
	}
	r := NewRewrite(sent.Reverse(), udp4.Reverse())
	r.ApplyError(p, &in)
	if want := icmpError(ICMPTimeExceeded, 1, udp4.Dst, udp4.Src, quoteOf(udp4)); !bytes.Equal(f, want) {
		t.Errorf("got\n%x\nwant\n%x", f, want)
	}
}

func TestBadQuotes(t *testing.T) {
	whole := full(udp4, "x").Eth()[ip:]
	for name, quote := range map[string][]byte{
		"nothing":          nil,
		"half a header":    whole[:19],
		"no ports":         whole[:20],
		"7 bytes":          whole[:27],
		"other family":     full(udp6, "x").Eth()[ip:],
		"ICMPv6 in IPv4":   edit(full(ping4, ""), ip+9, 58).Eth()[ip:],
		"length of header": edit(full(udp4, "x"), ip+2, 0, 10).Eth()[ip:],
	} {
		var in Packet
		if got := must(icmpError(ICMPUnreachable, 0, udp4.Dst, udp4.Src, quote)).Inner(&in); got != BadQuote {
			t.Errorf("%s: got %v, want %v", name, got, BadQuote)
		}
	}
}

// RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4 (e).
func TestWhatMustNotBeAnswered(t *testing.T) {
	icmp := func(typ byte) Frame { return edit(full(ping4, ""), ip+20, typ) }
	icmp6 := func(typ byte) Frame { return edit(full(ping6, ""), ip+40, typ) }
	dhcp := tuple(UDP, "0.0.0.0:68", "255.255.255.255:67")
	group := func(f Frame) Frame { return edit(f, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) }
	for name, c := range map[string]struct {
		f    Frame
		want bool
	}{
		"TCP":                     {full(tcp4, ""), true},
		"UDP":                     {full(udp6, ""), true},
		"ping":                    {full(ping4, ""), true},
		"ping IPv6":               {full(ping6, ""), true},
		"first fragment":          {fragment4(wrap(udp4, segmentOf(udp4, 24, 48)), 1, 0, true), true},
		"later fragment":          {fragment4(wrap(udp4, make([]byte, 8)), 1, 24, false), false},
		"unreachable":             {icmp(3), false},
		"source quench":           {icmp(4), false},
		"time exceeded":           {icmp(11), false},
		"parameter problem":       {icmp(12), false},
		"unknown ICMP":            {icmp(200), false},
		"too big":                 {icmp6(2), false},
		"unknown ICMPv6 error":    {icmp6(100), false},
		"to the broadcast":        {full(dhcp, ""), false},
		"to a group":              {to(tcp4, "224.0.0.251"), false},
		"to a group IPv6":         {to(tcp6, "ff02::fb"), false},
		"to the broadcast MAC":    {group(full(udp4, "")), false},
		"from nobody":             {group(from(tuple(ICMPv6, "[::]:1", "[ff02::2]:0"), "::")), false},
		"unicast over group, IP6": {edit(full(udp6, ""), 0, 0x33, 0x33), false},
	} {
		p := must(c.f)
		if got := p.MayAnswer(); got != c.want {
			t.Errorf("%s: may answer %v, want %v", name, got, c.want)
		}
		got := BuildICMPError(make([]byte, MaxBuilt), p, addr("10.244.0.1"), 3, 1, 0)
		if (got != nil) != c.want {
			t.Errorf("%s: error built %v, want %v", name, got != nil, c.want)
		}
	}
}

// RFC 1812 4.3.2.3: up to 576 bytes; RFC 4443 2.4 (c): up to 1280.
func TestErrorsQuoteAsMuchAsIsAllowed(t *testing.T) {
	for _, c := range []struct {
		t        Tuple
		payload  int
		from     string
		typ, cod byte
		mtu      uint32
		want     int
	}{
		{udp4, 10, "10.244.0.1", ICMPUnreachable, ICMPHostUnreachable, 0, 28 + 38},
		{udp4, 2000, "10.244.0.1", ICMPUnreachable, ICMPFragmentationNeeds, 1400, 576},
		{udp6, 10, "fd00:10:244::1", ICMPv6Unreachable, ICMPv6NoRoute, 0, 48 + 58},
		{udp6, 2000, "fd00:10:244::1", ICMPv6TooBig, 0, 1400, 1280},
	} {
		p := must(full(c.t, string(make([]byte, c.payload))))
		buf := bytes.Repeat([]byte{0xee}, MaxBuilt) // what was in it must not show
		f := BuildICMPError(buf, p, addr(c.from), c.typ, c.cod, c.mtu)
		checkSums(t, f)
		e := must(f)
		if e.Len() != c.want || e.ICMPType != c.typ || e.ICMPCode != c.cod {
			t.Errorf("%v: got %d bytes of type %d code %d, want %d", c.t.Src, e.Len(), e.ICMPType, e.ICMPCode, c.want)
		}
		if e.SrcMAC() != macB || e.DstMAC() != macA || e.Src != addr(c.from) || e.Dst != c.t.Src {
			t.Errorf("%v: goes from %v to %v", c.t.Src, e.Src, e.Dst)
		}
		if got := binary.BigEndian.Uint32(f.Eth()[e.L4+4:]); got != c.mtu {
			t.Errorf("%v: tells MTU %d, want %d", c.t.Src, got, c.mtu)
		}
		var in Packet
		if fault := e.Inner(&in); fault != OK || in.Tuple != c.t {
			t.Errorf("%v: quotes %+v (%v)", c.t.Src, in.Tuple, fault)
		}
		if !bytes.Equal(f.Eth()[e.Payload:e.End], p.Frame.Eth()[p.L3:][:e.End-e.Payload]) {
			t.Errorf("%v: quote differs from what was sent", c.t.Src)
		}
	}
}

func TestErrorsDoNotQuotePadding(t *testing.T) {
	p := must(append(full(udp4, "x"), make([]byte, 17)...))
	e := must(BuildICMPError(make([]byte, MaxBuilt), p, addr("10.244.0.1"), ICMPUnreachable, 0, 0))
	if got, want := e.Len(), 28+29; got != want {
		t.Errorf("got %d bytes, want %d", got, want)
	}
}

func TestEchoReply(t *testing.T) {
	for _, ping := range []Tuple{ping4, ping6} {
		p := must(full(ping, "abcdefgh"))
		f := BuildEchoReply(make([]byte, 2048), p)
		checkSums(t, f)
		r := must(f)
		if r.Tuple != ping.Reverse() || !r.EchoReply() || string(r.TransportPayload()) != "abcdefgh" {
			t.Errorf("got %+v %q", r.Tuple, r.TransportPayload())
		}
	}
	for _, f := range []Frame{full(pong4, ""), full(udp4, ""), to(ping4, "224.0.0.1"), to(ping6, "ff02::1")} {
		if got := BuildEchoReply(make([]byte, 2048), must(f)); got != nil {
			t.Errorf("answers %x", f)
		}
	}
}

// RFC 9293, 3.10.7.1: without ACK <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>,
// with ACK <SEQ=SEG.ACK><CTL=RST>, and never in answer to RST.
func TestRST(t *testing.T) {
	seg := func(tu Tuple, flags byte, payload string) Frame {
		s := segment(tu, []byte(payload))
		binary.BigEndian.PutUint32(s[4:], 1000)
		binary.BigEndian.PutUint32(s[8:], 7000)
		s[13] = flags
		return wrap(tu, s)
	}
	for _, tu := range []Tuple{tcp4, tcp6} {
		for _, c := range []struct {
			flags    byte
			payload  string
			seq, ack uint32
			ctl      byte
		}{
			{SYN, "", 0, 1001, RST | ACK},
			{SYN, "fast open", 0, 1010, RST | ACK},
			{SYN | ACK, "", 7000, 0, RST},
			{ACK | PSH, "data", 7000, 0, RST},
			{FIN | ACK, "", 7000, 0, RST},
		} {
			f := BuildRST(bytes.Repeat([]byte{0xee}, MaxBuilt), must(seg(tu, c.flags, c.payload)))
			checkSums(t, f)
			p := must(f)
			h := f.Eth()[p.L4:]
			seq, ack := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
			if p.Tuple != tu.Reverse() || seq != c.seq || ack != c.ack || p.TCPFlags != c.ctl {
				t.Errorf("flags %#x: got %+v seq %d ack %d flags %#x", c.flags, p.Tuple, seq, ack, p.TCPFlags)
			}
		}
		if got := BuildRST(make([]byte, MaxBuilt), must(seg(tu, RST, ""))); got != nil {
			t.Error("a reset is answered")
		}
		// The reset in a segment's own direction is where the segment was.
		f := BuildAbort(bytes.Repeat([]byte{0xee}, MaxBuilt), must(seg(tu, ACK|PSH, "data")), tu.Reverse())
		checkSums(t, f)
		p, h := must(f), must(f).Frame.Eth()
		if seq, ack := binary.BigEndian.Uint32(h[p.L4+4:]), binary.BigEndian.Uint32(h[p.L4+8:]); p.Tuple != tu.Reverse() || seq != 1000 || ack != 7000 || p.TCPFlags != RST|ACK {
			t.Errorf("abort: got %+v seq %d ack %d flags %#x", p.Tuple, seq, ack, p.TCPFlags)
		}
	}
	if got := BuildRST(make([]byte, MaxBuilt), must(full(udp4, ""))); got != nil {
		t.Error("UDP is answered with a reset")
	}
	sum := slices.Clone(gso(tcp4, 3000, 1000))
	must(sum) // a super-frame counts whole
	sum.Eth()[ip+20+13] = SYN
	h := BuildRST(make([]byte, MaxBuilt), must(sum)).Eth()[ip+20:]
	if got := binary.BigEndian.Uint32(h[8:]); got != 3001 {
		t.Errorf("got ack %d, want 3001", got)
	}
}
