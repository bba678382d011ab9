package pod

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodResolver(t *testing.T) {
	cluster := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}
	host := Resolver{[]string{"192.0.2.53"}, []string{"corp.example"}, []string{"edns0"}}
	stub := Resolver{[]string{"127.0.0.53"}, []string{"corp.example"}, nil}
	value := func(s string) *string { return &s }
	config := &corev1.PodDNSConfig{
		Nameservers: []string{"192.0.2.1", "10.96.0.10"},
		Searches:    []string{"extra.example", "svc.cluster.local"},
		Options:     []corev1.PodDNSConfigOption{{Name: "ndots", Value: value("2")}, {Name: "rotate"}},
	}
	inCluster := []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("d%d.example", i))
	}
	for _, c := range []struct {
		name        string
		policy      corev1.DNSPolicy
		hostNetwork bool
		config      *corev1.PodDNSConfig
		host        Resolver
		cluster     []netip.Addr
		want        Resolver
	}{
		{"unset is ClusterFirst", "", false, nil, host, cluster, Resolver{addrStrings(cluster), inCluster, []string{"ndots:5"}}},
		{"ClusterFirst", corev1.DNSClusterFirst, false, nil, host, cluster, Resolver{addrStrings(cluster), inCluster, []string{"ndots:5"}}},
		{"ClusterFirst on the host network is the host's", corev1.DNSClusterFirst, true, nil, host, cluster, host},
		{"ClusterFirstWithHostNet", corev1.DNSClusterFirstWithHostNet, true, nil, host, cluster, Resolver{addrStrings(cluster), inCluster, []string{"ndots:5"}}},
		{"Default", corev1.DNSDefault, false, nil, host, cluster, host},
		{"Default behind a stub", corev1.DNSDefault, false, nil, stub, cluster, Resolver{addrStrings(cluster), []string{"corp.example"}, nil}},
		{"Default on the host network keeps the stub", corev1.DNSDefault, true, nil, stub, cluster, stub},
		{"None", corev1.DNSNone, false, config, host, cluster, Resolver{config.Nameservers, config.Searches, []string{"ndots:2", "rotate"}}},
		{"no cluster DNS", corev1.DNSClusterFirst, false, nil, host, nil, host},
		{"dnsConfig adds and replaces", corev1.DNSClusterFirst, false, config, host, cluster,
			Resolver{append(addrStrings(cluster), "192.0.2.1"), append(inCluster[:4:4], "extra.example"), []string{"ndots:2", "rotate"}}},
		{"limits", corev1.DNSNone, false, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, Searches: many}, host, cluster,
			Resolver{[]string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, many[:32], nil}},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}}
		p.Spec.DNSPolicy, p.Spec.HostNetwork, p.Spec.DNSConfig = c.policy, c.hostNetwork, c.config
		if diff := cmp.Diff(c.want, podResolver(p, c.cluster, "cluster.local", c.host)); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
	}
}

func TestParseResolver(t *testing.T) {
	got := parseResolver([]byte("# comment\nnameserver 192.0.2.1\ndomain old.example\nsearch a.example. b.example .\noptions ndots:2 rotate\nnameserver\n"))
	want := Resolver{[]string{"192.0.2.1"}, []string{"a.example", "b.example", "."}, []string{"ndots:2", "rotate"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	text := "search a.example b.example .\nnameserver 192.0.2.1\noptions ndots:2 rotate\n"
	if got := string(want.file()); got != text {
		t.Errorf("%q, want %q", got, text)
	}
}

func TestHostname(t *testing.T) {
	yes := true
	long := strings.Repeat("a", 62) + "-" + "bcd"
	for _, c := range []struct {
		name, host, sub string
		fqdn            *bool
		want, err       string
	}{
		{"web-0", "", "", nil, "web-0", ""},
		{"web-0", "front", "", nil, "front", ""},
		{"web-0", "", "web", nil, "web-0", ""},
		{"web-0", "", "web", &yes, "web-0.web.shop.svc.cluster.local", ""},
		{"web-0", "", "", &yes, "web-0", ""},
		{long, "", "", nil, strings.Repeat("a", 62), ""},
		{strings.Repeat("a", 40), "", "web", &yes, "", "is too long (64 characters is the max, 67 characters requested)"},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: c.name}}
		p.Spec.Hostname, p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = c.host, c.sub, c.fqdn
		got, err := hostname(p, "cluster.local")
		if got != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s %s %s: %q, %v, want %q, %q", c.name, c.host, c.sub, got, err, c.want, c.err)
		}
	}
}

func TestHostsFileOnTheHostNetworkIsTheHosts(t *testing.T) {
	p := &corev1.Pod{}
	p.Spec.HostNetwork = true
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"a", "b"}}}
	got := string(hostsFile(p, nil, "cluster.local", []byte("127.0.0.1 localhost me\n")))
	want := "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost me\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb\n"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSwitchFileAsksNoDaemonOfTheHost(t *testing.T) {
	got := string(switchFile([]byte("passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files dns\n")))
	if want := "passwd: files systemd\nhosts: files dns\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestImageStandsForACommand(t *testing.T) {
	r := &Runtime{cfg: Config{Images: map[string][]string{
		"nginx": {"web"}, "nginx:1.25": {"old"}, "registry.example:5000/team/app": {"app"},
	}}}
	for ref, want := range map[string]string{
		"nginx":                                  "web",
		"nginx:1.27":                             "web",
		"nginx:1.25":                             "old",
		"nginx@sha256:abc":                       "web",
		"nginx:1.25@sha256:abc":                  "old",
		"registry.example:5000/team/app":         "app",
		"registry.example:5000/team/app:v2@sha2": "app",
		"other":                                  "",
	} {
		if got := strings.Join(r.image(ref), " "); got != want {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
	}
}
