package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

func sample(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewPcapWriter(&b, "podgate")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default/web", "b"} {
		if _, err := w.Interface(name, "eth0 of "+name); err != nil {
			t.Fatal(err)
		}
	}
	w.Packet(0, 1_700_000_000_123_456_789, true, bytes.Repeat([]byte{1}, 61))
	w.Packet(1, 1_700_000_001_000_000_001, false, bytes.Repeat([]byte{2}, 64))
	return b.Bytes()
}

func TestPcapComesBackAsWritten(t *testing.T) {
	r := NewPcapReader(bytes.NewReader(sample(t)))
	first, err := r.Next()
	if err != nil || first.Interface != "default/web" || first.At != 1_700_000_000_123_456_789 || !first.Inbound || len(first.Frame) != 61 {
		t.Errorf("got %+v, %v", first, err)
	}
	second, err := r.Next()
	if err != nil || second.Interface != "b" || second.At != 1_700_000_001_000_000_001 || second.Inbound || len(second.Frame) != 64 || second.Frame[63] != 2 {
		t.Errorf("got %+v, %v", second, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestPcapThatIsBroken(t *testing.T) {
	whole := sample(t)
	r := NewPcapReader(bytes.NewReader(whole[:len(whole)-5]))
	r.Next()
	if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	for at := range whole { // whatever a byte says, it ends
		bad := bytes.Clone(whole)
		bad[at] ^= 0xff
		r := NewPcapReader(bytes.NewReader(bad))
		for n := 0; ; n++ {
			if _, err := r.Next(); err != nil {
				break
			}
			if n > 10 {
				t.Fatalf("byte %d changed: it does not end", at)
			}
		}
	}
	if _, err := NewPcapReader(bytes.NewReader([]byte("GET / HTTP/1.1\r\n\r\n"))).Next(); !errors.Is(err, errPcap) {
		t.Errorf("no pcapng at all: %v", err)
	}
}

func TestClassicPcap(t *testing.T) {
	for name, order := range map[string]binary.AppendByteOrder{"little endian": binary.LittleEndian, "big endian": binary.BigEndian} {
		for magic, unit := range map[uint32]int64{0xa1b2c3d4: 1000, 0xa1b23c4d: 1} {
			var b []byte
			for _, v := range []uint32{magic, 2 | 4<<16, 0, 0, 65535, 1} {
				b = order.AppendUint32(b, v)
			}
			for i := range 2 {
				for _, v := range []uint32{1_700_000_000, uint32(5 + i), 60, 60} {
					b = order.AppendUint32(b, v)
				}
				b = append(b, bytes.Repeat([]byte{byte(i)}, 60)...)
			}
			r := NewPcapReader(bytes.NewReader(b))
			for i := range 2 {
				rec, err := r.Next()
				if want := 1_700_000_000_000_000_000 + int64(5+i)*unit; err != nil || rec.At != want || len(rec.Frame) != 60 || rec.Frame[0] != byte(i) {
					t.Errorf("%s, unit %d ns: got %+v, %v, want a frame at %d", name, unit, rec, err, want)
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("at the end: %v, want EOF", err)
			}
			r = NewPcapReader(bytes.NewReader(b[:len(b)-1]))
			r.Next()
			if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("cut short: %v", err)
			}
		}
	}
}
