package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	mdns "github.com/miekg/dns"

	"podgate/stack/link/ns"
)

// The DNS benchmark
//
// The same Services are served by podgate, the real program with its data path
// in the way, and by CoreDNS (bench/peers/coredns) behind a kernel veth; both
// are asked by dnsperf (Debian) from a pod. Each kind of question is asked at
// full load, and then by an asker of our own at half of what CoreDNS managed,
// for the latency. Where dnsperf, or CoreDNS's module, is not there, the table
// names it.

const (
	dnsPodgate = "podgate, %d Services"
	dnsCoreDNS = "CoreDNS, %d Services"
	dnsPort    = ":5300" // of the stand-in upstream
)

// dnsLoads are the kinds of questions.
var dnsLoads = []dnsLoad{
	{"hit", "A of a Service", func(i, n int) string { return fmt.Sprintf("s%d.many.svc.cluster.local", i%n) }},
	{"miss", "search-list miss", func(i, n int) string { return fmt.Sprintf("www%d.example.com.many.svc.cluster.local", i) }},
	{"headless", "headless, 100 endpoints", func(int, int) string { return "headless.many.svc.cluster.local" }},
	{"forward", "forwarded, cached", func(i, n int) string { return fmt.Sprintf("www%d.example.com", i%100) }},
}

type dnsLoad struct {
	metric, title string
	name          func(i, services int) string
}

// dnsReport is a report with a table of its own.
type dnsReport struct {
	*report
	sizes []int
}

// dnsSystem is a server that can be asked.
type dnsSystem struct {
	name    string
	at      string                                      // address of the server, for the pod
	command func(name string, args ...string) *exec.Cmd // in the pod, not started
	run     func(*exec.Cmd) error
	pid     int
}

func dnsBench(o options) (result, error) {
	p := o.plan()
	seconds := max(1, int(p.window/time.Second))
	r := &dnsReport{report: newReport("dns", p, nil), sizes: []int{1000, 10000}}
	if o.quick {
		r.sizes = r.sizes[:1]
	}
	if _, err := exec.LookPath("dnsperf"); err != nil {
		return nil, errors.New("dnsperf is missing; install it: apt-get install -y dnsperf")
	}
	dir, err := os.MkdirTemp("", "podgate-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, n := range r.sizes {
		if err := r.measure(dir, n, seconds, p.rounds); err != nil {
			return nil, err
		}
	}
	for _, c := range r.Cells {
		c.Median = median(c.Samples)
	}
	return r, nil
}

// measure asks both servers everything about n Services, in turns.
func (r *dnsReport) measure(dir string, n, seconds, rounds int) error {
	for _, l := range dnsLoads {
		var b strings.Builder
		for i := range 2 * n {
			fmt.Fprintln(&b, l.name(i, n), "A")
		}
		if err := os.WriteFile(filepath.Join(dir, l.metric), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	var systems []*dnsSystem
	ours, stop, err := dnsStartPodgate(dir, n)
	defer stop()
	if err != nil {
		return err
	}
	systems = append(systems, ours)
	theirs, stop, err := dnsStartCoreDNS(dir, n)
	defer stop()
	if err != nil {
		r.Missing = append(r.Missing, absence{fmt.Sprintf(dnsCoreDNS, n), err.Error()})
	} else {
		systems = append(systems, theirs)
	}
	for range rounds {
		for _, l := range dnsLoads {
			half := 10_000.0
			for _, s := range slices.Backward(systems) {
				fmt.Fprintf(os.Stderr, "bench: %s: %s\n", s.name, l.title)
				qps, err := s.perf(filepath.Join(dir, l.metric), seconds)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.name, l.title, err)
				}
				r.note(s.name, l.metric, "queries/s", qps)
				if s == theirs {
					half = qps / 2
				}
				p50, p99, err := s.latency(filepath.Join(dir, l.metric), half, seconds)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.name, l.title, err)
				}
				r.note(s.name, l.metric+" p50", "us", p50)
				r.note(s.name, l.metric+" p99", "us", p99)
			}
		}
	}
	for _, s := range systems {
		r.note(s.name, "memory", "MB", residentMB(s.pid))
	}
	return nil
}

var perfQPS = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)

// perf asks as fast as it goes and returns the answers a second.
func (s *dnsSystem) perf(file string, seconds int) (float64, error) {
	cmd := s.command("dnsperf", "-s", s.at, "-d", file, "-l", strconv.Itoa(seconds), "-c", "4", "-q", "200")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.run(cmd); err != nil {
		return 0, fmt.Errorf("dnsperf: %w\n%s", err, &out)
	}
	m := perfQPS.FindSubmatch(out.Bytes())
	if m == nil {
		return 0, fmt.Errorf("dnsperf says no rate:\n%s", &out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// latency asks at a steady rate and returns percentiles in microseconds.
func (s *dnsSystem) latency(file string, rate float64, seconds int) (p50, p99 float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	cmd := s.command(self, "dnsask", "-server", s.at, "-file", file, "-rate", fmt.Sprint(int(rate)), "-seconds", strconv.Itoa(seconds))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.run(cmd); err != nil {
		return 0, 0, fmt.Errorf("asker: %w\n%s", err, &out)
	}
	_, err = fmt.Sscan(out.String(), &p50, &p99)
	return p50, p99, err
}

// dnsAsk is the role of the asker.
func dnsAsk(args []string) error {
	fs := flag.NewFlagSet("dnsask", flag.ExitOnError)
	server, file := fs.String("server", "", ""), fs.String("file", "", "")
	rate, seconds := fs.Int("rate", 1000, ""), fs.Int("seconds", 1, "")
	fs.Parse(args)
	data, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var queries [][]byte
	for line := range strings.Lines(string(data)) {
		b, err := new(mdns.Msg).SetQuestion(mdns.Fqdn(strings.Fields(line)[0]), mdns.TypeA).Pack()
		if err != nil {
			return err
		}
		queries = append(queries, b)
	}
	c, err := net.Dial("udp", net.JoinHostPort(*server, "53"))
	if err != nil {
		return err
	}
	defer c.Close()
	var sent [1 << 16]time.Time
	total := *rate * *seconds
	took := make([]float64, 0, total)
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := make([]byte, 4096)
		for len(took) < total {
			n, err := c.Read(in)
			if err != nil {
				return
			}
			if n >= 2 {
				took = append(took, float64(time.Since(sent[binary.BigEndian.Uint16(in)]).Nanoseconds())/1000)
			}
		}
	}()
	start := time.Now()
	for i := 0; i < total; {
		due := int(time.Since(start).Seconds() * float64(*rate))
		for ; i < min(due, total); i++ {
			q := queries[i%len(queries)]
			binary.BigEndian.PutUint16(q, uint16(i))
			sent[uint16(i)] = time.Now()
			c.Write(q)
		}
		time.Sleep(50 * time.Microsecond)
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	<-done
	if len(took) < total/2 {
		return fmt.Errorf("%d of %d queries were answered", len(took), total)
	}
	slices.Sort(took)
	fmt.Println(took[len(took)/2], took[len(took)*99/100])
	return nil
}

// dnsUpstream is the role of the server that both forward to.
func dnsUpstream([]string) error {
	return (&mdns.Server{Addr: "127.0.0.1" + dnsPort, Net: "udp", Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 300}, A: net.IPv4(192, 0, 2, 80)}}
		w.WriteMsg(m)
	})}).ListenAndServe()
}

// dnsStartPodgate starts the program with n Services and a pod. stop is never nil.
func dnsStartPodgate(dir string, n int) (s *dnsSystem, stop func(), err error) {
	var closers []func()
	stop = func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	exe := filepath.Join(dir, "podgate.exe")
	if out, err := exec.Command("go", "build", "-o", exe, "./cmd/podgate").CombinedOutput(); err != nil {
		return nil, stop, fmt.Errorf("build podgate: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, stop, err
	}
	up := exec.Command(self, "dnsupstream")
	if err := up.Start(); err != nil {
		return nil, stop, err
	}
	closers = append(closers, func() { up.Process.Kill(); up.Wait() })
	manifests := filepath.Join(dir, fmt.Sprintf("many-%d.yaml", n))
	if err := os.WriteFile(manifests, []byte(dnsManifests(n)), 0o644); err != nil {
		return nil, stop, err
	}
	podgate := func(args ...string) *exec.Cmd {
		cmd := exec.Command(exe, args...)
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
		return cmd
	}
	closers = append(closers, func() { podgate("down").Run() })
	if out, err := podgate("up", "--detach", manifests, "--set", "dns.upstreams=127.0.0.1"+dnsPort, "--set", "ingress.http=", "--set", "ingress.https=").CombinedOutput(); err != nil {
		return nil, stop, fmt.Errorf("podgate up: %w\n%s", err, out)
	}
	pid, err := os.ReadFile(filepath.Join(dir, "podgate", "default", "lock"))
	if err != nil {
		return nil, stop, err
	}
	s = &dnsSystem{name: fmt.Sprintf(dnsPodgate, n), at: "10.96.0.10", run: (*exec.Cmd).Run}
	s.pid, _ = strconv.Atoi(strings.TrimSpace(string(pid)))
	s.command = func(name string, args ...string) *exec.Cmd {
		return podgate(append([]string{"exec", "-n", "many", "client", "--", name}, args...)...)
	}
	return s, stop, nil
}

// dnsStartCoreDNS starts CoreDNS behind a veth. stop is never nil.
func dnsStartCoreDNS(dir string, n int) (s *dnsSystem, stop func(), err error) {
	r := &rig{}
	stop = r.close
	exe := filepath.Join(dir, "coredns")
	build := exec.Command("go", "build", "-o", exe, ".")
	build.Dir, build.Env = "bench/peers/coredns", append(os.Environ(), "GOPROXY=off")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, stop, fmt.Errorf("cannot be built: run `go mod download` in bench/peers/coredns (%s)", firstLine(out))
	}
	client, err1 := r.ns("client")
	server, err2 := r.ns("server")
	if err := errors.Join(err1, err2); err != nil {
		return nil, stop, err
	}
	err = errors.Join(ns.Veth(client, "eth0", server, "eth0"), client.Up("eth0"), server.Up("eth0"), server.Up("lo"),
		client.Addr("eth0", netip.MustParsePrefix("10.244.0.4/16")), server.Addr("eth0", netip.MustParsePrefix("10.244.0.2/16")))
	if err != nil {
		return nil, stop, err
	}
	corefile := filepath.Join(dir, "Corefile")
	text := ".:53 {\n bind 10.244.0.2\n errors\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n endpoint http://127.0.0.1:8001\n pods insecure\n ttl 30\n }\n forward . 127.0.0.1" + dnsPort + "\n cache 30\n loadbalance\n}\n"
	if err := os.WriteFile(corefile, []byte(text), 0o644); err != nil {
		return nil, stop, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, stop, err
	}
	var coredns *ns.Cmd
	for _, args := range [][]string{{exe, "apiserver", "-services", strconv.Itoa(n)}, {self, "dnsupstream"}, {exe, "-quiet", "-conf", corefile}} {
		coredns = server.Command(args[0], args[1:]...)
		coredns.Stderr = os.Stderr
		if err := coredns.Start(); err != nil {
			return nil, stop, err
		}
		process := coredns
		r.closers = append(r.closers, func() { process.Process.Kill(); process.Wait() })
	}
	s = &dnsSystem{name: fmt.Sprintf(dnsCoreDNS, n), at: "10.244.0.2", pid: coredns.Process.Pid}
	s.command = exec.Command
	s.run = func(cmd *exec.Cmd) error {
		in := client.Command(cmd.Path, cmd.Args[1:]...)
		in.Stdout, in.Stderr = cmd.Stdout, cmd.Stderr
		return in.Run()
	}
	return s, stop, client.Do(func() error { return dnsReady(s.at, fmt.Sprintf("s%d.many.svc.cluster.local.", n-1)) })
}

// dnsReady waits until a server knows a name.
func dnsReady(at, name string) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		m, _, err := (&mdns.Client{Timeout: time.Second}).Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeA), at+":53")
		if err == nil && len(m.Answer) > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not know %s: %v", at, name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// dnsManifests are n Services, a headless one with 100 endpoints, and the pod.
func dnsManifests(n int) string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: many}\nspec: {containers: [{name: c, image: none}]}\n")
	for i := range n {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: many}\nspec: {clusterIP: 10.96.%d.%d, ports: [{name: http, port: 80}]}\n", i, 1+i/250, i%250)
	}
	b.WriteString("---\napiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: many}\nspec: {clusterIP: None, ports: [{name: http, port: 80}]}\n")
	b.WriteString("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: headless-1, namespace: many, labels: {kubernetes.io/service-name: headless}}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints:\n")
	for i := range 100 {
		fmt.Fprintf(&b, "- addresses: [10.244.200.%d]\n", 1+i)
	}
	return b.String()
}

// residentMB is the resident memory of a process, 0 if it is gone.
func residentMB(pid int) float64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1024
		}
	}
	return 0
}

// print writes a row for each metric, both systems side by side.
func (r *dnsReport) print(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "dns: %s, %d CPUs, Linux %s, %s, %s, %s; median of %d rounds; x is podgate to CoreDNS; latency at half of CoreDNS's rate\n",
		m.CPU, m.CPUs, m.Kernel, m.Go, m.User, r.Started.Format("2006-01-02"), r.Rounds)
	for _, n := range r.sizes {
		fmt.Fprintln(w)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "%d Services\tpodgate\tCoreDNS\tx\n", n)
		ours, theirs := fmt.Sprintf(dnsPodgate, n), fmt.Sprintf(dnsCoreDNS, n)
		for _, c := range r.Cells {
			if c.System != ours {
				continue
			}
			fmt.Fprintf(t, "%s, %s\t%.0f", c.Metric, c.Unit, c.Median)
			if peer := r.cell(theirs, 0, c.Metric); peer != nil && peer.Median > 0 {
				fmt.Fprintf(t, "\t%.0f\t%.2f\n", peer.Median, c.Median/peer.Median)
			} else {
				fmt.Fprint(t, "\t-\t-\n")
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, a := range r.Missing {
		fmt.Fprintf(w, "\nnot measured: %s: %s\n", a.System, a.Why)
	}
	return nil
}

// chart draws a bar of podgate's answers a second to CoreDNS's for each load.
func (r *dnsReport) chart(w io.Writer) {
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="640" height="%d" font-family="sans-serif" font-size="12">`, 40+len(r.sizes)*len(dnsLoads)*24)
	y := 20
	fmt.Fprintf(w, `<text x="10" y="%d">podgate's answers a second, times CoreDNS's</text>`, y)
	for _, n := range r.sizes {
		for _, l := range dnsLoads {
			y += 24
			c, ratio := r.cell(fmt.Sprintf(dnsPodgate, n), 0, l.metric), 0.0
			if c != nil {
				ratio = r.ratio(c, fmt.Sprintf(dnsCoreDNS, n))
			}
			fmt.Fprintf(w, `<text x="10" y="%d">%s, %d</text><rect x="230" y="%d" width="%.0f" height="14" fill="#47a"/><text x="%.0f" y="%d">%.2f</text>`,
				y, l.title, n, y-11, 60*ratio, 236+60*ratio, y, ratio)
		}
	}
	fmt.Fprintln(w, `</svg>`)
}
