package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"podgate/stack/link/nstest"
)

func TestFaultsAreSeenByPing(t *testing.T) {
	nstest.Need(t, "ping")
	s := newShell(t)
	pods := write(t, "pods.yaml", twoPods)
	s.up(pods + " --set ingress.http= --set ingress.https=")
	ip := regexp.MustCompile(`default\/api\s+\S+\s+\S+\s+(10\.244\.\d+\.\d+)`).FindStringSubmatch(s.must("podgate get ports"))
	if ip == nil {
		t.Fatalf("no address of api:\n%s", s.must("podgate get ports"))
	}
	// The fastest of 100: a busy machine delays others.
	ping := func() (lost int, rtt float64) {
		t.Helper()
		r := s.run("podgate exec web -- ping -q -n -c 100 -i 0.01 -W 5 " + ip[1])
		m := regexp.MustCompile(`(\d+)(?:\.\d+)?% packet loss`).FindStringSubmatch(r.out)
		if m == nil {
			t.Fatalf("ping said\n%s%s", r.out, r.errOut)
		}
		lost, _ = strconv.Atoi(m[1])
		if m := regexp.MustCompile(`= ([\d.]+)/`).FindStringSubmatch(r.out); m != nil {
			rtt, _ = strconv.ParseFloat(m[1], 64)
		}
		return lost, rtt
	}
	if lost, rtt := ping(); lost > 10 || rtt > 20 {
		t.Fatalf("without faults: %d%% lost, %g ms", lost, rtt)
	}
	if got := s.must("podgate fault default/api --loss 50% --delay 20ms"); got != "pod/default/api: loss=50%,delay=20ms\n" {
		t.Errorf("fault said %q", got)
	}
	if lost, rtt := ping(); lost < 20 || lost > 90 || rtt < 19 {
		t.Errorf("with loss=50%%,delay=20ms: %d%% lost, %g ms", lost, rtt)
	}
	if got := s.must("podgate fault"); !regexp.MustCompile(`default/api +loss=50%,delay=20ms`).MatchString(got) {
		t.Errorf("the list is\n%s", got)
	}
	if got := s.must("podgate status"); !strings.Contains(got, "fault-injected") {
		t.Errorf("status does not count what was lost:\n%s", got)
	}
	s.must("podgate fault default/api --clear")
	if lost, rtt := ping(); lost > 10 || rtt > 20 {
		t.Errorf("cleared: %d%% lost, %g ms", lost, rtt)
	}
	// The annotation, on a pod that runs.
	s.must("podgate apply -f " + write(t, "bad.yaml", strings.Replace(twoPods, "{name: api}", `{name: api, annotations: {podgate.dev/fault: "delay=30ms,direction=both"}}`, 1)))
	if _, rtt := ping(); rtt < 58 {
		t.Errorf("annotated: %g ms, want 60", rtt)
	}
	for line, want := range map[string]string{
		"podgate fault default/nobody --loss 1%": "not found",
		"podgate fault default/api":              "--clear",
		"podgate fault default/api --loss 1":     "not a percentage",
		"podgate fault --loss 1%":                "which pod",
	} {
		if r := s.run(line); r.code == 0 || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: exit code %d, %q; want %q", line, r.code, r.errOut, want)
		}
	}
	if r := s.run("podgate check " + write(t, "wrong.yaml", strings.Replace(twoPods, "{name: api}", `{name: api, annotations: {podgate.dev/fault: "delay=never"}}`, 1))); !strings.Contains(r.out, "podgate.dev/fault") {
		t.Errorf("check says nothing of a wrong annotation:\n%s", r.out)
	}
}
