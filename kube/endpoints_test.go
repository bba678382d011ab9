package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// slicesOf writes the slices of a Service, one a line: family, ports, then each
// endpoint with what it is: r(eady) s(erving) t(erminating).
func slicesOf(s *Store, n Name) string {
	var out []string
	for _, e := range s.State().EndpointSlices.All() {
		if e.Namespace != n.Namespace || e.Labels[discoveryv1.LabelServiceName] != n.Name {
			continue
		}
		line := string(e.AddressType) + " " + strings.Join(portNumbers(e.Ports), ",")
		for _, ep := range e.Endpoints {
			line += " " + ep.Addresses[0] + ":"
			c := ep.Conditions
			for flag, set := range map[string]*bool{"r": c.Ready, "s": c.Serving, "t": c.Terminating} {
				if set != nil && *set {
					line += flag
				}
			}
			line = sortFlags(line)
			if ep.Hostname != nil {
				line += "@" + *ep.Hostname
			}
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func sortFlags(line string) string {
	i := strings.LastIndexByte(line, ':')
	flags := []byte(line[i+1:])
	slices.Sort(flags)
	return line[:i+1] + string(flags)
}

func TestEndpointConditions(t *testing.T) {
	s := testStore(Config{})
	manifest := `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec: {hostname: h, subdomain: svc, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: svc}
spec: {selector: {app: x}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: all}
spec: {selector: {app: x}, publishNotReadyAddresses: true, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}
`
	s.Apply(load(t, manifest))
	check := func(step, svc, all string) {
		t.Helper()
		if got := slicesOf(s, Name{"default", "svc"}); got != svc {
			t.Errorf("%s: svc: got\n%s\nwant\n%s", step, got, svc)
		}
		if got := slicesOf(s, Name{"default", "all"}); got != all {
			t.Errorf("%s: all: got\n%s\nwant\n%s", step, got, all)
		}
	}
	check("new", "IPv4 /TCP/8080 10.244.0.4:@h", "IPv4 /TCP/80 10.244.0.4:r\nIPv6 /TCP/80 fd00:10:244::4:r")
	become(s, Name{"default", "p"}, true)
	check("ready", "IPv4 /TCP/8080 10.244.0.4:rs@h", "IPv4 /TCP/80 10.244.0.4:rs\nIPv6 /TCP/80 fd00:10:244::4:rs")
	pod := load(t, manifest)
	pod = pod[len(pod)-1:]
	s.Delete(pod)
	check("terminating", "IPv4 /TCP/8080 10.244.0.4:st@h", "IPv4 /TCP/80 10.244.0.4:rst\nIPv6 /TCP/80 fd00:10:244::4:rst")
	become(s, Name{"default", "p"}, false)
	check("terminating, not ready", "IPv4 /TCP/8080 10.244.0.4:t@h", "IPv4 /TCP/80 10.244.0.4:rt\nIPv6 /TCP/80 fd00:10:244::4:rt")
	s.PodGone(Name{"default", "p"}, string(s.State().Pods[Name{"default", "p"}].UID))
	check("gone", "IPv4 ", "IPv4 \nIPv6 ")
	s.Delete(load(t, manifest)[:2])
	check("no Services", "", "")
}

func TestFinishedPodsAreNoEndpoints(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec: {restartPolicy: Never, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: svc}
spec: {selector: {app: x}, ports: [{port: 80}]}
`))
	n := Name{"default", "p"}
	for _, st := range []corev1.PodStatus{{Phase: corev1.PodSucceeded}, {Phase: corev1.PodFailed, Reason: "Evicted"}} {
		become(s, n, true)
		if got, want := slicesOf(s, Name{"default", "svc"}), "IPv4 /TCP/80 10.244.0.4:rs"; got != want {
			t.Errorf("running: got %q, want %q", got, want)
		}
		s.SetPodStatus(n, string(s.State().Pods[n].UID), st)
		if got, want := slicesOf(s, Name{"default", "svc"}), "IPv4 "; got != want {
			t.Errorf("%s: got %q, want %q", st.Phase, got, want)
		}
	}
}

func TestTrafficDistributionBecomesHints(t *testing.T) {
	zone := "z1"
	for _, tt := range []struct {
		want string
		zone *string
		hint string
	}{
		{"", &zone, ""},
		{corev1.ServiceTrafficDistributionPreferClose, &zone, "zone z1"},
		{corev1.ServiceTrafficDistributionPreferSameZone, &zone, "zone z1"},
		{corev1.ServiceTrafficDistributionPreferSameZone, nil, ""},
		{corev1.ServiceTrafficDistributionPreferSameNode, &zone, "zone z1 node n"},
		{corev1.ServiceTrafficDistributionPreferSameNode, nil, "node n"},
	} {
		var said []string
		want := &tt.want
		if tt.want == "" {
			want = nil
		}
		if h := trafficHints(want, "n", tt.zone); h != nil {
			for _, z := range h.ForZones {
				said = append(said, "zone "+z.Name)
			}
			for _, n := range h.ForNodes {
				said = append(said, "node "+n.Name)
			}
		}
		if got := strings.Join(said, " "); got != tt.hint {
			t.Errorf("%q, zone %v: got %q, want %q", tt.want, tt.zone != nil, got, tt.hint)
		}
	}
}

func TestPodsWithDifferentPortsAreInDifferentSlices(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: x}}
spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: x}}
spec:
  initContainers: [{name: s, image: i, restartPolicy: Always, ports: [{name: http, containerPort: 9090}]}]
  containers: [{name: c, image: i, ports: [{name: http, containerPort: 1, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: c, labels: {app: x}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: svc, labels: {team: red, kubernetes.io/service-name: other}}
spec: {clusterIP: None, selector: {app: x}, ports: [{name: web, port: 80, targetPort: http}, {name: raw, port: 81}]}
`))
	want := "IPv4 raw/TCP/81 10.244.0.6:\nIPv4 web/TCP/8080,raw/TCP/81 10.244.0.4:\nIPv4 web/TCP/9090,raw/TCP/81 10.244.0.5:"
	if got := slicesOf(s, Name{"default", "svc"}); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for n, e := range s.State().EndpointSlices.All() {
		if n.Namespace != "default" {
			continue
		}
		if _, headless := e.Labels[corev1.IsHeadlessService]; !headless || e.Labels["team"] != "red" ||
			e.Labels[discoveryv1.LabelManagedBy] != "endpointslice-controller.k8s.io" || e.OwnerReferences[0].Name != "svc" {
			t.Errorf("%s: got labels %v, owners %v", n, e.Labels, e.OwnerReferences)
		}
		if ep := e.Endpoints[0]; *ep.NodeName != "podgate" || ep.TargetRef.Kind != "Pod" {
			t.Errorf("%s: got %v", n, ep)
		}
	}
}

func TestSliceSize(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, strings.Replace(web, "replicas: 3", "replicas: 250", 1)))
	got := map[int]int{}
	for _, e := range s.State().EndpointSlices.All() {
		if e.Namespace == "shop" {
			got[len(e.Endpoints)]++
		}
	}
	if fmt.Sprint(got) != "map[50:1 100:2]" {
		t.Errorf("got sizes %v", got)
	}
}

func TestEndpointsAreMirrored(t *testing.T) {
	s := testStore(Config{})
	endpoints := `
apiVersion: v1
kind: Endpoints
metadata: {name: svc, labels: {a: b}}
subsets:
- addresses: [{ip: 192.0.2.1, hostname: one}, {ip: "2001:db8::1"}]
  notReadyAddresses: [{ip: 192.0.2.2}]
  ports: [{name: web, port: 8080}]
`
	s.Apply(load(t, endpoints))
	svc := Name{"default", "svc"}
	// Without its Service too: kube-controller-manager mirrors once there is one.
	s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {ports: [{name: web, port: 80}]}"))
	want := "IPv4 web/TCP/8080 192.0.2.1:r@one 192.0.2.2:\nIPv6 web/TCP/8080 2001:db8::1:r"
	if got := slicesOf(s, svc); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s.Apply(load(t, strings.Replace(endpoints, "a: b", "endpointslice.kubernetes.io/skip-mirror: 'true'", 1)))
	if got := slicesOf(s, svc); got != "" {
		t.Errorf("got %s in spite of skip-mirror", got)
	}
	s.Apply(load(t, endpoints))
	s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {selector: {app: none}, ports: [{name: web, port: 80}]}"))
	if got := slicesOf(s, svc); got != "IPv4 " {
		t.Errorf("got %s for a Service with a selector", got)
	}
}

// TestMirroring: the rules of kube-controller-manager's mirroring, and of how an API
// server packs subsets.
func TestMirroring(t *testing.T) {
	many := func(field string, n int) string {
		s := field + ": ["
		for i := range n {
			s += fmt.Sprintf("{ip: 198.51.%d.%d}, ", len(field)+i/250, i%250+1)
		}
		return s + "]"
	}
	for _, c := range []struct{ name, service, meta, subsets, want string }{
		{"the leader annotation of old elections", "ports: [{port: 80}]", ", annotations: {control-plane.alpha.kubernetes.io/leader: x}", "- {addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}", ""},
		{"an ExternalName without selector", "type: ExternalName, externalName: a.b", "", "- {addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}", "IPv4 /TCP/1 192.0.2.1:r"},
		{"an ExternalName with one", "type: ExternalName, externalName: a.b, selector: {a: b}", "", "- {addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}", ""},
		{"no addresses", "ports: [{port: 80}]", "", "  []", ""},
		{"no ports", "clusterIP: None", "", "- {addresses: [{ip: 192.0.2.1}]}", "IPv4  192.0.2.1:r"},
		{"subsets of the same ports", "ports: [{port: 80}]", "", "- {addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}\n- {addresses: [{ip: 192.0.2.2}], notReadyAddresses: [{ip: 192.0.2.3}], ports: [{port: 1}]}\n- {addresses: [{ip: 192.0.2.4}], ports: [{port: 2}]}",
			"IPv4 /TCP/1 192.0.2.1:r 192.0.2.2:r 192.0.2.3:\nIPv4 /TCP/2 192.0.2.4:r"},
		{"an address ready and not ready", "ports: [{port: 80}]", "", "- {addresses: [{ip: 192.0.2.1}, {ip: 192.0.2.2}], notReadyAddresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}", "IPv4 /TCP/1 192.0.2.1: 192.0.2.2:r"},
		{"at most 1000 addresses, the ready ones first", "ports: [{port: 80}]", "", "- {" + many("notReadyAddresses", 300) + ", " + many("addresses", 900) + ", ports: [{port: 1}]}", "1000 in one slice, 900 ready"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testStore(Config{})
			s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {"+c.service+"}\n---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: svc"+c.meta+"}\nsubsets:\n"+c.subsets))
			got := slicesOf(s, Name{"default", "svc"})
			if n := strings.Count(got, " 198."); n > 0 && !strings.Contains(got, "\n") {
				got = fmt.Sprintf("%d in one slice, %d ready", n, strings.Count(got, ":r"))
			}
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestEndpointSlicesOfUsersStay(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, `
apiVersion: v1
kind: Service
metadata: {name: svc}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mine, labels: {kubernetes.io/service-name: svc}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1], conditions: {ready: true}}]
ports: [{port: 80}]
`))
	if got, want := slicesOf(s, Name{"default", "svc"}), "IPv4 /TCP/80 192.0.2.1:r"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.Apply(load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {ports: [{port: 81}]}"))
	if s.State().EndpointSlices.Get(Name{"default", "mine"}) == nil {
		t.Error("the slice is gone")
	}
}

func TestHostNetworkPodsHaveTheNodesAddress(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}"))
	p := s.State().Pods[Name{"default", "p"}]
	if p.Status.PodIP != "10.244.0.1" || p.Status.HostIP != "10.244.0.1" || p.Spec.Containers[0].Ports[0].HostPort != 80 {
		t.Errorf("got %v %v", p.Status, p.Spec.Containers[0].Ports)
	}
}
