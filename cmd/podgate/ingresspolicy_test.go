package main

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// A policy that denies the front door a pod ends its kept connections and what is
// under way there: such requests fail, and wait for nobody's timeout. Other pods
// are asked without a fault, and the pod again when the policy is gone.
func TestPolicyEndsTheFrontDoorsConnections(t *testing.T) {
	s := newShell(t)
	app := ""
	for _, name := range []string{"web", "other"} {
		app += workloadPod(name, "http", "") + serviceOf(name, name, "ports: [{port: 80, targetPort: 8080}]") +
			fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: %s, annotations: {nginx.ingress.kubernetes.io/proxy-read-timeout: \"600\"}}\nspec:\n  rules:\n"+
				"  - {host: %[1]s.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: %[1]s, port: {number: 80}}}}]}}\n---\n", name)
	}
	s.up("--set ingress.http=127.0.0.1:8080 --set ingress.https= " + write(t, "app.yaml", app))
	client := &http.Client{Timeout: 60 * time.Second}
	ask := func(name string) (int, error) {
		r, err := http.NewRequest("GET", "http://127.0.0.1:8080/hostname", nil)
		if err != nil {
			return 0, err
		}
		r.Host = name + ".example"
		answer, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		defer answer.Body.Close()
		return answer.StatusCode, nil
	}
	for _, name := range []string{"web", "other"} {
		until(t, name+" answers", func() bool { status, _ := ask(name); return status == 200 })
	}
	// Steady requests to both, until told to stop.
	stop := make(chan struct{})
	var load sync.WaitGroup
	for name, allowed := range map[string]map[int]bool{"web": {200: true, 502: true, 504: true}, "other": {200: true}} {
		for range 2 {
			load.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if status, err := ask(name); err != nil || !allowed[status] {
						t.Errorf("%s: status %d, %v", name, status, err)
						return
					}
				}
			})
		}
	}
	deny := write(t, "deny.yaml", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {matchLabels: {app: web}}
`)
	for range 3 {
		s.must("podgate apply -f " + deny)
		if status, err := ask("web"); status != 502 && status != 504 {
			t.Errorf("under the policy: status %d, %v", status, err)
		}
		s.must("podgate delete -f " + deny)
		until(t, "web answers again", func() bool { status, _ := ask("web"); return status == 200 })
	}
	close(stop)
	load.Wait()
}
