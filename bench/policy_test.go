package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestPoliciesCanBeMeasured(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatal("nft is missing; install it: apt-get install -y nftables")
	}
	r := new(rig)
	defer r.close()
	rep := &policyReport{newReport("policy", short, nil)}
	for _, start := range []func(*rig, options) (*policySystem, error){podgatePolicies, nftPolicies} {
		s, err := start(r, options{quick: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{100, 0} {
			if err := rep.measure(s, n, short); err != nil {
				t.Fatalf("%s, %d policies: %v", s.name, n, err)
			}
		}
		for _, metric := range []string{"load", "connect p50", "stream", "change"} {
			if c := rep.cell(s.name, 100, metric); c == nil || c.Samples[0] <= 0 {
				t.Errorf("%s: no %s", s.name, metric)
			}
		}
	}
	for _, c := range rep.Cells {
		c.Median = median(c.Samples)
	}
	var table, chart strings.Builder
	if err := rep.print(&table); err != nil {
		t.Fatal(err)
	}
	rep.chart(&chart)
	for _, name := range []string{policyPodgate, policyKernel} {
		if !strings.Contains(table.String(), name) || !strings.Contains(chart.String(), policySystemName(name, 100)) {
			t.Errorf("%s is not in table and chart:\n%s", name, &table)
		}
	}
}

// The kernel's rules admit what podgate's policies do: the client, by the last
// of them, and nobody to another port.
func TestPoliciesDeny(t *testing.T) {
	r := new(rig)
	defer r.close()
	for _, start := range []func(*rig, options) (*policySystem, error){podgatePolicies, nftPolicies} {
		s, err := start(r, options{quick: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.load(100); err != nil {
			t.Fatal(err)
		}
		for port, want := range map[string]string{":5999": "refused", ":6000": "timeout"} {
			out, _ := s.client.Command("/proc/self/exe", "agent-load", "-what", "probe", "-addr", s.target.String()+port).CombinedOutput()
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: connecting to %s: got %q, want %s", s.name, port, out, want)
			}
		}
	}
}

func TestPolicyTargets(t *testing.T) {
	rep := &policyReport{newReport("policy", short, nil)}
	set := func(n int, metric string, v float64) {
		if rep.cell(policyPodgate, n, metric) == nil {
			rep.note(policyPodgate, n, metric, "x", v)
		}
		rep.cell(policyPodgate, n, metric).Median = v
	}
	for _, n := range policySizes {
		set(n, "connect p50", 20)
		set(n, "stream", 10)
		set(n, "change", 40)
	}
	if got, err := rep.short("policy"); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want every target met", got, err)
	}
	set(10000, "connect p50", 27)
	set(10000, "change", 101)
	set(1000, "change", 51)
	set(10000, "stream", 8.9)
	got, _ := rep.short("policy")
	if len(got) != 4 || !strings.Contains(got[0], "1.35 times podgate, 0 policies") || !strings.Contains(got[1], "101.0 x, wanted at most 100.0") {
		t.Errorf("got %q", got)
	}
}
