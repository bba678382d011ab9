package local

// A flow that ends here and goes on elsewhere is two TCP connections and two
// copy loops. What one side does the other gets to see:
//
//	end of data (FIN)    the other side's sending half is closed, once
//	                     everything before it is written
//	reset, any error     the other side is reset (linger 0)
//	both halves ended    both are closed
//
// A loop that has seen the end of data goes on watching its side for a reset.
// Buffers of 256 KiB are taken from a pool once there is something to read, so
// that idle connections hold none; unpooled they would cost most of the
// connections a second, and smaller ones a fifth of the bytes.

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

const copyBuffer = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// side is one of the two connections of a join.
type side interface {
	// copyTo waits for data and moves what is there, at most a buffer, to w;
	// io.EOF after the last.
	copyTo(w io.Writer) error
	Write([]byte) (int, error)
	CloseWrite() error
	// watch returns once the connection, whose data has ended, is reset or closed.
	watch() error
	Close() error
	Abort() // closes with a reset
}

// join copies both ways until both sides are closed.
func join(wg *sync.WaitGroup, a, b side) {
	var ended atomic.Int32
	var end sync.Once
	shut := func(how func(side)) { end.Do(func() { how(a); how(b) }) }
	pump := func(dst, src side) {
		var err error
		for err == nil {
			err = src.copyTo(dst)
		}
		if err == io.EOF {
			// Counted first: closing the last half may end src before the
			// other loop gets to close it.
			last := ended.Add(1) == 2
			if err = dst.CloseWrite(); err == nil && last {
				shut(func(s side) { s.Close() })
				return
			}
			if err == nil {
				if err = src.watch(); ended.Load() == 2 {
					return
				}
			}
		}
		if err != nil {
			shut(side.Abort)
		}
	}
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		pump(a, b)
	})
	pump(b, a)
	<-done
}

// copyTo implements side. netstack copies into the buffer under the
// connection's lock, so that writing straight from its segments would hold the
// lock for the length of the write.
func (c *tcpConn) copyTo(w io.Writer) error {
	await(c.ep, c.wq, waiter.ReadableEvents)
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	dst := tcpip.SliceWriter(buf[:])
	res, err := c.ep.Read(&dst, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
	case *tcpip.ErrWouldBlock:
		return nil
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	default:
		return wrapErr(&net.OpError{Op: "read", Net: "tcp", Err: errors.New(err.String())})
	}
	c.ep.ModerateRecvBuf(res.Count)
	_, werr := w.Write(buf[:res.Count])
	return werr
}

// watch implements side.
func (c *tcpConn) watch() error {
	await(c.ep, c.wq, 0)
	return net.ErrClosed
}

// await returns once ep has one of events, or has failed or closed.
func await(ep tcpip.Endpoint, wq *waiter.Queue, events waiter.EventMask) {
	events |= waiter.EventErr | waiter.EventHUp
	if ep.Readiness(events)&events != 0 { // it tells of more than it is asked
		return
	}
	entry, ready := waiter.NewChannelEntry(events)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	for ep.Readiness(events)&events == 0 {
		<-ready
	}
}

// hostConn is a connection of the host's.
type hostConn struct {
	*net.TCPConn
	raw syscall.RawConn
}

func newHostConn(c *net.TCPConn) (*hostConn, error) {
	raw, err := c.SyscallConn()
	return &hostConn{c, raw}, err
}

// copyTo implements side.
func (c *hostConn) copyTo(w io.Writer) error {
	var buf *[copyBuffer]byte
	var n int
	var rerr error
	err := c.raw.Read(func(fd uintptr) bool {
		buf = copyBuffers.Get().(*[copyBuffer]byte)
		for {
			if n, rerr = unix.Read(int(fd), buf[:]); rerr != unix.EINTR {
				break
			}
		}
		if rerr == unix.EAGAIN {
			copyBuffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer copyBuffers.Put(buf)
	}
	switch {
	case err != nil:
		return err
	case rerr != nil:
		return rerr
	case n == 0:
		return io.EOF
	}
	_, err = w.Write(buf[:n])
	return err
}

// watch implements side: the poller reports a reset as one more edge.
func (c *hostConn) watch() error {
	var failed error
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, failed = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		return failed != nil && failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err != nil {
		return err
	}
	return failed
}

// Abort implements side.
func (c *hostConn) Abort() {
	c.SetLinger(0)
	c.Close()
}
