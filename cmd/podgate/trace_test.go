package main

import (
	"net/netip"
	"strings"
	"testing"

	"podgate/kube"
)

const traceTargets = `
apiVersion: v1
kind: Pod
metadata: {name: api, labels: {app: api}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {clusterIP: 10.96.0.77, clusterIPs: [10.96.0.77, "fd00:10:96::77"], ipFamilyPolicy: RequireDualStack, selector: {app: api}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: other}
spec: {clusterIP: "fd00:10:96::66", ipFamilies: [IPv6], selector: {app: api}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: heads}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: heads-1, labels: {kubernetes.io/service-name: heads}}
addressType: IPv6
endpoints: [{addresses: ["2001:db8::1"], conditions: {ready: false}}, {addresses: ["2001:db8::2"]}]
ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {clusterIP: None, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: www.example.com}
`

// What a person types after `podgate trace` is found as DNS would find it.
func TestTraceTargets(t *testing.T) {
	m, problems := kube.LoadBytes("targets.yaml", []byte(traceTargets))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	store := kube.NewStore(kube.Config{}, nil)
	for _, c := range store.Apply(m.Objects) {
		if len(c.Problems) > 0 {
			t.Fatal(c.Problems)
		}
	}
	st := store.State()
	pod := st.Pods[kube.Name{Namespace: "default", Name: "api"}].Status.PodIPs
	four, six := netip.MustParseAddr(pod[0].IP), netip.MustParseAddr(pod[1].IP)
	for _, c := range []struct {
		target string
		speak  []netip.Addr
		want   string // an address, or a part of the error
	}{
		{"192.0.2.7", []netip.Addr{four}, "192.0.2.7"},
		{"both", []netip.Addr{four, six}, "10.96.0.77"},
		{"both", []netip.Addr{six}, "fd00:10:96::77"},
		{"both.default", []netip.Addr{four}, "10.96.0.77"},
		{"both.default.svc", []netip.Addr{four}, "10.96.0.77"},
		{"both.default.svc.cluster.local", []netip.Addr{four}, "10.96.0.77"},
		{"both.default.svc.cluster.local.", []netip.Addr{four}, "10.96.0.77"},
		{"six", []netip.Addr{six}, `"six" is neither an address nor a Service or pod of the cluster (seen from namespace default)`},
		{"six.other", []netip.Addr{four, six}, "fd00:10:96::66"},
		{"six.other", []netip.Addr{four}, "service other/six has no address of a family that the pod speaks"},
		{"heads", []netip.Addr{four, six}, "2001:db8::2"},
		{"heads", []netip.Addr{four}, "headless Service default/heads has no ready endpoint"},
		{"nobody", []netip.Addr{four}, "headless Service default/nobody has no ready endpoint"},
		{"away", []netip.Addr{four}, "service default/away is an ExternalName: it has no address of its own, clients are sent to www.example.com by DNS"},
		{"api", []netip.Addr{four, six}, four.String()},
	} {
		a, _, err := resolveTarget(st, "cluster.local", "default", c.target, c.speak)
		got := a.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s by %v: got %q, want %q", c.target, c.speak, got, c.want)
		}
	}
}
