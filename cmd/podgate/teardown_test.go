package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"podgate/control"
)

// processesOf lists the processes that run this test binary under the name
// podgate: instances, keepers and workloads, of whatever namespace.
func processesOf(t *testing.T) map[int]string {
	t.Helper()
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		exe, err := os.Stat(dir + "/exe")
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		name, _, _ := strings.Cut(string(cmdline), "\x00")
		if err == nil && os.SameFile(self, exe) && slices.Contains([]string{"podgate", "podgate-keeper"}, filepath.Base(name)) {
			found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
		}
	}
	return found
}

// nothingLeft waits until an instance has left no process, file or mount.
func (s *shell) nothingLeft() {
	s.t.Helper()
	runtime := envOf(s, "XDG_RUNTIME_DIR")
	left := func() string {
		var all []string
		for _, cmd := range processesOf(s.t) {
			all = append(all, "process "+cmd)
		}
		files, _ := filepath.Glob(filepath.Join(runtime, "podgate", "*"))
		all = append(all, files...)
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(mounts), runtime) {
			all = append(all, "a mount below "+runtime)
		}
		return strings.Join(all, "\n")
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("left behind:\n%s", left())
		}
	})
	until(s.t, "nothing is left", func() bool { return left() == "" })
}

// until polls a condition for as long as a command line is given.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(runTime)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", runTime, what)
		}
		<-tick.C
	}
}

func (s *shell) status() control.Status {
	s.t.Helper()
	var st control.Status
	if err := json.Unmarshal([]byte(s.must("podgate status -o json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

func TestDownLeavesNothing(t *testing.T) {
	s := newShell(t)
	s.up("examples/shop")
	s.must("podgate down")
	s.nothingLeft()
}

func TestAKilledGatewayLeavesNothing(t *testing.T) {
	s := newShell(t)
	s.up("examples/shop")
	if err := syscall.Kill(s.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.nothingLeft()
	s.up("examples/shop") // and the next one starts
	s.must("podgate down")
	s.nothingLeft()
}

func TestAKilledKeeperEndsTheInstance(t *testing.T) {
	s := newShell(t)
	s.up("examples/shop")
	for pid, cmd := range processesOf(t) {
		if strings.HasPrefix(cmd, "podgate-keeper") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.nothingLeft()
}
