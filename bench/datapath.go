package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podgate/stack/link/ns"
)

// metric is one column of the table.
type metric struct {
	id, title string
	unit      string
	load      string // what the agents do
	port      uint16
	proto     string
	streams   int
	oneCPU    bool // client, server and gateway share a CPU
	smaller   bool // is better
	bothMTUs  bool // else measured at the smaller MTU alone
	ofGateway bool // the kernel has none
	value     func(sample) float64
}

// fits says whether m can be measured of s.
func (m metric) fits(s *system) bool { return !m.ofGateway || len(s.gateways) > 0 }

var metrics = []metric{
	{
		id: "tcp1", title: "TCP 1 stream", unit: "Gb/s", load: "stream", port: 5001, proto: "TCP", streams: 1, bothMTUs: true,
		value: func(s sample) float64 { return float64(s.Count) * 8 / s.Seconds / 1e9 },
	},
	{
		id: "tcp4", title: "TCP 4 streams", unit: "Gb/s", load: "stream", port: 5001, proto: "TCP", streams: 4, bothMTUs: true,
		value: func(s sample) float64 { return float64(s.Count) * 8 / s.Seconds / 1e9 },
	},
	{
		id: "rr", title: "RR, one CPU, p50", unit: "us", load: "rr", port: 5002, proto: "TCP", streams: 1, oneCPU: true, smaller: true,
		value: func(s sample) float64 { return s.P50 },
	},
	{
		id: "conn", title: "connections", unit: "k/s", load: "connect", port: 5003, proto: "TCP", streams: 1,
		value: func(s sample) float64 { return float64(s.Count) / s.Seconds / 1e3 },
	},
	{
		id: "udp", title: "UDP 64 B received", unit: "k/s", load: "datagram", port: 5004, proto: "UDP", streams: 1,
		value: func(s sample) float64 { return float64(s.Count) / s.Seconds / 1e3 },
	},
	{
		id: "cpu", title: fmt.Sprintf("gateway's CPU at %dk datagrams/s", pacedRate/1000), unit: "%", load: "paced", port: 5007, proto: "UDP", streams: 1, smaller: true, ofGateway: true,
		value: func(s sample) float64 { return s.Gateway * 100 },
	},
}

// spin is how long a gateway that spins does so.
const spin = 50 * time.Microsecond

// datapath measures pod to pod and pod to Service against the kernel. The
// rounds go through all systems in turn, so that the noise of the machine falls
// on all alike; medians are reported.
func datapath(o options) (result, error) {
	r := new(rig)
	defer r.close()
	for _, mtu := range []int{1500, 65520} {
		for _, err := range []error{
			r.bridge(mtu),
			r.iptables(mtu),
			r.podgate("TAP", mtu),
			r.podgate("veth", mtu),
		} {
			if err != nil {
				return nil, err
			}
		}
	}
	if err := r.podgate(tapSpin, 1500); err != nil {
		return nil, err
	}
	p := o.plan()
	rep := newReport("datapath", p, r.missing)
	rounds(r, rep, o, p)
	if err := rep.scale(o); err != nil {
		return nil, err
	}
	rep.finish()
	return rep, nil
}

// rounds measures every cell that is asked for.
func rounds(r *rig, rep *report, o options, p plan) {
	note := newProgress(os.Stderr)
	defer note.end()
	for round := range p.rounds {
		for _, m := range rep.metrics {
			for _, s := range r.systems {
				if s.mtu == 65520 && !m.bothMTUs || !m.fits(s) || !o.wants(s, m) {
					continue
				}
				what := fmt.Sprintf("round %d of %d: %s: %s", round+1, p.rounds, m.title, s.title())
				note.doing(what)
				v, err := s.measure(m, p)
				if err != nil {
					note.failed(fmt.Sprintf("%s: %v", what, err))
					continue
				}
				note.done(fmt.Sprintf("%s: %.3g %s", what, v, m.unit))
				rep.add(s, m, v)
			}
		}
	}
}

// measure runs the agents of one cell once.
func (s *system) measure(m metric, p plan) (float64, error) {
	cpu := -1
	if m.oneCPU {
		cpu = 0
		for _, pid := range s.gateways {
			if err := pin(pid, cpu); err != nil {
				return 0, err
			}
			defer pin(pid, -1)
		}
	}
	o := order{what: m.load, streams: m.streams, cpu: cpu, warm: p.warm, window: p.window}

	o.addr = netip.AddrPortFrom(s.listen, m.port).String()
	server, err := begin(s.server, "agent-serve", o)
	if err != nil {
		return 0, err
	}
	defer server.kill()
	if err := ready(server.out, "the server"); err != nil {
		return 0, err
	}
	o.addr = netip.AddrPortFrom(s.target, m.port).String()
	before := s.cpuTime()
	client, err := begin(s.client, "agent-load", o)
	if err != nil {
		return 0, err
	}
	defer client.kill()

	reporter := client
	if m.load == "paced" {
		reporter = server
	}
	if m.load == "stream" || m.load == "datagram" || m.load == "segments" {
		reporter = server
		// The client ends early only to fail, and then there is nothing to wait for.
		go func() {
			select {
			case <-client.ended:
				server.Process.Kill()
			case <-server.ended:
			}
		}()
	}
	tooLate := time.AfterFunc(p.warm+p.window+15*time.Second, func() { reporter.Process.Kill() })
	defer tooLate.Stop()
	var got sample
	if json.NewDecoder(reporter.out).Decode(&got) != nil {
		client.kill()
		server.kill()
		return 0, fmt.Errorf("no result; client: %q, server: %q", client.complaint(), server.complaint())
	}
	got.Gateway = (s.cpuTime() - before).Seconds() / got.Seconds
	return m.value(got), nil
}

// cpuTime is what the gateways have had of the CPUs.
func (s *system) cpuTime() (sum time.Duration) {
	for _, pid := range s.gateways {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is sound
		for _, t := range threads {
			var ns int64
			stat, _ := os.ReadFile(t) // a thread that has ended took next to nothing
			fmt.Sscan(string(stat), &ns)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// agent is a running load process.
type agent struct {
	*ns.Cmd
	out   *bufio.Reader
	pipe  *os.File
	said  bytes.Buffer // on stderr; to be read once ended
	ended chan struct{}
}

func begin(in *ns.NS, role string, o order) (*agent, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	a := &agent{
		Cmd: in.Command("/proc/self/exe", append([]string{role}, o.args()...)...),
		out: bufio.NewReader(r), pipe: r, ended: make(chan struct{}),
	}
	a.Stdout, a.Stderr = w, &a.said
	if err := a.Start(); err != nil {
		r.Close()
		return nil, err
	}
	go func() {
		a.Wait()
		close(a.ended)
	}()
	return a, nil
}

// kill ends the agent; a second time it does nothing.
func (a *agent) kill() {
	a.Process.Kill()
	<-a.ended
	a.pipe.Close()
}

// complaint is what an agent that has ended said of it.
func (a *agent) complaint() string { return strings.TrimSpace(a.said.String()) }
