package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"podgate/stack/packet"
)

// superFrame builds a frame with GSO and a partial checksum, as a kernel would.
func superFrame(v4, tcp bool, options, payload, size int, flags byte) packet.Frame {
	be := binary.BigEndian
	l3 := 14
	ipLen, ethertype := 40, uint16(packet.EtherIPv6)
	if v4 {
		ipLen, ethertype = 20, packet.EtherIPv4
	}
	l4 := l3 + ipLen
	l4Len := 8
	h := packet.VnetHdr{Flags: packet.NeedsCsum, GSOType: packet.GSOUDPL4, GSOSize: uint16(size), CsumStart: uint16(l4), CsumOffset: 6}
	proto := packet.UDP
	if tcp {
		l4Len = 20 + options
		h.CsumOffset, h.GSOType, proto = 16, packet.GSOTCP6, packet.TCP
		if v4 {
			h.GSOType = packet.GSOTCP4
		}
		h.GSOType |= packet.GSOECN
	}
	n := l4 + l4Len + payload
	f := make(packet.Frame, packet.VnetHdrLen+n)
	h.HdrLen = uint16(l4 + l4Len)
	f.SetVnet(h)
	eth := f.Eth()
	copy(eth, []byte{0x0a, 0x58, 10, 244, 0, 5, 0x0a, 0x58, 10, 244, 0, 4})
	be.PutUint16(eth[12:], ethertype)
	ip := eth[l3:]
	if v4 {
		ip[0], ip[8], ip[9] = 0x45, 64, byte(proto)
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[4:], 0xfffe)
		copy(ip[12:], []byte{10, 244, 0, 4, 10, 244, 0, 5})
		be.PutUint16(ip[10:], packet.Checksum(ip[:20]))
	} else {
		ip[0], ip[6], ip[7] = 0x60, byte(proto), 64
		be.PutUint16(ip[4:], uint16(len(ip)-40))
		copy(ip[8:], []byte{0xfd, 15: 4})
		copy(ip[24:], []byte{0xfd, 15: 5})
	}
	seg := eth[l4:]
	be.PutUint16(seg, 40000)
	be.PutUint16(seg[2:], 80)
	if tcp {
		be.PutUint32(seg[4:], 0xffffff00)
		seg[12], seg[13] = byte(l4Len/4)<<4, flags
		for i := range options {
			seg[20+i] = 1
		}
	} else {
		be.PutUint16(seg[4:], uint16(len(seg)))
	}
	for i := range payload {
		seg[l4Len+i] = byte(i * 7)
	}
	var p packet.Packet
	p.Proto, p.Frame, p.L4, p.End = proto, f, l4, n
	if v4 {
		p.Src, p.Dst = addr4(ip[12:]), addr4(ip[16:])
	} else {
		p.Src, p.Dst = packet.Addr(ip[8:24]), packet.Addr(ip[24:40])
	}
	be.PutUint16(seg[h.CsumOffset:], p.PseudoSum())
	return f
}

func addr4(b []byte) packet.Addr {
	return packet.Addr{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}

// segments collects what Segment emits and proves what holds of every piece.
func segments(t *testing.T, f packet.Frame, mtu int) []packet.Packet {
	t.Helper()
	before := bytes.Clone(f)
	var out []packet.Packet
	ok := Segment(f, mtu, func(s packet.Frame) {
		var p packet.Packet
		if fault := packet.Decode(&p, bytes.Clone(s)); fault != packet.OK {
			t.Fatalf("piece %d: %v", len(out), fault)
		}
		out = append(out, p)
	})
	if !bytes.Equal(f, before) {
		t.Fatal("Segment changed its input")
	}
	if !ok {
		if len(out) > 0 {
			t.Fatalf("refused, but emitted %d pieces", len(out))
		}
		return nil
	}
	var want packet.Packet
	whole := bytes.Clone(f)
	CompleteChecksum(whole) // of a tunnel, one within the payload
	if fault := packet.Decode(&want, whole); fault != packet.OK {
		t.Fatal("cut a frame that cannot be decoded:", fault)
	}
	var payload []byte
	for i, p := range out {
		payload = append(payload, p.TransportPayload()...)
		if mtu > 0 && p.Len() > mtu {
			t.Errorf("piece %d has %d bytes, over the MTU of %d", i, p.Len(), mtu)
		}
		if h := p.Frame.Vnet(); h.GSOType != 0 || h.Flags&packet.NeedsCsum != 0 {
			t.Errorf("piece %d still carries %+v", i, h)
		}
		if p.Tuple != want.Tuple {
			t.Errorf("piece %d is of %v, want %v", i, p.Tuple, want.Tuple)
		}
		if p.GSOSize == 0 && want.GSOSize != 0 {
			at := map[packet.Proto]int{packet.TCP: 16, packet.UDP: 6}[p.Proto]
			if got := binary.BigEndian.Uint16(p.Frame.Eth()[p.L4+at:]); got != p.TransportChecksum() {
				t.Errorf("piece %d has checksum %#x, want %#x", i, got, p.TransportChecksum())
			}
		}
	}
	if !bytes.Equal(payload, want.TransportPayload()) {
		t.Errorf("%d pieces carry other bytes than the super-frame", len(out))
	}
	return out
}

func TestSegmentCutsEveryKind(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		for _, tcp := range []bool{true, false} {
			for _, payload := range []int{1, 1400, 1401, 14000, 60001} {
				t.Run(fmt.Sprintf("v4=%v,tcp=%v,%d", v4, tcp, payload), func(t *testing.T) {
					f := superFrame(v4, tcp, 12, payload, 1400, 0x99)
					out := segments(t, f, 1500)
					if got, want := len(out), (payload+1399)/1400; got != want {
						t.Fatalf("got %d pieces, want %d", got, want)
					}
					for i, p := range out {
						if v4 {
							if got, want := binary.BigEndian.Uint16(p.Frame.Eth()[18:]), 0xfffe+uint16(i); got != want {
								t.Errorf("piece %d has id %#x, want %#x", i, got, want)
							}
						}
						if !tcp {
							continue
						}
						if got, want := binary.BigEndian.Uint32(p.Frame.Eth()[p.L4+4:]), 0xffffff00+uint32(i*1400); got != want {
							t.Errorf("piece %d starts at %#x, want %#x", i, got, want)
						}
						want := byte(0x10)
						if i == 0 {
							want |= tcpCWR
						}
						if i == len(out)-1 {
							want |= tcpFIN | tcpPSH
						}
						if got := p.TCPFlags; got != want {
							t.Errorf("piece %d has flags %#x, want %#x", i, got, want)
						}
					}
				})
			}
		}
	}
}

func TestSegmentFitsTheMTU(t *testing.T) {
	tcp := superFrame(true, true, 0, 9000, 1460, 0x18)
	if got := segments(t, tcp, 576); len(got) != (9000+535)/536 {
		t.Errorf("got %d pieces, want one for every 536 bytes", len(got))
	}
	if segments(t, superFrame(true, false, 0, 9000, 1460, 0), 576) != nil {
		t.Error("datagrams were made shorter than they are")
	}
	if got := segments(t, superFrame(true, false, 0, 9000, 1460, 0), 0); len(got) != 7 {
		t.Errorf("without an MTU got %d pieces, want 7", len(got))
	}
}

func TestSegmentCompletesPlainFrames(t *testing.T) {
	f := superFrame(true, true, 0, 100, 0, 0x18)
	h := f.Vnet()
	h.GSOType = packet.GSONone
	f.SetVnet(h)
	got := segments(t, f, 1500)
	if len(got) != 1 {
		t.Fatalf("got %d frames, want 1", len(got))
	}
	p := got[0]
	if got, want := binary.BigEndian.Uint16(p.Frame.Eth()[p.L4+16:]), p.TransportChecksum(); got != want {
		t.Errorf("got checksum %#x, want %#x", got, want)
	}
	if segments(t, f, 100) != nil {
		t.Error("a frame over the MTU was let through")
	}
}

func TestCompleteChecksumChecksItsHeader(t *testing.T) {
	f := make(packet.Frame, packet.VnetHdrLen+60)
	for _, h := range []packet.VnetHdr{
		{Flags: packet.NeedsCsum, CsumStart: 50, CsumOffset: 9},
		{Flags: packet.NeedsCsum, CsumStart: 65535, CsumOffset: 65535},
		{Flags: packet.NeedsCsum, GSOType: packet.GSOTCP4, CsumStart: 34, CsumOffset: 16},
	} {
		f.SetVnet(h)
		if CompleteChecksum(f) {
			t.Errorf("%+v was taken for good", h)
		}
	}
}

func FuzzSegment(f *testing.F) {
	for _, v4 := range []bool{true, false} {
		for _, tcp := range []bool{true, false} {
			f.Add([]byte(superFrame(v4, tcp, 12, 5000, 1400, 0x99)), uint16(1500))
			f.Add([]byte(superFrame(v4, tcp, 0, 100, 10, 0x99)), uint16(0))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, mtu uint16) {
		if len(data) < packet.VnetHdrLen || len(data) > 8000 {
			return
		}
		segments(t, data, int(mtu))
		CompleteChecksum(bytes.Clone(data))
	})
}

func TestSegmentUndoesAppendUDP(t *testing.T) {
	macA, macB := packet.MAC{0x0a, 0x58, 10, 244, 0, 4}, packet.MAC{0x0a, 0x58, 10, 244, 0, 5}
	for _, addrs := range [][2]string{{"10.96.0.10", "10.244.0.5"}, {"fd00:10:96::a", "fd00:10:244::5"}} {
		at := packet.Tuple{
			Src: packet.AddrFrom(netip.MustParseAddr(addrs[0])), Dst: packet.AddrFrom(netip.MustParseAddr(addrs[1])),
			SrcPort: 53, DstPort: 40000, Proto: packet.UDP,
		}
		datagrams := []string{"one", "two", "six", "ab"}
		frame := packet.BuildUDP(make([]byte, 4096), macA, macB, at, []byte(datagrams[0]))
		for _, d := range datagrams[1:] {
			if frame = packet.AppendUDP(frame, []byte(d)); frame == nil {
				t.Fatalf("%v: %q does not go in", at, d)
			}
		}
		if packet.AppendUDP(frame, []byte("x")) != nil || packet.AppendUDP(packet.BuildUDP(make([]byte, 4096), macA, macB, at, []byte("x")), []byte("longer")) != nil {
			t.Errorf("%v: a datagram after a shorter one goes in", at)
		}
		var got []string
		Segment(frame, 0, func(f packet.Frame) {
			var p packet.Packet
			if fault := packet.Decode(&p, f); fault != packet.OK || p.Tuple != at || p.Partial {
				t.Errorf("%v: %v, %v", at, fault, p.Tuple)
			}
			got = append(got, string(p.UDPData())) // none if the checksum is wrong
		})
		if !slices.Equal(got, datagrams) {
			t.Errorf("%v: got %q, want %q", at, got, datagrams)
		}
	}
}
