package nat

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/stack/packet"
)

// loads are conversations by backend address.
type loads map[packet.Addr]int

func (l loads) Load(_ uint64, b *Backend) int { return l[b.Addr] }

func TestLeastConnections(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, annotated(annotationBalance, "least-connections"))
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"), ep("10.244.0.13"))
	tab, _ := w.compile()
	sp := w.lookup(tab, "10.96.0.1:80")
	l := loads{}
	for i := range 90 {
		c := sp.Choose(packet.Tuple{Src: client, SrcPort: uint16(i), Dst: addr("10.96.0.1"), DstPort: 80, Proto: packet.TCP}, false, nil, l)
		if c.Why != ByLoad {
			t.Fatalf("chosen by %s", c.Why)
		}
		l[c.Backend.Addr]++
	}
	if l[addr("10.244.0.11")] != 30 || l[addr("10.244.0.12")] != 30 || l[addr("10.244.0.13")] != 30 {
		t.Errorf("got %v, want 30 each", l)
	}
	l[addr("10.244.0.12")] = 0 // they ended
	for i := range 30 {
		c := sp.Choose(packet.Tuple{Src: client, SrcPort: uint16(i), Dst: addr("10.96.0.1"), DstPort: 80, Proto: packet.TCP}, false, nil, l)
		if c.Backend.Addr != addr("10.244.0.12") {
			t.Fatalf("conversation %d went to %s", i, c.Backend.AddrPort())
		}
		l[c.Backend.Addr]++
	}

	// Weights count, and who stays away gets nothing.
	w.slice("web-2", "web", ep("10.244.0.14")).Annotations = map[string]string{annotationWeight: "3"}
	w.slice("web-3", "web", ep("10.244.0.15")).Annotations = map[string]string{annotationWeight: "0"}
	tab, _ = w.compile()
	sp, l = w.lookup(tab, "10.96.0.1:80"), loads{}
	for i := range 60 {
		l[sp.Choose(packet.Tuple{Src: client, SrcPort: uint16(i), Dst: addr("10.96.0.1"), DstPort: 80, Proto: packet.TCP}, false, nil, l).Backend.Addr]++
	}
	if l[addr("10.244.0.14")] != 30 || l[addr("10.244.0.11")] != 10 || l[addr("10.244.0.15")] != 0 {
		t.Errorf("got %v, want 30 at weight 3, 10 at weight 1", l)
	}
}

func TestPortRanges(t *testing.T) {
	w := newWorld(t)
	w.service("rtp", 1, dual(1), balancer(30100, "198.51.100.7"), annotated(annotationRanges, "media=10000-10999"), func(s *corev1.Service) {
		s.Spec.Ports[0].Name, s.Spec.Ports[0].Port = "media", 10000
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "control", Port: 10500, Protocol: corev1.ProtocolTCP}, corev1.ServicePort{Name: "udp", Port: 10001, Protocol: corev1.ProtocolUDP})
	})
	s := w.slice("rtp-1", "rtp", ep("10.244.0.11"))
	s.Ports[0].Name = ptr("media")
	s.Ports = append(s.Ports, s.Ports[0])
	s.Ports[1].Name, s.Ports[1].Port = ptr("control"), ptr(int32(5))
	tab, ps := w.compile()
	for _, p := range ps {
		if !strings.Contains(p.Err, `no endpoint of the Service has port "udp"`) {
			t.Error(p)
		}
	}
	for _, tt := range []struct {
		dst  string
		port uint16
		want string
	}{
		{"10.96.0.1", 10000, "10.244.0.11:8080"},
		{"10.96.0.1", 10999, "10.244.0.11:9079"},
		{"198.51.100.7", 10007, "10.244.0.11:8087"},
		{"10.96.0.1", 10500, "10.244.0.11:5"}, // a port of its own wins
		{"10.96.0.1", 11000, "unknown-port"},
		{"10.96.0.1", 9999, "unknown-port"},
		{"10.244.0.1", 30100, "10.244.0.11:8080"},
		{"fd00:10:96::1", 10001, "no-endpoints"},
	} {
		got := ""
		tuple := packet.Tuple{Src: client, SrcPort: 1, Dst: addr(tt.dst), DstPort: tt.port, Proto: packet.TCP}
		sp, o := tab.Lookup(tuple.Dst, tuple.Proto, tuple.DstPort)
		if got = o.String(); o == Translate {
			if c := sp.Choose(tuple, false, nil, nil); c.Outcome == Translate {
				got = fmt.Sprintf("%s:%d", c.Backend.Addr.Netip(), sp.TargetPort(tuple, c.Backend))
			} else {
				got = c.Outcome.String()
			}
		}
		if got != tt.want {
			t.Errorf("%s:%d: got %s, want %s", tt.dst, tt.port, got, tt.want)
		}
	}
	w.service("rtp", 1)
	tab, _ = w.compile()
	if _, o := tab.Lookup(addr("10.96.0.1"), packet.TCP, 10001); o != UnknownPort {
		t.Errorf("the range outlived its annotation: %s", o)
	}
}

func TestAnnotationsThatMakeNoSense(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, annotated(annotationBalance, "fastest"), annotated(annotationDrain, "soon"), annotated(annotationProxy, "acept"),
		annotated(annotationRanges, "80-79, 81-90, rtp=80-90, x"))
	w.slice("web-1", "web", ep("10.244.0.11"))
	tab, ps := w.compile()
	var got []string
	for _, p := range ps {
		got = append(got, p.String())
	}
	at := "Service shop/web: warning: metadata.annotations[podgate.dev/"
	want := []string{
		at + `drain-time]: Invalid value: "soon": must be a duration, such as 30s`,
		at + `load-balance]: Unsupported value: "fastest": supported values: "hash", "least-connections"`,
		at + `port-ranges]: Invalid value: "80-79": must be NAME=FIRST-LAST, such as rtp=10000-10999`,
		at + `port-ranges]: Invalid value: "81-90": must begin with the port's own number, 80`,
		at + `port-ranges]: Invalid value: "x": must be NAME=FIRST-LAST, such as rtp=10000-10999`,
		at + `port-ranges]: Not found: "rtp": no port of the Service has this name`,
		at + `proxy-protocol]: Unsupported value: "acept": supported values: "accept", "send"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if sp := w.lookup(tab, "10.96.0.1:80"); sp.LastPort != 0 || sp.Drain != 0 || sp.LeastConnections {
		t.Errorf("got %+v, want a plain port", sp)
	}
}

func TestDrains(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1, annotated(annotationDrain, "30s"))
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12", unready), ep("10.244.0.13", leaving))
	tab, _ := w.compile()
	sp := w.lookup(tab, "10.96.0.1:80")
	if sp.Drain != 30*time.Second {
		t.Errorf("got %s, want 30s", sp.Drain)
	}
	for ip, want := range map[string]bool{"10.244.0.11": false, "10.244.0.12": true, "10.244.0.13": true, "10.244.0.14": true} {
		if got := sp.Drains(&Backend{Addr: addr(ip), Port: 8080}); got != want {
			t.Errorf("%s: got %t, want %t", ip, got, want)
		}
	}
}
