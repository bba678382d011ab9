package local

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"podgate/stack/packet"
)

func TestProxyHeaderComesBackAsItWas(t *testing.T) {
	for _, c := range [][2]string{
		{"198.51.100.7:5000", "192.0.2.1:80"}, {"[2001:db8::7]:5000", "[2001:db8::1]:443"}, {"198.51.100.7:5000", "[2001:db8::1]:443"},
	} {
		src, dst := netip.MustParseAddrPort(c[0]), netip.MustParseAddrPort(c[1])
		r := bytes.NewReader(append(proxyHeader(src, dst), "rest"...))
		gotSrc, gotDst, err := readProxy(r)
		if rest, _ := io.ReadAll(r); err != nil || gotSrc != src || gotDst != dst || string(rest) != "rest" {
			t.Errorf("got %s, %s, %v and then %q, want %s, %s", gotSrc, gotDst, err, rest, src, dst)
		}
	}
}

// The specification's sections 2.1 and 2.2, and headers that say nothing or are none.
func TestReadProxy(t *testing.T) {
	const sig = "\r\n\r\n\x00\r\nQUIT\n"
	const v4 = "\xc6\x33\x64\x07\xc0\x00\x02\x01\x13\x88\x00\x50"
	for name, c := range map[string]struct {
		header, src string
		ok          bool
	}{
		"TCP over IPv4":                          {sig + "\x21\x11\x00\x0c" + v4, "198.51.100.7:5000", true},
		"TCP over IPv6":                          {sig + "\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x07\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x13\x88\x00\x50", "[2001:db8::7]:5000", true},
		"with a TLV":                             {sig + "\x21\x11\x00\x10" + v4 + "\x04\x00\x01\x00", "198.51.100.7:5000", true},
		"with a large TLV":                       {sig + "\x21\x11\x80\x0c" + v4 + strings.Repeat("x", 0x8000), "198.51.100.7:5000", true},
		"LOCAL":                                  {sig + "\x20\x00\x00\x00", "", true},
		"LOCAL with addresses that mean nothing": {sig + "\x20\x11\x00\x0c" + v4, "", true},
		"unspecified":                            {sig + "\x21\x00\x00\x00", "", true},
		"UNIX":                                   {sig + "\x21\x31\x00\x04abcd", "", true},
		"unknown command":                        {sig + "\x22\x11\x00\x00", "", false},
		"version 3":                              {sig + "\x31\x11\x00\x0c" + v4, "", false},
		"addresses cut":                          {sig + "\x21\x11\x00\x04\xc6\x33\x64\x07", "", false},
		"ends early":                             {sig + "\x21\x11\x00\x0c\xc6", "", false},
		"no header":                              {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "", false},
		"version 1, TCP4":                        {"PROXY TCP4 198.51.100.7 192.0.2.1 5000 80\r\n", "198.51.100.7:5000", true},
		"version 1, TCP6":                        {"PROXY TCP6 2001:db8::7 2001:db8::1 5000 80\r\n", "[2001:db8::7]:5000", true},
		"version 1, UNKNOWN":                     {"PROXY UNKNOWN\r\n", "", true},
		"version 1, UNKNOWN with words":          {"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "", true},
		"version 1, no port":                     {"PROXY TCP4 198.51.100.7 192.0.2.1 5000\r\n", "", false},
		"version 1, bad port":                    {"PROXY TCP4 198.51.100.7 192.0.2.1 70000 80\r\n", "", false},
		"version 1, other family":                {"PROXY TCP4 2001:db8::7 2001:db8::1 5000 80\r\n", "", false},
		"version 1, endless":                     {"PROXY TCP4 " + strings.Repeat("1", 200), "", false},
	} {
		r := strings.NewReader(c.header + "rest")
		src, _, err := readProxy(r)
		got := ""
		if src.IsValid() {
			got = src.String()
		}
		if got != c.src || (err == nil) != c.ok {
			t.Errorf("%s: got %q, %v; want %q, ok %t", name, got, err, c.src, c.ok)
		}
		if rest, _ := io.ReadAll(r); c.ok && string(rest) != "rest" {
			t.Errorf("%s: %q follows the header, want \"rest\"", name, rest)
		}
	}
}

func FuzzReadProxy(f *testing.F) {
	f.Add(proxyHeader(netip.MustParseAddrPort("198.51.100.7:5000"), netip.MustParseAddrPort("192.0.2.1:80")))
	f.Add([]byte("PROXY TCP6 2001:db8::7 2001:db8::1 5000 80\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		src, dst, err := readProxy(bytes.NewReader(b))
		if src.IsValid() != dst.IsValid() || err != nil && src.IsValid() && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %s, %s, %v", src, dst, err)
		}
	})
}

// A published port that accepts the header makes the client that it names the
// pod's; one that sends it tells the pod in a header.
func TestPublishedPortsSpeakPROXY(t *testing.T) {
	publishing(t, func(t *testing.T, k *kernels, host, _, pod netip.Addr) {
		at, target := netip.AddrPortFrom(host, 30080), netip.AddrPortFrom(pod, 80)
		l := k.podListener(t, target).(*net.TCPListener)
		named := netip.MustParseAddrPort("198.51.100.77:5555")
		if host.Is6() {
			named = netip.MustParseAddrPort("[2001:db8:ffff::77]:5555")
		}
		dial := func() net.Conn {
			t.Helper()
			var conn net.Conn
			k.net.Do(func() (err error) { conn, err = net.Dial("tcp", at.String()); return err })
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		for _, c := range []struct {
			name   string
			accept bool
			send   bool
			header []byte
			client netip.AddrPort // zero: the peer
		}{
			{name: "accept", accept: true, header: proxyHeader(named, at), client: named},
			{name: "accept LOCAL", accept: true, header: append(bytes.Clone(proxySignature), proxyLocal, 0, 0, 0)},
			{name: "accept a pod's address", accept: true, header: proxyHeader(netip.AddrPortFrom(pod, 1), at)},
			{name: "send", send: true},
			{name: "both", accept: true, send: true, header: proxyHeader(netip.AddrPortFrom(named.Addr(), 5556), at), client: netip.AddrPortFrom(named.Addr(), 5556)},
		} {
			publish(t, k.gw, Publication{HostAddr: at, Proto: packet.TCP, Target: target, Name: "x", AcceptProxy: c.accept, SendProxy: c.send})
			conn := dial()
			want := c.client
			if !want.IsValid() {
				want = netip.MustParseAddrPort(conn.LocalAddr().String())
			}
			conn.Write(append(c.header, "hello"...))
			l.SetDeadline(time.Now().Add(30 * time.Second))
			in, err := l.Accept()
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			in.SetDeadline(time.Now().Add(30 * time.Second))
			if got := in.RemoteAddr().String(); got != want.String() {
				t.Errorf("%s: the pod saw %s, want %s", c.name, got, want)
			}
			if c.send {
				if src, dst, err := readProxy(in); err != nil || src != want || dst != at {
					t.Errorf("%s: the pod was told %s, %s, %v", c.name, src, dst, err)
				}
			}
			buf := make([]byte, 5)
			if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "hello" {
				t.Errorf("%s: the pod got %q, %v", c.name, buf, err)
			}
			in.Close()
			conn.Close()
		}

		// Without the header there is no connection.
		publish(t, k.gw, Publication{HostAddr: at, Proto: packet.TCP, Target: target, Name: "x", AcceptProxy: true})
		conn := dial()
		conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("without a header: got %v, want a reset", err)
		}
		if n := k.gw.Counters()["published_proxy_header_invalid_total"]; n != 1 {
			t.Errorf("%d invalid headers counted, want 1", n)
		}
		dial() // says nothing, and must not hold up the end
	})
}
