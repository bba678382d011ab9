package dns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

func BenchmarkRespond(b *testing.B) {
	s := NewServer(Config{})
	s.SetZone(Compile(nil, loadState(b, "testdata/cluster.yaml"), testConfig))
	for _, bench := range []struct {
		name, question string
		qtype          uint16
	}{
		{"a", "web.shop.svc.cluster.local.", dns.TypeA},
		{"nxdomain", "web.shop.svc.cluster.local.shop.svc.cluster.local.", dns.TypeA},
		{"srv", "_sql._tcp.db.shop.svc.cluster.local.", dns.TypeSRV},
		{"ptr", "31.0.244.10.in-addr.arpa.", dns.TypePTR},
	} {
		wire, err := question(bench.question, bench.qtype).Pack()
		if err != nil {
			b.Fatal(err)
		}
		out := make([]byte, 4096)
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if answer, _ := s.respond(netip.Addr{}, wire, out, true); answer == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkAnswer asks the fast path for one of many Services after the other.
func BenchmarkAnswer(b *testing.B) {
	st := &kube.State{Services: map[kube.Name]*corev1.Service{}, Namespaces: map[string]*corev1.Namespace{"many": {}}}
	const n = 10_000
	for i := range n {
		name := fmt.Sprint("s", i)
		st.Services[kube.Name{Namespace: "many", Name: name}] = &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "many", Name: name},
			Spec:       corev1.ServiceSpec{ClusterIP: fmt.Sprintf("10.96.%d.%d", 1+i/250, i%250), Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
		}
	}
	s := NewServer(Config{})
	s.SetZone(Compile(nil, st, testConfig))
	fast, out := s.Responder(), make([]byte, 4096)
	for _, bench := range []struct {
		name, format string
		times        int
	}{
		{"hit of 1000", "s%d.many.svc.cluster.local.", 1},
		{"hit of 10000", "s%d.many.svc.cluster.local.", 10},
		{"miss", "www%d.example.com.many.svc.cluster.local.", 1},
	} {
		var wires [][]byte
		for i := range 1000 * bench.times {
			wire, err := question(fmt.Sprintf(bench.format, i), dns.TypeA).Pack()
			if err != nil {
				b.Fatal(err)
			}
			wires = append(wires, wire)
		}
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if fast.Answer(out, wires[i%len(wires)], testClient) == 0 {
					b.Fatal("no answer")
				}
			}
		})
	}
}
