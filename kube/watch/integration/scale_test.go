package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkSync is how long a gateway takes from its start to /readyz, all tables
// made, and what it then has in memory beyond that of an empty cluster:
//
//	go test -run '^$' -bench Sync -benchtime 3x -timeout 30m
//
// Loading the API server takes minutes.
func BenchmarkSync(b *testing.B) {
	const services, each = 10_000, 3
	c := newControlPlane(b)
	c.addNode("node-1", node1)
	c.kubectl("apply", "-f", deploy)
	_, empty, _ := c.sync("empty")
	c.addServices(services, each)
	var took time.Duration
	var settled, peak int
	for b.Loop() {
		d, s, p := c.sync("full")
		took, settled, peak = took+d, max(settled, s), max(peak, p)
	}
	b.ReportMetric(0, "ns/op") // the loop's time has the gateway's end in it
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "ms-to-ready")
	b.ReportMetric(float64(empty)/1024, "MiB-empty")
	b.ReportMetric(float64(settled-empty)/1024, "MiB-more")
	b.ReportMetric(float64(peak-empty)/1024, "MiB-more-at-most")
}

// sync starts a gateway with nothing remembered, and returns how long it took to
// be ready, and how many KiB of memory are its own: once it has given back what
// it does not need, and at most.
func (c *controlPlane) sync(name string) (took time.Duration, settled, peak int) {
	c.t.Helper()
	begin := time.Now()
	g := c.gateway(name, "node-1", "podgate", "kubernetes.remember=false")
	g.awaitReady()
	took = time.Since(begin)
	// It is settled when its memory has not grown or shrunk by 1 MiB for 12 s: what
	// is left of making tables is given back every 10 s.
	since := time.Now()
	for tick := time.Tick(100 * time.Millisecond); time.Since(since) < 12*time.Second; <-tick {
		if is := g.kib("VmRSS"); max(is-settled, settled-is) > 1024 {
			settled, since = is, time.Now()
		}
	}
	settled, peak = g.kib("VmRSS"), g.kib("VmHWM")
	g.stop()
	return took, settled, peak
}

// kib is a line of the process's status in /proc.
func (p *process) kib(key string) int {
	data, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	_, rest, _ := strings.Cut(string(data), key+":")
	n, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return n
}

// addServices makes Services of two ports with an EndpointSlice each, as the
// controller writes them.
func (c *controlPlane) addServices(n, each int) {
	c.t.Helper()
	var wg sync.WaitGroup
	next, failed := make(chan int), make(chan error, 1)
	posts := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 16,
	}}
	post := func(path string, body map[string]any) error {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		req, err := http.NewRequest("POST", server+path, bytes.NewReader(raw))
		if err != nil {
			return err
		}
		req.Header = http.Header{"Authorization": {"Bearer admin"}, "Content-Type": {"application/json"}}
		resp, err := posts.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("%s: %s: %s (%v)", path, resp.Status, text, err)
		}
		return nil
	}
	for range 16 {
		wg.Go(func() {
			for i := range next {
				service, slice := numbered(i, each)
				err := post("/api/v1/namespaces/default/services", service)
				if err == nil {
					err = post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice)
				}
				if err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	select {
	case err := <-failed:
		c.t.Fatal(err)
	default:
	}
}

// numbered is a Service and its endpoints, pods of other nodes.
func numbered(i, each int) (service, slice map[string]any) {
	name := fmt.Sprintf("service-%05d", i)
	labels := map[string]any{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "many"}
	service = object("v1", "Service", "default", name, map[string]any{"spec": map[string]any{
		"ports": []any{map[string]any{"name": "http", "port": 80, "targetPort": 8080}, map[string]any{"name": "metrics", "port": 9090}},
	}})
	service["metadata"].(map[string]any)["labels"] = labels
	var endpoints []any
	for j := range each {
		n := i*each + j
		endpoints = append(endpoints, map[string]any{
			"addresses":  []any{fmt.Sprintf("10.%d.%d.%d", 128+n/62500, n/250%250, 1+n%250)},
			"conditions": map[string]any{"ready": true, "serving": true, "terminating": false},
			"nodeName":   fmt.Sprintf("node-%d", 2+n%300),
			"targetRef":  map[string]any{"kind": "Pod", "namespace": "default", "name": fmt.Sprintf("%s-%x-%d", name, 0x5f7b9c+n, j), "uid": fmt.Sprintf("%08x-0000-4000-8000-%012x", i, n)},
		})
	}
	slice = object("discovery.k8s.io/v1", "EndpointSlice", "default", name+"-abcde", map[string]any{
		"addressType": "IPv4", "endpoints": endpoints,
		"ports": []any{map[string]any{"name": "http", "port": 8080}, map[string]any{"name": "metrics", "port": 9090}},
	})
	slice["metadata"].(map[string]any)["labels"] = map[string]any{
		"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "many",
		"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
	}
	return service, slice
}
