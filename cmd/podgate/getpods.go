package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pods prints kubectl's columns. IP is the first of a pod's addresses, as there:
// `get ports` and -o json have all of them.
func (p *getPrinter) pods(items []json.RawMessage) error {
	heads := []string{"READY", "STATUS", "RESTARTS", "AGE"}
	if p.wide {
		heads = append(heads, "IP", "NODE", "NOMINATED NODE", "READINESS GATES")
	}
	return object(p, items, func(o *corev1.Pod) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *corev1.Pod) []string {
		all := append(sidecars(o), o.Status.ContainerStatuses...)
		ready := 0
		for _, c := range all {
			if c.Ready {
				ready++
			}
		}
		total := len(o.Spec.Containers) + len(sidecarNames(o))
		row := []string{fmt.Sprintf("%d/%d", ready, total), podStatus(o), restarts(o, time.Now()), since(&o.ObjectMeta)}
		if p.wide {
			row = append(row, o.Status.PodIP, o.Spec.NodeName, "", "")
		}
		return row
	})
}

// sidecarNames are the init containers that run as long as the pod does.
func sidecarNames(o *corev1.Pod) (names []string) {
	for i := range o.Spec.InitContainers {
		if isSidecar(&o.Spec.InitContainers[i]) {
			names = append(names, o.Spec.InitContainers[i].Name)
		}
	}
	return names
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func sidecars(o *corev1.Pod) (out []corev1.ContainerStatus) {
	names := sidecarNames(o)
	for _, c := range o.Status.InitContainerStatuses {
		if slices.Contains(names, c.Name) {
			out = append(out, c)
		}
	}
	return out
}

// restarts counts those of all containers while they initialize, then those of
// the ones that go on, and says when the last was.
func restarts(o *corev1.Pod, now time.Time) string {
	all := append(sidecars(o), o.Status.ContainerStatuses...)
	if _, initializing := initStatus(o); initializing {
		all = o.Status.InitContainerStatuses
	}
	n, last := int32(0), time.Time{}
	for _, c := range all {
		n += c.RestartCount
		if t := c.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	if n == 0 || last.IsZero() {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d (%s ago)", n, age(last, now))
}

// podStatus is kubectl's STATUS column: the phase, or the reason of the
// container that is in trouble.
func podStatus(o *corev1.Pod) string {
	status := cmp.Or(o.Status.Reason, string(o.Status.Phase))
	if s, initializing := initStatus(o); initializing {
		status = s
	} else {
		running := false
		for _, c := range slices.Backward(o.Status.ContainerStatuses) {
			switch w, t := c.State.Waiting, c.State.Terminated; {
			case w != nil && w.Reason != "":
				status = w.Reason
			case t != nil:
				status = terminated(t)
			case c.Ready && c.State.Running != nil:
				running = true
			}
		}
		if status == "Completed" && running {
			status = "Running"
			if !podReady(o) {
				status = "NotReady"
			}
		}
	}
	if o.DeletionTimestamp != nil {
		return "Terminating"
	}
	return status
}

// initStatus says which init container a pod is at, until all are done.
func initStatus(o *corev1.Pod) (string, bool) {
	for i, c := range o.Status.InitContainerStatuses {
		switch w, t := c.State.Waiting, c.State.Terminated; {
		case t != nil && t.ExitCode == 0:
			continue
		case c.Started != nil && *c.Started && slices.Contains(sidecarNames(o), c.Name):
			continue
		case t != nil:
			return "Init:" + terminated(t), true
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			return "Init:" + w.Reason, true
		}
		return fmt.Sprintf("Init:%d/%d", i, len(o.Spec.InitContainers)), true
	}
	return "", false
}

func terminated(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func podReady(o *corev1.Pod) bool {
	return slices.ContainsFunc(o.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
