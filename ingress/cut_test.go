package ingress

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// cuttable are connections to endpoints that can be reset, as the gateway's stack
// does when a policy closes a pod to the front door.
type cuttable struct {
	mu    sync.Mutex
	conns []net.Conn
	dials int
}

func (c *cuttable) dial(to string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, to)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.conns, c.dials = append(c.conns, conn), c.dials+1
		return conn, err
	}
}

func (c *cuttable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	c.conns = nil
}

// waiting is a health server whose Check of "wait" does not return by itself.
type waiting struct {
	*health.Server
	began chan struct{}
}

func (w *waiting) Check(ctx context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if in.Service == "wait" {
		w.began <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return w.Server.Check(ctx, in)
}

// Calls on a connection that is cut end at once as UNAVAILABLE, also one whose
// answer has begun, and the next one goes over a new connection.
func TestCutCallsAreUnavailable(t *testing.T) {
	srv := grpc.NewServer()
	checks := &waiting{health.NewServer(), make(chan struct{}, 9)}
	healthpb.RegisterHealthServer(srv, checks)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "backend-protocol: GRPC"))
	withService(st, "web", endpointAddr(1))
	f := newFront(t, Config{}, st, nil)
	var conns cuttable
	f.cfg.Dial = conns.dial(l.Addr().String())
	c := healthClient(t, f.plain, "shop.example", insecure.NewCredentials())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for round := range 3 {
		stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		waited := make(chan error, 1)
		go func() {
			_, err := c.Check(ctx, &healthpb.HealthCheckRequest{Service: "wait"})
			waited <- err
		}()
		<-checks.began
		conns.cut()
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("round %d: a stream: got %v", round, err)
		}
		if err := <-waited; status.Code(err) != codes.Unavailable {
			t.Errorf("round %d: a call: got %v", round, err)
		}
		if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
			t.Errorf("round %d: afterwards: %v", round, err)
		}
	}
	if conns.dials < 3 || conns.dials > 4 {
		t.Errorf("%d connections, want one a round and at most one more", conns.dials)
	}
}
