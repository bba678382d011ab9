package kube

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// testStore is a store whose clock stands still.
func testStore(cfg Config) *Store {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	return NewStore(cfg, func() time.Time { return now })
}

// load reads a manifest that must be right.
func load(t testing.TB, manifest string) []Object {
	t.Helper()
	m, ps := LoadBytes("test.yaml", []byte(manifest))
	for _, p := range ps {
		t.Errorf("load: %s", p)
	}
	return m.Objects
}

func said(changes []Change) string {
	var out []string
	for _, c := range changes {
		out = append(out, c.String())
	}
	return strings.Join(out, "\n")
}

func become(s *Store, n Name, ready bool) {
	pod := s.State().Pods[n]
	st := corev1.PodStatus{Phase: corev1.PodRunning}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	st.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}, {Type: corev1.ContainersReady, Status: status}}
	s.SetPodStatus(n, string(pod.UID), st)
}

// podsOf are the names of the pods of a namespace, sorted.
func podsOf(s *Store, namespace string) []Name {
	var out []Name
	for n := range s.State().Pods {
		if n.Namespace == namespace {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, compareNames)
	return out
}

const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: x
        ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`

func TestDeploymentAndServiceBecomePodsAndSlices(t *testing.T) {
	s := testStore(Config{})
	if got, want := said(s.Apply(load(t, web))), "service/web created\ndeployment.apps/web created"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	pods := podsOf(s, "shop")
	if len(pods) != 3 {
		t.Fatalf("got pods %v, want 3", pods)
	}
	become(s, pods[0], true)
	st := s.State()
	slices := 0
	for _, e := range st.EndpointSlices.All() {
		if e.Namespace != "shop" {
			continue
		}
		slices++
		if len(e.Endpoints) != 3 || *e.Ports[0].Port != 8080 {
			t.Errorf("got %d endpoints on port %d, want 3 on 8080", len(e.Endpoints), *e.Ports[0].Port)
		}
		for _, ep := range e.Endpoints {
			if got, want := *ep.Conditions.Ready, ep.TargetRef.Name == pods[0].Name; got != want {
				t.Errorf("%s: got ready %v, want %v", ep.TargetRef.Name, got, want)
			}
		}
	}
	if slices != 1 {
		t.Errorf("got %d slices, want 1", slices)
	}
	if st.Namespaces["shop"].Labels[corev1.LabelMetadataName] != "shop" {
		t.Error("the namespace was not made")
	}
}
