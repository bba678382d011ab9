package main

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"
)

// A request that has begun is answered, and a connection that was on its way is
// accepted, when the server is told to stop.
func TestAServerThatStopsAnswersWhatHasBegun(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	began, finish := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { close(began); <-finish })
	mux.HandleFunc("/late", func(http.ResponseWriter, *http.Request) { close(finish) })
	ended := make(chan error, 1)
	go func() { ended <- serveUntil(ctx, &http.Server{Handler: mux}, ln) }()
	get := func(path string) error {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := c.Get("http://" + ln.Addr().String() + path)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	slow := make(chan error, 1)
	go func() { slow <- get("/slow") }()
	<-began
	stop()
	if err := get("/late"); err != nil {
		t.Errorf("a connection right after the stop: %v", err)
	}
	if err := <-slow; err != nil {
		t.Errorf("a request that had begun: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
}
