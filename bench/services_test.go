package main

import (
	"slices"
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
		rep.note(row)
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
	run := func(change float64, nft bool) ([]string, error) {
		rep := &servicesReport{report: newReport("services", short, nil), sizes: serviceSizes(options{})}
		row := func(system string, n int, connect, change, load float64) {
			c := serviceLatency{latency{connect, connect}, 1e6 / connect}
			rep.note(serviceRow{System: system, Services: n, Load: load, MemoryMB: 200, Change: latency{change, change}, Connect: []serviceLatency{c, c, c}})
		}
		row("podgate", 1, 100, 1, 0.1)
		row("podgate", 10000, 102, 5, 1)
		row("podgate", 30000, 105, change, 2.5)
		row(iptablesServices.name, 10000, 250, 60, 8)
		if nft {
			row(nftServices.name, 10000, 110, 90, 12)
		}
		return rep.short("services")
	}
	if got, err := run(12, true); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want every target met", got, err)
	}
	got, _ := run(21, false)
	want := []string{"podgate, 30000 Services, change p99: 21.0 ms, wanted at most 20.0"}
	for _, metric := range []string{"connect p50", "connections", "change p50", "load"} {
		want = append(want, "podgate, 10000 Services, "+metric+": not measured against kernel nftables, 10000 Services")
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHopelessLoadsAreNotTried(t *testing.T) {
	rep := &servicesReport{report: newReport("services", short, nil), Rows: []serviceRow{{System: nftServices.name, Services: 10000, Load: 70}, {System: "podgate", Services: 10000, Load: 70}}}
	if err := rep.hopeless(nftServices.name, 30000, options{}); err == nil || !strings.Contains(err.Error(), "10000 Services took 70 s") {
		t.Errorf("got %v, want it not to be tried", err)
	}
	if err := rep.hopeless("podgate", 30000, options{}); err != nil {
		t.Error(err)
	}
}
