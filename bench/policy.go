package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"text/tabwriter"
	"time"

	"podgate/stack/link/ns"
)

// policies measures what many NetworkPolicies cost: the first packet of a
// conversation, the stream of one that goes on, a change and a load; beside the
// kernel with the same policies as nftables rules.
//
// 1,000 pods stand in ten namespaces. Two of them are real: a client connects to
// a server that, at 10,000 policies, 190 select, of which the last by name admits
// it. Client, server and gateway share a CPU while connections are timed, so that
// no wake-up of an idle CPU is. The sizes are measured in turn, several times.

const (
	policyPort     = 5003
	streamPort     = 5001
	policyPods     = 1000
	policyChanges  = 20
	kernelPolicies = 5 // changes
)

var policySizes = []int{0, 100, 1000, 10000}

const (
	policyPodgate = "podgate"
	policyKernel  = "kernel nftables"
)

// policySystem is one that can have any number of policies.
type policySystem struct {
	name           string
	client, server *ns.NS
	target, listen netip.Addr
	gateways       []int // processes that forward; none: the kernel does
	// load replaces all policies by n; change changes one of n, several times.
	// Both return milliseconds.
	load   func(n int) (float64, error)
	change func(n int) ([]float64, error)
	// verdict returns nanoseconds of one verdict, of any two pods; or is nil.
	verdict func() (float64, error)
	// churn changes one policy over and over, until it is called again; or is nil.
	churn func() error
}

// policyReport is a report with a table of its own.
type policyReport struct {
	*report
}

func policies(o options) (result, error) {
	r := new(rig)
	defer r.close()
	p := o.plan()
	p.rounds = min(p.rounds, 3)
	rep := &policyReport{newReport("policy", p, nil)}
	var systems []*policySystem
	for _, start := range []func(*rig, options) (*policySystem, error){podgatePolicies, nftPolicies} {
		s, err := start(r, o)
		if err != nil {
			return nil, err
		}
		if s != nil {
			systems = append(systems, s)
		}
	}
	if len(systems) == 1 {
		rep.Missing = append(rep.Missing, absence{policyKernel, "nft is missing; install it: apt-get install -y nftables"})
	}
	note := newProgress(os.Stderr)
	defer note.end()
	for round := range p.rounds {
		for _, n := range policySizes {
			for _, s := range systems {
				what := fmt.Sprintf("round %d of %d: %s, %d policies", round+1, p.rounds, s.name, n)
				if o.only != nil && !o.only.MatchString(what) {
					continue
				}
				note.doing(what)
				if err := rep.measure(s, n, p); err != nil {
					rep.Missing = append(rep.Missing, absence{what, err.Error()})
					note.failed(fmt.Sprintf("%s: %v", what, err))
					continue
				}
				last := func(metric string) float64 {
					c := rep.cell(s.name, n, metric)
					return c.Samples[len(c.Samples)-1]
				}
				note.done(fmt.Sprintf("%s: loaded in %.0f ms, connect %.1f us", what, last("load"), last("connect p50")))
			}
		}
	}
	for _, c := range rep.Cells {
		c.Median = median(c.Samples)
	}
	return rep, nil
}

// measure takes every number of one system with n policies once.
func (r *policyReport) measure(s *policySystem, n int, p plan) error {
	load, err := s.load(n)
	if err != nil {
		return err
	}
	r.note(s.name, n, "load", "ms", load)
	c := metric{load: "service", port: policyPort, oneCPU: true}
	ends := &system{name: s.name, client: s.client, server: s.server, target: s.target, listen: s.listen, gateways: s.gateways}
	c.value = func(got sample) float64 {
		r.note(s.name, n, "connect p50", "us", got.P50)
		r.note(s.name, n, "connect p99", "us", got.P99)
		return got.P50
	}
	if _, err := ends.measure(c, p); err != nil {
		return err
	}
	stream := func(name string) error {
		m := metrics[0]
		v, err := ends.measure(m, p)
		if err == nil {
			r.note(s.name, n, name, m.unit, v)
		}
		return err
	}
	if err := stream("stream"); err != nil {
		return err
	}
	if n > 0 {
		changes, err := s.change(n)
		if err != nil {
			return err
		}
		for _, ms := range changes {
			r.note(s.name, n, "change", "ms", ms)
		}
	}
	if s.churn != nil && n > 0 {
		if err := s.churn(); err != nil {
			return err
		}
		if err := errors.Join(stream("stream under changes"), s.churn()); err != nil {
			return err
		}
	}
	if s.verdict != nil {
		ns, err := s.verdict()
		if err != nil {
			return err
		}
		r.note(s.name, n, "verdict", "ns", ns)
	}
	return nil
}

// policySystemName is how a cell, and bench/targets.yaml, names it.
func policySystemName(system string, n int) string {
	return fmt.Sprintf("%s, %d policies", system, n)
}

func (r *policyReport) cell(system string, n int, metric string) *cell {
	return r.report.cell(policySystemName(system, n), 0, metric)
}

func (r *policyReport) note(system string, n int, metric, unit string, v float64) {
	r.report.note(policySystemName(system, n), metric, unit, v)
}

func podgatePolicies(r *rig, _ options) (*policySystem, error) {
	pods, err := r.pair("policy-gateway", policyPods)
	if err != nil {
		return nil, err
	}
	ask := func(answer any, format string, args ...any) error {
		if _, err := fmt.Fprintf(pods.in, format+"\n", args...); err != nil {
			return fmt.Errorf("the gateway is gone: %w", err)
		}
		if err := pods.out.Decode(answer); err != nil {
			return fmt.Errorf("the gateway does not answer: %w", err)
		}
		return nil
	}
	var began string
	if err := ask(&began, "begin"); err != nil {
		return nil, err
	}
	return &policySystem{
		name: policyPodgate, client: pods.client, server: pods.server, gateways: []int{pods.pid},
		target: netip.MustParseAddr("10.244.0.5"), listen: netip.MustParseAddr("10.244.0.5"),
		load:    func(n int) (ms float64, err error) { return ms, ask(&ms, "load %d", n) },
		change:  func(n int) (all []float64, err error) { return all, ask(&all, "change %d", n) },
		verdict: func() (ns float64, err error) { return ns, ask(&ns, "verdict") },
		churn:   func() error { return ask(&began, "churn") },
	}, nil
}

// nftPolicies is the kernel; nil if nft is missing.
func nftPolicies(r *rig, o options) (*policySystem, error) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil, nil
	}
	client, server, mid, err := r.router(1500)
	if err != nil {
		return nil, err
	}
	run := func(rules string) (float64, error) {
		took, err := feed(mid, kernelLoad(o), rules, nft, "-f", "-")
		return float64(took) / float64(time.Millisecond), err
	}
	tracked := false
	return &policySystem{
		name: policyKernel, client: client, server: server,
		target: netip.MustParseAddr("10.244.2.5"), listen: netip.MustParseAddr("10.244.2.5"),
		load: func(n int) (float64, error) {
			if _, err := run("flush ruleset\n"); err != nil {
				return 0, err
			}
			took, err := run(nftPolicyRules(n))
			if err == nil && !tracked { // exists once the rules made connection tracking load
				tracked, err = true, mid.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1")
			}
			return took, err
		},
		change: func(n int) (all []float64, err error) {
			for i := range kernelPolicies {
				took, err := run(nftPolicyChange(n/2, i+1))
				if err != nil {
					return nil, err
				}
				all = append(all, took)
			}
			return all, nil
		},
	}, nil
}

// policyColumns are the numbers of a row.
var policyColumns = []policyColumn{
	{"connect p50", "connect p50 us"}, {"connect p99", "p99 us"}, {"verdict", "verdict ns"},
	{"stream", "stream Gb/s"}, {"stream under changes", "under changes"}, {"change", "change ms"}, {"load", "load ms"},
}

type policyColumn struct{ metric, title string }

func (r *policyReport) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "policy: %s, %d CPUs, Linux %s, %s, %s, %s; %d pods; median of %d rounds; x is to the same without policies\n\n",
		m.CPU, m.CPUs, m.Kernel, m.Go, m.User, r.Started.Format("2006-01-02"), policyPods, r.Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "policies\tsystem")
	for _, c := range policyColumns {
		fmt.Fprintf(t, "\t%s\tx", c.title)
	}
	fmt.Fprintln(t)
	for _, n := range policySizes {
		for _, system := range []string{policyPodgate, policyKernel} {
			if r.cell(system, n, "load") == nil {
				continue
			}
			fmt.Fprintf(t, "%d\t%s", n, system)
			for _, column := range policyColumns {
				c, none := r.cell(system, n, column.metric), r.cell(system, 0, column.metric)
				if column.metric == "stream under changes" {
					none = r.cell(system, 0, "stream")
				}
				switch {
				case c == nil:
					fmt.Fprint(t, "\t-\t-")
				case none == nil || column.metric == "load":
					fmt.Fprintf(t, "\t%.1f\t-", c.Median)
				default:
					fmt.Fprintf(t, "\t%.1f\t%.2f", c.Median, c.Median/none.Median)
				}
			}
			fmt.Fprintln(t)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	r.printMissing(w)
	return nil
}

// chart draws a panel of bars for each number.
func (r *policyReport) chart(w io.Writer) {
	var panels []panel
	for _, column := range policyColumns {
		p := panel{title: column.title}
		for _, n := range policySizes {
			for _, system := range []string{policyPodgate, policyKernel} {
				if c := r.cell(system, n, column.metric); c != nil {
					p.bars = append(p.bars, bar{c.System, c.Median, "%.1f", system == policyPodgate})
				}
			}
		}
		panels = append(panels, p)
	}
	r.draw(w, panels)
}
