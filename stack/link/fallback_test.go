package link

import (
	"bytes"
	"net"
	"testing"
	"time"

	"podgate/stack/link/nstest"
	"podgate/stack/packet"
)

// wirePod makes a veth pod that owns the destination addresses of superFrame.
func wirePod(t *testing.T) (*nstest.NS, *Veth) {
	t.Helper()
	pod, holder := nstest.New(t), nstest.New(t)
	var dev *Veth
	holder.Do(func() error {
		index, err := CreateVeth("host", "eth0", pod.FD(), 1500)
		if err != nil {
			return err
		}
		fd, err := OpenPacketSocket(index)
		if err != nil {
			return err
		}
		dev, err = OpenVethFD(fd, t.Name())
		return err
	})
	t.Cleanup(func() { dev.Close() })
	pod.MAC("eth0", packet.MAC{0x0a, 0x58, 10, 244, 0, 5})
	pod.Addr("eth0", "10.244.0.5/16", "fd00::5/64")
	holder.AwaitCarrier("host")
	pod.AwaitCarrier("eth0")
	return pod, dev
}

// A kernel that does not know a kind of super-frame gets its pieces, and
// finds their checksums right: it delivers them.
func TestKernelTakesThePiecesOfASuperFrame(t *testing.T) {
	pod, dev := wirePod(t)
	for _, v4 := range []bool{true, false} {
		addr := "[fd00::5]:80"
		if v4 {
			addr = "10.244.0.5:80"
		}
		var c net.PacketConn
		pod.Do(func() (err error) { c, err = net.ListenPacket("udp", addr); return err })
		defer c.Close()
		f := superFrame(v4, false, 0, 4500, 1000, 0)
		want := f.Eth()[len(f.Eth())-4500:]
		if !dev.writeSegments(f) {
			t.Fatal("the pieces were refused")
		}
		var got []byte
		buf := make([]byte, 2000)
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		for len(got) < len(want) {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				t.Fatalf("%s: after %d of %d bytes: %v", addr, len(got), len(want), err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the pieces carry other bytes", addr)
		}
	}
	if got := dev.Segmented.Load(); got != 2 {
		t.Errorf("got %d super-frames counted as cut, want 2", got)
	}
}

func TestRefusedFrameDoesNotHoldUpTheNext(t *testing.T) {
	_, dev := wirePod(t)
	long, short := make(packet.Frame, packet.VnetHdrLen+3000), make(packet.Frame, packet.VnetHdrLen+60)
	n, err := dev.WriteBatch([]packet.Frame{long, short})
	if n != 2 || err != nil {
		t.Errorf("got %d, %v; want both taken", n, err)
	}
	if got := dev.Refused.Load(); got != 1 {
		t.Errorf("got %d frames counted as refused, want 1", got)
	}
}
