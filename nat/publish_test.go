package nat

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/stack/packet"
)

// pod adds pod shop/name with one container.
func (w *world) pod(name, ip string, ports ...corev1.ContainerPort) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Ports: ports}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
	put(&w.st.Pods, kubeName(name), p)
	return p
}

func published(t *Table) []string {
	var out []string
	for _, p := range t.Published() {
		line := fmt.Sprintf("%s:%d/%d to %s for %s%s%s %v", p.HostIP, p.Port, p.Proto, p.Target, p.Service, p.Pod, p.Name, p.Sources)
		for _, w := range []struct {
			word string
			said bool
		}{{"closed", p.Closed}, {"accepts PROXY", p.AcceptProxy}, {"sends PROXY", p.SendProxy}} {
			if w.said {
				line += ", " + w.word
			}
		}
		out = append(out, line)
	}
	return out
}

func TestPublished(t *testing.T) {
	http := corev1.ContainerPort{Name: "http", ContainerPort: 8080, HostPort: 8088, Protocol: corev1.ProtocolTCP}
	tests := []struct {
		name  string
		setup func(w *world)
		want  []string
	}{
		{"spec.type: ClusterIP", func(w *world) { w.service("web", 1) }, nil},
		{"spec.ports.nodePort", func(w *world) { w.service("web", 1, dual(1), nodePort(30080)) }, []string{
			"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web [], closed",
			"::1:30080/6 to [fd00:10:244::1]:30080 for shop/web [], closed",
		}},
		{"spec.ports.protocol: UDP", func(w *world) {
			w.service("dns", 1, nodePort(30053), func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP })
		}, []string{"127.0.0.1:30053/17 to 10.244.0.1:30053 for shop/dns [], closed"}},
		{"spec.ports.protocol: SCTP", func(w *world) {
			w.service("sig", 1, nodePort(30053), func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP })
		}, nil},
		{"spec.type: LoadBalancer", func(w *world) { w.service("web", 1, balancer(30080, "198.51.100.7")) }, []string{
			"127.0.0.1:80/6 to 10.244.0.1:30080 for shop/web [], closed",
			"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web [], closed",
		}},
		{"status.loadBalancer.ingress.ipMode: Proxy", func(w *world) {
			w.service("web", 1, balancer(30080, "127.0.0.9", "127.0.0.10"), func(s *corev1.Service) {
				for i := range s.Status.LoadBalancer.Ingress {
					s.Status.LoadBalancer.Ingress[i].IPMode = ptr(corev1.LoadBalancerIPModeProxy)
				}
			})
		}, []string{
			"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web [], closed",
			"127.0.0.9:80/6 to 10.244.0.1:30080 for shop/web [], closed",
			"127.0.0.10:80/6 to 10.244.0.1:30080 for shop/web [], closed",
		}},
		{"Config.HostIPs", func(w *world) {
			w.cfg.HostIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
			w.service("web", 1, dual(1), nodePort(30080))
			w.pod("a", "10.244.0.11", http)
		}, []string{
			"192.0.2.1:8088/6 to 10.244.0.11:8080 for shop/ahttp []",
			"192.0.2.1:30080/6 to 10.244.0.1:30080 for shop/web [], closed",
			"::1:30080/6 to [fd00:10:244::1]:30080 for shop/web [], closed",
		}},
		{"spec.allocateLoadBalancerNodePorts: false", func(w *world) { w.service("web", 1, balancer(0)) }, []string{
			"127.0.0.1:80/6 to 10.96.0.1:80 for shop/web [], closed",
		}},
		{"spec.loadBalancerSourceRanges", func(w *world) {
			w.service("web", 1, balancer(0), func(s *corev1.Service) {
				s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "2001:db8::/32"}
			})
		}, []string{"127.0.0.1:80/6 to 10.96.0.1:80 for shop/web [192.0.2.0/24], closed"}},
		{"containers.ports.hostPort", func(w *world) { w.pod("a", "10.244.0.11", http) }, []string{
			"127.0.0.1:8088/6 to 10.244.0.11:8080 for shop/ahttp []",
		}},
		{"containers.ports.hostPort, both families", func(w *world) {
			p := w.pod("a", "10.244.0.11", http)
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fd00:10:244::b"})
		}, []string{
			"127.0.0.1:8088/6 to 10.244.0.11:8080 for shop/ahttp []",
			"::1:8088/6 to [fd00:10:244::b]:8080 for shop/ahttp []",
		}},
		{"containers.ports.hostIP", func(w *world) {
			p, q := http, http
			p.HostIP, q.HostIP = "127.0.0.5", "0.0.0.0"
			w.pod("a", "10.244.0.11", p)
			w.pod("b", "10.244.0.12", q)
		}, []string{
			"0.0.0.0:8088/6 to 10.244.0.12:8080 for shop/bhttp []",
			"127.0.0.5:8088/6 to 10.244.0.11:8080 for shop/ahttp []",
		}},
		{"initContainers.ports.hostPort", func(w *world) {
			p := w.pod("a", "10.244.0.11")
			p.Spec.InitContainers = []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 1, ContainerPort: 1}}},
				{RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{http}}}
		}, []string{"127.0.0.1:8088/6 to 10.244.0.11:8080 for shop/ahttp []"}},
		{"spec.hostNetwork", func(w *world) { w.pod("a", "10.244.0.1", http).Spec.HostNetwork = true }, nil},
		{"status.phase: Succeeded", func(w *world) { w.pod("a", "10.244.0.11", http).Status.Phase = corev1.PodSucceeded }, nil},
		{"endpoints.conditions.ready", func(w *world) {
			w.service("web", 1, nodePort(30080))
			w.slice("web-1", "web", ep("10.244.0.11"))
		}, []string{"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web []"}},
		{"endpoints.conditions.ready: false", func(w *world) {
			w.service("web", 1, nodePort(30080))
			w.slice("web-1", "web", ep("10.244.0.11", unready))
		}, []string{"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web [], closed"}},
		{"spec.externalTrafficPolicy: Local", func(w *world) {
			w.service("web", 1, nodePort(30080), externalLocal)
			w.slice("web-1", "web", ep("10.244.0.11", elsewhere))
			w.cfg.HostIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")}
		}, []string{
			"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web []", // clients there are the node
			"192.0.2.1:30080/6 to 10.244.0.1:30080 for shop/web [], closed",
		}},
		{"metadata.annotations podgate.dev/proxy-protocol", func(w *world) {
			w.service("web", 1, dual(1), balancer(30080), annotated(annotationProxy, "accept, send"))
			w.slice("web-1", "web", ep("10.244.0.11"))
			w.service("dns", 2, nodePort(30053), annotated(annotationProxy, "accept"), func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP })
		}, []string{
			"127.0.0.1:80/6 to 10.244.0.1:30080 for shop/web [], accepts PROXY, sends PROXY",
			"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web [], accepts PROXY, sends PROXY",
			"127.0.0.1:30053/17 to 10.244.0.1:30053 for shop/dns [], closed",
			"::1:80/6 to [fd00:10:244::1]:30080 for shop/web [], closed, accepts PROXY, sends PROXY",
			"::1:30080/6 to [fd00:10:244::1]:30080 for shop/web [], closed, accepts PROXY, sends PROXY",
		}},
		{"metadata.annotations of clouds", func(w *world) {
			w.service("web", 1, balancer(30080), annotated("service.beta.kubernetes.io/aws-load-balancer-proxy-protocol", "*"))
			w.slice("web-1", "web", ep("10.244.0.11"))
			w.service("dns", 2, nodePort(30053), annotated("load-balancer.hetzner.cloud/uses-proxyprotocol", "false"))
		}, []string{
			"127.0.0.1:80/6 to 10.244.0.1:30080 for shop/web [], sends PROXY",
			"127.0.0.1:30053/6 to 10.244.0.1:30053 for shop/dns [], closed",
			"127.0.0.1:30080/6 to 10.244.0.1:30080 for shop/web []",
		}},
		{"metadata.annotations podgate.dev/proxy-protocol of a pod", func(w *world) {
			w.pod("a", "10.244.0.11", http).Annotations = map[string]string{annotationProxy: "send"}
		}, []string{"127.0.0.1:8088/6 to 10.244.0.11:8080 for shop/ahttp [], sends PROXY"}},
		{"two LoadBalancers, one port", func(w *world) {
			w.service("new", 1, balancer(0), func(s *corev1.Service) { s.CreationTimestamp = metav1.Unix(200, 0) })
			w.service("old", 2, balancer(0), func(s *corev1.Service) { s.CreationTimestamp = metav1.Unix(100, 0) })
		}, []string{"127.0.0.1:80/6 to 10.96.0.2:80 for shop/old [], closed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.compile()
			tt.setup(w)
			tab, _ := w.compile()
			if got := published(tab); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			w.st.Services, w.st.Pods = nil, nil
			if tab, _ = w.compile(); len(tab.Published()) != 0 {
				t.Errorf("all gone, still published: %q", published(tab))
			}
		})
	}
}

func TestHostPortAnswersPodsAtTheNodeAddress(t *testing.T) {
	w := newWorld(t)
	http := corev1.ContainerPort{Name: "http", ContainerPort: 8080, HostPort: 8088, Protocol: corev1.ProtocolTCP}
	w.pod("a", "10.244.0.11", http)
	tab, _ := w.compile()
	if got, want := reached(tab, node4, packet.TCP, 8088, false), "[10.244.0.11:8080]"; got != want {
		t.Errorf("hostPort: got %s, want %s", got, want)
	}
	first := w.lookup(tab, "10.244.0.1:8088")
	w.pod("a", "10.244.0.11", http).Status.Message = "written anew"
	tab, _ = w.compile()
	if w.lookup(tab, "10.244.0.1:8088") != first {
		t.Error("the pod's status was written, and its hostPort made anew")
	}
	http.HostIP = "127.0.0.1"
	w.pod("a", "10.244.0.11", http)
	tab, _ = w.compile()
	if got, want := reached(tab, node4, packet.TCP, 8088, false), "not-service"; got != want {
		t.Errorf("hostPort at 127.0.0.1: got %s, want %s", got, want)
	}
}

func TestServicesIteratesByName(t *testing.T) {
	w := newWorld(t)
	w.service("b", 2)
	w.service("a", 1)
	tab, _ := w.compile()
	var got []string
	for s := range tab.Services() {
		got = append(got, s.Name.String())
	}
	if want := []string{"shop/a", "shop/b"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if tab.Service(kubeName("a")) == nil || tab.Service(kubeName("c")) != nil {
		t.Error("Service(name) finds the wrong ones")
	}
}
