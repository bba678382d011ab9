package watch

import (
	"sync"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"podgate/kube"
)

// kind is one that is listed and watched as a whole.
type kind struct {
	name     string // "Service"
	gv       schema.GroupVersion
	resource string
	new      func() kube.API
	optional bool // a CRD, which may not be installed
}

// kinds are all that a state follows from, but for Secrets and ConfigMaps, which
// are watched by name.
var kinds = []kind{
	{name: "Namespace", gv: corev1.SchemeGroupVersion, resource: "namespaces", new: func() kube.API { return new(corev1.Namespace) }},
	{name: "Node", gv: corev1.SchemeGroupVersion, resource: "nodes", new: func() kube.API { return new(corev1.Node) }},
	{name: "Pod", gv: corev1.SchemeGroupVersion, resource: "pods", new: func() kube.API { return new(corev1.Pod) }},
	serviceKind,
	{name: "EndpointSlice", gv: discoveryv1.SchemeGroupVersion, resource: "endpointslices", new: func() kube.API { return new(discoveryv1.EndpointSlice) }},
	ingressKind,
	{name: "IngressClass", gv: networkingv1.SchemeGroupVersion, resource: "ingressclasses", new: func() kube.API { return new(networkingv1.IngressClass) }},
	{name: "NetworkPolicy", gv: networkingv1.SchemeGroupVersion, resource: "networkpolicies", new: func() kube.API { return new(networkingv1.NetworkPolicy) }},
	{name: "ClusterNetworkPolicy", gv: clusterPolicies, resource: "clusternetworkpolicies", optional: true, new: func() kube.API { return new(policyv1alpha2.ClusterNetworkPolicy) }},
	{name: "GatewayClass", gv: gatewayAPI, resource: "gatewayclasses", optional: true, new: func() kube.API { return new(gatewayv1.GatewayClass) }},
	{name: "Gateway", gv: gatewayAPI, resource: "gateways", optional: true, new: func() kube.API { return new(gatewayv1.Gateway) }},
	{name: "HTTPRoute", gv: gatewayAPI, resource: "httproutes", optional: true, new: func() kube.API { return new(gatewayv1.HTTPRoute) }},
	{name: "GRPCRoute", gv: gatewayAPI, resource: "grpcroutes", optional: true, new: func() kube.API { return new(gatewayv1.GRPCRoute) }},
	{name: "TLSRoute", gv: gatewayAPI, resource: "tlsroutes", optional: true, new: func() kube.API { return new(gatewayv1.TLSRoute) }},
	{name: "ReferenceGrant", gv: gatewayAPI, resource: "referencegrants", optional: true, new: func() kube.API { return new(gatewayv1.ReferenceGrant) }},
	{name: "BackendTLSPolicy", gv: gatewayAPI, resource: "backendtlspolicies", optional: true, new: func() kube.API { return new(gatewayv1.BackendTLSPolicy) }},
}

// Kinds that are watched by name, and kinds whose status is written.
var (
	secretKind    = kind{name: "Secret", gv: corev1.SchemeGroupVersion, resource: "secrets", new: func() kube.API { return new(corev1.Secret) }}
	serviceKind   = kind{name: "Service", gv: corev1.SchemeGroupVersion, resource: "services", new: func() kube.API { return new(corev1.Service) }}
	ingressKind   = kind{name: "Ingress", gv: networkingv1.SchemeGroupVersion, resource: "ingresses", new: func() kube.API { return new(networkingv1.Ingress) }}
	configMapKind = kind{name: "ConfigMap", gv: corev1.SchemeGroupVersion, resource: "configmaps", new: func() kube.API { return new(corev1.ConfigMap) }}
)

// Versions of CRDs.
var (
	clusterPolicies = schema.GroupVersion{Group: "policy.networking.k8s.io", Version: "v1alpha2"}
	gatewayAPI      = schema.GroupVersion{Group: gatewayv1.GroupName, Version: "v1"}
)

// builtin are the versions that speak protobuf.
var builtin = map[schema.GroupVersion]bool{
	corev1.SchemeGroupVersion:         true,
	discoveryv1.SchemeGroupVersion:    true,
	networkingv1.SchemeGroupVersion:   true,
	coordinationv1.SchemeGroupVersion: true,
}

// versions are all that requests are made to.
var versions = []schema.GroupVersion{
	corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion, coordinationv1.SchemeGroupVersion, clusterPolicies, gatewayAPI,
}

// codecs know these kinds and no others. They are made when they are needed:
// who has no API server does not pay for them.
var codecs = sync.OnceValue(func() runtime.NegotiatedSerializer {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, coordinationv1.AddToScheme, policyv1alpha2.Install, gatewayv1.Install,
	} {
		if err := add(scheme); err != nil {
			panic("kube/watch: " + err.Error()) // two kinds of one name
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return serializer.NewCodecFactory(scheme).WithoutConversion()
})
