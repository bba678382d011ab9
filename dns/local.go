package dns

import (
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Local data
//
// hosts answers for names that a table of addresses has, as /etc/hosts does,
// and for the addresses' reverse names. rewrite asks for another name instead,
// and gives the records of the answer the name that was asked.

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

// rewrite is one rewriting of names.
type rewrite struct {
	kind     string // exact, prefix, suffix, substring, regex
	from, to string
	re       *regexp.Regexp
	goOn     bool // continue with the rules after it
}

func (p *corefileParser) rewrite(b *block, d corefileLine, options []corefileLine) {
	args := d.words[1:]
	r := rewrite{kind: "exact"}
	if len(args) > 0 && (args[0] == "stop" || args[0] == "continue") {
		r.goOn, args = args[0] == "continue", args[1:]
	}
	if len(args) == 0 || args[0] != "name" {
		p.problem(d.n, "rewrite: only names are rewritten: `rewrite name [exact|prefix|suffix|substring|regex] FROM TO`")
		return
	}
	args = args[1:]
	if len(args) > 2 {
		switch args[0] {
		case "exact", "prefix", "suffix", "substring", "regex":
			r.kind, args = args[0], args[1:]
		}
	}
	if len(args) < 2 {
		p.problem(d.n, "rewrite: FROM and TO are expected")
		return
	}
	r.from, r.to = strings.ToLower(args[0]), args[1]
	if len(args) > 2 && strings.Join(args[2:], " ") != "answer auto" {
		p.problem(d.n, "rewrite: %q is not supported: records always get the name that was asked", strings.Join(args[2:], " "))
	}
	for _, o := range options {
		if o.words[0] != "answer" {
			p.problem(o.n, "rewrite: %s is not supported", o.words[0])
		}
	}
	switch r.kind {
	case "exact":
		r.from, r.to = dns.CanonicalName(r.from), dns.CanonicalName(r.to)
	case "suffix":
		r.from, r.to = strings.TrimSuffix(r.from, ".")+".", strings.TrimSuffix(r.to, ".")+"."
	case "regex":
		re, err := regexp.Compile(args[0])
		if err != nil {
			p.problem(d.n, "rewrite: %v", err)
			return
		}
		r.re = re
	}
	b.rewrites = append(b.rewrites, r)
}

// apply is the name that is asked for instead, if the rule has one.
func (r *rewrite) apply(name string) (string, bool) {
	switch r.kind {
	case "exact":
		return r.to, name == r.from
	case "prefix":
		rest, ok := strings.CutPrefix(name, r.from)
		return r.to + rest, ok
	case "suffix":
		rest, ok := strings.CutSuffix(name, r.from)
		return rest + r.to, ok
	case "substring":
		return strings.ReplaceAll(name, r.from, r.to), strings.Contains(name, r.from)
	}
	at := r.re.FindStringSubmatch(name)
	if at == nil {
		return "", false
	}
	to := r.to
	for i := len(at) - 1; i >= 0; i-- {
		to = strings.ReplaceAll(to, "{"+strconv.Itoa(i)+"}", at[i])
	}
	return dns.Fqdn(to), true
}

// rewritten is the name to ask for instead of name.
func (b *block) rewritten(name string) string {
	out := strings.ToLower(name)
	changed := false
	for i := range b.rewrites {
		to, ok := b.rewrites[i].apply(out)
		if _, valid := dns.IsDomainName(to); !ok || !valid {
			continue
		}
		out, changed = to, true
		if !b.rewrites[i].goOn {
			break
		}
	}
	if !changed {
		return name
	}
	return out
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
	if zone == "." {
		return true
	}
	rest, ok := strings.CutSuffix(name, zone)
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}
