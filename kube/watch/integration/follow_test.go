package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const deploy = "../../../deploy/podgate.yaml"

// has says whether one object of a list satisfies ok.
func (g *gateway) has(ok func(o any) bool, args ...string) func() error {
	return func() error {
		list, err := g.get(args...)
		if err == nil && !slices.ContainsFunc(list, ok) {
			err = fmt.Errorf("none of the %d objects is so", len(list))
		}
		return err
	}
}

func any1(any) bool { return true }

// lacks says whether an object is gone.
func (g *gateway) lacks(args ...string) func() error {
	return func() error {
		if _, err := g.get(args...); err == nil {
			return errors.New("it is there still")
		} else if !strings.Contains(err.Error(), "NotFound") {
			return err
		}
		return nil
	}
}

func object(apiVersion, kind, namespace, name string, fields map[string]any) map[string]any {
	o := map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"name": name}}
	if namespace != "" {
		o["metadata"].(map[string]any)["namespace"] = namespace
	}
	for k, v := range fields {
		o[k] = v
	}
	return o
}

// TestFollow applies the shop with kubectl and changes every kind of object: the
// gateway's state follows, also over restarts of the API server and over
// deletions that nobody told it of; statuses and events are written back; and it
// has used exactly the rights that deploy/podgate.yaml gives it.
func TestFollow(t *testing.T) {
	c := newControlPlane(t)
	c.addNode("node-1", "127.0.0.1")
	c.kubelet("node-1")
	c.kubectl("apply", "-f", deploy)
	c.installDefinitions()
	g := c.gateway("follow", "node-1", "podgate")
	g.awaitReady()
	c.applyShop()
	await(t, "the shop's pods are ready", func() error {
		pods, err := g.get("pods", "-n", "shop")
		for _, p := range pods {
			if get(p, "status", "podIP") == nil {
				err = fmt.Errorf("pod %v has no address", get(p, "metadata", "name"))
			}
		}
		if err == nil && len(pods) < 4 {
			err = fmt.Errorf("%d pods", len(pods))
		}
		return err
	})
	c.followsChanges(g)
	c.writesBack(g)
	c.survives(g)
	g.stop()
	c.usedItsRights(g)
}

// installDefinitions makes the API server know the Gateway API and
// ClusterNetworkPolicies, by the definitions that come with their Go modules.
func (c *controlPlane) installDefinitions() {
	c.t.Helper()
	args := []string{"create"}
	for _, name := range []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "referencegrants", "backendtlspolicies"} {
		args = append(args, "-f", os.Getenv(gatewayAPIEnv)+"/config/crd/standard/gateway.networking.k8s.io_"+name+".yaml")
	}
	c.kubectl(append(args, "-f", os.Getenv(policyAPIEnv)+"/config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml")...)
	c.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
}

func (c *controlPlane) followsChanges(g *gateway) {
	shop := "/api/v1/namespaces/shop"
	net := "/apis/networking.k8s.io/v1"
	labelled := func(key string) func(any) bool {
		return func(o any) bool { return get(o, "metadata", "labels", key) == "yes" }
	}
	mark := func(path, key string) func() {
		return func() {
			c.do("PATCH", path, map[string]any{"metadata": map[string]any{"labels": map[string]any{key: "yes"}}})
		}
	}
	endpoints := func(n int) func() error {
		return func() error {
			list, err := g.get("endpointslices", "-n", "shop")
			found := 0
			for _, s := range list {
				if get(s, "metadata", "labels", "kubernetes.io/service-name") == "web" && get(s, "addressType") == "IPv4" {
					all, _ := get(s, "endpoints").([]any)
					for _, e := range all {
						if get(e, "conditions", "ready") == true {
							found++
						}
					}
				}
			}
			if err == nil && found != n {
				err = fmt.Errorf("%d endpoints are ready, not %d", found, n)
			}
			return err
		}
	}
	create := func(path string, o map[string]any) func() { return func() { c.do("POST", path, o) } }
	remove := func(path string) func() { return func() { c.do("DELETE", path, nil) } }
	scale := func(n int) func() {
		return func() {
			c.do("PATCH", "/apis/apps/v1/namespaces/shop/deployments/web/scale", map[string]any{"spec": map[string]any{"replicas": n}})
		}
	}
	tls := map[string]any{"spec": map[string]any{
		"tls":            []any{map[string]any{"hosts": []any{"new.example"}, "secretName": "new-tls"}},
		"defaultBackend": map[string]any{"service": map[string]any{"name": "web", "port": map[string]any{"number": 80}}},
	}}
	for _, step := range []struct {
		what string
		do   func()
		seen func() error
	}{
		{"a Namespace is labelled", mark("/api/v1/namespaces/shop", "marked"), g.has(labelled("marked"), "namespaces", "shop")},
		{"a Pod is labelled", mark(shop+"/pods/batch", "marked"), g.has(labelled("marked"), "pods", "batch", "-n", "shop")},
		{"a Service gets another port", func() {
			c.do("PATCH", shop+"/services/api", map[string]any{"spec": map[string]any{"ports": []any{map[string]any{"name": "http", "port": 81, "targetPort": "http"}}}})
		}, g.has(func(o any) bool { return get(o, "spec", "ports", 0, "port") == 81.0 }, "services", "api", "-n", "shop")},
		{"a Deployment has four pods", scale(4), endpoints(4)},
		{"a Deployment has one pod", scale(1), endpoints(1)},
		{"an EndpointSlice is made", create("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", object("discovery.k8s.io/v1", "EndpointSlice", "shop", "by-hand", map[string]any{
			"addressType": "IPv4", "endpoints": []any{map[string]any{"addresses": []any{"192.0.2.7"}}},
		})), g.has(any1, "endpointslices", "by-hand", "-n", "shop")},
		{"an EndpointSlice is deleted", remove("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/by-hand"), g.lacks("endpointslices", "by-hand", "-n", "shop")},
		{"an Ingress is made", create(net+"/namespaces/shop/ingresses", object("networking.k8s.io/v1", "Ingress", "shop", "new", tls)), g.has(any1, "ingresses", "new", "-n", "shop")},
		{"its Secret is made", create(shop+"/secrets", object("v1", "Secret", "shop", "new-tls", map[string]any{"data": map[string]any{"tls.crt": "", "tls.key": ""}, "type": "kubernetes.io/tls"})), g.has(any1, "secrets", "new-tls", "-n", "shop")},
		{"its Secret changes", mark(shop+"/secrets/new-tls", "marked"), g.has(labelled("marked"), "secrets", "new-tls", "-n", "shop")},
		{"its Secret is deleted", remove(shop + "/secrets/new-tls"), g.lacks("secrets", "new-tls", "-n", "shop")},
		{"an IngressClass is made", create(net+"/ingressclasses", object("networking.k8s.io/v1", "IngressClass", "", "other", map[string]any{"spec": map[string]any{"controller": "example.com/other"}})), g.has(any1, "ingressclasses", "other")},
		{"a NetworkPolicy is made", create(net+"/namespaces/shop/networkpolicies", object("networking.k8s.io/v1", "NetworkPolicy", "shop", "new", map[string]any{"spec": map[string]any{"podSelector": map[string]any{}}})), g.has(any1, "networkpolicies", "new", "-n", "shop")},
		{"a NetworkPolicy is deleted", remove(net + "/namespaces/shop/networkpolicies/new"), g.lacks("networkpolicies", "new", "-n", "shop")},
		{"a ClusterNetworkPolicy is made", create("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies", object("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "", "new", map[string]any{"spec": map[string]any{
			"tier": "Admin", "priority": 1, "subject": map[string]any{"namespaces": map[string]any{}},
		}})), g.has(any1, "clusternetworkpolicies", "new")},
		{"the Corefile is made", create("/api/v1/namespaces/kube-system/configmaps", object("v1", "ConfigMap", "kube-system", "coredns", map[string]any{"data": map[string]any{"Corefile": ".:53 {\n  kubernetes cluster.local\n}\n"}})), g.has(any1, "configmaps", "coredns", "-n", "kube-system")},
		{"a Service is deleted", remove(shop + "/services/api"), g.lacks("services", "api", "-n", "shop")},
	} {
		step.do()
		c.t.Logf("%-34s followed after %s", step.what, await(c.t, step.what, step.seen).Round(time.Millisecond))
	}
	if list, err := g.get("secrets", "-A"); err != nil || len(list) > 0 {
		c.t.Errorf("got Secrets %v, %v; want none that nothing refers to", list, err)
	}
}

// writesBack looks at what kubectl shows.
func (c *controlPlane) writesBack(g *gateway) {
	c.t.Helper()
	await(c.t, "kubectl shows addresses", func() error {
		ingress := c.kubectl("get", "ingress", "-n", "shop", "shop", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
		service := c.kubectl("get", "service", "-n", "shop", "web-public", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
		if ingress != "127.0.0.1" || service != "127.0.0.1" {
			return fmt.Errorf("Ingress %q, Service %q", ingress, service)
		}
		return nil
	})
	c.write("gateway.yaml", gatewayManifest)
	c.kubectl("apply", "-f", c.path("gateway.yaml"))
	await(c.t, "kubectl shows the Gateway and its routes", func() error {
		programmed := c.kubectl("get", "gateway", "-n", "shop", "front", "-o", `jsonpath={.status.conditions[?(@.type=="Programmed")].status} {.status.addresses[*].value}`)
		if !strings.HasPrefix(programmed, "True 127.0.0.1") {
			return errors.New(programmed)
		}
		for _, r := range []string{"httproute/front", "grpcroute/front", "tlsroute/front"} {
			if accepted := c.kubectl("get", r, "-n", "shop", "-o", `jsonpath={.status.parents[*].conditions[?(@.type=="Accepted")].status}`); accepted != "True" {
				return fmt.Errorf("%s: %q", r, accepted)
			}
		}
		return nil
	})
	c.t.Logf("\n%s", c.kubectl("get", "ingress,svc,gatewayclass,gateway,httproute", "-n", "shop"))
	c.do("PATCH", "/apis/networking.k8s.io/v1/namespaces/shop/ingresses/new", map[string]any{"spec": map[string]any{"defaultBackend": map[string]any{"service": map[string]any{"name": "nobody", "port": map[string]any{"number": 80}}}}})
	await(c.t, "there is an event", func() error {
		if out := c.kubectl("events", "-n", "shop", "--for", "ingress/new"); !strings.Contains(out, "nobody") {
			return errors.New(out)
		}
		return nil
	})
	c.t.Logf("\n%s", c.kubectl("events", "-n", "shop", "--for", "ingress/new"))
}

// survives takes the API server away, and changes what the gateway cannot see.
func (c *controlPlane) survives(g *gateway) {
	c.t.Helper()
	c.stopAPI()
	await(c.t, "the gateway notices", func() error {
		resp, err := http.Get("http://" + healthAddr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 || !strings.Contains(string(text), "cannot be reached") {
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return nil
	})
	if err := g.has(any1, "services", "web", "-n", "shop")(); err != nil {
		c.t.Errorf("what was known is gone with the API server: %v", err)
	}
	if n := strings.Count(g.log.String(), "cannot be reached"); n != 1 {
		c.t.Errorf("it is said %d times that the API server is away, want once", n)
	}

	// The gateway sleeps while the API server comes back and objects go.
	g.cmd.Process.Signal(syscall.SIGSTOP)
	c.startAPI()
	c.do("DELETE", "/api/v1/namespaces/shop/services/web-nodeport", nil)
	c.do("DELETE", "/apis/networking.k8s.io/v1/namespaces/shop/ingresses/new", nil)
	c.stopAPI()
	c.startAPI()
	g.cmd.Process.Signal(syscall.SIGCONT)
	took := await(c.t, "missed deletions are made up for", func() error {
		return errors.Join(g.lacks("services", "web-nodeport", "-n", "shop")(), g.lacks("ingresses", "new", "-n", "shop")())
	})
	c.t.Logf("missed deletions followed %s after the API server was back", took.Round(time.Millisecond))
	await(c.t, "the API server is back for all", g.has(func(o any) bool { return get(o, "spec", "ports", 0, "port") == 82.0 }, c.changed("services", "web", "-n", "shop")...))
}

// changed gives the Service web port 82, and returns its arguments.
func (c *controlPlane) changed(args ...string) []string {
	c.do("PATCH", "/api/v1/namespaces/shop/services/web", map[string]any{"spec": map[string]any{"ports": []any{map[string]any{"name": "http", "port": 82, "targetPort": "http"}}}})
	return args
}

// usedItsRights compares what the gateway asked for with what it may.
func (c *controlPlane) usedItsRights(g *gateway) {
	c.t.Helper()
	used := map[string]bool{}
	f, err := os.Open(c.path("audit.log"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var e any
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			c.t.Fatal(err)
		}
		if get(e, "responseStatus", "code") == 403.0 {
			c.t.Errorf("refused: %s", sc.Bytes())
		}
		if get(e, "objectRef", "resource") == nil {
			continue // discovery
		}
		r := fmt.Sprint(get(e, "objectRef", "resource"))
		if sub := get(e, "objectRef", "subresource"); sub != nil {
			r += "/" + fmt.Sprint(sub)
		}
		used[fmt.Sprint(get(e, "verb"), " ", r)] = true
	}
	may := map[string]bool{}
	for _, path := range []string{"/apis/rbac.authorization.k8s.io/v1/clusterroles/podgate", "/apis/rbac.authorization.k8s.io/v1/namespaces/podgate-system/roles/podgate"} {
		rules, _ := get(c.do("GET", path, nil), "rules").([]any)
		for _, rule := range rules {
			for _, r := range get(rule, "resources").([]any) {
				for _, v := range get(rule, "verbs").([]any) {
					may[fmt.Sprint(v, " ", r)] = true
				}
			}
		}
	}
	for what := range may {
		rare := what == "patch events" || what == "patch backendtlspolicies/status" || strings.HasPrefix(what, "list ") // watches begin with a list by themselves
		if !used[what] && !rare {
			c.t.Errorf("deploy/podgate.yaml gives the right to %s, which the gateway did not use", what)
		}
	}
	for what := range used {
		if !may[what] {
			c.t.Errorf("the gateway used %s, which deploy/podgate.yaml does not give", what)
		}
	}
	if strings.Contains(g.log.String(), "panic") {
		c.t.Error("the gateway panicked")
	}
}

// TestRefused: an API server that does not let us is said once, with what to do.
func TestRefused(t *testing.T) {
	c := newControlPlane(t)
	c.addNode("node-1", "127.0.0.1")
	for user, want := range map[string]string{"nobody": "(401)", "stranger": "(403)"} {
		g := c.gateway(user, "node-1", user)
		await(t, user+" is told why", func() error {
			if text := g.log.String(); !strings.Contains(text, want) {
				return errors.New(text)
			}
			return nil
		})
		g.stop()
	}
}

// TestOneWrites: of two gateways one writes; when it ends the other does.
func TestOneWrites(t *testing.T) {
	c := newControlPlane(t)
	c.addNode("node-1", "127.0.0.1")
	c.kubectl("apply", "-f", deploy)
	first := c.gateway("first", "node-1", "podgate")
	first.awaitReady()
	holder := func() string {
		return c.kubectl("get", "lease", "-n", "podgate-system", "podgate", "-o", "jsonpath={.spec.holderIdentity}")
	}
	writes := func(g *gateway) func() error {
		return func() error {
			if !strings.Contains(g.log.String(), "this gateway writes to the API server") {
				return errors.New("it does not say so")
			}
			return nil
		}
	}
	await(t, "the first writes", writes(first))
	was := holder()
	second := c.gateway("second", "node-1", "podgate", "gateway.health=127.0.0.1:10300", "ingress.http=", "ingress.https=")
	await(t, "the second is ready", func() error {
		if !strings.Contains(second.log.String(), "msg=ready") {
			return errors.New("it does not say so")
		}
		return nil
	})
	if strings.Contains(second.log.String(), "this gateway writes") {
		t.Error("both write")
	}
	first.stop()
	took := await(t, "the second writes", writes(second))
	t.Logf("taken over after %s", took.Round(time.Millisecond))
	if is := holder(); is == was {
		t.Errorf("the Lease still says %q", is)
	}
}

const gatewayManifest = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: podgate}
spec: {controllerName: podgate.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: podgate
  listeners:
  - {name: http, protocol: HTTP, port: 9080}
  - {name: tls, protocol: TLS, port: 9443, hostname: tls.example, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: http}]
  hostnames: [front.example]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: front, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: http}]
  hostnames: [grpc.example]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: front, namespace: shop}
spec:
  parentRefs: [{name: front, sectionName: tls}]
  hostnames: [tls.example]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`
