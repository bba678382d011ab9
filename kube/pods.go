package kube

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"runtime"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

const arch = runtime.GOARCH

// podRecord is what the store remembers of a pod beside what is in the State.
//
//	        makePod                     deletePod, attached
//	(none) ---------> living ------------------------------> terminating
//	  ^                 | deletePod, never attached              |
//	  +-----------------+----------------------------------------+ PodGone
type podRecord struct {
	name     Name
	owner    key
	revision string       // of the template that it was made from
	addrs    []netip.Addr // in the pod CIDRs; none of its own: the node's
	foreign  bool         // another network takes the place of the cluster's own
	told     bool         // NetworkStatusAnnotation is set
	ordinal  int          // in a StatefulSet
	seq      uint64       // rises with age falling
	attached bool         // the runtime has it
	local    bool         // built in

	interfaces []Interface // of one that selects networks, once it has them
}

func (p *podRecord) compare(q *podRecord) int { return cmp.Compare(p.seq, q.seq) }

// blueprint is what a pod is made from.
type blueprint struct {
	name     Name
	owner    key
	revision string
	ordinal  int
	meta     metav1.ObjectMeta // labels, annotations, owner references
	spec     corev1.PodSpec
}

// makePod puts a pod into the State, with addresses and all that does not depend
// on a runtime.
func (s *Store) makePod(b blueprint) bool {
	k := key{"Pod", b.name}
	if s.pods[b.name] != nil {
		s.starved[b.owner] = true // of a name
		return false
	}
	selects := selectsNetworks(b.meta.Annotations, &b.spec)
	foreign := selects && b.meta.Annotations[DefaultNetworkAnnotation] != ""
	var addrs []netip.Addr
	if !b.spec.HostNetwork && !foreign {
		var err error
		if addrs, err = s.podAddresses.take(); err != nil {
			s.starved[b.owner] = true
			p := Problem{Kind: "Pod", Object: b.name, Err: err.Error()}
			if !slices.Equal(s.problems[k], []Problem{p}) {
				s.problems[k] = []Problem{p}
				s.next.problems = true
			}
			return false
		}
	}
	s.accept(k)
	pod := &corev1.Pod{ObjectMeta: *b.meta.DeepCopy(), Spec: *b.spec.DeepCopy()}
	pod.APIVersion, pod.Kind = "v1", "Pod"
	pod.Namespace, pod.Name = b.name.Namespace, b.name.Name
	pod.UID = s.newUID(k)
	pod.CreationTimestamp = s.now()
	pod.Generation = 1
	pod.Spec.NodeName = s.cfg.NodeName
	r := &podRecord{name: b.name, owner: b.owner, revision: b.revision, addrs: addrs, foreign: foreign, ordinal: b.ordinal, seq: s.births}
	pod.Status = s.firstStatus(r)
	s.addPod(r, pod)
	if selects {
		s.dirtyInterfaces[b.name] = true
	}
	return true
}

func (s *Store) addPod(r *podRecord, pod *corev1.Pod) {
	s.pods[r.name] = r
	if s.owned[r.owner] == nil {
		s.owned[r.owner] = map[Name]*podRecord{}
	}
	s.owned[r.owner][r.name] = r
	s.use(r.name.Namespace, 1)
	s.setPod(pod)
}

// firstStatus is that of a pod that was given its addresses and no more.
func (s *Store) firstStatus(r *podRecord) corev1.PodStatus {
	now := s.now()
	condition := func(t corev1.PodConditionType, status corev1.ConditionStatus, reason string) corev1.PodCondition {
		return corev1.PodCondition{Type: t, Status: status, Reason: reason, LastTransitionTime: now}
	}
	st := corev1.PodStatus{
		Phase: corev1.PodPending,
		Conditions: []corev1.PodCondition{
			condition(corev1.PodInitialized, corev1.ConditionTrue, ""),
			condition(corev1.PodReady, corev1.ConditionFalse, "ContainersNotReady"),
			condition(corev1.ContainersReady, corev1.ConditionFalse, "ContainersNotReady"),
			condition(corev1.PodScheduled, corev1.ConditionTrue, ""),
		},
	}
	s.setAddresses(&st, r)
	return st
}

// setAddresses writes the addresses of a pod, those of the node if it has none
// of its own, and those of the node.
func (s *Store) setAddresses(st *corev1.PodStatus, r *podRecord) {
	st.PodIP, st.PodIPs, st.HostIPs = "", nil, nil
	node, addrs := s.cfg.Addrs(GatewayOffset), r.addrs
	switch {
	case len(r.interfaces) > 0:
		addrs = r.interfaces[0].Addrs
	case len(addrs) == 0 && !r.foreign: // whose will come
		addrs = node
	}
	for _, a := range addrs {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, a := range node {
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: a.String()})
	}
	if len(st.PodIPs) > 0 {
		st.PodIP = st.PodIPs[0].IP
	}
	st.HostIP = st.HostIPs[0].IP
}

// setPod serves a new version of a pod and marks what depends on it.
func (s *Store) setPod(pod *corev1.Pod) {
	n := nameOf(pod)
	if old := s.next.pods.m[n]; old != nil {
		s.unindexPod(old)
	}
	s.next.pods.set(n, pod)
	for k, v := range pod.Labels {
		s.podsBy.add(n, k, v)
	}
	s.markServices(pod)
	s.dirtyWorkloads[s.pods[n].owner] = true
}

func (s *Store) unindexPod(pod *corev1.Pod) {
	s.markServices(pod)
	for k, v := range pod.Labels {
		s.podsBy.remove(nameOf(pod), k, v)
	}
}

// markServices marks the Services that select a pod.
func (s *Store) markServices(pod *corev1.Pod) {
	for k, v := range pod.Labels {
		for n := range s.servicesBy[labelKey{pod.Namespace, k, v}] {
			if selects(s.next.services.m[n].Spec.Selector, pod.Labels) {
				s.dirtyServices[n] = true
			}
		}
	}
}

// deletePod begins the end of a pod. One that no runtime has is gone at once.
func (s *Store) deletePod(n Name) {
	r, pod := s.pods[n], s.next.pods.m[n]
	switch {
	case r == nil || r.local || pod.DeletionTimestamp != nil:
	case !r.attached:
		s.removePod(r)
	default:
		ending := *pod
		grace := int64(30)
		if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
			grace = *g
		}
		ending.DeletionGracePeriodSeconds = &grace
		ending.DeletionTimestamp = new(s.now())
		s.setPod(&ending)
	}
}

func (s *Store) removePod(r *podRecord) {
	pod := s.next.pods.m[r.name]
	s.unindexPod(pod)
	s.next.pods.delete(r.name)
	s.podAddresses.free(r.addrs)
	s.releaseInterfaces(r)
	for k := range s.starved {
		s.dirtyWorkloads[k] = true
	}
	clear(s.starved)
	delete(s.pods, r.name)
	delete(s.owned[r.owner], r.name)
	if len(s.owned[r.owner]) == 0 {
		delete(s.owned, r.owner)
	}
	s.use(r.name.Namespace, -1)
	s.dirtyWorkloads[r.owner] = true
	s.dirtyWorkloads[key{"Pod", r.name}] = true
}

// SetPodStatus records what the runtime says of a pod: phase, conditions and
// container statuses; addresses are the store's. A uid that is no longer that of
// the pod is ignored. From the first report on the runtime has the pod: after
// its deletion it stays, terminating, until PodGone.
func (s *Store) SetPodStatus(name Name, uid string, status corev1.PodStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, old := s.pods[name], s.next.pods.m[name]
	if r == nil || r.local || string(old.UID) != uid {
		return
	}
	r.attached = true
	status = *status.DeepCopy()
	s.setAddresses(&status, r)
	if !slices.ContainsFunc(status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled }) {
		status.Conditions = append(status.Conditions, s.firstStatus(r).Conditions[3])
	}
	for i := range status.Conditions {
		c := &status.Conditions[i]
		was := podCondition(old, c.Type)
		switch {
		case was != nil && was.Status == c.Status:
			c.LastTransitionTime = was.LastTransitionTime
		case c.LastTransitionTime.IsZero():
			c.LastTransitionTime = s.now()
		}
	}
	tells := !r.told && len(r.interfaces) > 0 && slices.ContainsFunc(status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue
	})
	if equality.Semantic.DeepEqual(old.Status, status) && !tells {
		return
	}
	pod := *old
	pod.Status = status
	if tells {
		r.told = true
		pod.Annotations = r.annotated(pod.Annotations)
	}
	s.setPod(&pod)
	s.settle()
	s.publish()
}

// PodGone says that nothing is left of a pod: its sandbox and processes ended. A
// terminating pod then leaves the State.
func (s *Store) PodGone(name Name, uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, pod := s.pods[name], s.next.pods.m[name]
	if r == nil || string(pod.UID) != uid || pod.DeletionTimestamp == nil {
		return
	}
	s.removePod(r)
	s.settle()
	s.publish()
}

func podCondition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == t {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// IsReady says whether a pod's Ready condition is true.
func IsReady(pod *corev1.Pod) bool {
	c := podCondition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

func isFinished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// localPod is a pod that lives in the gateway's own stack.
func (s *Store) localPod(n Name, offset uint64, labels map[string]string, ports ...corev1.ContainerPort) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: n.Namespace, Name: n.Name, Labels: labels,
			Annotations: map[string]string{LocalAnnotation: "true"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: n.Name, Image: "podgate", Ports: ports}}},
	}
	setDefaults(pod)
	pod.APIVersion, pod.Kind = "v1", "Pod"
	pod.UID = s.newUID(key{"Pod", n})
	pod.CreationTimestamp = s.now()
	pod.Spec.NodeName = s.cfg.NodeName
	pod.Status = s.firstStatus(&podRecord{addrs: s.cfg.Addrs(offset)})
	s.runs(pod)
	return pod
}

func (s *Store) addLocalPod(pod *corev1.Pod) {
	s.addPod(&podRecord{name: nameOf(pod), seq: s.births, local: true}, pod)
}

// runs makes the one container of a pod that no runtime has run, and be ready.
func (s *Store) runs(pod *corev1.Pod) {
	pod.Status.Phase = corev1.PodRunning
	pod.Status.StartTime = new(s.now())
	for i := range pod.Status.Conditions {
		pod.Status.Conditions[i].Status = corev1.ConditionTrue
		pod.Status.Conditions[i].Reason = ""
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: pod.Spec.Containers[0].Name, Image: pod.Spec.Containers[0].Image, Ready: true, Started: new(true),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: s.now()}},
	}}
}

// fingerprint is a short name for a value, in letters that make no words.
func fingerprint(v any) string {
	h := fnv.New32a()
	if err := json.NewEncoder(h).Encode(v); err != nil {
		panic("kube: " + err.Error()) // API types can be encoded
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// freshName is a base with five letters that no pod has now.
func (s *Store) freshName(namespace, base string) Name {
	base = base[:min(len(base), 63-5)]
	for i := uint64(0); ; i++ {
		h := hash(namespace, base, fmt.Sprint(s.births+i))
		n := Name{namespace, base + fiveLetters(h)}
		if s.pods[n] == nil && s.records[key{"Pod", n}] == nil {
			return n
		}
	}
}

func fiveLetters(h uint64) string { return rand.SafeEncodeString(fmt.Sprintf("%05d", h%100000)) }
