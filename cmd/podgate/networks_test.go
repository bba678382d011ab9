package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"podgate/stack/link/nstest"
)

const twoNetworks = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: storage}
spec: {config: '{"type": "podgate", "mtu": 1400, "ipam": {"ranges": [[{"subnet": "172.30.0.0/24"}], [{"subnet": "fd00:30::/64"}]]}}'}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lab}
spec: {config: '{"type": "podgate", "ipam": {"subnet": "172.31.0.0/24"}}'}
---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {k8s.v1.cni.cncf.io/networks: storage}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: b
  labels: {app: b}
  annotations: {k8s.v1.cni.cncf.io/networks: '[{"name": "storage", "ips": ["172.30.0.9", "fd00:30::9"], "interface": "data"}, {"name": "lab", "default-route": ["172.31.0.1"]}]'}
spec: {containers: [{name: c, image: podgate.dev/workload, args: [http], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: own, annotations: {v1.multus-cni.io/default-network: default/lab}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {selector: {app: b}, ports: [{port: 80, targetPort: 8080}]}
`

// Pods with several interfaces, between kernels: switched within a network, routed
// between networks, Services and DNS from all of them, by TAP and by veth.
func TestSeveralPodNetworks(t *testing.T) {
	nstest.Need(t, "ping", "curl")
	for _, kind := range []string{"auto", "veth"} {
		t.Run(kind, func(t *testing.T) {
			s := newShell(t)
			s.up(write(t, "pods.yaml", twoNetworks) + " --set ingress.http= --set ingress.https= --set pods.attach=" + kind)
			ttl := regexp.MustCompile(`ttl=(\d+)`)
			for _, tt := range []struct{ from, to, ttl string }{
				{"a", "172.30.0.9", "64"}, // neighbours
				{"a", "fd00:30::9", "64"},
				{"a", "172.30.0.1", "64"}, // the gateway
				{"a", "fd00:30::1", "64"},
				{"plain", "172.30.0.9", "63"}, // across
				{"plain", "fd00:30::9", "63"},
				{"plain", "172.31.0.1", "64"},
				{"own", "172.30.0.9", "63"},
				{"a", "172.31.0.3", "63"},
				{"b", "10.244.0.1", "64"},
			} {
				got := ttl.FindStringSubmatch(s.must("podgate exec " + tt.from + " -- ping -n -c 1 -W 20 " + tt.to))
				if got == nil || got[1] != tt.ttl {
					t.Errorf("%s to %s: TTL %v, want %s", tt.from, tt.to, got, tt.ttl)
				}
			}
			until(t, "b is ready", func() bool { return strings.Contains(s.must("podgate get pod b"), "1/1") })
			for _, from := range []string{"a", "b", "own", "plain"} {
				if got := s.must("podgate exec " + from + " -- curl -s -m 20 http://b.default.svc.cluster.local/hostname"); got != "b" {
					t.Errorf("%s asks the Service: %q", from, got)
				}
			}
			// From the address of the interface that has not the default route, to afar.
			s.must("podgate exec b -- ping -n -c 1 -W 20 -I 10.244.0.5 172.31.0.3")
			if got := s.must("podgate exec a -- ip link show net1"); !strings.Contains(got, "mtu 1400") {
				t.Errorf("net1: %s", got)
			}
			s.checkNetworkStatus(t)
		})
	}
}

func (s *shell) checkNetworkStatus(t *testing.T) {
	t.Helper()
	var pod struct {
		Metadata struct{ Annotations map[string]string }
	}
	if err := json.Unmarshal([]byte(s.must("podgate get pod b -o json")), &pod); err != nil {
		t.Fatal(err)
	}
	var status []struct {
		Name, Interface string
		IPs             []string
	}
	if err := json.Unmarshal([]byte(pod.Metadata.Annotations["k8s.v1.cni.cncf.io/network-status"]), &status); err != nil {
		t.Fatal(err)
	}
	if len(status) != 3 || status[1].Name != "default/storage" || status[1].Interface != "data" || strings.Join(status[1].IPs, " ") != "172.30.0.9 fd00:30::9" || status[2].Interface != "net2" {
		t.Errorf("network-status %+v", status)
	}
	if got := s.must("podgate get ports"); !strings.Contains(got, "default/storage") || !strings.Contains(got, "data") {
		t.Errorf("get ports:\n%s", got)
	}
	if got := s.must("podgate get routes"); !strings.Contains(got, "switched: network default/lab") {
		t.Errorf("get routes:\n%s", got)
	}
	if got := s.must("podgate trace a icmp 172.30.0.9"); !strings.Contains(got, "switched within the segment") {
		t.Errorf("trace:\n%s", got)
	}
	if got := s.must("podgate trace b --interface data icmp 10.244.0.4"); !strings.Contains(got, "172.30.0.9 is an address of default/b (data, network default/storage)") {
		t.Errorf("trace by interface:\n%s", got)
	}
}

// A pod whose network is not there says so, harms nobody, and starts when it comes.
func TestPodWaitsForItsNetwork(t *testing.T) {
	s := newShell(t)
	s.up(write(t, "pods.yaml", twoPods) + " --set ingress.http= --set ingress.https=")
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: late, annotations: {k8s.v1.cni.cncf.io/networks: later}}\nspec: {containers: [{name: c, image: x}]}\n"
	if r := s.runWith("podgate apply -f -", pod); r.code != 0 {
		t.Fatal(r.errOut)
	}
	const want = "metadata.annotations[k8s.v1.cni.cncf.io/networks]: [0]: name: there is no NetworkAttachmentDefinition default/later"
	if got := s.must("podgate status"); !strings.Contains(got, want) {
		t.Errorf("status:\n%s", got)
	}
	until(t, "why it waits", func() bool {
		return strings.Contains(s.must("podgate get pod late -o yaml"), "reason: FailedCreatePodSandBox")
	})
	network := "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: later}\nspec: {config: '{\"type\": \"podgate\", \"ipam\": {\"subnet\": \"172.30.0.0/24\"}}'}\n"
	if r := s.runWith("podgate apply -f -", network); r.code != 0 {
		t.Fatal(r.errOut)
	}
	until(t, "it runs", func() bool { return s.run("podgate exec late -- true").code == 0 })
	if got := s.must("podgate exec late -- ip -brief address show net1"); !strings.Contains(got, "172.30.0.2/24") {
		t.Errorf("net1: %s", got)
	}
	if got := s.must("podgate status"); strings.Contains(got, "problem") {
		t.Errorf("status:\n%s", got)
	}
}
