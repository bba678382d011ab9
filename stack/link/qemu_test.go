package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/packet"
)

// ether is an Ethernet frame of no known protocol, told apart by n.
func ether(n, size int) []byte {
	f := make([]byte, max(size, 18))
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5})
	binary.BigEndian.PutUint32(f[14:], uint32(n))
	return f
}

func openQEMU(t *testing.T, kind string) (*QEMU, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vm.sock")
	f, err := ListenQEMU(kind, path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	q, err := OpenQEMU(fd, "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q, path
}

// readable waits until the device says that there is something.
func readable(t *testing.T, q *QEMU) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}, 5000)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}, 5000)
	}
	if n != 1 || err != nil {
		t.Fatalf("nothing to read after 5 s: %v", err)
	}
}

// await reads n frames, waking only when the descriptor says so.
func await(t *testing.T, q *QEMU, n int) (got []packet.Frame) {
	t.Helper()
	for len(got) < n {
		readable(t, q)
		bufs := make([]packet.Frame, 64)
		for i := range bufs {
			bufs[i] = make(packet.Frame, MaxFrame)
		}
		k, err := q.ReadBatch(bufs)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, bufs[:k]...)
	}
	return got
}

func framed(eth []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(eth))), eth...)
}

func TestQEMUStream(t *testing.T) {
	q, path := openQEMU(t, Stream)
	if n, err := q.WriteBatch([]packet.Frame{append(make(packet.Frame, packet.VnetHdrLen), ether(0, 0)...)}); n != 1 || err != nil {
		t.Errorf("a frame for nobody: %d, %v; want it lost", n, err)
	}
	for round := range 2 { // a machine that is started again finds its place
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		// More than one batch in one write, and the last frame in two.
		var burst []byte
		for i := range 200 {
			burst = append(burst, framed(ether(i, 60+i))...)
		}
		if _, err := c.Write(burst[:len(burst)-100]); err != nil {
			t.Fatal(err)
		}
		got := await(t, q, 199)
		if _, err := c.Write(burst[len(burst)-100:]); err != nil {
			t.Fatal(err)
		}
		for i, f := range append(got, await(t, q, 1)...) {
			if f.Vnet() != (packet.VnetHdr{}) || !bytes.Equal(f.Eth(), ether(i, 60+i)) {
				t.Fatalf("round %d: frame %d is %x", round, i, f)
			}
		}

		c.SetDeadline(time.Now().Add(30 * time.Second))
		super := superFrame(true, true, 0, 5000, 1400, 0x18)
		if n, err := q.WriteBatch([]packet.Frame{super}); n != 1 || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
		var want [][]byte
		Segment(super, 0, func(f packet.Frame) { want = append(want, bytes.Clone(f.Eth())) })
		if len(want) < 2 {
			t.Fatal("the super-frame is one segment")
		}
		for i, w := range want {
			var size [4]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				t.Fatal(err)
			}
			f := make([]byte, binary.BigEndian.Uint32(size[:]))
			if _, err := io.ReadFull(c, f); err != nil || !bytes.Equal(f, w) {
				t.Fatalf("segment %d is %x, %v; want %x", i, f, err, w)
			}
		}
		c.Close()
		readable(t, q)
		if n, err := q.ReadBatch([]packet.Frame{make(packet.Frame, MaxFrame)}); n != 0 || err != nil {
			t.Fatalf("after the end: %d, %v", n, err)
		}
	}
}

// What does not fit into the socket is refused whole, and a frame that has begun
// is ended: the other side never sees half of one.
func TestQEMUStreamKeepsFramesWhole(t *testing.T) {
	q, path := openQEMU(t, Stream)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(framed(ether(0, 60)))
	await(t, q, 1)
	sent := 0
	for {
		f := append(make(packet.Frame, packet.VnetHdrLen), ether(sent, 60000)...)
		n, err := q.WriteBatch([]packet.Frame{f})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		sent++
	}
	if q.Full.Load() == 0 {
		t.Error("nobody counted the frame that did not fit")
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	got := make(chan error, 1)
	go func() {
		for i := range sent {
			f := make([]byte, 4+60000)
			if _, err := io.ReadFull(c, f); err != nil {
				got <- err
				return
			}
			if !bytes.Equal(f, framed(ether(i, 60000))) {
				got <- errors.New("a frame is not whole")
				return
			}
		}
		got <- nil
	}()
	// The rest of the last frame leaves when there is room.
	for {
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
			return
		default:
			unix.Poll([]unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}, 10)
			q.ReadBatch([]packet.Frame{make(packet.Frame, MaxFrame)})
		}
	}
}

func TestQEMUStreamHangsUpOnNonsense(t *testing.T) {
	q, path := openQEMU(t, Stream)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	readable(t, q)
	bufs := []packet.Frame{make(packet.Frame, MaxFrame)}
	for q.Oversize.Load() == 0 {
		if n, err := q.ReadBatch(bufs); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection goes on: %d, %v", n, err)
	}
}

func TestQEMUDgram(t *testing.T) {
	q, path := openQEMU(t, Dgram)
	local := filepath.Join(filepath.Dir(path), "peer.sock")
	c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: local, Net: "unixgram"}, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 {
		if _, err := c.Write(ether(i, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range await(t, q, 3) {
		if !bytes.Equal(f.Eth(), ether(i, 100)) {
			t.Errorf("frame %d is %x", i, f)
		}
	}
	if n, err := q.WriteBatch([]packet.Frame{append(make(packet.Frame, packet.VnetHdrLen), ether(7, 1500)...)}); n != 1 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 2000)
	if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], ether(7, 1500)) {
		t.Errorf("got %x, %v", buf[:n], err)
	}
}

func TestListenQEMUTakesOverOnlyWhatNobodyHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm.sock")
	f, err := ListenQEMU(Stream, path)
	if err != nil {
		t.Fatal(err)
	}
	if g, err := ListenQEMU(Stream, path); err == nil {
		g.Close()
		t.Error("a socket that somebody listens at was taken away")
	}
	f.Close()
	f, err = ListenQEMU(Stream, path)
	if err != nil {
		t.Fatal("a socket that was left behind is in the way:", err)
	}
	f.Close()
	if _, err := ListenQEMU("vhost", path); err == nil {
		t.Error("an unknown kind was taken")
	}
}
