package main

import (
	"strings"
	"testing"
)

func TestServicesCanBeMeasured(t *testing.T) {
	rep := &servicesReport{report: newReport("services", short, nil)}
	for _, sys := range serviceSystems {
		row, err := sys.run(3, options{quick: true})
		if err != nil {
			t.Errorf("%s: %v", sys.name, err)
			continue
		}
		row.System, row.Services = sys.name, 3
		if len(row.Connect) != 3 || row.Connect[2].PerSec <= 0 || row.Change.P50 <= 0 || row.Load <= 0 {
			t.Errorf("%s: got %+v", sys.name, row)
		}
		rep.Rows = append(rep.Rows, row)
	}
	var table, chart strings.Builder
	if err := rep.print(&table); err != nil {
		t.Fatal(err)
	}
	rep.chart(&chart)
	for _, sys := range serviceSystems {
		if !strings.Contains(table.String(), sys.name) || !strings.Contains(chart.String(), sys.name) {
			t.Errorf("%s is not in table and chart:\n%s", sys.name, &table)
		}
	}
}

func TestServiceTargets(t *testing.T) {
	row := func(system string, n int, connect, change, load float64) serviceRow {
		c := serviceLatency{latency{connect, connect}, 1e6 / connect}
		return serviceRow{System: system, Services: n, Load: load, MemoryMB: 200, Change: latency{change, change}, Connect: []serviceLatency{c, c, c}}
	}
	rep := &servicesReport{report: newReport("services", short, nil), Rows: []serviceRow{
		row("podgate", 1, 100, 1, 0), row("podgate", 10000, 102, 5, 1), row("podgate", 30000, 105, 12, 2.5),
		row(iptablesServices.name, 10000, 250, 60, 8), row(nftServices.name, 10000, 110, 90, 12),
	}}
	if got, err := rep.short("services"); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want every target met", got, err)
	}
	rep.row("podgate", 30000).Change.P99 = 21
	rep.row("podgate", 30000).MemoryMB = 301
	rep.row("podgate", 10000).Connect[2].P50 = 111
	rep.Rows = rep.Rows[:4]
	got, _ := rep.short("services")
	if len(got) != 3 || !strings.Contains(got[0], "21.0 ms") || !strings.Contains(got[1], "301 MiB") || !strings.Contains(got[2], "kernel nftables at 10000 Services: not measured") {
		t.Errorf("got %q", got)
	}
}
