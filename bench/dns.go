package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// The DNS benchmark
//
// The same Services are served by podgate, the real program with its data path
// in the way, and by CoreDNS (bench/peers/coredns) behind a kernel veth; both
// are asked by dnsperf (Debian) from a pod. Each kind of question is asked at
// full load, and then by an asker of our own at half of what CoreDNS managed,
// for the latency. Before that, Services are made one after the other, and asked
// for until they are there. Where dnsperf, or CoreDNS's module, is not there, the
// table names it.

const (
	dnsPodgate = "podgate, %d Services"
	dnsCoreDNS = "CoreDNS, %d Services"
	dnsPort    = ":5300" // of the stand-in upstream
)

// dnsLoads are the kinds of questions.
var dnsLoads = []dnsLoad{
	{"hit", "A of a Service", func(i, n int) string { return fmt.Sprintf("s%d.many.svc.cluster.local", i%n) }},
	{"miss", "search-list miss", func(i, n int) string { return fmt.Sprintf("www%d.example.com.many.svc.cluster.local", i) }},
	{"headless", "headless, 100 endpoints", func(int, int) string { return "headless.many.svc.cluster.local" }},
	{"forward", "forwarded, cached", func(i, n int) string { return fmt.Sprintf("www%d.example.com", i%100) }},
}

type dnsLoad struct {
	metric, title string
	name          func(i, services int) string
}

// dnsReport is a report with a table of its own.
type dnsReport struct {
	*report
	sizes []int
}

// dnsSystem is a server that can be asked.
type dnsSystem struct {
	name    string
	at      string                                      // address of the server, for the pod
	command func(name string, args ...string) *exec.Cmd // in the pod, not started
	start   func(*exec.Cmd) error
	change  func(name string, i int) error // makes the Service dnsFresh(name, i)
	pid     int
}

func (s *dnsSystem) run(cmd *exec.Cmd) error {
	if err := s.start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

func dnsBench(o options) (result, error) {
	p := o.plan()
	seconds := max(1, int(p.window/time.Second))
	r := &dnsReport{report: newReport("dns", p, nil), sizes: []int{1000, 10000}}
	if o.quick {
		r.sizes = r.sizes[:1]
	}
	if _, err := exec.LookPath("dnsperf"); err != nil {
		return nil, errors.New("dnsperf is missing; install it: apt-get install -y dnsperf")
	}
	dir, remove, err := scratch()
	if err != nil {
		return nil, err
	}
	defer remove()
	for _, n := range r.sizes {
		if err := r.measure(dir, n, seconds, min(p.rounds, 3)); err != nil {
			return nil, err
		}
	}
	for _, c := range r.Cells {
		c.Median = median(c.Samples)
	}
	return r, nil
}

// measure asks both servers everything about n Services, in turns.
func (r *dnsReport) measure(dir string, n, seconds, rounds int) error {
	for _, l := range dnsLoads {
		var b strings.Builder
		for i := range 2 * n {
			fmt.Fprintln(&b, l.name(i, n), "A")
		}
		if err := os.WriteFile(filepath.Join(dir, l.metric), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	rig := new(rig)
	defer rig.close()
	ours, err := dnsStartPodgate(rig, dir, n)
	if err != nil {
		return fmt.Errorf("podgate, %d Services: %w", n, err)
	}
	systems := []*dnsSystem{ours}
	theirs, err := dnsStartCoreDNS(rig, dir, n)
	if err != nil {
		r.Missing = append(r.Missing, absence{fmt.Sprintf(dnsCoreDNS, n), err.Error()})
	} else {
		systems = append(systems, theirs)
	}
	for _, s := range systems {
		fmt.Fprintf(os.Stderr, "bench: %s: changes\n", s.name)
		for i := range 2*rounds + 1 {
			took, err := s.awaitChange(i)
			if err != nil {
				return fmt.Errorf("%s: from a change to its answer: %w", s.name, err)
			}
			if i > 0 { // the first warms up
				r.note(s.name, "change", "ms", took)
			}
		}
	}
	for range rounds {
		for _, l := range dnsLoads {
			half := 10_000.0 // queries a second, without CoreDNS
			for _, s := range slices.Backward(systems) {
				fmt.Fprintf(os.Stderr, "bench: %s: %s\n", s.name, l.title)
				qps, err := s.perf(filepath.Join(dir, l.metric), seconds)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.name, l.title, err)
				}
				r.note(s.name, l.metric, "queries/s", qps)
				if s == theirs {
					half = qps / 2
				}
				p50, p99, err := s.latency(filepath.Join(dir, l.metric), half, seconds)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.name, l.title, err)
				}
				r.note(s.name, l.metric+" p50", "us", p50)
				r.note(s.name, l.metric+" p99", "us", p99)
			}
		}
	}
	for _, s := range systems {
		r.note(s.name, "memory", "MB", residentMB(s.pid))
	}
	return nil
}

var perfQPS = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)

// perf asks as fast as it goes and returns the answers a second.
func (s *dnsSystem) perf(file string, seconds int) (float64, error) {
	cmd := s.command("dnsperf", "-s", s.at, "-d", file, "-l", strconv.Itoa(seconds), "-c", "4", "-q", "200")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.run(cmd); err != nil {
		return 0, fmt.Errorf("dnsperf: %w\n%s", err, &out)
	}
	m := perfQPS.FindSubmatch(out.Bytes())
	if m == nil {
		return 0, fmt.Errorf("dnsperf says no rate:\n%s", &out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// latency asks at a steady rate and returns percentiles in microseconds.
func (s *dnsSystem) latency(file string, rate float64, seconds int) (p50, p99 float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	cmd := s.command(self, "dnsask", "-server", s.at, "-file", file, "-rate", fmt.Sprint(int(rate)), "-seconds", strconv.Itoa(seconds))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.run(cmd); err != nil {
		return 0, 0, fmt.Errorf("asker: %w\n%s", err, &out)
	}
	_, err = fmt.Sscan(out.String(), &p50, &p99)
	return p50, p99, err
}

// residentMB is the resident memory of a process, 0 if it is gone.
func residentMB(pid int) float64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1024
		}
	}
	return 0
}

// print writes a row for each metric, both systems side by side.
func (r *dnsReport) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "dns: %s, %d CPUs, Linux %s, %s, %s, %s; median of %d rounds; x is podgate to CoreDNS; latency at half of CoreDNS's rate\n",
		m.CPU, m.CPUs, m.Kernel, m.Go, m.User, r.Started.Format("2006-01-02"), r.Rounds)
	for _, n := range r.sizes {
		fmt.Fprintln(w)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "%d Services\tpodgate\tCoreDNS\tx\n", n)
		ours, theirs := fmt.Sprintf(dnsPodgate, n), fmt.Sprintf(dnsCoreDNS, n)
		for _, c := range r.Cells {
			if c.System != ours {
				continue
			}
			digits := 0
			if c.Unit == "ms" {
				digits = 1
			}
			fmt.Fprintf(t, "%s, %s\t%.*f", c.Metric, c.Unit, digits, c.Median)
			if peer := r.cell(theirs, 0, c.Metric); peer != nil && peer.Median > 0 {
				fmt.Fprintf(t, "\t%.*f\t%.2f\n", digits, peer.Median, c.Median/peer.Median)
			} else {
				fmt.Fprint(t, "\t-\t-\n")
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, a := range r.Missing {
		fmt.Fprintf(w, "\nnot measured: %s: %s\n", a.System, a.Why)
	}
	return nil
}

// chart draws a bar of podgate's answers a second to CoreDNS's for each load.
func (r *dnsReport) chart(w io.Writer) {
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="640" height="%d" font-family="sans-serif" font-size="12">`, 40+len(r.sizes)*len(dnsLoads)*24)
	y := 20
	fmt.Fprintf(w, `<text x="10" y="%d">podgate's answers a second, times CoreDNS's</text>`, y)
	for _, n := range r.sizes {
		for _, l := range dnsLoads {
			y += 24
			c, ratio := r.cell(fmt.Sprintf(dnsPodgate, n), 0, l.metric), 0.0
			if c != nil {
				ratio = r.ratio(c, fmt.Sprintf(dnsCoreDNS, n))
			}
			fmt.Fprintf(w, `<text x="10" y="%d">%s, %d</text><rect x="230" y="%d" width="%.0f" height="14" fill="#47a"/><text x="%.0f" y="%d">%.2f</text>`,
				y, l.title, n, y-11, 60*ratio, 236+60*ratio, y, ratio)
		}
	}
	fmt.Fprintln(w, `</svg>`)
}

// short leaves out the targets of sizes that a quick run does not have.
func (r *dnsReport) short(bench string) ([]string, error) {
	all, err := r.report.short(bench)
	return slices.DeleteFunc(all, func(s string) bool {
		return !slices.ContainsFunc(r.sizes, func(n int) bool { return strings.HasPrefix(s, fmt.Sprintf(dnsPodgate, n)+",") })
	}), err
}
