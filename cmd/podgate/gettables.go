package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/kube"
)

// getPrinter writes tables with kubectl's columns.
type getPrinter struct {
	w         io.Writer
	wide      bool
	namespace bool // a NAMESPACE column
	backends  []backendRecord
}

func decodeAll[T any](items []json.RawMessage) ([]T, error) {
	out := make([]T, len(items))
	for i, raw := range items {
		if err := json.Unmarshal(raw, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// object prints a table of API objects: the namespace where asked for, name, and
// whatever columns gives.
func object[T any](p *getPrinter, items []json.RawMessage, meta func(*T) *metav1.ObjectMeta, heads []string, columns func(*T) []string) error {
	objs, err := decodeAll[T](items)
	if err != nil {
		return err
	}
	slices.SortStableFunc(objs, func(a, b T) int {
		am, bm := meta(&a), meta(&b)
		return cmp.Or(cmp.Compare(am.Namespace, bm.Namespace), cmp.Compare(am.Name, bm.Name))
	})
	heads = append([]string{"NAME"}, heads...)
	if p.namespace {
		heads = append([]string{"NAMESPACE"}, heads...)
	}
	t := newTable(p.w, heads...)
	for i := range objs {
		m := meta(&objs[i])
		row := append([]string{m.Name}, columns(&objs[i])...)
		if p.namespace {
			row = append([]string{m.Namespace}, row...)
		}
		t.row(row...)
	}
	return t.flush()
}

func since(m *metav1.ObjectMeta) string { return age(m.CreationTimestamp.Time, time.Now()) }

func (p *getPrinter) services(items []json.RawMessage) error {
	heads := []string{"TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"}
	if p.wide {
		heads = append(heads, "SELECTOR", "BACKENDS")
	}
	return object(p, items, func(o *corev1.Service) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *corev1.Service) []string {
		external := append([]string(nil), o.Spec.ExternalIPs...)
		for _, in := range o.Status.LoadBalancer.Ingress {
			external = append(external, cmp.Or(in.IP, in.Hostname))
		}
		if o.Spec.Type == corev1.ServiceTypeExternalName {
			external = []string{o.Spec.ExternalName}
		}
		var ports []string
		for _, sp := range o.Spec.Ports {
			s := fmt.Sprint(sp.Port)
			if sp.NodePort != 0 {
				s += fmt.Sprintf(":%d", sp.NodePort)
			}
			ports = append(ports, s+"/"+string(sp.Protocol))
		}
		row := []string{string(o.Spec.Type), o.Spec.ClusterIP, strings.Join(external, ","), strings.Join(ports, ","), since(&o.ObjectMeta)}
		if p.wide {
			row = append(row, labelText(o.Spec.Selector), backendText(o, p.backends))
		}
		return row
	})
}

func labelText(m map[string]string) string {
	var parts []string
	for _, k := range sortedKeys(m) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}

func (p *getPrinter) endpointSlices(items []json.RawMessage) error {
	heads := []string{"ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"}
	return object(p, items, func(o *discoveryv1.EndpointSlice) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *discoveryv1.EndpointSlice) []string {
		var ports, eps []string
		for _, sp := range o.Ports {
			if sp.Port != nil {
				ports = append(ports, fmt.Sprint(*sp.Port))
			}
		}
		for _, e := range o.Endpoints {
			for _, a := range e.Addresses {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					a += " (not ready)"
				}
				eps = append(eps, a)
			}
		}
		if len(eps) > 3 && !p.wide {
			eps = append(eps[:3], fmt.Sprintf("+ %d more...", len(eps)-3))
		}
		return []string{string(o.AddressType), strings.Join(ports, ","), strings.Join(eps, ","), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) ingresses(items []json.RawMessage) error {
	heads := []string{"CLASS", "HOSTS", "ADDRESS", "PORTS", "AGE"}
	return object(p, items, func(o *networkingv1.Ingress) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *networkingv1.Ingress) []string {
		class := o.Annotations["kubernetes.io/ingress.class"]
		if o.Spec.IngressClassName != nil {
			class = *o.Spec.IngressClassName
		}
		var hosts, addrs []string
		for _, r := range o.Spec.Rules {
			hosts = append(hosts, cmp.Or(r.Host, "*"))
		}
		if len(hosts) == 0 {
			hosts = []string{"*"}
		}
		for _, in := range o.Status.LoadBalancer.Ingress {
			addrs = append(addrs, cmp.Or(in.IP, in.Hostname))
		}
		ports := "80"
		if len(o.Spec.TLS) > 0 {
			ports = "80, 443"
		}
		return []string{class, strings.Join(slices.Compact(hosts), ","), strings.Join(addrs, ","), ports, since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) policies(items []json.RawMessage) error {
	heads := []string{"POD-SELECTOR", "AGE"}
	if p.wide {
		heads = append(heads, "TYPES")
	}
	return object(p, items, func(o *networkingv1.NetworkPolicy) *metav1.ObjectMeta { return &o.ObjectMeta }, heads, func(o *networkingv1.NetworkPolicy) []string {
		row := []string{metav1.FormatLabelSelector(&o.Spec.PodSelector), since(&o.ObjectMeta)}
		if p.wide {
			var types []string
			for _, t := range o.Spec.PolicyTypes {
				types = append(types, string(t))
			}
			row = append(row, strings.Join(types, ","))
		}
		return row
	})
}

func (p *getPrinter) namespaces(items []json.RawMessage) error {
	p.namespace = false
	return object(p, items, func(o *corev1.Namespace) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"STATUS", "AGE"}, func(o *corev1.Namespace) []string {
		return []string{cmp.Or(string(o.Status.Phase), "Active"), since(&o.ObjectMeta)}
	})
}

func (p *getPrinter) clusterPolicies(items []json.RawMessage) error {
	return object(p, items, func(o *policyv1alpha2.ClusterNetworkPolicy) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"TIER", "PRIORITY", "AGE"},
		func(o *policyv1alpha2.ClusterNetworkPolicy) []string {
			return []string{string(o.Spec.Tier), fmt.Sprint(o.Spec.Priority), since(&o.ObjectMeta)}
		})
}

func (p *getPrinter) networks(items []json.RawMessage) error {
	return object(p, items, func(o *kube.NetworkAttachmentDefinition) *metav1.ObjectMeta { return &o.ObjectMeta }, []string{"AGE"},
		func(o *kube.NetworkAttachmentDefinition) []string { return []string{since(&o.ObjectMeta)} })
}
