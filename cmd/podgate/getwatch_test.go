package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestNews(t *testing.T) {
	of := func(text string) (out []watched) {
		for _, f := range strings.Fields(text) {
			name, value, _ := strings.Cut(f, "=")
			out = append(out, watched{[2]string{"default", name}, json.RawMessage(value)})
		}
		return out
	}
	for _, c := range []struct{ last, now, want string }{
		{"", "", "[]"},
		{"", "a=1 b=1", "[1 1]"},
		{"a=1 b=2", "a=1 b=2", "[]"},
		{"a=1 b=2 c=3", "a=1 b=4 d=5", "[4 5 3]"},
		{"a=1", "", "[1]"},
	} {
		var got []string
		for _, item := range news(of(c.last), of(c.now)) {
			got = append(got, string(item))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%q, then %q: got %v, want %s", c.last, c.now, got, c.want)
		}
	}
}

// `get -w` prints what is there, what comes, what changes and what goes.
func TestGetWatches(t *testing.T) {
	s := newShell(t)
	s.up("--set ingress.http= --set ingress.https= " + write(t, "pods.yaml", twoPods))
	grown := strings.ReplaceAll(twoPods, "{name: web", "{name: later")
	r := s.run(`cd $XDG_RUNTIME_DIR; mkfifo pipe
		podgate get pods -w > pipe & pid=$!
		exec 3< pipe
		await() { while read -r line <&3; do echo "$line"; case "$line" in $1) return;; esac; done; }
		await 'web *1/1*Running*'
		podgate apply -f ` + write(t, "later.yaml", grown) + ` > applied
		await 'later *1/1*Running*'
		podgate delete -f ` + write(t, "pods.yaml", twoPods) + ` > deleted
		await 'web *'
		kill $pid; wait $pid`)
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if strings.Count(r.out, "NAME") != 1 || !strings.HasPrefix(lines[0], "NAME") {
		t.Errorf("there should be one first line:\n%s", r.out)
	}
	if !strings.Contains(r.out, "later   0/1") && !strings.Contains(r.out, "later   1/1") || !strings.HasPrefix(lines[len(lines)-1], "web ") {
		t.Errorf("the pod that came, and at last the one that went, are not there:\n%s%s", r.out, r.errOut)
	}
	for args, want := range map[string]string{
		"pods nobody -w":  `pods "nobody" not found`,
		"flows -w":        "flows --follow",
		"pods web api -w": "-w is for objects of one kind, or one of them",
	} {
		if r := s.run("podgate get " + args); r.code == 0 || !strings.Contains(r.errOut, want) {
			t.Errorf("get %s: exit code %d, %q; want %q", args, r.code, r.errOut, want)
		}
	}
}
