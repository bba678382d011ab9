package dns

import (
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Local data
//
// hosts answers for names that a table of addresses has, as /etc/hosts does,
// and for the addresses' reverse names.

// hosts is one hosts directive.
type hosts struct {
	names map[string][]netip.Addr // canonical
	addrs map[netip.Addr][]string
	ttl   uint32
	fall  []string // zones whose unknown names go on
}

func (p *corefileParser) hosts(b *block, d corefileLine, options []corefileLine) {
	h := &hosts{names: map[string][]netip.Addr{}, addrs: map[netip.Addr][]string{}, ttl: 3600}
	if len(d.words) > 1 {
		data, err := os.ReadFile(d.words[1])
		if err != nil {
			p.problem(d.n, "hosts: %v", err)
		}
		for _, l := range lexCorefile(string(data)) {
			h.add(l.words)
		}
	}
	if len(d.words) > 2 {
		p.problem(d.n, "hosts: a list of zones is not supported: the table is for all names of the block")
	}
	for _, o := range options {
		switch o.words[0] {
		case "fallthrough":
			h.fall = append(h.fall, p.zones(o, o.words[1:])...)
		case "ttl":
			n, err := strconv.Atoi(strings.Join(o.words[1:], " "))
			if err != nil || n <= 0 || n > 1<<20 {
				p.problem(o.n, "hosts: ttl is a number of seconds")
				continue
			}
			h.ttl = uint32(n)
		case "reload":
		case "no_reverse":
			h.addrs = nil
		default:
			if !h.add(o.words) {
				p.problem(o.n, "hosts: %q is not an address with names", strings.Join(o.words, " "))
			}
		}
	}
	b.hosts = h
}

// add reads one line: an address and its names.
func (h *hosts) add(words []string) bool {
	addr, err := netip.ParseAddr(words[0])
	if err != nil || len(words) < 2 {
		return false
	}
	addr = addr.Unmap().WithZone("")
	for _, name := range words[1:] {
		if _, ok := dns.IsDomainName(name); !ok {
			return false
		}
		name = dns.CanonicalName(name)
		h.names[name] = append(h.names[name], addr)
		if h.addrs != nil {
			h.addrs[addr] = append(h.addrs[addr], name)
		}
	}
	return true
}

// answer is what the table says; false: the query goes on.
func (h *hosts) answer(name string, qtype uint16) (records []dns.RR, known bool) {
	lower := strings.ToLower(name)
	header := func(rrtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: h.ttl}
	}
	if addr, _ := parseReverse(lower); addr.IsValid() && qtype == dns.TypePTR {
		for _, target := range h.addrs[addr] {
			records = append(records, &dns.PTR{Hdr: header(dns.TypePTR), Ptr: target})
		}
		return records, len(records) > 0
	}
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		return nil, false
	}
	addrs, known := h.names[lower]
	for _, addr := range addrs {
		if addr.Is4() && qtype == dns.TypeA {
			records = append(records, &dns.A{Hdr: header(dns.TypeA), A: addr.AsSlice()})
		} else if !addr.Is4() && qtype == dns.TypeAAAA {
			records = append(records, &dns.AAAA{Hdr: header(dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	return records, known && (len(records) > 0 || !inZones(lower, h.fall))
}

// inZones says whether a lower-case name is in one of the zones.
func inZones(name string, zones []string) bool {
	for _, z := range zones {
		if inZone(name, z) {
			return true
		}
	}
	return false
}

// inZone says whether a lower-case name is a zone's or below it.
func inZone(name, zone string) bool {
	_, ok := cutZone(name, zone)
	return ok || zone == "."
}
