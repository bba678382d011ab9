package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"podgate/control"
	"podgate/ingress"
)

// accessLog appends a line for each request.
type accessLog struct {
	json bool
	mu   sync.Mutex
	file *os.File
}

func openAccessLog(path string, asJSON bool) (*accessLog, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("ingress.access-log: %w", err)
	}
	return &accessLog{json: asJSON, file: f}, nil
}

// write is one write, so that lines stay whole whoever else appends.
func (l *accessLog) write(a ingress.Access) {
	line := []byte(a.String())
	if l.json {
		line, _ = json.Marshal(a)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Write(append(line, '\n'))
}

// serveMetrics answers /metrics until the instance ends.
func (g *gateway) serveMetrics() error {
	if !g.cfg.Metrics.IsValid() {
		return nil
	}
	ln, err := net.Listen("tcp", g.cfg.Metrics.String())
	if err != nil {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		g.front.WriteMetrics(w)
	})
	g.metrics = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	g.listeners = append(g.listeners, control.Listener{Address: ln.Addr().String() + "/tcp", For: "Metrics"})
	g.wg.Go(func() { g.fatal("metrics", g.metrics.Serve(ln)) })
	return nil
}
