package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"podgate/control"
	"podgate/kube"
)

func (g *gateway) get(ctx context.Context, q control.GetRequest) (control.GetResult, error) {
	st, err := g.shown(ctx, q)
	if err != nil {
		return control.GetResult{}, err
	}
	var items []any
	switch q.Kind {
	case "pods":
		items = pick(st.Pods, q)
	case "services":
		items = pick(st.Services, q)
	case "endpointslices":
		items = pick(maps.Collect(st.EndpointSlices.All()), q)
	case "ingresses":
		items = g.ingressObjects(st, q)
	case "networkpolicies":
		items = pick(st.NetworkPolicies, q)
	case "clusternetworkpolicies":
		items = pickNamed(st.ClusterPolicies, q.Name)
	case "network-attachment-definitions":
		items = pick(st.NetworkAttachments, q)
	case "namespaces":
		items = pickNamed(st.Namespaces, q.Name)
	case "deployments":
		items = pick(st.Deployments, q)
	case "replicasets":
		items = pick(st.ReplicaSets, q)
	case "statefulsets":
		items = pick(st.StatefulSets, q)
	case "daemonsets":
		items = pick(st.DaemonSets, q)
	case "ingressclasses":
		items = pickNamed(st.IngressClasses, q.Name)
	case "gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "referencegrants", "backendtlspolicies":
		items = g.gatewayObjects(st, q)
	case "configmaps":
		items = pick(st.ConfigMaps, q)
	case "secrets":
		items = pick(st.Secrets, q)
	case "backends":
		for _, b := range g.backends(q.Namespace, q.Name) {
			items = append(items, b)
		}
	case "flows":
		for _, f := range g.plane.Flows() {
			items = append(items, f)
		}
	case "ports":
		for _, p := range g.plane.Ports() {
			items = append(items, p)
		}
	case "dns":
		items = g.dnsRecords(q)
	case "routes":
		for _, r := range g.routes() {
			items = append(items, r)
		}
	default:
		return control.GetResult{}, fmt.Errorf("the server doesn't have a resource type %q", q.Kind)
	}
	if q.Name != "" && len(items) == 0 && q.Kind != "backends" {
		return control.GetResult{}, fmt.Errorf("Error from server (NotFound): %s %q not found", q.Kind, q.Name)
	}
	res := control.GetResult{Generation: st.Generation}
	for _, item := range items {
		raw, err := encode(q.Kind, item)
		if err != nil {
			return res, err
		}
		res.Items = append(res.Items, raw)
	}
	return res, nil
}

// shown is the state that a question is about. Whoever watches asks for the next
// one that is enforced, statuses and all, and so once for each change.
func (g *gateway) shown(ctx context.Context, q control.GetRequest) (st *kube.State, err error) {
	if !q.Watch {
		return g.store.State(), nil
	}
	err = g.await(ctx, func() bool {
		st = g.compiled.state
		return st != nil && st.Generation > q.After
	})
	return st, err
}

// encode writes an object with the kind and apiVersion that Go's types leave out.
func encode(plural string, item any) (json.RawMessage, error) {
	raw, err := json.Marshal(item)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == plural })
	if kinds[i].apiKind == "" {
		return raw, nil
	}
	var o map[string]json.RawMessage
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	o["kind"], _ = json.Marshal(kinds[i].apiKind)
	o["apiVersion"], _ = json.Marshal(kinds[i].apiVersion)
	return json.Marshal(o)
}

func pick[T any](m map[kube.Name]T, q control.GetRequest) (out []any) {
	for _, n := range sortedNames(m) {
		if (q.Namespace == "" || q.Namespace == n.Namespace) && (q.Name == "" || q.Name == n.Name) {
			out = append(out, m[n])
		}
	}
	return out
}

// pickNamed is pick for kinds that are in no namespace.
func pickNamed[T any](m map[string]T, name string) (out []any) {
	for _, n := range sortedKeys(m) {
		if name == "" || name == n {
			out = append(out, m[n])
		}
	}
	return out
}

func sortedNames[T any](m map[kube.Name]T) []kube.Name {
	return slices.SortedFunc(maps.Keys(m), func(a, b kube.Name) int { return strings.Compare(a.String(), b.String()) })
}

// routeRecord is one line of `get routes`: where packets for a range go.
type routeRecord struct {
	Destination string `json:"destination"`
	Via         string `json:"via"`
	Note        string `json:"note,omitempty"`
}

func (g *gateway) routes() (out []routeRecord) {
	for _, p := range g.cfg.Kube.PodCIDRs {
		out = append(out, routeRecord{p.String(), "pods", "switched: the cluster's own network"})
	}
	networks := g.store.State().Networks
	for _, name := range sortedNames(networks) {
		for _, s := range networks[name].Subnets {
			out = append(out, routeRecord{s.Prefix.String(), "pods", "switched: network " + name.String()},
				routeRecord{netip.PrefixFrom(s.Gateway, s.Gateway.BitLen()).String(), "local", "the gateway's own in network " + name.String()})
		}
	}
	for _, a := range ownAddrs(g.cfg.Kube.PodCIDRs).all() {
		out = append(out, routeRecord{netip.PrefixFrom(a, a.BitLen()).String(), "local", "the gateway's own"})
	}
	for _, p := range g.cfg.Kube.ServiceCIDRs {
		out = append(out, routeRecord{p.String(), "services", "translated to an endpoint"})
	}
	for _, r := range g.cfg.Routes {
		out = append(out, routeRecord{r.Prefix.String(), r.Pod.String(), "a network behind a pod"})
	}
	for _, name := range sortedNames(networks) {
		for _, r := range networks[name].Routes {
			if r.Via.IsValid() {
				out = append(out, routeRecord{r.Dst.String(), r.Via.String(), "a network behind a pod of network " + name.String()})
			}
		}
	}
	for _, p := range g.forbiddenPrefixes() {
		out = append(out, routeRecord{p.String(), "reject", "egress forbidden"})
	}
	for _, d := range []string{"0.0.0.0/0", "::/0"} {
		r := routeRecord{d, "local", "egress by sockets"}
		switch {
		case g.uplink != nil && slices.ContainsFunc(g.uplink.nextHops, func(a netip.Addr) bool { return a.Is4() == (d == "0.0.0.0/0") }):
			r = routeRecord{d, uplinkPort.Name, "egress by packets, masqueraded"}
		case g.cfg.Egress == "none":
			r = routeRecord{d, "reject", "egress.mode is none"}
		}
		out = append(out, r)
	}
	return out
}
