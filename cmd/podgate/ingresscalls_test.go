package main

import (
	"context"
	"log"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// serveHealth is a pod with gRPC's health service at port 8080.
func serveHealth() {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	log.Fatal(s.Serve(l))
}

// A policy that denies the front door a pod ends the calls that are under way
// there as UNAVAILABLE, streams too, and so it answers those that come; without
// the policy calls are answered again.
func TestPolicyEndsTheFrontDoorsCalls(t *testing.T) {
	s := newShell(t)
	s.up("--set ingress.http=127.0.0.1:8080 --set ingress.https= " + write(t, "app.yaml", `apiVersion: v1
kind: Pod
metadata: {name: calls, labels: {app: calls}}
spec: {containers: [{name: c, image: none, command: [grpc-health]}]}
---
apiVersion: v1
kind: Service
metadata: {name: calls}
spec: {selector: {app: calls}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: calls, annotations: {nginx.ingress.kubernetes.io/backend-protocol: GRPC}}
spec: {rules: [{host: calls.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: calls, port: {number: 80}}}}]}}]}
`))
	deny := write(t, "deny.yaml", `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}}
`)
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:8080", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("calls.example"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := healthpb.NewHealthClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), runTime)
	defer cancel()
	check := func() error {
		_, err := c.Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
	for range 2 {
		until(t, "the call is answered", func() bool { return check() == nil })
		stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		s.must("podgate apply -f " + deny)
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream: got %v", err)
		}
		if code := status.Code(check()); code != codes.Unavailable && code != codes.DeadlineExceeded {
			t.Errorf("under the policy: got %s", code)
		}
		s.must("podgate delete -f " + deny)
	}
}
