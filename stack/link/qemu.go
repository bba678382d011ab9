package link

// Theory of operation
//
// A virtual machine's network card is a unix socket in the framings of QEMU's
// -netdev: "stream" puts the length of each Ethernet frame before it, in 32 bits,
// big endian; "dgram" has a frame in each datagram. There is no virtio_net_hdr:
// what goes out is cut up and has its checksums completed, as on a wire.
//
// A stream's socket listens, and takes one connection at a time: a machine that is
// started again finds its place. What epoll waits for is an epoll of the device's
// own, which holds the listener and the connection.
//
// A datagram socket answers whoever wrote to it last, until somebody has written
// to nobody.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// maxEth is the length of the longest Ethernet frame that a stream may announce.
const maxEth = MaxFrame - packet.VnetHdrLen

// maxSocketPath is the kernel's limit.
const maxSocketPath = 107

// socketBuffer is what a socket holds in each direction, in bytes.
const socketBuffer = 4 << 20

// ListenQEMU makes a unix socket at path for [OpenQEMU], for "stream" or "dgram".
// A socket that nobody listens at any more is replaced.
func ListenQEMU(kind, path string) (*os.File, error) {
	typ := unix.SOCK_STREAM
	switch kind {
	case Stream:
	case Dgram:
		typ = unix.SOCK_DGRAM
	default:
		return nil, fmt.Errorf("socket kind %q is neither %s nor %s", kind, Stream, Dgram)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSocket && !answers(typ, path) {
		os.Remove(path)
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path is longer than %d bytes", path, maxSocketPath)
	}
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil && kind == Stream {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return f, nil
}

// answers says whether somebody has the socket at path open.
func answers(typ int, path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	return !errors.Is(unix.Connect(fd, &unix.SockaddrUnix{Name: path}), unix.ECONNREFUSED)
}

// Kinds of [OpenQEMU]'s sockets, in QEMU's words.
const (
	Stream = "stream"
	Dgram  = "dgram"
)

// QEMU is a device on a unix socket: see [OpenQEMU].
type QEMU struct {
	Counters

	mu     sync.Mutex // one batch at a time, and Close
	closed bool
	epoll  int // what FD is
	more   int // eventfd: readable while whole frames wait here
	fd     int // listens, or is the datagram socket
	dgram  bool
	peer   unix.Sockaddr // of a datagram socket; nil: nobody has written yet
	conn   int           // of a stream; -1: nobody is there
	in     []byte        // what came and is not yet a whole frame
	out    []byte        // what of a frame did not fit in
	send   []byte        // the frame that is being sent, with its length
	woken  bool          // more is readable
}

// OpenQEMU takes a socket as [ListenQEMU] makes them, which it owns from then on
// unless it fails; with Close its path goes too.
func OpenQEMU(fd int, name string) (*QEMU, error) {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	q := &QEMU{fd: fd, conn: -1, dgram: typ == unix.SOCK_DGRAM}
	var err1, err2 error
	q.epoll, err1 = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	q.more, err2 = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	err = errors.Join(err1, err2)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), q.watch(fd), q.watch(q.more))
	}
	if err != nil {
		unix.Close(q.epoll)
		unix.Close(q.more)
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return q, nil
}

// watch makes epoll wait for a descriptor; of a socket it asks for room.
func (q *QEMU) watch(fd int) error {
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	return unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// FD implements Device.
func (q *QEMU) FD() int { return q.epoll }

// Close implements Device.
func (q *QEMU) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	q.hangUp()
	if sa, err := unix.Getsockname(q.fd); err == nil {
		if u, ok := sa.(*unix.SockaddrUnix); ok && u.Name != "" {
			os.Remove(u.Name)
		}
	}
	return errors.Join(unix.Close(q.fd), unix.Close(q.more), unix.Close(q.epoll))
}

// ReadBatch implements Device.
func (q *QEMU) ReadBatch(bufs []packet.Frame) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, net.ErrClosed
	}
	if q.dgram {
		return q.readDatagrams(bufs)
	}
	if q.conn < 0 && !q.accept() {
		return 0, nil
	}
	n := 0
	if q.flush(); q.whole() || q.fill() {
		n = q.frames(bufs)
	}
	q.remind(q.whole())
	return n, nil
}

// remind makes FD readable while frames wait here instead of in the socket.
func (q *QEMU) remind(on bool) {
	if on == q.woken {
		return
	}
	q.woken = on
	var b [8]byte
	if b[7] = 1; on {
		unix.Write(q.more, b[:])
	} else {
		unix.Read(q.more, b[:])
	}
}

// whole says whether a frame is there, or what cannot be one.
func (q *QEMU) whole() bool {
	if len(q.in) < 4 {
		return false
	}
	size := int(binary.BigEndian.Uint32(q.in))
	return size > maxEth || len(q.in)-4 >= size
}

// accept takes the machine that connects, if none is there.
func (q *QEMU) accept() bool {
	fd, _, err := unix.Accept4(q.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return false // nobody, or gone again
	}
	if q.watch(fd) != nil {
		unix.Close(fd)
		return false
	}
	// Whoever comes next waits in the listener's queue without waking anybody.
	unix.EpollCtl(q.epoll, unix.EPOLL_CTL_DEL, q.fd, nil)
	q.conn = fd
	return true
}

func (q *QEMU) hangUp() {
	if q.conn < 0 {
		return
	}
	unix.Close(q.conn)
	q.conn, q.in, q.out = -1, q.in[:0], q.out[:0]
	if !q.closed {
		q.watch(q.fd)
	}
}

// fill reads once and says whether something came.
func (q *QEMU) fill() bool {
	if cap(q.in)-len(q.in) < maxEth+4 {
		q.in = append(make([]byte, 0, 4*(maxEth+4)), q.in...)
	}
	n, err := unix.Read(q.conn, q.in[len(q.in):cap(q.in)])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false
	case err != nil || n == 0:
		q.hangUp()
		return false
	}
	q.in = q.in[:len(q.in)+n]
	return true
}

// frames takes the whole frames out of what came.
func (q *QEMU) frames(bufs []packet.Frame) (n int) {
	at := 0
	for n < len(bufs) && len(q.in)-at >= 4 {
		size := int(binary.BigEndian.Uint32(q.in[at:]))
		if size > maxEth {
			q.Oversize.Add(1)
			q.hangUp() // where the next one begins is not known
			return n
		}
		if len(q.in)-at-4 < size {
			break
		}
		bufs[n] = withHeader(bufs[n], q.in[at+4:at+4+size])
		at += 4 + size
		n++
	}
	q.in = q.in[:copy(q.in, q.in[at:])]
	return n
}

// withHeader is an Ethernet frame behind an empty virtio_net_hdr, in buf's memory.
func withHeader(buf packet.Frame, eth []byte) packet.Frame {
	buf = buf[:packet.VnetHdrLen]
	clear(buf)
	return append(buf, eth...)
}

func (q *QEMU) readDatagrams(bufs []packet.Frame) (int, error) {
	for i := 0; i < len(bufs); {
		buf := bufs[i][:cap(bufs[i])]
		n, from, err := unix.Recvfrom(q.fd, buf[packet.VnetHdrLen:], unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return i, nil // EAGAIN; others are the other side's end, who may come again
		case n > len(buf)-packet.VnetHdrLen:
			q.Oversize.Add(1)
		default:
			if a, ok := from.(*unix.SockaddrUnix); ok && a.Name != "" {
				q.peer = a
			}
			clear(buf[:packet.VnetHdrLen])
			bufs[i] = buf[:packet.VnetHdrLen+n]
			i++
		}
	}
	return len(bufs), nil
}

// WriteBatch implements Device. Frames for a machine that is not there are lost,
// as on an unplugged cable.
func (q *QEMU) WriteBatch(frames []packet.Frame) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, net.ErrClosed
	}
	for i, f := range frames {
		fits := true
		if OnWire(f, func(f packet.Frame) { fits = fits && q.write(f.Eth()) }); !fits {
			q.Full.Add(1)
			return i, nil
		}
	}
	return len(frames), nil
}

// write sends one Ethernet frame and says whether there was room.
func (q *QEMU) write(eth []byte) bool {
	if q.dgram {
		if q.peer == nil {
			return true
		}
		err := unix.Sendto(q.fd, eth, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, q.peer)
		return err != unix.EAGAIN && err != unix.ENOBUFS
	}
	if q.conn < 0 {
		return true
	}
	if !q.flush() {
		return false
	}
	q.send = append(binary.BigEndian.AppendUint32(q.send[:0], uint32(len(eth))), eth...)
	n, ok := q.put(q.send)
	if ok && n > 0 && n < len(q.send) {
		q.out = append(q.out, q.send[n:]...) // a frame that has begun has to end
		q.interest(unix.EPOLLIN | unix.EPOLLOUT)
	}
	return n > 0 || !ok
}

func (q *QEMU) interest(events uint32) {
	unix.EpollCtl(q.epoll, unix.EPOLL_CTL_MOD, q.conn, &unix.EpollEvent{Events: events, Fd: int32(q.conn)})
}

// flush sends the rest of a frame and says whether it is gone.
func (q *QEMU) flush() bool {
	if len(q.out) == 0 || q.conn < 0 {
		return true
	}
	n, ok := q.put(q.out)
	if ok {
		if q.out = q.out[:copy(q.out, q.out[n:])]; len(q.out) == 0 {
			q.interest(unix.EPOLLIN)
		}
	}
	return len(q.out) == 0
}

// put writes what fits; not ok means that the connection is over.
func (q *QEMU) put(b []byte) (n int, ok bool) {
	n, err := unix.SendmsgN(q.conn, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	switch {
	case err == nil:
		return n, true
	case err == unix.EAGAIN || err == unix.EINTR || err == unix.ENOBUFS:
		return 0, true
	}
	q.hangUp()
	return 0, false
}
