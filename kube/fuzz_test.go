package kube

import (
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// FuzzManifests: whatever a file holds, reading it does not panic; what is
// applied of it makes a consistent State; applying it again changes nothing;
// deleting it leaves what was there before.
func FuzzManifests(f *testing.F) {
	for _, seed := range []string{
		web, db,
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}]",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}, namespace: shop}\nspec: {hostNetwork: true, containers: [{name: c, image: i, ports: [{name: http, containerPort: 1}]}]}\n---\n" + web,
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, externalTrafficPolicy: Local, ipFamilyPolicy: RequireDualStack, clusterIPs: ['fd00:10:96::5'], ports: [{name: a, port: 1, nodePort: 30001}, {name: b, port: 1, protocol: UDP}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {type: NodePort, ports: [{port: 1, nodePort: 30001}]}",
		"apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 1}]}, {notReadyAddresses: [{ip: '2001:db8::1'}]}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}",
		"apiVersion: extensions/v1beta1\nkind: Ingress\nmetadata: {name: a}\nspec: {backend: {serviceName: a, servicePort: 1}}",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: ::/0, except: [fe80::/10]}}], ports: [{port: 1, endPort: 2}]}]}",
		"apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, livenessProbe: {exec: {command: [x]}}, env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}]}}}",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: default}",
		"a: &a [*a]", "{}", "kind: [", "- - -",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ps := LoadBytes("f", data)
		for _, p := range ps {
			_ = p.String()
		}
		for _, o := range m.Objects {
			if many(o.API) {
				return
			}
		}
		s := testStore(Config{})
		empty := s.State()
		for _, c := range s.Apply(m.Objects) {
			_ = c.String()
			if c.Action == Rejected && len(c.Problems) == 0 {
				t.Errorf("%s %s: rejected without a reason", c.Kind, c.Name)
			}
		}
		consistent(t, s.State())
		s.Warnings()
		for _, c := range s.Apply(m.Objects) {
			if c.Action == Created || c.Action == Configured {
				t.Errorf("applied again: %s", c)
			}
		}
		for n, p := range s.State().Pods {
			if p.Annotations[LocalAnnotation] == "" {
				become(s, n, true)
			}
		}
		consistent(t, s.State())
		s.Delete(m.Objects)
		for ns := range s.State().Namespaces {
			play(s, ns, func() {})
		}
		st := s.State()
		if len(st.Pods) != len(empty.Pods) || len(st.Services) != len(empty.Services) || st.EndpointSlices.Len() != empty.EndpointSlices.Len() ||
			len(st.Namespaces) != len(empty.Namespaces) || len(s.records) != len(testStore(Config{}).records) || len(s.podAddresses.used) != 0 || len(s.alloc.ports.used) != 0 {
			t.Errorf("left behind: %d pods, %d services, %d slices, namespaces %v, addresses %v, ports %v",
				len(st.Pods), len(st.Services), st.EndpointSlices.Len(), st.Namespaces, s.podAddresses.used, s.alloc.ports.used)
		}
	})
}

func many(o API) bool {
	var n *int32
	switch o := o.(type) {
	case *appsv1.Deployment:
		n = o.Spec.Replicas
	case *appsv1.ReplicaSet:
		n = o.Spec.Replicas
	case *appsv1.StatefulSet:
		n = o.Spec.Replicas
	}
	return n != nil && *n > 20
}

// consistent checks what every compiler relies on.
func consistent(t *testing.T, st *State) {
	t.Helper()
	cfg := Config{}.WithDefaults()
	within := func(cidrs []netip.Prefix, s string) bool {
		a, err := netip.ParseAddr(s)
		return err == nil && (cidrs[0].Contains(a) || cidrs[1].Contains(a))
	}
	owner := map[string]string{}
	claim := func(what, by string) {
		t.Helper()
		if other, taken := owner[what]; taken && other != by {
			t.Errorf("%s and %s both have %s", other, by, what)
		}
		owner[what] = by
	}
	exists := func(n Name) {
		t.Helper()
		if st.Namespaces[n.Namespace] == nil {
			t.Errorf("%s: no such namespace", n)
		}
	}
	for n, p := range st.Pods {
		exists(n)
		claim("uid "+string(p.UID), "pod "+n.String())
		if len(p.Status.PodIPs) != 2 || p.Status.PodIP != p.Status.PodIPs[0].IP {
			t.Errorf("%s: got addresses %v", n, p.Status.PodIPs)
		}
		for _, ip := range p.Status.PodIPs {
			if !within(cfg.PodCIDRs, ip.IP) {
				t.Errorf("%s: address %s", n, ip.IP)
			}
			if !p.Spec.HostNetwork {
				claim("address "+ip.IP, "pod "+n.String())
			}
		}
	}
	for n, svc := range st.Services {
		exists(n)
		for _, ip := range svc.Spec.ClusterIPs {
			if ip == corev1.ClusterIPNone {
				continue
			}
			if !within(cfg.ServiceCIDRs, ip) {
				t.Errorf("%s: address %s", n, ip)
			}
			claim("address "+ip, "service "+n.String())
		}
		if len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIPs[0] != svc.Spec.ClusterIP {
			t.Errorf("%s: clusterIP %s, clusterIPs %v", n, svc.Spec.ClusterIP, svc.Spec.ClusterIPs)
		}
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				claim("node port "+string(rune(p.NodePort)), "service "+n.String())
			}
		}
	}
	for n, e := range st.EndpointSlices.All() {
		exists(n)
		by := e.Labels[discoveryv1.LabelManagedBy]
		if svc := e.Labels[discoveryv1.LabelServiceName]; strings.HasSuffix(by, "endpointslice-controller.k8s.io") && e.OwnerReferences != nil && st.Services[Name{n.Namespace, svc}] == nil {
			t.Errorf("slice %s of no Service", n)
		}
	}
}
