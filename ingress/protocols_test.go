package ingress

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// A gRPC client of grpc-go, by TLS and without, through an Ingress to a gRPC
// server with TLS and without: calls, streams, metadata, and statuses, the
// server's and those that the front door's own answers are.
func TestGRPCClientThroughIngress(t *testing.T) {
	pair, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"GRPC", "GRPCS"} {
		creds := insecure.NewCredentials()
		if protocol == "GRPCS" {
			creds = credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*pair}, NextProtos: []string{"h2"}})
		}
		srv := grpc.NewServer(grpc.Creds(creds), grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			grpc.SetTrailer(ctx, metadata.Pairs("was", "here"))
			return h(ctx, req)
		}))
		checks := health.NewServer()
		healthpb.RegisterHealthServer(srv, checks)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go srv.Serve(l)
		t.Cleanup(srv.Stop)
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web", "empty.example|Prefix|/|none"), "backend-protocol: "+protocol, "ssl-redirect: false"))
		withService(st, "web", endpointAddr(1))
		f := newFront(t, Config{}, st, nil)
		f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
		}
		for at, creds := range map[string]credentials.TransportCredentials{f.plain: insecure.NewCredentials(), f.tls: credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})} {
			dial := func(authority string) healthpb.HealthClient {
				return healthClient(t, at, authority, creds)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := dial("shop.example")
			var trailer metadata.MD
			if got, err := c.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Trailer(&trailer)); err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
				t.Fatalf("%s: %v %v", protocol, got, err)
			}
			if got := trailer.Get("was"); len(got) != 1 {
				t.Errorf("%s: got trailers %v", protocol, trailer)
			}
			if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
				t.Errorf("%s: the server's own status: got %v", protocol, err)
			}
			checks.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
				if got, err := stream.Recv(); err != nil || got.Status != want {
					t.Fatalf("%s: stream: got %v %v, want %s", protocol, got, err, want)
				}
				checks.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
			}
			checks.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
			if _, err := dial("empty.example").Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
				t.Errorf("%s: no endpoints: got %v", protocol, err)
			}
			if _, err := dial("other.example").Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: no rule: got %v", protocol, err)
			}
		}
	}
}

// Certificates change a hundred times under clients that open a connection for
// each request and clients that keep theirs: none fails, and the last one is served.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	st := state(t, ingress("shop", "shop.example|Prefix|/|web")+"  tls: [{hosts: [shop.example], secretName: cert}]")
	withService(st, "web", endpointAddr(1))
	name := kube.Name{Namespace: "ns", Name: "cert"}
	first := secret(t, st, "cert", "shop.example")
	one := st.Secrets[name]
	second := secret(t, st, "cert", "shop.example")
	two := st.Secrets[name]
	f := newFront(t, Config{}, st, map[int]http.Handler{1: named("one")})
	var failed atomic.Int64
	answered, stop := make(chan struct{}), make(chan struct{})
	var load sync.WaitGroup
	for i := range 4 {
		c := client(t, f.tls, func(tr *http.Transport) { tr.DisableKeepAlives, tr.ForceAttemptHTTP2 = i%2 == 0, i < 2 })
		load.Go(func() {
			for {
				answer, err := c.Get("https://shop.example/")
				if err == nil {
					_, err = io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
				}
				if err != nil || answer.StatusCode != 200 {
					failed.Add(1)
					t.Log(err)
				}
				select {
				case answered <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	for i := range 100 {
		next := *st
		next.Secrets = map[kube.Name]*corev1.Secret{name: one}
		if i%2 == 1 {
			next.Secrets[name] = two
		}
		f.set(&next)
		<-answered
	}
	close(stop)
	load.Wait()
	if n := failed.Load(); n != 0 {
		t.Errorf("%d requests failed", n)
	}
	c, err := tls.Dial("tcp", f.tls, &tls.Config{ServerName: "shop.example", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().PeerCertificates[0]; !got.Equal(second) || got.Equal(first) {
		t.Error("the last certificate is not served")
	}
}

// Which way a request goes, the lane's or net/http's, is nothing that an endpoint
// could see in what it learns of the client.
func TestBothWaysTellTheSame(t *testing.T) {
	seen := make(chan http.Header, 1)
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() })
	lane := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: h})
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "limit-rps: 100000"))
	withService(st, "web", endpointAddr(1))
	full := newFront(t, Config{}, st, map[int]http.Handler{1: h})
	var got [2]http.Header
	for i, f := range []*front{lane, full} {
		raw(t, f.plain, "GET / HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: x\r\nProxy: http://evil.example\r\nX-Scheme: https\r\nX_Forwarded_Proto: https\r\n"+
			"X-Original-Forwarded-For: 192.0.2.9\r\nForwarded: for=192.0.2.9\r\nX-Forwarded-Prefix: /x\r\nX-Forwarded-For: 192.0.2.9\r\nX-Real-Ip: 192.0.2.9\r\n"+
			"X-Request-Id: mine\r\nX-Mine: a\r\nX-Mine: b\r\nConnection: close\r\n\r\n")
		got[i] = <-seen
		for _, name := range []string{"X-Request-Id", "X-Forwarded-Port"} {
			if v := got[i].Get(name); v == "" || v == "mine" {
				t.Errorf("%s: got %q", name, v)
			}
			got[i].Del(name)
		}
		for _, name := range []string{"Proxy", "X_Forwarded_Proto", "X-Original-Forwarded-For", "Forwarded", "X-Forwarded-Prefix", "Connection"} {
			if v := got[i].Get(name); v != "" {
				t.Errorf("way %d: the endpoint got %s: %s", i, name, v)
			}
		}
	}
	if diff := cmp.Diff(got[0], got[1]); diff != "" {
		t.Errorf("the lane's and net/http's differ:\n%s", diff)
	}
}
