package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"podgate/stack/link/nstest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		main()
		return
	}
	nstest.Main(m)
}

var short = plan{rounds: 1, warm: 20 * time.Millisecond, window: 50 * time.Millisecond}

// systems sets up what this machine can, and says what it cannot.
func systems(t *testing.T, mtu int) *rig {
	t.Helper()
	r := new(rig)
	t.Cleanup(r.close)
	for _, err := range []error{r.bridge(mtu), r.iptables(mtu), r.podgate("TAP", mtu), r.podgate("veth", mtu)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range r.missing {
		t.Logf("not measured: %s: %s", a.System, a.Why)
	}
	return r
}

func TestEveryCellCanBeMeasured(t *testing.T) {
	r := systems(t, 1500)
	rep := newReport("datapath", short, r.missing)
	for _, m := range metrics {
		for _, s := range r.systems {
			if !m.fits(s) {
				continue
			}
			v, err := s.measure(m, short)
			for again := 0; v == 0 && err == nil && again < 5; again++ {
				v, err = s.measure(m, short) // the machine was too busy for so short a window
			}
			if err != nil || v <= 0 {
				t.Errorf("%s of %s: %v, %v", m.id, s.name, v, err)
				continue
			}
			rep.add(s, m, v)
		}
	}
	rep.finish()
	var table strings.Builder
	if err := rep.print(&table); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.systems {
		if !strings.Contains(table.String(), s.name) {
			t.Errorf("%s is not in the table:\n%s", s.name, &table)
		}
	}
}

func TestMeasureSaysWhyItFailed(t *testing.T) {
	r := new(rig)
	defer r.close()
	if err := r.bridge(1500); err != nil {
		t.Fatal(err)
	}
	s := r.systems[0]
	s.target = serviceAddr // which is nobody's here
	_, err := s.measure(metrics[0], short)
	if err == nil || !strings.Contains(err.Error(), "10.96.0.80") {
		t.Errorf("got %v, want an error that names 10.96.0.80", err)
	}
}

func sampleReport() *report {
	r := newReport("datapath", short, []absence{{"podgate pod to pod, TAP, MTU 1500", "open /dev/net/tun: permission denied"}})
	for _, s := range []struct {
		name   string
		values map[string]float64
	}{
		{bridgeName, map[string]float64{"tcp1": 10, "rr": 8}},
		{iptablesName, map[string]float64{"tcp1": 8, "rr": 9}},
		{podToService("TAP"), map[string]float64{"tcp1": 7, "rr": 15}},
	} {
		for _, m := range metrics {
			for range 3 {
				if v, ok := s.values[m.id]; ok {
					r.add(&system{name: s.name, mtu: 1500}, m, v)
				}
			}
		}
	}
	r.finish()
	return r
}

func TestCheckNamesTheRowsThatFallShort(t *testing.T) {
	r := sampleReport()
	ts, err := targets("datapath")
	if err != nil {
		t.Fatal(err)
	}
	ts = slices.DeleteFunc(ts, func(x target) bool { return x.Issue != 2 })
	if got := r.misses(ts); len(got) != 0 {
		t.Errorf("got %v, want every target met", got)
	}
	r.cell(podToService("TAP"), 1500, "tcp1").Median = 6.4
	r.cell(podToService("TAP"), 1500, "rr").Median = 16
	got := r.misses(ts)
	want := []string{
		"podgate pod to ClusterIP, TAP, MTU 1500, tcp1: 0.64 of kernel bridge, wanted at least 0.65",
		"podgate pod to ClusterIP, TAP, MTU 1500, tcp1: 0.80 of kernel iptables DNAT, wanted at least 0.85",
		"podgate pod to ClusterIP, TAP, MTU 1500, rr: 2.00 times kernel bridge, wanted at most 1.90",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	r.Cells = nil
	if got := r.misses(ts); len(got) != 3 || !strings.Contains(got[0], "not measured") {
		t.Errorf("got %q, want three targets that were not measured", got)
	}
}

func TestTargetsNameWhatIsMeasured(t *testing.T) {
	for bench := range benches {
		ts, err := targets(bench)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range ts {
			names := []string{bridgeName, iptablesName}
			for _, kind := range []string{"TAP", "veth"} {
				names = append(names, podToPod(kind), podToService(kind))
			}
			known := func(id string) bool {
				return slices.ContainsFunc(metrics, func(m metric) bool { return m.id == id })
			}
			if bench == "egress" {
				names = []string{egressName("podgate", egressMTU), bestPeer}
				known = func(id string) bool {
					return slices.ContainsFunc(egressMetrics, func(m metric) bool { return m.id == id })
				}
			}
			if bench == "services" {
				names = []string{""}
				for _, sys := range serviceSystems {
					for _, n := range serviceSizes(options{}) {
						names = append(names, servicesTitle(sys.name, n))
					}
				}
				known = func(id string) bool {
					return slices.ContainsFunc(serviceMetrics, func(m serviceMetric) bool { return m.id == id })
				}
			}
			if bench == "dns" {
				names = []string{""}
				for _, n := range []int{1000, 10000} {
					names = append(names, fmt.Sprintf(dnsPodgate, n), fmt.Sprintf(dnsCoreDNS, n))
				}
				known = func(id string) bool {
					load := strings.TrimSuffix(strings.TrimSuffix(id, " p50"), " p99")
					return id == "memory" || id == "change" || slices.ContainsFunc(dnsLoads, func(l dnsLoad) bool { return l.metric == load })
				}
			}
			if bench == "ingress" {
				names = nil
				for _, d := range frontDoors {
					names = append(names, (&frontDoor{name: d.name, routes: 1}).String(), (&frontDoor{name: d.name, routes: 1000}).String())
				}
				known = func(id string) bool {
					return slices.ContainsFunc(ingressLoads, func(l ingressLoad) bool { return l.metric == id })
				}
			}
			if bench == "scale" {
				names = []string{"", idleGateway.name, podsGateway.name, flowsGateway(manyFlows).name, flowsGateway(mostFlows).name, podToPod(tapKind), podToPod(tapNoUSO)}
				known = func(id string) bool {
					return slices.ContainsFunc(slices.Concat(scaleMetrics, udpMetrics), func(m metric) bool { return m.id == id })
				}
			}
			if bench == "cni" {
				names = []string{""}
				for _, s := range cniSystems("") {
					names = append(names, s.name)
				}
				known = func(id string) bool {
					return slices.ContainsFunc(cniMetrics, func(m metric) bool { return m.id == id })
				}
			}
			if bench == "policy" {
				names = []string{""}
				for _, n := range policySizes {
					names = append(names, policySystemName(policyPodgate, n), policySystemName(policyKernel, n))
				}
				known = func(id string) bool {
					return slices.ContainsFunc(policyColumns, func(c policyColumn) bool { return c.metric == id })
				}
			}
			if !slices.Contains(names, x.System) || !slices.Contains(names, x.To) {
				t.Errorf("%s: no system %q or %q", bench, x.System, x.To)
			}
			if !known(x.Metric) {
				t.Errorf("%s: no metric %q", bench, x.Metric)
			}
			if (x.AtLeast > 0) == (x.AtMost > 0) {
				t.Errorf("%s: %s needs one bound", bench, x.System)
			}
		}
	}
}

func TestTableShowsRatiosAndWhatIsMissing(t *testing.T) {
	var b strings.Builder
	if err := sampleReport().print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.70", "1.88", "not measured: podgate pod to pod, TAP, MTU 1500: open /dev/net/tun"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in the table:\n%s", want, &b)
		}
	}
}

func TestFilesAreWritten(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir+"/new", "datapath", sampleReport()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir + "/new/datapath.svg")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal("the chart is not XML:", err)
		}
	}
	if _, err := os.Stat(dir + "/new/datapath.json"); err != nil {
		t.Error(err)
	}
}
