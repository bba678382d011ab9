package kube

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Theory of operation
//
// A pod that selects networks by annotation gets its interfaces once, all of them
// or none: when it is made, or, if a network is not there yet or has no address
// left, as soon as that changes. Until then it is in the State without interfaces
// and with a Problem that names the annotation; nothing else waits for it.
//
// A network that pods are attached to keeps its subnets: a definition that changes
// them is rejected. One that is deleted stays for the pods that have it, and new
// ones do not find it.

// ownInterface is the name of every pod's first interface.
const ownInterface = "eth0"

// Interfaces are those of a pod that selects networks by annotation.
type Interfaces struct {
	List     []Interface // its own first; none while there is a Problem
	Problem  *Problem    // why it has none
	Warnings []Problem   // about what it has
}

// Interface is one attachment of a pod.
type Interface struct {
	Name    string   // eth0, net1
	Network *Network // nil: the cluster's own
	MAC     [6]byte
	Addrs   []netip.Addr // at most one a family
	Default []netip.Addr // where the default routes by this interface lead, at most one a family
}

// network is a Network of the store, with the addresses that are taken.
type network struct {
	*Network
	gone bool // its definition: no new pods
	used map[netip.Addr]Name
	macs map[[6]byte]Name
	last map[netip.Prefix]netip.Addr // that was given, by subnet
}

// users are the pods on the network.
func (n *network) users() []Name {
	return slices.SortedFunc(maps.Values(n.used), compareNames)
}

var errNetworkFull = errors.New("every address of its ranges is in use")

// free finds an address of s, going round its ranges: one that was given back is
// not given again soon.
func (n *network) free(s *Subnet) (netip.Addr, error) {
	a := n.last[s.Prefix]
	for range len(n.used) + 2 { // of so many one is free: the gateway's is not used
		if a = s.after(a); a != s.Gateway && n.used[a] == (Name{}) {
			n.last[s.Prefix] = a
			return a, nil
		}
	}
	return netip.Addr{}, errNetworkFull
}

// after is the address that follows a in the ranges; after the last comes the first.
func (s *Subnet) after(a netip.Addr) netip.Addr {
	for i, r := range s.Ranges {
		switch {
		case a == r[1]:
			return s.Ranges[(i+1)%len(s.Ranges)][0]
		case !a.Less(r[0]) && a.Less(r[1]):
			return a.Next()
		}
	}
	return s.Ranges[0][0]
}

// admitNetwork checks a definition against what is there.
func (s *Store) admitNetwork(o *NetworkAttachmentDefinition) field.ErrorList {
	at := field.NewPath("spec", "config")
	n, errs := readNetwork(o)
	if len(errs) > 0 {
		return errs
	}
	if errs := n.overlaps(&s.cfg, at); len(errs) > 0 {
		return errs
	}
	for _, name := range slices.SortedFunc(maps.Keys(s.networks), compareNames) {
		other := s.networks[name]
		if name == n.Name {
			if len(other.used) > 0 && !slices.EqualFunc(n.Subnets, other.Subnets, func(a, b Subnet) bool { return a.Prefix == b.Prefix && a.Gateway == b.Gateway }) {
				return field.ErrorList{field.Forbidden(at, fmt.Sprintf("the subnets and gateways of a network stay as long as pods are attached to it (%s)", other.users()[0]))}
			}
			continue
		}
		errs = append(errs, n.routesInto(other.Network, at)...)
		errs = append(errs, other.routesInto(n, at)...)
		for _, a := range n.Prefixes() {
			for _, b := range other.Prefixes() {
				if !a.Overlaps(b) {
					continue
				}
				why := fmt.Sprintf("overlaps %s of network %s", b, name)
				if other.gone {
					why += fmt.Sprintf(", which is deleted but for the pods attached to it (%s)", other.users()[0])
				}
				errs = append(errs, field.Invalid(at, a.String(), why))
			}
		}
	}
	return errs
}

// serveNetwork takes a definition in, or out if r is nil.
func (s *Store) serveNetwork(name Name, r *record) {
	old := s.networks[name]
	switch {
	case r != nil:
		n, _ := readNetwork(r.want.(*NetworkAttachmentDefinition)) // admitted
		if old == nil {
			old = &network{used: map[netip.Addr]Name{}, macs: map[[6]byte]Name{}, last: map[netip.Prefix]netip.Addr{}}
			s.networks[name] = old
		}
		old.Network, old.gone = n, false
		s.next.networks.set(name, n)
	case old != nil:
		old.gone = true
		s.dropUnused(old)
	}
	maps.Copy(s.dirtyInterfaces, s.unattached)
}

// dropUnused forgets a network that is deleted and has no pods left.
func (s *Store) dropUnused(n *network) {
	if n.gone && len(n.used) == 0 {
		delete(s.networks, n.Network.Name)
		s.next.networks.delete(n.Network.Name)
	}
}

// selectsNetworks says whether a pod's interfaces follow from annotations.
func selectsNetworks(annotations map[string]string, spec *corev1.PodSpec) bool {
	return !spec.HostNetwork && (annotations[NetworksAnnotation] != "" || annotations[DefaultNetworkAnnotation] != "")
}

// annotationError is what is wrong with one of the annotations.
type annotationError struct {
	annotation string
	err        error
}

func (e *annotationError) Error() string {
	return fmt.Sprintf("metadata.annotations[%s]: %v", e.annotation, e.err)
}

// compareWishes puts pods that ask for addresses of their choice first.
func (s *Store) compareWishes(a, b Name) int {
	chooses := func(n Name) int {
		if pod := s.next.pods.m[n]; pod != nil && strings.Contains(pod.Annotations[NetworksAnnotation]+pod.Annotations[DefaultNetworkAnnotation], `"ips"`) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(chooses(a), chooses(b)), compareNames(a, b))
}

// reconcileInterfaces gives a pod its interfaces, if it can have them.
func (s *Store) reconcileInterfaces(name Name) {
	r, pod := s.pods[name], s.next.pods.m[name]
	if r == nil || pod.DeletionTimestamp != nil || len(r.interfaces) > 0 {
		delete(s.unattached, name)
		return
	}
	list, err := s.chooseInterfaces(r, pod)
	if err != nil {
		s.unattached[name] = true
		p := s.interfaceProblem(r, err)
		if old := s.next.interfaces.m[name]; old == nil || *old.Problem != p {
			s.next.interfaces.set(name, &Interfaces{Problem: &p})
			s.next.problems = true
		}
		return
	}
	delete(s.unattached, name)
	for _, i := range list {
		if i.Network == nil {
			continue
		}
		n := s.networks[i.Network.Name]
		n.macs[i.MAC] = name
		for _, a := range i.Addrs {
			n.used[a] = name
		}
	}
	r.interfaces = list
	s.next.interfaces.set(name, &Interfaces{List: list, Warnings: s.selectionWarnings(r, pod)})
	s.next.problems = true
	attached := *pod
	attached.Status = *pod.Status.DeepCopy()
	s.setAddresses(&attached.Status, r)
	s.setPod(&attached)
}

func (s *Store) interfaceProblem(r *podRecord, err error) Problem {
	p := Problem{Kind: "Pod", Object: r.name}
	if own := s.records[r.owner]; own != nil && r.owner.kind == "Pod" {
		p = own.source.problem("metadata.annotations", "")
	}
	var ae *annotationError
	if errors.As(err, &ae) {
		p.Field, p.Err = "metadata.annotations["+ae.annotation+"]", ae.err.Error()
	} else {
		p.Err = err.Error()
	}
	return p
}

// selectionWarnings are about what a pod's selections ask for in vain.
func (s *Store) selectionWarnings(r *podRecord, pod *corev1.Pod) (out []Problem) {
	for _, annotation := range []string{DefaultNetworkAnnotation, NetworksAnnotation} {
		list, _ := readSelections(pod.Annotations[annotation], pod.Namespace) // read before
		for i, sel := range list {
			for _, k := range sel.ignored {
				p := s.interfaceProblem(r, &annotationError{annotation, fmt.Errorf("[%d]: %s: has no effect", i, k)})
				p.Severity = Warning
				out = append(out, p)
			}
		}
	}
	return out
}

// chooseInterfaces says which interfaces a pod would have; it takes nothing.
func (s *Store) chooseInterfaces(r *podRecord, pod *corev1.Pod) ([]Interface, error) {
	own := Interface{Name: ownInterface}
	if value := pod.Annotations[DefaultNetworkAnnotation]; value != "" {
		list, err := readSelections(value, defaultNetworkNamespace)
		if err == nil && len(list) != 1 {
			err = errors.New("must name one network")
		}
		if err == nil {
			own, err = s.chooseInterface(nil, &list[0], ownInterface)
		}
		if err != nil {
			return nil, &annotationError{DefaultNetworkAnnotation, err}
		}
		own.Default = own.Network.Gateways()
	} else {
		own.Addrs, own.Default = r.addrs, s.cfg.Addrs(GatewayOffset)
		own.MAC = MACOf(own.Addrs)
	}
	all := []Interface{own}
	list, err := readSelections(pod.Annotations[NetworksAnnotation], pod.Namespace)
	for i := range list {
		var further Interface
		further, err = s.chooseInterface(all, &list[i], cmp.Or(list[i].Interface, fmt.Sprintf("net%d", i+1)))
		if err != nil {
			err = fmt.Errorf("[%d]: %w", i, err)
			break
		}
		if len(further.Default) > 0 {
			for j := range all {
				all[j].Default = slices.DeleteFunc(slices.Clone(all[j].Default), func(a netip.Addr) bool {
					return slices.ContainsFunc(further.Default, func(b netip.Addr) bool { return a.Is4() == b.Is4() })
				})
			}
		}
		all = append(all, further)
	}
	if err != nil {
		return nil, &annotationError{NetworksAnnotation, err}
	}
	return all, nil
}

// chooseInterface finds the network and addresses of one selection, beside the
// interfaces that the pod would have already.
func (s *Store) chooseInterface(have []Interface, sel *selection, name string) (Interface, error) {
	i := Interface{Name: name, MAC: sel.mac}
	if slices.ContainsFunc(have, func(o Interface) bool { return o.Name == name }) {
		return i, fmt.Errorf("interface: %s is there twice", name)
	}
	n := s.networks[sel.network()]
	if n == nil || n.gone {
		return i, fmt.Errorf("name: there is no NetworkAttachmentDefinition %s", sel.network())
	}
	i.Network = n.Network
	mine := func(a netip.Addr) bool {
		return slices.ContainsFunc(have, func(o Interface) bool { return slices.Contains(o.Addrs, a) })
	}
	for k := range n.Subnets {
		sub := &n.Subnets[k]
		a := netip.Addr{}
		for _, ip := range sel.ips {
			if ip.Is4() != sub.Prefix.Addr().Is4() {
				continue
			}
			if a.IsValid() {
				return i, fmt.Errorf("ips: %s and %s: one address a family is served", a, ip)
			}
			a = ip
		}
		if !a.IsValid() && len(sel.ips) > 0 {
			continue // only the families that were asked for
		}
		if a.IsValid() {
			if by := n.used[a]; by != (Name{}) {
				return i, fmt.Errorf("ips: %s belongs to pod %s", a, by)
			}
			if last := lastOf(sub.Prefix); mine(a) || a == sub.Gateway || a == sub.Prefix.Addr() || last.Less(a) || !sub.Prefix.Contains(a) {
				return i, fmt.Errorf("ips: %s is not an address that a pod of %s may have", a, sub.Prefix)
			}
		} else {
			for tries := 0; !a.IsValid() || mine(a); tries++ {
				var err error
				if a, err = n.free(sub); err != nil || tries > maxInterfaces {
					return i, fmt.Errorf("name: network %s: %s: %w", sel.network(), sub.Prefix, errNetworkFull)
				}
			}
		}
		i.Addrs = append(i.Addrs, a)
	}
	if len(i.Addrs) < max(1, len(sel.ips)) {
		return i, fmt.Errorf("ips: network %s has %v", sel.network(), n.Prefixes())
	}
	if i.MAC == ([6]byte{}) {
		i.MAC = MACOf(i.Addrs)
	}
	if i.MAC == MACOf(s.cfg.Addrs(GatewayOffset)) {
		return i, fmt.Errorf("mac: %s is the gateway's", net.HardwareAddr(i.MAC[:]))
	}
	if by, taken := n.macs[i.MAC]; taken || slices.ContainsFunc(have, func(o Interface) bool { return o.Network == i.Network && o.MAC == i.MAC }) {
		return i, fmt.Errorf("mac: %s belongs to pod %s", net.HardwareAddr(i.MAC[:]), by)
	}
	for _, gw := range sel.defaultRoute {
		if sub := n.subnet(gw); sub == nil || sub.Gateway != gw {
			return i, fmt.Errorf("default-route: %s is no gateway of network %s, which has %v", gw, sel.network(), n.Gateways())
		}
	}
	i.Default = sel.defaultRoute
	return i, nil
}

// releaseInterfaces gives up what a pod had.
func (s *Store) releaseInterfaces(r *podRecord) {
	delete(s.unattached, r.name)
	if s.next.interfaces.m[r.name] == nil {
		return
	}
	s.next.interfaces.delete(r.name)
	s.next.problems = true
	for _, i := range r.interfaces {
		if i.Network == nil {
			continue
		}
		n := s.networks[i.Network.Name]
		delete(n.macs, i.MAC)
		for _, a := range i.Addrs {
			delete(n.used, a)
		}
		s.dropUnused(n)
	}
	r.interfaces = nil
	maps.Copy(s.dirtyInterfaces, s.unattached)
}

// MACOf is the MAC that belongs to addresses: 0a:58 and the four bytes of the
// IPv4 address, or else the last four of the IPv6 address.
func MACOf(addrs []netip.Addr) [6]byte {
	b := addrs[0].As16()
	for _, a := range addrs {
		if a.Is4() {
			b = a.As16()
			break
		}
	}
	return [6]byte{0x0a, 0x58, b[12], b[13], b[14], b[15]}
}

// FurtherAddrs are the addresses of a pod beside status.podIPs.
func (st *State) FurtherAddrs(pod Name) (out []netip.Addr) {
	if ifs := st.Interfaces[pod]; ifs != nil {
		for i, f := range ifs.List {
			if i > 0 {
				out = append(out, f.Addrs...)
			}
		}
	}
	return out
}

// networkStatus is an element of the annotation by which a pod's interfaces are
// told.
type networkStatus struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	MAC       string   `json:"mac"`
	Default   bool     `json:"default,omitempty"`
	DNS       struct{} `json:"dns"`
	Gateway   []string `json:"gateway,omitempty"`
}

// networkStatusOf is the value of NetworkStatusAnnotation, laid out as multus does.
func networkStatusOf(list []Interface) string {
	var all []networkStatus
	for i, f := range list {
		st := networkStatus{Name: networkType, Interface: f.Name, MAC: net.HardwareAddr(f.MAC[:]).String(), Default: i == 0}
		if f.Network != nil {
			st.Name = f.Network.Name.String()
		}
		for _, a := range f.Addrs {
			st.IPs = append(st.IPs, a.String())
		}
		for _, a := range f.Default {
			st.Gateway = append(st.Gateway, a.String())
		}
		all = append(all, st)
	}
	text, err := json.MarshalIndent(all, "", "    ")
	if err != nil {
		panic("kube: " + err.Error()) // strings can be encoded
	}
	return string(text)
}

// annotated are a pod's annotations with what podgate tells in them.
func (r *podRecord) annotated(own map[string]string) map[string]string {
	if !r.told {
		return own
	}
	all := maps.Clone(own)
	if all == nil {
		all = map[string]string{}
	}
	all[NetworkStatusAnnotation] = networkStatusOf(r.interfaces)
	return all
}
