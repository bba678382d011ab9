package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"podgate/stack/link/ns"
)

// What podgate takes
//
// Figures that stand by themselves: the memory of an idle gateway, of a pod and of
// a flow, how soon many pods are there, what a frame of a known flow costs when
// nothing is copied, and what becomes of UDP. The gateways of the first two are
// `podgate up` as users have it; that of the flows is the data plane behind two
// devices that make frames and swallow them (scaleflows.go).

const (
	scalePods  = 200
	manyFlows  = 100_000
	mostFlows  = 1_000_000
	pacedRate  = 100_000 // datagrams a second
	segmentLen = 1200    // of a datagram of UDP_SEGMENT, as QUIC has them
)

var (
	idleGateway = &system{name: "podgate, idle"}
	podsGateway = &system{name: fmt.Sprintf("podgate, %d pods", scalePods)}
)

func flowsGateway(n int) *system { return &system{name: fmt.Sprintf("podgate, %d flows", n)} }

const (
	scaleMemory = iota
	scaleAttach
	scalePodMemory
	scaleHit
	scaleAllocs
	scaleFlowMemory
	scaleFlows
)

// scaleMetrics are single figures, and listed as such.
var scaleMetrics = []metric{
	scaleMemory:     {id: "memory", title: "resident", unit: "MiB", smaller: true},
	scaleAttach:     {id: "attach", title: "ready after", unit: "s", smaller: true},
	scalePodMemory:  {id: "pod memory", title: "resident for each further pod", unit: "KiB", smaller: true},
	scaleHit:        {id: "hit", title: "a frame of a known flow, without copies", unit: "ns", smaller: true},
	scaleAllocs:     {id: "allocations", title: "allocations a frame", unit: "", smaller: true},
	scaleFlowMemory: {id: "flow memory", title: "resident for each flow", unit: "B", smaller: true},
	scaleFlows:      {id: "flows", title: "flows held", unit: "k"},
}

// udpMetrics are about pods that send to each other.
var udpMetrics = []metric{
	{
		id: "segments", title: "UDP_SEGMENT datagrams", unit: "k/s", load: "segments", port: 5005, proto: "UDP", streams: 1,
		value: func(s sample) float64 { return float64(s.Count) / s.Seconds / 1e3 },
	},
	{
		id: "loss", title: fmt.Sprintf("UDP lost at %dk/s", pacedRate/1000), unit: "%", load: "paced", port: 5006, proto: "UDP", streams: 1, smaller: true,
		value: func(s sample) float64 {
			sent := pacedRate * s.Seconds
			return max(0, sent-float64(s.Count)) / sent * 100
		},
	},
}

// scale is the benchmark of these figures alone.
func scale(o options) (result, error) {
	rep := newReport("scale", o.plan(), nil)
	rep.metrics = nil
	if err := rep.scale(o); err != nil {
		return nil, err
	}
	rep.finish()
	return rep, nil
}

// scale measures them.
func (r *report) scale(o options) error {
	r.metrics = append(append(r.metrics[:len(r.metrics):len(r.metrics)], scaleMetrics...), udpMetrics...)
	note := newProgress(os.Stderr)
	defer note.end()
	p := o.plan()
	dir, remove, err := scratch()
	if err != nil {
		return err
	}
	defer remove()
	if o.wants(idleGateway, scaleMetrics[scaleMemory]) {
		note.doing(fmt.Sprintf("a gateway without pods, and with %d", scalePods))
		if err := r.residents(dir, o, note); err != nil {
			return err
		}
	}
	for round := range min(p.rounds, 3) {
		for _, n := range []int{manyFlows, mostFlows} {
			s := flowsGateway(n)
			if !o.wants(s, scaleMetrics[scaleHit]) {
				continue
			}
			what := fmt.Sprintf("round %d of %d: %s", round+1, min(p.rounds, 3), s.name)
			note.doing(what)
			f, err := measureFlows(n)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			r.add(s, scaleMetrics[scaleHit], f.Hit)
			r.add(s, scaleMetrics[scaleAllocs], f.Allocs)
			r.add(s, scaleMetrics[scaleFlowMemory], f.Bytes)
			r.add(s, scaleMetrics[scaleFlows], float64(f.Held)/1e3)
			note.done(fmt.Sprintf("%s: %.0f ns, %.0f B a flow", what, f.Hit, f.Bytes))
		}
	}
	return r.udp(o, p, note)
}

// residents starts `podgate up` without pods and with many.
func (r *report) residents(dir string, o options, note *progress) error {
	rig := new(rig)
	defer rig.close()
	if err := buildPrograms(dir, "podgate"); err != nil {
		return err
	}
	many, err := rig.instance(dir, "many", fmt.Sprintf(manyPods, scalePods))
	if err != nil {
		return err
	}
	// A first pod brings in code and tables; what the others add is theirs.
	one, err1 := rig.instance(dir, "one", fmt.Sprintf(manyPods, 1))
	idle, err2 := rig.instance(dir, "idle", nothing)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	time.Sleep(settled(o))
	withNone, err1 := resident(idle.pid)
	withOne, err2 := resident(one.pid)
	withMany, err3 := resident(many.pid)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	r.add(idleGateway, scaleMetrics[scaleMemory], withNone/1024)
	r.add(podsGateway, scaleMetrics[scaleMemory], withMany/1024)
	r.add(podsGateway, scaleMetrics[scaleAttach], many.took.Seconds())
	r.add(podsGateway, scaleMetrics[scalePodMemory], (withMany-withOne)/(scalePods-1))
	note.done(fmt.Sprintf("%s: %.1f MiB; %s: ready after %.2f s, %.1f MiB", idleGateway.name, withNone/1024, podsGateway.name, many.took.Seconds(), withMany/1024))
	return nil
}

// settled is how long a gateway takes to give back what its start left behind.
func settled(o options) time.Duration {
	if o.quick {
		return 4 * time.Second
	}
	return 12 * time.Second
}

const (
	nothing  = `{apiVersion: v1, kind: ConfigMap, metadata: {name: nothing}}`
	manyPods = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: %d
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec: {containers: [{name: c, image: none, command: [sleep, infinity]}]}
`
)

// buildPrograms makes podgate's programs in dir.
func buildPrograms(dir string, programs ...string) error {
	for _, program := range programs {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, program), "./cmd/"+program)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", program, err, out)
		}
	}
	return nil
}

// instance is a running `podgate up`.
type instance struct {
	pid  int
	took time.Duration // until its pods were ready, from the start of the program
}

// instance starts one in a namespace of its own; its control socket and state are
// below dir.
func (r *rig) instance(dir, name, manifests string) (*instance, error) {
	node, err := r.ns("node")
	if err != nil {
		return nil, err
	}
	return r.up(node, dir, name, manifests)
}

// up runs `podgate up` in a namespace, from the binary in dir, until the rig ends.
func (r *rig) up(node *ns.NS, dir, name, manifests string) (*instance, error) {
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, []byte(manifests), 0o644); err != nil {
		return nil, err
	}
	cmd := node.Command(filepath.Join(dir, "podgate"), "up", file, "--name", name, "--set", "ingress.http=", "--set", "ingress.https=", "--set", "state.dir="+dir, "--set", "log.level=error")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+filepath.Join(dir, "run"))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.closers = append(r.closers, func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // its summary
		return nil, fmt.Errorf("podgate up: %s", &said)
	}
	return &instance{cmd.Process.Pid, time.Since(start)}, nil
}

// resident is what a process has in memory, in KiB.
func resident(pid int) (kib float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib, nil
		}
	}
	return 0, errors.New("/proc does not say what is resident")
}

// udp measures datagrams between pods, with and without UDP segmentation offload,
// beside the kernel's bridge.
func (r *report) udp(o options, p plan, note *progress) error {
	rig := new(rig)
	defer rig.close()
	for _, err := range []error{rig.bridge(1500), rig.podgate(tapKind, 1500), rig.podgate(tapNoUSO, 1500)} {
		if err != nil {
			return err
		}
	}
	r.Missing = append(r.Missing, rig.missing...)
	for round := range p.rounds {
		for _, m := range udpMetrics {
			for _, s := range rig.systems {
				if s.target == serviceAddr || m.load == "paced" && s.name == podToPod(tapNoUSO) || !o.wants(s, m) {
					continue
				}
				one := *s
				one.mtu = 0
				what := fmt.Sprintf("round %d of %d: %s: %s", round+1, p.rounds, m.title, s.name)
				note.doing(what)
				v, err := one.measure(m, p)
				if err != nil {
					note.failed(fmt.Sprintf("%s: %v", what, err))
					continue
				}
				note.done(fmt.Sprintf("%s: %.3g %s", what, v, m.unit))
				r.add(&one, m, v)
			}
		}
	}
	return nil
}

// flowFigures are what the process with n flows reports.
type flowFigures struct {
	Held   int     `json:"held"`
	Bytes  float64 `json:"bytes"`  // resident for each flow
	Hit    float64 `json:"hit"`    // ns a frame
	Allocs float64 `json:"allocs"` // a frame
}

func measureFlows(n int) (f flowFigures, err error) {
	cmd := exec.Command("/proc/self/exe", "flows", fmt.Sprint(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(out, &f)
}
