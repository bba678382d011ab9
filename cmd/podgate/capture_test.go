package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"podgate/stack/link/nstest"
)

const twoPods = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api}
spec: {containers: [{name: c, image: x}]}
`

// watch is a line of shell that starts a command in the background, waits until
// it has written to file, and then runs another.
func watch(command, file, then string) string {
	return fmt.Sprintf("%s >%s 2>&1 & i=0; until [ -s %s ] || [ $i = 2000 ]; do sleep 0.05; i=$((i+1)); done; %s", command, file+".log", file, then)
}

func TestCaptureIsReadByTcpdump(t *testing.T) {
	nstest.Need(t, "tcpdump")
	nstest.Need(t, "ping")
	s := newShell(t)
	s.up(write(t, "pods.yaml", twoPods) + " --set ingress.http= --set ingress.https=")
	ping := "podgate exec web -- ping -q -c 3 -i 0.05 10.244.0.4"
	if !strings.Contains(s.must("podgate get pods -o wide"), "10.244.0.4") {
		t.Fatal("there is no pod 10.244.0.4")
	}
	file := filepath.Join(t.TempDir(), "web.pcapng")
	s.must(watch("podgate capture web -c 6 -w "+file, file, ping+"; wait"))
	// As nobody in particular: tcpdump would have root become somebody else.
	out := s.must("unshare -U tcpdump -n -r " + file)
	if strings.Count(out, "ICMP echo request") == 0 || strings.Count(out, "ICMP echo reply") == 0 {
		t.Errorf("tcpdump reads\n%s", out)
	}
	all := filepath.Join(t.TempDir(), "all.pcapng")
	s.must(watch("podgate capture --all -c 12 -w "+all, all, ping+"; wait"))
	if out := s.must("unshare -U tcpdump -n -r " + all + " icmp"); strings.Count(out, "\n") < 8 {
		t.Errorf("tcpdump reads of all\n%s", out)
	}
	// An interrupted capture is a whole file.
	cut := filepath.Join(t.TempDir(), "cut.pcapng")
	s.must(watch("podgate capture --all -w "+cut, cut, ping+"; kill -INT $!; wait $!"))
	s.must("unshare -U tcpdump -n -r " + cut)
	for line, want := range map[string]string{
		"podgate capture nobody -w x":  "not found",
		"podgate capture web":          "-w says where to",
		"podgate capture -w x":         "give one POD, or --all",
		"podgate capture --all a -w x": "give one POD, or --all",
	} {
		if r := s.run(line); r.code == 0 || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: exit code %d, %q; want %q", line, r.code, r.errOut, want)
		}
	}
}

func TestFlowsFollow(t *testing.T) {
	nstest.Need(t, "ping")
	s := newShell(t)
	s.up(write(t, "pods.yaml", twoPods) + " --set ingress.http= --set ingress.https=")
	events := filepath.Join(t.TempDir(), "events")
	s.must("podgate exec web -- ping -q -c 1 10.244.0.4")
	s.must(fmt.Sprintf("podgate flows --follow -o json >%s & i=0; until grep -q default/api %s || [ $i = 500 ]; do podgate exec api -- ping -q -c 1 10.244.0.5; i=$((i+1)); done; kill -INT $!; wait $!", events, events))
	var e event
	first, _, _ := strings.Cut(s.must("cat "+events), "\n")
	if err := json.Unmarshal([]byte(first), &e); err != nil || e.Event != "open" || e.Proto != "icmp" {
		t.Errorf("got %q: %v", first, err)
	}
}

// What a pod sent can be sent again, by a pod of the capture's own.
func TestCaptureIsSentAgain(t *testing.T) {
	nstest.Need(t, "tcpdump")
	nstest.Need(t, "ping")
	s := newShell(t)
	s.up(write(t, "pods.yaml", twoPods) + " --set ingress.http= --set ingress.https=")
	if !strings.Contains(s.must("podgate get pods -o wide"), "10.244.0.4") {
		t.Fatal("there is no pod 10.244.0.4")
	}
	file := filepath.Join(t.TempDir(), "web.pcapng")
	s.must(watch("podgate capture web -c 12 -w "+file, file, "podgate exec web -- ping -q -c 8 -i 0.05 10.244.0.4; wait"))
	from := strings.Fields(s.must("unshare -U tcpdump -e -n -r " + file + " -c 1 icmp[0] == 8"))[1]
	again := "podgate attach again --pcap " + file + " --from " + from
	// The addresses are web's: it gets others, and sends from these.
	if got := s.must(again + " --fast --keep"); !strings.Contains(got, "frames sent in") || !strings.Contains(got, " 0 dropped") {
		t.Errorf("sent again:\n%s", got)
	}
	if got := s.must("podgate flows --pod default/again"); !strings.Contains(got, "default/again:") || !strings.Contains(got, "default/api") {
		t.Errorf("flows:\n%s", got)
	}
	s.must("podgate detach again")
	// At the pace of then, as pcap, and gone in the end.
	classic := filepath.Join(t.TempDir(), "web.pcap")
	s.must("unshare -U tcpdump -w - -r " + file + " >" + classic)
	s.must("podgate attach again --from " + from + " --pcap " + classic)
	if got := s.must("podgate get ports"); strings.Contains(got, "default/again") {
		t.Errorf("it is still attached:\n%s", got)
	}
	for line, want := range map[string]string{
		"podgate attach x --pcap " + write(t, "no", "this is no capture at all"): "no capture",
		"podgate attach x --pcap nowhere":                                        "capture nowhere: no such file",
		"podgate attach x --pid 1 --pcap " + file:                                "give one of",
		"podgate attach x --pid 1 --fast":                                        "are for --pcap",
		"podgate attach x --from 02:00:00:00:00:01 --pcap " + file:               "it has no frame from",
		"podgate attach web --pcap " + file:                                      "already",
	} {
		if r := s.run(line); r.code == 0 || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: exit code %d, %q, want %q", line, r.code, r.errOut, want)
		}
	}
}
