package kube

//lint:file-ignore SA1019 Endpoints are deprecated, and in many manifests still

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// oldEndpoints is what was there before EndpointSlices: users write it for
// Services without selector, and it is mirrored into slices.
type oldEndpoints = corev1.Endpoints

const maxMirrored = 1000 // addresses of a subset, and of a slice

func defaultEndpoints(o *oldEndpoints) {
	for i := range o.Subsets {
		for j := range o.Subsets[i].Ports {
			defaulted(&o.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
		}
	}
}

func (s *Store) endpointsRecord(name Name) *oldEndpoints {
	if r := s.records[key{"Endpoints", name}]; r != nil {
		return r.want.(*oldEndpoints)
	}
	return nil
}

func mirrored(e *oldEndpoints) bool {
	_, leader := e.Annotations["control-plane.alpha.kubernetes.io/leader"]
	return e.Labels[discoveryv1.LabelSkipMirror] != "true" && !leader
}

// mirror turns Endpoints that somebody wrote into groups. As an API server packs
// them, subsets of the same ports are one, and an address that is there as ready and
// as not ready is not ready; of what is too many the ready ones stay.
func mirror(e *oldEndpoints) []sliceGroup {
	var groups []sliceGroup
	at := map[string]int{} // by family and ports
	for _, ready := range []bool{true, false} {
		for _, subset := range e.Subsets {
			addrs := subset.Addresses
			if !ready {
				addrs = subset.NotReadyAddresses
			}
			for _, a := range addrs {
				ip, err := netip.ParseAddr(a.IP)
				if err != nil {
					continue
				}
				f, ports := discoveryv1.AddressType(familyOf(ip)), mirrorPorts(subset.Ports)
				id := fmt.Sprint(f, portNumbers(ports))
				i, known := at[id]
				if !known {
					i = len(groups)
					at[id] = i
					groups = append(groups, sliceGroup{family: f, ports: ports})
				}
				groups[i].put(mirrorAddress(&a, ready))
			}
		}
	}
	return groups
}

// put adds an endpoint, or takes back that its address is ready.
func (g *sliceGroup) put(e discoveryv1.Endpoint) {
	if i := slices.IndexFunc(g.endpoints, func(o discoveryv1.Endpoint) bool { return o.Addresses[0] == e.Addresses[0] }); i >= 0 {
		g.endpoints[i].Conditions = e.Conditions
	} else if len(g.endpoints) < maxMirrored {
		g.endpoints = append(g.endpoints, e)
	}
}

func mirrorPorts(ports []corev1.EndpointPort) (out []discoveryv1.EndpointPort) {
	for _, p := range ports {
		out = append(out, discoveryv1.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: new(p.Port), AppProtocol: p.AppProtocol})
	}
	return out
}

func mirrorAddress(a *corev1.EndpointAddress, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses:  []string{a.IP},
		Conditions: discoveryv1.EndpointConditions{Ready: new(ready)},
		TargetRef:  a.TargetRef, NodeName: a.NodeName,
	}
	if a.Hostname != "" {
		e.Hostname = new(a.Hostname)
	}
	return e
}

func validateEndpoints(o *oldEndpoints) (errs field.ErrorList) {
	for i, sub := range o.Subsets {
		at := field.NewPath("subsets").Index(i)
		if len(sub.Addresses)+len(sub.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(at, "must specify `addresses` or `notReadyAddresses`"))
		}
		for name, addrs := range map[string][]corev1.EndpointAddress{"addresses": sub.Addresses, "notReadyAddresses": sub.NotReadyAddresses} {
			for j, a := range addrs {
				errs = append(errs, validateOrdinaryIP(a.IP, at.Child(name).Index(j).Child("ip"))...)
				if a.Hostname != "" {
					errs = append(errs, invalid(at.Child(name).Index(j).Child("hostname"), a.Hostname, utilvalidation.IsDNS1123Label(a.Hostname))...)
				}
				errs = append(errs, validateNodeName(a.NodeName, at.Child(name).Index(j))...)
			}
		}
		for j, p := range sub.Ports {
			at := at.Child("ports").Index(j)
			switch {
			case p.Name == "" && len(sub.Ports) > 1:
				errs = append(errs, field.Required(at.Child("name"), ""))
			case p.Name != "":
				errs = append(errs, invalid(at.Child("name"), p.Name, utilvalidation.IsDNS1123Label(p.Name))...)
			}
			errs = append(errs, validatePortNumber(p.Port, at.Child("port"))...)
			errs = append(errs, validateProtocol(p.Protocol, at.Child("protocol"))...)
			errs = append(errs, validateAppProtocol(p.AppProtocol, at)...)
		}
	}
	return errs
}
