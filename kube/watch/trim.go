package watch

import (
	"sync"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"podgate/kube"
)

// trim takes from an object what no part of the gateway reads, in place: a
// cluster's state is held in memory, and most of its bytes are who wrote what
// when. Equal strings and flags of many objects become one. It may be called
// again.
func trim(o kube.API) kube.API {
	o.SetManagedFields(nil)
	if a := o.GetAnnotations(); a != nil {
		delete(a, corev1.LastAppliedConfigAnnotation)
		if len(a) == 0 {
			o.SetAnnotations(nil)
		}
	}
	switch o := o.(type) {
	case *corev1.Pod:
		trimPod(o)
	case *discoveryv1.EndpointSlice:
		trimSlice(o)
	case *corev1.Service:
		o.Namespace = one(o.Namespace)
		share(&o.Spec.InternalTrafficPolicy)
		share(&o.Spec.IPFamilyPolicy)
		o.Status.Conditions = nil
	case *corev1.Node:
		o.Status = corev1.NodeStatus{Addresses: o.Status.Addresses, Conditions: o.Status.Conditions}
	case *corev1.ConfigMap:
		o.BinaryData = nil
	case *networkingv1.NetworkPolicy:
		o.Namespace = one(o.Namespace)
	}
	return o
}

// trimPod keeps who the pod is, where, with which ports, and how it is.
func trimPod(o *corev1.Pod) {
	o.Namespace = one(o.Namespace)
	spec := o.Spec
	o.Spec = corev1.PodSpec{
		NodeName: one(spec.NodeName), HostNetwork: spec.HostNetwork, Hostname: spec.Hostname, Subdomain: spec.Subdomain,
		DNSPolicy: spec.DNSPolicy, DNSConfig: spec.DNSConfig,
		Containers: trimContainers(spec.Containers), InitContainers: trimContainers(spec.InitContainers),
	}
	st := o.Status
	o.Status = corev1.PodStatus{
		Phase: st.Phase, Reason: st.Reason, HostIP: st.HostIP, HostIPs: st.HostIPs, PodIP: st.PodIP, PodIPs: st.PodIPs, StartTime: st.StartTime,
	}
	for _, c := range st.Conditions {
		if c.Type == corev1.PodReady {
			o.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	for _, c := range st.ContainerStatuses {
		o.Status.ContainerStatuses = append(o.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Ready: c.Ready, RestartCount: c.RestartCount, State: c.State,
		})
	}
}

func trimContainers(all []corev1.Container) (out []corev1.Container) {
	for _, c := range all {
		out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out
}

func trimSlice(o *discoveryv1.EndpointSlice) {
	o.Namespace = one(o.Namespace)
	o.OwnerReferences = nil
	o.GenerateName = ""
	for k := range o.Annotations {
		if k != corev1.AnnotationTopologyMode {
			delete(o.Annotations, k)
		}
	}
	if len(o.Annotations) == 0 {
		o.Annotations = nil
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		share(&e.Conditions.Ready)
		share(&e.Conditions.Serving)
		share(&e.Conditions.Terminating)
		if e.NodeName != nil {
			e.NodeName = new(one(*e.NodeName))
		}
		share(&e.Zone)
		if r := e.TargetRef; r != nil {
			*r = corev1.ObjectReference{Kind: one(r.Kind), Namespace: one(r.Namespace), Name: r.Name}
		}
	}
	for i := range o.Ports {
		p := &o.Ports[i]
		share(&p.Name)
		share(&p.Protocol)
		share(&p.Port)
	}
}

// one is the string that all equal ones share.
func one(s string) string { return unique.Make(s).Value() }

// share makes a pointer the one that all equal values share: nobody writes through
// them. It is for values of which there are few.
func share[T comparable](p **T) {
	if *p != nil {
		v, _ := pool.LoadOrStore(**p, *p)
		*p = v.(*T)
	}
}

var pool sync.Map // value to pointer
