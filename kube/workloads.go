package kube

// Theory of operation
//
// A workload is reconciled as a whole: given its record, or none, and the pods
// that are of it, make or delete pods towards what it asks for. Every step that a
// controller would take over time (a new pod became ready: remove an old one) is
// taken when a pod's change marks its workload dirty, so that nothing waits for
// anything but pods.
//
// What differs from kube-controller-manager: a Deployment has no ReplicaSet
// objects, its pods only say they have; pods without an owner are not adopted;
// minReadySeconds, progressDeadlineSeconds, paused and revision history mean
// nothing; every pod fits the one node, whatever nodeSelector, affinity or
// resources say; a bare Pod with a changed spec is replaced, where an API server
// would refuse.

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func (s *Store) reconcileWorkload(k key) {
	r := s.records[k]
	if k.kind == attachment {
		return // its pod goes with Detach
	}
	if r == nil {
		for n := range s.owned[k] {
			s.deletePod(n)
		}
		switch k.kind {
		case "Deployment":
			s.next.deployments.delete(k.name)
		case "ReplicaSet":
			s.next.replicaSets.delete(k.name)
		case "StatefulSet":
			s.next.statefulSets.delete(k.name)
		case "DaemonSet":
			s.next.daemonSets.delete(k.name)
		}
		return
	}
	switch want := r.want.(type) {
	case *corev1.Pod:
		s.reconcilePod(k, want)
	case *appsv1.Deployment:
		s.reconcileDeployment(k, r, want)
	case *appsv1.ReplicaSet:
		s.reconcileReplicaSet(k, r, want)
	case *appsv1.StatefulSet:
		s.reconcileStatefulSet(k, r, want)
	case *appsv1.DaemonSet:
		s.reconcileDaemonSet(k, r, want)
	}
}

// reconcilePod keeps a pod that was asked for by itself.
func (s *Store) reconcilePod(k key, want *corev1.Pod) {
	b := blueprint{name: k.name, owner: k, revision: fingerprint(want.Spec), meta: want.ObjectMeta, spec: want.Spec}
	if selectsNetworks(want.Annotations, &want.Spec) {
		b.revision = fingerprint([]any{want.Spec, want.Annotations[NetworksAnnotation], want.Annotations[DefaultNetworkAnnotation]})
	}
	if r := s.pods[k.name]; r != nil && r.owner == k && r.revision != b.revision {
		s.deletePod(k.name)
	}
	if s.pods[k.name] == nil {
		s.makePod(b)
		return
	}
	old := s.next.pods.m[k.name]
	if old.DeletionTimestamp != nil || s.pods[k.name].owner != k {
		return
	}
	annotations := s.pods[k.name].annotated(want.Annotations)
	if !maps.Equal(old.Labels, want.Labels) || !maps.Equal(old.Annotations, annotations) {
		pod := *old
		pod.Labels, pod.Annotations = maps.Clone(want.Labels), maps.Clone(annotations)
		s.setPod(&pod)
	}
}

// census sorts the pods of a workload; all are in the order of their making.
type census struct {
	current, old []*podRecord // living, of the wanted revision and of others
	ending       []*podRecord
}

// census also deletes pods that have finished: what keeps replicas replaces them.
func (s *Store) census(k key, revision string) (c census) {
	for _, r := range slices.SortedFunc(maps.Values(s.owned[k]), (*podRecord).compare) {
		switch pod := s.next.pods.m[r.name]; {
		case pod.DeletionTimestamp != nil:
			c.ending = append(c.ending, r)
		case isFinished(pod):
			s.deletePod(r.name)
			if s.pods[r.name] != nil {
				c.ending = append(c.ending, r)
			}
		case r.revision == revision:
			c.current = append(c.current, r)
		default:
			c.old = append(c.old, r)
		}
	}
	return c
}

func (s *Store) ready(pods []*podRecord) (n int) {
	for _, r := range pods {
		if IsReady(s.next.pods.m[r.name]) {
			n++
		}
	}
	return n
}

// shrink deletes n pods, those first that are the least use: not ready, then young.
func (s *Store) shrink(pods []*podRecord, n int) {
	pods = slices.Clone(pods)
	rank := func(r *podRecord) int {
		if IsReady(s.next.pods.m[r.name]) {
			return 1
		}
		return 0
	}
	slices.SortFunc(pods, func(a, b *podRecord) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), -a.compare(b)) })
	for _, r := range pods[:max(0, min(n, len(pods)))] {
		s.deletePod(r.name)
	}
}

// template makes the blueprint of one pod of a workload.
func template(owner key, name Name, revision string, t corev1.PodTemplateSpec, labels map[string]string, ref metav1.OwnerReference) blueprint {
	meta := metav1.ObjectMeta{Labels: maps.Clone(t.Labels), Annotations: maps.Clone(t.Annotations), Finalizers: t.Finalizers}
	if meta.Labels == nil {
		meta.Labels = map[string]string{}
	}
	maps.Copy(meta.Labels, labels)
	ref.Controller, ref.BlockOwnerDeletion = new(true), new(true)
	meta.OwnerReferences = []metav1.OwnerReference{ref}
	return blueprint{name: name, owner: owner, revision: revision, meta: meta, spec: t.Spec}
}

// reconcileDeployment rolls: new pods as far as maxSurge lets, old ones away as
// far as maxUnavailable lets. With the strategy Recreate all old ones end first.
func (s *Store) reconcileDeployment(k key, r *record, d *appsv1.Deployment) {
	revision := fingerprint(d.Spec.Template)
	replicas := int(*d.Spec.Replicas)
	surge, unavailable := rollingLimits(d)
	rs := metav1.OwnerReference{
		APIVersion: "apps/v1", Kind: "ReplicaSet", Name: d.Name + "-" + revision,
		UID: types.UID(fmt.Sprintf("%s-%s", r.uid, revision)),
	}
	c := s.census(k, revision)
	recreate := d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType
	if recreate && len(c.old) > 0 {
		s.shrink(c.old, len(c.old))
		c = s.census(k, revision)
	}
	room := replicas + surge - len(c.current) - len(c.old)
	if recreate {
		room = replicas - len(c.current)
		for _, e := range c.ending {
			if e.revision != revision {
				room = 0
			}
		}
	}
	for range min(replicas-len(c.current), room) {
		b := template(k, s.freshName(k.name.Namespace, rs.Name+"-"), revision, d.Spec.Template,
			map[string]string{appsv1.DefaultDeploymentUniqueLabelKey: revision}, rs)
		if !s.makePod(b) {
			break
		}
	}
	c = s.census(k, revision)
	s.shrink(c.current, len(c.current)-replicas)
	c = s.census(k, revision)
	if len(c.old) > 0 {
		readyNew, readyOld := s.ready(c.current), s.ready(c.old)
		least := replicas - unavailable
		// Old pods that are not ready help nobody, but together with new ones that
		// are not ready yet they count as those that may be missing.
		spare := len(c.current) + len(c.old) - least - (len(c.current) - readyNew)
		useless := max(0, min(spare, len(c.old)-readyOld))
		s.shrink(c.old, useless+max(0, min(spare-useless, readyNew+readyOld-least)))
		c = s.census(k, revision)
	}

	st := appsv1.DeploymentStatus{
		ObservedGeneration: r.gen,
		Replicas:           int32(len(c.current) + len(c.old)),
		UpdatedReplicas:    int32(len(c.current)),
		ReadyReplicas:      int32(s.ready(c.current) + s.ready(c.old)),
	}
	st.AvailableReplicas = st.ReadyReplicas
	st.UnavailableReplicas = max(0, int32(replicas)-st.AvailableReplicas)
	serveWorkload(&s.next.deployments, k, r, func(o *appsv1.Deployment) *metav1.ObjectMeta {
		o.Status = st
		return &o.ObjectMeta
	})
}

func rollingLimits(d *appsv1.Deployment) (surge, unavailable int) {
	ru := d.Spec.Strategy.RollingUpdate
	replicas := int(*d.Spec.Replicas)
	if ru == nil {
		return 0, replicas
	}
	surge, _ = intstr.GetScaledValueFromIntOrPercent(ru.MaxSurge, replicas, true)
	unavailable, _ = intstr.GetScaledValueFromIntOrPercent(ru.MaxUnavailable, replicas, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, replicas)
}

// reconcileReplicaSet keeps the number; a changed template is for pods to come.
func (s *Store) reconcileReplicaSet(k key, r *record, rs *appsv1.ReplicaSet) {
	const any = ""
	ref := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: rs.Name, UID: r.uid}
	c := s.census(k, any)
	for range int(*rs.Spec.Replicas) - len(c.current) {
		if !s.makePod(template(k, s.freshName(k.name.Namespace, rs.Name+"-"), any, rs.Spec.Template, nil, ref)) {
			break
		}
	}
	s.shrink(c.current, len(c.current)-int(*rs.Spec.Replicas))
	c = s.census(k, any)
	st := appsv1.ReplicaSetStatus{
		ObservedGeneration: r.gen, Replicas: int32(len(c.current)), FullyLabeledReplicas: int32(len(c.current)),
		ReadyReplicas: int32(s.ready(c.current)),
	}
	st.AvailableReplicas = st.ReadyReplicas
	serveWorkload(&s.next.replicaSets, k, r, func(o *appsv1.ReplicaSet) *metav1.ObjectMeta {
		o.Status = st
		return &o.ObjectMeta
	})
}

// reconcileDaemonSet keeps one pod, for there is one node.
func (s *Store) reconcileDaemonSet(k key, r *record, ds *appsv1.DaemonSet) {
	revision := fingerprint(ds.Spec.Template)
	ref := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "DaemonSet", Name: ds.Name, UID: r.uid}
	c := s.census(k, revision)
	if ds.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
		s.shrink(c.old, len(c.old))
		c = s.census(k, revision)
	}
	if len(c.current)+len(c.old)+len(c.ending) == 0 {
		s.makePod(template(k, s.freshName(k.name.Namespace, ds.Name+"-"), revision, ds.Spec.Template,
			map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: revision}, ref))
	}
	c = s.census(k, revision)
	living := append(slices.Clone(c.current), c.old...)
	st := appsv1.DaemonSetStatus{
		ObservedGeneration: r.gen, DesiredNumberScheduled: 1,
		CurrentNumberScheduled: int32(len(living)), UpdatedNumberScheduled: int32(len(c.current)),
		NumberReady: int32(s.ready(living)),
	}
	st.NumberAvailable = st.NumberReady
	st.NumberUnavailable = 1 - min(1, st.NumberAvailable)
	serveWorkload(&s.next.daemonSets, k, r, func(o *appsv1.DaemonSet) *metav1.ObjectMeta {
		o.Status = st
		return &o.ObjectMeta
	})
}

// reconcileStatefulSet keeps pods with ordinals. OrderedReady: one is made when
// all before it are ready, one is deleted when all others are ready and none is
// ending. An update goes from the last to the first, one at a time; pods of an
// old revision that are not ready are replaced at once, where Kubernetes waits
// for a person to delete them.
func (s *Store) reconcileStatefulSet(k key, r *record, ss *appsv1.StatefulSet) {
	revision := fingerprint(ss.Spec.Template)
	s.stepStatefulSet(k, r, ss, revision)

	c := s.census(k, revision)
	living := append(slices.Clone(c.current), c.old...)
	st := appsv1.StatefulSetStatus{
		ObservedGeneration: r.gen, Replicas: int32(len(living)), CurrentReplicas: int32(len(living)),
		UpdatedReplicas: int32(len(c.current)), ReadyReplicas: int32(s.ready(living)),
		CurrentRevision: ss.Name + "-" + revision, UpdateRevision: ss.Name + "-" + revision,
	}
	st.AvailableReplicas = st.ReadyReplicas
	serveWorkload(&s.next.statefulSets, k, r, func(o *appsv1.StatefulSet) *metav1.ObjectMeta {
		o.Status = st
		return &o.ObjectMeta
	})
}

func (s *Store) stepStatefulSet(k key, r *record, ss *appsv1.StatefulSet, revision string) {
	start, replicas := ordinals(ss), int(*ss.Spec.Replicas)
	ordered := ss.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	onDelete := ss.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType
	byOrdinal := map[int]*podRecord{}
	for _, p := range s.owned[k] {
		byOrdinal[p.ordinal] = p
	}

	for i := start; i < start+replicas; i++ {
		p := byOrdinal[i]
		if p != nil {
			pod := s.next.pods.m[p.name]
			stale := p.revision != revision && !onDelete && !IsReady(pod)
			if pod.DeletionTimestamp == nil && (isFinished(pod) || stale) {
				s.deletePod(p.name)
				p = s.pods[p.name]
			}
		}
		if p == nil {
			if !s.makePod(statefulPod(k, r, ss, revision, i)) {
				return
			}
			p = s.pods[statefulName(k, i)]
			byOrdinal[i] = p
		}
		if pod := s.next.pods.m[p.name]; ordered && (pod.DeletionTimestamp != nil || !IsReady(pod)) {
			return
		}
	}

	for _, i := range slices.Backward(slices.Sorted(maps.Keys(byOrdinal))) {
		if i >= start && i < start+replicas {
			continue
		}
		s.deletePod(byOrdinal[i].name)
		if ordered && s.pods[byOrdinal[i].name] != nil {
			return
		}
	}

	if onDelete {
		return
	}
	partition := start
	if ru := ss.Spec.UpdateStrategy.RollingUpdate; ru != nil && ru.Partition != nil {
		partition = max(partition, int(*ru.Partition))
	}
	for i := start + replicas - 1; i >= partition; i-- {
		p := byOrdinal[i]
		pod := s.next.pods.m[p.name]
		if p.revision != revision && pod.DeletionTimestamp == nil {
			s.deletePod(p.name) // its end, or its successor's readiness, brings us here again
			return
		}
		if pod.DeletionTimestamp != nil || !IsReady(pod) {
			return
		}
	}
}

// ordinals is the first one.
func ordinals(ss *appsv1.StatefulSet) int {
	if ss.Spec.Ordinals == nil {
		return 0
	}
	return int(ss.Spec.Ordinals.Start)
}

func statefulName(k key, ordinal int) Name {
	return Name{k.name.Namespace, fmt.Sprintf("%s-%d", k.name.Name, ordinal)}
}

func statefulPod(k key, r *record, ss *appsv1.StatefulSet, revision string, ordinal int) blueprint {
	name := statefulName(k, ordinal)
	b := template(k, name, revision, ss.Spec.Template, map[string]string{
		appsv1.StatefulSetPodNameLabel:  name.Name,
		appsv1.PodIndexLabel:            fmt.Sprint(ordinal),
		appsv1.StatefulSetRevisionLabel: ss.Name + "-" + revision,
	}, metav1.OwnerReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: ss.Name, UID: r.uid})
	b.ordinal = ordinal
	b.spec.Hostname, b.spec.Subdomain = name.Name, ss.Spec.ServiceName
	return b
}

// serveWorkload serves a workload with its status, if either changed.
func serveWorkload[V API](t *table[Name, V], k key, r *record, finish func(V) *metav1.ObjectMeta) {
	o := r.want.DeepCopyObject().(V)
	r.stamp(finish(o))
	if old, ok := t.m[k.name]; !ok || !equality.Semantic.DeepEqual(old, o) {
		t.set(k.name, o)
	}
}
