package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
)

// The annotations of the Network Plumbing Working Group's specification, and of
// multus: which networks a pod is attached to, and what came of it.
const (
	NetworksAnnotation       = "k8s.v1.cni.cncf.io/networks"
	DefaultNetworkAnnotation = "v1.multus-cni.io/default-network"
	NetworkStatusAnnotation  = "k8s.v1.cni.cncf.io/network-status"
)

// defaultNetworkNamespace is where the replacement of a pod's own network is
// looked for if the annotation names no namespace, as multus does.
const defaultNetworkNamespace = "kube-system"

// selection is one network that a pod asks for.
type selection struct {
	Name         string   `json:"name"`
	Namespace    string   `json:"namespace"`
	Interface    string   `json:"interface"`
	IPs          []string `json:"ips"`
	MAC          string   `json:"mac"`
	DefaultRoute []string `json:"default-route"`

	ips          []netip.Addr
	mac          [6]byte
	defaultRoute []netip.Addr
	ignored      []string // keys that mean nothing here
}

// UnmarshalJSON also finds the keys that mean nothing here. Like multus it takes
// them: most are for plugins that are told of them if they can do it.
func (s *selection) UnmarshalJSON(data []byte) error {
	type plain selection
	if err := json.Unmarshal(data, (*plain)(s)); err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if !slices.Contains([]string{"name", "namespace", "interface", "ips", "mac", "default-route"}, k) {
			s.ignored = append(s.ignored, k)
		}
	}
	return nil
}

func (s *selection) network() Name { return Name{s.Namespace, s.Name} }

// maxInterfaces is how many interfaces a pod may have: their descriptors are
// handed over in one message.
const maxInterfaces = 32

// readSelections reads the value of a networks annotation, in any of its forms:
// "name", "namespace/name", "name@interface", these separated by commas, or a
// JSON list of objects.
func readSelections(value, namespace string) ([]selection, error) {
	var list []selection
	switch {
	case strings.TrimSpace(value) == "":
		return nil, nil
	case strings.ContainsAny(value, "[{\""):
		if err := json.Unmarshal([]byte(value), &list); err != nil {
			return nil, fmt.Errorf("not a JSON list of networks: %w", err)
		}
	default:
		for _, word := range strings.Split(value, ",") {
			s, err := readSelection(strings.TrimSpace(word))
			if err != nil {
				return nil, err
			}
			list = append(list, s)
		}
	}
	if len(list) >= maxInterfaces {
		return nil, fmt.Errorf("%d networks: at most %d are served", len(list), maxInterfaces-1)
	}
	for i := range list {
		if list[i].Namespace == "" {
			list[i].Namespace = namespace
		}
		if err := list[i].check(); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return list, nil
}

// readSelection reads "namespace/name@interface", of which name is needed.
func readSelection(word string) (s selection, err error) {
	rest, ifname, at := strings.Cut(word, "@")
	ns, name, slash := strings.Cut(rest, "/")
	if !slash {
		ns, name = "", rest
	}
	if strings.ContainsAny(name+ifname, "/@") || name == "" || slash && ns == "" || at && ifname == "" {
		return s, fmt.Errorf("%q is not [NAMESPACE/]NAME[@INTERFACE]", word)
	}
	return selection{Namespace: ns, Name: name, Interface: ifname}, nil
}

var interfaceName = regexp.MustCompile(`^[^/\s:%]{1,15}$`)

// check reads the parts of s.
func (s *selection) check() error {
	if s.Name == "" {
		return fmt.Errorf("name: is required")
	}
	for what, v := range map[string]string{"namespace": s.Namespace, "name": s.Name} {
		if msgs := utilvalidation.IsDNS1123Subdomain(v); len(msgs) > 0 {
			return fmt.Errorf("%s: %q: %s", what, v, msgs[0])
		}
	}
	if n := s.Interface; n != "" && (!interfaceName.MatchString(n) || n == "." || n == ".." || n == "lo" || n == ownInterface) {
		return fmt.Errorf("interface: %q cannot be the name of a further interface", n)
	}
	for _, ip := range s.IPs {
		bare, _, _ := strings.Cut(ip, "/")
		a, err := netip.ParseAddr(bare)
		if _, perr := netip.ParsePrefix(ip); err != nil || bare != ip && perr != nil {
			return fmt.Errorf("ips: %q is not an address", ip)
		}
		s.ips = append(s.ips, a)
	}
	if s.MAC != "" {
		m, err := net.ParseMAC(s.MAC)
		if err != nil || len(m) != 6 || m[0]&1 != 0 || [6]byte(m) == [6]byte{} {
			return fmt.Errorf("mac: %q is not the MAC of a host", s.MAC)
		}
		s.mac = [6]byte(m)
	}
	for _, gw := range s.DefaultRoute {
		a, err := netip.ParseAddr(gw)
		if err != nil || slices.ContainsFunc(s.defaultRoute, func(b netip.Addr) bool { return b.Is4() == a.Is4() }) {
			return fmt.Errorf("default-route: %q: must be addresses, at most one a family", gw)
		}
		s.defaultRoute = append(s.defaultRoute, a)
	}
	return nil
}
