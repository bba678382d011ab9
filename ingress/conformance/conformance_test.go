// Package conformance runs the Gateway API's own conformance tests on podgate's
// front door. It is a module of its own: the tests bring client-go and
// controller-runtime along.
//
// They want a cluster. Here that is a client in memory, whose objects are synced
// to a kube.Store after every change; the Store's State is compiled, doors are
// opened on loopback, and the status goes back to the client. Pods are processes
// of the tests' own echo server.
package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
	upstream "sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"

	"podgate/ingress"
	"podgate/kube"
	"podgate/stack/link/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// needLogs are the tests that read logs of pods, or ask a real clientset: the
// front door's own tests have their subjects.
var needLogs = []string{"HTTPRouteRequestMirror", "HTTPRouteRequestMultipleMirrors", "HTTPRouteRequestPercentageMirror", "HTTPRouteServiceTypes"}

func TestGatewayAPIConformance(t *testing.T) {
	c := newCluster(t)
	if err := c.client.Create(t.Context(), &gatewayv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: "podgate"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: kube.GatewayController},
	}); err != nil {
		t.Fatal(err)
	}
	ip := gatewayv1.IPAddressType
	var o suite.ConformanceOptions
	o.Client, o.GatewayClassName = c.client, "podgate"
	o.AllowCRDsMismatch = true // there are no definitions
	o.CleanupTestResources = true
	o.ManifestFS = append(o.ManifestFS, upstream.Manifests)
	o.TimeoutConfig.RequiredConsecutiveSuccesses = 1 // what is applied is in force
	o.UsableNetworkAddresses = []gatewayv1.GatewaySpecAddress{{Type: &ip, Value: "127.0.0.77"}}
	o.UnusableNetworkAddresses = []gatewayv1.GatewaySpecAddress{{Type: &ip, Value: "192.0.2.77"}}
	s, err := suite.NewConformanceTestSuite(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Setup(t, tests.ConformanceTests)
	for _, test := range tests.ConformanceTests {
		// Others are for features that the class does not claim.
		if s.SupportedFeatures.HasAll(test.Features...) && !slices.Contains(needLogs, test.ShortName) {
			t.Run(test.ShortName, func(t *testing.T) { test.Run(t, s) })
		}
	}
}

// cluster is a client, and what follows from its objects.
type cluster struct {
	t      *testing.T
	client client.Client // syncs after every change
	plain  client.Client // does not
	store  *kube.Store
	front  *ingress.Server
	echo   string // the echo server
	dir    string

	mu     sync.Mutex // guards all below
	now    time.Time
	routes *ingress.Routes
	doors  map[netip.AddrPort]net.Listener
	pods   map[kube.Name]bool
	reach  map[string]string // "address:port" of pods to where they are
	ports  int
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{
		t: t, dir: t.TempDir(), now: time.Now().Add(-time.Hour),
		doors: map[netip.AddrPort]net.Listener{}, pods: map[kube.Name]bool{}, reach: map[string]string{}, ports: 20000,
	}
	c.echo = filepath.Join(c.dir, "echo")
	if out, err := exec.Command("go", "build", "-o", c.echo, "sigs.k8s.io/gateway-api/conformance/echo-basic").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, gatewayv1.Install, gatewayv1beta1.Install, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	plain := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&gatewayv1.GatewayClass{}, &gatewayv1.Gateway{},
		&gatewayv1.HTTPRoute{}, &gatewayv1.GRPCRoute{}, &gatewayv1.TLSRoute{}, &gatewayv1.BackendTLSPolicy{}).Build()
	c.plain = plain
	c.client = interceptor.NewClient(plain, interceptor.Funcs{
		Create: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			o.SetGeneration(1)
			return c.after(w.Create(ctx, o, opts...))
		},
		Update: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			return c.after(w.Update(ctx, o, opts...))
		},
		Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return c.after(w.Patch(ctx, o, p, opts...))
		},
		Delete: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return c.after(w.Delete(ctx, o, opts...))
		},
	})
	c.store = kube.NewStore(kube.Config{}, func() time.Time { return c.now })
	c.front = ingress.NewServer(ingress.Config{Dial: c.dial})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c.front.Shutdown(ctx)
	})
	return c
}

// dial leads from a pod's address to its process.
func (c *cluster) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	to := c.reach[addr]
	c.mu.Unlock()
	if to == "" {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

// after makes everything follow from a change.
func (c *cluster) after(err error) error {
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Second)
	for _, change := range c.store.Sync(c.objects(), nil) {
		if change.Action == kube.Rejected {
			c.t.Error(change)
		}
	}
	c.runPods()
	st := c.store.State()
	c.routes, _ = ingress.Compile(c.routes, st, ingress.Config{})
	c.front.SetRoutes(c.routes)
	c.open()
	c.report(st)
	return nil
}

// objects are those of the client.
func (c *cluster) objects() (out []kube.Object) {
	for _, list := range []client.ObjectList{
		&corev1.NamespaceList{}, &corev1.ServiceList{}, &corev1.SecretList{}, &corev1.ConfigMapList{}, &appsv1.DeploymentList{}, &discoveryv1.EndpointSliceList{},
		&gatewayv1.GatewayClassList{}, &gatewayv1.GatewayList{}, &gatewayv1.HTTPRouteList{}, &gatewayv1.GRPCRouteList{}, &gatewayv1.TLSRouteList{},
		&gatewayv1.BackendTLSPolicyList{}, &gatewayv1.ReferenceGrantList{}, &gatewayv1beta1.ReferenceGrantList{},
	} {
		if err := c.plain.List(context.Background(), list); err != nil {
			c.t.Fatal(err)
		}
		if err := meta.EachListItem(list, func(o runtime.Object) error {
			if grant, ok := o.(*gatewayv1beta1.ReferenceGrant); ok {
				o = &gatewayv1.ReferenceGrant{ObjectMeta: grant.ObjectMeta, Spec: grant.Spec}
			}
			out = append(out, kube.Object{API: o.DeepCopyObject().(kube.API), File: "client"})
			return nil
		}); err != nil {
			c.t.Fatal(err)
		}
	}
	return out
}

// open makes the doors those of the routes.
func (c *cluster) open() {
	wanted := map[netip.AddrPort]bool{}
	for _, e := range c.routes.Entrances() {
		wanted[e.At] = true
		if c.doors[e.At] != nil {
			continue
		}
		l, err := net.Listen("tcp", e.At.String())
		if err != nil {
			c.t.Fatal(err)
		}
		c.doors[e.At] = l
		serve := c.front.Serve
		if e.TLS {
			serve = c.front.ServeTLS
		}
		go serve(ingress.At(l, e.At, false))
	}
	for at, l := range c.doors {
		if !wanted[at] {
			l.Close()
			delete(c.doors, at)
		}
	}
}

// report writes statuses, and generations, to the client.
func (c *cluster) report(st *kube.State) {
	s := c.routes.Statuses()
	for name, found := range s.GatewayClasses {
		put(c, kube.Name{Name: name}, &gatewayv1.GatewayClass{}, st.GatewayClasses[name], func(o *gatewayv1.GatewayClass) any { return &o.Status }, found)
	}
	for name, found := range s.Gateways {
		put(c, name, &gatewayv1.Gateway{}, st.Gateways[name], func(o *gatewayv1.Gateway) any { return &o.Status }, found)
	}
	for name, found := range s.HTTPRoutes {
		put(c, name, &gatewayv1.HTTPRoute{}, st.HTTPRoutes[name], func(o *gatewayv1.HTTPRoute) any { return &o.Status.RouteStatus }, found)
	}
	for name, found := range s.GRPCRoutes {
		put(c, name, &gatewayv1.GRPCRoute{}, st.GRPCRoutes[name], func(o *gatewayv1.GRPCRoute) any { return &o.Status.RouteStatus }, found)
	}
	for name, found := range s.TLSRoutes {
		put(c, name, &gatewayv1.TLSRoute{}, st.TLSRoutes[name], func(o *gatewayv1.TLSRoute) any { return &o.Status.RouteStatus }, found)
	}
	for name, found := range s.BackendTLSPolicies {
		put(c, name, &gatewayv1.BackendTLSPolicy{}, st.BackendTLSPolicies[name], func(o *gatewayv1.BackendTLSPolicy) any { return &o.Status }, found)
	}
}

// put gives an object of the client the generation that it has in the State and
// the status that was found.
func put[O client.Object, S any](c *cluster, name kube.Name, o, in O, status func(O) any, found *S) {
	ctx := context.Background()
	if c.plain.Get(ctx, client.ObjectKey{Namespace: name.Namespace, Name: name.Name}, o) != nil {
		return
	}
	var err error
	if o.GetGeneration() != in.GetGeneration() {
		o.SetGeneration(in.GetGeneration())
		err = c.plain.Update(ctx, o)
	}
	if to := status(o).(*S); err == nil && !equality.Semantic.DeepEqual(to, found) {
		*to = *found
		err = c.plain.Status().Update(ctx, o)
	}
	if err != nil {
		c.t.Error(err)
	}
}

// runPods starts an echo server for each pod whose Secrets and ConfigMaps are there.
func (c *cluster) runPods() {
	st := c.store.State()
	for name, p := range st.Pods {
		if kube.IsLocal(p) || c.pods[name] || !mounted(st, p) {
			continue
		}
		c.pods[name] = true
		env, err := kube.ContainerEnv(st, p, &p.Spec.Containers[0])
		if err != nil {
			c.t.Fatal(err)
		}
		env = append(env, "POD_NAME="+name.Name, "NAMESPACE="+name.Namespace)
		value := func(key string) string {
			for _, v := range env {
				if v, ok := strings.CutPrefix(v, key+"="); ok {
					return v
				}
			}
			return ""
		}
		listens := map[string]string{"HTTP_PORT": "3000", "H2C_PORT": "3001", "HTTPS_PORT": "8443"}
		if value("TCP_ECHO_SERVER") != "" {
			listens = map[string]string{"TCP_PORT": "3000", "TLS_PORT": "8443"}
		}
		for key, port := range listens { // all are on one host
			if v := value(key); v != "" {
				port = v
			}
			c.ports++
			env = append(env, fmt.Sprintf("%s=%d", key, c.ports))
			c.reach[net.JoinHostPort(p.Status.PodIP, port)] = fmt.Sprintf("127.0.0.1:%d", c.ports)
		}
		for _, key := range []string{"TLS_SERVER_CERT", "TLS_SERVER_PRIVKEY", "TLS_SERVER_PRIV_KEY", "TLS_CLIENT_CACERTS"} {
			if path := value(key); path != "" {
				env = append(env, key+"="+c.file(st, p, path))
			}
		}
		cmd := exec.Command(c.echo)
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		c.ready(p)
	}
}

// ready says that a pod is, to the Store and to those who look for pods.
func (c *cluster) ready(p *corev1.Pod) {
	s := *p.Status.DeepCopy()
	s.Phase = corev1.PodRunning
	s.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}}
	c.store.SetPodStatus(kube.Name{Namespace: p.Namespace, Name: p.Name}, string(p.UID), s)
	shown := p.DeepCopy()
	shown.ResourceVersion = ""
	err := c.plain.Create(context.Background(), shown)
	if err == nil {
		shown.Status = s
		err = c.plain.Status().Update(context.Background(), shown)
	}
	if err != nil {
		c.t.Error(err)
	}
}

func mounted(st *kube.State, p *corev1.Pod) bool {
	for _, v := range p.Spec.Volumes {
		if v.Secret != nil && st.Secrets[kube.Name{Namespace: p.Namespace, Name: v.Secret.SecretName}] == nil ||
			v.ConfigMap != nil && st.ConfigMaps[kube.Name{Namespace: p.Namespace, Name: v.ConfigMap.Name}] == nil {
			return false
		}
	}
	return true
}

// file writes what a pod finds at a path of a Secret's or ConfigMap's volume.
func (c *cluster) file(st *kube.State, p *corev1.Pod, path string) string {
	for _, m := range p.Spec.Containers[0].VolumeMounts {
		name, ok := strings.CutPrefix(path, m.MountPath+"/")
		if !ok {
			continue
		}
		for _, v := range p.Spec.Volumes {
			if v.Name != m.Name {
				continue
			}
			key := func(items []corev1.KeyToPath) string {
				for _, item := range items {
					if item.Path == name {
						return item.Key
					}
				}
				return name
			}
			var data []byte
			if v.Secret != nil {
				data = st.Secrets[kube.Name{Namespace: p.Namespace, Name: v.Secret.SecretName}].Data[key(v.Secret.Items)]
			} else if v.ConfigMap != nil {
				data = []byte(st.ConfigMaps[kube.Name{Namespace: p.Namespace, Name: v.ConfigMap.Name}].Data[key(v.ConfigMap.Items)])
			}
			file := filepath.Join(c.dir, p.Namespace+"."+p.Name+"."+filepath.Base(name))
			if err := os.WriteFile(file, data, 0o600); err != nil {
				c.t.Fatal(err)
			}
			return file
		}
	}
	return path
}
