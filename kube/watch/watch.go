// Package watch makes a kube.Store follow an API server, and tells the API server
// what became of its objects.
//
//	API server --list, watch--> reflectors --> feed --Batch--> kube.Store
//	           <--patch, events--------------- Writer <-- the gateway
//
// It is the only package that knows client-go. Nothing of it happens before
// Connect, and no request is made before a method that takes a context.
//
// Goroutines: those of [Cluster.Follow] are one a kind, one for each Secret and
// ConfigMap that is referred to, and the feed; those of [Writer.Run] are its own.
// Both return when their context has ended and all of them have.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"podgate/kube"
)

// Config says which API server, and as whom.
type Config struct {
	Kubeconfig string // file; empty: the pod's own service account
	Context    string // of the kubeconfig; empty: its current one
	Log        *slog.Logger

	// References are the Secrets and ConfigMaps that a state refers to; no others
	// are read. Nil: none.
	References func(*kube.State) (secrets, configMaps []kube.Name)
}

// Cluster is an API server that one can follow and write to.
type Cluster struct {
	cfg     Config
	rest    *rest.Config
	log     *slog.Logger
	clients map[schema.GroupVersion]rest.Interface
	trouble trouble
}

// Connect reads the credentials. It sends nothing.
func Connect(cfg Config) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.References == nil {
		cfg.References = func(*kube.State) (_, _ []kube.Name) { return nil, nil }
	}
	rc, err := credentials(cfg)
	if err != nil {
		return nil, err
	}
	rc.UserAgent = "podgate"
	rc.QPS = -1 // requests are few, and what paces them is here
	rc.WarningHandler = rest.NoWarnings{}
	c := &Cluster{cfg: cfg, rest: rc, log: cfg.Log, clients: map[schema.GroupVersion]rest.Interface{}}
	httpClient, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	for _, gv := range versions {
		of := rest.CopyConfig(rc)
		of.GroupVersion = &gv
		of.APIPath = "/apis"
		of.NegotiatedSerializer = codecs()
		if builtin[gv] {
			of.ContentType = "application/vnd.kubernetes.protobuf"
			of.AcceptContentTypes = of.ContentType + ",application/json"
		}
		if gv.Group == "" {
			of.APIPath = "/api"
		}
		if c.clients[gv], err = rest.RESTClientForConfigAndClient(of, httpClient); err != nil {
			return nil, fmt.Errorf("API server: %w", err)
		}
	}
	return c, nil
}

func credentials(cfg Config) (*rest.Config, error) {
	if cfg.Kubeconfig == "" {
		rc, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no API server: this is no pod with a service account, and no kubeconfig is set")
		}
		return rc, err
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig}
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
	}
	return rc, nil
}

// Host is where the API server is, for people.
func (c *Cluster) Host() string { return c.rest.Host }

// quiet keeps client-go from logging by itself: what is worth saying is said here.
func quiet(ctx context.Context) context.Context { return klog.NewContext(ctx, logr.Discard()) }

// Node waits for the Node of that name, until it satisfies ok or ctx ends. The
// node is nil with an error if the API server did not say what it is.
func (c *Cluster) Node(ctx context.Context, name string, ok func(*corev1.Node) error) (node *corev1.Node, err error) {
	said := ""
	err = c.retry(ctx, func() error {
		node = new(corev1.Node)
		err := c.clients[corev1.SchemeGroupVersion].Get().Resource("nodes").Name(name).Do(ctx).Into(node)
		if err == nil {
			err = ok(node)
		} else {
			node, err = nil, sayError("Nodes", "get", err)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			c.log.Warn("waiting for the Node", "node", name, "why", said)
		}
		return err
	})
	return node, err
}

// ServiceCIDRs are the ranges that the API server gives ClusterIPs from, at most
// one a family; none if it does not say.
func (c *Cluster) ServiceCIDRs(ctx context.Context) (all []netip.Prefix, err error) {
	var of networkingv1.ServiceCIDR
	err = c.clients[networkingv1.SchemeGroupVersion].Get().Resource("servicecidrs").Name("kubernetes").Do(ctx).Into(&of)
	if err != nil {
		return nil, sayError("ServiceCIDRs", "get", err)
	}
	for _, s := range of.Spec.CIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("ServiceCIDR kubernetes: spec.cidrs: %w", err)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// retry calls f until it succeeds, ever less often.
func (c *Cluster) retry(ctx context.Context, f func() error) error {
	pause := firstPause
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// A failed request is repeated after firstPause, and then ever less often.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 10 * time.Second
)

// sayError says what an answer of the API server means for who runs this.
func sayError(what, verb string, err error) error {
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server does not know us (401): the token or certificate of the kubeconfig or service account is not valid: %w", err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("the API server does not let us %s %s (403): see deploy/podgate.yaml for the rights that podgate needs: %w", verb, what, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: not found: %w", what, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the API server closed the connection")
	}
	return fmt.Errorf("%s %s: %w", verb, what, err)
}
