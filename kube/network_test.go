package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// netStore is a store with the definitions default/storage and kube-system/own.
func netStore(t *testing.T) *Store {
	t.Helper()
	s := NewStore(Config{}, nil)
	applyText(t, s, definition("storage", `{"type": "podgate", "ipam": {"ranges": [[{"subnet": "172.30.0.0/29"}], [{"subnet": "fd00:30::/64"}]]}}`)+
		strings.Replace(definition("own", `{"type": "podgate", "ipam": {"subnet": "172.31.0.0/24"}}`), "{name:", "{namespace: kube-system, name:", 1))
	return s
}

func definition(name, config string) string {
	return fmt.Sprintf("---\napiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: %s}\nspec: {config: '%s'}\n", name, config)
}

func podOn(name, annotation, value string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, annotations: {%s: '%s'}}\nspec: {containers: [{name: c, image: x}]}\n", name, annotation, value)
}

func applyText(t *testing.T, s *Store, manifests string) (errs []string) {
	t.Helper()
	m, problems := LoadBytes("m", []byte(manifests))
	for _, p := range problems {
		errs = append(errs, p.String())
	}
	for _, c := range s.Apply(m.Objects) {
		for _, p := range c.Problems {
			errs = append(errs, p.String())
		}
	}
	return errs
}

// describeInterfaces is "eth0 10.244.0.4,fd00:10:244::4 | net1 172.30.0.2 via 172.30.0.1".
func describeInterfaces(list []Interface) string {
	var all []string
	for _, i := range list {
		var addrs []string
		for _, a := range i.Addrs {
			addrs = append(addrs, a.String())
		}
		s := i.Name + " " + strings.Join(addrs, ",")
		for _, gw := range i.Default {
			s += " via " + gw.String()
		}
		all = append(all, s)
	}
	return strings.Join(all, " | ")
}

func TestPodsGetTheNetworksThatTheySelect(t *testing.T) {
	const eth0 = "eth0 10.244.0.4,fd00:10:244::4"
	const both = " via 10.244.0.1 via fd00:10:244::1"
	tests := []struct{ annotation, value, want string }{
		{NetworksAnnotation, "storage", eth0 + both + " | net1 172.30.0.2,fd00:30::2"},
		{NetworksAnnotation, "default/storage@data", eth0 + both + " | data 172.30.0.2,fd00:30::2"},
		{NetworksAnnotation, " storage@data , kube-system/own", eth0 + both + " | data 172.30.0.2,fd00:30::2 | net2 172.31.0.2"},
		{NetworksAnnotation, "storage,storage", eth0 + both + " | net1 172.30.0.2,fd00:30::2 | net2 172.30.0.3,fd00:30::3"},
		{NetworksAnnotation, `[{"name": "storage", "ips": ["172.30.0.4/29", "fd00:30::9"], "mac": "02:00:00:00:00:01"}]`, eth0 + both + " | net1 172.30.0.4,fd00:30::9"},
		{NetworksAnnotation, `[{"name": "storage", "ips": ["172.30.0.4"]}]`, eth0 + both + " | net1 172.30.0.4"},
		{NetworksAnnotation, `[{"name": "own", "namespace": "kube-system", "interface": "x0", "default-route": ["172.31.0.1"]}]`, eth0 + " via fd00:10:244::1 | x0 172.31.0.2 via 172.31.0.1"},
		{DefaultNetworkAnnotation, "own", "eth0 172.31.0.2 via 172.31.0.1"},
		{DefaultNetworkAnnotation, "default/storage", "eth0 172.30.0.2,fd00:30::2 via 172.30.0.1 via fd00:30::1"},
	}
	for _, tt := range tests {
		s := netStore(t)
		if errs := applyText(t, s, podOn("a", tt.annotation, tt.value)); len(errs) > 0 {
			t.Errorf("%s: %s", tt.value, errs)
			continue
		}
		st := s.State()
		name := Name{"default", "a"}
		if st.Interfaces[name].Problem != nil {
			t.Errorf("%s: %s", tt.value, st.Interfaces[name].Problem)
			continue
		}
		list := st.Interfaces[name].List
		if got := describeInterfaces(list); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.value, got, tt.want)
		}
		if got, want := st.Pods[name].Status.PodIP, list[0].Addrs[0].String(); got != want {
			t.Errorf("%s: status.podIP %s, want %s", tt.value, got, want)
		}
	}
}

func TestBadNetworkSelectionsNameTheAnnotation(t *testing.T) {
	tests := []struct{ annotation, value, want string }{
		{NetworksAnnotation, "nope", "[0]: name: there is no NetworkAttachmentDefinition default/nope"},
		{NetworksAnnotation, "storage,,storage", `"" is not [NAMESPACE/]NAME[@INTERFACE]`},
		{NetworksAnnotation, "a/b/c", `"a/b/c" is not`},
		{NetworksAnnotation, "storage@", `"storage@" is not`},
		{NetworksAnnotation, "Storage", `[0]: name: "Storage": a lowercase RFC 1123`},
		{NetworksAnnotation, "storage@eth0", `[0]: interface: "eth0" cannot be`},
		{NetworksAnnotation, "storage@x,storage@x", "[1]: interface: x is there twice"},
		{NetworksAnnotation, "storage@a-name-that-is-too-long", "[0]: interface:"},
		{NetworksAnnotation, `[{"name": "storage"`, "not a JSON list of networks"},
		{NetworksAnnotation, `["storage"]`, "not a JSON list of networks"},
		{NetworksAnnotation, `[{"name": "storage", "ips": "172.30.0.4"}]`, "not a JSON list of networks"},
		{NetworksAnnotation, `[{"name": "storage", "mac": "0a:58:0a:f4:00:01"}]`, "[0]: mac: 0a:58:0a:f4:00:01 is the gateway's"},
		{NetworksAnnotation, `[{"namespace": "default"}]`, "[0]: name: is required"},
		{NetworksAnnotation, `[{"name": "storage", "ips": ["172.30.0.1"]}]`, "[0]: ips: 172.30.0.1 is not an address that a pod of 172.30.0.0/29 may have"},
		{NetworksAnnotation, `[{"name": "storage", "ips": ["172.30.9.1"]}]`, "[0]: ips: 172.30.9.1 is not an address"},
		{NetworksAnnotation, `[{"name": "own", "namespace": "kube-system", "ips": ["fd00::1"]}]`, "[0]: ips: network kube-system/own has [172.31.0.0/24]"},
		{NetworksAnnotation, `[{"name": "storage", "ips": ["172.30.0.300"]}]`, `[0]: ips: "172.30.0.300" is not an address`},
		{NetworksAnnotation, `[{"name": "storage", "mac": "01:00:00:00:00:01"}]`, `[0]: mac: "01:00:00:00:00:01"`},
		{NetworksAnnotation, `[{"name": "storage", "default-route": ["172.30.0.5"]}]`, "[0]: default-route: 172.30.0.5 is no gateway"},
		{DefaultNetworkAnnotation, "storage", "name: there is no NetworkAttachmentDefinition kube-system/storage"},
		{DefaultNetworkAnnotation, "own,own", "must name one network"},
	}
	for _, tt := range tests {
		s := netStore(t)
		applyText(t, s, podOn("a", tt.annotation, tt.value)+podOn("good", NetworksAnnotation, "storage"))
		st := s.State()
		if st.Interfaces[Name{"default", "good"}].Problem != nil {
			t.Errorf("%s: harms another pod: %s", tt.value, st.Interfaces[Name{"default", "good"}].Problem)
		}
		i := slices.IndexFunc(st.Problems, func(p Problem) bool { return p.Object == Name{"default", "a"} })
		if i < 0 {
			t.Errorf("%s: no problem", tt.value)
			continue
		}
		p := st.Problems[i]
		if p.Field != "metadata.annotations["+tt.annotation+"]" || !strings.Contains(p.Err, tt.want) || p.File != "m" || p.Line == 0 {
			t.Errorf("%s: got %s, want %s", tt.value, p, tt.want)
		}
	}
}

func TestSelectionKeysWithoutEffectAreWarnedOf(t *testing.T) {
	s := netStore(t)
	applyText(t, s, podOn("a", NetworksAnnotation, `[{"name": "storage", "bandwidth": {}, "ipz": []}]`))
	st := s.State()
	if len(st.Interfaces[Name{"default", "a"}].List) != 2 || len(st.Problems) != 2 {
		t.Fatalf("got %v, problems %v", st.Interfaces[Name{"default", "a"}], st.Problems)
	}
	const want = "m:4: Pod default/a: warning: metadata.annotations[k8s.v1.cni.cncf.io/networks]: [0]: bandwidth: has no effect"
	if got := st.Problems[0].String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPodsWaitForTheirNetwork(t *testing.T) {
	s := NewStore(Config{}, nil)
	applyText(t, s, podOn("a", NetworksAnnotation, "storage")+podOn("b", DefaultNetworkAnnotation, "default/storage"))
	st := s.State()
	a, b := Name{"default", "a"}, Name{"default", "b"}
	if len(st.Problems) != 2 || st.Pods[b].Status.PodIP != "" || st.Pods[a].Status.PodIP != "10.244.0.4" {
		t.Fatalf("problems %v, addresses %q and %q", st.Problems, st.Pods[a].Status.PodIP, st.Pods[b].Status.PodIP)
	}
	applyText(t, s, definition("storage", `{"plugins": [{"type": "podgate", "ipam": {"subnet": "172.30.0.0/29", "rangeStart": "172.30.0.2", "rangeEnd": "172.30.0.3"}}]}`))
	if st = s.State(); len(st.Problems) != 0 || st.Pods[b].Status.PodIP != "172.30.0.3" {
		t.Fatalf("problems %v, address %q", st.Problems, st.Pods[b].Status.PodIP)
	}
	// The third finds no address until one is given back.
	applyText(t, s, podOn("c", NetworksAnnotation, "storage"))
	c := Name{"default", "c"}
	if p := s.State().Interfaces[c].Problem; p == nil || !strings.Contains(p.Err, "every address of its ranges is in use") {
		t.Fatalf("got %v", p)
	}
	m, _ := LoadBytes("m", []byte(podOn("a", NetworksAnnotation, "storage")))
	s.Delete(m.Objects)
	if got, want := describeInterfaces(s.State().Interfaces[c].List), "net1 172.30.0.2"; !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNetworkStatusIsTold(t *testing.T) {
	s := netStore(t)
	applyText(t, s, podOn("a", NetworksAnnotation, "storage"))
	a := Name{"default", "a"}
	if got := s.State().Pods[a].Annotations[NetworkStatusAnnotation]; got != "" {
		t.Errorf("before the pod is attached: %s", got)
	}
	s.SetPodStatus(a, string(s.State().Pods[a].UID), corev1.PodStatus{
		Phase:      corev1.PodRunning,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}},
	})
	const want = `[
    {
        "name": "podgate",
        "interface": "eth0",
        "ips": [
            "10.244.0.4",
            "fd00:10:244::4"
        ],
        "mac": "0a:58:0a:f4:00:04",
        "default": true,
        "dns": {},
        "gateway": [
            "10.244.0.1",
            "fd00:10:244::1"
        ]
    },
    {
        "name": "default/storage",
        "interface": "net1",
        "ips": [
            "172.30.0.2",
            "fd00:30::2"
        ],
        "mac": "0a:58:ac:1e:00:02",
        "dns": {}
    }
]`
	if got := s.State().Pods[a].Annotations[NetworkStatusAnnotation]; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// It stays when labels change, and a manifest that was copied from it says nothing new.
	applyText(t, s, strings.Replace(podOn("a", NetworksAnnotation, "storage"), "{name: a,", "{name: a, labels: {x: y},", 1))
	if got := s.State().Pods[a].Annotations[NetworkStatusAnnotation]; got != want {
		t.Errorf("after a change of labels: %s", got)
	}
}

func TestBadNetworksAreRejected(t *testing.T) {
	tests := []struct{ config, want string }{
		{"", "spec.config: Required value"},
		{"{", "spec.config: Invalid value: \"\": not a CNI configuration"},
		{"{} {}", "something follows the object"},
		{`{"type": "macvlan"}`, `spec.config.type: Unsupported value: "macvlan": supported values: "podgate"`},
		{`{"plugins": [{"type": "podgate"}, {"type": "tuning"}]}`, "spec.config.plugins: Invalid value: 2"},
		{`{"plugins": [{"type": "bridge"}]}`, `spec.config.plugins[0].type: Unsupported value: "bridge"`},
		{`{"type": "podgate"}`, "spec.config.ipam: Required value"},
		{`{"type": "podgate", "ipam": {"type": "dhcp"}}`, "spec.config.ipam.type: Unsupported value"},
		{`{"type": "podgate", "ipam": {}}`, "spec.config.ipam.subnet: Required value"},
		{`{"type": "podgate", "ipam": {"subnet": "172.30.0.0"}}`, "spec.config.ipam.subnet: Invalid value"},
		{`{"type": "podgate", "ipam": {"subnet": "172.30.0.0/30"}}`, "too small"},
		{`{"type": "podgate", "ipam": {"subnet": "127.1.0.0/16"}}`, "must be of addresses that hosts may have"},
		{`{"type": "podgate", "mtu": 100, "ipam": {"subnet": "172.30.0.0/24"}}`, "spec.config.mtu: Invalid value: 100"},
		{`{"type": "podgate", "ipam": {"subnet": "172.30.0.0/24", "gateway": "172.30.1.1"}}`, "spec.config.ipam.gateway: Invalid value"},
		{`{"type": "podgate", "ipam": {"subnet": "172.30.0.0/24", "rangeStart": "172.30.0.9", "rangeEnd": "172.30.0.8"}}`, "is before rangeStart"},
		{`{"type": "podgate", "ipam": {"ranges": [[{"subnet": "172.30.0.0/24"}], [{"subnet": "172.30.1.0/24"}]]}}`, "spec.config.ipam.ranges[1][0].subnet: Invalid value: \"172.30.1.0/24\": a network has at most one subnet a family"},
		{`{"type": "podgate", "ipam": {"subnet": "10.244.7.0/24"}}`, "overlaps the cluster's own 10.244.0.0/16"},
		{`{"type": "podgate", "ipam": {"subnet": "fd00:10:96::/113"}}`, "overlaps the cluster's own fd00:10:96::/112"},
		{`{"type": "podgate", "ipam": {"subnet": "172.30.0.0/24"}}`, "overlaps 172.30.0.0/29 of network default/storage"},
		{`{"type": "podgate", "ipam": {"subnet": "172.32.0.0/24", "routes": [{"dst": "192.0.2.0"}]}}`, "spec.config.ipam.routes[0].dst: Invalid value"},
		{`{"type": "podgate", "ipam": {"subnet": "172.32.0.0/24", "routes": [{"dst": "192.0.2.0/24", "gw": "192.0.2.1"}]}}`, "spec.config.ipam.routes[0].gw: Invalid value"},
		{`{"type": "podgate", "ipam": {"subnet": "172.32.0.0/24", "routes": [{"dst": "10.96.0.0/24", "gw": "172.32.0.9"}]}}`, "overlaps the cluster's own 10.96.0.0/16"},
		{`{"type": "podgate", "ipam": {"subnet": "172.32.0.0/24", "routes": [{"dst": "172.32.0.128/25", "gw": "172.32.0.9"}]}}`, "overlaps 172.32.0.0/24 of network default/bad"},
		{`{"type": "podgate", "ipam": {"subnet": "172.32.0.0/24", "routes": [{"dst": "172.30.0.0/16", "gw": "172.32.0.9"}]}}`, "overlaps 172.30.0.0/29 of network default/storage"},
	}
	for _, tt := range tests {
		s := netStore(t)
		errs := strings.Join(applyText(t, s, definition("bad", tt.config)), "\n")
		if !strings.Contains(errs, "NetworkAttachmentDefinition default/bad: spec.config") || !strings.Contains(errs, tt.want) {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.config, errs, tt.want)
		}
	}
}

// A definition that is renamed in its file finds its subnet free.
func TestRenamedNetworkKeepsItsSubnet(t *testing.T) {
	s := NewStore(Config{}, nil)
	config := `{"type": "podgate", "ipam": {"subnet": "172.30.0.0/24"}}`
	for _, name := range []string{"old", "new"} {
		m, _ := LoadBytes("m", []byte(definition(name, config)))
		s.Sync(m.Objects, nil)
		st := s.State()
		if len(st.Networks) != 1 || st.Networks[Name{"default", name}] == nil || len(st.Problems) != 0 {
			t.Fatalf("%s: networks %v, problems %v", name, st.Networks, st.Problems)
		}
	}
}

// Addresses go round, and those that were asked for by name are left out.
func TestNetworkAddressesGoRound(t *testing.T) {
	n := &network{used: map[netip.Addr]Name{}, last: map[netip.Prefix]netip.Addr{}}
	a := netip.MustParseAddr
	s := &Subnet{Prefix: netip.MustParsePrefix("172.30.0.0/24"), Gateway: a("172.30.0.2"),
		Ranges: [][2]netip.Addr{{a("172.30.0.8"), a("172.30.0.9")}, {a("172.30.0.1"), a("172.30.0.3")}}}
	n.used[a("172.30.0.1")] = Name{"default", "by-name"}
	for _, want := range []string{"172.30.0.8", "172.30.0.9", "172.30.0.3"} {
		got, err := n.free(s)
		if err != nil || got.String() != want {
			t.Fatalf("got %s, %v; want %s", got, err, want)
		}
		n.used[got] = Name{"default", want}
	}
	if got, err := n.free(s); err == nil {
		t.Errorf("got %s of a full network", got)
	}
	delete(n.used, a("172.30.0.9"))
	if got, err := n.free(s); err != nil || got != a("172.30.0.9") {
		t.Errorf("got %s, %v", got, err)
	}
}
