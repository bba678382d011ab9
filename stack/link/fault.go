package link

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Faults are what a bad link does to frames. The zero value is a good one.
// Probabilities are from 0 to 1, each of every packet for itself.
type Faults struct {
	Loss      float64
	Duplicate float64
	Corrupt   float64 // one bit of the packet is flipped
	Reorder   float64 // the frame is overtaken for reorderBy
	Delay     time.Duration
	Jitter    time.Duration // Delay is this much more or less, in order
	Rate      int64         // bits a second; 0: no limit
	RateFrom  int64         // likewise of what comes from the pod, whatever Way is
	Queue     time.Duration // how long packets may wait for the rate; 0: until memory ends
	Way       Way
}

// Way is the direction in which faults happen.
type Way uint8

// ToPod is from the gateway to the pod.
const (
	ToPod Way = iota
	FromPod
	BothWays
)

var ways = [...]string{"to", "from", "both"}

// reorderBy is by how much longer a frame takes that others shall overtake.
const reorderBy = 10 * time.Millisecond

// None says whether nothing at all is wrong.
func (f Faults) None() bool { f.Way, f.Queue = 0, 0; return f == Faults{} }

// String is what ParseFaults reads.
func (f Faults) String() string {
	var s []string
	add := func(key, value string) { s = append(s, key+"="+value) }
	percent := func(key string, p float64) {
		if p != 0 {
			add(key, strconv.FormatFloat(math.Round(p*1e9)/1e7, 'f', -1, 64)+"%")
		}
	}
	percent("loss", f.Loss)
	if f.Delay != 0 {
		add("delay", f.Delay.String())
	}
	if f.Jitter != 0 {
		add("jitter", f.Jitter.String())
	}
	percent("duplicate", f.Duplicate)
	percent("reorder", f.Reorder)
	percent("corrupt", f.Corrupt)
	if f.Rate != 0 {
		add("rate", strconv.FormatInt(f.Rate, 10))
	}
	if f.RateFrom != 0 {
		add("rate-from", strconv.FormatInt(f.RateFrom, 10))
	}
	if f.Queue != 0 && len(s) > 0 {
		add("queue", f.Queue.String())
	}
	if f.Way != ToPod && len(s) > 0 {
		add("direction", ways[f.Way])
	}
	return strings.Join(s, ",")
}

// ParseFaults reads a list such as "loss=10%,delay=20ms,rate=8mbit". Its keys
// are loss, duplicate, reorder and corrupt (a percentage), delay and jitter (a
// duration), rate and rate-from (bits a second, with kbit, mbit or gbit), queue
// (a duration) and direction (to the pod, from it, or both). The empty text is no
// fault.
func ParseFaults(text string) (f Faults, err error) {
	for _, item := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		key, value, _ := strings.Cut(item, "=")
		if err := f.Set(key, value); err != nil {
			return Faults{}, err
		}
	}
	return f, nil
}

// Set changes one of the keys that ParseFaults knows.
func (f *Faults) Set(key, value string) (err error) {
	switch key {
	case "loss":
		f.Loss, err = parsePercent(value)
	case "duplicate":
		f.Duplicate, err = parsePercent(value)
	case "reorder":
		f.Reorder, err = parsePercent(value)
	case "corrupt":
		f.Corrupt, err = parsePercent(value)
	case "delay":
		f.Delay, err = parseDelay(value)
	case "jitter":
		f.Jitter, err = parseDelay(value)
	case "rate":
		f.Rate, err = parseRate(value)
	case "rate-from":
		f.RateFrom, err = parseRate(value)
	case "queue":
		f.Queue, err = parseDelay(value)
	case "direction":
		for w, name := range ways {
			if name == value {
				f.Way = Way(w)
				return nil
			}
		}
		err = fmt.Errorf("%q is none of to, from, both", value)
	default:
		return fmt.Errorf("fault %q: known are loss, delay, jitter, duplicate, reorder, corrupt, rate, rate-from, queue and direction", key)
	}
	if err != nil {
		return fmt.Errorf("fault %s: %w", key, err)
	}
	return nil
}

func parsePercent(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") || !(v >= 0 && v <= 100) {
		return 0, fmt.Errorf("%q is not a percentage from 0%% to 100%%", s)
	}
	return v / 100, nil
}

func parseDelay(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > time.Minute {
		return 0, fmt.Errorf("%q is not a duration from 0s to 1m, such as 20ms", s)
	}
	return d, nil
}

func parseRate(s string) (int64, error) {
	unit := 1.0
	digits := s
	for suffix, u := range map[string]float64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = n, u
		}
	}
	v, err := strconv.ParseFloat(digits, 64)
	if v *= unit; err != nil || !(v == 0 || v >= 1000 && v <= 1e12) {
		return 0, fmt.Errorf("%q is not a rate of at least 1kbit, such as 8mbit", s)
	}
	return int64(v), nil
}

// line is one direction of a bad link: frames that are on their way.
type line struct {
	frames []sent // by the time of their arrival
	bytes  int
	last   int64 // when the latest of those in order arrives
	busy   int64 // until when the rate is used up
}

type sent struct {
	at    int64
	frame []byte
}

// maxOnTheWay bounds the memory of one direction, in bytes.
const maxOnTheWay = 16 << 20

// add puts a frame, which it takes, on its way at the time now and says whether
// there was room.
func (l *line) add(f *Faults, rng *rand.Rand, frame []byte, size int, now int64) bool {
	if l.bytes+len(frame) > maxOnTheWay {
		return false
	}
	at := now + int64(f.Delay)
	if f.Jitter > 0 {
		at = max(now, at+rng.Int64N(2*int64(f.Jitter)+1)-int64(f.Jitter))
	}
	if f.Rate > 0 {
		if f.Queue > 0 && l.busy-at > int64(f.Queue) {
			return false
		}
		at = max(at, l.busy)
		at += int64(float64(size) * 8e9 / float64(f.Rate))
		l.busy = at
	}
	if f.Reorder > 0 && rng.Float64() < f.Reorder {
		at += int64(reorderBy)
	} else {
		at = max(at, l.last)
		l.last = at
	}
	i := len(l.frames)
	for i > 0 && l.frames[i-1].at > at {
		i--
	}
	l.frames = append(l.frames, sent{})
	copy(l.frames[i+1:], l.frames[i:])
	l.frames[i] = sent{at, frame}
	l.bytes += len(frame)
	return true
}

// due takes out the next frame that has arrived by now.
func (l *line) due(now int64) ([]byte, bool) {
	if len(l.frames) == 0 || l.frames[0].at > now {
		return nil, false
	}
	f := l.frames[0].frame
	l.frames[0].frame = nil
	l.frames = l.frames[1:]
	l.bytes -= len(f)
	return f, true
}
