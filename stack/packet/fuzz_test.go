package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// FuzzDecode feeds any bytes: nothing panics, offsets lie within the frame in
// their order, and what is built about a packet is itself without fault.
func FuzzDecode(f *testing.F) {
	for _, c := range faultCases() {
		f.Add([]byte(c.frame))
	}
	for _, t := range allTuples {
		f.Add([]byte(full(t, "payload")))
	}
	f.Add([]byte(icmpError(ICMPUnreachable, 3, udp4.Dst, udp4.Src, full(udp4, "x").Eth()[ip:])))
	f.Add([]byte(icmpError(ICMPv6TooBig, 0, udp6.Dst, udp6.Src, full(udp6, "x").Eth()[ip:])))
	f.Add([]byte(gso(tcp6, 3000, 1400)))
	buf := make([]byte, MaxBuilt)
	f.Add(slices.Clone([]byte(BuildNS(buf, macA, hostA, hostB))))
	f.Add(slices.Clone([]byte(BuildARPRequest(buf, macA, tcp4.Src, tcp4.Dst))))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame := Frame(b)
		p := new(Packet)
		if Decode(p, frame) != OK {
			return
		}
		n := len(frame.Eth())
		ordered := func(p *Packet) bool {
			return 0 <= p.L3 && p.L3 <= p.L4 && p.L4 <= p.Payload && p.End <= n
		}
		if !ordered(p) || p.Payload > p.End {
			t.Fatalf("offsets %d %d %d %d in %d bytes", p.L3, p.L4, p.Payload, p.End, n)
		}
		if p.EtherType == EtherARP {
			p.ARP(new(ARP))
			return
		}
		if p.SegmentLen() > p.Len() {
			t.Fatalf("a segment of %d bytes from %d", p.SegmentLen(), p.Len())
		}
		if p.IsND() {
			p.ND(new(ND))
		}
		from := addr("192.0.2.1")
		if p.EtherType == EtherIPv6 {
			from = addr("2001:db8::1")
		}
		out := make([]byte, max(MaxBuilt, len(frame)))
		for _, built := range []Frame{
			BuildICMPError(out, p, from, 3, 0, 0),
			BuildRST(out, p),
			BuildAbort(out, p, p.Tuple.Reverse()),
			BuildEchoReply(out, p),
		} {
			if built == nil {
				continue
			}
			var q Packet
			// The other's address may be one that no host has, or our own.
			switch fault := Decode(&q, built); fault {
			case OK, MartianSource, MartianDestination, Land, GroupSourceMAC:
			default:
				t.Fatalf("built a frame with fault %v: %x", fault, built)
			}
		}
		var in Packet
		if p.ICMPError() && p.Inner(&in) == OK {
			if !ordered(&in) || in.L3 < p.Payload || in.End > p.End || in.L4 > in.End {
				t.Fatalf("quote at %d %d %d in %d to %d", in.L3, in.L4, in.End, p.Payload, p.End)
			}
			r := NewRewrite(in.Tuple.Reverse(), nat(in.Tuple.Reverse()))
			r.ApplyError(p, &in)
		}
		r := NewRewrite(p.Tuple, nat(p.Tuple))
		r.Apply(p)
	})
}

// FuzzRewrite makes a packet from the input: the rewritten one equals the one
// made from scratch with the new tuple, and the way back gives the first again.
func FuzzRewrite(f *testing.F) {
	for kind := range allTuples {
		f.Add(uint8(kind), false, byte(0), []byte("a payload"), []byte("seed of the addresses and of the other ones, and ports...................."))
		f.Add(uint8(kind), true, byte(0x40), []byte{}, []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, kind uint8, unfinished bool, damage byte, payload, entropy []byte) {
		if len(payload) > 60000 {
			return
		}
		old := allTuples[int(kind)%len(allTuples)]
		new := old
		entropy = append(slices.Clone(entropy), make([]byte, 72)...)
		fill(&old, entropy)
		fill(&new, entropy[36:])
		make := full
		if unfinished && (old.Proto == TCP || old.Proto == UDP) {
			make = partial
		}
		p := decoded(make, old, payload)
		q := decoded(make, new, payload)
		if p == nil || q == nil {
			return
		}
		if len(payload) > 0 {
			p.Frame[len(p.Frame)-1] ^= damage
			q.Frame[len(q.Frame)-1] ^= damage
		}
		before := slices.Clone(p.Frame)
		r := NewRewrite(old, new)
		r.Apply(p)
		if !bytes.Equal(canonical(p.Frame), canonical(q.Frame)) {
			t.Fatalf("%+v to %+v: got\n%x\nwant\n%x", old, new, p.Frame, q.Frame)
		}
		if damage == 0 {
			checkSums(t, p.Frame)
		}
		back := NewRewrite(new, old)
		back.Apply(must(p.Frame))
		if !bytes.Equal(canonical(p.Frame), canonical(before)) {
			t.Fatalf("%+v to %+v and back: got\n%x\nwant\n%x", old, new, p.Frame, before)
		}
	})
}

// fill sets the addresses and the ports that t has from b.
func fill(t *Tuple, b []byte) {
	at := 0
	if t.Src.Is4() {
		at = 12
	}
	copy(t.Src[at:], b)
	copy(t.Dst[at:], b[16:])
	if t.SrcPort != 0 {
		t.SrcPort = binary.BigEndian.Uint16(b[32:])
	}
	if t.DstPort != 0 {
		t.DstPort = binary.BigEndian.Uint16(b[34:])
	}
}

// decoded is a decoded frame of t, or nil if t is not one that a packet may have.
func decoded(frame func(Tuple, string) Frame, t Tuple, payload []byte) *Packet {
	echo := t.Proto == ICMP || t.Proto == ICMPv6
	if !echo && (t.SrcPort == 0 || t.DstPort == 0) || echo && t.SrcPort|t.DstPort == 0 {
		return nil
	}
	if Decode(new(Packet), full(t, "")) != OK {
		return nil
	}
	return must(frame(t, string(payload)))
}

// canonical is f with a checksum of 0xffff, where that is the other zero, as 0.
func canonical(f Frame) Frame {
	f = slices.Clone(f)
	p := must(f)
	if p.Proto != ICMP && p.Proto != TCP && p.Proto != ICMPv6 {
		return f
	}
	c := f.Eth()[p.L4+checksumOffset(p.Proto):]
	if c[0] == 0xff && c[1] == 0xff {
		c[0], c[1] = 0, 0
	}
	return f
}
