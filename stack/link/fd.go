package link

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// descriptor is what TAP and Veth share: raw system calls on a non-blocking
// descriptor, one frame a call. Go's poller is not involved: a worker calls
// until EAGAIN and waits in its own epoll. The calls are RawSyscalls, since
// they cannot block and telling the scheduler costs as much as a small frame.
type descriptor struct {
	Counters
	fd     int
	name   string
	socket bool // packet socket; else TAP
	users  atomic.Int32
}

// users counts the batches in progress in steps of two; its lowest bit says
// that Close was called. Who brings it to closing closes the descriptor, so
// that no batch ever works on a number which already means another file.
const (
	using   = 2
	closing = 1
	closed  = -1 << 30
)

func (d *descriptor) enter() bool {
	if d.users.Add(using)&closing == 0 {
		return true
	}
	d.leave()
	return false
}

func (d *descriptor) leave() {
	if d.users.Add(-using) == closing {
		d.release()
	}
}

func (d *descriptor) release() error {
	if d.users.CompareAndSwap(closing, closed|closing) {
		return unix.Close(d.fd)
	}
	return nil
}

// Close releases the descriptor, at once or when the batch in progress ends.
func (d *descriptor) Close() error {
	if d.users.Or(closing)&closing != 0 {
		return nil
	}
	if err := d.release(); err != nil {
		return fmt.Errorf("close %s: %w", d.name, err)
	}
	return nil
}

// FD is the descriptor, for epoll; it stays the device's.
func (d *descriptor) FD() int { return d.fd }

// batchBytes is when a batch ends that is not full yet: more super-frames would
// push each other out of the CPU's cache before they are written.
const batchBytes = 512 << 10

// ReadBatch implements Device.
func (d *descriptor) ReadBatch(bufs []packet.Frame) (int, error) {
	if !d.enter() {
		return 0, net.ErrClosed
	}
	defer d.leave()
	i, total := 0, 0
	for i < len(bufs) && total < batchBytes {
		buf := bufs[i][:cap(bufs[i])]
		n, errno := d.read(buf)
		switch {
		case errno == 0 && n > len(buf):
			d.Oversize.Add(1)
		case errno == 0 && n < packet.VnetHdrLen:
			d.Refused.Add(1)
		case errno == 0:
			bufs[i] = buf[:n]
			total += n
			i++
		case errno == unix.EAGAIN:
			return i, nil
		case errno == unix.EINTR:
		case errno == unix.EFAULT && !d.socket:
			d.Oversize.Add(1) // how a TAP says that the buffer was too short
		case errno == unix.ENETDOWN && d.bound():
			return i, nil // set down by somebody; it may come up again
		case i > 0:
			return i, nil // the next call meets the error again
		default:
			return 0, fmt.Errorf("read %s: %w", d.name, errno)
		}
	}
	return i, nil
}

// WriteBatch implements Device.
func (d *descriptor) WriteBatch(frames []packet.Frame) (int, error) {
	if !d.enter() {
		return 0, net.ErrClosed
	}
	defer d.leave()
	for i, f := range frames {
		switch errno := d.write(f); errno {
		case 0:
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			d.Full.Add(1)
			return i, nil
		case unix.EIO, unix.ENETDOWN: // the link is down
			return i, nil
		case unix.EINVAL:
			// A kernel before 6.2 does not know UDP segmentation offload.
			if f.Vnet().GSOType == packet.GSONone || !d.writeSegments(f) {
				d.Refused.Add(1)
			}
		case unix.EMSGSIZE:
			d.Refused.Add(1)
		default:
			return i, fmt.Errorf("write %s: %w", d.name, errno)
		}
	}
	return len(frames), nil
}

func (d *descriptor) writeSegments(f packet.Frame) bool {
	d.Segmented.Add(1)
	ok := true
	done := Segment(f, 0, func(s packet.Frame) {
		ok = ok && d.write(s) == 0
	})
	return done && ok
}

func (d *descriptor) read(buf []byte) (int, unix.Errno) {
	if d.socket {
		// MSG_TRUNC makes the kernel tell the length of a frame that was too long.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(d.fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)),
			unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
		return int(n), errno
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(d.fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	return int(n), errno
}

func (d *descriptor) write(f []byte) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(d.fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(f))), uintptr(len(f)))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// bound says whether a packet socket still has its link.
func (d *descriptor) bound() bool {
	if !d.socket {
		return false
	}
	sa, err := unix.Getsockname(d.fd)
	ll, ok := sa.(*unix.SockaddrLinklayer)
	return err == nil && ok && ll.Ifindex > 0
}

var errNoVnetHdr = errors.New("frames come without virtio_net_hdr")
