package ingress

import (
	"strings"
	"testing"
)

// TestMatching: which rule a request gets.
func TestMatching(t *testing.T) {
	w := newWorld(t, gw("gw", http80), httpRoute("first", `rules: [
		{matches: [{path: {type: Exact, value: /exact}}], `+to("a")+`},
		{matches: [{path: {value: /p}}], `+to("a")+`},
		{matches: [{path: {value: /p/longer/}}], `+to("a")+`},
		{matches: [{path: {value: /h}, headers: [{name: Version, value: v2}]}], `+to("a")+`},
		{matches: [{path: {value: /h}, headers: [{name: version, value: v2}, {name: color, value: red}]}], `+to("a")+`},
		{matches: [{path: {value: /h}, method: POST}], `+to("a")+`},
		{matches: [{path: {value: /q}, queryParams: [{name: a, value: '1'}]}], `+to("a")+`},
		{matches: [{path: {value: /q}, queryParams: [{name: a, value: '1'}, {name: b, value: '2'}]}, {path: {type: Exact, value: /or}}], `+to("a")+`},
		{matches: [{path: {type: RegularExpression, value: '/r/[0-9]+'}}], `+to("a")+`},
		{matches: [{path: {value: /r}}], `+to("a")+`},
		{matches: [{path: {value: /re}, headers: [{name: X, type: RegularExpression, value: 'a+'}]}], `+to("a")+`},
		{matches: [{path: {value: /twice}}], `+to("a")+`},
		{matches: [{path: {value: /twice}}], `+to("a")+`}]`),
		httpRoute("second", `rules: [{matches: [{path: {value: /p}}], `+to("a")+`}, {matches: [{path: {value: /p}, method: PUT}], `+to("a")+`}]`),
		httpRoute("hosted", `hostnames: [x.example.com], rules: [{matches: [{path: {value: /h}}], `+to("a")+`}]`),
		httpRoute("wild", `hostnames: ['*.example.com'], rules: [{matches: [{path: {value: /p/longer}}, {path: {value: /w}}], `+to("a")+`}]`))
	w.service("default", "a", 1)
	for _, c := range []struct {
		target string
		fields []string
		want   string
	}{
		{"h/exact", nil, "first rules[0]"},
		{"h/exact/", nil, "404"},
		{"h/Exact", nil, "404"},
		{"h/p", nil, "first rules[1]"},
		{"h/p/", nil, "first rules[1]"},
		{"h/p/x", nil, "first rules[1]"},
		{"h/px", nil, "404"},
		{"h/P", nil, "404"},
		{"h/p/longer", nil, "first rules[2]"},
		{"h/p/longer/x", nil, "first rules[2]"},
		{"PUT h/p", nil, "second rules[1]"},
		{"h/h", nil, "404"},
		{"h/h", []string{"version: v2"}, "first rules[3]"},
		{"h/h", []string{"VERSION: v2", "Color: red"}, "first rules[4]"},
		{"h/h", []string{"version: v2x"}, "404"},
		{"POST h/h", []string{"version: v2", "color: red"}, "first rules[5]"},
		{"h/q?a=1", nil, "first rules[6]"},
		{"h/q?a=2&a=1", nil, "404"},
		{"h/q?b=2&a=1", nil, "first rules[7]"},
		{"h/or", nil, "first rules[7]"},
		{"h/r/17", nil, "first rules[8]"},
		{"h/r/x", nil, "first rules[9]"},
		{"h/re", []string{"X: aaa"}, "first rules[10]"},
		{"h/re", []string{"X: aab"}, "404"},
		{"h/twice", nil, "first rules[11]"},
		{"x.example.com/h", nil, "hosted rules[0]"},
		{"x.example.com:8080/h", []string{"version: v2"}, "hosted rules[0]"},
		{"x.example.com/w", nil, "wild rules[0]"},
		{"a.b.example.com/w", nil, "wild rules[0]"},
		{"example.com/w", nil, "404"},
		{"x.example.com/p/longer", nil, "wild rules[0]"},
		{"x.example.com/p", nil, "first rules[1]"},
	} {
		if got := strings.TrimSuffix(w.goes(c.target, c.fields...), " a"); got != c.want {
			t.Errorf("%s %v: got %s, want %s", c.target, c.fields, got, c.want)
		}
	}
}

func TestOlderRoutesGoFirstThenByName(t *testing.T) {
	w := newWorld(t, gw("gw", http80), httpRoute("b", "rules: [{}]"), httpRoute("a", "rules: [{}]"))
	if got := w.goes("h/"); !strings.HasPrefix(got, "b ") {
		t.Errorf("got %s, want the older b", got)
	}
	// Two of the same second.
	w = newWorld(t, gw("gw", http80))
	w.store.Apply(w.load(httpRoute("b", "rules: [{}]") + "\n---\n" + httpRoute("a", "rules: [{}]")))
	if got := w.goes("h/"); !strings.HasPrefix(got, "a ") {
		t.Errorf("got %s, want a", got)
	}
}

// TestListenerIsolation: a request is for the most specific listener alone.
func TestListenerIsolation(t *testing.T) {
	names := map[string]string{"empty": "", "com": "*.example.com", "foo": "*.foo.example.com", "abc": "abc.foo.example.com"}
	var listeners []string
	w := newWorld(t)
	for name, hostname := range names {
		h := ""
		if hostname != "" {
			h = ", hostname: '" + hostname + "'"
		}
		listeners = append(listeners, "{name: "+name+", port: 80, protocol: HTTP"+h+"}")
	}
	w.apply(gw("gw", listeners...))
	for name := range names {
		w.apply(routeIn("default", "HTTPRoute", name, "parentRefs: [{name: gw, sectionName: "+name+"}], rules: [{matches: [{path: {value: /"+name+"}}]}]"))
	}
	for host, mine := range map[string]string{"bar.com": "empty", "bar.example.com": "com", "bar.foo.example.com": "foo", "abc.foo.example.com": "abc"} {
		for name := range names {
			want := "404"
			if name == mine {
				want = name + " rules[0] "
			}
			if got := w.goes(host + "/" + name); got != want {
				t.Errorf("%s/%s: got %s, want %s", host, name, got, want)
			}
		}
	}
}

func TestGRPCMatching(t *testing.T) {
	w := newWorld(t, gw("gw", http80), routeIn("default", "GRPCRoute", "g", `parentRefs: [{name: gw}], rules: [
		{matches: [{method: {service: a.Echo, method: Say}}]},
		{matches: [{method: {service: a.Echo}}]},
		{matches: [{method: {method: Say}}]},
		{matches: [{method: {service: a.Echo, method: Say}, headers: [{name: version, value: v2}]}]},
		{matches: [{method: {type: RegularExpression, service: 'b\.[A-Z].*'}}]},
		{}]`))
	for _, c := range []struct {
		target string
		fields []string
		want   string
	}{
		{"POST h/a.Echo/Say", nil, "g rules[0] "},
		{"POST h/a.Echo/Say", []string{"version: v2"}, "g rules[3] "},
		{"POST h/a.Echo/Shout", nil, "g rules[1] "},
		{"POST h/a.echo/Say", nil, "g rules[2] "},
		{"POST h/b.Echo/Say", nil, "g rules[4] "},
		{"POST h/c.Echo/Shout", nil, "g rules[5] "},
	} {
		if got := w.goes(c.target, c.fields...); got != c.want {
			t.Errorf("%s %v: got %s, want %s", c.target, c.fields, got, c.want)
		}
	}
}
