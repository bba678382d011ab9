package kube

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validatePodSpec checks what podgate makes use of. claims are names of volumes
// that come from elsewhere.
func validatePodSpec(s *corev1.PodSpec, claims []string, at *field.Path) (errs field.ErrorList) {
	volumes := map[string]bool{}
	for _, c := range claims {
		volumes[c] = true
	}
	for i, v := range s.Volumes {
		name := at.Child("volumes").Index(i).Child("name")
		if v.Name == "" {
			errs = append(errs, field.Required(name, ""))
			continue
		}
		errs = append(errs, invalid(name, v.Name, utilvalidation.IsDNS1123Label(v.Name))...)
		if volumes[v.Name] && !slices.Contains(claims, v.Name) {
			errs = append(errs, field.Duplicate(name, v.Name))
		}
		volumes[v.Name] = true
	}
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(at.Child("containers"), ""))
	}
	names, hostPorts := map[string]bool{}, map[string]bool{}
	check := func(list string, cs []corev1.Container) {
		for i := range cs {
			c, at := &cs[i], at.Child(list).Index(i)
			switch {
			case c.Name == "":
				errs = append(errs, field.Required(at.Child("name"), ""))
			case names[c.Name]:
				errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
			default:
				errs = append(errs, invalid(at.Child("name"), c.Name, utilvalidation.IsDNS1123Label(c.Name))...)
			}
			names[c.Name] = true
			errs = append(errs, validateContainer(c, volumes, hostPorts, s.HostNetwork, at)...)
			if list == "initContainers" {
				errs = append(errs, validateInitContainer(c, at)...)
			}
		}
	}
	check("containers", s.Containers)
	check("initContainers", s.InitContainers)
	errs = append(errs, oneOf(s.RestartPolicy, at.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, validatePodDNS(s, at)...)
	for name, label := range map[string]string{"hostname": s.Hostname, "subdomain": s.Subdomain} {
		if label != "" {
			errs = append(errs, invalid(at.Child(name), label, utilvalidation.IsDNS1123Label(label))...)
		}
	}
	for i, a := range s.HostAliases {
		at := at.Child("hostAliases").Index(i)
		_, bad := validateIP(a.IP, at.Child("ip"))
		errs = append(errs, bad...)
		for j, h := range a.Hostnames {
			errs = append(errs, invalid(at.Child("hostnames").Index(j), h, utilvalidation.IsDNS1123Subdomain(h))...)
		}
	}
	return append(errs, validation.ValidateNonnegativeField(*s.TerminationGracePeriodSeconds, at.Child("terminationGracePeriodSeconds"))...)
}

func validatePodDNS(s *corev1.PodSpec, at *field.Path) field.ErrorList {
	errs := oneOf(s.DNSPolicy, at.Child("dnsPolicy"), corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	c, at := s.DNSConfig, at.Child("dnsConfig")
	if s.DNSPolicy == corev1.DNSNone && (c == nil || len(c.Nameservers) == 0) {
		return append(errs, field.Required(at.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone)))
	}
	if c == nil {
		return errs
	}
	if len(c.Nameservers) > 3 {
		errs = append(errs, field.Invalid(at.Child("nameservers"), c.Nameservers, "must not have more than 3 nameservers"))
	}
	for i, ns := range c.Nameservers {
		_, bad := validateIP(ns, at.Child("nameservers").Index(i))
		errs = append(errs, bad...)
	}
	if len(c.Searches) > 32 {
		errs = append(errs, field.Invalid(at.Child("searches"), c.Searches, "must not have more than 32 search paths"))
	}
	if len(strings.Join(c.Searches, " ")) > 2048 {
		errs = append(errs, field.Invalid(at.Child("searches"), c.Searches, "must not have more than 2048 characters (including spaces) in the search list"))
	}
	for i, s := range c.Searches {
		if s != "." {
			errs = append(errs, invalid(at.Child("searches").Index(i), s, utilvalidation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(s, ".")))...)
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(at.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

func validateInitContainer(c *corev1.Container, at *field.Path) (errs field.ErrorList) {
	if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		return nil // a sidecar is a container but for when it starts
	}
	why := "may not be set for init containers without restartPolicy=Always"
	for name, set := range map[string]bool{
		"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil,
		"readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil,
	} {
		if set {
			errs = append(errs, field.Forbidden(at.Child(name), why))
		}
	}
	return errs
}

func validateContainer(c *corev1.Container, volumes, hostPorts map[string]bool, hostNetwork bool, at *field.Path) (errs field.ErrorList) {
	if c.Image == "" {
		errs = append(errs, field.Required(at.Child("image"), ""))
	}
	names := map[string]bool{}
	for i, p := range c.Ports {
		at := at.Child("ports").Index(i)
		if p.Name != "" {
			errs = append(errs, invalid(at.Child("name"), p.Name, utilvalidation.IsValidPortName(p.Name))...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		if p.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, validatePortNumber(p.ContainerPort, at.Child("containerPort"))...)
		}
		errs = append(errs, validateProtocol(p.Protocol, at.Child("protocol"))...)
		if p.HostPort == 0 {
			continue
		}
		errs = append(errs, validatePortNumber(p.HostPort, at.Child("hostPort"))...)
		if hostNetwork && p.HostPort != p.ContainerPort {
			errs = append(errs, field.Invalid(at.Child("containerPort"), p.ContainerPort, "must match `hostPort` when `hostNetwork` is true"))
		}
		if p.HostIP != "" {
			_, bad := validateIP(p.HostIP, at.Child("hostIP"))
			errs = append(errs, bad...)
		}
		id := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if hostPorts[id] {
			errs = append(errs, field.Duplicate(at.Child("hostPort"), id))
		}
		hostPorts[id] = true
	}
	errs = append(errs, validateEnv(c, at)...)
	for i, m := range c.VolumeMounts {
		at := at.Child("volumeMounts").Index(i)
		switch {
		case m.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case !volumes[m.Name]:
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(at.Child("mountPath"), ""))
		}
	}
	errs = append(errs, validateProbe(c.LivenessProbe, at.Child("livenessProbe"), true)...)
	errs = append(errs, validateProbe(c.StartupProbe, at.Child("startupProbe"), true)...)
	errs = append(errs, validateProbe(c.ReadinessProbe, at.Child("readinessProbe"), false)...)
	if l := c.Lifecycle; l != nil {
		for name, h := range map[string]*corev1.LifecycleHandler{"postStart": l.PostStart, "preStop": l.PreStop} {
			if h != nil {
				errs = append(errs, validateHandler(handler{h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep}, at.Child("lifecycle", name))...)
			}
		}
	}
	return errs
}

func validateEnv(c *corev1.Container, at *field.Path) (errs field.ErrorList) {
	for i, e := range c.Env {
		at := at.Child("env").Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, invalid(at.Child("name"), e.Name, utilvalidation.IsRelaxedEnvVarName(e.Name))...)
		}
		f := e.ValueFrom
		if f == nil {
			continue
		}
		at = at.Child("valueFrom")
		sources := 0
		for _, set := range []bool{f.FieldRef != nil, f.ResourceFieldRef != nil, f.ConfigMapKeyRef != nil, f.SecretKeyRef != nil, f.FileKeyRef != nil} {
			if set {
				sources++
			}
		}
		switch {
		case e.Value != "":
			errs = append(errs, field.Invalid(at, "", "may not be specified when `value` is not empty"))
		case sources == 0:
			errs = append(errs, field.Invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
		case sources > 1:
			errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
		}
		if f.FieldRef != nil {
			if _, err := fieldValue(&corev1.Pod{}, f.FieldRef.FieldPath); err != nil {
				errs = append(errs, field.NotSupported(at.Child("fieldRef", "fieldPath"), f.FieldRef.FieldPath, fieldPaths))
			}
		}
		if r := f.ConfigMapKeyRef; r != nil && r.Key == "" {
			errs = append(errs, field.Required(at.Child("configMapKeyRef", "key"), ""))
		}
		if r := f.SecretKeyRef; r != nil && r.Key == "" {
			errs = append(errs, field.Required(at.Child("secretKeyRef", "key"), ""))
		}
	}
	for i, f := range c.EnvFrom {
		at := at.Child("envFrom").Index(i)
		switch {
		case f.ConfigMapRef != nil && f.SecretRef != nil:
			errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
		case f.ConfigMapRef == nil && f.SecretRef == nil:
			errs = append(errs, field.Invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"))
		case f.ConfigMapRef != nil && f.ConfigMapRef.Name == "":
			errs = append(errs, field.Required(at.Child("configMapRef", "name"), ""))
		case f.SecretRef != nil && f.SecretRef.Name == "":
			errs = append(errs, field.Required(at.Child("secretRef", "name"), ""))
		}
	}
	return errs
}

func validateProbe(p *corev1.Probe, at *field.Path, once bool) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := validateHandler(handler{p.Exec, p.HTTPGet, p.TCPSocket, p.GRPC, nil}, at)
	for _, f := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds}, {"timeoutSeconds", p.TimeoutSeconds}, {"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold}, {"failureThreshold", p.FailureThreshold},
	} {
		errs = append(errs, validation.ValidateNonnegativeField(int64(f.value), at.Child(f.name))...)
	}
	if once && p.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	}
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		errs = append(errs, field.Invalid(at.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
	}
	return errs
}

// handler is what probes and lifecycle hooks have in common.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func validateHandler(h handler, at *field.Path) (errs field.ErrorList) {
	found := false
	only := func(name string) *field.Path {
		if found {
			errs = append(errs, field.Forbidden(at.Child(name), "may not specify more than 1 handler type"))
		}
		found = true
		return at.Child(name)
	}
	if h.exec != nil {
		if at := only("exec"); len(h.exec.Command) == 0 {
			errs = append(errs, field.Required(at.Child("command"), ""))
		}
	}
	if h.http != nil {
		at := only("httpGet")
		errs = append(errs, validatePort(h.http.Port, at.Child("port"))...)
		errs = append(errs, oneOf(h.http.Scheme, at.Child("scheme"), corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for _, header := range h.http.HTTPHeaders {
			errs = append(errs, invalid(at.Child("httpHeaders"), header.Name, utilvalidation.IsHTTPHeaderName(header.Name))...)
		}
	}
	if h.tcp != nil {
		errs = append(errs, validatePort(h.tcp.Port, only("tcpSocket").Child("port"))...)
	}
	if h.grpc != nil {
		errs = append(errs, validatePortNumber(h.grpc.Port, only("grpc").Child("port"))...)
	}
	if h.sleep != nil {
		only("sleep")
	}
	if !found {
		errs = append(errs, field.Required(at, "must specify a handler type"))
	}
	return errs
}
