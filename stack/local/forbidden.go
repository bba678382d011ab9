package local

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// reserved are destinations that egress never dials: this host, this link,
// every host, and the metadata services that clouds put at link-local and
// unique local addresses.
var reserved = func() []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8",          // this network; Linux takes 0.0.0.0 for loopback
		"127.0.0.0/8",        // loopback
		"169.254.0.0/16",     // link-local, with 169.254.169.254
		"224.0.0.0/4",        // multicast
		"255.255.255.255/32", // broadcast
		"::/128",             // unspecified
		"::1/128",            // loopback
		"fe80::/10",          // link-local
		"fec0::/10",          // site-local (RFC 3879)
		"ff00::/8",           // multicast
		"fd00:ec2::254/128",  // EC2's metadata service
	} {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}()

// embedded are the IPv6 prefixes whose addresses name an IPv4 address, which
// must then be allowed too, and where its four bytes are.
var embedded = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("::ffff:0:0/96"), 12},   // v4-mapped (RFC 4291)
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // v4-translated (RFC 2765)
	{netip.MustParsePrefix("::/96"), 12},           // v4-compatible (RFC 4291)
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64 (RFC 6052)
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4 (RFC 3056)
}

// Refuses says whether egress refuses to dial a: what Config forbids, the
// host's loopback and own interface addresses, link-local, multicast,
// broadcast and unspecified addresses, and IPv6 addresses that embed one;
// except what Config allows.
func (s *Stack) Refuses(a netip.Addr) bool {
	if s.cfg.EgressOff {
		return true
	}
	plain := a.WithZone("").Unmap()
	if slices.ContainsFunc(s.cfg.Allowed, func(p netip.Prefix) bool { return p.Contains(plain) }) {
		return false
	}
	return s.refuses(a)
}

func (s *Stack) refuses(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	if s.own[a] || s.host.has(a) || s.cfg.Forbidden != nil && s.cfg.Forbidden(a) {
		return true
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return true
		}
	}
	for _, e := range embedded {
		if b := a.As16(); a.Is6() && e.prefix.Contains(a) {
			return s.refuses(netip.AddrFrom4([4]byte(b[e.at:])))
		}
	}
	return false
}

// hostAddrs is the set of this host's interface addresses, kept current.
type hostAddrs struct {
	set atomic.Pointer[map[netip.Addr]bool]
}

func (h *hostAddrs) has(a netip.Addr) bool { return (*h.set.Load())[a] }

// watchHostAddrs reads the addresses now and again whenever netlink tells of a
// change, until ctx ends. The message itself does not matter, so that a lost
// one (ENOBUFS) is as good.
func watchHostAddrs(ctx context.Context, wg *sync.WaitGroup, log *slog.Logger) (*hostAddrs, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	changes := os.NewFile(uintptr(fd), "netlink")
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		changes.Close()
		return nil, err
	}
	h := new(hostAddrs)
	if err := h.read(); err != nil {
		changes.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { changes.Close() })
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			if _, err := changes.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err := h.read(); err != nil {
				log.Warn("cannot read this host's addresses, keeping the last ones", "err", err)
			}
		}
	})
	return h, nil
}

func (h *hostAddrs) read() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	set := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			set[p.Addr().Unmap()] = true
		}
	}
	h.set.Store(&set)
	return nil
}
