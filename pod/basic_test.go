package pod_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podgate/pod"
)

func TestPodHasItsOwnNetworkHostnameAndFiles(t *testing.T) {
	for _, kind := range []string{"", pod.Veth} {
		t.Run("nic="+kind, func(t *testing.T) {
			w := start(t, func(c *pod.Config) { c.NICKind = kind })
			w.run(newPod(1, "a"), newPod(2, "b", works("serve", ":80"), func(p *corev1.Pod) {
				p.Spec.Hostname, p.Spec.Subdomain = "bee", "hive"
			}))
			w.awaitReady("a", "b")
			t.Log(w.must("a", "addrs"))
			t.Log(w.must("a", "cat", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"))
			t.Log(w.must("b", "cat", "/etc/hosts"), w.must("b", "hostname"))
			t.Log(w.must("a", "env"))
			t.Log(w.must("a", "get", "http://10.244.0.6/"))
			t.Log(w.must("a", "get", "http://[fd00:10:244::6]/"))
		})
	}
}
