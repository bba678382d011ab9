package link

import (
	"net"
	"sync"

	"podgate/stack/packet"
)

// pipeFrames is how many frames wait in each direction of a pipe.
const pipeFrames = 1024

// Mem is one end of a pipe in memory. It takes super-frames as they are, may
// be used from any goroutine, and is polled by hand.
type Mem struct {
	in, out *queue
}

// NewPipe makes two devices, each of which reads what the other writes. Closing
// one closes both.
func NewPipe() (a, b *Mem) {
	x, y := new(queue), new(queue)
	return &Mem{x, y}, &Mem{y, x}
}

// ReadBatch implements Device. Frames that were written before the pipe was
// closed can still be read.
func (m *Mem) ReadBatch(bufs []packet.Frame) (int, error) { return m.in.pop(bufs) }

// WriteBatch implements Device; it copies.
func (m *Mem) WriteBatch(frames []packet.Frame) (int, error) { return m.out.push(frames) }

// FD implements Device: there is none.
func (m *Mem) FD() int { return -1 }

// Waiting is how many frames ReadBatch could read now.
func (m *Mem) Waiting() int {
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	return m.in.n
}

// Close implements Device.
func (m *Mem) Close() error {
	m.in.close()
	m.out.close()
	return nil
}

// queue is a ring of frames whose memory is kept for the next ones.
type queue struct {
	mu     sync.Mutex
	ring   [pipeFrames]packet.Frame
	head   int // the oldest frame
	n      int
	closed bool
}

func (q *queue) push(frames []packet.Frame) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, net.ErrClosed
	}
	for i, f := range frames {
		if q.n == pipeFrames {
			return i, nil
		}
		slot := &q.ring[(q.head+q.n)%pipeFrames]
		*slot = append((*slot)[:0], f...)
		q.n++
	}
	return len(frames), nil
}

func (q *queue) pop(bufs []packet.Frame) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == 0 && q.closed {
		return 0, net.ErrClosed
	}
	n := min(len(bufs), q.n)
	for i := range n {
		bufs[i] = append(bufs[i][:0], q.ring[q.head]...)
		q.head = (q.head + 1) % pipeFrames
	}
	q.n -= n
	return n, nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}
