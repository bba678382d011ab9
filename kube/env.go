package kube

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// ContainerEnv is the environment of a container as NAME=value, sorted: what env
// and envFrom say, and the variables of Services as far as enableServiceLinks
// lets and nothing else has their names. An error names every ConfigMap, Secret
// and key that is missing and not optional; the container cannot start then.
func ContainerEnv(st *State, pod *corev1.Pod, c *corev1.Container) ([]string, error) {
	env, services := map[string]string{}, map[string]string{}
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		services = serviceEnv(st, pod.Namespace)
	}
	lookup := func(name string) (string, bool) {
		if v, ok := env[name]; ok {
			return v, true
		}
		v, ok := services[name]
		return v, ok
	}
	var errs []error
	for _, from := range c.EnvFrom {
		data, err := envFrom(st, pod.Namespace, from)
		if err != nil {
			errs = append(errs, err)
		}
		for k, v := range data {
			env[from.Prefix+k] = v
		}
	}
	for _, e := range c.Env {
		switch {
		case e.Value != "":
			env[e.Name] = expand(e.Value, lookup)
		case e.ValueFrom != nil:
			v, ok, err := envValue(st, pod, c, e.ValueFrom)
			if err != nil {
				errs = append(errs, fmt.Errorf("env %s: %w", e.Name, err))
			}
			if ok {
				env[e.Name] = v
			}
		default:
			env[e.Name] = ""
		}
	}
	for k, v := range services {
		if _, ok := env[k]; !ok {
			env[k] = v
		}
	}
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out, errors.Join(errs...)
}

// ExpandCommand replaces $(NAME) in a container's command and args by the values
// of its environment; $$ is a dollar sign, and a name that is not there stays as
// it is written.
func ExpandCommand(c *corev1.Container, env []string) (command, args []string) {
	vars := map[string]string{}
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		vars[k] = v
	}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	for _, a := range c.Command {
		command = append(command, expand(a, lookup))
	}
	for _, a := range c.Args {
		args = append(args, expand(a, lookup))
	}
	return command, args
}

func expand(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		next, rest := s[i+1], s[i+2:]
		end := strings.IndexByte(rest, ')')
		switch {
		case next == '$':
			b.WriteByte('$')
		case next == '(' && end >= 0:
			if v, ok := lookup(rest[:end]); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + rest[:end] + ")")
			}
			rest = rest[end+1:]
		default:
			b.WriteString(s[i : i+2])
		}
		s = rest
	}
}

func envFrom(st *State, namespace string, from corev1.EnvFromSource) (map[string]string, error) {
	out := map[string]string{}
	if r := from.ConfigMapRef; r != nil {
		m := st.ConfigMaps[Name{namespace, r.Name}]
		if m == nil {
			return nil, missing("configmap", r.Name, r.Optional)
		}
		maps.Copy(out, m.Data)
	}
	if r := from.SecretRef; r != nil {
		m := st.Secrets[Name{namespace, r.Name}]
		if m == nil {
			return nil, missing("secret", r.Name, r.Optional)
		}
		for k, v := range m.Data {
			out[k] = string(v)
		}
	}
	return out, nil
}

func missing(kind, name string, optional *bool) error {
	if optional != nil && *optional {
		return nil
	}
	return fmt.Errorf("%s %q not found", kind, name)
}

// envValue is the value of a variable that comes from elsewhere; not ok if it is
// optional and not there, or missing.
func envValue(st *State, pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource) (v string, ok bool, err error) {
	ns := pod.Namespace
	switch {
	case from.FieldRef != nil:
		v, err = fieldValue(pod, from.FieldRef.FieldPath)
		return v, err == nil, err
	case from.ResourceFieldRef != nil:
		v, err = resourceValue(pod, c, from.ResourceFieldRef)
		return v, err == nil, err
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		m := st.ConfigMaps[Name{ns, r.Name}]
		if m == nil {
			return "", false, missing("configmap", r.Name, r.Optional)
		}
		if v, ok = m.Data[r.Key]; ok || r.Optional != nil && *r.Optional {
			return v, ok, nil
		}
		return "", false, fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", r.Key, ns, r.Name)
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		m := st.Secrets[Name{ns, r.Name}]
		if m == nil {
			return "", false, missing("secret", r.Name, r.Optional)
		}
		if b, ok := m.Data[r.Key]; ok || r.Optional != nil && *r.Optional {
			return string(b), ok, nil
		}
		return "", false, fmt.Errorf("couldn't find key %s in Secret %s/%s", r.Key, ns, r.Name)
	}
	return "", false, errors.New("this kind of valueFrom is not supported")
}

var fieldPaths = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations",
	"spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
}

// fieldValue is what the downward API gives for a field of a pod.
func fieldValue(pod *corev1.Pod, path string) (string, error) {
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	}
	field, rest, _ := strings.Cut(path, "['")
	key, ok := strings.CutSuffix(rest, "']")
	switch {
	case ok && field == "metadata.labels":
		return pod.Labels[key], nil
	case ok && field == "metadata.annotations":
		return pod.Annotations[key], nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %s", path)
}

// resourceValue is a request or limit of a container in units of the divisor,
// rounded up. A limit on CPU that is not set is the machine's number of CPUs.
func resourceValue(pod *corev1.Pod, c *corev1.Container, r *corev1.ResourceFieldSelector) (string, error) {
	for _, other := range pod.Spec.Containers {
		if other.Name == r.ContainerName {
			c = &other
		}
	}
	which, name, _ := strings.Cut(r.Resource, ".")
	var list corev1.ResourceList
	switch which {
	case "limits":
		list = c.Resources.Limits
	case "requests":
		list = c.Resources.Requests
	default:
		return "", fmt.Errorf("unsupported container resource: %s", r.Resource)
	}
	q, ok := list[corev1.ResourceName(name)]
	if !ok && which == "limits" && name == "cpu" {
		q = *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
	}
	divisor := r.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	unit := divisor.MilliValue()
	if name == "cpu" {
		return strconv.FormatInt((q.MilliValue()+unit-1)/unit, 10), nil
	}
	whole := max(divisor.Value(), 1)
	return strconv.FormatInt((q.Value()+whole-1)/whole, 10), nil
}

// serviceEnv are the variables for the Services of a namespace that have a
// ClusterIP, in Kubernetes' form and in that of Docker links.
func serviceEnv(st *State, namespace string) map[string]string {
	env := map[string]string{}
	for n, svc := range st.Services {
		ip := svc.Spec.ClusterIP
		if n.Namespace != namespace || ip == "" || ip == corev1.ClusterIPNone || len(svc.Spec.Ports) == 0 {
			continue
		}
		name := envName(n.Name)
		env[name+"_SERVICE_HOST"] = ip
		for i, p := range svc.Spec.Ports {
			number := strconv.Itoa(int(p.Port))
			proto := string(p.Protocol)
			url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, number)
			if i == 0 {
				env[name+"_SERVICE_PORT"] = number
				env[name+"_PORT"] = url
			}
			if p.Name != "" {
				env[name+"_SERVICE_PORT_"+envName(p.Name)] = number
			}
			prefix := name + "_PORT_" + number + "_" + strings.ToUpper(proto)
			env[prefix] = url
			env[prefix+"_PROTO"] = strings.ToLower(proto)
			env[prefix+"_PORT"] = number
			env[prefix+"_ADDR"] = ip
		}
	}
	return env
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
