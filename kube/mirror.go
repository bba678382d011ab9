package kube

//lint:file-ignore SA1019 Endpoints are deprecated, and in many manifests still

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// oldEndpoints is what was there before EndpointSlices: users write it for
// Services without selector, and it is mirrored into slices.
type oldEndpoints = corev1.Endpoints

const maxMirrored = 1000 // addresses of a subset

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

// mirror turns Endpoints that somebody wrote into groups.
func mirror(e *oldEndpoints) []sliceGroup {
	var groups []sliceGroup
	for _, subset := range e.Subsets {
		ports := []discoveryv1.EndpointPort{}
		for _, p := range subset.Ports {
			ports = append(ports, discoveryv1.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: new(p.Port), AppProtocol: p.AppProtocol})
		}
		at := map[discoveryv1.AddressType]int{}
		add := func(addrs []corev1.EndpointAddress, ready bool) {
			for _, a := range addrs[:min(len(addrs), maxMirrored)] {
				ip, err := netip.ParseAddr(a.IP)
				if err != nil {
					continue
				}
				f := discoveryv1.AddressType(familyOf(ip))
				i, known := at[f]
				if !known {
					i = len(groups)
					at[f] = i
					groups = append(groups, sliceGroup{family: f, ports: ports})
				}
				out := discoveryv1.Endpoint{
					Addresses:  []string{a.IP},
					Conditions: discoveryv1.EndpointConditions{Ready: new(ready)},
					TargetRef:  a.TargetRef, NodeName: a.NodeName,
				}
				if a.Hostname != "" {
					out.Hostname = new(a.Hostname)
				}
				groups[i].endpoints = append(groups[i].endpoints, out)
			}
		}
		add(subset.Addresses, true)
		add(subset.NotReadyAddresses, false)
	}
	return groups
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
		}
	}
	return errs
}
