package dns

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/miekg/dns"
)

// Templates
//
// A template directive answers for names that a pattern matches with records
// that Go's text/template makes of the question, before hosts and kubernetes are
// asked. A name in its zones that no pattern matches is SERVFAIL, unless the
// directive lets it fall through, as in CoreDNS.

// templateRule is one template directive.
type templateRule struct {
	zones   []string
	qtype   uint16 // TypeANY: all
	match   []*regexp.Regexp
	records [3][]*template.Template // answer, authority, additional
	rcode   int
	why     *dns.EDNS0_EDE // nil: nothing is said
	fall    []string       // zones whose names go on where no pattern matches
}

// templateData is what a template can name.
type templateData struct {
	Zone, Name, Regex, Class, Type string
	Match                          []string
	Group                          map[string]string // by number and by name
	Question                       *dns.Question
}

// unknownFields are what CoreDNS's templates can name beside it.
var unknownFields = regexp.MustCompile(`\.(Message|Remote|Meta|Var)\b`)

func (p *corefileParser) template(b *block, d corefileLine, options []corefileLine) {
	words := append(d.words[1:len(d.words):len(d.words)], "", "")
	class, isClass := dns.StringToClass[words[0]]
	qtype, isType := dns.StringToType[words[1]]
	if !isClass || !isType || class != dns.ClassINET && class != dns.ClassANY {
		p.problem(d.n, "template: a class, IN or ANY, and a type are expected: `template IN A example.org {`")
		return
	}
	t := templateRule{qtype: qtype, zones: b.zones}
	if len(d.words) > 3 {
		t.zones = p.zones(corefileLine{d.n, d.words[:1]}, d.words[3:])
	}
	good := true
	for _, o := range options {
		good = p.templateOption(&t, o) && good
	}
	if len(t.match) == 0 {
		t.match = []*regexp.Regexp{regexp.MustCompile(".*")}
	}
	if good { // half a template would answer something else
		b.templates = append(b.templates, t)
	}
}

// templateOption reads one line of a template directive.
func (p *corefileParser) templateOption(t *templateRule, o corefileLine) bool {
	name, args := o.words[0], o.words[1:]
	if len(args) == 0 && name != "fallthrough" && name != "upstream" {
		p.problem(o.n, "template: %s of what?", name)
		return false
	}
	switch name {
	case "match":
		for _, pattern := range args {
			re, err := regexp.Compile(pattern)
			if err != nil {
				p.problem(o.n, "template: match: %v", err)
				return false
			}
			t.match = append(t.match, re)
		}
	case "answer", "authority", "additional":
		section := slices.Index([]string{"answer", "authority", "additional"}, name)
		for _, text := range args {
			tmpl, err := template.New(name).Funcs(template.FuncMap{"parseInt": strconv.ParseUint}).Parse(text)
			if err != nil {
				p.problem(o.n, "template: %s: %v", name, err)
				return false
			}
			if field := unknownFields.FindString(text); field != "" {
				p.problem(o.n, "template: %s: %s is not supported", name, field)
				return false
			}
			t.records[section] = append(t.records[section], tmpl)
		}
	case "rcode":
		code, ok := dns.StringToRcode[args[0]]
		if !ok {
			p.problem(o.n, "template: %q is no response code such as NXDOMAIN", args[0])
			return false
		}
		t.rcode = code
	case "ederror":
		code, err := strconv.ParseUint(args[0], 10, 16)
		if err != nil || len(args) > 2 {
			p.problem(o.n, "template: ederror is a number and, in quotes, a reason")
			return false
		}
		t.why = &dns.EDNS0_EDE{InfoCode: uint16(code), ExtraText: strings.Join(args[1:], "")}
	case "fallthrough":
		t.fall = append(t.fall, p.zones(o, args)...)
	case "upstream": // of old
	default:
		p.problem(o.n, "template: option %s is not supported, and so the directive does nothing", name)
		return false
	}
	return true
}

// fromTemplates is what the first template for a name says; false: none does.
func (b *block) fromTemplates(z *Zone, name string, qtype uint16) (answer, bool) {
	lower := strings.ToLower(name)
	for i := range b.templates {
		t := &b.templates[i]
		zone := longestZone(lower, t.zones)
		if zone == "" || t.qtype != dns.TypeANY && qtype != dns.TypeANY && qtype != t.qtype {
			continue
		}
		at := slices.IndexFunc(t.match, func(re *regexp.Regexp) bool { return re.MatchString(lower) })
		if at < 0 && inZones(lower, t.fall) {
			continue
		}
		if at < 0 {
			return answer{rcode: dns.RcodeServerFailure}, true
		}
		return t.answer(z, t.match[at], name, zone, qtype), true
	}
	return answer{}, false
}

// longestZone is the one of zones that a lower-case name belongs to, "" if none.
func longestZone(name string, zones []string) (longest string) {
	for _, z := range zones {
		if inZone(name, z) && len(z) > len(longest) {
			longest = z
		}
	}
	return longest
}

func (t *templateRule) answer(z *Zone, re *regexp.Regexp, name, zone string, qtype uint16) answer {
	data := templateData{
		Zone: zone, Name: strings.ToLower(name), Regex: re.String(), Class: "IN", Type: dns.TypeToString[qtype],
		Match: re.FindStringSubmatch(strings.ToLower(name)), Group: map[string]string{},
		Question: &dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET},
	}
	if qtype == dns.TypeANY {
		data.Type = dns.TypeToString[t.qtype]
	}
	for i, m := range data.Match {
		data.Group[strconv.Itoa(i)] = m
		if group := re.SubexpNames()[i]; group != "" {
			data.Group[group] = m
		}
	}
	a := answer{rcode: t.rcode, why: t.why}
	for section, into := range []*[]dns.RR{&a.records, &a.authority, &a.extra} {
		for _, tmpl := range t.records[section] {
			var text strings.Builder
			if err := tmpl.Execute(&text, &data); err != nil {
				return answer{rcode: dns.RcodeServerFailure}
			}
			rr, err := dns.NewRR(text.String())
			if err != nil || rr == nil {
				return answer{rcode: dns.RcodeServerFailure}
			}
			if strings.EqualFold(rr.Header().Name, name) {
				rr.Header().Name = name
			}
			*into = append(*into, rr)
		}
	}
	if n := len(a.records); n > 0 && (qtype == dns.TypeA || qtype == dns.TypeAAAA) {
		if alias, ok := a.records[n-1].(*dns.CNAME); ok {
			next := z.answer(alias.Target, qtype)
			a.records, a.chase = append(a.records, next.records...), next.chase
		}
	}
	return a
}

// templatesFor says whether a template may be about a name of the zone.
func (b *block) templatesFor(zone string) bool {
	return slices.ContainsFunc(b.templates, func(t templateRule) bool {
		return slices.ContainsFunc(t.zones, func(z string) bool { return inZone(z, zone) || inZone(zone, z) })
	})
}
