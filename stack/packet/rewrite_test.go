package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// nat is t with other addresses and ports of the same shape.
func nat(t Tuple) Tuple {
	t.Src[14] ^= 0x5a
	t.Dst[13] ^= 0x81
	t.Dst[15] ^= 0x17
	if t.SrcPort != 0 {
		t.SrcPort ^= 0x1234
	}
	if t.DstPort != 0 {
		t.DstPort ^= 0x4321
	}
	return t
}

// apply gives a rewritten copy of f.
func apply(f Frame, r Rewrite) Frame {
	p := must(slices.Clone(f))
	r.Apply(p)
	return p.Frame
}

func portsOnly(t Tuple) Tuple { n := nat(t); n.Src, n.Dst = t.Src, t.Dst; return n }
func addrsOnly(t Tuple) Tuple { n := nat(t); n.SrcPort, n.DstPort = t.SrcPort, t.DstPort; return n }

// Full checksum: subtract old, add new, complemented (RFC 1624).
func TestFullChecksumFollowsAddressesAndPorts(t *testing.T) {
	for _, old := range allTuples {
		for name, new := range map[string]Tuple{"all": nat(old), "ports": portsOnly(old), "addresses": addrsOnly(old), "none": old} {
			t.Run(fmt.Sprint(old.Proto, old.Src, name), func(t *testing.T) {
				f := full(old, "payload of odd size")
				got := apply(f, NewRewrite(old, new))
				if want := full(new, "payload of odd size"); !bytes.Equal(got, want) {
					t.Errorf("got\n%x\nwant\n%x", got, want)
				}
				back := apply(got, NewRewrite(new, old))
				if !bytes.Equal(back, f) {
					t.Errorf("forward and back gives\n%x\nwant\n%x", back, f)
				}
			})
		}
	}
}

// Partial checksum (NEEDS_CSUM): uncomplemented pseudo-header sum, address
// delta only.
func TestPartialChecksumFollowsAddressesAlone(t *testing.T) {
	for _, old := range []Tuple{tcp4, tcp6, udp4, udp6} {
		f := partial(old, "payload")
		got := apply(f, NewRewrite(old, nat(old)))
		if want := partial(nat(old), "payload"); !bytes.Equal(got, want) {
			t.Errorf("%v: got\n%x\nwant\n%x", old.Proto, got, want)
		}
		if back := apply(got, NewRewrite(nat(old), old)); !bytes.Equal(back, f) {
			t.Errorf("%v: forward and back differs", old.Proto)
		}
		if got := apply(f, NewRewrite(old, portsOnly(old))); !bytes.Equal(got[len(got)-9:], f[len(f)-9:]) {
			t.Errorf("%v: ports changed a partial checksum", old.Proto)
		}
	}
}

func TestSuperFramePassesUntouchedButForItsHeaders(t *testing.T) {
	for _, old := range []Tuple{tcp4, tcp6, udp4, udp6} {
		got := apply(gso(old, 40000, 1400), NewRewrite(old, nat(old)))
		if want := gso(nat(old), 40000, 1400); !bytes.Equal(got, want) {
			t.Errorf("%v: super-frame is rewritten wrongly", old.Proto)
		}
	}
}

// A pod's own tunnel leaves the checksum of its inner segment unfinished and
// completes the outer one: the outer one is full, whatever the vnet header says.
func TestTunnelWithPartialInnerChecksum(t *testing.T) {
	f := full(udp4, string(make([]byte, 64)))
	f.SetVnet(VnetHdr{Flags: NeedsCsum, CsumStart: ip + 20 + 8 + 30, CsumOffset: 16})
	p := must(f)
	if p.Partial {
		t.Fatal("the inner checksum is taken for the outer one")
	}
	r := NewRewrite(udp4, nat(udp4))
	r.Apply(p)
	checkSums(t, f)
	if got := f.Vnet().CsumStart; got != ip+20+8+30 {
		t.Errorf("checksum start moved to %d", got)
	}
}

// UDP/IPv4 checksum 0: none, leave.
func TestUDPWithoutChecksumStaysWithout(t *testing.T) {
	for _, old := range []Tuple{udp4, udp6} {
		f := full(old, "x")
		at := must(f).L4 + 6
		f = edit(f, at, 0, 0)
		got := apply(f, NewRewrite(old, nat(old)))
		if c := binary.BigEndian.Uint16(got.Eth()[at:]); c != 0 {
			t.Errorf("got checksum %#04x, want none", c)
		}
		if p := must(got); p.Tuple != nat(old) {
			t.Errorf("got tuple %+v", p.Tuple)
		}
	}
}

// A computed 0 is sent as 0xffff.
func TestUDPChecksumThatComesOutAsZeroIsFFFF(t *testing.T) {
	new := nat(udp4)
	// Choose the payload so that the sum of the rewritten datagram is 0xffff.
	c := naiveChecksum(new, clearSum(segment(new, []byte{0, 0})))
	f := full(udp4, string([]byte{byte(c >> 8), byte(c)}))
	got := apply(f, NewRewrite(udp4, new))
	if c := binary.BigEndian.Uint16(got.Eth()[ip+20+6:]); c != 0xffff {
		t.Errorf("got checksum %#04x, want 0xffff", c)
	}
	checkSums(t, got)
	if back := apply(got, NewRewrite(new, udp4)); !bytes.Equal(back, f) {
		t.Error("forward and back differs")
	}
}

func clearSum(seg []byte) []byte { seg[6], seg[7] = 0, 0; return seg }

// ICMP echo: id changes touch the ICMP checksum; addresses do in v6, not in v4.
func TestEchoIdentifierAndAddresses(t *testing.T) {
	f := full(ping4, "x")
	before := binary.BigEndian.Uint16(f.Eth()[ip+20+2:])
	got := apply(f, NewRewrite(ping4, addrsOnly(ping4)))
	if c := binary.BigEndian.Uint16(got.Eth()[ip+20+2:]); c != before {
		t.Errorf("ICMPv4 checksum follows addresses: %#04x, was %#04x", c, before)
	}
	for _, old := range []Tuple{ping4, ping6, pong4, pong6} {
		got := apply(full(old, "x"), NewRewrite(old, nat(old)))
		checkSums(t, got)
		if p := must(got); p.Tuple != nat(old) {
			t.Errorf("got %+v, want %+v", p.Tuple, nat(old))
		}
	}
}

// Other ICMP messages have no identifier to write over.
func TestICMPWithoutIdentifier(t *testing.T) {
	for _, c := range []struct {
		t   Tuple
		typ byte
	}{{ping4, 13}, {ping6, 144}} {
		old := Tuple{Src: c.t.Src, Dst: c.t.Dst, Proto: c.t.Proto}
		seg := make([]byte, 20)
		seg[0], seg[5] = c.typ, 0x99
		binary.BigEndian.PutUint16(seg[2:], naiveChecksum(old, seg))
		got := apply(wrap(old, seg), NewRewrite(old, nat(old)))
		checkSums(t, got)
		p := must(got)
		if b := got.Eth()[p.L4:]; b[4] != 0 || b[5] != 0x99 {
			t.Errorf("%v: body was written over: %x", old.Proto, b)
		}
	}
}

// Later fragments follow the first: addresses, and nothing behind the header.
func TestLaterFragmentHasAddressesOnly(t *testing.T) {
	body := bytes.Repeat([]byte{0xab}, 40)
	r := NewRewrite(udp4, nat(udp4))
	got := apply(fragment4(wrap(udp4, body), 7, 64, false), r)
	if want := fragment4(wrap(nat(udp4), body), 7, 64, false); !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
	// All of a datagram's fragments together have a right checksum.
	whole := segment(udp4, bytes.Repeat([]byte{0xcd}, 56))
	first := apply(fragment4(wrap(udp4, whole[:32]), 7, 0, true), r)
	later := apply(fragment4(wrap(udp4, whole[32:]), 7, 32, false), r)
	checkSums(t, wrap(nat(udp4), append(first.Eth()[ip+20:], later.Eth()[ip+20:]...)))

	r = NewRewrite(udp6, nat(udp6))
	got = apply(wrap6(udp6, []byte{44}, [][]byte{fragHdr(7, 64, false)}, body), r)
	if want := wrap6(nat(udp6), []byte{44}, [][]byte{fragHdr(7, 64, false)}, body); !bytes.Equal(got, want) {
		t.Errorf("IPv6: got\n%x\nwant\n%x", got, want)
	}
}

// A checksum that was wrong stays wrong: rewriting must not make damage look
// whole.
func TestDamageStaysVisible(t *testing.T) {
	for _, old := range allTuples {
		f := full(old, "payload")
		f[len(f)-1] ^= 0x40
		got := apply(f, NewRewrite(old, nat(old)))
		want := full(nat(old), "payload")
		want[len(want)-1] ^= 0x40
		if !bytes.Equal(got, want) {
			t.Errorf("%v: got\n%x\nwant\n%x", old.Proto, got, want)
		}
	}
}

func TestPartialSCTPChangesPortsAlone(t *testing.T) {
	f := partialSCTP()
	got := apply(f, NewRewrite(sctp4, portsOnly(sctp4)))
	if !bytes.Equal(got[VnetHdrLen+ip+24:], f[VnetHdrLen+ip+24:]) {
		t.Error("an unfinished SCTP checksum was changed")
	}
	if p := must(got); p.Tuple != portsOnly(sctp4) {
		t.Errorf("got %+v", p.Tuple)
	}
}

func TestTTLAndMACs(t *testing.T) {
	for _, old := range []Tuple{udp4, udp6} {
		r := Rewrite{SrcMAC: macB, DstMAC: macA, SetMAC: true, DecTTL: true}
		f := full(old, "x")
		for ttl := uint8(63); ttl > 0; ttl-- {
			p := must(f)
			r.Apply(p)
			p = must(f) // its header checksum is right
			if p.TTL != ttl || p.SrcMAC() != macB || p.DstMAC() != macA || p.Tuple != old {
				t.Fatalf("got TTL %d, %v > %v, want TTL %d", p.TTL, p.SrcMAC(), p.DstMAC(), ttl)
			}
		}
	}
}

func TestZeroRewriteChangesNothing(t *testing.T) {
	for _, old := range allTuples {
		f := full(old, "x")
		if got := apply(f, Rewrite{}); !bytes.Equal(got, f) {
			t.Errorf("%v: changed", old.Proto)
		}
	}
}

func TestTupleAfterRewriteNamesTheOtherLeg(t *testing.T) {
	r := NewRewrite(tcp4, nat(tcp4))
	if got := r.Tuple(); got != nat(tcp4) {
		t.Errorf("got %+v, want %+v", got, nat(tcp4))
	}
	if !r.Translates() {
		t.Error("a translation says that it is none")
	}
	if r := NewRewrite(tcp4, tcp4); r.Translates() {
		t.Error("an identity says that it translates")
	}
}

func TestRewriteAcrossFamiliesPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewRewrite(tcp4, tcp6)
}
