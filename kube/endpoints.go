package kube

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The names that the slices of kube-controller-manager's two controllers bear.
const (
	managedBySelector = "endpointslice-controller.k8s.io"
	managedByMirror   = "endpointslicemirroring-controller.k8s.io"

	maxEndpoints = 100 // in a slice, the controller's default
)

// sliceGroup is what goes into slices together: endpoints of one family that
// have the same port numbers. Pods that give a named port different numbers are
// in different groups.
type sliceGroup struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// reconcileEndpoints makes the EndpointSlices of one Service: of the pods that
// its selector picks, or of the Endpoints object of its name.
func (s *Store) reconcileEndpoints(name Name) {
	svc := s.next.services.m[name]
	endpoints := s.endpointsRecord(name)
	var groups []sliceGroup
	most := maxEndpoints
	meta := metav1.ObjectMeta{Namespace: name.Namespace}
	switch {
	case svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName && len(svc.Spec.Selector) > 0:
	case len(svc.Spec.Selector) > 0:
		groups = s.selected(svc)
		meta.Labels = sliceLabels(svc.Labels, managedBySelector)
		if isHeadless(svc) {
			meta.Labels[corev1.IsHeadlessService] = ""
		}
		meta.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Service", Name: svc.Name, UID: svc.UID, Controller: new(true), BlockOwnerDeletion: new(true),
		}}
	case endpoints != nil && mirrored(endpoints):
		groups, most = mirror(endpoints), maxMirrored
		meta.Labels = sliceLabels(endpoints.Labels, managedByMirror)
		meta.Annotations = maps.Clone(endpoints.Annotations)
		meta.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Endpoints", Name: endpoints.Name, UID: s.records[key{"Endpoints", name}].uid,
			Controller: new(true), BlockOwnerDeletion: new(true),
		}}
	}
	if meta.Labels != nil {
		meta.Labels[discoveryv1.LabelServiceName] = name.Name
	}

	var have []Name
	for _, g := range groups {
		for i, chunk := range chunks(g.endpoints, most) {
			slice := &discoveryv1.EndpointSlice{ObjectMeta: *meta.DeepCopy(), AddressType: g.family, Endpoints: chunk, Ports: g.ports}
			slice.Name = s.sliceName(name, g, i, have)
			slice.SetGroupVersionKind(kindByName["EndpointSlice"].gvk())
			n := nameOf(slice)
			have = append(have, n)
			s.serveSlice(n, slice)
		}
	}
	for _, n := range s.slicesOf[name] {
		if !slices.Contains(have, n) {
			s.next.endpointSlices.delete(n)
		}
	}
	if s.slicesOf[name] = have; len(have) == 0 {
		delete(s.slicesOf, name)
	}
}

// serveSlice serves a slice that is new or differs from what is served.
func (s *Store) serveSlice(n Name, slice *discoveryv1.EndpointSlice) {
	if old := s.next.endpointSlices.m.Get(n); old != nil {
		slice.UID, slice.CreationTimestamp, slice.Generation = old.UID, old.CreationTimestamp, old.Generation
		if equality.Semantic.DeepEqual(old, slice) {
			return
		}
		slice.Generation++
	} else {
		slice.UID, slice.CreationTimestamp, slice.Generation = s.newUID(key{"EndpointSlice", n}), s.now(), 1
	}
	s.next.endpointSlices.set(n, slice)
}

// sliceName depends on nothing but what the slice is for: web-ipv4-x7k2p.
func (s *Store) sliceName(svc Name, g sliceGroup, i int, taken []Name) string {
	base := fmt.Sprintf("%s-%s-", svc.Name, strings.ToLower(string(g.family)))
	for try := 0; ; try++ {
		h := hash(svc.Namespace, svc.Name, fmt.Sprint(g.family, portNumbers(g.ports), i, try))
		n := Name{svc.Namespace, base + fiveLetters(h)}
		if s.records[key{"EndpointSlice", n}] == nil && !slices.Contains(taken, n) && s.sliceIsOf(n, svc) {
			return n.Name
		}
	}
}

// sliceIsOf says whether a name is free or belongs to a Service's slices already.
func (s *Store) sliceIsOf(n, svc Name) bool {
	old := s.next.endpointSlices.m.Get(n)
	return old == nil || old.Labels[discoveryv1.LabelServiceName] == svc.Name
}

// chunks cuts endpoints to what a slice holds at most; of none it makes one empty
// slice, as the controller does.
func chunks(all []discoveryv1.Endpoint, most int) [][]discoveryv1.Endpoint {
	if len(all) == 0 {
		return [][]discoveryv1.Endpoint{{}}
	}
	return slices.Collect(slices.Chunk(all, most))
}

// sliceLabels are a Service's labels but for those that slices have for themselves.
func sliceLabels(from map[string]string, managedBy string) map[string]string {
	labels := map[string]string{}
	for k, v := range from {
		switch k {
		case discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy, corev1.IsHeadlessService:
		default:
			labels[k] = v
		}
	}
	labels[discoveryv1.LabelManagedBy] = managedBy
	return labels
}

// selected groups the endpoints of a Service with a selector.
func (s *Store) selected(svc *corev1.Service) []sliceGroup {
	var groups []sliceGroup
	for _, f := range svc.Spec.IPFamilies {
		byPorts := map[string]int{}
		first := len(groups)
		for n := range s.podsBy.rarest(svc.Namespace, svc.Spec.Selector) {
			pod := s.next.pods.m[n]
			if !selects(svc.Spec.Selector, pod.Labels) || isFinished(pod) {
				continue
			}
			e, ok := s.endpoint(svc, pod, f)
			if !ok {
				continue
			}
			ports := endpointPorts(svc, pod)
			id := fmt.Sprintf("%v", portNumbers(ports))
			i, known := byPorts[id]
			if !known {
				i = len(groups)
				byPorts[id] = i
				groups = append(groups, sliceGroup{family: discoveryv1.AddressType(f), ports: ports})
			}
			groups[i].endpoints = append(groups[i].endpoints, e)
		}
		if len(groups) == first {
			groups = append(groups, sliceGroup{family: discoveryv1.AddressType(f)})
		}
	}
	for _, g := range groups {
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int {
			return cmp.Compare(a.TargetRef.Name, b.TargetRef.Name)
		})
	}
	slices.SortStableFunc(groups, func(a, b sliceGroup) int {
		return cmp.Or(cmp.Compare(a.family, b.family), slices.Compare(portNumbers(a.ports), portNumbers(b.ports)))
	})
	return groups
}

func portNumbers(ports []discoveryv1.EndpointPort) []string {
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%s/%s/%d", *p.Name, *p.Protocol, *p.Port))
	}
	return out
}

// endpoint is what a Service sees of a pod in one family. A terminating pod
// serves as long as it is ready, but is not ready for new connections; with
// publishNotReadyAddresses everything is.
func (s *Store) endpoint(svc *corev1.Service, pod *corev1.Pod, f corev1.IPFamily) (discoveryv1.Endpoint, bool) {
	addr := ""
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && familyOf(a) == f {
			addr = ip.IP
		}
	}
	if addr == "" {
		return discoveryv1.Endpoint{}, false
	}
	serving, terminating := IsReady(pod), pod.DeletionTimestamp != nil
	e := discoveryv1.Endpoint{
		Addresses: []string{addr},
		Conditions: discoveryv1.EndpointConditions{
			Ready:       new(svc.Spec.PublishNotReadyAddresses || serving && !terminating),
			Serving:     new(serving),
			Terminating: new(terminating),
		},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		NodeName:  &pod.Spec.NodeName,
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		e.Hostname = &pod.Spec.Hostname
	}
	if node := s.next.nodes.m[pod.Spec.NodeName]; node != nil && node.Labels[corev1.LabelTopologyZone] != "" {
		e.Zone = new(node.Labels[corev1.LabelTopologyZone])
	}
	if *e.Conditions.Ready {
		e.Hints = trafficHints(svc.Spec.TrafficDistribution, pod.Spec.NodeName, e.Zone)
	}
	return e, true
}

// trafficHints are what the EndpointSlice controller writes for a Service's
// trafficDistribution: the endpoint is meant for its own zone, or node.
func trafficHints(want *string, node string, zone *string) *discoveryv1.EndpointHints {
	if want == nil {
		return nil
	}
	var h discoveryv1.EndpointHints
	if zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *zone}}
	}
	if *want == corev1.ServiceTrafficDistributionPreferSameNode {
		h.ForNodes = []discoveryv1.ForNode{{Name: node}}
	}
	if h.ForZones == nil && h.ForNodes == nil {
		return nil
	}
	return &h
}

// endpointPorts are a Service's ports with the numbers that they have on a pod; a
// port whose name the pod does not know is left out.
func endpointPorts(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for _, p := range svc.Spec.Ports {
		number, ok := TargetPort(p, pod)
		if !ok {
			continue
		}
		ports = append(ports, discoveryv1.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: &number, AppProtocol: p.AppProtocol})
	}
	return ports
}

// TargetPort is the number that a Service port has on a pod: a named targetPort
// is looked up among the pod's container ports of the same protocol.
func TargetPort(p corev1.ServicePort, pod *corev1.Pod) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		return cmp.Or(p.TargetPort.IntVal, p.Port), true
	}
	for c := range networkContainers(&pod.Spec) {
		for _, cp := range c.Ports {
			if cp.Name == p.TargetPort.StrVal && cp.Protocol == p.Protocol {
				return cp.ContainerPort, true
			}
		}
	}
	return 0, false
}

// networkContainers are those that may listen while the pod serves: containers
// and sidecars (init containers that are restarted always).
func networkContainers(spec *corev1.PodSpec) func(yield func(*corev1.Container) bool) {
	return func(yield func(*corev1.Container) bool) {
		for i := range spec.Containers {
			if !yield(&spec.Containers[i]) {
				return
			}
		}
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && !yield(c) {
				return
			}
		}
	}
}
