package dns

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestAnswersAreRewrittenBack(t *testing.T) {
	all := map[string]*upstream{"192.0.2.53:53": {answer: func(_ string, q *dns.Msg) (*dns.Msg, error) {
		name := q.Question[0].Name
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		for _, text := range []string{name + " 30 IN CNAME web." + name, "web." + name + " 30 IN A 192.0.2.80"} {
			rr, err := dns.NewRR(text)
			if err != nil {
				return nil, err
			}
			m.Answer = append(m.Answer, rr)
		}
		return m, nil
	}}}
	for _, test := range []struct {
		rule, name, want string
	}{
		{"name exact red.example blue.example", "Red.example.", "Red.example. CNAME web.red.example. | web.red.example. A 192.0.2.80"},
		{"name red.example blue.example", "red.example.", "red.example. CNAME web.red.example. | web.red.example. A 192.0.2.80"},
		{"name suffix .red.example .blue.example", "a.red.example.", "a.red.example. CNAME web.a.blue.example. | web.a.blue.example. A 192.0.2.80"},
		{"name suffix .red.example .blue.example answer auto", "a.red.example.", "a.red.example. CNAME web.a.red.example. | web.a.red.example. A 192.0.2.80"},
		{"stop name prefix red- blue- answer auto", "red-a.example.", "red-a.example. CNAME web.red-a.example. | web.red-a.example. A 192.0.2.80"},
		{"name substring red blue answer auto", "a.red.example.", "a.red.example. CNAME web.a.red.example. | web.a.red.example. A 192.0.2.80"},
		{"name regex (.*)-(eu)\\.red\\.example {1}.service.{2}.blue.example answer name (.*)\\.service\\.(eu)\\.blue\\.example {1}-{2}.red.example answer value (.*)\\.blue\\.example {1}.red.example",
			"ftp-eu.red.example.", "ftp-eu.red.example. CNAME web.ftp.service.eu.red.example. | web.ftp-eu.red.example. A 192.0.2.80"},
		{"stop {\n  name regex ^(.*)\\.red\\.example\\.$ {1}.blue.example\n  answer name ^(.*)\\.blue\\.example\\.$ {1}.red.example\n }", "a.red.example.",
			"a.red.example. CNAME web.a.blue.example. | web.a.red.example. A 192.0.2.80"},
		{"continue name suffix .red.example .green.example answer auto\n rewrite name suffix .green.example .blue.example answer auto", "a.red.example.",
			"a.red.example. CNAME web.a.red.example. | web.a.red.example. A 192.0.2.80"},
		{"stop name suffix .red.example .green.example\n rewrite name suffix .green.example .blue.example", "a.red.example.",
			"a.red.example. CNAME web.a.green.example. | web.a.green.example. A 192.0.2.80"},
	} {
		s := corefileServer(t, ".:53 {\n rewrite "+test.rule+"\n forward . 192.0.2.53\n cache 30\n}\n", all)
		for range 2 { // the second comes from the cache
			m := resolveNow(t, s, question(test.name, dns.TypeA))
			var got []string
			for _, rr := range m.Answer {
				f := strings.Fields(rr.String())
				got = append(got, fmt.Sprint(f[0], " ", f[3], " ", f[4]))
			}
			if text := strings.Join(got, " | "); text != test.want {
				t.Errorf("%s: got %s, want %s", test.rule, text, test.want)
			}
		}
	}
}

func TestRewriteProblems(t *testing.T) {
	for rule, want := range map[string]string{
		"name fuzzy a b":                                  "none of exact",
		"name regex (a b":                                 "missing closing",
		"name regex (a) {2}":                              "{2}",
		"name exact a b c d":                              "only `answer`",
		"name exact a b answer":                           "answer is followed by",
		"name exact a b answer name x":                    "answer is followed by",
		"name suffix a b answer auto answer name x y":     "exclude each other",
		"name regex " + strings.Repeat("a", 10001) + " b": "longer than",
	} {
		_, problems := ParseCorefile(".:53 {\n rewrite "+rule+"\n}\n", "cluster.local")
		if len(problems) != 1 || problems[0].Line != 2 || !strings.Contains(problems[0].Err, want) {
			t.Errorf("%.40s: got %v, want %q", rule, problems, want)
		}
	}
}
