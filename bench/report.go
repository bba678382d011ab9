package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// report is what a run found; its JSON is what --out writes.
type report struct {
	Bench    string    `json:"bench"`
	Started  time.Time `json:"started"`
	Machine  machine   `json:"machine"`
	Rounds   int       `json:"rounds"`
	WindowMS int64     `json:"windowMilliseconds"`
	Cells    []*cell   `json:"cells"`
	Missing  []absence `json:"missing,omitempty"`

	metrics   []metric
	yardstick string // the system that the table shows ratios to
}

type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	User   string `json:"user"` // root, or a user without rights
}

// cell is one metric of one system at one MTU.
type cell struct {
	System  string    `json:"system"`
	MTU     int       `json:"mtu,omitempty"` // 0: the name says it
	Metric  string    `json:"metric"`
	Unit    string    `json:"unit"`
	Median  float64   `json:"median"`
	Samples []float64 `json:"samples"`
	// Ratios are to the kernel's bridge, to its iptables and to the best of the
	// peers, of this run; 0 where that was not measured.
	ToBridge   float64 `json:"ratioToBridge,omitempty"`
	ToIPTables float64 `json:"ratioToIptables,omitempty"`
	ToBestPeer float64 `json:"ratioToBestPeer,omitempty"`
}

func newReport(bench string, p plan, missing []absence) *report {
	return &report{
		Bench: bench, Started: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(),
		Rounds: p.rounds, WindowMS: p.window.Milliseconds(), Missing: missing,
		metrics: metrics, yardstick: bridgeName,
	}
}

func thisMachine() machine {
	m := machine{CPU: "unknown", CPUs: runtime.NumCPU(), Go: runtime.Version(), User: "root"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	data, _ := os.ReadFile("/proc/cpuinfo") // absent: unknown
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	// Inside a user namespace of one's own, everybody is called root.
	if ids, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		if f := strings.Fields(string(ids)); len(f) == 3 && f[1] != "0" {
			m.User = "uid " + f[1]
		}
	}
	return m
}

func (r *report) cell(system string, mtu int, metric string) *cell {
	i := slices.IndexFunc(r.Cells, func(c *cell) bool {
		return c.System == system && c.MTU == mtu && c.Metric == metric
	})
	if i < 0 {
		return nil
	}
	return r.Cells[i]
}

func (r *report) add(s *system, m metric, v float64) {
	c := r.cell(s.name, s.mtu, m.id)
	if c == nil {
		c = &cell{System: s.name, MTU: s.mtu, Metric: m.id, Unit: m.unit}
		r.Cells = append(r.Cells, c)
	}
	c.Samples = append(c.Samples, v)
}

// finish computes medians and then ratios.
func (r *report) finish() {
	for _, c := range r.Cells {
		c.Median = median(c.Samples)
	}
	for _, c := range r.Cells {
		c.ToBridge = r.ratio(c, bridgeName)
		c.ToIPTables = r.ratio(c, iptablesName)
		c.ToBestPeer = r.ratio(c, bestPeer)
	}
}

// best adds a system that is, metric by metric, the best of some.
func (r *report) best(name string, of func(system string) bool) {
	var found []*cell
	for _, m := range r.metrics {
		best := &cell{System: name, Metric: m.id, Unit: m.unit}
		for _, c := range r.Cells {
			if c.Metric != m.id || !of(c.System) {
				continue
			}
			if v := median(c.Samples); best.Samples == nil || m.smaller == (v < best.Samples[0]) {
				best.Samples = []float64{v}
			}
		}
		if best.Samples != nil {
			found = append(found, best)
		}
	}
	r.Cells = append(r.Cells, found...)
}

func (r *report) ratio(c *cell, to string) float64 { return r.ratioAt(c, to, c.MTU) }

func (r *report) ratioAt(c *cell, to string, mtu int) float64 {
	if base := r.cell(to, mtu, c.Metric); base != nil && base.Median > 0 {
		return c.Median / base.Median
	}
	return 0
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// rows are the systems in the order in which they were measured.
func (r *report) rows(mtu int) []string {
	var names []string
	for _, c := range r.Cells {
		if c.MTU == mtu && !slices.Contains(names, c.System) {
			names = append(names, c.System)
		}
	}
	return names
}

// columns are the metrics that were measured at an MTU.
func (r *report) columns(mtu int) []metric {
	var columns []metric
	for _, m := range r.metrics {
		if slices.ContainsFunc(r.Cells, func(c *cell) bool { return c.MTU == mtu && c.Metric == m.id }) {
			columns = append(columns, m)
		}
	}
	return columns
}

func (r *report) mtus() []int {
	var mtus []int
	for _, c := range r.Cells {
		if !slices.Contains(mtus, c.MTU) {
			mtus = append(mtus, c.MTU)
		}
	}
	return mtus
}

// print writes the table: a value and its ratio to the bridge in every cell.
func (r *report) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s: %s, %d CPUs, Linux %s, %s, %s, %s; median of %d rounds of %d ms; x is the ratio to the %s\n",
		r.Bench, m.CPU, m.CPUs, m.Kernel, m.Go, m.User, r.Started.Format("2006-01-02"), r.Rounds, r.WindowMS, r.yardstick)
	for _, mtu := range r.mtus() {
		fmt.Fprintln(w)
		if mtu == 0 && len(r.figures()) > 0 {
			if err := r.list(w); err != nil {
				return err
			}
			continue
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		if mtu > 0 {
			fmt.Fprintf(t, "MTU %d", mtu)
		}
		columns := r.columns(mtu)
		for _, m := range columns {
			fmt.Fprintf(t, "\t%s %s\tx", m.title, m.unit)
		}
		fmt.Fprintln(t)
		for _, name := range r.rows(mtu) {
			fmt.Fprint(t, name)
			for _, m := range columns {
				c := r.cell(name, mtu, m.id)
				switch {
				case c == nil && m.ofGateway && !strings.HasPrefix(name, "podgate"):
					fmt.Fprint(t, "\t\t")
				case c == nil:
					fmt.Fprint(t, "\tfailed\t-")
				case r.ratio(c, r.yardstick) == 0:
					fmt.Fprintf(t, "\t%.1f\t-", c.Median)
				default:
					fmt.Fprintf(t, "\t%.1f\t%.2f", c.Median, r.ratio(c, r.yardstick))
				}
			}
			fmt.Fprintln(t)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	r.printMissing(w)
	return nil
}

// figures are the cells that are listed, each by itself.
func (r *report) figures() (out []*cell) {
	for _, m := range slices.Concat(scaleMetrics, udpMetrics) {
		for _, c := range r.Cells {
			if c.MTU == 0 && c.Metric == m.id && slices.ContainsFunc(r.metrics, func(of metric) bool { return of.title == m.title }) {
				out = append(out, c)
			}
		}
	}
	return out
}

// list writes a line for each figure.
func (r *report) list(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range r.figures() {
		i := slices.IndexFunc(r.metrics, func(m metric) bool { return m.id == c.Metric })
		fmt.Fprintf(t, "%s\t%s\t%.4g %s\n", c.System, r.metrics[i].title, c.Median, c.Unit)
	}
	return t.Flush()
}

func (r *report) printMissing(w io.Writer) {
	for _, a := range r.Missing {
		fmt.Fprintf(w, "\nnot measured: %s: %s", a.System, a.Why)
	}
	if len(r.Missing) > 0 {
		fmt.Fprintln(w)
	}
}

//go:embed targets.yaml
var targetsYAML []byte

// target is a bound on the ratio of one cell to the same cell of another
// system, as an issue names it, or, without that system, on the cell itself.
type target struct {
	System  string  `json:"system"`
	MTU     int     `json:"mtu"`
	Metric  string  `json:"metric"`
	To      string  `json:"to"`    // the system that it is compared with
	ToMTU   int     `json:"toMTU"` // and its MTU; 0: the same
	AtLeast float64 `json:"atLeast"`
	AtMost  float64 `json:"atMost"`
	Issue   int     `json:"issue"`
}

func targets(bench string) ([]target, error) {
	var all map[string][]target
	if err := yaml.UnmarshalStrict(targetsYAML, &all); err != nil {
		return nil, fmt.Errorf("bench/targets.yaml: %w", err)
	}
	return all[bench], nil
}

// short names the targets that the report does not meet; what was not measured
// is not met.
func (r *report) short(bench string) ([]string, error) {
	ts, err := targets(bench)
	if err == nil && bench == "datapath" {
		var more []target
		more, err = targets("scale")
		ts = append(ts, more...)
	}
	return r.misses(ts), err
}

func (r *report) misses(ts []target) (short []string) {
	for _, t := range ts {
		name := (&system{name: t.System, mtu: t.MTU}).title() + ", " + t.Metric
		c := r.cell(t.System, t.MTU, t.Metric)
		ratio := 0.0
		if c != nil {
			ratio = r.ratioAt(c, t.To, cmp.Or(t.ToMTU, c.MTU))
		}
		switch {
		case t.To == "" && c == nil:
			short = append(short, name+": not measured")
		case t.To == "":
			switch {
			case t.AtLeast > 0 && c.Median < t.AtLeast:
				short = append(short, fmt.Sprintf("%s: %.1f %s, wanted at least %.1f", name, c.Median, c.Unit, t.AtLeast))
			case t.AtLeast == 0 && c.Median > t.AtMost:
				short = append(short, fmt.Sprintf("%s: %.1f %s, wanted at most %.1f", name, c.Median, c.Unit, t.AtMost))
			}
		case ratio == 0:
			short = append(short, fmt.Sprintf("%s: not measured against %s", name, t.To))
		case t.AtLeast > 0 && ratio < t.AtLeast:
			short = append(short, fmt.Sprintf("%s: %.2f of %s, wanted at least %.2f", name, ratio, t.To, t.AtLeast))
		case t.AtMost > 0 && ratio > t.AtMost:
			short = append(short, fmt.Sprintf("%s: %.2f times %s, wanted at most %.2f", name, ratio, t.To, t.AtMost))
		}
	}
	return short
}
