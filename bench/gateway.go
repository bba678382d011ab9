package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
	"podgate/nat"
	"podgate/stack"
	"podgate/stack/local"
	"podgate/stack/packet"
)

var (
	gatewayMAC   = packet.MAC{0x0a, 0x58, 0, 0, 0, 1}
	gatewayAddr  = netip.MustParseAddr("10.244.0.1")
	podCIDRs     = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
)

// gateway is the role of the process under test: the production data plane,
// wired as `podgate up` wires it, with one Service. It ends with its stdin.
func gateway(args []string) error {
	var g gatewaySpec
	if err := json.Unmarshal([]byte(args[0]), &g); err != nil {
		return err
	}
	plane, stop, err := startPlane(g.Spin)
	if err != nil {
		return err
	}
	for i, p := range g.Pods {
		if err := p.attach(plane, kube.Name{Namespace: "bench", Name: p.Name}, 3+i); err != nil {
			return err
		}
	}
	if g.Egress {
		if err := wayOut(plane, g.Pods[0].MTU); err != nil {
			return err
		}
	}
	table, problems := nat.Compile(nil, state(g), nat.Config{
		NodeName:     "podgate",
		NodeAddrs:    []netip.Addr{gatewayAddr},
		ServiceCIDRs: serviceCIDRs,
	})
	if len(problems) > 0 {
		return fmt.Errorf("compile the Service: %v", problems)
	}
	plane.Publish(stack.Input{Services: table})
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return stop()
}

// attach gives the plane the interface of a pod, which came as descriptor fd, with
// the pod's address and more.
func (p podSpec) attach(plane *stack.Plane, pod kube.Name, fd int, more ...netip.Addr) error {
	dev, err := p.open(fd)
	if err != nil {
		return err
	}
	_, err = plane.Attach(stack.PortSpec{
		Pod: pod, Name: "eth0",
		MAC: p.mac(), Addrs: append([]netip.Addr{p.Addr}, more...), MTU: p.MTU,
	}, dev)
	return err
}

// startPlane runs a data plane for processes under test, until stop.
func startPlane(spin time.Duration) (plane *stack.Plane, stop func() error, err error) {
	plane, err = stack.New(stack.Config{
		GatewayMAC:   gatewayMAC,
		GatewayAddrs: []netip.Addr{gatewayAddr},
		LocalAddrs:   []netip.Addr{gatewayAddr},
		PodCIDRs:     podCIDRs,
		ServiceCIDRs: serviceCIDRs,
		Spin:         spin,
		Log:          slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- plane.Run(ctx) }()
	return plane, func() error {
		cancel()
		if err := <-ran; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}, nil
}

// wayOut attaches a local stack that dials what pods send outside.
func wayOut(plane *stack.Plane, mtu int) error {
	mac := podSpec{Addr: gatewayAddr}.mac()
	l, err := local.New(local.Config{Addrs: []netip.Addr{gatewayAddr}, MAC: mac, GatewayMAC: gatewayMAC, MTU: mtu})
	if err != nil {
		return err
	}
	_, err = plane.Attach(stack.PortSpec{Name: "local", MAC: mac, Addrs: []netip.Addr{gatewayAddr}, MTU: mtu, Local: true}, l.Device())
	return err
}

// state is a cluster of one Service with one endpoint.
func state(g gatewaySpec) *kube.State {
	meta := metav1.ObjectMeta{Namespace: "bench", Name: "server"}
	name := kube.Name{Namespace: "bench", Name: "server"}
	svc := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type:       corev1.ServiceTypeClusterIP,
		ClusterIP:  g.Service.String(),
		ClusterIPs: []string{g.Service.String()},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
	}}
	node, yes := "podgate", true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  meta,
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{g.Pods[len(g.Pods)-1].Addr.String()},
			NodeName:   &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
		}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "server"}
	for _, m := range metrics {
		port, proto := int32(m.port), corev1.Protocol(m.proto)
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: m.load, Protocol: proto, Port: port})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &m.load, Protocol: &proto, Port: &port})
	}
	return &kube.State{
		Services:       map[kube.Name]*corev1.Service{name: svc},
		EndpointSlices: kube.MapOf(map[kube.Name]*discoveryv1.EndpointSlice{name: slice}),
	}
}
