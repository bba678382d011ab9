package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"podgate/kube"
	"podgate/stack/packet"
)

func ptr[T any](v T) *T { return &v }

// The cluster of the tests. Pod number n is at 10.244.0.n and fd00:10:244::n.
//
//	shop (team shop)  web 11, db 12        ops (team ops)  probe 21, web 22, agent (hostNetwork)
//	dev (no labels)   client 31, done 32 (Succeeded)
func cluster() *kube.State {
	st := &kube.State{Namespaces: map[string]*corev1.Namespace{}, Pods: map[kube.Name]*corev1.Pod{}}
	for n, team := range map[string]string{"shop": "shop", "ops": "ops", "dev": ""} {
		labels := map[string]string{corev1.LabelMetadataName: n}
		if team != "" {
			labels["team"] = team
		}
		st.Namespaces[n] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: labels}}
	}
	pod := func(name string, n int, labels map[string]string, ports ...corev1.ContainerPort) *corev1.Pod {
		space, short, _ := strings.Cut(name, "/")
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: space, Name: short, Labels: labels}}
		p.Spec.Containers = []corev1.Container{{Name: "main", Ports: ports}}
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.244.0.%d", n)}, {IP: fmt.Sprintf("fd00:10:244::%d", n)}}}
		st.Pods[kube.Name{Namespace: space, Name: short}] = p
		return p
	}
	web := pod("shop/web", 11, map[string]string{"app": "web", "tier": "front"},
		corev1.ContainerPort{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
		corev1.ContainerPort{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP})
	web.Spec.InitContainers = []corev1.Container{
		{Name: "once", Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 7000, Protocol: corev1.ProtocolTCP}}},
		{Name: "mesh", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{{Name: "mesh", ContainerPort: 15001, Protocol: corev1.ProtocolTCP}}},
	}
	pod("shop/db", 12, map[string]string{"app": "db", "tier": "back"}, corev1.ContainerPort{Name: "http", ContainerPort: 9090, Protocol: corev1.ProtocolTCP})
	pod("ops/probe", 21, map[string]string{"app": "probe"})
	pod("ops/web", 22, map[string]string{"app": "web"})
	agent := pod("ops/agent", 1, map[string]string{"app": "agent"})
	agent.Spec.HostNetwork = true
	pod("dev/client", 31, nil)
	pod("dev/done", 32, map[string]string{"app": "web"}).Status.Phase = corev1.PodSucceeded
	return st
}

// apply adds policies written as YAML: "namespace/name" and a spec.
func apply(t testing.TB, st *kube.State, name, spec string) {
	t.Helper()
	np := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	np.Namespace, np.Name, _ = strings.Cut(name, "/")
	all := maps.Clone(st.NetworkPolicies)
	if all == nil {
		all = map[kube.Name]*networkingv1.NetworkPolicy{}
	}
	all[kube.Name{Namespace: np.Namespace, Name: np.Name}] = np
	st.NetworkPolicies = all
}

// addrOf resolves "shop/web", "shop/web+6" (its IPv6 address), "node", "out" or an address.
func addrOf(st *kube.State, s string) packet.Addr {
	s, v6 := strings.CutSuffix(s, "+6")
	i := 0
	if v6 {
		i = 1
	}
	switch space, name, ok := strings.Cut(s, "/"); {
	case ok:
		return packet.AddrFrom(netip.MustParseAddr(st.Pods[kube.Name{Namespace: space, Name: name}].Status.PodIPs[i].IP))
	case s == "node":
		return packet.AddrFrom(nodeAddrs[i])
	case s == "out":
		return packet.AddrFrom(netip.MustParseAddr([]string{"192.0.2.7", "2001:db8::7"}[i]))
	}
	return packet.AddrFrom(netip.MustParseAddr(s))
}

// connects judges a conversation as the data path does, both ends.
func connects(t testing.TB, tab *Table, st *kube.State, conversation string) bool {
	t.Helper()
	var from, to, proto string
	var port uint16
	if _, err := fmt.Sscanf(conversation, "%s -> %s %s %d", &from, &to, &proto, &port); err != nil {
		t.Fatalf("%q: %v", conversation, err)
	}
	number := map[string]packet.Proto{"tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP, "icmp": packet.ICMP, "icmp6": packet.ICMPv6}[proto]
	src, dst := addrOf(st, from), addrOf(st, to)
	return tab.Judge(Egress, tab.Pod(src), dst, number, port, 0).Allowed && tab.Judge(Ingress, tab.Pod(dst), src, number, port, 0).Allowed
}

// TestAPI has a case for each sentence of the API.
func TestAPI(t *testing.T) {
	type policies map[string]string
	tests := []struct {
		name        string
		policies    policies
		yes, refuse []string
	}{
		{"no policy selects the pod: all traffic is allowed", policies{"shop/db": "podSelector: {matchLabels: {app: db}}"},
			[]string{"dev/client -> shop/web tcp 8080", "shop/web -> out tcp 443", "out -> shop/web udp 1", "dev/client -> shop/web icmp 0"},
			[]string{"dev/client -> shop/db tcp 1"}},
		{"empty podSelector selects all pods of the policy's namespace, and of no other", policies{"shop/deny": "podSelector: {}"},
			[]string{"dev/client -> ops/web tcp 80", "shop/web -> dev/client tcp 80"},
			[]string{"dev/client -> shop/web tcp 80", "dev/client -> shop/db tcp 80", "shop/db -> shop/web tcp 80", "out -> shop/web tcp 80", "out+6 -> shop/web+6 tcp 80"}},
		{"podSelector with matchExpressions", policies{"shop/p": "podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}, {key: app, operator: Exists}]}"},
			[]string{"dev/client -> shop/web tcp 80"}, []string{"dev/client -> shop/db tcp 80"}},
		{"missing ingress with policyTypes Ingress: isolated, nothing allowed", policies{"shop/p": "{podSelector: {}, policyTypes: [Ingress]}"},
			[]string{"shop/web -> out tcp 80"}, []string{"out -> shop/web tcp 80", "dev/client -> shop/web icmp 0"}},
		{"policyTypes missing, no egress rules: Ingress only", policies{"shop/p": "{podSelector: {}, ingress: []}"},
			[]string{"shop/web -> out tcp 80"}, []string{"out -> shop/web tcp 80"}},
		{"policyTypes missing, egress rules: both", policies{"shop/p": "{podSelector: {}, egress: [{}]}"},
			[]string{"shop/web -> out tcp 80"}, []string{"out -> shop/web tcp 80"}},
		{"policyTypes Egress: ingress is not affected, its rules do not count", policies{"shop/p": "{podSelector: {}, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]}"},
			[]string{"out -> shop/web tcp 80"}, []string{"shop/web -> out tcp 80", "shop/web -> shop/db tcp 80"}},
		{"policyTypes Ingress: egress rules do not isolate", policies{"shop/p": "{podSelector: {}, policyTypes: [Ingress], egress: [{to: [{podSelector: {}}]}]}"},
			[]string{"shop/web -> out tcp 80"}, []string{"out -> shop/web tcp 80"}},
		{"an empty rule allows everything", policies{"shop/p": "{podSelector: {}, ingress: [{}]}"},
			[]string{"out -> shop/web tcp 80", "out -> shop/web sctp 7", "out -> shop/web icmp 0", "out+6 -> shop/web+6 icmp6 0"}, nil},
		{"empty from matches all sources", policies{"shop/p": "{podSelector: {}, ingress: [{from: [], ports: [{port: 80}]}]}"},
			[]string{"out -> shop/web tcp 80", "ops/web -> shop/web tcp 80"}, []string{"out -> shop/web tcp 81"}},
		{"empty ports matches all ports and protocols", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [], from: [{podSelector: {}}]}]}"},
			[]string{"shop/db -> shop/web tcp 81", "shop/db -> shop/web udp 5", "shop/db -> shop/web icmp 0"}, []string{"out -> shop/web tcp 81"}},
		{"protocol defaults to TCP", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"},
			[]string{"out -> shop/web tcp 80"}, []string{"out -> shop/web udp 80", "out -> shop/web sctp 80", "out -> shop/web icmp 0"}},
		{"protocol without port matches all its ports", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}"},
			[]string{"out -> shop/web udp 1", "out -> shop/web udp 65535"}, []string{"out -> shop/web tcp 1", "out -> shop/web icmp 0"}},
		{"protocol SCTP", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 36412}]}]}"},
			[]string{"out -> shop/web sctp 36412"}, []string{"out -> shop/web tcp 36412", "out -> shop/web sctp 36413"}},
		{"ports of one rule are ORed", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: 80}, {protocol: UDP, port: 53}]}]}"},
			[]string{"out -> shop/web tcp 80", "out -> shop/web udp 53"}, []string{"out -> shop/web tcp 53", "out -> shop/web udp 80"}},
		{"endPort is inclusive", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: 8000, endPort: 8002}]}]}"},
			[]string{"out -> shop/web tcp 8000", "out -> shop/web tcp 8002"}, []string{"out -> shop/web tcp 7999", "out -> shop/web tcp 8003"}},
		{"a named port is that of the selected pod", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: http}]}]}"},
			[]string{"out -> shop/web tcp 8080", "out -> shop/db tcp 9090"}, []string{"out -> shop/web tcp 9090", "out -> shop/db tcp 8080"}},
		{"a named port must be of the protocol", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: dns}]}]}"},
			nil, []string{"out -> shop/web tcp 53", "out -> shop/web udp 53"}},
		{"a named port of protocol UDP", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: dns}]}]}"},
			[]string{"out -> shop/web udp 53"}, []string{"out -> shop/web tcp 53"}},
		{"a named port of a restartable init container", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: mesh}, {port: setup}]}]}"},
			[]string{"out -> shop/web tcp 15001"}, []string{"out -> shop/web tcp 7000"}},
		{"a named port in egress is that of the destination pod", policies{"dev/p": "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"},
			[]string{"dev/client -> shop/web tcp 8080", "dev/client -> shop/db tcp 9090"}, []string{"dev/client -> shop/web tcp 9090", "dev/client -> out tcp 8080", "dev/client -> ops/web tcp 8080"}},
		{"from podSelector: pods of the policy's own namespace", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"},
			[]string{"shop/web -> shop/db tcp 1", "shop/web+6 -> shop/db+6 tcp 1"}, []string{"ops/web -> shop/db tcp 1", "out -> shop/db tcp 1"}},
		{"from podSelector, empty: all pods of the own namespace", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"},
			[]string{"shop/web -> shop/db tcp 1"}, []string{"ops/web -> shop/db tcp 1", "out -> shop/db tcp 1"}},
		{"from namespaceSelector: all pods of the namespaces", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}]}]}"},
			[]string{"ops/web -> shop/db tcp 1", "ops/probe -> shop/db tcp 1"}, []string{"shop/web -> shop/db tcp 1", "dev/client -> shop/db tcp 1", "out -> shop/db tcp 1"}},
		{"from namespaceSelector, empty: all namespaces", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"},
			[]string{"ops/web -> shop/db tcp 1", "dev/client -> shop/db tcp 1", "shop/web -> shop/db tcp 1"}, []string{"out -> shop/db tcp 1"}},
		{"from namespaceSelector by kubernetes.io/metadata.name", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: dev}}}]}]}"},
			[]string{"dev/client -> shop/db tcp 1"}, []string{"ops/web -> shop/db tcp 1"}},
		{"namespaceSelector with expressions over a missing label", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]}"},
			[]string{"dev/client -> shop/db tcp 1"}, []string{"ops/web -> shop/db tcp 1"}},
		{"podSelector and namespaceSelector in one peer are ANDed", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: web}}}]}]}"},
			[]string{"ops/web -> shop/db tcp 1"}, []string{"ops/probe -> shop/db tcp 1", "shop/web -> shop/db tcp 1"}},
		{"podSelector and namespaceSelector in two peers are ORed", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}, {podSelector: {matchLabels: {app: web}}}]}]}"},
			[]string{"ops/web -> shop/db tcp 1", "ops/probe -> shop/db tcp 1", "shop/web -> shop/db tcp 1"}, []string{"dev/client -> shop/db tcp 1"}},
		{"from and ports must both match", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}"},
			[]string{"shop/web -> shop/db tcp 80"}, []string{"shop/web -> shop/db tcp 81", "ops/web -> shop/db tcp 80"}},
		{"from and ports of different rules do not combine", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {team: ops}}}], ports: [{port: 81}]}]}"},
			[]string{"shop/web -> shop/db tcp 80", "ops/web -> shop/db tcp 81"}, []string{"shop/web -> shop/db tcp 81", "ops/web -> shop/db tcp 80"}},
		{"ipBlock outside the cluster", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}"},
			[]string{"out -> shop/web tcp 1"}, []string{"198.51.100.1 -> shop/web tcp 1", "dev/client -> shop/web tcp 1", "out+6 -> shop/web+6 tcp 1"}},
		{"ipBlock with except", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/29, 192.0.2.128/25]}}]}]}"},
			[]string{"192.0.2.8 -> shop/web tcp 1", "192.0.2.127 -> shop/web tcp 1"}, []string{"out -> shop/web tcp 1", "192.0.2.128 -> shop/web tcp 1", "192.0.2.255 -> shop/web tcp 1"}},
		{"except takes only from its own block", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}, {ipBlock: {cidr: 192.0.2.0/29}}]}]}"},
			[]string{"out -> shop/web tcp 1"}, []string{"192.0.3.1 -> shop/web tcp 1"}},
		{"ipBlock matches pod addresses", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.31/32]}}]}]}"},
			[]string{"ops/web -> shop/web tcp 1"}, []string{"dev/client -> shop/web tcp 1"}},
		{"ipBlock IPv6 with except", policies{"shop/p": `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:1::/48"]}}]}]}`},
			[]string{"out+6 -> shop/web+6 tcp 1"}, []string{"2001:db8:1::1 -> shop/web+6 tcp 1", "2001:db9::1 -> shop/web+6 tcp 1", "out -> shop/web tcp 1"}},
		{"ipBlock 0.0.0.0/0 is IPv4 only", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"},
			[]string{"out -> shop/web tcp 1", "dev/client -> shop/web tcp 1"}, []string{"out+6 -> shop/web+6 tcp 1"}},
		{"ipBlock ::/0 is IPv6 only", policies{"shop/p": `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::/0"}}]}]}`},
			[]string{"out+6 -> shop/web+6 tcp 1"}, []string{"out -> shop/web tcp 1"}},
		{"egress to ipBlock", policies{"dev/p": "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}], ports: [{port: 443}]}]}"},
			[]string{"dev/client -> out tcp 443"}, []string{"dev/client -> out tcp 80", "dev/client -> shop/web tcp 443", "dev/client -> 10.9.9.9 tcp 443"}},
		{"missing egress with policyTypes Egress: nothing out", policies{"dev/p": "{podSelector: {}, policyTypes: [Egress]}"},
			[]string{"shop/web -> dev/client tcp 1"}, []string{"dev/client -> out tcp 443", "dev/client -> shop/web tcp 8080", "dev/client -> out icmp 0"}},
		{"both ends must allow", policies{"dev/p": "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: shop}}}]}]}",
			"shop/p": "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}"},
			[]string{"dev/client -> shop/web tcp 1", "shop/web -> shop/db tcp 1"}, []string{"dev/client -> shop/db tcp 1", "dev/client -> ops/web tcp 1"}},
		{"several policies unite", policies{"shop/deny": "podSelector: {}",
			"shop/a": "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}", "shop/b": "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}"},
			[]string{"out -> shop/web tcp 80", "out -> shop/web tcp 81", "out -> shop/db tcp 81"}, []string{"out -> shop/db tcp 80", "out -> shop/web tcp 82"}},
		{"a pod always reaches itself", policies{"shop/deny": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
			[]string{"shop/web -> shop/web tcp 8080", "shop/web+6 -> shop/web+6 udp 1"}, []string{"shop/web -> shop/db tcp 8080"}},
		{"the pod's node always passes, both ways", policies{"shop/deny": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
			[]string{"node -> shop/web tcp 8080", "shop/web -> node tcp 30080", "node+6 -> shop/web+6 tcp 8080", "ops/agent -> shop/web icmp 0"}, []string{"out -> shop/web tcp 8080"}},
		{"hostNetwork pods are not subjects", policies{"ops/deny": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
			[]string{"out -> ops/agent tcp 1", "ops/agent -> out tcp 1"}, []string{"out -> ops/web tcp 1"}},
		{"completed pods are not peers", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"},
			[]string{"dev/client -> shop/web tcp 1"}, []string{"dev/done -> shop/web tcp 1"}},
		{"ICMP passes by a rule without ports, not by one with", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {ports: [{}]}]}"},
			[]string{"shop/web -> shop/db icmp 0", "out -> shop/db tcp 1"}, []string{"out -> shop/db icmp 0"}},
		{"broken: a peer that cannot be read matches nobody", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: everything}}]}]}"},
			nil, []string{"out -> shop/web tcp 1"}},
		{"broken: an except that cannot be read takes its block along", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [x]}}, {ipBlock: {cidr: 198.51.100.0/24}}]}]}"},
			[]string{"198.51.100.1 -> shop/web tcp 1"}, []string{"out -> shop/web tcp 1"}},
		{"broken: a port that cannot be read matches nothing", policies{"shop/p": "{podSelector: {}, ingress: [{ports: [{port: http, endPort: 90}, {port: 0}, {endPort: 7}, {port: 9, endPort: 8}, {protocol: ICMP}]}]}"},
			nil, []string{"out -> shop/web tcp 8080", "out -> shop/web tcp 7", "out -> shop/web tcp 8", "out -> shop/web tcp 9", "out -> shop/web icmp 0"}},
		{"broken: an empty peer, and one of two kinds, match nobody", policies{"shop/p": "{podSelector: {}, ingress: [{from: [{}, {podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]}"},
			nil, []string{"out -> shop/web tcp 1", "shop/db -> shop/web tcp 1"}},
		{"broken: a podSelector that cannot be read isolates the namespace", policies{"shop/p": "{podSelector: {matchExpressions: [{key: app, operator: Near, values: [x]}]}, ingress: [{ports: [{port: 80}]}]}"},
			[]string{"out -> shop/web tcp 80"}, []string{"out -> shop/web tcp 81"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := cluster()
			cfg := Config{NodeAddrs: nodeAddrs}
			tab, _ := Compile(nil, st, cfg)
			for name, spec := range tt.policies {
				apply(t, st, name, spec)
				tab, _ = Compile(tab, st, cfg)
			}
			_, problems := Compile(nil, st, cfg)
			if broken := strings.HasPrefix(tt.name, "broken"); broken != (len(problems) > 0) {
				t.Errorf("problems: got %v", problems)
			}
			for _, c := range tt.yes {
				if !connects(t, tab, st, c) {
					t.Errorf("%s: denied, want allowed", c)
				}
			}
			for _, c := range tt.refuse {
				if connects(t, tab, st, c) {
					t.Errorf("%s: allowed, want denied", c)
				}
			}
		})
	}
}

// Who has an address is subject and peer, ready or not; who has none yet, or gave
// it back, is neither.
func TestPodsOfAllPhases(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(p *corev1.Pod)
		member bool
	}{
		{"running", func(p *corev1.Pod) {}, true},
		{"pending, with an address", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, true},
		{"unknown", func(p *corev1.Pod) { p.Status.Phase = corev1.PodUnknown }, true},
		{"terminating", func(p *corev1.Pod) { p.DeletionTimestamp = ptr(metav1.Now()) }, true},
		{"without address", func(p *corev1.Pod) { p.Status.PodIPs = nil }, false},
		{"succeeded", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false},
		{"failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := cluster()
			apply(t, st, "shop/front", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}")
			apply(t, st, "shop/back", "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}")
			before, _ := Compile(nil, st, Config{})
			web, db := addrOf(st, "shop/web"), addrOf(st, "shop/db")
			name := kube.Name{Namespace: "shop", Name: "db"}
			pod := st.Pods[name].DeepCopy()
			tt.change(pod)
			st.Pods = maps.Clone(st.Pods)
			st.Pods[name] = pod
			after, _ := Compile(before, st, Config{})
			if got := after.Pod(db) != nil; got != tt.member {
				t.Errorf("subject: got %t, want %t", got, tt.member)
			}
			if got := !after.Judge(Ingress, after.Pod(db), web, packet.TCP, 80, 0).Allowed; got != tt.member {
				t.Errorf("isolated: got %t, want %t", got, tt.member)
			}
			if got := after.Judge(Ingress, after.Pod(web), db, packet.TCP, 80, 0).Allowed; got != tt.member {
				t.Errorf("peer: got %t, want %t", got, tt.member)
			}
		})
	}
}

func TestVerdictNamesRuleAndPolicies(t *testing.T) {
	st := cluster()
	apply(t, st, "shop/deny-all", "podSelector: {}")
	apply(t, st, "shop/allow-web", "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 1}]}, {ports: [{port: 80}]}]}")
	tab, _ := Compile(nil, st, Config{})
	web := tab.Pod(addrOf(st, "shop/web"))
	v := tab.Judge(Ingress, web, addrOf(st, "out"), packet.TCP, 80, 0)
	if got, want := fmt.Sprint(v.By), "policy shop/allow-web rule ingress[1]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	v = tab.Judge(Ingress, web, addrOf(st, "out"), packet.TCP, 81, 0)
	if v.Allowed || !v.Isolated || v.By != nil {
		t.Errorf("got %+v, want denied", v)
	}
	if got, want := namesOf(web.Isolating(Ingress)), []string{"shop/allow-web", "shop/deny-all"}; !slices.Equal(got, want) {
		t.Errorf("isolating: got %v, want %v", got, want)
	}
	if got := web.Isolating(Egress); len(got) != 0 {
		t.Errorf("isolating in egress: got %v, want none", namesOf(got))
	}
	if v := tab.Judge(Egress, web, addrOf(st, "out"), packet.TCP, 81, 0); !v.Allowed || v.Isolated {
		t.Errorf("egress: got %+v, want allowed, not isolated", v)
	}
	if v := tab.Judge(Ingress, nil, addrOf(st, "out"), packet.TCP, 81, 0); !v.Allowed {
		t.Errorf("no pod: got %+v, want allowed", v)
	}
}

func TestProblemsNameTheField(t *testing.T) {
	st := cluster()
	apply(t, st, "shop/p", "{podSelector: {}, ingress: [{}, {from: [{ipBlock: {cidr: 10.0.0.0/33}}], ports: [{protocol: ICMP}]}]}")
	apply(t, st, "shop/q", "{podSelector: {}, policyTypes: [Outgress]}")
	_, ps := Compile(nil, st, Config{})
	var got []string
	for _, p := range ps {
		got = append(got, p.Kind+" "+p.Object.String()+" "+p.Field+": "+p.Err)
	}
	want := []string{
		`NetworkPolicy shop/p spec.ingress[1].from[0].ipBlock.cidr: Invalid value: "10.0.0.0/33": must be a valid CIDR`,
		`NetworkPolicy shop/p spec.ingress[1].ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`,
		`NetworkPolicy shop/q spec.policyTypes[0]: Unsupported value: "Outgress": supported values: "Egress", "Ingress"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestJudgeDoesNotAllocate(t *testing.T) {
	st := cluster()
	apply(t, st, "shop/p", "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: http}], from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24}}]}], egress: [{ports: [{port: http}], to: [{namespaceSelector: {}}]}]}")
	tab, _ := Compile(nil, st, Config{NodeAddrs: nodeAddrs})
	web, out, db := tab.Pod(addrOf(st, "shop/web")), addrOf(st, "out"), addrOf(st, "shop/db")
	n := testing.AllocsPerRun(100, func() {
		tab.Judge(Ingress, web, out, packet.TCP, 8080, 0)
		tab.Judge(Egress, web, db, packet.TCP, 9090, 0)
		tab.Judge(Egress, web, out, packet.TCP, 9090, 0)
	})
	if n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}
