package pod

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// report tells the pod's status if it is another one than before.
func (w *worker) report() {
	st := w.status()
	if w.told != nil && equality.Semantic.DeepEqual(w.told, st) {
		return
	}
	w.told = st
	w.r.cfg.Status(w.name, w.uid, *st.DeepCopy())
}

// status is what the kubelet would say of the pod. Addresses and what else is
// not the runtime's to say stay as they are.
func (w *worker) status() *corev1.PodStatus {
	st := w.pod.Status.DeepCopy()
	for i, g := range w.r.cfg.Gateway {
		if i == 0 {
			st.HostIP, st.HostIPs = g.String(), nil
		}
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: g.String()})
	}
	if st.PodIP == "" && len(st.PodIPs) > 0 {
		st.PodIP = st.PodIPs[0].IP
	}
	born := metav1.NewTime(w.born)
	st.StartTime = &born
	st.Reason, st.Message = w.reason, w.message
	st.ObservedGeneration = w.pod.Generation
	st.InitContainerStatuses = w.statuses(w.init)
	st.ContainerStatuses = w.statuses(w.main)
	st.Phase = w.phase()
	w.conditions(st)
	return st
}

func (w *worker) statuses(cs []*container) (out []corev1.ContainerStatus) {
	for _, c := range cs {
		out = append(out, c.status())
	}
	return out
}

func (c *container) status() corev1.ContainerStatus {
	spec := c.spec()
	s := corev1.ContainerStatus{
		Name:         c.name,
		Image:        spec.Image,
		ImageID:      spec.Image,
		RestartCount: int32(max(0, c.runs-1)),
		Started:      new(bool),
	}
	if c.runs > 0 {
		s.ContainerID = c.id()
	}
	if c.last != nil {
		s.LastTerminationState.Terminated = c.last
	}
	switch {
	case c.state == running && !c.run.hooked: // as the kubelet, until postStart has returned
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	case c.state == running:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.run.since)}
		*s.Started = c.run.started
		s.Ready = c.run.started && c.run.ready && (c.sidecar || !c.inInit)
	case c.state == ended && (c.reason == "" || !c.restarts() || c.w.released):
		s.State.Terminated = c.term
		s.Ready = c.inInit && c.term.ExitCode == 0
	default:
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.reason, Message: c.message}
		if c.runs == 0 && c.reason == "ContainerCreating" && len(c.w.init) > 0 && !c.w.initOver {
			s.State.Waiting.Reason = "PodInitializing"
		}
		if c.term != nil {
			s.LastTerminationState.Terminated = c.term
		}
	}
	return s
}

// phase follows the kubelet's getPhase.
func (w *worker) phase() corev1.PodPhase {
	for _, c := range w.init {
		if !c.sidecar && c.state == ended && c.term.ExitCode != 0 && !c.restarts() {
			return corev1.PodFailed
		}
	}
	if !w.initOver {
		return corev1.PodPending
	}
	var idle, alive, stopped, succeeded int
	for _, c := range w.main {
		switch {
		case c.state == running && c.run.hooked:
			alive++
		case c.state == running, c.state == waiting && c.term == nil, c.reason == "RunContainerError" && c.runs == 1 && c.restarts():
			idle++
		default:
			stopped++
			if c.term.ExitCode == 0 {
				succeeded++
			}
		}
	}
	policy := w.pod.Spec.RestartPolicy
	switch {
	case idle > 0:
		return corev1.PodPending
	case alive > 0 || policy == corev1.RestartPolicyAlways || policy == "":
		return corev1.PodRunning
	case succeeded == stopped:
		return corev1.PodSucceeded
	case policy == corev1.RestartPolicyNever:
		return corev1.PodFailed
	}
	return corev1.PodRunning
}

// conditions fills in those that are the kubelet's.
func (w *worker) conditions(st *corev1.PodStatus) {
	over := st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed
	w.condition(st, corev1.PodScheduled, true, "", "")
	w.condition(st, corev1.PodReadyToStartContainers, w.made && !w.released, "", "")

	names := func(cs []*container, bad func(*container) bool) (out []string) {
		for _, c := range cs {
			if bad(c) {
				out = append(out, c.name)
			}
		}
		return out
	}
	missing := names(w.init, func(c *container) bool {
		if c.sidecar {
			return !w.initOver && !(c.state == running && c.run.started)
		}
		return !w.initOver && !(c.state == ended && c.term.ExitCode == 0)
	})
	switch {
	case st.Phase == corev1.PodSucceeded:
		w.condition(st, corev1.PodInitialized, true, "PodCompleted", "")
	case len(missing) > 0:
		w.condition(st, corev1.PodInitialized, false, "ContainersNotInitialized",
			"containers with incomplete status: ["+strings.Join(missing, " ")+"]")
	default:
		w.condition(st, corev1.PodInitialized, true, "", "")
	}

	ready := func(c *container) bool { return c.state == running && c.run.started && c.run.ready && c.run.hooked }
	unready := names(w.init, func(c *container) bool { return c.sidecar && !ready(c) })
	unready = append(unready, names(w.main, func(c *container) bool { return !ready(c) })...)
	why, what := "", ""
	switch {
	case st.Phase == corev1.PodSucceeded:
		why = "PodCompleted"
	case st.Phase == corev1.PodFailed:
		why = "PodFailed"
	case len(unready) > 0:
		why, what = "ContainersNotReady", "containers with unready status: ["+strings.Join(unready, " ")+"]"
	}
	ok := !over && len(unready) == 0
	w.condition(st, corev1.ContainersReady, ok, why, what)
	if ok {
		for _, g := range w.pod.Spec.ReadinessGates {
			met := func(c corev1.PodCondition) bool { return c.Type == g.ConditionType && c.Status == corev1.ConditionTrue }
			if !slices.ContainsFunc(st.Conditions, met) {
				ok, why, what = false, "ReadinessGatesNotReady", "corresponding condition of pod readiness gate \""+string(g.ConditionType)+"\" does not exist or is not True."
			}
		}
	}
	w.condition(st, corev1.PodReady, ok, why, what)
}

// condition sets one; its time is that of the last change.
func (w *worker) condition(st *corev1.PodStatus, kind corev1.PodConditionType, ok bool, reason, message string) {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: w.pod.Generation}
	if ok {
		c.Status = corev1.ConditionTrue
	}
	same := func(o corev1.PodCondition) bool { return o.Type == kind }
	if w.told != nil {
		if i := slices.IndexFunc(w.told.Conditions, same); i >= 0 && w.told.Conditions[i].Status == c.Status {
			c.LastTransitionTime = w.told.Conditions[i].LastTransitionTime
		}
	}
	if c.LastTransitionTime.IsZero() {
		c.LastTransitionTime = metav1.NewTime(w.r.cfg.Clock.Now())
	}
	if i := slices.IndexFunc(st.Conditions, same); i >= 0 {
		st.Conditions[i] = c
		return
	}
	st.Conditions = append(st.Conditions, c)
}
