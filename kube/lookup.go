package kube

// Object is the object of a kind and name, nil if there is none or the kind is
// none of what the gateway serves.
func (st *State) Object(kind string, n Name) API {
	switch kind {
	case "Namespace":
		return found(st.Namespaces, n.Name)
	case "Node":
		return found(st.Nodes, n.Name)
	case "Pod":
		return found(st.Pods, n)
	case "Service":
		return found(st.Services, n)
	case "EndpointSlice":
		if slice := st.EndpointSlices.Get(n); slice != nil {
			return slice
		}
	case "Ingress":
		return found(st.Ingresses, n)
	case "IngressClass":
		return found(st.IngressClasses, n.Name)
	case "NetworkPolicy":
		return found(st.NetworkPolicies, n)
	case "ClusterNetworkPolicy":
		return found(st.ClusterPolicies, n.Name)
	case "Secret":
		return found(st.Secrets, n)
	case "ConfigMap":
		return found(st.ConfigMaps, n)
	case "GatewayClass":
		return found(st.GatewayClasses, n.Name)
	case "Gateway":
		return found(st.Gateways, n)
	case "HTTPRoute":
		return found(st.HTTPRoutes, n)
	case "GRPCRoute":
		return found(st.GRPCRoutes, n)
	case "TLSRoute":
		return found(st.TLSRoutes, n)
	case "ReferenceGrant":
		return found(st.ReferenceGrants, n)
	case "BackendTLSPolicy":
		return found(st.BackendTLSPolicies, n)
	}
	return nil
}

func found[K comparable, V API](m map[K]V, k K) API {
	if o, ok := m[k]; ok {
		return o
	}
	return nil
}
