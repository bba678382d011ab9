package stacktest

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"testing"

	"podgate/stack"
	"podgate/stack/packet"
)

// Whatever is wrong with a frame: it is dropped under a name of its own, goes to
// nobody, opens nothing, and nothing is logged. Package packet has a frame for
// every fault; these are of each layer and both families, on their way through the
// worker.
func TestMalformedFramesGoNowhere(t *testing.T) {
	var log bytes.Buffer
	w := New(t, stack.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	w.Apply(fragmentShop)
	web, api := w.Pod("web"), w.Pod("api")
	log.Reset()
	const ip, l4, l46 = 14, 34, 54
	// extended puts an extension header of IPv6 in front of the transport.
	extended := func(eth []byte, kind byte, header ...byte) []byte {
		header[0], eth[ip+6] = eth[ip+6], kind
		eth[ip+5] += byte(len(header))
		return append(eth[:l46:l46], append(header, eth[l46:]...)...)
	}
	type bends map[string]func(eth []byte) []byte
	v4 := bends{
		"short-frame":            func(eth []byte) []byte { return eth[:13] },
		"vlan-tag":               func(eth []byte) []byte { return append(eth[:12:12], append([]byte{0x81, 0, 0, 5}, eth[12:]...)...) },
		"unknown-ethertype":      func(eth []byte) []byte { eth[12] = 0x88; return eth },
		"group-source-mac":       func(eth []byte) []byte { eth[6] |= 1; return eth },
		"short-ip-header":        func(eth []byte) []byte { return eth[:ip+10] },
		"bad-ip-version":         func(eth []byte) []byte { eth[ip] = 0x65; return eth },
		"bad-ip-header-length":   func(eth []byte) []byte { eth[ip] = 0x44; return eth },
		"lying-ip-length":        func(eth []byte) []byte { eth[ip+2] = 0xff; return eth },
		"bad-ip-header-checksum": func(eth []byte) []byte { eth[ip+10] ^= 1; return eth },
		"source-route": func(eth []byte) []byte {
			eth[ip] = 0x46
			binary.BigEndian.PutUint16(eth[ip+2:], 44)
			return append(eth[:l4:l4], append([]byte{131, 3, 4, 0}, eth[l4:]...)...)
		},
		"martian-source":      func(eth []byte) []byte { copy(eth[ip+12:], []byte{127, 0, 0, 1}); return eth },
		"martian-destination": func(eth []byte) []byte { copy(eth[ip+16:], []byte{127, 0, 0, 1}); return eth },
		"land": func(eth []byte) []byte {
			copy(eth[ip+16:], eth[ip+12:ip+16])
			copy(eth[l4+2:], eth[l4:l4+2])
			return eth
		},
		"short-transport-header": func(eth []byte) []byte { binary.BigEndian.PutUint16(eth[ip+2:], 30); return eth[:ip+30] },
		"tiny-fragment":          func(eth []byte) []byte { eth[ip+7] = 1; return eth },
		"bad-tcp-header":         func(eth []byte) []byte { eth[l4+12] = 0xf0; return eth },
		"bad-tcp-flags":          func(eth []byte) []byte { eth[l4+13] = packet.SYN | packet.FIN; return eth },
		"port-zero":              func(eth []byte) []byte { eth[l4+2], eth[l4+3] = 0, 0; return eth },
		"icmp-of-wrong-family":   func(eth []byte) []byte { eth[ip+9] = 58; return eth },
		"spoofed-mac":            func(eth []byte) []byte { eth[11] ^= 1; return eth },
		"spoofed-ip":             func(eth []byte) []byte { eth[ip+15] ^= 0x40; return eth },
	}
	v6 := bends{
		"short-ip-header":      func(eth []byte) []byte { return eth[:ip+39] },
		"bad-ip-version":       func(eth []byte) []byte { eth[ip] = 0x45; return eth },
		"lying-ip-length":      func(eth []byte) []byte { eth[ip+4] = 0xff; return eth },
		"source-route":         func(eth []byte) []byte { return extended(eth, 43, 0, 0, 0, 1, 0, 0, 0, 0) },
		"bad-extension-header": func(eth []byte) []byte { return extended(eth, 60, 0, 200, 0, 0, 0, 0, 0, 0) },
		"jumbogram": func(eth []byte) []byte {
			eth = extended(eth, 0, 0, 0, 0xc2, 4, 0, 1, 0, 0)
			eth[ip+4], eth[ip+5] = 0, 0
			return eth
		},
		"martian-source":      func(eth []byte) []byte { copy(eth[ip+8:], net.IPv6loopback); return eth },
		"martian-destination": func(eth []byte) []byte { copy(eth[ip+24:], net.IPv6loopback); return eth },
		"land": func(eth []byte) []byte {
			copy(eth[ip+24:], eth[ip+8:ip+24])
			copy(eth[l46+2:], eth[l46:l46+2])
			return eth
		},
		"short-transport-header": func(eth []byte) []byte { eth[ip+5] = 10; return eth[:l46+10] },
		"tiny-fragment":          func(eth []byte) []byte { eth[ip+5] = 8; return extended(eth[:l46+8], 44, 0, 0, 0, 1, 0, 0, 0, 9) },
		"bad-fragment":           func(eth []byte) []byte { eth[ip+5] = 9; return extended(eth[:l46+9], 44, 0, 0, 1, 1, 0, 0, 0, 9) },
		"bad-tcp-header":         func(eth []byte) []byte { eth[l46+12] = 0xf0; return eth },
		"bad-tcp-flags":          func(eth []byte) []byte { eth[l46+13] = packet.SYN | packet.FIN; return eth },
		"port-zero":              func(eth []byte) []byte { eth[l46+2], eth[l46+3] = 0, 0; return eth },
		"icmp-of-wrong-family":   func(eth []byte) []byte { eth[ip+6] = 1; return eth },
		"icmp-redirect":          func(eth []byte) []byte { eth[ip+6], eth[l46] = 58, 137; return eth },
		"spoofed-ip":             func(eth []byte) []byte { eth[ip+23] ^= 0x40; return eth },
	}
	sent := func(src, dst netip.Addr) []byte {
		return Packet{
			Tuple:  packet.Tuple{Src: packet.AddrFrom(src), Dst: packet.AddrFrom(dst), SrcPort: 40000, DstPort: 80, Proto: packet.TCP},
			SrcMAC: web.MAC, DstMAC: api.MAC, TCPFlags: packet.SYN,
		}.Frame().Eth()
	}
	try := func(want string, eth []byte) {
		before := w.Counters()
		w.Send(web, append(make(packet.Frame, packet.VnetHdrLen), eth...))
		after := w.Counters()
		if got := after[want] - before[want]; got != 1 {
			maps.DeleteFunc(after, func(k string, n uint64) bool { return before[k] == n })
			t.Errorf("%s (%x): counted %v", want, eth, after)
		}
		if len(web.Received())+len(api.Received())+len(w.Local.Received()) != 0 {
			t.Errorf("%s (%x): somebody got a frame", want, eth)
		}
	}
	for want, bend := range v4 {
		eth := bend(sent(web.IP(), api.IP()))
		if want != "bad-ip-header-checksum" && len(eth) >= l4 && eth[12] == 8 && eth[13] == 0 {
			n := max(20, int(eth[ip]&15)*4)
			eth[ip+10], eth[ip+11] = 0, 0
			binary.BigEndian.PutUint16(eth[ip+10:], packet.Checksum(eth[ip:ip+n]))
		}
		try(want, eth)
	}
	for want, bend := range v6 {
		try(want, bend(sent(web.IP6(), api.IP6())))
	}
	if n := len(w.Plane.Flows()); n != 0 || log.Len() != 0 {
		t.Errorf("%d flows, and the log says\n%s", n, log.String())
	}
}
