package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// servicesReport is what `bench services` found.
type servicesReport struct {
	*report
	Rows []serviceRow `json:"rows"`
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

// The bounds of issue 4.
const (
	manyServices   = 30000
	likeOne        = 1.10 // connect latency and time with many Services beside those with one
	maxChangeMS    = 20
	maxLoadSeconds = 3
	maxLoadMiB     = 300
	versusKernel   = 10000
)

// short names the targets that are not met; what was not measured is not met.
func (r *servicesReport) short(string) (missed []string, err error) {
	fail := func(format string, args ...any) { missed = append(missed, fmt.Sprintf(format, args...)) }
	one, many := r.row("podgate", 1), r.row("podgate", manyServices)
	if one == nil || many == nil {
		fail("podgate at 1 and %d Services: not measured", manyServices)
	} else {
		if got, base := many.Connect[2].P50, one.Connect[2].P50; got > likeOne*base {
			fail("connect p50 to the last of %d Services: %.0f us, wanted at most %.2f of %.0f us", manyServices, got, likeOne, base)
		}
		if got, base := many.Connect[2].PerSec, one.Connect[2].PerSec; got*likeOne < base {
			fail("connections to the last of %d Services: %.0f/s, wanted at least 1/%.2f of %.0f/s", manyServices, got, likeOne, base)
		}
		if many.Change.P99 > maxChangeMS {
			fail("one endpoint change at %d Services, p99: %.1f ms, wanted at most %d", manyServices, many.Change.P99, maxChangeMS)
		}
		if many.Load > maxLoadSeconds || many.MemoryMB > maxLoadMiB {
			fail("loading %d Services: %.2f s and %.0f MiB, wanted at most %d s and %d MiB", manyServices, many.Load, many.MemoryMB, maxLoadSeconds, maxLoadMiB)
		}
	}
	us := r.row("podgate", versusKernel)
	for _, k := range []string{iptablesServices.name, nftServices.name} {
		them := r.row(k, versusKernel)
		if us == nil || them == nil {
			fail("podgate beside %s at %d Services: not measured", k, versusKernel)
			continue
		}
		for _, m := range []struct {
			what     string
			us, them float64
		}{
			{"connect p50 to the last, us", us.Connect[2].P50, them.Connect[2].P50},
			{"one change, p50, ms", us.Change.P50, them.Change.P50},
			{"load, s", us.Load, them.Load},
		} {
			if m.us >= m.them {
				fail("%s at %d Services: %.2f, wanted less than the %.2f of %s", m.what, versusKernel, m.us, m.them, k)
			}
		}
	}
	return missed, nil
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
