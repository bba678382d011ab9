package kube

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// play is a runtime that makes every pod ready at once and ends pods at once;
// watch is called between its steps.
func play(s *Store, namespace string, watch func()) {
	for again := true; again; {
		again = false
		for _, n := range podsOf(s, namespace) {
			pod := s.State().Pods[n]
			switch {
			case pod == nil:
			case pod.DeletionTimestamp != nil:
				s.PodGone(n, string(pod.UID))
				again = true
			case !IsReady(pod):
				become(s, n, true)
				again = true
			}
			watch()
		}
	}
}

func names(s *Store, namespace string) string {
	var out []string
	for _, n := range podsOf(s, namespace) {
		out = append(out, n.Name)
	}
	return strings.Join(out, " ")
}

func TestDeploymentPodNames(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, web))
	for _, n := range podsOf(s, "shop") {
		pod := s.State().Pods[n]
		m := regexp.MustCompile(`^web-([a-z0-9]{8,10})-[a-z0-9]{5}$`).FindStringSubmatch(n.Name)
		if m == nil {
			t.Fatalf("got name %s", n.Name)
		}
		if got := pod.Labels["pod-template-hash"]; got != m[1] {
			t.Errorf("got pod-template-hash %s, want %s", got, m[1])
		}
		if ref := pod.OwnerReferences[0]; ref.Kind != "ReplicaSet" || ref.Name != "web-"+m[1] || !*ref.Controller {
			t.Errorf("got owner %v", ref)
		}
		if pod.Spec.NodeName != "podgate" || pod.Status.HostIP != "10.244.0.1" {
			t.Errorf("got node %s %s", pod.Spec.NodeName, pod.Status.HostIP)
		}
	}
}

func TestDeploymentScales(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, web))
	before := podsOf(s, "shop")
	become(s, before[1], true)
	s.Apply(load(t, strings.Replace(web, "replicas: 3", "replicas: 1", 1)))
	play(s, "shop", func() {})
	if got := names(s, "shop"); got != before[1].Name {
		t.Errorf("got %s, want the one that is ready, %s", got, before[1].Name)
	}
	s.Apply(load(t, web))
	if got := podsOf(s, "shop"); len(got) != 3 {
		t.Errorf("got %v", got)
	}
	s.Delete(load(t, web))
	play(s, "shop", func() {})
	if got := names(s, "shop"); got != "" {
		t.Errorf("got %s after the Deployment is gone", got)
	}
	if s.State().Namespaces["shop"] != nil {
		t.Error("the namespace that came with its objects is still there")
	}
}

func TestDeploymentRolls(t *testing.T) {
	for _, c := range []struct {
		strategy    string
		most, least int
	}{
		{"{}", 5, 3}, // 4 replicas, 25 % each
		{"{rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}", 4, 3},
		{"{rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}", 6, 4},
		{"{type: Recreate}", 4, 0},
	} {
		t.Run(c.strategy, func(t *testing.T) {
			s := testStore(Config{})
			manifest := strings.Replace(web, "replicas: 3", "replicas: 4\n  strategy: "+c.strategy, 1)
			s.Apply(load(t, manifest))
			play(s, "shop", func() {})
			old := map[string]bool{}
			for _, n := range podsOf(s, "shop") {
				old[n.Name] = true
			}
			s.Apply(load(t, strings.Replace(manifest, "image: x", "image: new", 1)))
			play(s, "shop", func() {
				living, ready, kinds := 0, 0, map[string]bool{}
				for _, p := range s.State().Pods {
					if p.Namespace != "shop" {
						continue
					}
					kinds[p.Spec.Containers[0].Image] = true
					if p.DeletionTimestamp == nil {
						living++
						if IsReady(p) {
							ready++
						}
					}
				}
				if living > c.most || ready < c.least {
					t.Errorf("got %d pods, %d ready, want at most %d and at least %d", living, ready, c.most, c.least)
				}
				if c.strategy == "{type: Recreate}" && len(kinds) > 1 {
					t.Error("old and new pods together")
				}
			})
			pods := podsOf(s, "shop")
			if len(pods) != 4 {
				t.Errorf("got %d pods in the end, want 4", len(pods))
			}
			for _, n := range pods {
				if old[n.Name] || !IsReady(s.State().Pods[n]) {
					t.Errorf("got %s in the end", n)
				}
			}
			if d := s.State().Deployments[Name{"shop", "web"}]; d.Status.ReadyReplicas != 4 || d.Status.UpdatedReplicas != 4 {
				t.Errorf("got status %+v", d.Status)
			}
		})
	}
}

func TestFailedPodsOfAWorkloadAreReplaced(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, web))
	n := podsOf(s, "shop")[0]
	pod := s.State().Pods[n]
	s.SetPodStatus(n, string(pod.UID), corev1.PodStatus{Phase: corev1.PodFailed})
	play(s, "shop", func() {})
	if got := podsOf(s, "shop"); len(got) != 3 || strings.Contains(fmt.Sprint(got), n.Name) {
		t.Errorf("got %v, want three without %s", got, n)
	}
}

const db = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: dbs
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: x}]}
`

func TestStatefulSetIsOrdered(t *testing.T) {
	s := testStore(Config{})
	s.Apply(load(t, db))
	for i, want := range []string{"db-0", "db-0 db-1", "db-0 db-1 db-2", "db-0 db-1 db-2"} {
		if got := names(s, "default"); got != want {
			t.Fatalf("step %d: got %s, want %s", i, got, want)
		}
		become(s, Name{"default", fmt.Sprintf("db-%d", min(i, 2))}, true)
	}
	p := s.State().Pods[Name{"default", "db-1"}]
	if p.Spec.Hostname != "db-1" || p.Spec.Subdomain != "dbs" || p.Labels["statefulset.kubernetes.io/pod-name"] != "db-1" || p.Labels["apps.kubernetes.io/pod-index"] != "1" {
		t.Errorf("got %v %v", p.Spec, p.Labels)
	}

	// Down: the last first, one at a time.
	s.Apply(load(t, strings.Replace(db, "replicas: 3", "replicas: 1", 1)))
	var seen []string
	play(s, "default", func() {
		ending := 0
		for _, n := range podsOf(s, "default") {
			if s.State().Pods[n].DeletionTimestamp != nil {
				ending++
			}
		}
		if ending > 1 {
			t.Errorf("%d pods end at once", ending)
		}
		if now := names(s, "default"); len(seen) == 0 || seen[len(seen)-1] != now {
			seen = append(seen, now)
		}
	})
	if got, want := strings.Join(seen, ", "), "db-0 db-1 db-2, db-0 db-1, db-0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestStatefulSetUpdatesFromTheLast(t *testing.T) {
	s := testStore(Config{})
	parallel := strings.Replace(db, "replicas: 3", "replicas: 3\n  podManagementPolicy: Parallel", 1)
	s.Apply(load(t, parallel))
	if got, want := names(s, "default"), "db-0 db-1 db-2"; got != want {
		t.Fatalf("got %s, want all at once", got)
	}
	play(s, "default", func() {})
	ip := s.State().Pods[Name{"default", "db-0"}].Status.PodIP
	s.Apply(load(t, strings.Replace(parallel, "image: x", "image: new", 1)))
	var order []string
	play(s, "default", func() {
		for _, n := range podsOf(s, "default") {
			if s.State().Pods[n].DeletionTimestamp != nil && (len(order) == 0 || order[len(order)-1] != n.Name) {
				order = append(order, n.Name)
			}
		}
	})
	// play ends a terminating pod in the step after the one that sees it.
	if got, want := strings.Join(order, " "), "db-2 db-1 db-0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, n := range podsOf(s, "default") {
		if p := s.State().Pods[n]; p.Spec.Containers[0].Image != "new" || !IsReady(p) {
			t.Errorf("%s: got %s", n, p.Spec.Containers[0].Image)
		}
	}
	if got := s.State().Pods[Name{"default", "db-0"}].Status.PodIP; got == ip {
		t.Errorf("a new pod got the address of the old one, %s", got)
	}
}

func TestDaemonSetHasOnePod(t *testing.T) {
	s := testStore(Config{})
	ds := strings.NewReplacer("StatefulSet", "DaemonSet", "  replicas: 3\n  serviceName: dbs\n", "").Replace(db)
	s.Apply(load(t, ds))
	play(s, "default", func() {})
	first := names(s, "default")
	if len(strings.Fields(first)) != 1 || !strings.HasPrefix(first, "db-") {
		t.Fatalf("got %s", first)
	}
	s.Apply(load(t, strings.Replace(ds, "image: x", "image: new", 1)))
	play(s, "default", func() {
		if n := len(podsOf(s, "default")); n > 1 {
			t.Errorf("got %d pods at once", n)
		}
	})
	if got := names(s, "default"); got == first || len(strings.Fields(got)) != 1 {
		t.Errorf("got %s, want another than %s", got, first)
	}
}

func TestReplicaSetKeepsPodsOfAnOldTemplate(t *testing.T) {
	s := testStore(Config{})
	rs := strings.NewReplacer("StatefulSet", "ReplicaSet", "  serviceName: dbs\n", "").Replace(db)
	s.Apply(load(t, rs))
	before := names(s, "default")
	s.Apply(load(t, strings.Replace(rs, "image: x", "image: new", 1)))
	if got := names(s, "default"); got != before || len(strings.Fields(got)) != 3 {
		t.Errorf("got %s, want %s", got, before)
	}
	s.Delete([]Object{{API: &corev1.Pod{ObjectMeta: s.State().Pods[podsOf(s, "default")[0]].ObjectMeta}}})
	if got := podsOf(s, "default"); len(got) != 3 {
		t.Errorf("got %v, want the deleted one replaced", got)
	}
}

func TestPodEndsGracefully(t *testing.T) {
	s := testStore(Config{})
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: b}}\nspec: {terminationGracePeriodSeconds: 7, containers: [{name: c, image: x}]}"
	n := Name{"default", "p"}
	s.Apply(load(t, pod))
	become(s, n, true)
	if got, want := said(s.Delete(load(t, pod))), `pod "p" deleted`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	p := s.State().Pods[n]
	if p == nil || p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 7 {
		t.Fatalf("got %v, want it terminating", p)
	}
	if got := said(s.Apply(load(t, pod))); got != "pod/p created" {
		t.Error(got)
	}
	if s.State().Pods[n].UID != p.UID {
		t.Error("the new pod came before the old one was gone")
	}
	s.PodGone(n, "another")
	s.PodGone(n, string(p.UID))
	if q := s.State().Pods[n]; q == nil || q.UID == p.UID || q.DeletionTimestamp != nil {
		t.Errorf("got %v, want the new pod", q)
	}

	// One that no runtime has is gone at once.
	s.Delete(load(t, pod))
	if s.State().Pods[n] != nil {
		t.Error("the pod is still there")
	}
	if got, want := said(s.Delete(load(t, pod))), `Error from server (NotFound): pods "p" not found`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestChangedPodIsReplacedAndRelabelledOneIsNot(t *testing.T) {
	s := testStore(Config{})
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: b}}\nspec: {containers: [{name: c, image: x}]}"
	n := Name{"default", "p"}
	s.Apply(load(t, pod))
	become(s, n, true)
	uid := s.State().Pods[n].UID
	s.Apply(load(t, strings.Replace(pod, "a: b", "a: c", 1)))
	if p := s.State().Pods[n]; p.UID != uid || p.Labels["a"] != "c" || !IsReady(p) {
		t.Errorf("got %v, want the same pod with another label", p)
	}
	s.Apply(load(t, strings.Replace(pod, "image: x", "image: new", 1)))
	play(s, "default", func() {})
	if p := s.State().Pods[n]; p.UID == uid || p.Spec.Containers[0].Image != "new" {
		t.Errorf("got %v, want another pod", p)
	}
}

func TestDeletedNamespaceTakesItsObjects(t *testing.T) {
	s := testStore(Config{})
	ns := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}"
	s.Apply(load(t, ns))
	s.Apply(load(t, web))
	become(s, podsOf(s, "shop")[0], true)
	if got, want := said(s.Delete(load(t, ns))), `namespace "shop" deleted`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	st := s.State()
	if st.Services[Name{"shop", "web"}] != nil || len(podsOf(s, "shop")) != 1 || st.Namespaces["shop"].Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("got %v %v", podsOf(s, "shop"), st.Namespaces["shop"])
	}
	play(s, "shop", func() {})
	if s.State().Namespaces["shop"] != nil {
		t.Error("the namespace is still there")
	}
}
