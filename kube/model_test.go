package kube

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// TestAnyOrderOfEventsEndsRight drives the store with random changes from users
// and from a runtime, and compares what it keeps up to date bit by bit with what
// a naive reading of the same objects says.
func TestAnyOrderOfEventsEndsRight(t *testing.T) {
	pool := []string{
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: web}}\nspec: {containers: [{name: c, image: i}]}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: api}}\nspec: {containers: [{name: c, image: i}]}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: web}}\nspec: {containers: [{name: c, image: j, ports: [{name: http, containerPort: 9}]}]}",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: db-1, namespace: shop, labels: {app: db}}\nspec: {containers: [{name: c, image: j}]}",
		web,
		strings.Replace(web, "replicas: 3", "replicas: 1", 1),
		strings.Replace(web, "image: x", "image: new", 1),
		strings.NewReplacer("replicas: 3", "replicas: 2\n  strategy: {type: Recreate}", "image: x", "image: newer").Replace(web),
		strings.Replace(db, "name: db}", "name: db, namespace: shop}", 1),
		strings.NewReplacer("name: db}", "name: db, namespace: shop}", "replicas: 3", "replicas: 2\n  podManagementPolicy: Parallel", "image: x", "image: other").Replace(db),
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: api}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}",
		"apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, selector: {app: db}}",
		"apiVersion: v1\nkind: Service\nmetadata: {name: all, namespace: shop}\nspec: {type: NodePort, publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80, nodePort: 30500, targetPort: http}]}",
		"apiVersion: v1\nkind: Service\nmetadata: {name: thief, namespace: shop}\nspec: {type: NodePort, selector: {app: db}, ports: [{port: 80, nodePort: 30500}]}",
		"apiVersion: v1\nkind: Endpoints\nmetadata: {name: all, namespace: shop}\nsubsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}]",
	}
	var objs [][]Object
	for _, m := range pool {
		m, ps := LoadBytes("pool.yaml", []byte(m))
		if len(ps) > 0 {
			t.Fatal(ps)
		}
		objs = append(objs, m.Objects)
	}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := testStore(Config{})
		var log []string
		for range 120 {
			pods := podsOf(s, "shop")
			i := r.IntN(len(objs))
			switch op := r.IntN(10); {
			case op < 4:
				log = append(log, said(s.Apply(objs[i])))
			case op == 4:
				log = append(log, said(s.Delete(objs[i])))
			case len(pods) > 0:
				n := pods[r.IntN(len(pods))]
				pod := s.State().Pods[n]
				switch {
				case op < 8:
					become(s, n, op != 5)
					log = append(log, fmt.Sprint(n, " ready ", op != 5))
				case op == 8:
					s.SetPodStatus(n, string(pod.UID), corev1.PodStatus{Phase: corev1.PodFailed})
					log = append(log, fmt.Sprint(n, " failed"))
				default:
					s.PodGone(n, string(pod.UID))
					log = append(log, fmt.Sprint(n, " gone"))
				}
			}
			consistent(t, s.State())
			compareEndpoints(t, s.State())
			if t.Failed() {
				t.Fatalf("seed %d, after\n%s", seed, strings.Join(log, "\n"))
			}
		}
		play(s, "shop", func() {})
		consistent(t, s.State())
		for n, d := range s.State().Deployments {
			if d.Status.ReadyReplicas != *d.Spec.Replicas || d.Status.UpdatedReplicas != *d.Spec.Replicas {
				t.Errorf("seed %d: %s: got status %+v, want %d", seed, n, d.Status, *d.Spec.Replicas)
			}
		}
		for n, d := range s.State().StatefulSets {
			blocked := s.records[key{"Pod", Name{"shop", "db-1"}}] != nil
			if !blocked && (d.Status.ReadyReplicas != *d.Spec.Replicas || d.Status.UpdatedReplicas != *d.Spec.Replicas) {
				t.Errorf("seed %d: %s: got status %+v, want %d", seed, n, d.Status, *d.Spec.Replicas)
			}
		}
		if t.Failed() {
			t.Fatalf("after\n%s", strings.Join(log, "\n"))
		}
	}
}

// compareEndpoints compares the addresses in the slices of each Service with
// selector with those of the pods that it selects.
func compareEndpoints(t *testing.T, st *State) {
	t.Helper()
	got, want := map[Name][]string{}, map[Name][]string{}
	for n, e := range st.EndpointSlices.All() {
		svc := Name{n.Namespace, e.Labels[discoveryv1.LabelServiceName]}
		for _, ep := range e.Endpoints {
			if ep.TargetRef != nil {
				got[svc] = append(got[svc], fmt.Sprint(ep.Addresses[0], *ep.Conditions.Ready, *ep.Conditions.Terminating, len(e.Ports)))
			}
		}
	}
	for n, svc := range st.Services {
		if len(svc.Spec.Selector) == 0 {
			continue
		}
		for pn, pod := range st.Pods {
			if pn.Namespace != n.Namespace || !labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) || isFinished(pod) {
				continue
			}
			for i := range svc.Spec.IPFamilies {
				ending := pod.DeletionTimestamp != nil
				ready := svc.Spec.PublishNotReadyAddresses || IsReady(pod) && !ending
				want[n] = append(want[n], fmt.Sprint(pod.Status.PodIPs[i].IP, ready, ending, len(endpointPorts(svc, pod))))
			}
		}
	}
	for n := range st.Services {
		slices.Sort(got[n])
		slices.Sort(want[n])
		if !slices.Equal(got[n], want[n]) {
			t.Errorf("%s: got endpoints %v, want %v", n, got[n], want[n])
		}
	}
	for n := range got {
		if st.Services[n] == nil {
			t.Errorf("endpoints of %s, which is gone", n)
		}
	}
}

// many Services and pods, in one namespace.
func crowd(t testing.TB, n int) *Store {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {selector: {app: a%d}, ports: [{port: 80}]}\n---\n", i, i)
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata: {name: p%d, labels: {app: a%d, all: same}}\nspec: {containers: [{name: c, image: i}]}\n---\n", i, i)
	}
	s := testStore(Config{})
	s.Apply(load(t, b.String()))
	return s
}

func BenchmarkApplyOneOf10000(b *testing.B) {
	s := crowd(b, 10000)
	one := [2][]Object{}
	for i := range one {
		one[i] = load(b, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s77}\nspec: {selector: {app: a77}, ports: [{port: %d}]}", 80+i))
	}
	for i := 0; b.Loop(); i++ {
		s.Apply(one[i%2])
	}
}

func BenchmarkPodStatusOneOf10000(b *testing.B) {
	s := crowd(b, 10000)
	for i := 0; b.Loop(); i++ {
		become(s, Name{"default", "p77"}, i%2 == 0)
	}
}
