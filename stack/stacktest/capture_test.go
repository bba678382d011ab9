package stacktest

import (
	"bytes"
	"context"
	"io"
	"testing"

	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// A capture shows frames as they come and as they leave, cut and with complete
// checksums, under the names of the pods.
func TestCaptureShowsWhatIsOnTheWire(t *testing.T) {
	w := New(t, stack.Config{})
	w.Apply(fragmentShop)
	for _, q := range []struct {
		pod  string
		want []string // interface and direction
	}{
		{"", []string{"default/web in", "default/web in", "default/api out", "default/api out"}},
		{"default/api", []string{"default/api out", "default/api out"}},
	} {
		r, pw := io.Pipe()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan stack.Captured, 1)
		go func() {
			got, err := w.Plane.Capture(ctx, stack.CaptureQuery{Pod: q.pod}, pw)
			if err != nil {
				t.Error(err)
			}
			pw.Close()
			done <- got
		}()
		// The section's header is written once frames are captured.
		head := make([]byte, 8)
		io.ReadFull(r, head)
		head = append(head, make([]byte, int(head[4])-8)...)
		io.ReadFull(r, head[8:])
		p := toService(w, packet.UDP, 53, 2000)
		p.GSOSize = 1200
		w.Send(w.Pod("web"), p.Frame())
		pr := link.NewPcapReader(io.MultiReader(bytes.NewReader(head), r))
		for i, want := range q.want {
			rec, err := pr.Next()
			if err != nil {
				t.Fatal(err)
			}
			got := rec.Interface + " out"
			if rec.Inbound {
				got = rec.Interface + " in"
			}
			var d packet.Packet
			fault := packet.Decode(&d, append(make(packet.Frame, packet.VnetHdrLen), rec.Frame...))
			if got != want || fault != packet.OK || d.Len() > 1300 || verify(&d) != "" {
				t.Errorf("frame %d: %s, %s, %d bytes %s; want %s", i, got, fault, d.Len(), verify(&d), want)
			}
		}
		cancel()
		go io.Copy(io.Discard, r)
		if got := <-done; got.Frames == 0 || got.Missed != 0 {
			t.Errorf("%q: %+v", q.pod, got)
		}
	}
}
