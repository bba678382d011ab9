// Command bench measures podgate side by side with the kernel, in one run and
// in namespaces of its own, so that only ratios need to be believed:
//
//	go run ./bench datapath              the whole table, about eight minutes
//	go run ./bench scale                 its last part alone: memory, attachments, flows, UDP, about two minutes
//	go run ./bench egress                the way out beside slirp4netns, pasta and gvproxy, about four minutes
//	go run ./bench services              1 to 30,000 Services, about three minutes
//	go run ./bench policy                0 to 10,000 NetworkPolicies, about four minutes
//	go run ./bench dns                   cluster DNS beside CoreDNS, about five minutes
//	go run ./bench ingress               the front door beside nginx, HAProxy and Caddy, about six minutes
//	go run ./bench cni                   containers attached beside the bridge plugin, about four minutes
//	go run ./bench datapath --quick      under a minute, noisier
//	go run ./bench datapath --out DIR    also DIR/datapath.json and DIR/datapath.svg
//	go run ./bench datapath --check      exit 1 and name the rows below bench/targets.yaml
//
// It runs as any user; what a user may not do (TAP without /dev/net/tun) is
// named in the table, as is a tool that is missing.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"podgate/stack/link/ns"
)

// options are what the command line asks for.
type options struct {
	quick, check bool
	out          string // directory; empty: write no files
	only         *regexp.Regexp
}

// plan is how long and how often every cell is measured.
type plan struct {
	rounds       int
	warm, window time.Duration
}

func (o options) plan() plan {
	if o.quick {
		return plan{rounds: 2, warm: 100 * time.Millisecond, window: 300 * time.Millisecond}
	}
	return plan{rounds: 5, warm: 300 * time.Millisecond, window: 2 * time.Second}
}

// wants says whether a cell is to be measured.
func (o options) wants(s *system, m metric) bool {
	return o.only == nil || o.only.MatchString(s.title()+", "+m.id)
}

// benches are the tables that can be measured, by name.
var benches = map[string]func(options) (result, error){
	"datapath": datapath,
	"scale":    scale,
	"services": services,
	"egress":   egress,
	"dns":      dnsBench,
	"ingress":  ingressBench,
	"policy":   policies,
	"cni":      cniBench,
}

// result is what a benchmark found.
type result interface {
	print(io.Writer) error
	short(bench string) ([]string, error) // the targets that are not met
	chart(io.Writer)
}

func main() {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
				os.Exit(1)
			}
			return
		}
	}
	name, opts := parse()
	code, inside, err := ns.Isolate()
	if inside {
		code, err = run(name, opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
}

// parse reads the command line, flags before or after the name; it exits 2 on
// a mistake.
func parse() (name string, o options) {
	fs := flag.NewFlagSet("bench", flag.ExitOnError)
	fs.BoolVar(&o.quick, "quick", false, "take under a minute")
	fs.BoolVar(&o.check, "check", false, "compare with bench/targets.yaml and exit 1 if a row falls short")
	fs.StringVar(&o.out, "out", "", "write JSON and an SVG chart into this directory")
	fs.Func("only", "measure only the cells that `PATTERN` matches, such as 'udp|rr' or 'TAP, MTU 1500, tcp1'", func(v string) (err error) {
		o.only, err = regexp.Compile(v)
		return err
	})
	fs.Usage = func() {
		fmt.Fprintln(fs.Output(), "usage: go run ./bench datapath|scale|egress|services|policy|dns|ingress|cni [--quick] [--check] [--out DIR] [--only PATTERN]")
		fs.PrintDefaults()
	}
	fs.Parse(os.Args[1:])
	if fs.NArg() > 0 {
		name = fs.Arg(0)
		fs.Parse(fs.Args()[1:])
	}
	if benches[name] == nil || fs.NArg() > 0 {
		if name != "" && benches[name] == nil {
			fmt.Fprintf(fs.Output(), "bench: there is no benchmark %q\n", name)
		}
		fs.Usage()
		os.Exit(2)
	}
	return name, o
}

func run(name string, o options) (code int, err error) {
	r, err := benches[name](o)
	if err != nil {
		return 1, err
	}
	if err := r.print(os.Stdout); err != nil {
		return 1, err
	}
	if o.out != "" {
		if err := write(o.out, name, r); err != nil {
			return 1, err
		}
	}
	if !o.check {
		return 0, nil
	}
	short, err := r.short(name)
	if err != nil {
		return 1, err
	}
	for _, s := range short {
		fmt.Fprintln(os.Stderr, "bench: falls short:", s)
	}
	if len(short) > 0 {
		return 1, nil
	}
	fmt.Fprintln(os.Stderr, "bench: every target is met")
	return 0, nil
}

func write(dir, name string, r result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var svg strings.Builder
	r.chart(&svg)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, name+".json"), append(data, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, name+".svg"), []byte(svg.String()), 0o644),
	)
}
