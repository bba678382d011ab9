package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// The PROXY protocol (haproxy.org, doc/proxy-protocol.txt): a header at the front
// of a TCP connection that says who the client is when somebody stands between.
// Version 2 is binary and is what is sent; version 1, a line of text, is read too.
// A header is read to its last byte and no further: what follows is the client's.

var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n") // section 2.2

const (
	proxyLocal   = 0x20 // version 2, command LOCAL: the connection is the proxy's own
	proxyProxied = 0x21 // version 2, command PROXY
	proxyTCP4    = 0x11 // AF_INET, STREAM
	proxyTCP6    = 0x21 // AF_INET6, STREAM

	proxyLine = 107 // bytes of the longest header of version 1, with its end
)

var errProxyHeader = errors.New("no PROXY protocol header")

// readProxy reads a header. The addresses are zero if it names none that TCP
// could have: the connection then speaks for itself.
func readProxy(r io.Reader) (src, dst netip.AddrPort, err error) {
	var head [16]byte // the shortest header of version 1 has 15 bytes
	if _, err := io.ReadFull(r, head[:12]); err != nil {
		return src, dst, err
	}
	if !bytes.Equal(head[:12], proxySignature) {
		return readProxyLine(r, string(head[:12]))
	}
	if _, err := io.ReadFull(r, head[12:]); err != nil {
		return src, dst, err
	}
	command, family, left := head[12], head[13], int64(binary.BigEndian.Uint16(head[14:]))
	size := map[byte]int64{proxyTCP4: 4, proxyTCP6: 16}[family]
	switch {
	case command != proxyLocal && command != proxyProxied:
		return src, dst, fmt.Errorf("%w: version and command %#x", errProxyHeader, command)
	case command == proxyProxied && left < 2*size+4 && size > 0:
		return src, dst, fmt.Errorf("%w: %d bytes of addresses", errProxyHeader, left)
	case command == proxyProxied && size > 0:
		var body [36]byte
		if _, err := io.ReadFull(r, body[:2*size+4]); err != nil {
			return src, dst, err
		}
		a, _ := netip.AddrFromSlice(body[:size])
		b, _ := netip.AddrFromSlice(body[size : 2*size])
		src = netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(body[2*size:]))
		dst = netip.AddrPortFrom(b.Unmap(), binary.BigEndian.Uint16(body[2*size+2:]))
		left -= 2*size + 4
	}
	_, err = io.CopyN(io.Discard, r, left) // TLVs
	return src, dst, err
}

// readProxyLine reads on after the first bytes of a header of version 1.
func readProxyLine(r io.Reader, line string) (src, dst netip.AddrPort, err error) {
	if !strings.HasPrefix(line, "PROXY ") {
		return src, dst, errProxyHeader
	}
	var next [1]byte
	for !strings.HasSuffix(line, "\r\n") {
		if len(line) == proxyLine {
			return src, dst, fmt.Errorf("%w: its line does not end", errProxyHeader)
		}
		if _, err := io.ReadFull(r, next[:]); err != nil {
			return src, dst, err
		}
		line += string(next[:])
	}
	words := strings.Split(strings.TrimSuffix(line, "\r\n"), " ")
	if words[1] == "UNKNOWN" {
		return src, dst, nil
	}
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return src, dst, fmt.Errorf("%w: %q", errProxyHeader, line)
	}
	end := func(addr, port string) (ap netip.AddrPort) {
		a, aerr := netip.ParseAddr(addr)
		ap, perr := netip.ParseAddrPort("0.0.0.0:" + port)
		if aerr != nil || perr != nil || a.Is4() != (words[1] == "TCP4") || a.Zone() != "" {
			err = fmt.Errorf("%w: %q", errProxyHeader, line)
		}
		return netip.AddrPortFrom(a.Unmap(), ap.Port())
	}
	if src, dst = end(words[2], words[4]), end(words[3], words[5]); err != nil {
		return netip.AddrPort{}, netip.AddrPort{}, err
	}
	return src, dst, nil
}

// proxyHeader is the header of version 2 for a connection of src with dst. Where
// their families differ, both are written as IPv6 addresses.
func proxyHeader(src, dst netip.AddrPort) []byte {
	a, b, family := src.Addr().WithZone("").Unmap(), dst.Addr().WithZone("").Unmap(), byte(proxyTCP4)
	if a.Is6() || b.Is6() {
		a, b, family = netip.AddrFrom16(a.As16()), netip.AddrFrom16(b.As16()), proxyTCP6
	}
	h := append(bytes.Clone(proxySignature), proxyProxied, family)
	h = binary.BigEndian.AppendUint16(h, uint16(2*len(a.AsSlice())+4))
	h = append(append(h, a.AsSlice()...), b.AsSlice()...)
	h = binary.BigEndian.AppendUint16(h, src.Port())
	return binary.BigEndian.AppendUint16(h, dst.Port())
}
