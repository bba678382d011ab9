package kube

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Warnings looks for what is valid but hardly meant: selectors that pick nothing,
// names that lead nowhere. An API server would say nothing of these. It reads the
// whole State: for people who ask, not for every change.
func (s *Store) Warnings() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Problem
	s.current().lint(func(severity Severity, k key, at *field.Path, why string) {
		if r := s.pods[k.name]; k.kind == "Pod" && r != nil && r.owner.kind != "" && r.owner != k {
			k = r.owner
			at = field.NewPath("spec", "template").Child(at.String())
		}
		r := s.records[k]
		if r == nil || r.builtin && k.kind != "Namespace" {
			return
		}
		p := r.source.problem(at.String(), why)
		p.Severity = severity
		out = append(out, p)
	})
	return sortProblems(out)
}

type report func(severity Severity, k key, at *field.Path, why string)

func (st *State) lint(warn report) {
	for n, svc := range st.Services {
		st.lintService(n, svc, warn)
	}
	for n, ing := range st.Ingresses {
		st.lintIngress(n, ing, warn)
	}
	for n, p := range st.NetworkPolicies {
		any := false
		for pn, pod := range st.Pods {
			any = any || pn.Namespace == n.Namespace && Selects(&p.Spec.PodSelector, pod.Labels)
		}
		if !any {
			warn(Info, key{"NetworkPolicy", n}, field.NewPath("spec", "podSelector"), fmt.Sprintf("selects no pod in namespace %q", n.Namespace))
		}
	}
	for n, pod := range st.Pods {
		for i := range pod.Spec.Containers {
			if _, err := ContainerEnv(st, pod, &pod.Spec.Containers[i]); err != nil {
				warn(Warning, key{"Pod", n}, field.NewPath("spec", "containers").Index(i).Child("env"), strings.ReplaceAll(err.Error(), "\n", "; "))
			}
		}
	}
	for n, ss := range st.StatefulSets {
		if name := ss.Spec.ServiceName; name != "" && st.Services[Name{n.Namespace, name}] == nil {
			warn(Warning, key{"StatefulSet", n}, field.NewPath("spec", "serviceName"), fmt.Sprintf("no Service %q in namespace %q: its pods have no names in DNS", name, n.Namespace))
		}
	}
}

func (st *State) lintService(n Name, svc *corev1.Service, warn report) {
	spec := field.NewPath("spec")
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	var pods []*corev1.Pod
	for pn, pod := range st.Pods {
		if pn.Namespace == n.Namespace && selects(svc.Spec.Selector, pod.Labels) {
			pods = append(pods, pod)
		}
	}
	if len(pods) == 0 {
		warn(Warning, key{"Service", n}, spec.Child("selector"), fmt.Sprintf("selects no pod in namespace %q", n.Namespace))
		return
	}
	for i, p := range svc.Spec.Ports {
		if p.TargetPort.Type != intstr.String {
			continue
		}
		found := false
		for _, pod := range pods {
			_, ok := TargetPort(p, pod)
			found = found || ok
		}
		if !found {
			warn(Warning, key{"Service", n}, spec.Child("ports").Index(i).Child("targetPort"),
				fmt.Sprintf("no pod that is selected has a %s container port named %q", p.Protocol, p.TargetPort.StrVal))
		}
	}
}

func (st *State) lintIngress(n Name, ing *networkingv1.Ingress, warn report) {
	k, spec := key{"Ingress", n}, field.NewPath("spec")
	backend := func(b *networkingv1.IngressBackend, at *field.Path) {
		if b == nil || b.Service == nil {
			return
		}
		svc := st.Services[Name{n.Namespace, b.Service.Name}]
		if svc == nil {
			warn(Warning, k, at.Child("service", "name"), fmt.Sprintf("no Service %q in namespace %q", b.Service.Name, n.Namespace))
			return
		}
		if svc.Spec.Type == corev1.ServiceTypeExternalName {
			return // its ports are those of what it is a name for
		}
		for _, p := range svc.Spec.Ports {
			if p.Port == b.Service.Port.Number || p.Name == b.Service.Port.Name && p.Name != "" {
				return
			}
		}
		if name := b.Service.Port.Name; name != "" {
			warn(Warning, k, at.Child("service", "port", "name"), fmt.Sprintf("Service %q has no port named %q", svc.Name, name))
		} else {
			warn(Warning, k, at.Child("service", "port", "number"), fmt.Sprintf("Service %q has no port %d", svc.Name, b.Service.Port.Number))
		}
	}
	backend(ing.Spec.DefaultBackend, spec.Child("defaultBackend"))
	for i, r := range ing.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for j := range r.HTTP.Paths {
			backend(&r.HTTP.Paths[j].Backend, spec.Child("rules").Index(i).Child("http", "paths").Index(j).Child("backend"))
		}
	}
	for i, t := range ing.Spec.TLS {
		at := spec.Child("tls").Index(i).Child("secretName")
		secret := st.Secrets[Name{n.Namespace, t.SecretName}]
		switch {
		case t.SecretName == "":
		case secret == nil:
			warn(Warning, k, at, fmt.Sprintf("no Secret %q in namespace %q", t.SecretName, n.Namespace))
		case len(secret.Data[corev1.TLSCertKey]) == 0 || len(secret.Data[corev1.TLSPrivateKeyKey]) == 0:
			warn(Warning, k, at, fmt.Sprintf("Secret %q has no %s and %s", t.SecretName, corev1.TLSCertKey, corev1.TLSPrivateKeyKey))
		}
	}
}

// Check reads manifests and says all that is wrong with them: what Load, a store
// of its own and Warnings find.
func Check(cfg Config, m *Manifests, loaded []Problem) []Problem {
	s := NewStore(cfg, nil)
	s.Sync(m.Objects, loaded)
	return sortProblems(append(append([]Problem(nil), s.State().Problems...), s.Warnings()...))
}
