package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlowsAreHeldAndHit(t *testing.T) {
	const n = 20_000
	f, err := measureFlows(n)
	if err != nil {
		t.Fatal(err)
	}
	if f.Held != n || f.Hit <= 0 || f.Allocs != 0 || f.Bytes <= 0 {
		t.Errorf("got %+v, want %d flows, and hits that allocate nothing", f, n)
	}
}

func TestDatagramsCanBeMeasured(t *testing.T) {
	r := new(rig)
	t.Cleanup(r.close)
	if err := r.bridge(1500); err != nil {
		t.Fatal(err)
	}
	rep := newReport("scale", short, nil)
	rep.metrics = udpMetrics
	for _, m := range udpMetrics {
		s := *r.systems[0]
		s.mtu = 0
		v, err := s.measure(m, short)
		if err != nil {
			t.Errorf("%s: %v", m.id, err)
			continue
		}
		rep.add(&s, m, v)
	}
	rep.finish()
	var table strings.Builder
	if err := rep.print(&table); err != nil {
		t.Fatal(err)
	}
	for _, m := range udpMetrics {
		if !strings.Contains(table.String(), m.title) {
			t.Errorf("%s is not listed:\n%s", m.title, &table)
		}
	}
	rep.chart(io.Discard)
}
