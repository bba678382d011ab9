package kube

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
)

func configMap(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {v: %q}\n---\n", name, value)
}

func TestSync(t *testing.T) {
	s := testStore(Config{})
	sync := func(file string) string {
		m, ps := LoadBytes("test.yaml", []byte(file))
		return said(s.Sync(m.Objects, ps))
	}
	value := func(name string) string {
		if m := s.State().ConfigMaps[Name{"default", name}]; m != nil {
			return m.Data["v"]
		}
		return "none"
	}
	s.Apply(load(t, configMap("applied", "1")))
	if got, want := sync(configMap("a", "1")+configMap("b", "1")), "configmap/a created\nconfigmap/b created"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	if got, want := sync(configMap("a", "2")), "configmap/a configured\nconfigmap \"b\" deleted"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := value("applied"); got != "1" {
		t.Errorf("got %s: what came by Apply is gone", got)
	}

	// What a person did later stays until the file changes.
	s.Delete(load(t, configMap("a", "")))
	if got := sync(configMap("a", "2")); got != "" || value("a") != "none" {
		t.Errorf("got %s, want nothing for a file that did not change", got)
	}
	if got := sync(configMap("a", "3")); got != "configmap/a created" {
		t.Errorf("got %s", got)
	}

	// A broken file deletes nothing, a fixed one goes on.
	if got := sync("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: [\n"); got != "" || value("a") != "3" {
		t.Errorf("got %s, a is %s", got, value("a"))
	}
	if ps := s.State().Problems; len(ps) != 1 || ps[0].File != "test.yaml" {
		t.Errorf("got problems %v", ps)
	}
	if got := sync(""); got != `configmap "a" deleted` || len(s.State().Problems) != 0 {
		t.Errorf("got %s, problems %v", got, s.State().Problems)
	}
}

func TestSyncKeepsTheLastGoodVersionOfARejectedObject(t *testing.T) {
	s := testStore(Config{})
	sync := func(port string) {
		m, ps := LoadBytes("test.yaml", []byte("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: "+port+"}]}"))
		s.Sync(m.Objects, ps)
	}
	sync("80")
	sync("0")
	st := s.State()
	if svc := st.Services[Name{"default", "a"}]; svc == nil || svc.Spec.Ports[0].Port != 80 || len(st.Problems) != 1 {
		t.Errorf("got %v, problems %v", svc, st.Problems)
	}
	sync("81")
	st = s.State()
	if svc := st.Services[Name{"default", "a"}]; svc.Spec.Ports[0].Port != 81 || len(st.Problems) != 0 {
		t.Errorf("got %v, problems %v", svc, st.Problems)
	}
}

func TestSyncOfANamespaceThatOthersAreIn(t *testing.T) {
	s := testStore(Config{})
	ns := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}\n---\n"
	both := load(t, ns+web)
	s.Sync(both, nil)
	s.Sync(load(t, web), nil)
	st := s.State()
	if n := st.Namespaces["shop"]; n == nil || n.Labels["a"] != "" || st.Services[Name{"shop", "web"}] == nil {
		t.Errorf("got %v, want the namespace without its label and all that is in it", n)
	}
}

func TestSyncKeepsWhatCameFromStandardInput(t *testing.T) {
	s := testStore(Config{})
	m, ps := Load([]string{"-"}, strings.NewReader(configMap("a", "1")+"kind: ["))
	s.Sync(m.Objects, ps)
	s.Sync(nil, nil)
	if st := s.State(); st.ConfigMaps[Name{"default", "a"}] == nil || len(st.Problems) != 1 {
		t.Errorf("got %v, problems %v", st.ConfigMaps, st.Problems)
	}
}

func TestWatcherIgnoresWhatIsBesideItsFiles(t *testing.T) {
	w := &Watcher{Paths: []string{"-", "shop", "/etc/x/one.yaml", "."}}
	for name, want := range map[string]bool{
		"shop/a.yaml": true, "shop/sub/a.json": true, "shop/sub": true, "shop/notes.txt": false, "shop/.a.yaml.swp": false,
		"/etc/x/one.yaml": true, "/etc/x/two.yaml": false, "/etc/x": false, "b.yml": true, "podgate.yaml": false,
	} {
		if got := w.concerns(fsnotify.Event{Name: name, Op: fsnotify.Write}); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if w.concerns(fsnotify.Event{Name: "shop/a.yaml", Op: fsnotify.Chmod}) {
		t.Error("a change of mode is no change")
	}
}

func TestWatcher(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		// As editors do: another name first.
		tmp := filepath.Join(dir, "."+name+".tmp")
		if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", configMap("a", "1"))
	write("b.yaml", configMap("b", "1"))

	s := testStore(Config{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	w := &Watcher{Store: s, Paths: []string{dir}, Log: slog.New(slog.DiscardHandler), Quiet: time.Millisecond}
	changed, done := s.Subscribe()
	defer done()
	go func() { ended <- w.Run(ctx) }()
	await := func(what string, f func(*State) bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for !f(s.State()) {
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("not in time: %s", what)
			}
		}
	}
	value := func(name, v string) func(*State) bool {
		return func(st *State) bool {
			m := st.ConfigMaps[Name{"default", name}]
			return m == nil && v == "" || m != nil && m.Data["v"] == v
		}
	}
	await("the first reading", func(st *State) bool { return value("a", "1")(st) && value("b", "1")(st) })
	write("a.yaml", configMap("a", "2"))
	await("a changed file", value("a", "2"))
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	await("a removed file", value("b", ""))
	write("a.yaml", "kind: [")
	await("a broken file", func(st *State) bool { return len(st.Problems) == 1 && value("a", "2")(st) })
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("c.yaml", configMap("c", "1"))
	await("a new file", value("c", "1"))
	if err := os.Rename(filepath.Join(dir, "c.yaml"), filepath.Join(dir, "sub", "c.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "d.yaml"), []byte(configMap("d", "1")), 0o644); err != nil {
		t.Fatal(err)
	}
	await("a file in a new folder", func(st *State) bool { return value("d", "1")(st) && value("c", "1")(st) })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSubscribeCoalesces(t *testing.T) {
	s := testStore(Config{})
	changed, cancel := s.Subscribe()
	<-changed // at first
	for i := range 5 {
		s.Apply(load(t, configMap("a", fmt.Sprint(i))))
	}
	<-changed
	select {
	case <-changed:
		t.Error("woken twice")
	default:
	}
	s.Apply(load(t, configMap("a", "4")))
	select {
	case <-changed:
		t.Error("woken by nothing")
	default:
	}
	cancel()
	s.Apply(load(t, configMap("a", "x")))
	select {
	case <-changed:
		t.Error("woken after cancel")
	default:
	}
}

func TestStatesShareWhatDidNotChange(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, web))
	a := s.State()
	s.Apply(load(t, web))
	if s.State() != a {
		t.Error("a new State for nothing")
	}
	n := podsOf(s, "shop")
	become(s, n[0], true)
	b := s.State()
	if b.Generation != a.Generation+1 {
		t.Errorf("got generation %d after %d", b.Generation, a.Generation)
	}
	if a.Pods[n[0]] == b.Pods[n[0]] || IsReady(a.Pods[n[0]]) {
		t.Error("the old State changed")
	}
	if a.Pods[n[1]] != b.Pods[n[1]] || a.Services[Name{"shop", "web"}] != b.Services[Name{"shop", "web"}] {
		t.Error("what did not change is another pointer")
	}
	kept := 0
	for k, e := range a.EndpointSlices.All() {
		if b.EndpointSlices.Get(k) == e {
			kept++
		}
	}
	if kept != a.EndpointSlices.Len()-1 {
		t.Errorf("%d of %d slices are shared, want all but one", kept, a.EndpointSlices.Len())
	}
}

func TestWarnings(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, web+`
---
apiVersion: v1
kind: Service
metadata: {name: lost, namespace: shop}
spec: {selector: {app: wbe}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: named, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: grpc}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front, namespace: shop}
spec:
  tls: [{secretName: cert}]
  rules:
  - http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: wbe, port: {number: 80}}}}
      - {path: /a, pathType: Prefix, backend: {service: {name: web, port: {number: 81}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: wbe}}}
`))
	var got []string
	for _, p := range s.Warnings() {
		got = append(got, p.String())
	}
	want := `test.yaml:39: Ingress shop/front: warning: spec.tls[0].secretName: no Secret "cert" in namespace "shop"
test.yaml:43: Ingress shop/front: warning: spec.rules[0].http.paths[0].backend.service.name: no Service "wbe" in namespace "shop"
test.yaml:44: Ingress shop/front: warning: spec.rules[0].http.paths[1].backend.service.port.number: Service "web" has no port 81
test.yaml:28: Service shop/lost: warning: spec.selector: selects no pod in namespace "shop"
test.yaml:33: Service shop/named: warning: spec.ports[0].targetPort: no pod that is selected has a TCP container port named "grpc"
test.yaml:49: NetworkPolicy shop/deny: info: spec.podSelector: selects no pod in namespace "shop"`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

func TestStatusIsTheRuntimesAndAddressesAreOurs(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}"))
	n := Name{"default", "p"}
	s.SetPodStatus(n, string(s.State().Pods[n].UID), corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "192.0.2.1"})
	if p := s.State().Pods[n]; p.Status.PodIP != "10.244.0.4" || p.Status.Phase != corev1.PodRunning {
		t.Errorf("got %v", p.Status)
	}
	g := s.State().Generation
	s.SetPodStatus(n, "somebody else", corev1.PodStatus{Phase: corev1.PodFailed})
	if s.State().Generation != g {
		t.Error("the status of another pod was taken")
	}
}
