package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// udpSocket is a blocking socket that listens, or is connected.
func udpSocket(o order, listen bool) (fd int, err error) {
	var c interface{ File() (*os.File, error) }
	if listen {
		p, err := net.ListenPacket("udp", o.addr)
		if err != nil {
			return -1, err
		}
		c = p.(*net.UDPConn)
	} else {
		p, err := net.Dial("udp", o.addr)
		if err != nil {
			return -1, err
		}
		c = p.(*net.UDPConn)
	}
	f, err := c.File()
	if err != nil {
		return -1, err
	}
	sockets = append(sockets, f)
	fd = int(f.Fd()) // and makes it blocking
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	return fd, nil
}

// sockets are kept from the collector.
var sockets []*os.File

// segments sends datagrams of segmentLen bytes, many with one call as QUIC's
// stacks do, until it is killed.
func segments(o order) error {
	fd, err := udpSocket(o, false)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segmentLen); err != nil {
		return fmt.Errorf("UDP_SEGMENT: %w", err)
	}
	const atOnce = 48
	buf := make([]byte, atOnce*segmentLen)
	for {
		rawWrite(fd, buf) // a full queue is part of the load
	}
}

// countSegments takes them, as many at a time as the kernel gives.
func countSegments(o order) error {
	fd, err := udpSocket(o, true)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
		return fmt.Errorf("UDP_GRO: %w", err)
	}
	var count atomic.Uint64
	go func() {
		buf := make([]byte, 1<<16)
		for {
			if n, errno := rawRead(fd, buf); errno == 0 && n > 0 {
				count.Add(uint64(n) / segmentLen)
			}
		}
	}()
	return measure(o, &count)
}

// paced sends pacedRate datagrams a second for a window, in bursts as short as
// timers allow.
func paced(o order) error {
	fd, err := udpSocket(o, false)
	if err != nil {
		return err
	}
	buf := make([]byte, datagramSize)
	rawWrite(fd, buf) // finds the neighbour, and makes the flow
	time.Sleep(100 * time.Millisecond)
	all := int(pacedRate * o.window.Seconds())
	start := time.Now()
	for sent := 0; sent < all; {
		for due := int(pacedRate * time.Since(start).Seconds()); sent < min(due, all); sent++ {
			if errno := rawWrite(fd, buf); errno != 0 {
				return fmt.Errorf("send: %w", errno)
			}
		}
		wait := unix.Timespec{Nsec: 50_000}
		unix.Nanosleep(&wait, nil)
	}
	time.Sleep(time.Minute) // the other side reports, and ends this
	return errors.New("nobody counted")
}

// countPaced takes them until none has come for a while.
func countPaced(o order) error {
	fd, err := udpSocket(o, true)
	if err != nil {
		return err
	}
	// So that the silence at the end is noticed; the runtime's signals end calls
	// earlier.
	tv := unix.NsecToTimeval(int64(50 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	fmt.Println("ready")
	var count uint64
	var silent time.Time // since when; zero: it is not
	buf := make([]byte, 2048)
	for {
		switch n, errno := rawRead(fd, buf); {
		case errno == 0 && n > 0:
			count++
			silent = time.Time{}
		case silent.IsZero():
			silent = time.Now()
		case count > 1 && time.Since(silent) > time.Second/2:
			return report1(sample{Count: count - 1, Seconds: o.window.Seconds()}) // but for the first
		}
	}
}
