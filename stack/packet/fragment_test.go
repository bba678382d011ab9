package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// whole is a UDP packet of n bytes of data, with IPv4 options.
func whole(t *testing.T, options []byte, n int) *Packet {
	t.Helper()
	tuple := Tuple{Src: Addr{10: 0xff, 11: 0xff, 12: 10, 15: 1}, Dst: Addr{10: 0xff, 11: 0xff, 12: 10, 15: 2}, Proto: UDP}
	f, b := newIP(make([]byte, VnetHdrLen+ethLen+ip4Len+len(options)+udpLen+n), MAC{2, 1}, MAC{2, 2}, tuple, 64, len(options)+udpLen+n)
	copy(b, options)
	u := b[len(options):]
	binary.BigEndian.PutUint16(u, 1)
	binary.BigEndian.PutUint16(u[2:], 2)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	for i := range u[udpLen:] {
		u[udpLen+i] = byte(i * 7)
	}
	h := f.Eth()[ethLen:]
	h[0] = 4<<4 | uint8((ip4Len+len(options))>>2)
	binary.BigEndian.PutUint16(h[4:], 77)
	binary.BigEndian.PutUint16(h[10:], 0)
	binary.BigEndian.PutUint16(h[10:], Checksum(h[:ip4Len+len(options)]))
	p := new(Packet)
	if fault := Decode(p, f); fault != OK {
		t.Fatal(fault)
	}
	return p
}

func pieces(t *testing.T, p *Packet, mtu int) (out []*Packet) {
	t.Helper()
	ok := Fragment(p, mtu, func(n int) []byte { return make([]byte, n) }, func(f Frame) {
		q := new(Packet)
		if fault := Decode(q, f); fault != OK {
			t.Fatalf("MTU %d: a fragment is %s", mtu, fault)
		}
		if q.Len() > mtu {
			t.Errorf("MTU %d: a fragment of %d bytes", mtu, q.Len())
		}
		out = append(out, q)
	})
	if !ok {
		t.Fatalf("MTU %d: not fragmented", mtu)
	}
	return out
}

// assemble puts fragments together as a receiver does.
func assemble(t *testing.T, list []*Packet) []byte {
	t.Helper()
	var data []byte
	for i, q := range list {
		if int(q.Frag.Offset) != len(data) || q.Frag.More != (i < len(list)-1) || q.Frag.ID != 77 {
			t.Fatalf("fragment %d is at %d (more: %v, id %d), want %d", i, q.Frag.Offset, q.Frag.More, q.Frag.ID, len(data))
		}
		data = append(data, q.Frame.Eth()[q.L4:q.End]...)
	}
	return data
}

func TestFragmentsMakeTheWhole(t *testing.T) {
	for _, mtu := range []int{68, 576, 1280, 1499, 1500} {
		p := whole(t, nil, 4000)
		if got := assemble(t, pieces(t, p, mtu)); !bytes.Equal(got, p.Frame.Eth()[p.L4:p.End]) {
			t.Errorf("MTU %d: the data differs", mtu)
		}
	}
}

func TestFragmentsOfFragmentsKeepTheirPlace(t *testing.T) {
	p := whole(t, nil, 4000)
	var list []*Packet
	for _, q := range pieces(t, p, 1500) {
		list = append(list, pieces(t, q, 600)...)
	}
	if got := assemble(t, list); !bytes.Equal(got, p.Frame.Eth()[p.L4:p.End]) {
		t.Error("the data differs")
	}
}

func TestOnlyCopiedOptionsAreRepeated(t *testing.T) {
	// Record route (7) is not copied, security (130) is.
	options := []byte{7, 7, 4, 0, 0, 0, 0, 1, 130, 3, 9, 0}
	list := pieces(t, whole(t, options, 300), 200)
	for i, q := range list {
		got := q.Frame.Eth()[q.L3+ip4Len : q.L4]
		want := options
		if i > 0 {
			want = []byte{130, 3, 9, 0}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("fragment %d has options %v, want %v", i, got, want)
		}
	}
	assemble(t, list)
}

func TestNoRoomToFragment(t *testing.T) {
	if Fragment(whole(t, nil, 100), 27, nil, nil) {
		t.Error("fragmented into packets without data")
	}
}
