package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
	"podgate/nat"
	"podgate/stack"
)

// servicesGateway is the process under test: store, compile and data plane as
// `podgate up` wires them. It loads, says what that took, and on "change" makes
// changes and says what they took.
func servicesGateway(args []string) error {
	var g pairSpec
	if err := json.Unmarshal([]byte(args[0]), &g); err != nil {
		return err
	}
	plane, stop, err := startPlane(0)
	if err != nil {
		return err
	}
	for i, p := range g.Pods {
		var more []netip.Addr
		if i == 1 {
			more = []netip.Addr{netip.MustParseAddr("10.244.0.6"), netip.MustParseAddr("10.244.0.7")}
		}
		if err := p.attach(plane, kube.Name{Namespace: "bench", Name: p.Name}, 3+i, more...); err != nil {
			return err
		}
	}
	w := serviceWorld{plane: plane, store: kube.NewStore(kube.Config{PodCIDRs: podCIDRs, ServiceCIDRs: serviceCIDRs}, nil)}
	took, err := w.load(g.N)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(serviceRow{Load: took.Seconds(), MemoryMB: peakMiB()}); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var all []time.Duration
		for i := range podgateChanges {
			took, err := w.change(kube.Object{API: benchSlice(g.N/2, i+1)})
			if err != nil {
				return err
			}
			all = append(all, took)
		}
		if err := out.Encode(distribution(all, time.Millisecond)); err != nil {
			return err
		}
	}
	return stop()
}

type serviceWorld struct {
	plane *stack.Plane
	store *kube.Store
	table *nat.Table
}

// load returns how long it takes until the plane enforces n Services, which come
// as from files of some hundred each.
func (w *serviceWorld) load(n int) (took time.Duration, err error) {
	start := time.Now()
	var objs []kube.Object
	for i := range n {
		objs = append(objs, kube.Object{API: benchService(i)}, kube.Object{API: benchSlice(i, 0)})
		if len(objs) == 1000 || i == n-1 {
			if err := w.accept(objs); err != nil {
				return 0, err
			}
			objs = nil
		}
	}
	w.enforce()
	return time.Since(start), nil
}

// change returns how long it takes until the plane enforces o.
func (w *serviceWorld) change(o kube.Object) (time.Duration, error) {
	start := time.Now()
	if err := w.accept([]kube.Object{o}); err != nil {
		return 0, err
	}
	w.enforce()
	return time.Since(start), nil
}

func (w *serviceWorld) accept(objs []kube.Object) error {
	for _, c := range w.store.Apply(objs) {
		if c.Action == kube.Rejected {
			return fmt.Errorf("%s: %v", c, c.Problems)
		}
	}
	return nil
}

func (w *serviceWorld) enforce() {
	w.table, _ = nat.Compile(w.table, w.store.State(), nat.Config{NodeName: "podgate", NodeAddrs: []netip.Addr{gatewayAddr}, ServiceCIDRs: serviceCIDRs})
	w.plane.Publish(stack.Input{Services: w.table})
}

func benchService(i int) *corev1.Service {
	ip := serviceVIP(i).String()
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: fmt.Sprintf("s%d", i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Port: servicePort, Protocol: corev1.ProtocolTCP}},
		},
	}
}

// benchSlice is the EndpointSlice of Service i; with changes its first endpoint.
func benchSlice(i, with int) *discoveryv1.EndpointSlice {
	port, name, proto := int32(servicePort), "", corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Namespace: "bench", Name: fmt.Sprintf("s%d", i), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s%d", i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for j := range endpointsEach {
		addr := netip.AddrFrom4([4]byte{10, 244, 0, byte(5 + j)})
		if j == 0 && with > 0 {
			addr = netip.AddrFrom4([4]byte{10, 244, 1, byte(with)})
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr.String()}})
	}
	return s
}

// distribution is that of durations, in units.
func distribution(all []time.Duration, unit time.Duration) latency {
	slices.Sort(all)
	at := func(p int) float64 { return float64(all[min(len(all)*p/100, len(all)-1)]) / float64(unit) }
	return latency{at(50), at(99)}
}

// peakMiB is the most memory that this process had resident; 0 if /proc does
// not tell.
func peakMiB() float64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	return 0
}
