package kube

import (
	"cmp"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// setDefaults fills in what an API server fills in when it reads an object. What
// depends on other objects, as addresses do, is not its business.
func setDefaults(o API) {
	if isGateway(o) {
		defaultGateway(o)
		return
	}
	switch o := o.(type) {
	case *corev1.Namespace:
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[corev1.LabelMetadataName] = o.Name
	case *corev1.ConfigMap:
	case *corev1.Secret:
		o.Type = cmp.Or(o.Type, corev1.SecretTypeOpaque)
		if len(o.StringData) > 0 {
			if o.Data == nil {
				o.Data = map[string][]byte{}
			}
			for k, v := range o.StringData {
				o.Data[k] = []byte(v)
			}
			o.StringData = nil
		}
	case *corev1.Service:
		defaultService(o)
	case *oldEndpoints:
		defaultEndpoints(o)
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			defaultPtr(&o.Ports[i].Name, "")
			defaultPtr(&o.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	case *networkingv1.NetworkPolicy:
		defaultNetworkPolicy(o)
	case *networkingv1.IngressClass:
		if p := o.Spec.Parameters; p != nil {
			defaultPtr(&p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
		}
	case *networkingv1.Ingress:
	case *corev1.Pod:
		defaultPodSpec(&o.Spec)
	case *appsv1.Deployment:
		defaultPtr(&o.Spec.Replicas, 1)
		defaultPtr(&o.Spec.RevisionHistoryLimit, 10)
		defaultPtr(&o.Spec.ProgressDeadlineSeconds, 600)
		defaultLabels(&o.ObjectMeta, o.Spec.Template.Labels)
		defaultPodSpec(&o.Spec.Template.Spec)
		st := &o.Spec.Strategy
		defaulted(&st.Type, appsv1.RollingUpdateDeploymentStrategyType)
		if st.Type == appsv1.RollingUpdateDeploymentStrategyType {
			if st.RollingUpdate == nil {
				st.RollingUpdate = &appsv1.RollingUpdateDeployment{}
			}
			defaultPtr(&st.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
			defaultPtr(&st.RollingUpdate.MaxSurge, intstr.FromString("25%"))
		}
	case *appsv1.ReplicaSet:
		defaultPtr(&o.Spec.Replicas, 1)
		defaultLabels(&o.ObjectMeta, o.Spec.Template.Labels)
		defaultPodSpec(&o.Spec.Template.Spec)
	case *appsv1.StatefulSet:
		defaultPtr(&o.Spec.Replicas, 1)
		defaultPtr(&o.Spec.RevisionHistoryLimit, 10)
		defaulted(&o.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
		defaultLabels(&o.ObjectMeta, o.Spec.Template.Labels)
		defaultPodSpec(&o.Spec.Template.Spec)
		u := &o.Spec.UpdateStrategy
		defaulted(&u.Type, appsv1.RollingUpdateStatefulSetStrategyType)
		if u.Type == appsv1.RollingUpdateStatefulSetStrategyType {
			if u.RollingUpdate == nil {
				u.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
			}
			defaultPtr(&u.RollingUpdate.Partition, 0)
		}
	case *appsv1.DaemonSet:
		defaultPtr(&o.Spec.RevisionHistoryLimit, 10)
		defaultLabels(&o.ObjectMeta, o.Spec.Template.Labels)
		defaultPodSpec(&o.Spec.Template.Spec)
		u := &o.Spec.UpdateStrategy
		defaulted(&u.Type, appsv1.RollingUpdateDaemonSetStrategyType)
		if u.Type == appsv1.RollingUpdateDaemonSetStrategyType {
			if u.RollingUpdate == nil {
				u.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
			}
			defaultPtr(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
			defaultPtr(&u.RollingUpdate.MaxSurge, intstr.FromInt32(0))
		}
	}
}

func defaulted[T comparable](field *T, value T) { *field = cmp.Or(*field, value) }

func defaultPtr[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

// defaultLabels gives a workload without labels those of its pods.
func defaultLabels(m *metav1.ObjectMeta, template map[string]string) {
	if len(m.Labels) == 0 && len(template) > 0 {
		m.Labels = maps.Clone(template)
	}
}

func defaultService(o *corev1.Service) {
	spec := &o.Spec
	defaulted(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	if spec.SessionAffinity == corev1.ServiceAffinityNone {
		spec.SessionAffinityConfig = nil
	}
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(corev1.DefaultClientIPServiceAffinitySeconds)},
			}
		}
	}
	defaulted(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		defaulted(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if isExternal(o) {
		defaulted(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type != corev1.ServiceTypeExternalName {
		defaultPtr(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		defaultPtr(&spec.AllocateLoadBalancerNodePorts, true)
	}
	// clusterIP and the first of clusterIPs are one field; either may be given.
	switch {
	case spec.ClusterIP == "" && len(spec.ClusterIPs) > 0:
		spec.ClusterIP = spec.ClusterIPs[0]
	case spec.ClusterIP != "" && len(spec.ClusterIPs) == 0:
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

// defaultNetworkPolicy: a policy is about ingress, and about egress if it has
// egress rules, unless it says otherwise.
func defaultNetworkPolicy(o *networkingv1.NetworkPolicy) {
	for _, r := range o.Spec.Ingress {
		defaultPolicyPorts(r.Ports)
	}
	for _, r := range o.Spec.Egress {
		defaultPolicyPorts(r.Ports)
	}
	if len(o.Spec.PolicyTypes) == 0 {
		o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(o.Spec.Egress) != 0 {
			o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		defaultPtr(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func defaultPodSpec(spec *corev1.PodSpec) {
	defaulted(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	defaulted(&spec.DNSPolicy, corev1.DNSClusterFirst)
	defaulted(&spec.SchedulerName, corev1.DefaultSchedulerName)
	defaultPtr(&spec.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	defaultPtr(&spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	defaulted(&spec.ServiceAccountName, cmp.Or(spec.DeprecatedServiceAccount, "default"))
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	for i := range spec.InitContainers {
		defaultContainer(&spec.InitContainers[i], spec.HostNetwork)
	}
	for i := range spec.Containers {
		defaultContainer(&spec.Containers[i], spec.HostNetwork)
	}
}

func defaultContainer(c *corev1.Container, hostNetwork bool) {
	defaulted(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	defaulted(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
	}
	for i := range c.Ports {
		p := &c.Ports[i]
		defaulted(&p.Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			defaulted(&p.HostPort, p.ContainerPort)
		}
	}
	for i := range c.Env {
		if f := c.Env[i].ValueFrom; f != nil && f.FieldRef != nil {
			defaulted(&f.FieldRef.APIVersion, "v1")
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil && h.HTTPGet != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	defaulted(&p.TimeoutSeconds, 1)
	defaulted(&p.PeriodSeconds, 10)
	defaulted(&p.SuccessThreshold, 1)
	defaulted(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		defaultHTTPGet(p.HTTPGet)
	}
	if p.GRPC != nil {
		defaultPtr(&p.GRPC.Service, "")
	}
}

func defaultHTTPGet(g *corev1.HTTPGetAction) {
	defaulted(&g.Path, "/")
	defaulted(&g.Scheme, corev1.URISchemeHTTP)
}
