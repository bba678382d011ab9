package link

import (
	"bytes"
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
