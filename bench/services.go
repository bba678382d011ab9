package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"podgate/stack/link/ns"
)

// services measures what many Services cost: opening connections to the first,
// the middle and the last of them, changing an endpoint of one, and loading all;
// beside the kernel with the rules that kube-proxy writes.
//
// Each Service has three endpoints, which are three addresses of one server.
// A change replaces one endpoint of the middle Service and is over when the
// kernel's tool returns, or when the plane enforces it.

const (
	servicePort    = 5003
	endpointsEach  = 3
	kernelChanges  = 5
	podgateChanges = 200
)

// kernelLoad is the longest that a load of rules may take; longer ones are
// given up, or not tried where the load before says so.
func kernelLoad(o options) time.Duration {
	if o.quick {
		return 15 * time.Second
	}
	return 150 * time.Second
}

// hopeless says why n Services are not tried after what is known of 10,000: nft
// takes time by the square of them.
func (r *servicesReport) hopeless(system string, n int, o options) error {
	const known = 10000
	if row := r.row(system, known); row != nil && system == nftServices.name {
		times := float64(n) / known
		if row.Load*times*times > kernelLoad(o).Seconds() {
			return fmt.Errorf("not tried: the rules of %d Services took %.0f s to load, and the time grows with the square", known, row.Load)
		}
	}
	return nil
}

// serviceVIP is the ClusterIP of Service i.
func serviceVIP(i int) netip.Addr {
	i += 256
	return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
}

// serviceRow is one system with so many Services.
type serviceRow struct {
	System   string           `json:"system"`
	Services int              `json:"services"`
	Load     float64          `json:"loadSeconds"`
	MemoryMB float64          `json:"peakMiB,omitempty"` // of podgate's process
	Change   latency          `json:"change"`            // milliseconds
	Connect  []serviceLatency `json:"connect"`           // to the first, the middle and the last
}

// latency is a distribution.
type latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// serviceLatency is how a client fared with one Service.
type serviceLatency struct {
	latency         // microseconds that connect took
	PerSec  float64 `json:"connectionsPerSecond"`
}

func serviceSizes(o options) []int {
	if o.quick {
		return []int{1, 1000, 10000}
	}
	return []int{1, 1000, 10000, 30000}
}

func services(o options) (result, error) {
	rep := &servicesReport{report: newReport("services", o.plan(), nil), sizes: serviceSizes(o)}
	note := newProgress(os.Stderr)
	defer note.end()
	for _, n := range rep.sizes {
		for _, sys := range serviceSystems {
			what := fmt.Sprintf("%s, %d Services", sys.name, n)
			if o.only != nil && !o.only.MatchString(what) {
				continue
			}
			note.doing(what)
			err := rep.hopeless(sys.name, n, o)
			var row serviceRow
			if err == nil {
				row, err = sys.run(n, o)
			}
			if err != nil {
				rep.Missing = append(rep.Missing, absence{what, err.Error()})
				note.failed(fmt.Sprintf("%s: %v", what, err))
				continue
			}
			row.System, row.Services = sys.name, n
			rep.note(row)
			note.done(fmt.Sprintf("%s: loaded in %.2f s, connect to the last %.0f us", what, row.Load, row.Connect[2].P50))
		}
	}
	return rep, nil
}

// serviceSystems are who is compared.
var serviceSystems = []struct {
	name string
	run  func(n int, o options) (serviceRow, error)
}{
	{"podgate", podgateServices},
	{iptablesServices.name, iptablesServices.run},
	{nftServices.name, nftServices.run},
}

func podgateServices(n int, o options) (row serviceRow, err error) {
	r := new(rig)
	defer r.close()
	pods, err := r.pair("services-gateway", n)
	if err != nil {
		return row, err
	}
	if err := pods.server.Addr("eth0", netip.MustParsePrefix("10.244.0.6/16"), netip.MustParsePrefix("10.244.0.7/16")); err != nil {
		return row, err
	}
	if err := pods.out.Decode(&row); err != nil {
		return row, fmt.Errorf("the gateway did not load: %w", err)
	}
	if row.Connect, err = connectServices(pods.client, pods.server, n, o.plan(), pods.pid); err != nil {
		return row, err
	}
	fmt.Fprintln(pods.in, "change")
	return row, pods.out.Decode(&row.Change)
}

// kernelServices is the kernel with one tool's rules.
type kernelServices struct {
	name   string
	tool   []string
	pkg    string
	all    func(n int) string
	change func(i int, endpoint int) string
	noted  []string // the tool's arguments for a change
}

func (k *kernelServices) run(n int, o options) (row serviceRow, err error) {
	path, err := exec.LookPath(k.tool[0])
	if err != nil {
		return row, fmt.Errorf("%s is missing; install it: apt-get install -y %s", k.tool[0], k.pkg)
	}
	r := new(rig)
	defer r.close()
	client, server, mid, err := r.router(1500)
	if err == nil {
		err = server.Addr("eth0", netip.MustParsePrefix("10.244.2.6/24"), netip.MustParsePrefix("10.244.2.7/24"))
	}
	if err != nil {
		return row, err
	}
	took, err := feed(mid, kernelLoad(o), k.all(n), path, k.tool[1:]...)
	if err != nil {
		return row, err
	}
	row.Load = took.Seconds()
	if err := mid.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1"); err != nil {
		return row, err
	}
	if row.Connect, err = connectServices(client, server, n, o.plan()); err != nil {
		return row, err
	}
	var changes []time.Duration
	for i := range kernelChanges {
		took, err := feed(mid, kernelLoad(o), k.change(n/2, i), path, k.noted...)
		if err != nil {
			return row, err
		}
		changes = append(changes, took)
	}
	row.Change = distribution(changes, time.Millisecond)
	return row, nil
}

// connectServices opens connections to the first, the middle and the last Service.
// Both ends and the gateways, which are none with the kernel, share a CPU, so that
// no wake-up of an idle one is measured.
func connectServices(client, server *ns.NS, n int, p plan, gateways ...int) ([]serviceLatency, error) {
	for _, pid := range gateways {
		if err := pin(pid, 0); err != nil {
			return nil, err
		}
		defer pin(pid, -1)
	}
	srv, err := begin(server, "agent-serve", order{what: "connect", addr: fmt.Sprintf("0.0.0.0:%d", servicePort), cpu: 0})
	if err != nil {
		return nil, err
	}
	defer srv.kill()
	if err := ready(srv.out, "the server"); err != nil {
		return nil, err
	}
	// There and back, so that what grows meanwhile, such as the memory of finished
	// conversations, is nobody's alone. What the machine does besides only adds: of
	// each figure the better of the two counts.
	all := make([]serviceLatency, 3)
	for _, at := range []int{0, 1, 2, 2, 1, 0} {
		got, err := connectService(client, []int{0, n / 2, n - 1}[at], p)
		if err != nil {
			return nil, err
		}
		if was := all[at]; was.PerSec > 0 {
			got = serviceLatency{latency{min(was.P50, got.P50), min(was.P99, got.P99)}, max(was.PerSec, got.PerSec)}
		}
		all[at] = got
	}
	return all, nil
}

// connectService opens connections to Service i for half a window.
func connectService(client *ns.NS, i int, p plan) (serviceLatency, error) {
	o := order{what: "service", addr: netip.AddrPortFrom(serviceVIP(i), servicePort).String(), cpu: 0, warm: p.warm / 2, window: p.window / 2}
	c, err := begin(client, "agent-load", o)
	if err != nil {
		return serviceLatency{}, err
	}
	late := time.AfterFunc(o.warm+o.window+10*time.Second, func() { c.Process.Kill() })
	var got sample
	err = json.NewDecoder(bufio.NewReader(c.out)).Decode(&got)
	late.Stop()
	c.kill()
	if err != nil {
		return serviceLatency{}, fmt.Errorf("connect to Service %d: %s", i, c.complaint())
	}
	return serviceLatency{latency{got.P50, got.P99}, float64(got.Count) / got.Seconds}, nil
}
