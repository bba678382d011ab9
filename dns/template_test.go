package dns

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestTemplates(t *testing.T) {
	all := map[string]*upstream{"192.0.2.53:53": {answer: says("www.example.com. 300 IN A 192.0.2.80")}}
	s := corefileServer(t, `
.:53 {
    template IN AAAA example.com
    template ANY ANY invalid {
        rcode NXDOMAIN
        authority "invalid. 60 IN SOA ns.invalid. host.invalid. 1 60 60 60 60"
        ederror 21 "Blocked by policy"
    }
    template IN A ip.example {
        match "^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-0-1[.]ip[.]example[.]$"
        answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.0.1"
        additional "ns.{{ .Zone }} 60 IN A 192.0.2.1"
        fallthrough sub.ip.example
    }
    template IN A alias.example {
        answer "{{ .Name }} 60 IN CNAME web.shop.svc.cluster.local."
    }
    template IN A outside.example {
        answer "{{ .Name }} 60 IN CNAME www.example.com."
    }
    template IN TXT quoted.example {
        answer "{{ .Name }} 60 IN TXT \"{{ .Class }} {{ .Type }}\""
    }
    template IN A broken.example {
        answer "{{ index .Match 9 }}"
    }
    kubernetes cluster.local
    forward . 192.0.2.53
}
`, all)
	for _, test := range []struct {
		name  string
		qtype uint16
		want  string // the code, and the answer's last record
	}{
		{"www.example.com.", dns.TypeAAAA, "NOERROR "}, // the common way to switch a type off
		{"www.example.com.", dns.TypeA, "NOERROR 192.0.2.80"},
		{"a.b.invalid.", dns.TypeA, "NXDOMAIN "},
		{"IP-10-244-0-1.ip.example.", dns.TypeA, "NOERROR 10.244.0.1"},
		{"ip-x.ip.example.", dns.TypeA, "SERVFAIL "},
		{"www.sub.ip.example.", dns.TypeA, "NOERROR 192.0.2.80"},
		{"ip-10-244-0-1.ip.example.", dns.TypeTXT, "NOERROR 192.0.2.80"}, // goes on to the upstream
		{"alias.example.", dns.TypeA, "NOERROR 10.96.0.20"},
		{"outside.example.", dns.TypeA, "NOERROR 192.0.2.80"},
		{"quoted.example.", dns.TypeTXT, `NOERROR "IN TXT"`},
		{"broken.example.", dns.TypeA, "SERVFAIL "},
		{"web.shop.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.0.20"},
	} {
		q := question(test.name, test.qtype)
		q.SetEdns0(1232, false)
		m := resolveNow(t, s, q)
		got := dns.RcodeToString[m.Rcode] + " "
		if n := len(m.Answer); n > 0 {
			rr := m.Answer[n-1]
			got += strings.TrimPrefix(rr.String(), rr.Header().String())
			if owner := m.Answer[0].Header().Name; m.Authoritative && owner != test.name {
				t.Errorf("%s: the answer is for %s", test.name, owner)
			}
		}
		if got != test.want {
			t.Errorf("%s %s: got %s, want %s", test.name, dns.TypeToString[test.qtype], got, test.want)
		}
	}
	q := question("a.invalid.", dns.TypeA)
	q.SetEdns0(1232, false)
	m := resolveNow(t, s, q)
	if len(m.Ns) != 1 || !strings.Contains(m.IsEdns0().String(), "Blocked by policy") {
		t.Errorf("got %v", m)
	}
	if m := resolveNow(t, s, question("ip-10-244-0-1.ip.example.", dns.TypeA)); len(m.Extra) != 1 || m.Extra[0].Header().Name != "ns.ip.example." {
		t.Errorf("got %v", m)
	}
	if s.rules.Load().slow {
		t.Error("names of the cluster do not take the fast path")
	}
}

func TestTemplateProblems(t *testing.T) {
	for text, want := range map[string]string{
		"template IN":                                        "2: template: a class, IN or ANY, and a type are expected: `template IN A example.org {`",
		"template CH A":                                      "2: template: a class, IN or ANY, and a type are expected: `template IN A example.org {`",
		"template IN A {\n match (\n }":                      "3: template: match: error parsing regexp: missing closing ): `(`",
		"template IN A {\n answer \"{{ .Name\"\n }":          "3: template: answer: template: answer:1: unclosed action",
		"template IN A {\n answer \"{{ .Message.Id }}\"\n }": "3: template: answer: .Message is not supported",
		"template IN A {\n rcode NOPE\n }":                   `3: template: "NOPE" is no response code such as NXDOMAIN`,
		"template IN A {\n rcode\n }":                        "3: template: rcode of what?",
		"template IN A {\n expr true\n }":                    "3: template: option expr is not supported, and so the directive does nothing",
	} {
		c, problems := ParseCorefile(".:53 {\n"+text+"\n}", "cluster.local")
		if got := fmt.Sprint(problems); got != "[Corefile line "+want+"]" {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
		if len(c.blocks[0].templates) > 0 {
			t.Errorf("%q: it is in force", text)
		}
	}
}
