package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// NetworkAttachmentDefinition is the object that defines a further pod network
// (k8s.cni.cncf.io/v1, of the Network Plumbing Working Group's specification).
type NetworkAttachmentDefinition struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              NetworkAttachmentDefinitionSpec `json:"spec"`
}

// NetworkAttachmentDefinitionSpec holds a CNI configuration, or list, as JSON.
type NetworkAttachmentDefinitionSpec struct {
	Config string `json:"config,omitempty"`
}

// DeepCopyObject makes it a runtime.Object.
func (o *NetworkAttachmentDefinition) DeepCopyObject() runtime.Object {
	c := *o
	c.ObjectMeta = *o.ObjectMeta.DeepCopy()
	return &c
}

// Network is a pod network beside the cluster's own, as a
// NetworkAttachmentDefinition describes it.
type Network struct {
	Name    Name // of the definition
	MTU     int  // of its interfaces, bytes; 0: as the cluster's own
	Subnets []Subnet
	Routes  []NetworkRoute // that its interfaces get
}

// Subnet is the part of a Network in one family.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr      // the gateway's own address in it
	Ranges  [][2]netip.Addr // that addresses are given from, first and last
}

// NetworkRoute is a route of a Network's interfaces.
type NetworkRoute struct {
	Dst netip.Prefix
	Via netip.Addr // a host of the network; zero: its gateway
}

// subnet is the Network's part that has a.
func (n *Network) subnet(a netip.Addr) *Subnet {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Contains(a) {
			return &n.Subnets[i]
		}
	}
	return nil
}

// Gateways are the gateway's own addresses in the network, one a family.
func (n *Network) Gateways() (out []netip.Addr) {
	for _, s := range n.Subnets {
		out = append(out, s.Gateway)
	}
	return out
}

// Prefixes are the network's ranges, one a family.
func (n *Network) Prefixes() (out []netip.Prefix) {
	for _, s := range n.Subnets {
		out = append(out, s.Prefix)
	}
	return out
}

// cniConfig is what is read of spec.config. Its addresses are in the form of the
// host-local plugin.
type cniConfig struct {
	Type    string            `json:"type"`
	MTU     int               `json:"mtu"`
	IPAM    *cniIPAM          `json:"ipam"`
	Plugins []json.RawMessage `json:"plugins"`
}

type cniIPAM struct {
	Type string `json:"type"`
	cniRange
	Ranges [][]cniRange `json:"ranges"`
	Routes []struct {
		Dst string `json:"dst"`
		GW  string `json:"gw"`
	} `json:"routes"`
}

type cniRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// networkType is the CNI type of podgate's networks.
const networkType = "podgate"

// readNetwork makes the Network of a definition.
func readNetwork(o *NetworkAttachmentDefinition) (*Network, field.ErrorList) {
	at := field.NewPath("spec", "config")
	if strings.TrimSpace(o.Spec.Config) == "" {
		return nil, field.ErrorList{field.Required(at, `a CNI configuration of type "podgate"`)}
	}
	var conf cniConfig
	if err := decodeCNI([]byte(o.Spec.Config), &conf); err != nil {
		return nil, field.ErrorList{field.Invalid(at, "", "not a CNI configuration: "+err.Error())}
	}
	if conf.Plugins != nil {
		at = at.Child("plugins")
		if len(conf.Plugins) != 1 {
			return nil, field.ErrorList{field.Invalid(at, len(conf.Plugins), `podgate runs no plugins: the list must be one of type "podgate"`)}
		}
		at = at.Index(0)
		if err := decodeCNI(conf.Plugins[0], &conf); err != nil {
			return nil, field.ErrorList{field.Invalid(at, "", "not a CNI configuration: "+err.Error())}
		}
	}
	n := &Network{Name: nameOf(o), MTU: conf.MTU}
	if conf.Type != networkType {
		return nil, field.ErrorList{field.NotSupported(at.Child("type"), conf.Type, []string{networkType})}
	}
	if conf.MTU != 0 && (conf.MTU < 1280 || conf.MTU > 65520) {
		return nil, field.ErrorList{field.Invalid(at.Child("mtu"), conf.MTU, "must be between 1280 and 65520, inclusive")}
	}
	at = at.Child("ipam")
	switch {
	case conf.IPAM == nil:
		return nil, field.ErrorList{field.Required(at, "it says which addresses the network has: subnet, or ranges")}
	case conf.IPAM.Type != "" && conf.IPAM.Type != networkType && conf.IPAM.Type != "host-local":
		return nil, field.ErrorList{field.NotSupported(at.Child("type"), conf.IPAM.Type, []string{networkType, "host-local"})}
	}
	errs := n.addSubnets(conf.IPAM, at)
	if len(errs) == 0 {
		errs = n.addRoutes(conf.IPAM, at.Child("routes"))
	}
	return n, errs
}

func decodeCNI(data []byte, into *cniConfig) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("something follows the object at offset %d", d.InputOffset())
	}
	return nil
}

func (n *Network) addSubnets(ipam *cniIPAM, at *field.Path) (errs field.ErrorList) {
	if ipam.Subnet != "" {
		errs = n.addRange(ipam.cniRange, at)
	}
	for i, set := range ipam.Ranges {
		for j, r := range set {
			errs = append(errs, n.addRange(r, at.Child("ranges").Index(i).Index(j))...)
		}
	}
	if len(errs) == 0 && len(n.Subnets) == 0 {
		errs = append(errs, field.Required(at.Child("subnet"), "a prefix such as 172.30.0.0/24"))
	}
	return errs
}

// addRange adds the addresses of one range; ranges of one subnet add up.
func (n *Network) addRange(r cniRange, at *field.Path) field.ErrorList {
	bad := func(name, value, why string) field.ErrorList {
		return field.ErrorList{field.Invalid(at.Child(name), value, why)}
	}
	p, err := netip.ParsePrefix(r.Subnet)
	switch {
	case r.Subnet == "":
		return field.ErrorList{field.Required(at.Child("subnet"), "a prefix such as 172.30.0.0/24")}
	case err != nil:
		return bad("subnet", r.Subnet, "must be a prefix such as 172.30.0.0/24")
	case p.Addr().BitLen()-p.Bits() < 3:
		return bad("subnet", r.Subnet, "too small: at least 8 addresses are needed")
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified() || p.Addr().Is4In6():
		return bad("subnet", r.Subnet, "must be of addresses that hosts may have")
	}
	p = p.Masked()
	first, last := p.Addr().Next(), lastOf(p)
	parse := func(name, value string, otherwise netip.Addr) (netip.Addr, field.ErrorList) {
		if value == "" {
			return otherwise, nil
		}
		a, err := netip.ParseAddr(value)
		if err != nil || !p.Contains(a) || a.Less(first) || last.Less(a) {
			return a, bad(name, value, fmt.Sprintf("must be an address from %s to %s", first, last))
		}
		return a, nil
	}
	from, errs := parse("rangeStart", r.RangeStart, first)
	to, more := parse("rangeEnd", r.RangeEnd, last)
	gateway, evenMore := parse("gateway", r.Gateway, first)
	if errs = slices.Concat(errs, more, evenMore); len(errs) > 0 {
		return errs
	}
	if to.Less(from) {
		return bad("rangeEnd", r.RangeEnd, "is before rangeStart")
	}
	for i := range n.Subnets {
		s := &n.Subnets[i]
		switch {
		case s.Prefix == p && r.Gateway != "" && s.Gateway != gateway:
			return bad("gateway", r.Gateway, "a subnet has one gateway: "+s.Gateway.String())
		case s.Prefix == p && slices.ContainsFunc(s.Ranges, func(o [2]netip.Addr) bool { return !o[1].Less(from) && !to.Less(o[0]) }):
			return bad("rangeStart", r.RangeStart, "overlaps another range")
		case s.Prefix == p:
			s.Ranges = append(s.Ranges, [2]netip.Addr{from, to})
			return nil
		case s.Prefix.Addr().Is4() == p.Addr().Is4():
			return bad("subnet", r.Subnet, "a network has at most one subnet a family: there is "+s.Prefix.String())
		}
	}
	n.Subnets = append(n.Subnets, Subnet{Prefix: p, Gateway: gateway, Ranges: [][2]netip.Addr{{from, to}}})
	return nil
}

// lastOf is the last address that a host of p may have.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	skip := 128 - p.Addr().BitLen()
	for bit := skip + p.Bits(); bit < 128; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap().Prev() // the last is for broadcasts
	}
	return a
}

func (n *Network) addRoutes(ipam *cniIPAM, at *field.Path) (errs field.ErrorList) {
	for i, r := range ipam.Routes {
		route := NetworkRoute{}
		var err error
		if route.Dst, err = netip.ParsePrefix(r.Dst); err != nil {
			errs = append(errs, field.Invalid(at.Index(i).Child("dst"), r.Dst, "must be a prefix such as 192.0.2.0/24"))
			continue
		}
		route.Dst = route.Dst.Masked()
		family := slices.IndexFunc(n.Subnets, func(s Subnet) bool { return s.Prefix.Addr().Is4() == route.Dst.Addr().Is4() })
		if family < 0 {
			errs = append(errs, field.Invalid(at.Index(i).Child("dst"), r.Dst, "the network has no subnet of that family"))
			continue
		}
		if r.GW != "" {
			if route.Via, err = netip.ParseAddr(r.GW); err != nil || !n.Subnets[family].Prefix.Contains(route.Via) {
				errs = append(errs, field.Invalid(at.Index(i).Child("gw"), r.GW, "must be an address of "+n.Subnets[family].Prefix.String()))
				continue
			}
			if route.Via == n.Subnets[family].Gateway {
				route.Via = netip.Addr{}
			}
		}
		if route.Via.IsValid() && route.Dst.Bits() == 0 {
			errs = append(errs, field.Invalid(at.Index(i).Child("gw"), r.GW, "the default route leads to the network's gateway, "+n.Subnets[family].Gateway.String()))
			continue
		}
		n.Routes = append(n.Routes, route)
	}
	return errs
}

// routesInto says which routes by way of n's pods lead to addresses of another
// network.
func (n *Network) routesInto(other *Network, at *field.Path) (errs field.ErrorList) {
	for _, r := range n.Routes {
		for _, p := range other.Prefixes() {
			if r.Via.IsValid() && r.Dst.Overlaps(p) {
				errs = append(errs, field.Invalid(at, r.Dst.String(), fmt.Sprintf("a route by way of a pod of network %s overlaps %s of network %s", n.Name, p, other.Name)))
			}
		}
	}
	return errs
}

// overlaps says what of the cluster's own a network collides with.
func (n *Network) overlaps(c *Config, at *field.Path) (errs field.ErrorList) {
	errs = n.routesInto(n, at)
	for _, own := range slices.Concat(c.PodCIDRs, c.ServiceCIDRs) {
		for _, s := range n.Subnets {
			if s.Prefix.Overlaps(own) {
				errs = append(errs, field.Invalid(at, s.Prefix.String(), "overlaps the cluster's own "+own.String()))
			}
		}
		for _, r := range n.Routes {
			if r.Via.IsValid() && r.Dst.Overlaps(own) {
				errs = append(errs, field.Invalid(at, r.Dst.String(), "a route by way of a pod overlaps the cluster's own "+own.String()))
			}
		}
	}
	return errs
}
