// Package link holds the devices that frames come from and go to.
package link

import (
	"podgate/stack/packet"
)

// MaxFrame is the length of the longest packet.Frame: header, Ethernet
// header with one VLAN tag, and 65535 bytes of packet, rounded up.
const MaxFrame = packet.VnetHdrLen + 18 + 65535 + 5

// Device is one attachment. ReadBatch and WriteBatch never block and are called
// from one goroutine only; Close may be called from any.
type Device interface {
	// ReadBatch fills bufs from the front and returns how many frames it
	// read; each bufs[i] (borrowed, capacity at least MaxFrame) is resliced to
	// the frame. 0 and nil mean that nothing is waiting. An error means that
	// the device is gone.
	ReadBatch(bufs []packet.Frame) (int, error)
	// WriteBatch borrows the frames until it returns, sends them in order and
	// returns how many were taken; the rest did not fit (queue full) and is
	// the caller's to count as dropped. A frame with GSO that the device
	// cannot take is segmented here.
	WriteBatch(frames []packet.Frame) (int, error)
	// FD is what epoll waits for, or -1 for a device that is polled by hand.
	FD() int
	// Close releases the descriptors; a second Close does nothing.
	Close() error
}
