package main

import (
	"strings"
	"testing"

	"podgate/stack/link/nstest"
)

// A network behind a pod is reached through it.
func TestNetworkBehindAPod(t *testing.T) {
	nstest.Need(t, "ping")
	s := newShell(t)
	router := strings.Replace(twoPods, "{name: api}\nspec: {containers: [{name: c, image: x}]}", "{name: api}\nspec: {containers: [{name: c, image: x, securityContext: {capabilities: {add: [NET_ADMIN]}}}]}", 1)
	s.up(write(t, "pods.yaml", router) + " --set ingress.http= --set ingress.https= --set pods.routes=192.0.2.0/24=default/api")
	if got := s.must("podgate get routes"); !strings.Contains(got, "192.0.2.0/24") || !strings.Contains(got, "default/api") {
		t.Errorf("get routes:\n%s", got)
	}
	s.must("podgate trace web icmp 192.0.2.7")
	ping := "podgate exec web -- ping -q -n -c 2 -i 0.05 -W 5 192.0.2.7"
	s.must("podgate exec api -- ip addr add 192.0.2.7/32 dev lo")
	s.must(ping)
	if r := s.run("podgate exec web -- ping -q -n -c 1 -W 1 192.0.2.8"); r.code == 0 {
		t.Errorf("an address that nobody has answers: %s", r.out)
	}
	for set, want := range map[string]string{
		"pods.routes=10.244.1.0/24=default/api": "overlaps",
		"pods.routes=192.0.2.1/24=default/api":  "is not PREFIX=NAMESPACE/POD",
		"pods.routes=192.0.2.0/24=api":          "is not PREFIX=NAMESPACE/POD",
	} {
		if r := s.run("podgate config --set " + set); r.code == 0 || !strings.Contains(r.errOut, want) {
			t.Errorf("%s: exit code %d, %q; want %q", set, r.code, r.errOut, want)
		}
	}
}
