package link

import (
	"math"
	"testing"
	"time"

	"podgate/stack/packet"
)

// throughFaults sends n frames, a millisecond apart, and returns when which came.
func throughFaults(t *testing.T, spec string, seed uint64, n int) (times []int64, numbers []int, lost uint64) {
	t.Helper()
	f, err := ParseFaults(spec)
	if err != nil {
		t.Fatal(err)
	}
	near, far := NewPipe()
	d := NewFaulty(near, f, seed, 0)
	bufs := []packet.Frame{make(packet.Frame, 0, MaxFrame)}
	for now := int64(0); now < int64(n+200)*1e6; now += 1e6 {
		d.Advance(now)
		if i := now / 1e6; i < int64(n) {
			frame := make(packet.Frame, packet.VnetHdrLen+100)
			frame[20], frame[21] = byte(i>>8), byte(i)
			d.WriteBatch([]packet.Frame{frame})
		}
		for {
			if k, _ := far.ReadBatch(bufs); k == 0 {
				break
			}
			times = append(times, now)
			numbers = append(numbers, int(bufs[0][20])<<8|int(bufs[0][21]))
		}
	}
	if _, any := d.Next(); any {
		t.Error("frames are on their way still")
	}
	return times, numbers, d.Lost()
}

func TestFaultsHappenAsOftenAsAsked(t *testing.T) {
	const n = 4000
	for spec, want := range map[string]float64{"loss=10%": 0.9, "duplicate=25%": 1.25, "loss=100%": 0, "delay=5ms": 1} {
		times, _, lost := throughFaults(t, spec, 7, n)
		if got := float64(len(times)) / n; math.Abs(got-want) > 0.03 {
			t.Errorf("%s: %.3f of the frames came, want %.3f", spec, got, want)
		}
		if spec == "loss=10%" && int(lost)+len(times) != n {
			t.Errorf("%d lost and %d came, of %d", lost, len(times), n)
		}
	}
}

func TestDelayJitterAndOrder(t *testing.T) {
	times, numbers, _ := throughFaults(t, "delay=20ms,jitter=5ms", 1, 500)
	for i, at := range times {
		d := time.Duration(at - int64(numbers[i])*1e6)
		if numbers[i] != i || d < 15*time.Millisecond || d > 27*time.Millisecond {
			t.Fatalf("frame %d came as number %d after %s", numbers[i], i, d)
		}
	}
	_, numbers, _ = throughFaults(t, "reorder=10%", 1, 500)
	overtaken := 0
	for i := 1; i < len(numbers); i++ {
		if numbers[i] < numbers[i-1] {
			overtaken++
		}
	}
	if len(numbers) != 500 || overtaken < 30 || overtaken > 70 {
		t.Errorf("%d of %d frames were overtaken, want about 50", overtaken, len(numbers))
	}
}

func TestRateIsKept(t *testing.T) {
	// 100 bytes a ms are 800 kbit/s; at half of that it takes twice the time.
	times, _, _ := throughFaults(t, "rate=400kbit", 1, 150)
	if got := time.Duration(times[len(times)-1]); got < 295*time.Millisecond || got > 305*time.Millisecond {
		t.Errorf("150 frames took %s, want 300ms", got)
	}
}

func TestTheSameSeedGivesTheSameFaults(t *testing.T) {
	const spec = "loss=20%,jitter=3ms,delay=4ms,reorder=5%,duplicate=5%"
	a, an, _ := throughFaults(t, spec, 3, 300)
	b, bn, _ := throughFaults(t, spec, 3, 300)
	c, cn, _ := throughFaults(t, spec, 4, 300)
	if len(a) != len(b) || len(a) == len(c) && equalInts(an, cn) || !equalInts(an, bn) {
		t.Errorf("seed 3 gave %d and %d frames, seed 4 %d", len(a), len(b), len(c))
	}
}

func equalInts(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestFaultsInTheOtherDirection(t *testing.T) {
	near, far := NewPipe()
	f, _ := ParseFaults("delay=5ms,direction=from")
	d := NewFaulty(near, f, 1, 0)
	far.WriteBatch([]packet.Frame{make(packet.Frame, 50)})
	bufs := []packet.Frame{make(packet.Frame, 0, MaxFrame)}
	if n, _ := d.ReadBatch(bufs); n != 0 || d.Readable() {
		t.Error("a delayed frame came at once")
	}
	if at, any := d.Next(); !any || at != 5e6 {
		t.Errorf("next: %d, %v; want 5 ms", at, any)
	}
	d.Advance(5e6)
	if n, _ := d.ReadBatch(bufs); n != 1 || len(bufs[0]) != 50 {
		t.Errorf("got %d frames", n)
	}
	// The other direction does not suffer.
	d.WriteBatch([]packet.Frame{make(packet.Frame, 50)})
	if far.Waiting() != 1 {
		t.Error("a frame to the pod was held up")
	}
}

func TestFaultsAreReadAndWritten(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"loss=10%,delay=20ms":       "loss=10%,delay=20ms",
		"rate=8mbit direction=both": "rate=8000000,direction=both",
		"corrupt=0.1%,reorder=5%":   "reorder=5%,corrupt=0.1%",
		"loss=10":                   "error",
		"loss=101%":                 "error",
		"delay=soon":                "error",
		"delay=-1s":                 "error",
		"rate=1":                    "error",
		"rate=NaN":                  "error",
		"loss=NaN%":                 "error",
		"direction=up":              "error",
		"los=1%":                    "error",
	} {
		f, err := ParseFaults(text)
		got := f.String()
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: got %q (%v), want %q", text, got, err, want)
		}
	}
}

func TestCorruptionIsSeenByTheReceiver(t *testing.T) {
	near, far := NewPipe()
	d := NewFaulty(near, Faults{Corrupt: 1}, 1, 0)
	sent := make(packet.Frame, packet.VnetHdrLen+100)
	d.WriteBatch([]packet.Frame{sent})
	bufs := []packet.Frame{make(packet.Frame, 0, MaxFrame)}
	far.ReadBatch(bufs)
	differ := 0
	for i, b := range bufs[0] {
		if b != sent[i] {
			differ++
		}
	}
	if differ != 1 {
		t.Errorf("%d bytes differ, want 1", differ)
	}
}
