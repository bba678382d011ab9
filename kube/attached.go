package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// AttachedAnnotation marks pods whose network namespace somebody else made and
// had attached: by CNI, or by hand. No sandbox is made for them, and nothing is
// known of their processes; in all else they are like any pod. Its value says
// who made them.
const AttachedAnnotation = "podgate.dev/attached"

// IsAttached says whether a pod's network namespace is somebody else's; see
// AttachedAnnotation.
func IsAttached(pod *corev1.Pod) bool {
	_, attached := pod.Annotations[AttachedAnnotation]
	return attached
}

const attachment = "Attachment" // what owns such a pod

// Attachment is what becomes a pod by [Store.Attach].
type Attachment struct {
	Name   Name
	UID    types.UID // made up if empty
	By     string    // value of AttachedAnnotation
	Labels map[string]string
	Ports  []corev1.ContainerPort // hostPorts
	Addrs  []netip.Addr           // as wanted; none: one of each pod CIDR
	// Own says which addresses the pod makes for itself of those that it would be
	// given (RFC 4862): outside of what is ever given. nil: it takes them.
	Own func(given []netip.Addr) []netip.Addr
}

// Attach puts a pod into the State whose namespace is somebody else's, with
// addresses and not ready: MarkReady says when it is. Its addresses are its
// own until Detach. The error names what is taken or wrong.
func (s *Store) Attach(a Attachment) (*corev1.Pod, error) {
	for _, msg := range slices.Concat(validation.IsDNS1123Label(a.Name.Namespace), validation.IsDNS1123Subdomain(a.Name.Name)) {
		return nil, fmt.Errorf("pod name %q: %s", a.Name, msg)
	}
	for _, k := range slices.Sorted(maps.Keys(a.Labels)) {
		for _, msg := range slices.Concat(validation.IsQualifiedName(k), validation.IsValidLabelValue(a.Labels[k])) {
			return nil, fmt.Errorf("label %s=%s: %s", k, a.Labels[k], msg)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.publish()
	k := key{"Pod", a.Name}
	if s.pods[a.Name] != nil || s.records[k] != nil {
		return nil, fmt.Errorf("there is a pod %s already", a.Name)
	}
	if len(a.Addrs) == 0 {
		var err error
		if a.Addrs, err = s.podAddresses.take(); err != nil {
			return nil, err
		}
		if a.Own != nil {
			own := a.Own(a.Addrs)
			s.podAddresses.free(slices.DeleteFunc(a.Addrs, func(given netip.Addr) bool { return slices.Contains(own, given) }))
			a.Addrs = own
		}
	} else if err := s.reserveAddresses(a.Addrs); err != nil {
		return nil, err
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: a.Name.Namespace, Name: a.Name.Name, UID: a.UID, Labels: maps.Clone(a.Labels),
			Annotations: map[string]string{AttachedAnnotation: a.By},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "attached", Image: "none", Ports: a.Ports}}},
	}
	setDefaults(pod)
	pod.APIVersion, pod.Kind = "v1", "Pod"
	if pod.UID == "" {
		pod.UID = s.newUID(k)
	}
	pod.CreationTimestamp, pod.Generation = s.now(), 1
	pod.Spec.NodeName = s.cfg.NodeName
	pod.Status = s.firstStatus(&podRecord{addrs: a.Addrs})
	r := &podRecord{name: a.Name, owner: key{attachment, a.Name}, seq: s.births, addrs: a.Addrs, attached: true}
	if s.replica != nil {
		s.attachReplica(r, pod)
	} else {
		s.addPod(r, pod)
		s.settle()
	}
	return pod, nil
}

// MarkReady says that a pod that Attach made is served.
func (s *Store) MarkReady(name Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.pods[name]
	if r == nil || r.owner.kind != attachment {
		return
	}
	pod := *s.next.pods.m[name]
	if !IsAttached(&pod) {
		return // the API server's: it knows
	}
	pod.Status = *pod.Status.DeepCopy()
	s.runs(&pod)
	if s.replica != nil {
		s.replica.own[key{"Pod", name}] = &pod
		s.next.pods.set(name, &pod)
	} else {
		s.setPod(&pod)
		s.settle()
	}
	s.publish()
}

// Detach takes away a pod that Attach made, if there is one.
func (s *Store) Detach(name Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.pods[name]
	switch {
	case r == nil || r.owner.kind != attachment:
		return
	case s.replica != nil:
		s.detachReplica(r)
	default:
		s.removePod(r)
		s.settle()
	}
	s.publish()
}

// attachReplica lends addresses to the API server's pod, or puts one in its place
// until there is one.
func (s *Store) attachReplica(r *podRecord, pod *corev1.Pod) {
	s.pods[r.name] = r
	s.replica.attached[r.name] = r.addrs
	if old := s.next.pods.m[r.name]; old != nil {
		lent := *old
		if s.lendAddresses(&lent) {
			s.next.pods.set(r.name, &lent)
		}
		return
	}
	s.replica.own[key{"Pod", r.name}] = pod
	s.next.pods.set(r.name, pod)
}

func (s *Store) detachReplica(r *podRecord) {
	k := key{"Pod", r.name}
	if own := s.replica.own[k]; own != nil && own == API(s.next.pods.m[r.name]) {
		s.next.pods.delete(r.name)
	}
	delete(s.replica.own, k)
	delete(s.replica.attached, r.name)
	delete(s.pods, r.name)
	s.podAddresses.free(r.addrs)
}

// reserveAddresses takes all addresses or none.
func (s *Store) reserveAddresses(addrs []netip.Addr) error {
	for i, a := range addrs {
		if slices.Contains(addrs[:i], a) {
			s.podAddresses.free(addrs[:i])
			return fmt.Errorf("address %s is asked for twice", a)
		}
		if err := s.reserveAddress(a); err != nil {
			s.podAddresses.free(addrs[:i])
			return err
		}
	}
	return nil
}

func (s *Store) reserveAddress(a netip.Addr) error {
	if !a.IsGlobalUnicast() || a.Zone() != "" || a.Is4In6() {
		return fmt.Errorf("address %s cannot be a pod's", a)
	}
	for _, c := range s.cfg.ServiceCIDRs {
		if c.Contains(a) {
			return fmt.Errorf("address %s is in the Service range %s", a, c)
		}
	}
	for n, r := range s.pods {
		if slices.Contains(r.addrs, a) {
			return fmt.Errorf("address %s belongs to pod %s", a, n)
		}
	}
	return s.podAddresses.reserve(a)
}

// FreePodAddresses is how many more pods can be given addresses of the pod CIDRs.
func (s *Store) FreePodAddresses() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.podAddresses.limit - FirstPodOffset - uint64(len(s.podAddresses.used))
}
