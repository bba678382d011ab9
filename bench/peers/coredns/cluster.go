package main

import (
	"flag"
	"fmt"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

// serveAPI is the role of an API server with the objects of `bench dns`.
func serveAPI(args []string) error {
	fs := flag.NewFlagSet("apiserver", flag.ExitOnError)
	listen := fs.String("listen", "127.0.0.1:8001", "`address` to listen on")
	services := fs.Int("services", 1000, "number of Services")
	fs.Parse(args)
	api := newAPIServer(cluster(*services))
	http.Handle("/", api)
	http.HandleFunc("POST /fresh", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		ports, err := strconv.Atoi(q.Get("ports"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		api.change("/api/v1/services", fresh(q.Get("name"), q.Get("ip"), ports))
	})
	return http.ListenAndServe(*listen, nil)
}

// fresh is a Service with so many ports, named p0 and so on.
func fresh(name, ip string, ports int) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "many", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}},
	}
	for i := range ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Protocol: corev1.ProtocolTCP, Port: int32(1 + i)})
	}
	return svc
}

// cluster is what bench/dns.go writes as manifests: n Services with a ClusterIP
// and one headless with 100 endpoints.
func cluster(n int) *kube.State {
	st := &kube.State{
		Namespaces: map[string]*corev1.Namespace{"many": {}},
		Services:   map[kube.Name]*corev1.Service{},
	}
	add := func(name, ip string) {
		st.Services[kube.Name{Namespace: "many", Name: name}] = &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "many", Name: name},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
				Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
			},
		}
	}
	for i := range n {
		add(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", 1+i/250, i%250))
	}
	add("headless", "None")
	name, proto, port := "http", corev1.ProtocolTCP, int32(80)
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "many", Name: "headless-1", Labels: map[string]string{discoveryv1.LabelServiceName: "headless"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}},
	}
	for i := range 100 {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.200.%d", 1+i)}})
	}
	st.EndpointSlices = st.EndpointSlices.With(kube.Name{Namespace: "many", Name: "headless-1"}, es)
	return st
}
