package dns

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Rewriting
//
// Another name is asked for than the client did, and the answer is turned back
// before the client sees it, by the last rule first: what a rule says of names
// (owners) and values (targets) in every section, and then the name that was
// asked for. The latter happens whatever the rules say, as resolvers throw
// records of other names away.

// rewrite is one rule.
type rewrite struct {
	kind     string // exact, prefix, suffix, substring, regex
	from, to string
	re       *regexp.Regexp
	goOn     bool // continue with the rules after it
	auto     bool // turn back what the rule did
	back     []reversal
}

// reversal turns a name of an answer back.
type reversal struct {
	names, values bool
	from, to      string
	below         bool // from stands for names below it too
	suffix        bool // from is any suffix
	re            *regexp.Regexp
}

const maxRegexp = 10_000 // bytes of a pattern, as in CoreDNS

func (p *corefileParser) rewrite(b *block, d corefileLine, options []corefileLine) {
	args := slices.Clone(d.words[1:])
	for _, o := range options {
		args = append(args, o.words...)
	}
	r := rewrite{kind: "exact"}
	if len(args) > 0 && (args[0] == "stop" || args[0] == "continue") {
		r.goOn, args = args[0] == "continue", args[1:]
	}
	if len(args) == 0 || args[0] != "name" {
		p.problem(d.n, "rewrite: only names are rewritten: `rewrite [stop|continue] name [exact|prefix|suffix|substring|regex] FROM TO [answer auto]`")
		return
	}
	args = args[1:]
	if len(args) > 2 {
		if !slices.Contains([]string{"exact", "prefix", "suffix", "substring", "regex"}, args[0]) {
			p.problem(d.n, "rewrite: %q is none of exact, prefix, suffix, substring, regex", args[0])
			return
		}
		r.kind, args = args[0], args[1:]
	}
	if len(args) < 2 {
		p.problem(d.n, "rewrite: FROM and TO are expected")
		return
	}
	r.from, r.to = strings.ToLower(args[0]), strings.ToLower(args[1])
	switch r.kind {
	case "exact", "suffix":
		r.from, r.to = dns.Fqdn(r.from), dns.Fqdn(r.to)
		r.auto = r.kind == "exact"
	case "regex":
		if r.re = p.pattern(d, args[0], r.to); r.re == nil {
			return
		}
	}
	if p.answers(&r, d, args[2:]) {
		b.rewrites = append(b.rewrites, r)
	}
}

// pattern reads a regular expression and what it becomes; nil: it is none.
func (p *corefileParser) pattern(d corefileLine, from, to string) *regexp.Regexp {
	if len(from) > maxRegexp {
		p.problem(d.n, "rewrite: the pattern is longer than %d bytes", maxRegexp)
		return nil
	}
	re, err := regexp.Compile(from)
	if err != nil {
		p.problem(d.n, "rewrite: %v", err)
		return nil
	}
	for i := re.NumSubexp() + 1; i <= 100; i++ {
		if strings.Contains(to, group(i)) {
			p.problem(d.n, "rewrite: %s uses %s, and %s has %d groups", to, group(i), from, re.NumSubexp())
			return nil
		}
	}
	return re
}

// answers reads [answer] (auto | name FROM TO | value FROM TO), any number of times.
func (p *corefileParser) answers(r *rewrite, d corefileLine, args []string) bool {
	auto, names := false, false
	for i := 0; len(args) > 0; i++ {
		if args[0] == "answer" {
			args = args[1:]
		} else if i == 0 {
			p.problem(d.n, "rewrite: %q: only `answer` may follow", args[0])
			return false
		}
		if len(args) > 1 && args[0] == "name" && args[1] == "auto" { // as CoreDNS's README has it once
			args = args[1:]
		}
		switch {
		case len(args) > 0 && args[0] == "auto":
			auto, r.auto, args = true, true, args[1:]
		case len(args) > 2 && (args[0] == "name" || args[0] == "value"):
			re := p.pattern(d, args[1], args[2])
			if re == nil {
				return false
			}
			names = names || args[0] == "name"
			r.back = append(r.back, reversal{names: args[0] == "name", values: args[0] == "value", re: re, to: strings.ToLower(args[2])})
			args = args[3:]
		default:
			p.problem(d.n, "rewrite: answer is followed by auto, name FROM TO or value FROM TO")
			return false
		}
	}
	if auto && names {
		p.problem(d.n, "rewrite: answer auto and answer name exclude each other")
		return false
	}
	return true
}

func group(i int) string { return "{" + strconv.Itoa(i) + "}" }

// expand fills the groups of a match into a text.
func expand(to string, match []string) string {
	for i := len(match) - 1; i >= 0; i-- {
		to = strings.ReplaceAll(to, group(i), match[i])
	}
	return to
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
	match := r.re.FindStringSubmatch(name)
	if match == nil {
		return "", false
	}
	return dns.Fqdn(expand(r.to, match)), true
}

// rewritten is the name to ask for instead of name, and what turns its answer
// back, in the order of the rules.
func (b *block) rewritten(name string) (string, []reversal) {
	at, changed := strings.ToLower(name), false
	var back []reversal
	for i := range b.rewrites {
		r := &b.rewrites[i]
		to, ok := r.apply(at)
		if _, valid := dns.IsDomainName(to); !ok || !valid {
			continue
		}
		switch {
		case r.auto && r.kind == "suffix":
			back = append(back, reversal{names: true, values: true, suffix: true, from: r.to, to: r.from})
		case r.auto:
			back = append(back, reversal{names: true, values: true, below: true, from: to, to: at})
		}
		back = append(back, r.back...)
		at, changed = to, true
		if !r.goOn {
			break
		}
	}
	if !changed {
		return name, nil
	}
	return at, back
}

// of is what a name of an answer was before the rewriting.
func (r *reversal) of(name string) string {
	switch {
	case r.re != nil:
		match := r.re.FindStringSubmatch(name)
		if match == nil {
			return name
		}
		return dns.Fqdn(expand(r.to, match))
	case r.suffix && len(name) >= len(r.from) && strings.EqualFold(name[len(name)-len(r.from):], r.from):
		return name[:len(name)-len(r.from)] + r.to
	case r.below && (strings.EqualFold(name, r.from) || len(name) > len(r.from) && strings.EqualFold(name[len(name)-len(r.from)-1:], "."+r.from)):
		return name[:len(name)-len(r.from)] + r.to
	}
	return name
}

// turnBack undoes the rewriting of a query in copies of its answer's records.
func (q *query) turnBack(m *dns.Msg) {
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		*section = slices.Clone(*section)
		for i, rr := range *section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			rr = dns.Copy(rr)
			(*section)[i] = rr
			for _, r := range slices.Backward(q.back) {
				if r.names {
					rr.Header().Name = legal(r.of(rr.Header().Name), rr.Header().Name)
				}
				if value := target(rr); r.values && value != nil {
					*value = legal(r.of(*value), *value)
				}
			}
			if strings.EqualFold(rr.Header().Name, q.rewritten) || strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				rr.Header().Name = q.Question[0].Name
			}
		}
	}
}

// legal is name if it is one, else instead.
func legal(name, instead string) string {
	if _, ok := dns.IsDomainName(name); !ok {
		return instead
	}
	return name
}

// target is the name in a record's data, nil if it has none.
func target(rr dns.RR) *string {
	switch rr := rr.(type) {
	case *dns.SRV:
		return &rr.Target
	case *dns.MX:
		return &rr.Mx
	case *dns.CNAME:
		return &rr.Target
	case *dns.NS:
		return &rr.Ns
	case *dns.DNAME:
		return &rr.Target
	case *dns.NAPTR:
		return &rr.Replacement
	case *dns.SOA:
		return &rr.Ns
	case *dns.PTR:
		return &rr.Ptr
	}
	return nil
}
