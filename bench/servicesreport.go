package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// servicesReport is what `bench services` found.
type servicesReport struct {
	*report
	Rows []serviceRow `json:"rows"`

	sizes []int
}

func (r *servicesReport) row(system string, n int) *serviceRow {
	for i := range r.Rows {
		if r.Rows[i].System == system && r.Rows[i].Services == n {
			return &r.Rows[i]
		}
	}
	return nil
}

func (r *servicesReport) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s: %s, %d CPUs, Linux %s, %s, %s, %s; %d endpoints a Service; connect in us and connections/s for the first, middle and last Service\n\n",
		r.Bench, m.CPU, m.CPUs, m.Kernel, m.Go, m.User, r.Started.Format("2006-01-02"), endpointsEach)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "Services\tsystem\tfirst p50\tp99\tmiddle p50\tp99\tlast p50\tp99\tfirst conn/s\tmiddle\tlast\tchange p50 ms\tp99\tload s\tpeak MiB")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%d\t%s", row.Services, row.System)
		for _, c := range row.Connect {
			fmt.Fprintf(t, "\t%.0f\t%.0f", c.P50, c.P99)
		}
		for _, c := range row.Connect {
			fmt.Fprintf(t, "\t%.0f", c.PerSec)
		}
		memory := "-"
		if row.MemoryMB > 0 {
			memory = fmt.Sprintf("%.0f", row.MemoryMB)
		}
		fmt.Fprintf(t, "\t%.2f\t%.2f\t%.2f\t%s\n", row.Change.P50, row.Change.P99, row.Load, memory)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	r.printMissing(w)
	return nil
}

// serviceMetric is a number of a row.
type serviceMetric struct {
	id, unit string
	value    func(serviceRow) float64
}

// serviceMetrics are the numbers that bench/targets.yaml may bound; those of
// connections are to the last Service.
var serviceMetrics = []serviceMetric{
	{"connect p50", "us", func(s serviceRow) float64 { return s.last().P50 }},
	{"connect p99", "us", func(s serviceRow) float64 { return s.last().P99 }},
	{"connections", "1/s", func(s serviceRow) float64 { return s.last().PerSec }},
	{"change p50", "ms", func(s serviceRow) float64 { return s.Change.P50 }},
	{"change p99", "ms", func(s serviceRow) float64 { return s.Change.P99 }},
	{"load", "s", func(s serviceRow) float64 { return s.Load }},
	{"memory", "MiB", func(s serviceRow) float64 { return s.MemoryMB }},
}

func (s *serviceRow) last() serviceLatency { return s.Connect[len(s.Connect)-1] }

// note takes a row.
func (r *servicesReport) note(row serviceRow) {
	r.Rows = append(r.Rows, row)
	for _, m := range serviceMetrics {
		if v := m.value(row); v > 0 {
			r.Cells = append(r.Cells, &cell{System: servicesTitle(row.System, row.Services), Metric: m.id, Unit: m.unit, Median: v, Samples: []float64{v}})
		}
	}
}

// servicesTitle is how bench/targets.yaml names a row.
func servicesTitle(system string, n int) string { return fmt.Sprintf("%s, %d Services", system, n) }

// short leaves out the targets of sizes that a quick run does not have.
func (r *servicesReport) short(bench string) ([]string, error) {
	all, err := r.report.short(bench)
	return slices.DeleteFunc(all, func(s string) bool {
		return !slices.ContainsFunc(r.sizes, func(n int) bool { return strings.HasPrefix(s, servicesTitle("podgate", n)+",") })
	}), err
}

// chart draws a panel of bars for each number of the last Service.
func (r *servicesReport) chart(w io.Writer) {
	numbers := []struct {
		title string
		value func(serviceRow) float64
	}{
		{"connect to the last Service, p50, us (less is better)", func(s serviceRow) float64 { return s.Connect[2].P50 }},
		{"connections/s to the last Service (more is better)", func(s serviceRow) float64 { return s.Connect[2].PerSec }},
		{"one endpoint change, p50, ms (less is better)", func(s serviceRow) float64 { return s.Change.P50 }},
		{"loading all Services, s (less is better)", func(s serviceRow) float64 { return s.Load }},
	}
	var panels []panel
	for _, n := range numbers {
		p := panel{title: n.title}
		for _, row := range r.Rows {
			p.bars = append(p.bars, bar{fmt.Sprintf("%s, %d", row.System, row.Services), n.value(row), "%.2f", row.System == "podgate"})
		}
		panels = append(panels, p)
	}
	r.draw(w, panels)
}
