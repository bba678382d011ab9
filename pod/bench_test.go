package pod_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// BenchmarkStart200Pods is the time until two hundred idle pods are ready, and
// what each of them costs in the memory of the keeper and of this process
// (which includes the test's own copies of their objects).
func BenchmarkStart200Pods(b *testing.B) {
	const n = 200
	for b.Loop() {
		b.StopTimer()
		w := start(b, nil)
		keeper := keepers(b)[0]
		var pods []*corev1.Pod
		for i := range n {
			pods = append(pods, newPod(i, fmt.Sprint("p", i)))
		}
		before, heap := rss(b, keeper), inUse()
		b.StartTimer()
		w.run(pods...)
		for _, p := range pods {
			w.awaitReady(p.Name)
		}
		b.StopTimer()
		b.ReportMetric(float64(rss(b, keeper)-before)/n, "keeper-KiB/pod")
		b.ReportMetric(float64(inUse()-heap)/n/1024, "here-KiB/pod")
		w.check(w.rt.Close())
		b.StartTimer()
	}
}

// inUse is the memory of this process that is in use after a collection, in bytes.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// rss is a process's resident memory in KiB.
func rss(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
