package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The agents make and take the load: small processes, one on either side, on
// blocking sockets and plain system calls, so that what is measured is the path
// between them and not Go's poller. The server's side says "ready" and, except
// for round trips and connections, does the measuring: what arrived counts.

// sample is what an agent reports, as one line of JSON.
type sample struct {
	Count   uint64  `json:"count"` // bytes, packets, connections or round trips
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50,omitempty"` // microseconds
	P99     float64 `json:"p99,omitempty"`
	Gateway float64 `json:"-"` // CPUs that the gateways took meanwhile
}

// roles are what a re-executed bench can be.
var roles = map[string]func(args []string) error{
	"dnsask":      dnsAsk,
	"dnsawait":    dnsAwait,
	"dnsupstream": dnsUpstream,
	"agent-serve": serve,
	"agent-load":  load,
	"gateway":     gateway,
	"httpd":       httpd,
	"flows":       flowsProcess,

	"services-gateway": servicesGateway,
	"policy-gateway":   policyGateway,
}

// order is what an agent is told to do.
type order struct {
	what         string // a metric's load
	addr         string
	streams      int
	cpu          int
	warm, window time.Duration
}

func (o order) args() []string {
	return []string{
		"-what", o.what, "-addr", o.addr, "-streams", fmt.Sprint(o.streams), "-cpu", fmt.Sprint(o.cpu),
		"-warm", o.warm.String(), "-window", o.window.String(),
	}
}

func parseOrder(args []string) (o order, err error) {
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	fs.StringVar(&o.what, "what", "", "stream, fetch, rr, connect or datagram")
	fs.StringVar(&o.addr, "addr", "", "address and port")
	fs.IntVar(&o.streams, "streams", 1, "streams at once")
	fs.IntVar(&o.cpu, "cpu", -1, "the CPU to stay on")
	fs.DurationVar(&o.warm, "warm", 0, "time before the measurement")
	fs.DurationVar(&o.window, "window", time.Second, "time of the measurement")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	// Every loop may sit in a raw system call, holding its P, for ever: have
	// enough of them, and no collector that would wait.
	runtime.GOMAXPROCS(o.streams + 4)
	debug.SetGCPercent(-1)
	return o, pin(os.Getpid(), o.cpu)
}

// pin keeps all threads of a process on one CPU; -1 lets them run anywhere.
func pin(pid, cpu int) error {
	var set unix.CPUSet
	if cpu >= 0 {
		set.Set(cpu)
	} else {
		for i := range len(set) * 64 {
			set.Set(i)
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		var tid int
		fmt.Sscan(t.Name(), &tid)
		if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
			return fmt.Errorf("pin to CPU %d: %w", cpu, err)
		}
	}
	return nil
}

func report1(s sample) error { return json.NewEncoder(os.Stdout).Encode(s) }

// serve is the receiving side.
func serve(args []string) error {
	o, err := parseOrder(args)
	if err != nil {
		return err
	}
	var count atomic.Uint64
	switch o.what {
	case "segments":
		return countSegments(o)
	case "paced":
		return countPaced(o)
	case "datagram":
		c, err := net.ListenPacket("udp", o.addr)
		if err != nil {
			return err
		}
		f, err := c.(*net.UDPConn).File()
		if err != nil {
			return err
		}
		fd := int(f.Fd()) // and makes it blocking
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		go func() {
			buf := make([]byte, 2048)
			for {
				if n, errno := rawRead(fd, buf); errno == 0 && n > 0 {
					count.Add(1)
				}
			}
		}()
		return measure(o, &count)
	}
	l, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	accept := func() (int, error) {
		fd, _, err := unix.Accept4(int(f.Fd()), unix.SOCK_CLOEXEC)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		return fd, err
	}
	switch o.what {
	case "stream":
		go func() {
			for {
				fd, err := accept()
				if err != nil {
					return
				}
				go drain(fd, &count)
			}
		}()
		return measure(o, &count)
	case "fetch":
		fmt.Println("ready")
		for {
			fd, err := accept()
			if err != nil {
				return err
			}
			go pour(fd)
		}
	case "rr", "connect", "service":
		fmt.Println("ready")
		for {
			fd, err := accept()
			if err != nil {
				return err
			}
			echo(fd)
			unix.Close(fd)
		}
	}
	return fmt.Errorf("nothing serves %q", o.what)
}

// pour sends until the other side has enough.
func pour(fd int) {
	defer unix.Close(fd)
	buf := make([]byte, 256<<10)
	for {
		if errno := rawWrite(fd, buf); errno != 0 && errno != unix.EINTR {
			return
		}
	}
}

// measure waits for the load to begin, lets it warm up and counts for a window.
func measure(o order, count *atomic.Uint64) error {
	fmt.Println("ready")
	return watch(o, count)
}

// watch is measure of a load that is there already.
func watch(o order, count *atomic.Uint64) error {
	deadline := time.Now().Add(10 * time.Second)
	for count.Load() == 0 {
		if time.Now().After(deadline) {
			return errors.New("nothing arrived within 10 s")
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(o.warm)
	start, before := time.Now(), count.Load()
	time.Sleep(o.window)
	return report1(sample{Count: count.Load() - before, Seconds: time.Since(start).Seconds()})
}

func drain(fd int, count *atomic.Uint64) {
	buf := make([]byte, 256<<10)
	for {
		n, errno := rawRead(fd, buf)
		if errno == unix.EINTR {
			continue
		}
		if n == 0 || errno != 0 {
			return
		}
		count.Add(uint64(n))
	}
}

func echo(fd int) {
	buf := make([]byte, 1)
	for {
		if n, errno := rawRead(fd, buf); n != 1 || errno != 0 {
			return
		}
		if errno := rawWrite(fd, buf); errno != 0 {
			return
		}
	}
}

// load is the sending side.
func load(args []string) error {
	o, err := parseOrder(args)
	if err != nil {
		return err
	}
	switch o.what {
	case "stream":
		return stream(o)
	case "fetch":
		fd, err := dial(o.addr)
		if err != nil {
			return err
		}
		var count atomic.Uint64
		go drain(fd, &count)
		return watch(o, &count)
	case "rr":
		return roundTrips(o)
	case "connect":
		return connects(o)
	case "service":
		return handshakes(o)
	case "datagram":
		return datagrams(o)
	case "segments":
		return segments(o)
	case "paced":
		return paced(o)
	case "probe":
		_, err := net.DialTimeout("tcp", o.addr, o.window)
		return err
	}
	return fmt.Errorf("nothing loads %q", o.what)
}

// stream sends until it is killed.
func stream(o order) error {
	failed := make(chan error)
	for range o.streams {
		fd, err := dial(o.addr)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 256<<10)
			for {
				if errno := rawWrite(fd, buf); errno != 0 && errno != unix.EINTR {
					failed <- fmt.Errorf("send: %w", errno)
					return
				}
			}
		}()
	}
	return <-failed
}

func roundTrips(o order) error {
	fd, err := dial(o.addr)
	if err != nil {
		return err
	}
	took := make([]uint32, 0, 4<<20) // nanoseconds
	buf := make([]byte, 1)
	begin := time.Now().Add(o.warm)
	end := begin.Add(o.window)
	for now := time.Now(); now.Before(end) && len(took) < cap(took); {
		if errno := rawWrite(fd, buf); errno != 0 {
			return errno
		}
		if n, errno := rawRead(fd, buf); n != 1 || errno != 0 {
			return fmt.Errorf("the answer was cut off: %w", errno)
		}
		then := now
		if now = time.Now(); then.After(begin) {
			took = append(took, uint32(now.Sub(then)))
		}
	}
	if len(took) == 0 {
		return errors.New("no round trip within the window")
	}
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[len(took)*p/100]) / 1e3 }
	return report1(sample{Count: uint64(len(took)), Seconds: o.window.Seconds(), P50: at(50), P99: at(99)})
}

// connects opens, uses once and closes connections one after another.
func connects(o order) error {
	var n uint64
	buf := make([]byte, 1)
	start := time.Now()
	counting := false
	for end := start.Add(o.warm + o.window); time.Now().Before(end); n++ {
		if !counting && time.Since(start) > o.warm {
			counting, n, start = true, 0, time.Now()
		}
		fd, err := dial(o.addr)
		if err != nil {
			return err
		}
		if errno := rawWrite(fd, buf); errno != 0 {
			return errno
		}
		if _, errno := rawRead(fd, buf); errno != 0 {
			return errno
		}
		unix.Close(fd)
	}
	return report1(sample{Count: n, Seconds: time.Since(start).Seconds()})
}

// handshakes opens and closes connections one after another and reports how
// long each took to open.
func handshakes(o order) error {
	took := make([]uint32, 0, 1<<20) // nanoseconds
	begin := time.Now().Add(o.warm)
	end := begin.Add(o.window)
	for now := time.Now(); (now.Before(end) || len(took) == 0) && len(took) < cap(took); now = time.Now() {
		fd, err := dial(o.addr)
		if err != nil {
			return err
		}
		if now.After(begin) {
			took = append(took, uint32(time.Since(now)))
		}
		unix.Close(fd)
	}
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[len(took)*p/100]) / 1e3 }
	return report1(sample{Count: uint64(len(took)), Seconds: o.window.Seconds(), P50: at(50), P99: at(99)})
}

// datagramSize is the payload of the UDP flood in bytes.
const datagramSize = 64

// datagrams floods until it is killed.
func datagrams(o order) error {
	c, err := net.Dial("udp", o.addr)
	if err != nil {
		return err
	}
	f, err := c.(*net.UDPConn).File()
	if err != nil {
		return err
	}
	fd, buf := int(f.Fd()), make([]byte, datagramSize)
	for {
		rawWrite(fd, buf) // a full queue is part of the load
	}
}

// dial connects a blocking socket; net.Dial would cost more than the handshake.
func dial(addr string) (int, error) {
	to, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	sa := &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func rawRead(fd int, buf []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	return int(n), errno
}

func rawWrite(fd int, buf []byte) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	return errno
}

// ready waits for an agent to say that it is.
func ready(out *bufio.Reader, who string) error {
	line, err := out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%s ended before it was ready: %w", who, err)
	}
	if line != "ready\n" {
		return fmt.Errorf("%s said %q, want ready", who, line)
	}
	return nil
}
