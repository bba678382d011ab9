package pod

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const userAgent = "kube-probe/1.36"

type probeKind uint8

const (
	startupProbe probeKind = iota
	readinessProbe
	livenessProbe
)

// probe runs one probe of a run, as the kubelet does: after the initial delay,
// then every period; readiness and liveness begin when startup is over; a
// result counts when it came as often in a row as its threshold says. Not ready
// and not started until the first success, alive until proven otherwise.
func (c *container) probe(run *containerRun, kind probeKind, p *corev1.Probe) {
	p = p.DeepCopy()
	period := seconds(cmp.Or(p.PeriodSeconds, 10))
	clock := c.w.r.cfg.Clock
	first := run.since.Add(seconds(p.InitialDelaySeconds))
	pod, spec := c.w.pod, c.spec()
	c.w.r.wg.Go(func() {
		if kind != startupProbe {
			select {
			case <-run.startup:
			case <-run.ctx.Done():
				return
			}
		}
		if d := first.Sub(clock.Now()); d > 0 && !pause(run.ctx, clock, d) {
			return
		}
		var good, bad int32
		for {
			err := c.attempt(run.ctx, pod, spec, p)
			if run.ctx.Err() != nil {
				return
			}
			if err == nil {
				good, bad = good+1, 0
			} else {
				good, bad = 0, bad+1
				c.w.r.cfg.Log.Debug("probe failed", "pod", c.w.name, "container", c.name, "probe", kind, "err", err)
			}
			switch {
			case err == nil && good == cmp.Or(p.SuccessThreshold, 1):
				c.w.post(func() { c.probed(run, kind, p, nil) })
				if kind == startupProbe {
					return
				}
			case err != nil && bad == cmp.Or(p.FailureThreshold, 3):
				c.w.post(func() { c.probed(run, kind, p, err) })
				if kind != readinessProbe {
					return
				}
			}
			if !pause(run.ctx, clock, period) {
				return
			}
		}
	})
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// pause returns false if ctx ended first.
func pause(ctx context.Context, clock Clock, d time.Duration) bool {
	select {
	case <-clock.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// probed acts upon a result that counts.
func (c *container) probed(run *containerRun, kind probeKind, p *corev1.Probe, err error) {
	if c.run != run || c.state != running {
		return
	}
	switch {
	case kind == readinessProbe:
		run.ready = err == nil
		c.w.r.cfg.Log.Info("readiness", "pod", c.w.name, "container", c.name, "ready", run.ready, "err", err)
	case kind == startupProbe && err == nil:
		c.hasStarted(run)
	case err != nil:
		if run.stopping {
			return
		}
		run.reason = "Unhealthy"
		c.w.r.cfg.Log.Warn("container killed", "pod", c.w.name, "container", c.name, "probe", kind.String(), "err", err)
		grace := c.w.grace()
		if p.TerminationGracePeriodSeconds != nil {
			grace = time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
		}
		c.stop(grace)
	}
}

func (k probeKind) String() string { return [...]string{"startup", "readiness", "liveness"}[k] }

// attempt is one try.
func (c *container) attempt(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, p *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, seconds(cmp.Or(p.TimeoutSeconds, 1)))
	defer cancel()
	switch {
	case p.Exec != nil:
		return c.runQuietly(ctx, p.Exec.Command)
	case p.HTTPGet != nil:
		return c.w.httpGet(ctx, spec, p.HTTPGet)
	case p.TCPSocket != nil:
		port, err := findPort(spec, p.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := c.w.dial(ctx, "tcp", net.JoinHostPort(cmp.Or(p.TCPSocket.Host, c.w.probeHost(pod)), port))
		if err != nil {
			return err
		}
		return conn.Close()
	case p.GRPC != nil:
		return c.w.grpcCheck(ctx, pod, p.GRPC)
	}
	return errors.New("probe without an action")
}

// findPort resolves a port name among the container's.
func findPort(spec *corev1.Container, port intstr.IntOrString) (string, error) {
	if port.Type == intstr.Int {
		return strconv.Itoa(port.IntValue()), nil
	}
	for _, p := range spec.Ports {
		if p.Name == port.StrVal {
			return strconv.Itoa(int(p.ContainerPort)), nil
		}
	}
	if n, err := strconv.Atoi(port.StrVal); err == nil {
		return strconv.Itoa(n), nil
	}
	return "", fmt.Errorf("container %s has no port named %q", spec.Name, port.StrVal)
}

// probeHost is where the pod is asked. With hostNetwork its listeners are the
// host's, which the cluster network does not reach.
func (w *worker) probeHost(pod *corev1.Pod) string {
	if pod.Spec.HostNetwork || len(pod.Status.PodIPs) == 0 {
		return "127.0.0.1"
	}
	return pod.Status.PodIPs[0].IP
}

// dial connects from the node.
func (w *worker) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	hostNetwork := w.want.Spec.HostNetwork
	w.mu.Unlock()
	if hostNetwork {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return w.r.cfg.Dial(ctx, network, addr)
}

// The most that is read of an answer.
const maxProbeBody = 10 << 10

// httpGet succeeds with a status from 200 to 399. Redirections within the host
// are followed, others are good enough.
func (w *worker) httpGet(ctx context.Context, spec *corev1.Container, g *corev1.HTTPGetAction) error {
	w.mu.Lock()
	pod := w.want
	w.mu.Unlock()
	port, err := findPort(spec, g.Port)
	if err != nil {
		return err
	}
	path, err := url.Parse(g.Path)
	if err != nil {
		path = &url.URL{Path: g.Path}
	}
	path.Scheme = strings.ToLower(cmp.Or(string(g.Scheme), "http"))
	path.Host = net.JoinHostPort(cmp.Or(g.Host, w.probeHost(pod)), port)
	if !strings.HasPrefix(path.Path, "/") {
		path.Path = "/" + path.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path.String(), nil)
	if err != nil {
		return err
	}
	for _, h := range g.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	if _, set := req.Header["User-Agent"]; !set {
		req.Header.Set("User-Agent", userAgent)
	}
	if _, set := req.Header["Accept"]; !set {
		req.Header.Set("Accept", "*/*")
	}
	client := &http.Client{
		Transport: &http.Transport{
			DialContext:        w.dial,
			DisableKeepAlives:  true,
			DisableCompression: true,
			Proxy:              nil,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // as the kubelet: certificates are not what is probed
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, maxProbeBody))
	if res.StatusCode < 200 || res.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", res.StatusCode)
	}
	return nil
}

// grpcCheck asks the gRPC health service.
func (w *worker) grpcCheck(ctx context.Context, pod *corev1.Pod, g *corev1.GRPCAction) error {
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(w.probeHost(pod), strconv.Itoa(int(g.Port))),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return w.dial(ctx, "tcp", addr) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	req := &grpc_health_v1.HealthCheckRequest{}
	if g.Service != nil {
		req.Service = *g.Service
	}
	res, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, req)
	if err != nil {
		return err
	}
	if s := res.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", s)
	}
	return nil
}

// hook runs a lifecycle handler.
func (c *container) hook(ctx context.Context, h *corev1.LifecycleHandler, run *containerRun) error {
	c.w.mu.Lock()
	pod := c.w.want
	c.w.mu.Unlock()
	var spec corev1.Container
	for _, s := range append(pod.Spec.Containers[:len(pod.Spec.Containers):len(pod.Spec.Containers)], pod.Spec.InitContainers...) {
		if s.Name == c.name {
			spec = s
		}
	}
	switch {
	case h.Exec != nil:
		return c.runQuietly(ctx, h.Exec.Command)
	case h.HTTPGet != nil:
		return c.w.httpGet(ctx, &spec, h.HTTPGet)
	case h.Sleep != nil:
		pause(ctx, c.w.r.cfg.Clock, time.Duration(h.Sleep.Seconds)*time.Second)
	}
	return ctx.Err()
}

// runQuietly runs a command in the container and fails unless it exits 0.
func (c *container) runQuietly(ctx context.Context, command []string) error {
	var out bytes.Buffer
	code, err := c.execute(ctx, command, &out)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("command exited with %d: %s", code, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
