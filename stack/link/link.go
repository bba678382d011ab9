// Package link holds the devices that frames come from and go to: TAP, veth
// through a packet socket, the unix sockets of virtual machines, and an in-memory
// pair.
//
// A Frame carries its virtio_net_hdr from device to device unchanged, so that a
// super-frame with a partial checksum, as one pod's kernel made it, is what the
// other pod's kernel takes. Only a device that refuses such a frame gets it
// segmented in software. Bits of the header that speak of reception only
// (DATA_VALID) mean nothing on the way out, and kernels ignore them there.
//
// The package starts no goroutines.
package link

import (
	"sync/atomic"

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

// Counters of a device, in frames. They may be read at any time.
type Counters struct {
	// Full counts how often a write found no room and stopped.
	Full atomic.Uint64
	// Refused counts frames that the kernel would not take as they were: too
	// long for the link, or with a header that makes no sense to it.
	Refused atomic.Uint64
	// Oversize counts frames read that were longer than MaxFrame, and lost.
	Oversize atomic.Uint64
	// Segmented counts super-frames that had to be cut up in software.
	Segmented atomic.Uint64
}

var (
	_ Device = (*TAP)(nil)
	_ Device = (*Veth)(nil)
	_ Device = (*QEMU)(nil)
	_ Device = (*Mem)(nil)
)
