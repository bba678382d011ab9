package main

import (
	"slices"
	"strings"
	"testing"
)

func TestIngressTargetsAreOfItsRows(t *testing.T) {
	rep := &ingressReport{newReport("ingress", short, nil)}
	for _, d := range frontDoors {
		for _, routes := range []int{1, 1000} {
			f := &frontDoor{name: d.name, routes: routes}
			for _, l := range ingressLoads {
				rep.note(f.String(), l.metric, "requests/s", 1000)
			}
		}
	}
	for _, c := range rep.Cells {
		c.Median = median(c.Samples)
	}
	if got, err := rep.short("ingress"); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want every target met", got, err)
	}
	rep.cell("podgate, 1 route", 0, "h2").Median = 999
	if got, _ := rep.short("ingress"); len(got) != 1 || !strings.Contains(got[0], "h2") {
		t.Errorf("got %v, want HTTP/2 to fall short of Caddy", got)
	}
	var table, chart strings.Builder
	if err := rep.print(&table); err != nil {
		t.Fatal(err)
	}
	rep.chart(&chart)
	for _, l := range ingressLoads {
		if !strings.Contains(table.String(), l.metric) || !strings.Contains(chart.String(), l.title) {
			t.Errorf("%s is not in table and chart:\n%s", l.metric, &table)
		}
	}
	if !slices.Contains(rep.metrics(1000), "keep-alive") {
		t.Error("1000 routes are not in the table")
	}
}
