package kube

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func podIPs(p *corev1.Pod) string {
	var all []string
	for _, ip := range p.Status.PodIPs {
		all = append(all, ip.IP)
	}
	return strings.Join(all, " ")
}

// An attached pod has addresses of its own until it is detached, and nobody else
// is given them.
func TestAttach(t *testing.T) {
	s := testStore(Config{})
	free := s.FreePodAddresses()
	web := Name{"shop", "web"}
	p, err := s.Attach(Attachment{Name: web, Labels: map[string]string{"app": "web"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.4")}})
	if err != nil || IsReady(p) || podIPs(p) != "10.244.0.4" {
		t.Fatalf("%v, %v", p, err)
	}
	s.MarkReady(web)
	if p := s.State().Pods[web]; !IsReady(p) || !IsAttached(p) || p.DeletionTimestamp != nil {
		t.Errorf("not ready: %+v", p.Status)
	}
	other, err := s.Attach(Attachment{Name: Name{"shop", "api"}})
	if err != nil || podIPs(other) != "10.244.0.5 fd00:10:244::5" {
		t.Errorf("the other one has %q, %v", podIPs(other), err)
	}
	for _, c := range []struct {
		name Name
		addr string
		want string
	}{
		{web, "10.244.0.9", "there is a pod shop/web already"},
		{Name{"shop", "x"}, "10.244.0.4", "belongs to pod shop/web"},
		{Name{"shop", "x"}, "10.244.0.1", "the gateway's own"},
		{Name{"shop", "x"}, "10.244.255.255", "none of a host"},
		{Name{"shop", "x"}, "10.96.0.9", "Service range"},
		{Name{"shop", "x"}, "127.0.0.1", "cannot be a pod's"},
		{Name{"shop", "X"}, "10.244.0.9", "pod name"},
	} {
		_, err := s.Attach(Attachment{Name: c.name, Addrs: []netip.Addr{netip.MustParseAddr(c.addr)}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s at %s: %v; want %q", c.name, c.addr, err, c.want)
		}
	}
	s.Detach(web)
	s.Detach(web)
	s.Detach(Name{"shop", "api"})
	if st := s.State(); st.Pods[web] != nil || st.Namespaces["shop"] != nil || s.FreePodAddresses() != free {
		t.Errorf("left behind: %v, %v, %d of %d addresses", st.Pods[web], st.Namespaces["shop"], s.FreePodAddresses(), free)
	}
}

// In a cluster the pod is the API server's, and has the addresses that it was
// attached with before its status says so.
func TestAttachInACluster(t *testing.T) {
	s := NewReplica(Config{NodeName: "node"}, nil)
	web := Name{"shop", "web"}
	api := func(version string, ips ...corev1.PodIP) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u", ResourceVersion: version, Labels: map[string]string{"app": "web"}},
			Spec:       corev1.PodSpec{NodeName: "node"}, Status: corev1.PodStatus{PodIPs: ips},
		}
	}
	if _, err := s.Attach(Attachment{Name: web, By: "podnet"}); err != nil {
		t.Fatal(err)
	}
	s.MarkReady(web)
	if p := s.State().Pods[web]; p == nil || !IsAttached(p) || !IsReady(p) || podIPs(p) != "10.244.0.4 fd00:10:244::4" {
		t.Errorf("before the API server has it: %+v", p)
	}
	s.Follow(Batch{Changed: []API{api("1")}})
	if p := s.State().Pods[web]; p.Labels["app"] != "web" || IsAttached(p) || podIPs(p) != "10.244.0.4 fd00:10:244::4" {
		t.Errorf("without a status: %+v", p)
	}
	s.Follow(Batch{Changed: []API{api("2", corev1.PodIP{IP: "10.244.9.9"})}})
	if p := s.State().Pods[web]; podIPs(p) != "10.244.0.4 fd00:10:244::4" {
		t.Errorf("with the status of an earlier sandbox: %s", podIPs(p))
	}
	s.Detach(web)
	if p := s.State().Pods[web]; p == nil || p.UID != "u" {
		t.Errorf("detached: %+v", p)
	}
	s.Follow(Batch{Gone: []Ref{{"Pod", web}}})
	if p := s.State().Pods[web]; p != nil {
		t.Errorf("gone: %+v", p)
	}
}
