package dns

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"podgate/kube"
)

// loadState reads a multi-document file into a State as an API server serves it.
func loadState(t testing.TB, file string) *kube.State {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	st := &kube.State{
		Generation: 7,
		Namespaces: map[string]*corev1.Namespace{},
		Pods:       map[kube.Name]*corev1.Pod{},
		Services:   map[kube.Name]*corev1.Service{},
	}
	for _, doc := range strings.Split(string(b), "\n---\n") {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%s: %v\n%s", file, err, doc)
		}
		switch head.Kind {
		case "Namespace":
			o := decode[corev1.Namespace](t, doc)
			st.Namespaces[o.Name] = o
		case "Pod":
			o := decode[corev1.Pod](t, doc)
			st.Pods[kube.Name{Namespace: o.Namespace, Name: o.Name}] = o
		case "Service":
			o := decode[corev1.Service](t, doc)
			st.Services[kube.Name{Namespace: o.Namespace, Name: o.Name}] = o
		case "EndpointSlice":
			o := decode[discoveryv1.EndpointSlice](t, doc)
			st.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: o.Namespace, Name: o.Name}, o)
		default:
			t.Fatalf("%s: kind %q\n%s", file, head.Kind, doc)
		}
	}
	return st
}

func decode[T any](t testing.TB, doc string) *T {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	return o
}

var testConfig = Config{
	PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/64")},
	ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
	TTL:          30 * time.Second,
}

// manyServices is a State of n ClusterIP Services with two endpoints each.
func manyServices(n int) *kube.State {
	st := &kube.State{
		Namespaces: map[string]*corev1.Namespace{"many": {}},
		Services:   map[kube.Name]*corev1.Service{},
	}
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		st.Services[kube.Name{Namespace: "many", Name: name}] = &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "many", Name: name},
			Spec: corev1.ServiceSpec{
				ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250), Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
			},
		}
		st.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: "many", Name: name + "-a"}, sliceOf(name, "many", i))
	}
	return st
}

func sliceOf(service, namespace string, i int) *discoveryv1.EndpointSlice {
	port, name := int32(8080), "http"
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: service + "-a", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{fmt.Sprintf("10.244.%d.%d", i/120, 10+i%120)}},
			{Addresses: []string{fmt.Sprintf("10.244.%d.%d", i/120, 130+i%120)}},
		},
	}
}

func TestCompileSharesWhatDidNotChange(t *testing.T) {
	st := manyServices(50)
	before := Compile(nil, st, testConfig)
	next := *st
	next.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: "many", Name: "s7-a"}, sliceOf("s7", "many", 700))
	after := Compile(before, &next, testConfig)

	for i := range 50 {
		key := fmt.Sprintf("s%d.many", i)
		a, _ := before.services.get(key)
		b, _ := after.services.get(key)
		if same := a == b; same != (i != 7) {
			t.Errorf("%s: shared is %v", key, same)
		}
	}
	for addr, want := range map[string][2]int{"10.244.0.17": {1, 0}, "10.244.5.110": {0, 1}, "10.244.0.18": {1, 1}} {
		old, _ := before.pointers.get(netip.MustParseAddr(addr))
		now, _ := after.pointers.get(netip.MustParseAddr(addr))
		if got := [2]int{len(old), len(now)}; got != want {
			t.Errorf("names of %s before and after: got %v, want %v", addr, got, want)
		}
	}
}

// A zone that was changed step by step is the zone compiled from scratch.
func TestCompileInStepsEqualsCompileAtOnce(t *testing.T) {
	full := loadState(t, "testdata/cluster.yaml")
	for kind, without := range map[string]func(*kube.State){
		"slice":   func(st *kube.State) { st.EndpointSlices = kube.Map[kube.Name, *discoveryv1.EndpointSlice]{} },
		"service": func(st *kube.State) { st.Services = map[kube.Name]*corev1.Service{} },
		"both": func(st *kube.State) {
			st.Services, st.EndpointSlices = map[kube.Name]*corev1.Service{}, kube.Map[kube.Name, *discoveryv1.EndpointSlice]{}
		},
	} {
		less := *full
		without(&less)
		for order, states := range map[string][]*kube.State{
			"added": {&less, full}, "removed": {full, &less}, "back": {full, &less, full},
		} {
			var z *Zone
			for _, st := range states {
				z = Compile(z, st, testConfig)
			}
			last := states[len(states)-1]
			if got, want := dump(z), dump(Compile(nil, last, testConfig)); got != want {
				t.Errorf("%s %s: got\n%s\nwant\n%s", kind, order, got, want)
			}
		}
	}
}

func TestCompileCostsTheChange(t *testing.T) {
	st := manyServices(10_000)
	z := Compile(nil, st, testConfig)
	next := *st
	next.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: "many", Name: "s7-a"}, sliceOf("s7", "many", 8))
	all := testing.AllocsPerRun(1, func() { Compile(nil, st, testConfig) })
	one := testing.AllocsPerRun(3, func() { Compile(z, &next, testConfig) })
	if one > all/500 {
		t.Errorf("one EndpointSlice of 10,000 costs %.0f allocations, all of them %.0f", one, all)
	}
}
