package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// dash is an address as one label, in CoreDNS's way: 10-244-0-7, fd00-10-244--7,
// and 2001-db8--0 as a label does not end in a dash.
func dash(addr netip.Addr) string {
	label := strings.Map(func(r rune) rune {
		if r == '.' || r == ':' {
			return '-'
		}
		return r
	}, addr.String())
	if strings.HasSuffix(label, "-") {
		label += "0"
	}
	return label
}

// undash reads what dash wrote, and any other spelling of an IPv6 address.
func undash(label string) (netip.Addr, bool) {
	sep := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		sep = "."
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
	return addr, err == nil && !addr.Is4In6() && addr.Zone() == ""
}

const (
	arpa4 = ".in-addr.arpa."
	arpa6 = ".ip6.arpa."
)

// parseReverse reads a lower-case reverse name. A name of fewer labels than an
// address has gives no address but their number; any other name gives nothing.
func parseReverse(name string) (addr netip.Addr, labels int) {
	var b [16]byte
	if path, ok := strings.CutSuffix(name, arpa4); ok {
		for label := range backwards(path) {
			v, err := strconv.ParseUint(label, 10, 8)
			if err != nil || labels == 4 || len(label) > 1 && label[0] == '0' {
				return addr, 0
			}
			b[labels] = byte(v)
			labels++
		}
		if labels == 4 {
			addr = netip.AddrFrom4([4]byte(b[:4]))
		}
		return addr, labels
	}
	if path, ok := strings.CutSuffix(name, arpa6); ok {
		for label := range backwards(path) {
			v, err := strconv.ParseUint(label, 16, 8)
			if err != nil || labels == 32 || len(label) != 1 {
				return addr, 0
			}
			b[labels/2] |= byte(v) << (4 * (1 - labels%2))
			labels++
		}
		if labels == 32 {
			addr = netip.AddrFrom16(b)
		}
	}
	return addr, labels
}

// cutZone returns the labels of a name before a zone's, ok if it is the zone's or
// below it. A dot that is escaped is part of a label: a\.b.c. is not below b.c.
func cutZone(name, zone string) (labels string, ok bool) {
	rest, ok := strings.CutSuffix(name, zone)
	if !ok || rest == "" {
		return "", ok
	}
	labels, ok = strings.CutSuffix(rest, ".")
	escapes := len(labels) - len(strings.TrimRight(labels, `\`))
	return labels, ok && escapes%2 == 0
}

// backwards yields the labels of a name from the last to the first.
func backwards(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			i := strings.LastIndexByte(name, '.')
			if !yield(name[i+1:]) || i < 0 {
				return
			}
			name = name[:i]
		}
	}
}

// reverseApexes are the names of the zones that hold a prefix's addresses: one
// if it ends at an octet (IPv4) or nibble (IPv6), else as many as it takes.
func reverseApexes(p netip.Prefix) []string {
	p = p.Masked()
	unit := 8
	if p.Addr().Is6() {
		unit = 4
	}
	labels := (p.Bits() + unit - 1) / unit
	var apexes []string
	b := p.Addr().AsSlice()
	for range 1 << (labels*unit - p.Bits()) {
		addr, _ := netip.AddrFromSlice(b)
		full, err := dns.ReverseAddr(addr.String())
		if err != nil {
			return nil // a prefix without an address
		}
		skip := len(b)*8/unit - labels
		apexes = append(apexes, full[dns.Split(full)[skip]:])
		if labels > 0 {
			last := (labels*unit - 1) / 8
			b[last] += 1 << (7 - (labels*unit-1)%8)
		}
	}
	return apexes
}
