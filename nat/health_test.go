package nat

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestHealthChecks(t *testing.T) {
	w := newWorld(t)
	check := func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 30999 }
	w.service("web", 1, balancer(30080, "198.51.100.7"), externalLocal, check)
	w.service("all", 2, balancer(30081, "198.51.100.8"), check) // externalTrafficPolicy: Cluster
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"), ep("10.244.0.13", elsewhere), ep("10.244.0.14", unready))
	tab, _ := w.compile()
	want := "[{shop/web true 30999 [127.0.0.1] [10.244.0.1] 2}]"
	if got := fmt.Sprint(tab.HealthChecks()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	w.slice("web-1", "web", ep("10.244.0.13", elsewhere))
	tab, _ = w.compile()
	if got := tab.HealthChecks()[0].Local; got != 0 {
		t.Errorf("endpoints elsewhere only: got %d local ones", got)
	}
	put(&w.st.Services, kubeName("web"), nil)
	if tab, _ = w.compile(); len(tab.HealthChecks()) != 0 {
		t.Errorf("the Service is gone: got %v", tab.HealthChecks())
	}

	// Each family answers for its own.
	w.service("web", 1, dual(1), balancer(30080, "198.51.100.7"), externalLocal, check)
	w.slice("web-1", "web", ep("10.244.0.11"), ep("10.244.0.12"))
	w.slice("web-6", "web", ep("fd00:10:244::b"))
	tab, _ = w.compile()
	want = "[{shop/web true 30999 [127.0.0.1] [10.244.0.1] 2} {shop/web false 30999 [::1] [fd00:10:244::1] 1}]"
	if got := fmt.Sprint(tab.HealthChecks()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
