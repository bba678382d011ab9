package link

import (
	"math/rand/v2"
	"slices"

	"podgate/stack/packet"
)

// Theory of operation
//
// Faulty is a Device with a bad link between it and the gateway. It has no clock
// and no timer: Advance brings the time and moves what has arrived by then, and
// Next says when to come again. What happens to which frame follows from the
// seed, the frames and the times alone.
//
// Loss and the rest are about packets on a wire, so super-frames are cut first,
// and checksums are completed: a corrupted packet is one whose checksum is
// wrong, and not one that offload makes right again.

// Faulty is a device behind a bad link.
type Faulty struct {
	Device
	faults Faults
	rng    *rand.Rand
	now    int64
	to     line
	from   line
	lost   uint64
	read   [16]packet.Frame // of the device, while frames from the pod suffer
	out    []packet.Frame
}

// NewFaulty puts a bad link before a device, which is then Faulty's to close.
func NewFaulty(d Device, f Faults, seed uint64, now int64) *Faulty {
	return &Faulty{Device: d, faults: f, rng: rand.New(rand.NewPCG(seed, seed)), now: now}
}

// Faults are those in force.
func (d *Faulty) Faults() Faults { return d.faults }

// SetFaults changes what happens to frames that come from now on.
func (d *Faulty) SetFaults(f Faults) { d.faults = f }

// Advance brings the time, in ns, and sends what has reached the device by then.
func (d *Faulty) Advance(now int64) {
	d.now = now
	d.deliver()
}

// Next is when the next frame arrives at either end, and whether there is one.
func (d *Faulty) Next() (at int64, any bool) {
	for _, l := range []*line{&d.to, &d.from} {
		if len(l.frames) > 0 && (!any || l.frames[0].at < at) {
			at, any = l.frames[0].at, true
		}
	}
	return at, any
}

// Readable says whether ReadBatch has a frame without asking the device.
func (d *Faulty) Readable() bool { return len(d.from.frames) > 0 && d.from.frames[0].at <= d.now }

// Lost is how many packets were lost since the last call.
func (d *Faulty) Lost() uint64 {
	n := d.lost
	d.lost = 0
	return n
}

// Unwrap ends the faults and returns the device. Frames on their way to it
// arrive at once; those from it are lost.
func (d *Faulty) Unwrap() Device {
	for i := range d.to.frames {
		d.to.frames[i].at = d.now
	}
	d.deliver()
	d.lost += uint64(len(d.from.frames))
	d.from = line{}
	return d.Device
}

// WriteBatch implements Device.
func (d *Faulty) WriteBatch(frames []packet.Frame) (int, error) {
	if d.faults.Way == FromPod && len(d.to.frames) == 0 {
		return d.Device.WriteBatch(frames)
	}
	f := d.faults
	if f.Way == FromPod {
		f = Faults{}
	}
	for _, frame := range frames {
		d.suffer(&d.to, &f, frame)
	}
	return len(frames), d.deliver()
}

// ReadBatch implements Device.
func (d *Faulty) ReadBatch(bufs []packet.Frame) (int, error) {
	f := d.faults
	if f.Way == ToPod {
		f = Faults{Queue: f.Queue}
	}
	if d.faults.RateFrom != 0 {
		f.Rate = d.faults.RateFrom
	}
	if f.None() && len(d.from.frames) == 0 {
		return d.Device.ReadBatch(bufs)
	}
	if d.read[0] == nil {
		for i := range d.read {
			d.read[i] = make(packet.Frame, MaxFrame)
		}
	}
	n, err := d.Device.ReadBatch(d.read[:min(len(bufs), len(d.read))])
	for i, frame := range d.read[:n] {
		d.suffer(&d.from, &f, frame)
		d.read[i] = frame[:cap(frame)]
	}
	if err != nil {
		return 0, err
	}
	got := 0
	for got < len(bufs) {
		frame, ok := d.from.due(d.now)
		if !ok {
			break
		}
		bufs[got] = append(bufs[got][:0], frame...)
		got++
	}
	return got, nil
}

// suffer puts a frame, or its segments, on a line.
func (d *Faulty) suffer(l *line, f *Faults, frame packet.Frame) {
	if !Segment(frame, 0, func(s packet.Frame) { d.packet(l, f, s) }) {
		d.packet(l, f, frame) // it cannot be cut: malformed, or not IP
	}
}

func (d *Faulty) packet(l *line, f *Faults, frame packet.Frame) {
	if d.happens(f.Loss) {
		d.lost++
		return
	}
	times := 1
	if d.happens(f.Duplicate) {
		times = 2
	}
	for range times {
		copied := slices.Clone(frame)
		if d.happens(f.Corrupt) {
			d.corrupt(copied)
		}
		if !l.add(f, d.rng, copied, len(copied)-packet.VnetHdrLen, d.now) {
			d.lost++
		}
	}
}

func (d *Faulty) happens(p float64) bool { return p > 0 && d.rng.Float64() < p }

// corrupt flips a bit behind the Ethernet header.
func (d *Faulty) corrupt(f packet.Frame) {
	const header = packet.VnetHdrLen + 14
	if len(f) > header {
		f[header+d.rng.IntN(len(f)-header)] ^= 1 << d.rng.IntN(8)
	}
}

// deliver writes to the device what has reached it; what it does not take is lost.
func (d *Faulty) deliver() error {
	d.out = d.out[:0]
	for {
		f, ok := d.to.due(d.now)
		if !ok {
			break
		}
		d.out = append(d.out, f)
	}
	if len(d.out) == 0 {
		return nil
	}
	n, err := d.Device.WriteBatch(d.out)
	d.lost += uint64(len(d.out) - n)
	clear(d.out)
	return err
}
