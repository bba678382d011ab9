package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/link/ns"
)

// The CNI benchmark
//
// Containers are attached and detached, one after the other and many at a time,
// by podgate's plugin beside a running gateway, and by Debian's bridge plugin with
// host-local: the pair that does the same. A call is the plugin's process from
// its start to its end, run by the bench itself as a runtime would. The systems
// take turns within a round.

const (
	cniStock  = "bridge + host-local"
	cniPlugin = "/usr/lib/cni/bridge"

	cniBatch = 16 // calls at a time
)

var cniMetrics = []metric{
	{id: "add p50", title: "ADD p50", unit: "ms", smaller: true},
	{id: "add p90", title: "ADD p90", unit: "ms", smaller: true},
	{id: "del p50", title: "DEL p50", unit: "ms", smaller: true},
	{id: "batch", title: fmt.Sprintf("ADD, %d at a time", cniBatch), unit: "1/s"},
}

// cniSystem is a network configuration and where its plugin is.
type cniSystem struct {
	name string
	conf string
	path string // of the plugin
}

func cniSystems(dir string) []cniSystem {
	ours := func(name, ipam string) cniSystem {
		return cniSystem{name, fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "type": "podgate-cni", "isGateway": true, "ipMasq": true, "mtu": 1500, "socket": %q%s}`,
			strings.NewReplacer(" ", "", ",", "", "+", "").Replace(name), filepath.Join(dir, "run/podgate/default/control.sock"), ipam), filepath.Join(dir, "podgate-cni")}
	}
	hostLocal := func(i int) string {
		return fmt.Sprintf(`"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.%d.0/20"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": %q}`, i, filepath.Join(dir, "leases"))
	}
	return []cniSystem{
		{cniStock, `{"cniVersion": "1.0.0", "name": "stock", "type": "bridge", "bridge": "cni0", "isGateway": true, "mtu": 1500, ` + hostLocal(16) + `}`, cniPlugin},
		ours("podgate, its own addresses", ""),
		ours("podgate, its own leases", `, `+strings.Replace(hostLocal(32), `"type": "host-local", `, "", 1)),
		ours("podgate + host-local", `, `+hostLocal(48)),
	}
}

func cniBench(o options) (result, error) {
	p := o.plan()
	p.rounds = min(p.rounds, 3)
	single, many := 40, 500
	if o.quick {
		single, many = 10, 64
	}
	dir, remove, err := scratch()
	if err != nil {
		return nil, err
	}
	defer remove()
	r := new(rig)
	defer r.close()
	node, err := r.ns("node")
	if err != nil {
		return nil, err
	}
	if err := cniGateway(r, node, dir); err != nil {
		return nil, err
	}
	rep := newReport("cni", p, nil)
	rep.metrics, rep.yardstick = cniMetrics, cniStock
	boxes, err := cniSandboxes(r, many)
	if err != nil {
		return nil, err
	}
	systems := cniSystems(dir)
	if _, err := os.Stat(cniPlugin); err != nil {
		rep.Missing = append(rep.Missing, absence{cniStock, "it is missing; install it: apt-get install -y containernetworking-plugins"})
		systems = systems[1:3]
	}
	note := newProgress(os.Stderr)
	defer note.end()
	for round := range p.rounds {
		for _, s := range systems {
			what := fmt.Sprintf("round %d of %d: %s", round+1, p.rounds, s.name)
			if o.only != nil && !o.only.MatchString(what) {
				continue
			}
			note.doing(what)
			c := cniCaller{cniSystem: s, boxes: boxes}
			if err := c.measure(rep, single); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			note.done(fmt.Sprintf("%s: ADD %.1f ms", what, rep.latest(s.name, "add p50")))
		}
	}
	for _, c := range rep.Cells {
		c.Median = median(c.Samples)
	}
	return rep, nil
}

// latest is the newest sample of a cell.
func (r *report) latest(system, metric string) float64 {
	c := r.cell(system, 0, metric)
	return c.Samples[len(c.Samples)-1]
}

// cniGateway builds the programs and starts a gateway in the node's namespace.
func cniGateway(r *rig, node *ns.NS, dir string) error {
	if err := buildPrograms(dir, "podgate", "podgate-cni"); err != nil {
		return err
	}
	_, err := r.up(node, dir, "default", nothing)
	return err
}

// cniSandboxes are network namespaces that files hold.
func cniSandboxes(r *rig, n int) (boxes []*os.File, err error) {
	for range n {
		made, err := r.ns("sandbox")
		if err != nil {
			return nil, err
		}
		fd, err := unix.FcntlInt(uintptr(made.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "sandbox")
		r.closers = append(r.closers, func() { f.Close() })
		boxes = append(boxes, f)
	}
	return boxes, nil
}

// cniCaller calls one plugin.
type cniCaller struct {
	cniSystem
	boxes []*os.File
}

// call runs the plugin for a sandbox and says how long it took.
func (c *cniCaller) call(command string, box int) (time.Duration, error) {
	cmd := exec.Command(c.path)
	cmd.Env = []string{
		"CNI_COMMAND=" + command, fmt.Sprintf("CNI_CONTAINERID=bench-%d", box), "CNI_IFNAME=eth0",
		fmt.Sprintf("CNI_NETNS=/proc/%d/fd/%d", os.Getpid(), c.boxes[box].Fd()), "CNI_PATH=/usr/lib/cni", "PATH=" + os.Getenv("PATH"),
	}
	cmd.Stdin = strings.NewReader(c.conf)
	var out bytes.Buffer
	cmd.Stdout = &out
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		var e struct{ Msg, Details string }
		json.Unmarshal(out.Bytes(), &e)
		return took, fmt.Errorf("%s: %w: %s %s", command, err, e.Msg, e.Details)
	}
	return took, nil
}

func (c *cniCaller) measure(r *report, single int) error {
	note := func(i int, v float64) { r.add(&system{name: c.name}, cniMetrics[i], v) }
	var adds, dels []float64
	for i := range single {
		box := i % len(c.boxes)
		add, err1 := c.call("ADD", box)
		del, err2 := c.call("DEL", box)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if i > 0 { // the first warms up
			adds, dels = append(adds, ms(add)), append(dels, ms(del))
		}
	}
	start := time.Now()
	err := c.all("ADD")
	took := time.Since(start)
	if err := errors.Join(err, c.all("DEL")); err != nil {
		return err
	}
	note(0, median(adds))
	note(1, slices.Sorted(slices.Values(adds))[len(adds)*9/10])
	note(2, median(dels))
	note(3, float64(len(c.boxes))/took.Seconds())
	return nil
}

// all calls the plugin for every sandbox, cniBatch at a time.
func (c *cniCaller) all(command string) error {
	next := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range cniBatch {
		wg.Go(func() {
			for box := range next {
				if _, err := c.call(command, box); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range c.boxes {
		next <- i
	}
	close(next)
	wg.Wait()
	return failed
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
