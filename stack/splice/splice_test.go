package splice

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/link"
	"podgate/stack/packet"
)

// peer is a pod that speaks TCP by hand, and the server that it speaks with.
type peer struct {
	t      *testing.T
	s      *Splicer
	server *net.TCPListener
	host   *net.TCPConn // the server's end
	tuple  packet.Tuple
	seq    uint32 // next to send
	ack    uint32 // next that is expected
	errs   []unix.Errno
	frames []packet.Packet // that came and were not looked at
	bufs   []packet.Frame
}

func newPeer(t *testing.T, cfg Config) *peer {
	t.Helper()
	cfg.MTU = 1500
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	bufs := make([]packet.Frame, 32)
	for i := range bufs {
		bufs[i] = make(packet.Frame, link.MaxFrame)
	}
	return &peer{t: t, bufs: bufs, s: s, server: l, seq: 0xfffffff0, tuple: packet.Tuple{
		Src: packet.AddrFrom(netip.MustParseAddr("10.244.0.9")), SrcPort: 40000,
		Dst: packet.AddrFrom(netip.MustParseAddr("192.0.2.1")), DstPort: 80, Proto: packet.TCP,
	}}
}

// open begins a connection to port of the server's address.
func (p *peer) open(port int) {
	p.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil && err != unix.EINPROGRESS {
		p.t.Fatal(err)
	}
	syn := &Segment{Tuple: p.tuple, Seq: p.seq, Flags: packet.SYN, Window: 64000, Options: []byte{optMSS, 4, 5, 0xb4, optSACKPermitted, 2, optScale, 3, 0}}
	p.seq++
	err = p.s.Open(syn, fd, func(_ int, errno unix.Errno) bool {
		p.errs = append(p.errs, errno)
		return errno == unix.ECONNREFUSED
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// send has the pod send a segment.
func (p *peer) send(flags uint8, seq uint32, window uint16, data string) {
	p.s.Deliver(&Segment{Tuple: p.tuple, Seq: seq, Ack: p.ack, Flags: flags, Window: window, Data: []byte(data)})
}

// poll runs the Splicer once.
func (p *peer) poll() {
	p.s.Poll()
	for _, f := range p.bufs[:p.s.Emit(p.bufs)] {
		var d packet.Packet
		f = bytes.Clone(f)
		if fault := packet.Decode(&d, f); fault != packet.OK {
			p.t.Fatalf("malformed frame: %s: % x", fault, f)
		}
		if got, want := d.PseudoSum(), binary.BigEndian.Uint16(f.Eth()[d.L4+16:]); got != want {
			p.t.Fatalf("pseudo-header sum %#x, want %#x", want, got)
		}
		p.frames = append(p.frames, d)
	}
}

// until polls until there is a frame that ok likes, and forgets those before.
func (p *peer) until(what string, ok func(d *packet.Packet, seq, ack uint32, data []byte) bool) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		for i := range p.frames {
			d := &p.frames[i]
			tcp := d.Frame.Eth()[d.L4:]
			if ok(d, binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]), d.Frame.Eth()[d.Payload:d.End]) {
				p.frames = p.frames[i+1:]
				return
			}
		}
		p.frames = nil
		p.poll()
		if len(p.frames) == 0 {
			fds := []unix.PollFd{{Fd: int32(p.s.FD()), Events: unix.POLLIN}}
			unix.Poll(fds, 1000)
		}
	}
	p.t.Fatalf("no %s", what)
}

// flags waits for a segment with exactly these.
func (p *peer) flags(what string, want uint8) {
	p.t.Helper()
	p.until(what, func(d *packet.Packet, _, _ uint32, _ []byte) bool { return d.TCPFlags == want })
}

// data waits for bytes of the server.
func (p *peer) data(want string) {
	p.t.Helper()
	p.until("data", func(_ *packet.Packet, seq, _ uint32, data []byte) bool { return seq == p.ack && string(data) == want })
	p.ack += uint32(len(want))
}

// handshake opens a connection that works.
func (p *peer) handshake() {
	p.t.Helper()
	p.open(p.server.Addr().(*net.TCPAddr).Port)
	p.until("SYN-ACK", func(d *packet.Packet, seq, ack uint32, _ []byte) bool {
		p.ack = seq + 1
		return d.TCPFlags == packet.SYN|packet.ACK && ack == p.seq
	})
	p.send(packet.ACK, p.seq, 64000, "")
	c, err := p.server.AcceptTCP()
	if err != nil {
		p.t.Fatal(err)
	}
	p.host = c
	p.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
}

// say sends data in order.
func (p *peer) say(data string) {
	p.send(packet.ACK|packet.PSH, p.seq, 64000, data)
	p.seq += uint32(len(data))
}

// hears reads what the server got.
func (p *peer) hears(want string) {
	p.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(p.host, got); err != nil || string(got) != want {
		p.t.Errorf("server read %q, %v; want %q", got, err, want)
	}
}

func (p *peer) ended() {
	p.t.Helper()
	if n := p.s.Len(); n != 0 {
		p.t.Errorf("%d connections left", n)
	}
}

func TestRequestAndAnswer(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	p.say("question")
	p.hears("question")
	p.host.Write([]byte("answer"))
	p.until("answer that acknowledges", func(d *packet.Packet, seq, ack uint32, data []byte) bool {
		return string(data) == "answer" && ack == p.seq
	})
	p.ack += uint32(len("answer"))
	// The pod ends first: nothing is left when it has acknowledged.
	p.send(packet.FIN|packet.ACK, p.seq, 64000, "")
	p.seq++
	if _, err := p.host.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("server read %v, want EOF", err)
	}
	p.host.Close()
	p.flags("FIN", packet.FIN|packet.ACK)
	p.ack++
	p.send(packet.ACK, p.seq, 64000, "")
	p.ended()
}

func TestServerEndsFirst(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	p.host.Write([]byte("bye"))
	p.host.CloseWrite()
	p.data("bye")
	p.flags("FIN", packet.FIN|packet.ACK)
	p.ack++
	p.say("and you")
	p.hears("and you")
	p.send(packet.FIN|packet.ACK, p.seq, 64000, "")
	p.seq++
	p.until("acknowledgment of the FIN", func(_ *packet.Packet, _, ack uint32, _ []byte) bool { return ack == p.seq })
	// Once more, as though that had been lost.
	p.send(packet.FIN|packet.ACK, p.seq-1, 64000, "")
	p.until("another", func(_ *packet.Packet, _, ack uint32, _ []byte) bool { return ack == p.seq })
	for end := time.Now().Add(time.Minute); p.s.Len() > 0 && time.Now().Before(end); { // TIME-WAIT
		unix.Poll([]unix.PollFd{{Fd: int32(p.s.FD()), Events: unix.POLLIN}}, 1000)
		p.poll()
	}
	p.ended()
}

func TestRefusedIsReset(t *testing.T) {
	p := newPeer(t, Config{})
	port := p.server.Addr().(*net.TCPAddr).Port
	p.server.Close()
	p.open(port)
	p.until("reset", func(d *packet.Packet, _, ack uint32, _ []byte) bool {
		return d.TCPFlags == packet.RST|packet.ACK && ack == p.seq
	})
	p.ended()
	if len(p.errs) != 1 || p.errs[0] != unix.ECONNREFUSED {
		t.Errorf("outcomes %v, want one refusal", p.errs)
	}
}

func TestResetsPassBothWays(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	p.send(packet.RST, p.seq+100, 0, "") // somewhere in the window: not believed
	p.until("challenge", func(d *packet.Packet, _, ack uint32, _ []byte) bool { return ack == p.seq })
	p.send(packet.RST, p.seq, 0, "")
	p.ended()
	if _, err := p.host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server read %v, want a reset", err)
	}
	p.seq += 1000
	p.handshake()
	p.host.SetLinger(0)
	p.host.Close()
	p.flags("reset", packet.RST|packet.ACK)
	p.ended()
}

// What is lost on either way comes again; what arrives twice counts once.
func TestLossAndReordering(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	at := p.seq
	p.send(packet.ACK, at+5, 64000, "world")
	p.until("SACK", func(d *packet.Packet, _, ack uint32, _ []byte) bool {
		o := d.Frame.Eth()[d.L4+tcpLen : d.Payload]
		return ack == at && len(o) == 12 && bytes.Equal(o[:4], []byte{optNOP, optNOP, optSACK, 10}) &&
			binary.BigEndian.Uint32(o[4:]) == at+5 && binary.BigEndian.Uint32(o[8:]) == at+10
	})
	p.send(packet.ACK, at, 64000, "hello")
	p.send(packet.ACK, at, 64000, "hello")
	p.seq += 10
	p.hears("helloworld")
	p.until("acknowledgment of both", func(_ *packet.Packet, _, ack uint32, _ []byte) bool { return ack == p.seq })

	big := string(bytes.Repeat([]byte("0123456789"), 1000))
	p.host.Write([]byte(big))
	first := p.ack
	p.until("all", func(_ *packet.Packet, seq, _ uint32, data []byte) bool { return seq+uint32(len(data)) == first+10000 })
	for range 3 {
		p.send(packet.ACK, p.seq, 64000, "")
	}
	p.until("the first again at once", func(_ *packet.Packet, seq, _ uint32, data []byte) bool { return seq == first && len(data) > 0 })
	p.until("and after silence", func(_ *packet.Packet, seq, _ uint32, data []byte) bool { return seq == first && len(data) > 0 })
	p.ack = first + 10000
	p.send(packet.ACK, p.seq, 64000, "")
	p.host.Write([]byte("more"))
	p.data("more")
}

// While something is sent again, what arrives late says nothing of the round trip
// time; a gap that the pod reports counts though its window changes, and bytes
// that came twice do not.
func TestWhatGapsTell(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	c := p.s.conns[p.tuple]
	first := p.ack
	for _, word := range []string{"one", "two"} {
		p.host.Write([]byte(word))
		p.until(word, func(_ *packet.Packet, _, _ uint32, data []byte) bool { return string(data) == word })
	}
	for i := range c.segs {
		c.segs[i].at -= int64(5 * time.Second)
	}
	rtt, vary := c.rtt, c.vary
	sack := func(from, to uint32) []byte {
		o := []byte{optNOP, optNOP, optSACK, 10}
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(o, from), to)
	}
	tell := func(window uint16, options []byte) {
		p.s.Deliver(&Segment{Tuple: p.tuple, Seq: p.seq, Ack: first, Flags: packet.ACK, Window: window, Options: options})
	}
	for w := range uint16(4) {
		tell(60000+w, sack(first-3, first))
	}
	if c.dups != 0 {
		t.Fatalf("%d duplicates of what came twice", c.dups)
	}
	for w := range uint16(3) {
		tell(61000+w, sack(first+3, first+6))
	}
	p.until("the first again", func(_ *packet.Packet, seq, _ uint32, data []byte) bool { return seq == first && len(data) > 0 })
	if !c.recovering {
		t.Error("the gap was noticed by silence")
	}
	p.ack = first + 6
	p.send(packet.ACK, p.seq, 64000, "")
	if len(c.segs) != 0 || c.rtt != rtt || c.vary != vary {
		t.Errorf("%d segments are left; round trip time %v±%v, was %v±%v", len(c.segs), time.Duration(c.rtt), time.Duration(c.vary), time.Duration(rtt), time.Duration(vary))
	}
}

// A pod that takes nothing holds the server up and is asked; one that takes
// everything is not held up by a server that does not read.
func TestClosedWindows(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	p.send(packet.ACK, p.seq, 0, "")
	p.host.Write([]byte("patience"))
	p.until("probe of the window", func(d *packet.Packet, seq, _ uint32, data []byte) bool {
		if len(data) > 0 {
			t.Errorf("%q was sent into a closed window", data)
		}
		return seq == p.ack-1
	})
	p.send(packet.ACK, p.seq, 64000, "")
	p.data("patience")

	sent := 0
	line := string(bytes.Repeat([]byte("x"), 60000))
	closed := false
	for sent < 64<<20 && !closed {
		p.say(line)
		sent += len(line)
		p.poll()
		for _, d := range p.frames {
			closed = closed || binary.BigEndian.Uint16(d.Frame.Eth()[d.L4+14:]) == 0
		}
		p.frames = nil
	}
	if !closed {
		t.Fatal("the pod's window never closed")
	}
	done := make(chan struct{})
	go func() { io.Copy(io.Discard, p.host); close(done) }()
	p.until("open window", func(d *packet.Packet, _, _ uint32, _ []byte) bool {
		return binary.BigEndian.Uint16(d.Frame.Eth()[d.L4+14:]) != 0
	})
	p.host.Close()
	<-done
}

// A server that resets leaves nothing of what it did not take.
func TestResetWhileBytesAreHeld(t *testing.T) {
	p := newPeer(t, Config{})
	p.handshake()
	line := string(bytes.Repeat([]byte("x"), 60000))
	for held := 0; held == 0; {
		p.say(line)
		p.poll()
		p.s.mu.Lock()
		for _, c := range p.s.conns {
			held = len(c.held)
		}
		p.s.mu.Unlock()
	}
	p.frames = nil
	p.host.SetLinger(0)
	p.host.Close()
	p.flags("reset", packet.RST|packet.ACK)
	p.ended()
}

func TestSilentPodsAreAskedAndGivenUp(t *testing.T) {
	p := newPeer(t, Config{KeepaliveIdle: 10 * time.Millisecond, KeepaliveInterval: time.Millisecond})
	p.handshake()
	for range 3 {
		p.until("keepalive", func(d *packet.Packet, seq, _ uint32, _ []byte) bool { return seq == p.ack-1 })
	}
	p.flags("reset", packet.RST|packet.ACK)
	p.ended()
}

func TestDialTimesOut(t *testing.T) {
	p := newPeer(t, Config{DialTimeout: time.Millisecond})
	syn := &Segment{Tuple: p.tuple, Flags: packet.SYN}
	mute, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // never writable, being full
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(mute, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if err := p.s.Open(syn, mute, func(_ int, errno unix.Errno) bool { p.errs = append(p.errs, errno); return false }); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); len(p.errs) == 0 && time.Now().Before(end); {
		unix.Poll([]unix.PollFd{{Fd: int32(p.s.FD()), Events: unix.POLLIN}}, 1000)
		p.poll()
	}
	if len(p.errs) != 1 || p.errs[0] != unix.ETIMEDOUT {
		t.Errorf("outcomes %v, want a timeout", p.errs)
	}
	p.ended()
}

func TestLimitsOfTheMaking(t *testing.T) {
	p := newPeer(t, Config{Making: 2, MakingPerSource: 1})
	other := p.tuple
	other.Src[15]++
	if known, ok := p.s.Admits(p.tuple); known || !ok {
		t.Errorf("known %v, ok %v before any", known, ok)
	}
	p.open(p.server.Addr().(*net.TCPAddr).Port)
	if known, ok := p.s.Admits(p.tuple); !known || ok {
		t.Errorf("known %v, ok %v with one of this pod in the making", known, ok)
	}
	if known, ok := p.s.Admits(other); known || !ok {
		t.Errorf("known %v, ok %v for another pod", known, ok)
	}
	p.s.Close()
	if len(p.errs) != 1 || p.errs[0] != unix.ECANCELED {
		t.Errorf("outcomes %v, want canceled", p.errs)
	}
	p.ended()
}

// Whatever a pod sends, nothing breaks and frames are well formed.
func FuzzSegments(f *testing.F) {
	f.Add([]byte{0x10, 0, 0, 1, 5, 0x18, 2, 0, 9, 0, 0x11, 1, 1, 1, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		p := newPeer(t, Config{})
		p.handshake()
		p.host.SetNoDelay(true)
		go io.Copy(io.Discard, p.host)
		filler := string(bytes.Repeat([]byte("y"), 255*300))
		raw, err := p.host.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; len(script) >= 5 && n < 200; n++ {
			op := script[:5]
			script = script[5:]
			switch {
			case op[0]&0xc0 == 0xc0:
				// What the socket has no room for is left out: the pod may never take any.
				raw.Control(func(fd uintptr) { unix.Write(int(fd), []byte(filler[:int(op[4])*300])) })
			case op[0]&0xc0 == 0x80:
				p.host.CloseWrite()
			}
			p.send(op[0]&0x1f|packet.ACK, p.seq+uint32(int32(int8(op[1])))*64, uint16(op[3])<<8, filler[:int(op[4])*40])
			p.ack += uint32(op[2]) * 100
			p.poll()
			p.frames = nil
		}
	})
}
