package main

import (
	"bytes"
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// httpd is the role of the pods behind the front doors: one thread that answers
// GET requests with 100 bytes, or with 1 MiB at /big, and costs as little as it
// can, so that what is in front of it is what is measured.
func httpd(args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	listener := int(f.Fd())
	defer runtime.KeepAlive(l) // or the collector closes both
	defer runtime.KeepAlive(f)
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	watch := func(op, fd int, events uint32) {
		unix.EpollCtl(poll, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
	}
	watch(unix.EPOLL_CTL_ADD, listener, unix.EPOLLIN)
	answer := func(size int) []byte {
		return append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", size), bytes.Repeat([]byte("x"), size)...)
	}
	small, big := answer(100), answer(1<<20)
	type conn struct {
		tail []byte // of a request that is not complete
		owed []byte // of an answer that did not fit
	}
	conns := map[int]*conn{}
	buf := make([]byte, 64<<10)
	closeConn := func(fd int) {
		unix.Close(fd)
		delete(conns, fd)
	}
	send := func(fd int, c *conn, b []byte) bool {
		n, err := unix.Write(fd, b)
		if err != nil && err != unix.EAGAIN {
			closeConn(fd)
			return false
		}
		if n = max(n, 0); n < len(b) {
			c.owed = b[n:]
			watch(unix.EPOLL_CTL_MOD, fd, unix.EPOLLOUT)
			return false
		}
		return true
	}
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(poll, events, -1)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if fd == listener {
				if fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
					unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
					conns[fd] = &conn{}
					watch(unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN)
				}
				continue
			}
			c := conns[fd]
			if c == nil {
				continue
			}
			if len(c.owed) > 0 {
				rest := c.owed
				if c.owed = nil; send(fd, c, rest) {
					watch(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN)
				}
				continue
			}
			n, err := unix.Read(fd, buf)
			if n <= 0 {
				if err != unix.EAGAIN {
					closeConn(fd)
				}
				continue
			}
			in := buf[:n]
			if len(c.tail) > 0 {
				in = append(bytes.Clone(c.tail), in...)
				c.tail = nil
			}
			for len(in) > 0 {
				end := bytes.Index(in, []byte("\r\n\r\n"))
				if end < 0 {
					c.tail = bytes.Clone(in)
					break
				}
				what := small
				if bytes.HasPrefix(in, []byte("GET /big ")) {
					what = big
				}
				in = in[end+4:]
				if !send(fd, c, what) {
					break
				}
			}
		}
	}
}
