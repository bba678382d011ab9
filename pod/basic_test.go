package pod_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
	"podgate/pod"
	"podgate/stack/link/nstest"
)

// want fails unless text has every one of these lines.
func want(t *testing.T, text string, lines ...string) {
	t.Helper()
	have := "\n" + strings.ReplaceAll(text, "\r", "") + "\n"
	for _, l := range lines {
		if !strings.Contains(have, "\n"+l+"\n") {
			t.Errorf("no line %q in:\n%s", l, text)
		}
	}
}

func TestPodHasItsOwnNetwork(t *testing.T) {
	for _, kind := range []string{"", pod.Veth} {
		t.Run("nic="+kind, func(t *testing.T) {
			w := start(t, func(c *pod.Config) { c.NICKind = kind })
			w.prober()
			w.run(newPod(1, "a"), newPod(2, "b", works("serve", ":80"), probedTCP(80)))
			w.awaitReady("a", "b")
			if kind != "" && w.kinds[podName("a")] != kind {
				t.Errorf("NIC is %q, want %q", w.kinds[podName("a")], kind)
			}
			out := w.must("a", "addrs")
			want(t, out, "lo 65536  true [127.0.0.1/8 ::1/128]")
			if eth0 := "eth0 65520 0a:58:0a:f4:00:05 true [10.244.0.5/16 fd00:10:244::5/64"; !strings.Contains(out, eth0) {
				t.Errorf("no %q in:\n%s", eth0, out)
			}
			for _, c := range []struct{ url, from string }{
				{"http://10.244.0.6/etc/hosts", "10.244.0.5:"},
				{"http://[fd00:10:244::6]/etc/hosts", "[fd00:10:244::5]:"},
			} {
				if out := w.must("a", "get", c.url); !strings.HasPrefix(out, c.from) {
					t.Errorf("%s sees %q, want the client's own address %s", c.url, out, c.from)
				}
			}
			// What listens on the host's loopback is not there, and any port may be bound.
			if _, code, _ := w.exec("a", "dial", "tcp", "127.0.0.1:80"); code == 0 {
				t.Error("loopback of a pod is not its own")
			}
		})
	}
}

// What a process sends first arrives, of every family.
func TestNothingIsLostBeforeTheLinkCarries(t *testing.T) {
	nstest.Need(t, "ping")
	for _, kind := range []string{"", pod.Veth} {
		t.Run("nic="+kind, func(t *testing.T) {
			w := start(t, func(c *pod.Config) { c.NICKind = kind })
			const n = 20
			for i := range n {
				w.run(newPod(i, fmt.Sprint("p", i), func(p *corev1.Pod) {
					p.Spec.RestartPolicy = corev1.RestartPolicyNever
					p.Spec.Containers[0].Command = []string{"sh", "-c", "ping -c1 -W2 10.244.0.1 && ping -c1 -W2 fd00:10:244::1"}
				}))
			}
			for i := range n {
				name := fmt.Sprint("p", i)
				p := w.await(name, "to end", func(p *corev1.Pod) bool {
					return p != nil && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed)
				})
				if p.Status.Phase != corev1.PodSucceeded {
					t.Errorf("%s lost its first packet", name)
				}
			}
		})
	}
}

func TestPodSeesItsOwnFilesAndName(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", func(p *corev1.Pod) {
		p.Spec.Hostname, p.Spec.Subdomain = "bee", "hive"
		p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"x.example", "y.example"}}}
		p.Spec.DNSConfig = &corev1.PodDNSConfig{Searches: []string{"example.org"}}
	}), newPod(2, "b"))
	w.awaitReady("a", "b")
	want(t, w.must("a", "cat", "/etc/hosts"),
		"# Kubernetes-managed hosts file.",
		"127.0.0.1\tlocalhost",
		"10.244.0.5\tbee.hive.default.svc.cluster.local\tbee",
		"fd00:10:244::5\tbee.hive.default.svc.cluster.local\tbee",
		"192.0.2.1\tx.example\ty.example")
	want(t, w.must("a", "cat", "/etc/resolv.conf"),
		"nameserver 10.96.0.10", "nameserver fd00:10:96::a", "options ndots:5")
	want(t, w.must("a", "hostname"), "bee")
	want(t, w.must("a", "cat", "/etc/hostname"), "bee")
	want(t, w.must("b", "hostname"), "b")
	if h, err := os.Hostname(); err != nil || h == "bee" || h == "b" {
		t.Errorf("the host is called %q, %v", h, err)
	}
}

func TestContainerEnvironmentIsClean(t *testing.T) {
	t.Setenv("OF_THE_GATEWAY", "1")
	w := start(t, nil)
	w.run(newPod(1, "a", func(p *corev1.Pod) {
		p.Spec.Containers[0].Env = []corev1.EnvVar{
			{Name: "GREETING", Value: "hello"},
			{Name: "WHO", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		}
	}))
	w.awaitReady("a")
	out := w.must("a", "env")
	want(t, out, "GREETING=hello", "WHO=a", "HOSTNAME=a")
	for _, bad := range []string{"OF_THE_GATEWAY", "PODGATE_KEEPER"} {
		if strings.Contains(out, bad) {
			t.Errorf("%s is visible in:\n%s", bad, out)
		}
	}
	// podgate itself is on the PATH, also if its file is gone by then.
	if out, code, err := w.execRaw("a", nil, "podgate", "workload", "echo", "found"); code != 0 || out != "found\n" {
		t.Errorf("podgate in a pod: exit %d, %v: %s", code, err, out)
	}
}

func TestVolumesAppearWhereTheyAreMounted(t *testing.T) {
	w := start(t, nil)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	name := func(n string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: n} }
	w.edit(func(st *kube.State) {
		st.ConfigMaps[podName("settings")] = &corev1.ConfigMap{ObjectMeta: name("settings"), Data: map[string]string{"a.conf": "one\n"}}
		st.Secrets[podName("key")] = &corev1.Secret{ObjectMeta: name("key"), Data: map[string][]byte{"pem": []byte("secret\n")}}
	})
	w.run(newPod(1, "a", func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": "x"}
		p.Spec.Volumes = []corev1.Volume{
			{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
			{Name: "key", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "key"}}},
			{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}},
			{Name: "me", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		}
		second := p.Spec.Containers[0].DeepCopy()
		second.Name = "second"
		second.VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/elsewhere"}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
			{Name: "settings", MountPath: "/etc/podgate-test/conf.d"},
			{Name: "settings", MountPath: "/etc/podgate-test-file", SubPath: "a.conf"},
			{Name: "key", MountPath: "/podgate-test-key"},
			{Name: "scratch", MountPath: "/podgate-test-data/deep/down"},
			{Name: "host", MountPath: "/opt", ReadOnly: true},
			{Name: "me", MountPath: "/podgate-test-me"},
		}
		p.Spec.Containers = append(p.Spec.Containers, *second)
	}))
	w.awaitReady("a")
	want(t, w.must("a", "cat", "/etc/podgate-test/conf.d/a.conf", "/podgate-test-key/pem", "/opt/f", "/podgate-test-me/labels"),
		"one", "secret", "from the host", `app="x"`)
	w.must("a", "write", "/podgate-test-data/deep/down/f", "kept")
	if out, code, _ := w.exec("a", "write", "/opt/g", "x"); code == 0 {
		t.Errorf("a read-only mount was written to: %s", out)
	}
	// The rest of the file system is as it was.
	w.must("a", "stat", "/etc/passwd")
	w.must("a", "stat", "/usr/bin")
	want(t, w.must("a", "hostname"), "a")
	want(t, w.must("a", "cat", "/etc/hostname"), "a")
	for _, p := range []string{"/etc/podgate-test", "/podgate-test-key", "/podgate-test-data"} {
		if _, err := os.Stat(p); err == nil {
			t.Errorf("%s was made on the host", p)
		}
	}

	w.edit(func(st *kube.State) {
		st.ConfigMaps[podName("settings")] = &corev1.ConfigMap{ObjectMeta: name("settings"), Data: map[string]string{"a.conf": "two\n"}}
	})
	w.eventually("a changed ConfigMap to arrive", func() bool {
		return w.must("a", "cat", "/etc/podgate-test/conf.d/a.conf") == "two\n"
	})
}

func TestMissingVolumeSourceIsReportedAndAwaited(t *testing.T) {
	w := start(t, nil)
	w.run(newPod(1, "a", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "later"}}}}
	}), newPod(2, "b"))
	w.awaitReady("b") // undisturbed
	w.await("a", "waiting for its secret", func(p *corev1.Pod) bool {
		return p.Status.Message == `volume "v": secret "later" not found` && p.Status.Phase == corev1.PodPending
	})
	w.edit(func(st *kube.State) {
		st.Secrets[podName("later")] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "later"}}
	})
	w.awaitReady("a")
}

func TestFailedAttachIsReported(t *testing.T) {
	w := start(t, func(c *pod.Config) { c.NICKind = "tap" })
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		f.Close()
		w.run(newPod(1, "a"))
		w.awaitReady("a")
		return
	}
	w.run(newPod(1, "a"))
	w.await("a", "refused a TAP", func(p *corev1.Pod) bool {
		return p.Status.Reason == "FailedCreatePodSandBox" && strings.Contains(p.Status.Message, "/dev/net/tun")
	})
}

func TestHostNetworkPodIsInTheHostsNetwork(t *testing.T) {
	w := start(t, nil)
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	w.run(newPod(1, "a", func(p *corev1.Pod) { p.Spec.HostNetwork = true }), newPod(2, "b"))
	w.awaitReady("a", "b")
	if got := w.must("a", "readlink", "/proc/self/ns/net"); got != host+"\n" {
		t.Errorf("hostNetwork pod is in %s, the host in %s", got, host)
	}
	if got := w.must("b", "readlink", "/proc/self/ns/net"); got == host+"\n" {
		t.Error("an ordinary pod is in the host's network")
	}
}

func TestContainersHaveTheCapabilitiesOfContainers(t *testing.T) {
	w := start(t, nil)
	with := func(sc corev1.SecurityContext) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = &sc }
	}
	yes := true
	admin := []corev1.Capability{"NET_ADMIN"}
	all := []corev1.Capability{"ALL"}
	pods := []struct {
		name string
		sc   corev1.SecurityContext
		may  bool
	}{
		{"plain", corev1.SecurityContext{}, false},
		{"added", corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: admin}}, true},
		{"only", corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: admin, Drop: all}}, true},
		{"none", corev1.SecurityContext{Capabilities: &corev1.Capabilities{Drop: all}}, false},
		{"but", corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: all, Drop: admin}}, false},
		{"privileged", corev1.SecurityContext{Privileged: &yes}, true},
	}
	for i, p := range pods {
		w.run(newPod(i+1, p.name, with(p.sc)))
	}
	for _, p := range pods {
		w.awaitReady(p.name)
		if out, code, err := w.exec(p.name, "readdress"); (code == 0) != p.may || err != nil {
			t.Errorf("%s: changing an address: exit %d, %v: %s", p.name, code, err, out)
		}
	}
}
