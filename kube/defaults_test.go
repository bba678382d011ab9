package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// TestDefaults: what an API server adds, by the field descriptions of the API.
func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		name, in string
		got      func(API) any
		want     string
	}{
		{"service", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}", func(o API) any { return o.(*corev1.Service).Spec }, `
internalTrafficPolicy: Cluster
ports:
- {port: 80, protocol: TCP, targetPort: 80}
sessionAffinity: None
type: ClusterIP
`},
		{"load balancer with affinity", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: web}]}", func(o API) any { return o.(*corev1.Service).Spec }, `
allocateLoadBalancerNodePorts: true
externalTrafficPolicy: Cluster
internalTrafficPolicy: Cluster
ports:
- {port: 80, protocol: TCP, targetPort: web}
sessionAffinity: ClientIP
sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
type: LoadBalancer
`},
		{"policy of ingress", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}", func(o API) any { return o.(*networkingv1.NetworkPolicy).Spec }, `
podSelector: {}
ingress: [{ports: [{port: 80, protocol: TCP}]}]
policyTypes: [Ingress]
`},
		{"policy of egress", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, egress: [{}]}", func(o API) any { return o.(*networkingv1.NetworkPolicy).Spec }, `
podSelector: {}
egress: [{}]
policyTypes: [Ingress, Egress]
`},
		{"policy with types", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, egress: [{}], policyTypes: [Egress]}", func(o API) any { return o.(*networkingv1.NetworkPolicy).Spec.PolicyTypes }, "[Egress]"},
		{"probe", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i, readinessProbe: {httpGet: {port: 80}}}]}", func(o API) any { return o.(*corev1.Pod).Spec.Containers[0].ReadinessProbe }, `
failureThreshold: 3
httpGet: {path: /, port: 80, scheme: HTTP}
periodSeconds: 10
successThreshold: 1
timeoutSeconds: 1
`},
		{"deployment", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {metadata: {labels: {a: b}}}}", func(o API) any {
			d := o.(*appsv1.Deployment)
			return []any{*d.Spec.Replicas, d.Spec.Strategy, d.Labels}
		}, `
- 1
- {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
- {a: b}
`},
		{"pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}", func(o API) any { return o.(*corev1.Pod).Spec }, `
containers: []
dnsPolicy: ClusterFirst
enableServiceLinks: true
restartPolicy: Always
schedulerName: default-scheduler
securityContext: {}
serviceAccountName: default
terminationGracePeriodSeconds: 30
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := load(t, c.in)[0].API
			setDefaults(o)
			got, err := yaml.Marshal(c.got(o))
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := yaml.Unmarshal([]byte(c.want), &v); err != nil {
				t.Fatal(err)
			}
			want, _ := yaml.Marshal(v)
			if string(got) != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestConfigValidate(t *testing.T) {
	prefixes := func(s string) (out []netip.Prefix) {
		for p := range strings.FieldsSeq(s) {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, ""},
		{Config{PodCIDRs: prefixes("10.0.0.0/28")}, ""},
		{Config{PodCIDRs: prefixes("10.0.0.0/29")}, "CIDR 10.0.0.0/29: too small, at least 16 addresses are needed"},
		{Config{PodCIDRs: prefixes("10.0.0.1/24")}, "CIDR 10.0.0.1/24: must be a network address with its prefix length"},
		{Config{PodCIDRs: prefixes("10.96.0.0/12")}, "CIDRs 10.96.0.0/12 and 10.96.0.0/16 overlap"},
		{Config{PodCIDRs: prefixes("10.0.0.0/24 10.1.0.0/24")}, "CIDRs [10.0.0.0/24 10.1.0.0/24]: at most one a family"},
		{Config{NodePortMin: 40000}, "node ports 40000-32767: the first is above the last"},
	} {
		got := ""
		if err := c.cfg.Validate(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v: got %q, want %q", fmt.Sprint(c.cfg.PodCIDRs), got, c.want)
		}
	}
}
