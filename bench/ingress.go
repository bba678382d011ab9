package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"podgate/stack/link/ns"
)

// The Ingress benchmark
//
// podgate, the real program with its data path in the way, and its peers on a
// kernel bridge are in front of the same two pods each. The peers are Debian's,
// but for Traefik, which is built from its module. wrk and h2load (Debian)
// ask them over loopback, in the namespace where they listen. Every front door
// is there twice, with 1 and with 1000 hosts; the last host is asked for. Loads
// go round all systems in turn. Memory is the proportional share (PSS) of the
// front door's processes after the loads; podgate's has all of its data path
// and DNS in it.

// ingressLoads are what is asked. fresh: a connection for every request.
var ingressLoads = []ingressLoad{
	{metric: "keep-alive", title: "small answers, keep-alive", conns: 64},
	{metric: "new", title: "small answers, new connections", conns: 64, fresh: true},
	{metric: "tls", title: "small answers, TLS, keep-alive", conns: 64, tls: true},
	{metric: "tls new", title: "small answers, TLS, new connections", conns: 64, tls: true, fresh: true},
	{metric: "h2", title: "small answers, HTTP/2", conns: 8, tls: true, streams: 16},
	{metric: "big", title: "1 MiB answers, keep-alive", conns: 16, path: "big"},
}

type ingressLoad struct {
	metric, title string
	conns         int
	fresh, tls    bool
	streams       int    // of HTTP/2 a connection; 0: HTTP/1.1
	path          string // without its slash
}

// frontDoor is a system that can be asked.
type frontDoor struct {
	name   string
	routes int
	host   *ns.NS
	pid    int // of the first process
}

const (
	frontHTTP, frontHTTPS = "127.0.0.1:8080", "127.0.0.1:8443"
	frontPods             = 2
	podPort               = "8000"
)

func (f *frontDoor) String() string {
	if f.routes == 1 {
		return f.name + ", 1 route"
	}
	return fmt.Sprintf("%s, %d routes", f.name, f.routes)
}

// asked names a front door and a load.
func (f *frontDoor) asked(l ingressLoad) string { return fmt.Sprintf("%s: %s", f, l.title) }

// takes says whether a load is measured here.
func (f *frontDoor) takes(l ingressLoad, o options) bool {
	return (f.routes == 1 || l.metric == "keep-alive") && (o.only == nil || o.only.MatchString(f.asked(l)))
}

// lastHost is the host that is asked for.
func (f *frontDoor) lastHost() string { return frontHost(f.routes - 1) }

func frontHost(i int) string { return fmt.Sprintf("h%d.bench.example", i) }

// ingressReport is a report with a table of its own.
type ingressReport struct{ *report }

func ingressBench(o options) (result, error) {
	p := o.plan()
	p.rounds = min(p.rounds, 4) // there are many cells
	if o.quick {
		p.rounds = 1
	}
	p.window = max(p.window, time.Second) // wrk counts in seconds
	r := &ingressReport{newReport("ingress", p, nil)}
	for tool, pkg := range map[string]string{"wrk": "wrk", "h2load": "nghttp2-client"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is missing; install it: apt-get install -y %s", tool, pkg)
		}
	}
	dir, remove, err := scratch()
	if err != nil {
		return nil, err
	}
	defer remove()
	note := newProgress(os.Stderr)
	defer note.end()
	if err := frontCertificate(dir); err != nil {
		return nil, err
	}
	var doors []*frontDoor
	rig := new(rig)
	defer rig.close()
	for _, routes := range []int{1, 1000} {
		for _, start := range frontDoors {
			f := &frontDoor{name: start.name, routes: routes}
			if !slices.ContainsFunc(ingressLoads, func(l ingressLoad) bool { return f.takes(l, o) }) {
				continue
			}
			note.doing(fmt.Sprintf("starting %s, %d routes", start.name, routes))
			if err := start.run(f, rig, dir); err != nil {
				r.Missing = append(r.Missing, absence{f.String(), err.Error()})
				note.failed(fmt.Sprintf("%s: %v", f, err))
				continue
			}
			doors = append(doors, f)
		}
	}
	failed := map[string]bool{}
	for range p.rounds {
		for _, l := range ingressLoads {
			for _, f := range doors {
				what := f.asked(l)
				if failed[what] || !f.takes(l, o) {
					continue
				}
				note.doing(what)
				got, err := f.measure(l, p, dir)
				if err != nil {
					failed[what] = true
					r.Missing = append(r.Missing, absence{what, err.Error()})
					note.failed(fmt.Sprintf("%s: %v", what, err))
					continue
				}
				r.note(f.String(), l.metric, "requests/s", got.rate)
				r.note(f.String(), l.metric+" p50", "us", got.P50)
				r.note(f.String(), l.metric+" p99", "us", got.P99)
				note.done(fmt.Sprintf("%s: %.0f requests/s, p50 %.0f us, p99 %.0f us", what, got.rate, got.P50, got.P99))
			}
		}
	}
	for _, f := range doors {
		r.note(f.String(), "memory", "MiB", proportionalMiB(f.pid))
	}
	for _, c := range r.Cells {
		c.Median = median(c.Samples)
	}
	return r, nil
}

func (r *report) note(system, metric, unit string, v float64) {
	c := r.cell(system, 0, metric)
	if c == nil {
		c = &cell{System: system, Metric: metric, Unit: unit}
		r.Cells = append(r.Cells, c)
	}
	c.Samples = append(c.Samples, v)
}

// fared is how a front door did.
type fared struct {
	latency // microseconds
	rate    float64
}

func (f *frontDoor) measure(l ingressLoad, p plan, dir string) (fared, error) {
	if l.streams > 0 {
		return f.h2load(l, p, dir)
	}
	url := "http://" + frontHTTP + "/" + l.path
	if l.tls {
		url = "https://" + frontHTTPS + "/" + l.path
	}
	args := []string{"-t2", "-c" + strconv.Itoa(l.conns), fmt.Sprintf("-d%ds", p.window/time.Second), "--latency", "-H", "Host: " + f.lastHost()}
	if l.fresh {
		args = append(args, "-H", "Connection: close")
	}
	out, err := f.host.Command("wrk", append(args, url)...).CombinedOutput()
	if err != nil {
		return fared{}, fmt.Errorf("wrk: %w: %s", err, firstLine(out))
	}
	if m := regexp.MustCompile(`Non-2xx or 3xx responses: .*|Socket errors: .*`).Find(out); m != nil && !l.fresh {
		return fared{}, fmt.Errorf("wrk: %s", m)
	}
	got := fared{}
	for _, v := range []struct {
		pattern string
		into    *float64
	}{{`50%\s+([0-9.]+)(\w+)`, &got.P50}, {`99%\s+([0-9.]+)(\w+)`, &got.P99}, {`Requests/sec:\s+([0-9.]+)(\w*)`, &got.rate}} {
		m := regexp.MustCompile(v.pattern).FindSubmatch(out)
		if m == nil {
			return fared{}, fmt.Errorf("wrk says no %s:\n%s", v.pattern, out)
		}
		*v.into, _ = strconv.ParseFloat(string(m[1]), 64)
		*v.into *= map[string]float64{"": 1, "us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}[string(m[2])]
	}
	if got.rate == 0 {
		return fared{}, fmt.Errorf("nothing was answered:\n%s", out)
	}
	return got, nil
}

// h2load asks by HTTP/2 and returns the percentiles of its log.
func (f *frontDoor) h2load(l ingressLoad, p plan, dir string) (fared, error) {
	log := filepath.Join(dir, "h2load.log")
	defer os.Remove(log)
	out, err := f.host.Command("h2load", "-t2", "-c", strconv.Itoa(l.conns), "-m", strconv.Itoa(l.streams), "-D", strconv.Itoa(int(p.window/time.Second)),
		"--warm-up-time=100ms", "--log-file="+log, "--connect-to="+frontHTTPS, "https://"+f.lastHost()+"/"+l.path).CombinedOutput()
	if err != nil {
		return fared{}, fmt.Errorf("h2load: %w: %s", err, firstLine(out))
	}
	m := regexp.MustCompile(`finished in [^,]+, ([0-9.]+) req/s`).FindSubmatch(out)
	codes := regexp.MustCompile(`status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx`).FindSubmatch(out)
	if m == nil || codes == nil || string(codes[1]) == "0" || !bytes.Contains(out, []byte("Application protocol: h2")) {
		return fared{}, fmt.Errorf("h2load was not answered by HTTP/2 throughout:\n%s", out)
	}
	got := fared{}
	got.rate, _ = strconv.ParseFloat(string(m[1]), 64)
	file, err := os.Open(log)
	if err != nil {
		return fared{}, err
	}
	defer file.Close()
	var took []float64
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 {
			us, _ := strconv.ParseFloat(fields[2], 64)
			took = append(took, us)
		}
	}
	if len(took) == 0 {
		return fared{}, errors.New("h2load logged nothing")
	}
	slices.Sort(took)
	got.P50, got.P99 = took[len(took)/2], took[len(took)*99/100]
	return got, nil
}

// answers waits until a front door answers both ways.
func (f *frontDoor) answers(process *ns.Cmd, said *bytes.Buffer) error {
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	request := "GET / HTTP/1.1\r\nHost: " + f.lastHost() + "\r\nConnection: close\r\n\r\n"
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := f.host.Do(func() error {
			tls, err := net.DialTimeout("tcp", frontHTTPS, time.Second)
			if err != nil {
				return err
			}
			tls.Close()
			c, err := net.DialTimeout("tcp", frontHTTP, time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(c, request)
			answer, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil && answer.StatusCode != http.StatusOK {
				err = errors.New(answer.Status)
			}
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("it ended: %v: %.300s", err, said)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it does not answer: %w", err)
		}
	}
}

// proportionalMiB is the memory of a process and its children, what they share
// counted once.
func proportionalMiB(pid int) float64 {
	total := 0.0
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)) // gone: 0
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			total += kb / 1024
		}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		children, _ := os.ReadFile(t)
		for _, c := range strings.Fields(string(children)) {
			child, _ := strconv.Atoi(c)
			if exe, _ := os.Readlink("/proc/" + c + "/exe"); !strings.Contains(exe, "bench") { // podgate's pods are not the front door
				total += proportionalMiB(child)
			}
		}
	}
	return total
}

// print writes a row for each metric, all systems side by side.
func (r *ingressReport) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "ingress: %s, %d CPUs, Linux %s, %s, %s, %s; median of %d rounds of %d ms; x is podgate to that peer\n\n",
		m.CPU, m.CPUs, m.Kernel, m.Go, m.User, r.Started.Format("2006-01-02"), r.Rounds, r.WindowMS)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "routes\tload\tpodgate")
	for _, d := range frontDoors[1:] {
		fmt.Fprintf(t, "\t%s\tx", d.name)
	}
	fmt.Fprintln(t)
	for _, routes := range []int{1, 1000} {
		named := func(name string) string { return (&frontDoor{name: name, routes: routes}).String() }
		for _, metric := range r.metrics(routes) {
			fmt.Fprintf(t, "%d\t%s", routes, metric)
			ours := r.cell(named(frontDoors[0].name), 0, metric)
			for _, d := range frontDoors {
				c := r.cell(named(d.name), 0, metric)
				switch {
				case c == nil:
					fmt.Fprint(t, "\t-")
				default:
					fmt.Fprintf(t, "\t%.0f", c.Median)
				}
				if d.name == frontDoors[0].name {
					continue
				}
				if c == nil || ours == nil || c.Median == 0 {
					fmt.Fprint(t, "\t-")
				} else {
					fmt.Fprintf(t, "\t%.2f", ours.Median/c.Median)
				}
			}
			fmt.Fprintln(t)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, a := range r.Missing {
		fmt.Fprintf(w, "\nnot measured: %s: %s", a.System, a.Why)
	}
	if len(r.Missing) > 0 {
		fmt.Fprintln(w)
	}
	return nil
}

// metrics are those that were measured, with their units.
func (r *ingressReport) metrics(routes int) (all []string) {
	for _, c := range r.Cells {
		if strings.HasSuffix(c.System, (&frontDoor{routes: routes}).String()) && !slices.Contains(all, c.Metric) {
			all = append(all, c.Metric)
		}
	}
	return all
}

// chart draws a bar of podgate's requests a second to each peer's for each load.
func (r *ingressReport) chart(w io.Writer) {
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="640" height="%d" font-family="sans-serif" font-size="12">`, 50+len(ingressLoads)*len(frontDoors)*24)
	y := 20
	fmt.Fprintf(w, `<text x="10" y="%d">podgate's requests a second, times its peers'</text>`, y)
	ours := (&frontDoor{name: frontDoors[0].name, routes: 1}).String()
	for _, l := range ingressLoads {
		for _, d := range frontDoors[1:] {
			y += 24
			ratio := 0.0
			if c := r.cell(ours, 0, l.metric); c != nil {
				ratio = r.ratio(c, (&frontDoor{name: d.name, routes: 1}).String())
			}
			fmt.Fprintf(w, `<text x="10" y="%d">%s, %s</text><rect x="280" y="%d" width="%.0f" height="14" fill="#47a"/><text x="%.0f" y="%d">%.2f</text>`,
				y, l.title, d.name, y-11, min(300, 60*ratio), 286+min(300, 60*ratio), y, ratio)
		}
	}
	fmt.Fprintln(w, `</svg>`)
}
