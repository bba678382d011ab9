package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"podgate/control"
)

// kind is one thing that `get` knows: its plural, its other names, how its API
// calls it (nothing: it is podgate's own), and how a table of it looks.
type kind struct {
	name       string
	aliases    []string
	apiKind    string
	apiVersion string
	namespaced bool
	print      func(p *getPrinter, items []json.RawMessage) error
}

var kinds = []kind{
	{"pods", []string{"pod", "po"}, "Pod", "v1", true, (*getPrinter).pods},
	{"services", []string{"service", "svc"}, "Service", "v1", true, (*getPrinter).services},
	{"endpointslices", []string{"endpointslice"}, "EndpointSlice", "discovery.k8s.io/v1", true, (*getPrinter).endpointSlices},
	{"ingresses", []string{"ingress", "ing"}, "Ingress", "networking.k8s.io/v1", true, (*getPrinter).ingresses},
	{"networkpolicies", []string{"networkpolicy", "netpol"}, "NetworkPolicy", "networking.k8s.io/v1", true, (*getPrinter).policies},
	{"clusternetworkpolicies", []string{"clusternetworkpolicy", "cnp"}, "ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2", false, (*getPrinter).clusterPolicies},
	{"network-attachment-definitions", []string{"network-attachment-definition", "net-attach-def"}, "NetworkAttachmentDefinition", "k8s.cni.cncf.io/v1", true, (*getPrinter).networks},
	{"namespaces", []string{"namespace", "ns"}, "Namespace", "v1", false, (*getPrinter).namespaces},
	{"deployments", []string{"deployment", "deploy"}, "Deployment", "apps/v1", true, (*getPrinter).deployments},
	{"replicasets", []string{"replicaset", "rs"}, "ReplicaSet", "apps/v1", true, (*getPrinter).replicaSets},
	{"statefulsets", []string{"statefulset", "sts"}, "StatefulSet", "apps/v1", true, (*getPrinter).statefulSets},
	{"daemonsets", []string{"daemonset", "ds"}, "DaemonSet", "apps/v1", true, (*getPrinter).daemonSets},
	{"ingressclasses", []string{"ingressclass"}, "IngressClass", "networking.k8s.io/v1", false, (*getPrinter).ingressClasses},
	{"gatewayclasses", []string{"gatewayclass", "gc"}, "GatewayClass", "gateway.networking.k8s.io/v1", false, (*getPrinter).gatewayClasses},
	{"gateways", []string{"gateway", "gtw"}, "Gateway", "gateway.networking.k8s.io/v1", true, (*getPrinter).gateways},
	{"httproutes", []string{"httproute"}, "HTTPRoute", "gateway.networking.k8s.io/v1", true, (*getPrinter).httpRoutes},
	{"grpcroutes", []string{"grpcroute"}, "GRPCRoute", "gateway.networking.k8s.io/v1", true, (*getPrinter).grpcRoutes},
	{"tlsroutes", []string{"tlsroute"}, "TLSRoute", "gateway.networking.k8s.io/v1", true, (*getPrinter).tlsRoutes},
	{"referencegrants", []string{"referencegrant", "refgrant"}, "ReferenceGrant", "gateway.networking.k8s.io/v1", true, (*getPrinter).referenceGrants},
	{"backendtlspolicies", []string{"backendtlspolicy", "btlspolicy"}, "BackendTLSPolicy", "gateway.networking.k8s.io/v1", true, (*getPrinter).backendTLSPolicies},
	{"configmaps", []string{"configmap", "cm"}, "ConfigMap", "v1", true, (*getPrinter).configMaps},
	{"secrets", []string{"secret"}, "Secret", "v1", true, (*getPrinter).secrets},
	{"backends", []string{"backend"}, "", "", true, (*getPrinter).backendTable},
	{"flows", []string{"flow"}, "", "", false, (*getPrinter).flows},
	{"routes", []string{"route"}, "", "", false, (*getPrinter).routes},
	{"dns", nil, "", "", false, (*getPrinter).dns},
	{"ports", []string{"port"}, "", "", false, (*getPrinter).ports},
}

// findKind knows a kind by its plural, its singular and its short names.
func findKind(word string) (kind, error) {
	word, _, _ = strings.Cut(strings.ToLower(word), ".") // ingress.networking.k8s.io
	for _, k := range kinds {
		if k.name == word || slices.Contains(k.aliases, word) {
			return k, nil
		}
	}
	return kind{}, usageError{fmt.Errorf("get: unknown kind %q; known are %s", word, strings.Join(kindNames(), ", "))}
}

func kindNames() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// getOptions are the flags of `get`.
type getOptions struct {
	namespace string
	all       bool
	selector  string
	noHeaders bool
	watch     bool
	out       *string
}

func newGetCmd() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get KIND [NAME...] [-n NS|-A] [-l SELECTOR]",
		Short: "Show objects: " + strings.Join(kindNames(), ", "),
		Example: `  podgate get pods -A -o wide
  podgate get svc -n shop
  podgate get pods -n shop -l app=web -o name
  podgate get pods -A -w
  podgate get flows`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("get: name a kind: %s", strings.Join(kindNames(), ", "))}
			}
			return nil
		},
		ValidArgsFunction: completeGet,
	}
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", "default", "namespace")
	cmd.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "in all namespaces")
	cmd.Flags().StringVarP(&o.selector, "selector", "l", "", "only objects with such labels: app=web,tier!=db")
	cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "tables without their first line")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "go on with objects as they change")
	completeNamespaces(cmd)
	o.out = outputFlag(cmd.Flags(), "table", "wide", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		word, name, slash := strings.Cut(args[0], "/")
		names := args[1:]
		if slash {
			names = append([]string{name}, names...)
		}
		k, err := findKind(word)
		if err != nil {
			return err
		}
		if k.apiKind == "" && *o.out == "name" {
			return usageError{fmt.Errorf("get: %s have no names for -o name", k.name)}
		}
		if !o.watch {
			return o.run(cmd, k, names)
		}
		if k.apiKind == "" || len(names) > 1 {
			return usageError{errors.New("get: -w is for objects of one kind, or one of them; see flows --follow for conversations")}
		}
		return o.follow(cmd, k, strings.Join(names, ""))
	}
	return cmd
}

func (o *getOptions) run(cmd *cobra.Command, k kind, names []string) error {
	selector, err := labels.Parse(o.selector)
	if err != nil {
		return usageError{fmt.Errorf("get: -l %s: %w", o.selector, err)}
	}
	q := o.request(k)
	var items []json.RawMessage
	var missing error
	for _, name := range orAll(names) {
		q.Name = name
		res, err := call[control.GetResult](cmd, "get", q)
		if err != nil && len(names) < 2 {
			return err
		}
		missing = errors.Join(missing, err)
		items = append(items, res.Items...)
	}
	if items, err = selected(items, selector); err != nil {
		return err
	}
	q.Name = ""
	if err := o.print(cmd, k, q, items, len(names) == 1); err != nil {
		return err
	}
	return missing
}

// request asks for all that the flags say.
func (o *getOptions) request(k kind) control.GetRequest {
	q := control.GetRequest{Kind: k.name, Namespace: o.namespace}
	if o.all || !k.namespaced {
		q.Namespace = ""
	}
	return q
}

// orAll asks once for everything where no name is given.
func orAll(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

// selected leaves the items whose labels match; podgate's own kinds have none.
func selected(items []json.RawMessage, s labels.Selector) (out []json.RawMessage, err error) {
	if s.Empty() {
		return items, nil
	}
	for _, item := range items {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(item, &o); err != nil {
			return nil, err
		}
		if s.Matches(labels.Set(o.Labels)) {
			out = append(out, item)
		}
	}
	return out, nil
}

func (o *getOptions) print(cmd *cobra.Command, k kind, q control.GetRequest, items []json.RawMessage, single bool) error {
	w := cmd.OutOrStdout()
	switch *o.out {
	case "json", "yaml":
		v := any(nonNil(items))
		if single && len(items) == 1 {
			v = items[0]
		} else if k.apiKind != "" {
			v = map[string]any{"apiVersion": "v1", "kind": "List", "items": nonNil(items)}
		}
		if *o.out == "yaml" {
			return printYAML(w, v)
		}
		return printJSON(w, v)
	case "name":
		group := ""
		if g, _, ok := strings.Cut(k.apiVersion, "/"); ok {
			group = "." + g
		}
		for _, item := range items {
			var m metav1.PartialObjectMetadata
			if err := json.Unmarshal(item, &m); err != nil {
				return err
			}
			fmt.Fprintf(w, "%s%s/%s\n", strings.ToLower(k.apiKind), group, m.Name)
		}
		return nil
	}
	if len(items) == 0 {
		where := " in " + q.Namespace + " namespace"
		if q.Namespace == "" {
			where = ""
		}
		what := "resources"
		if k.apiKind == "" {
			what = k.name
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "No %s found%s.\n", what, where)
		return nil
	}
	if o.noHeaders {
		w = &withoutFirstLine{w: w}
	}
	p := &getPrinter{w: w, wide: *o.out == "wide", namespace: o.all}
	if p.wide && k.name == "services" {
		q.Kind = "backends"
		more, err := call[control.GetResult](cmd, "get", q)
		if err != nil {
			return err
		}
		if p.backends, err = decodeAll[backendRecord](more.Items); err != nil {
			return err
		}
	}
	return k.print(p, items)
}

func nonNil(items []json.RawMessage) []json.RawMessage {
	if items == nil {
		return []json.RawMessage{}
	}
	return items
}
