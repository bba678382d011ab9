package kube

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
)

// Addrs are the addresses at an offset from the network addresses of the pod
// CIDRs, one a family: Addrs(GatewayOffset) are the gateway's.
func (c Config) Addrs(offset uint64) []netip.Addr {
	var out []netip.Addr
	for _, p := range c.WithDefaults().PodCIDRs {
		out = append(out, nth(p, offset))
	}
	return out
}

// nth is the address at an offset from a network address. Offsets stay below 2^32.
func nth(p netip.Prefix, offset uint64) netip.Addr {
	b := p.Masked().Addr().As16()
	tail := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], tail+offset)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// offsetIn is nth undone: how far an address of a CIDR is from its network
// address. Where that is 2^32 or more there is no such offset.
func offsetIn(p netip.Prefix, a netip.Addr) (uint64, bool) {
	base, b := p.Masked().Addr().As16(), a.As16()
	offset := binary.BigEndian.Uint64(b[8:]) - binary.BigEndian.Uint64(base[8:])
	return offset, p.Contains(a) && offset>>32 == 0 && nth(p, offset) == a
}

// offsets is how many offsets of a CIDR can be used: the last address of an IPv4
// network is its broadcast address, and 2^32 is enough for anybody.
func offsets(p netip.Prefix) uint64 {
	n := uint64(1) << min(p.Addr().BitLen()-p.Bits(), 32)
	if p.Addr().Is4() {
		n--
	}
	return n
}

// podAddresses hands out the offsets of pod addresses, the same in every family,
// in rising order: an address that was given back is not used again before all
// others were.
type podAddresses struct {
	cidrs       []netip.Prefix
	next, limit uint64
	used        map[uint64]int // addresses in use at an offset: one a family at most
}

func newPodAddresses(cidrs []netip.Prefix) *podAddresses {
	a := &podAddresses{cidrs: cidrs, next: FirstPodOffset, limit: 1 << 32, used: map[uint64]int{}}
	for _, p := range cidrs {
		a.limit = min(a.limit, offsets(p))
	}
	return a
}

// ErrNoAddress is why a pod has none.
var ErrNoAddress = errors.New("every address of the pod CIDRs is in use")

// take finds one address of each family.
func (a *podAddresses) take() (addrs []netip.Addr, err error) {
	if uint64(len(a.used)) >= a.limit-FirstPodOffset {
		return nil, ErrNoAddress
	}
	for {
		offset := a.next
		if a.next++; a.next >= a.limit {
			a.next = FirstPodOffset
		}
		if a.used[offset] == 0 {
			for _, c := range a.cidrs {
				addrs = append(addrs, nth(c, offset))
			}
			a.used[offset] = len(addrs)
			return addrs, nil
		}
	}
}

// reserve takes an address that somebody chose and nobody has, so that take does
// not find it.
func (a *podAddresses) reserve(addr netip.Addr) error {
	for _, c := range a.cidrs {
		if !c.Contains(addr) {
			continue
		}
		offset, ok := offsetIn(c, addr)
		if ok && (offset < FirstPodOffset || offset >= offsets(c)) {
			return fmt.Errorf("address %s is the gateway's own, or none of a host, in %s", addr, c)
		}
		if ok && offset < a.limit {
			a.used[offset]++
		}
	}
	return nil
}

// free gives back addresses that take or reserve gave.
func (a *podAddresses) free(addrs []netip.Addr) {
	for _, addr := range addrs {
		for _, c := range a.cidrs {
			offset, ok := offsetIn(c, addr)
			if !ok || a.used[offset] == 0 {
				continue
			}
			if a.used[offset]--; a.used[offset] == 0 {
				delete(a.used, offset)
			}
		}
	}
}

// serviceAddresses are the ClusterIPs of one family. Addresses that nobody asked
// for come from above the static band, which is left to those who do ask
// (KEP-3070), and begin at a hash of the Service's name: a Service has the same
// address after a restart.
type serviceAddresses struct {
	cidr netip.Prefix
	used map[netip.Addr]Name
}

// The tenth Service address is the cluster DNS's, the first would be the API server's.
const dnsServiceOffset = 10

var (
	errAllocated     = errors.New("provided IP is already allocated")
	errPortAllocated = errors.New("provided port is already allocated")
)

func (a *serviceAddresses) reserve(addr netip.Addr, by Name) error {
	if !a.cidr.Contains(addr) || addr == a.cidr.Addr() || addr.Is4() && addr == nth(a.cidr, offsets(a.cidr)) {
		return fmt.Errorf("the provided IP (%s) is not in the valid range. The range of valid IPs is %s", addr, a.cidr)
	}
	if owner, ok := a.used[addr]; ok && owner != by {
		return errAllocated
	}
	a.used[addr] = by
	return nil
}

func (a *serviceAddresses) take(by Name) (netip.Addr, error) {
	size := offsets(a.cidr)
	band := min(max(16, size/16), 256)
	if band >= size {
		band = 1
	}
	h := hash(by.Namespace, by.Name)
	for i := range size - band {
		if addr := nth(a.cidr, band+(h+i)%(size-band)); a.free(addr) {
			a.used[addr] = by
			return addr, nil
		}
	}
	for offset := uint64(2); offset < band; offset++ {
		if addr := nth(a.cidr, offset); offset != dnsServiceOffset && a.free(addr) {
			a.used[addr] = by
			return addr, nil
		}
	}
	return netip.Addr{}, errors.New("range is full")
}

func (a *serviceAddresses) free(addr netip.Addr) bool {
	_, ok := a.used[addr]
	return !ok
}

func (a *serviceAddresses) release(addr netip.Addr, by Name) {
	if a.used[addr] == by {
		delete(a.used, addr)
	}
}

// nodePorts are shared by all protocols, as in an API server: a number belongs
// to one Service.
type nodePorts struct {
	min, max uint16
	used     map[uint16]Name
}

func (n *nodePorts) reserve(port uint16, by Name) error {
	if port < n.min || port > n.max {
		return fmt.Errorf("provided port is not in the valid range. The range of valid ports is %d-%d", n.min, n.max)
	}
	if owner, ok := n.used[port]; ok && owner != by {
		return errPortAllocated
	}
	n.used[port] = by
	return nil
}

// take begins at a hash of what the port is for, so that it is the same one
// after a restart.
func (n *nodePorts) take(by Name, what string) (uint16, error) {
	size := uint64(n.max-n.min) + 1
	h := hash(by.Namespace, by.Name, what)
	for i := range size {
		port := n.min + uint16((h+i)%size)
		if _, ok := n.used[port]; !ok {
			n.used[port] = by
			return port, nil
		}
	}
	return 0, errors.New("range is full")
}

func (n *nodePorts) release(port uint16, by Name) {
	if n.used[port] == by {
		delete(n.used, port)
	}
}

func hash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	x := h.Sum64() // FNV's low bits alone are poor
	x ^= x >> 32
	return x * 0x9e3779b97f4a7c15 >> 16
}
