package main

import (
	"cmp"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func want(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

func (p *getPrinter) deployments(items []json.RawMessage) error {
	heads := []string{"READY", "UP-TO-DATE", "AVAILABLE", "AGE"}
	return object(p, items, func(o *appsv1.Deployment) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *appsv1.Deployment) []string {
		st := &o.Status
		return []string{fmt.Sprintf("%d/%d", st.ReadyReplicas, want(o.Spec.Replicas)), fmt.Sprint(st.UpdatedReplicas), fmt.Sprint(st.AvailableReplicas), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) replicaSets(items []json.RawMessage) error {
	heads := []string{"DESIRED", "CURRENT", "READY", "AGE"}
	return object(p, items, func(o *appsv1.ReplicaSet) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *appsv1.ReplicaSet) []string {
		return []string{fmt.Sprint(want(o.Spec.Replicas)), fmt.Sprint(o.Status.Replicas), fmt.Sprint(o.Status.ReadyReplicas), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) statefulSets(items []json.RawMessage) error {
	return object(p, items, func(o *appsv1.StatefulSet) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"READY", "AGE"}, func(o *appsv1.StatefulSet) []string {
		return []string{fmt.Sprintf("%d/%d", o.Status.ReadyReplicas, want(o.Spec.Replicas)), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) daemonSets(items []json.RawMessage) error {
	heads := []string{"DESIRED", "CURRENT", "READY", "UP-TO-DATE", "AVAILABLE", "NODE SELECTOR", "AGE"}
	return object(p, items, func(o *appsv1.DaemonSet) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *appsv1.DaemonSet) []string {
		var row []string
		st := &o.Status
		for _, n := range []int32{st.DesiredNumberScheduled, st.CurrentNumberScheduled, st.NumberReady, st.UpdatedNumberScheduled, st.NumberAvailable} {
			row = append(row, fmt.Sprint(n))
		}
		return append(row, labelText(o.Spec.Template.Spec.NodeSelector), since(&o.ObjectMeta))
	})
}

func (p *getPrinter) ingressClasses(items []json.RawMessage) error {
	p.namespace = false
	return object(p, items, func(o *networkingv1.IngressClass) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"CONTROLLER", "PARAMETERS", "AGE"}, func(o *networkingv1.IngressClass) []string {
		parameters := ""
		if ref := o.Spec.Parameters; ref != nil {
			parameters = ref.Kind + "/" + ref.Name
		}
		return []string{o.Spec.Controller, parameters, since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) configMaps(items []json.RawMessage) error {
	return object(p, items, func(o *corev1.ConfigMap) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"DATA", "AGE"}, func(o *corev1.ConfigMap) []string {
		return []string{fmt.Sprint(len(o.Data) + len(o.BinaryData)), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) secrets(items []json.RawMessage) error {
	return object(p, items, func(o *corev1.Secret) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"TYPE", "DATA", "AGE"}, func(o *corev1.Secret) []string {
		return []string{cmp.Or(string(o.Type), string(corev1.SecretTypeOpaque)), fmt.Sprint(len(o.Data)), since(&o.ObjectMeta)}
	})
}
