package kube

import (
	"reflect"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// API is one Kubernetes object: *corev1.Pod and its like.
type API interface {
	runtime.Object
	metav1.Object
}

// Object is one Kubernetes object of a manifest and where it was read. What is
// behind API is not changed by the store, which keeps it: treat it as immutable
// once applied.
type Object struct {
	API  API
	File string // where it was read, empty if nowhere
	Line int    // in File, where its document begins; 0 if unknown

	lines lineIndex // of its fields
}

// Kind is the object's kind, such as "Service".
func (o Object) Kind() string { return kindOf(o.API).name }

// Name is the object's namespace and name.
func (o Object) Name() Name { return Name{o.API.GetNamespace(), o.API.GetName()} }

func (o Object) key() key { return key{o.Kind(), o.Name()} }

func (o Object) problem(fieldPath, err string) Problem {
	line := o.Line
	if l := o.lines.find(fieldPath); l > 0 {
		line = l
	}
	return Problem{File: o.File, Line: line, Kind: o.Kind(), Object: o.Name(), Field: fieldPath, Err: err}
}

// key names one object of the store.
type key struct {
	kind string
	name Name
}

// kind is what podgate knows of one kind of object.
type kind struct {
	name          string // "NetworkPolicy"
	group         string // "networking.k8s.io", empty for the core
	version       string
	resource      string // "networkpolicies"
	clusterScoped bool   // has no namespace
	new           func() API
}

// title is the kind as kubectl writes it before an object's name: "networkpolicy.networking.k8s.io".
func (k *kind) title() string {
	t := strings.ToLower(k.name)
	if k.group != "" {
		t += "." + k.group
	}
	return t
}

func (k *kind) apiVersion() string {
	if k.group == "" {
		return k.version
	}
	return k.group + "/" + k.version
}

func (k *kind) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.group, Version: k.version, Kind: k.name}
}

// kinds are in the order in which a cluster's objects are created: what others
// refer to comes first.
var kinds = []*kind{
	{name: "Namespace", version: "v1", resource: "namespaces", clusterScoped: true, new: func() API { return new(corev1.Namespace) }},
	{name: "ConfigMap", version: "v1", resource: "configmaps", new: func() API { return new(corev1.ConfigMap) }},
	{name: "Secret", version: "v1", resource: "secrets", new: func() API { return new(corev1.Secret) }},
	{name: "NetworkPolicy", group: "networking.k8s.io", version: "v1", resource: "networkpolicies", new: func() API { return new(networkingv1.NetworkPolicy) }},
	{name: "ClusterNetworkPolicy", group: "policy.networking.k8s.io", version: "v1alpha2", resource: "clusternetworkpolicies", clusterScoped: true, new: func() API { return new(policyv1alpha2.ClusterNetworkPolicy) }},
	{name: "NetworkAttachmentDefinition", group: "k8s.cni.cncf.io", version: "v1", resource: "network-attachment-definitions", new: func() API { return new(NetworkAttachmentDefinition) }},
	{name: "Service", version: "v1", resource: "services", new: func() API { return new(corev1.Service) }},
	{name: "Endpoints", version: "v1", resource: "endpoints", new: func() API { return new(oldEndpoints) }},
	{name: "EndpointSlice", group: "discovery.k8s.io", version: "v1", resource: "endpointslices", new: func() API { return new(discoveryv1.EndpointSlice) }},
	{name: "IngressClass", group: "networking.k8s.io", version: "v1", resource: "ingressclasses", clusterScoped: true, new: func() API { return new(networkingv1.IngressClass) }},
	{name: "Ingress", group: "networking.k8s.io", version: "v1", resource: "ingresses", new: func() API { return new(networkingv1.Ingress) }},
	{name: "GatewayClass", group: gatewayGroup, version: "v1", resource: "gatewayclasses", clusterScoped: true, new: func() API { return new(gatewayv1.GatewayClass) }},
	{name: "ReferenceGrant", group: gatewayGroup, version: "v1", resource: "referencegrants", new: func() API { return new(gatewayv1.ReferenceGrant) }},
	{name: "BackendTLSPolicy", group: gatewayGroup, version: "v1", resource: "backendtlspolicies", new: func() API { return new(gatewayv1.BackendTLSPolicy) }},
	{name: "Gateway", group: gatewayGroup, version: "v1", resource: "gateways", new: func() API { return new(gatewayv1.Gateway) }},
	{name: "HTTPRoute", group: gatewayGroup, version: "v1", resource: "httproutes", new: func() API { return new(gatewayv1.HTTPRoute) }},
	{name: "GRPCRoute", group: gatewayGroup, version: "v1", resource: "grpcroutes", new: func() API { return new(gatewayv1.GRPCRoute) }},
	{name: "TLSRoute", group: gatewayGroup, version: "v1", resource: "tlsroutes", new: func() API { return new(gatewayv1.TLSRoute) }},
	{name: "Pod", version: "v1", resource: "pods", new: func() API { return new(corev1.Pod) }},
	{name: "ReplicaSet", group: "apps", version: "v1", resource: "replicasets", new: func() API { return new(appsv1.ReplicaSet) }},
	{name: "Deployment", group: "apps", version: "v1", resource: "deployments", new: func() API { return new(appsv1.Deployment) }},
	{name: "StatefulSet", group: "apps", version: "v1", resource: "statefulsets", new: func() API { return new(appsv1.StatefulSet) }},
	{name: "DaemonSet", group: "apps", version: "v1", resource: "daemonsets", new: func() API { return new(appsv1.DaemonSet) }},
}

var kindByName, kindByType = func() (map[string]*kind, map[reflect.Type]*kind) {
	names, types := map[string]*kind{}, map[reflect.Type]*kind{}
	for _, k := range kinds {
		names[k.name] = k
		types[reflect.TypeOf(k.new())] = k
	}
	// No manifest makes a Node.
	types[reflect.TypeFor[*corev1.Node]()] = &kind{name: "Node", version: "v1", resource: "nodes", clusterScoped: true}
	return names, types
}()

// kindOf panics for a type that is not in kinds: objects come from Load, which makes no other.
func kindOf(o API) *kind {
	k := kindByType[reflect.TypeOf(o)]
	if k == nil {
		panic("kube: no such kind: " + reflect.TypeOf(o).String())
	}
	return k
}

// Action is what became of one object.
type Action string

const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
	Deleted    Action = "deleted"
	NotFound   Action = "not found" // to be deleted, but not there
	Rejected   Action = "rejected"  // see Problems
)

// Change is what Apply or Delete did with one object.
type Change struct {
	Kind     string
	Name     Name
	Action   Action
	Problems []Problem // why it was rejected
}

// String says it in kubectl's words: "service/web created", `service "web" deleted`.
func (c Change) String() string {
	k := kindByName[c.Kind]
	switch c.Action {
	case Deleted:
		return k.title() + ` "` + c.Name.Name + `" deleted`
	case NotFound:
		r := k.resource
		if k.group != "" {
			r += "." + k.group
		}
		return "Error from server (NotFound): " + r + ` "` + c.Name.Name + `" not found`
	case Rejected:
		var whats []string
		for _, p := range c.Problems {
			whats = append(whats, p.String())
		}
		return strings.Join(whats, "\n")
	}
	return k.title() + "/" + c.Name.Name + " " + string(c.Action)
}
