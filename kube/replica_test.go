package kube

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func replicaPod(name, version string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, ResourceVersion: version}}
}

func TestReplicaForgetsWhatIsNotInAWholeList(t *testing.T) {
	s := NewReplica(Config{}, nil)
	builtin := len(s.State().Pods)
	s.Follow(Batch{Whole: map[string][]API{"Pod": {replicaPod("one", "1"), replicaPod("two", "1")}}})
	first := s.State()
	s.Follow(Batch{Whole: map[string][]API{"Pod": {replicaPod("two", "1"), replicaPod("three", "2")}}})
	st := s.State()
	if got, want := len(st.Pods), builtin+2; got != want || st.Pods[Name{"a", "one"}] != nil {
		t.Errorf("got pods %v, want two, three and %d of the gateway's own", slices.Collect(maps.Keys(st.Pods)), builtin)
	}
	if first.Pods[Name{"a", "two"}] != st.Pods[Name{"a", "two"}] {
		t.Error("a pod that did not change is another object after it was listed again")
	}
	if len(first.Pods) != builtin+2 {
		t.Error("a state changed after it was published")
	}
}

func TestReplicaListedAgainUnchangedPublishesNothing(t *testing.T) {
	s := NewReplica(Config{}, nil)
	s.Follow(Batch{Whole: map[string][]API{"Pod": {replicaPod("one", "1")}}})
	gen := s.State().Generation
	s.Follow(Batch{Whole: map[string][]API{"Pod": {replicaPod("one", "1")}, "Service": nil}})
	if got := s.State().Generation; got != gen {
		t.Errorf("got generation %d, want %d", got, gen)
	}
}

func TestReplicaChangesAndGone(t *testing.T) {
	s := NewReplica(Config{}, nil)
	s.Follow(Batch{Changed: []API{replicaPod("one", "1"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}}})
	st := s.State()
	if st.Pods[Name{"a", "one"}] == nil || st.Nodes["n"] == nil {
		t.Fatal("a changed object is not there")
	}
	if got := st.Nodes["n"].Kind; got != "Node" {
		t.Errorf("got kind %q, want Node", got)
	}
	s.Follow(Batch{Gone: []Ref{{"Pod", Name{"a", "one"}}, {"Node", Name{Name: "n"}}, {"Node", Name{Name: "never"}}}})
	if st := s.State(); st.Pods[Name{"a", "one"}] != nil || st.Nodes["n"] != nil {
		t.Error("an object that is gone is there")
	}
}

func TestReplicaAnswersDNSUntilSomebodyElseDoes(t *testing.T) {
	s := NewReplica(Config{}, nil)
	endpoints := func() (all []string) {
		for _, slice := range s.State().EndpointSlices.All() {
			for _, e := range slice.Endpoints {
				all = append(all, e.Addresses...)
			}
		}
		slices.Sort(all)
		return all
	}
	ours := []string{"10.244.0.2", "fd00:10:244::2"}
	if got := endpoints(); !slices.Equal(got, ours) {
		t.Errorf("without a DNS Service: got %v, want %v", got, ours)
	}
	dns := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns", ResourceVersion: "1"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.53", ClusterIPs: []string{"10.96.0.53"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
	}}
	s.Follow(Batch{Changed: []API{dns}})
	if got := endpoints(); !slices.Equal(got, ours[:1]) {
		t.Errorf("a Service without selector: got %v, want %v", got, ours[:1])
	}
	selecting := dns.DeepCopy()
	selecting.ResourceVersion, selecting.Spec.Selector = "2", map[string]string{"k8s-app": "kube-dns"}
	s.Follow(Batch{Changed: []API{selecting}})
	if got := endpoints(); len(got) != 0 {
		t.Errorf("a Service with selector: got %v, want none of ours", got)
	}
	s.Follow(Batch{Gone: []Ref{{"Service", Name{"kube-system", "kube-dns"}}}})
	if got := endpoints(); !slices.Equal(got, ours) {
		t.Errorf("without a DNS Service again: got %v, want %v", got, ours)
	}
}

func TestReplicaKnowsTheFrontDoorsOfOtherNodes(t *testing.T) {
	s := NewReplica(Config{NodeName: "here"}, nil)
	node := func(name, version string, cidrs ...string) API {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	}
	door := Name{"podgate-system", "podgate-ingress-there"}
	s.Follow(Batch{Whole: map[string][]API{"Node": {node("here", "1", "10.244.0.0/24"), node("there", "1")}}})
	if st := s.State(); st.Pods[door] != nil || st.Pods[Name{"podgate-system", "podgate-ingress-here"}] != nil {
		t.Fatal("a node without pod ranges, or this one, has another front door")
	}
	s.Follow(Batch{Changed: []API{node("there", "2", "10.244.1.0/24", "fd00:10:244:1::/64")}})
	pod := s.State().Pods[door]
	if pod == nil {
		t.Fatal("the front door of another node is not known")
	}
	if got, want := pod.Status.PodIPs, []corev1.PodIP{{IP: "10.244.1.3"}, {IP: "fd00:10:244:1::3"}}; !slices.Equal(got, want) {
		t.Errorf("got addresses %v, want %v", got, want)
	}
	if got, want := pod.Labels, s.State().Pods[builtinIngress].Labels; !maps.Equal(got, want) || IsLocal(pod) {
		t.Errorf("got labels %v of a pod that is local: %v; want %v, false", got, IsLocal(pod), want)
	}
	s.Follow(Batch{Changed: []API{node("there", "3", "10.244.1.0/24", "fd00:10:244:1::/64")}, Whole: map[string][]API{"Pod": nil}})
	if s.State().Pods[door] != pod {
		t.Error("it is another object though nothing of it changed")
	}
	s.Follow(Batch{Gone: []Ref{{"Node", Name{Name: "there"}}}})
	if s.State().Pods[door] != nil {
		t.Error("it outlived its node")
	}
}
