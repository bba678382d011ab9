package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podgate/control"
	"podgate/kube"
)

// findTarget finds the pod that exec, logs and port-forward mean by NAME,
// pod/NAME, or, in kubectl's way, by what selects pods: service/NAME,
// deployment/NAME and so on. Of those it is a ready one, the first by name.
func findTarget(st *kube.State, namespace, target string) (*corev1.Pod, error) {
	word, name, typed := strings.Cut(target, "/")
	if !typed {
		return findPod(st, namespace, target)
	}
	k, err := findKind(word)
	if err != nil {
		return nil, fmt.Errorf("%q is of no kind that has pods", target)
	}
	if k.name == "pods" {
		return findPod(st, namespace, name)
	}
	var selector *metav1.LabelSelector
	n := kube.Name{Namespace: namespace, Name: name}
	switch k.name {
	case "services":
		if svc := st.Services[n]; svc != nil {
			if len(svc.Spec.Selector) == 0 {
				return nil, fmt.Errorf("invalid service '%s': Service is defined without a selector", name)
			}
			selector = &metav1.LabelSelector{MatchLabels: svc.Spec.Selector}
		}
	case "deployments":
		if o := st.Deployments[n]; o != nil {
			selector = o.Spec.Selector
		}
	case "replicasets":
		if o := st.ReplicaSets[n]; o != nil {
			selector = o.Spec.Selector
		}
	case "statefulsets":
		if o := st.StatefulSets[n]; o != nil {
			selector = o.Spec.Selector
		}
	case "daemonsets":
		if o := st.DaemonSets[n]; o != nil {
			selector = o.Spec.Selector
		}
	default:
		return nil, fmt.Errorf("%s have no pods: name a pod, service, deployment, replicaset, statefulset or daemonset", k.name)
	}
	if selector == nil {
		return nil, fmt.Errorf("%s %q not found in namespace %q", k.name, name, namespace)
	}
	var pods []*corev1.Pod
	for _, p := range st.Pods {
		if p.Namespace == namespace && kube.Selects(selector, p.Labels) && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%s %q in namespace %q has no running pod", k.name, name, namespace)
	}
	return slices.MinFunc(pods, func(a, b *corev1.Pod) int {
		if ra, rb := kube.IsReady(a), kube.IsReady(b); ra != rb {
			if ra {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	}), nil
}

func (g *gateway) forward(q control.ForwardRequest) (t control.ForwardTarget, err error) {
	st := g.store.State()
	p, err := g.inside(st, q.Namespace, q.Target, "kubectl port-forward")
	if err != nil {
		return t, err
	}
	t.Pod = p.Name
	var svc *corev1.Service
	if word, name, typed := strings.Cut(q.Target, "/"); typed {
		if k, err := findKind(word); err == nil && k.name == "services" {
			svc = st.Services[kube.Name{Namespace: q.Namespace, Name: name}]
		}
	}
	for _, word := range q.Ports {
		var port control.ForwardPort
		if svc != nil {
			port, err = servicePort(svc, p, word)
		} else {
			port, err = podPort(p, word)
		}
		if err != nil {
			return t, err
		}
		t.Ports = append(t.Ports, port)
	}
	return t, nil
}

// podPort is a port of a pod by its number, or by the name that a container gives it.
func podPort(p *corev1.Pod, word string) (control.ForwardPort, error) {
	if n, err := strconv.ParseUint(word, 10, 16); err == nil && n > 0 {
		return control.ForwardPort{Asked: uint16(n), Port: uint16(n)}, nil
	}
	n, ok := kube.TargetPort(corev1.ServicePort{Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString(word)}, p)
	if !ok {
		return control.ForwardPort{}, fmt.Errorf("pod %s/%s has no TCP port %q", p.Namespace, p.Name, word)
	}
	return control.ForwardPort{Asked: uint16(n), Port: uint16(n)}, nil
}

// servicePort is the port of a pod that a Service's port, by number or name,
// leads to. As with kubectl a headless Service leads nowhere else.
func servicePort(svc *corev1.Service, p *corev1.Pod, word string) (port control.ForwardPort, err error) {
	udp := false
	for _, sp := range svc.Spec.Ports {
		if word != sp.Name && word != strconv.Itoa(int(sp.Port)) {
			continue
		}
		if sp.Protocol != corev1.ProtocolTCP {
			udp = true
			continue
		}
		n, ok := sp.Port, true
		if svc.Spec.ClusterIP != corev1.ClusterIPNone {
			n, ok = kube.TargetPort(sp, p)
		}
		if !ok {
			return port, fmt.Errorf("pod %s/%s has no TCP port %q, which Service %s calls port %d", p.Namespace, p.Name, sp.TargetPort.StrVal, svc.Name, sp.Port)
		}
		return control.ForwardPort{Asked: uint16(sp.Port), Port: uint16(n)}, nil
	}
	if udp {
		return port, fmt.Errorf("port %s of Service %s/%s is not TCP, which is all that can be forwarded", word, svc.Namespace, svc.Name)
	}
	return port, fmt.Errorf("no port %s in Service %s/%s", word, svc.Namespace, svc.Name)
}

func (g *gateway) dialPod(ctx context.Context, q control.DialRequest) (*os.File, error) {
	p, err := g.inside(g.store.State(), q.Namespace, q.Pod, "kubectl port-forward")
	if err != nil {
		return nil, err
	}
	return g.pods.Dial(ctx, kube.Name{Namespace: p.Namespace, Name: p.Name}, q.Port)
}

// inside finds a pod whose namespaces are podgate's own to enter; with is what
// does so in a real cluster.
func (g *gateway) inside(st *kube.State, namespace, target, with string) (*corev1.Pod, error) {
	p, err := findTarget(st, namespace, target)
	switch {
	case err != nil:
		return nil, err
	case kube.IsLocal(p):
		return nil, fmt.Errorf("pod %s/%s is part of the gateway itself: there is nothing to enter", p.Namespace, p.Name)
	case kube.IsAttached(p):
		return nil, fmt.Errorf("pod %s/%s is attached from outside: what runs in it is not podgate's", p.Namespace, p.Name)
	case g.pods == nil:
		return nil, errElsewhere(with)
	}
	return p, nil
}
