package policy

import (
	"net/netip"
	"slices"

	"podgate/stack/packet"
)

// mapped are the IPv4 addresses among packet.Addr: no IPv6 block covers them.
var mapped = rangeOf(netip.MustParsePrefix("0.0.0.0/0"))

// rangesOf returns the addresses of p as ascending, disjoint ranges.
func rangesOf(p netip.Prefix) []addrRange {
	r := []addrRange{rangeOf(p)}
	if p.Addr().Is6() && !p.Addr().Is4In6() {
		r = subtract(r, mapped)
	}
	return r
}

func rangeOf(p netip.Prefix) addrRange {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	r := addrRange{packet.AddrFrom(p.Addr()), packet.AddrFrom(p.Addr())}
	for i := bits; i < 128; i++ {
		bit := byte(0x80) >> (i % 8)
		r.first[i/8] &^= bit
		r.last[i/8] |= bit
	}
	return r
}

// subtract returns ranges without out.
func subtract(ranges []addrRange, out addrRange) []addrRange {
	var rest []addrRange
	for _, r := range ranges {
		if compareAddrs(r.last, out.first) < 0 || compareAddrs(out.last, r.first) < 0 {
			rest = append(rest, r)
			continue
		}
		if compareAddrs(r.first, out.first) < 0 {
			rest = append(rest, addrRange{r.first, step(out.first, -1)})
		}
		if compareAddrs(out.last, r.last) < 0 {
			rest = append(rest, addrRange{step(out.last, 1), r.last})
		}
	}
	return rest
}

// union sorts ranges and joins those that overlap or touch.
func union(ranges []addrRange) []addrRange {
	slices.SortFunc(ranges, func(a, b addrRange) int { return compareAddrs(a.first, b.first) })
	var out []addrRange
	for _, r := range ranges {
		if n := len(out); n > 0 && (compareAddrs(r.first, out[n-1].last) <= 0 || r.first == step(out[n-1].last, 1)) {
			if compareAddrs(out[n-1].last, r.last) < 0 {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// step returns the address before (-1) or after (1) a, around the end if need be.
func step(a packet.Addr, by int) packet.Addr {
	for i := 15; i >= 0; i-- {
		a[i] += byte(by)
		if by > 0 && a[i] != 0 || by < 0 && a[i] != 0xff {
			break
		}
	}
	return a
}
