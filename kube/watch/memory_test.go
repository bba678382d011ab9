package watch

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"podgate/kube"
)

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "1", ResourceVersion: "7"}
}

// kept is a file with a few objects, and the store that they were in.
func kept(t *testing.T) (file string, store *kube.Store) {
	t.Helper()
	store = kube.NewReplica(kube.Config{NodeName: "node-1"}, time.Now)
	store.Follow(kube.Batch{Whole: map[string][]kube.API{
		"Node":          {&corev1.Node{ObjectMeta: meta("", "node-1"), Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.0.0/24"}}}},
		"Service":       {&corev1.Service{ObjectMeta: meta("shop", "web"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.80", ClusterIPs: []string{"10.96.0.80"}}}},
		"NetworkPolicy": {&networkingv1.NetworkPolicy{ObjectMeta: meta("shop", "deny")}},
		"Secret":        {&corev1.Secret{ObjectMeta: meta("shop", "tls"), Data: map[string][]byte{"tls.key": {0, 1, 255}}}},
	}})
	file = filepath.Join(t.TempDir(), "state", "cluster")
	c := &Cluster{rest: &rest.Config{Host: "https://192.0.2.1:6443"}}
	head := memoryHead{Version: memoryVersion, Server: c.rest.Host, Node: "node-1", Written: time.Unix(1e9, 0).UTC(), ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}
	if err := writeMemory(file, head, store); err != nil {
		t.Fatal(err)
	}
	return file, store
}

func TestRecall(t *testing.T) {
	file, was := kept(t)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v; want 0600: there are Secrets in it", info.Mode(), err)
	}
	c := &Cluster{rest: &rest.Config{Host: "https://192.0.2.1:6443"}}
	m, err := c.Recall(file, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	if n := m.Node("node-1"); n == nil || n.Spec.PodCIDRs[0] != "10.244.0.0/24" || m.Node("node-2") != nil {
		t.Errorf("got Node %v", n)
	}
	if got, want := m.ServiceCIDRs, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}; !reflect.DeepEqual(got, want) || m.Written.Unix() != 1e9 {
		t.Errorf("got %v of %v, want %v", got, m.Written, want)
	}
	is := kube.NewReplica(kube.Config{NodeName: "node-1"}, time.Now)
	is.Follow(m.Batch())
	for _, k := range remembered {
		if got, want := is.Copies(k.name), was.Copies(k.name); !reflect.DeepEqual(got, want) {
			t.Errorf("got %ss %v, want %v", k.name, got, want)
		}
	}
	if st := is.State(); st.Services[kube.Name{Namespace: "kube-system", Name: "kube-dns"}] == nil || len(st.Services) != 2 {
		t.Errorf("got Services %v, want the stand-in for DNS beside the one", st.Services)
	}
}

func TestRecallRefuses(t *testing.T) {
	file, _ := kept(t)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	whole := string(data)
	for _, c := range []struct{ name, text, server, node, want string }{
		{"another node", whole, "s", "n", "it is about node node-1 of https://192.0.2.1:6443, not n of s"},
		{"half a file", whole[:len(whole)/2], "https://192.0.2.1:6443", "node-1", "it ends after"},
		{"no end", whole[:strings.LastIndex(whole, "end")], "https://192.0.2.1:6443", "node-1", "it ends after 4 objects"},
		{"an object too few", strings.Replace(whole, "end 4", "end 5", 1), "https://192.0.2.1:6443", "node-1", `it has 4 objects, and says "5"`},
		{"another version", strings.Replace(whole, `"version":1`, `"version":2`, 1), "https://192.0.2.1:6443", "node-1", "another version"},
		{"something else", "hello\n", "", "", "not the state of a cluster"},
		{"nothing", "", "", "", "not the state of a cluster"},
		{"an unknown kind", strings.Replace(whole, "NetworkPolicy ", "Frob ", 1), "https://192.0.2.1:6443", "node-1", `unknown kind "Frob"`},
		{"a broken object", strings.Replace(whole, "NetworkPolicy {", "NetworkPolicy [", 1), "https://192.0.2.1:6443", "node-1", "NetworkPolicy: "},
	} {
		if _, err := readMemory(strings.NewReader(c.text), c.server, c.node); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	c := &Cluster{rest: &rest.Config{}}
	if _, err := c.Recall(file+"s", "node-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
}

// TestKeep: what changes is written down by and by.
func TestKeep(t *testing.T) {
	file, store := kept(t)
	c, err := Connect(Config{Kubeconfig: kubeconfig(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Keep(ctx, store, file, "node-1", nil); close(done) }()
	store.Follow(kube.Batch{Changed: []kube.API{&corev1.Namespace{ObjectMeta: meta("", "new")}}})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if m, err := c.Recall(file, "node-1"); err == nil && len(m.objs["Namespace"]) == 1 {
			break
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("it is not written")
		}
	}
	cancel()
	<-done
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

func kubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://192.0.2.1:6443'}}]\nusers: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
