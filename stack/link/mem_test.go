package link

import (
	"errors"
	"net"
	"testing"

	"podgate/stack/packet"
)

func TestPipeCopiesInOrderAndIsBounded(t *testing.T) {
	a, b := NewPipe()
	f := packet.Frame{0: 1, 20: 0}
	for i := range pipeFrames {
		f[20] = byte(i)
		if n, err := a.WriteBatch([]packet.Frame{f}); n != 1 || err != nil {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
	}
	if n, err := a.WriteBatch([]packet.Frame{f}); n != 0 || err != nil {
		t.Errorf("a full pipe took %d, %v", n, err)
	}
	bufs := make([]packet.Frame, 64)
	for i := range bufs {
		bufs[i] = make(packet.Frame, MaxFrame)
	}
	total := 0
	for {
		n, err := b.ReadBatch(bufs)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for _, got := range bufs[:n] {
			if len(got) != len(f) || got[20] != byte(total) {
				t.Fatalf("frame %d is %v", total, got)
			}
			total++
		}
	}
	if total != pipeFrames {
		t.Errorf("read %d frames, want %d", total, pipeFrames)
	}
}

func TestClosedPipeIsGoneOnceDrained(t *testing.T) {
	a, b := NewPipe()
	a.WriteBatch([]packet.Frame{make(packet.Frame, 30)})
	a.Close()
	a.Close()
	bufs := []packet.Frame{make(packet.Frame, 0, MaxFrame)}
	if n, err := b.ReadBatch(bufs); n != 1 || err != nil {
		t.Errorf("got %d, %v; want the last frame", n, err)
	}
	if _, err := b.ReadBatch(bufs); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read of a closed pipe: %v", err)
	}
	if _, err := b.WriteBatch(bufs); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to a closed pipe: %v", err)
	}
}
