package stack

import (
	"context"
	"io"
	"slices"
	"sync"

	"podgate/stack/link"
	"podgate/stack/packet"
)

// Theory of operation
//
// A capture is a bounded queue that the worker appends copies of frames to: those
// read from a port before anything happens to them, and those written to it.
// Who called Capture takes them out and writes pcapng; when it is too slow,
// frames are missed and counted, never waited for. Without a capture the worker
// pays one look at an empty list a batch.
//
// Kernels leave checksums and segmentation to the far end; on a wire both are
// done. So frames are written as a wire would have them: super-frames cut, and
// checksums complete.

// maxCaptured is how many bytes of frames wait for the reader of a capture.
const maxCaptured = 8 << 20

// CaptureQuery says which frames are captured.
type CaptureQuery struct {
	Pod string // "namespace/name"; "": every port
}

func (q *CaptureQuery) wants(at *attachment) bool { return q.Pod == "" || q.Pod == at.label() }

// Captured says how a capture went.
type Captured struct {
	Frames uint64 // written
	Missed uint64 // that came faster than they could be written
}

type capture struct {
	query CaptureQuery
	ready chan struct{} // of capacity 1: there is something

	mu     sync.Mutex
	frames []captured
	bytes  int
	missed uint64
}

type captured struct {
	port    *attachment
	at      int64
	inbound bool
	frame   packet.Frame
}

// Capture writes the frames that q asks for to out as pcapng, each with the port
// that it passed, until ctx ends or out fails. Frames between pods pass two ports.
func (p *Plane) Capture(ctx context.Context, q CaptureQuery, out io.Writer) (Captured, error) {
	c := &capture{query: q, ready: make(chan struct{}, 1)}
	p.do(func(w *worker) { w.captures = append(slices.Clone(w.captures), c) })
	defer p.do(func(w *worker) {
		w.captures = slices.DeleteFunc(slices.Clone(w.captures), func(o *capture) bool { return o == c })
	})
	pw, err := link.NewPcapWriter(out, "podgate")
	if err != nil {
		return Captured{}, err
	}
	interfaces := map[*attachment]uint32{}
	var done Captured
	for {
		select {
		case <-ctx.Done():
			p.do(func(*worker) {}) // what the worker is about to say
		case <-c.ready:
		}
		var list []captured
		list, done.Missed = c.take()
		for _, f := range list {
			id, known := interfaces[f.port]
			if !known {
				if id, err = pw.Interface(f.port.title(), f.port.describe()); err != nil {
					return done, err
				}
				interfaces[f.port] = id
			}
			link.OnWire(f.frame, func(f2 packet.Frame) {
				if e := pw.Packet(id, f.at, f.inbound, f2.Eth()); e != nil {
					err = e
				}
			})
			if err != nil {
				return done, err
			}
			done.Frames++
		}
		if ctx.Err() != nil {
			return done, nil
		}
	}
}

// describe is what a capture says of an interface beside its name.
func (at *attachment) describe() string { return at.Name + " " + at.MAC.String() }

func (c *capture) take() ([]captured, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.frames
	c.frames, c.bytes = nil, 0
	return list, c.missed
}

// capture copies frames for whoever wants those of this port.
func (w *worker) capture(pt *port, frames []packet.Frame, inbound bool) {
	for _, c := range w.captures {
		if c.query.wants(pt.attachment) {
			c.add(pt.attachment, frames, w.now, inbound)
		}
	}
}

func (c *capture) add(at *attachment, frames []packet.Frame, now int64, inbound bool) {
	if len(frames) == 0 {
		return
	}
	c.mu.Lock()
	for _, f := range frames {
		if c.bytes+len(f) > maxCaptured {
			c.missed++
			continue
		}
		c.bytes += len(f)
		c.frames = append(c.frames, captured{at, now, inbound, slices.Clone(f)})
	}
	c.mu.Unlock()
	select {
	case c.ready <- struct{}{}:
	default:
	}
}
