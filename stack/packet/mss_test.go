package packet_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"podgate/stack/packet"
	"podgate/stack/stacktest"
)

func TestClampingKeepsTheChecksumRight(t *testing.T) {
	for _, ends := range [][2]string{{"10.0.0.1", "192.0.2.1"}, {"fd00::1", "2001:db8::1"}} {
		for _, partial := range []bool{false, true} {
			for mss, want := range map[int]int{9000: 1460, 1461: 1460, 1460: 1460, 536: 536} {
				from := packet.Tuple{Src: packet.AddrFrom(netip.MustParseAddr(ends[0])), Dst: packet.AddrFrom(netip.MustParseAddr(ends[1])), SrcPort: 1, DstPort: 2, Proto: packet.TCP}
				to := from
				to.SrcPort = 3
				for _, to := range []packet.Tuple{from, to} { // translated or not
					f := stacktest.Packet{Tuple: from, TCPFlags: packet.SYN, MSS: mss, Partial: partial}.Frame()
					var p packet.Packet
					if fault := packet.Decode(&p, f); fault != packet.OK {
						t.Fatal(fault)
					}
					r := packet.NewRewrite(from, to)
					r.MSS = 1460
					r.Apply(&p)
					got := stacktest.Packet{Tuple: to, TCPFlags: packet.SYN, MSS: want, Partial: partial}.Frame()
					if !bytes.Equal(f, got) {
						t.Errorf("%v partial=%v mss=%d: got\n%x, want\n%x", ends, partial, mss, f, got)
					}
				}
			}
		}
	}
}

// Options that lie about their length, or end early, are left as they are.
func TestClampingSurvivesBrokenOptions(t *testing.T) {
	for _, options := range []string{"\x02\x00\xff\xff", "\x02\x01\xff\xff", "\x02\x08\xff\xff", "\x00\x02\x04\xff\xff", "\x05\x0b\x00\x02\x04\xff\xff", "\x02\x03\xff\x02\x04", "\x02", "\x01\x01\x01\x02"} {
		t.Run(fmt.Sprintf("%x", options), func(t *testing.T) {
			f := stacktest.Packet{Tuple: packet.Tuple{Src: packet.Addr{0xfd, 15: 1}, Dst: packet.Addr{0xfd, 15: 2}, SrcPort: 1, DstPort: 2, Proto: packet.TCP}, TCPFlags: packet.SYN, MSS: 9000}.Frame()
			l4 := f.Eth()[14+40:]
			copy(l4[20:28], make([]byte, 8))
			copy(l4[20:28], options)
			before := bytes.Clone(f)
			var p packet.Packet
			if fault := packet.Decode(&p, f); fault != packet.OK {
				t.Fatal(fault)
			}
			r := packet.NewRewrite(p.Tuple, p.Tuple)
			r.MSS = 1460
			r.Apply(&p)
			if !bytes.Equal(f, before) {
				t.Errorf("got %x, want %x", f, before)
			}
		})
	}
}
