package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

// newProxy is a proxy into a cluster of one Service, web:80, whose pod is server.
func newProxy(t *testing.T, server string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newNodeProxy(ln, func(ctx context.Context, host string, port uint16) (net.Conn, error) {
		switch {
		case host == "203.0.113.1":
			return nil, fmt.Errorf("%s %w", host, errNotCluster)
		case host == "down":
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		case host != "web" && host != "10.96.0.80" && host != "fd00:10:96::80" || port != 80:
			return nil, fmt.Errorf("the cluster's DNS has no address for %s", host)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", server)
	})
	t.Cleanup(p.close)
	return ln.Addr().String()
}

func newWeb(t *testing.T) string {
	t.Helper()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s via %q", r.Method, r.Host, body, r.Header["Proxy-Connection"])
	}))
	t.Cleanup(web.Close)
	return web.Listener.Addr().String()
}

// The proxy leads to names and addresses of the cluster by each of its ways, and
// says why it does not lead elsewhere.
func TestNodeProxy(t *testing.T) {
	at := newProxy(t, newWeb(t))
	for _, scheme := range []string{"http", "socks5", "socks5h"} {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyURL(&url.URL{Scheme: scheme, Host: at})}}
		for _, host := range []string{"web", "10.96.0.80", "[fd00:10:96::80]"} {
			resp, err := client.Post("http://"+host+"/", "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Errorf("%s: %v", scheme, err)
				continue
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := "POST " + host + " hello via []"; string(got) != want {
				t.Errorf("%s: got %q, want %q", scheme, got, want)
			}
		}
	}
	for host, want := range map[string]string{"203.0.113.1": "not allowed", "down": "connection refused", "nobody": "host unreachable"} {
		dial, err := proxy.SOCKS5("tcp", at, nil, proxy.Direct)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dial.Dial("tcp", host+":80"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("SOCKS5 to %s: got %v, want %q", host, err, want)
		}
	}
	for _, c := range []struct{ request, status, text string }{
		{"CONNECT 203.0.113.1:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "403", "203.0.113.1 is no address of a pod or Service"},
		{"GET http://203.0.113.1/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "403", "203.0.113.1 is no address of a pod or Service"},
		{"CONNECT down:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "502", "connection refused"},
		{"CONNECT nobody:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "502", "has no address for nobody"},
		{"CONNECT nobody HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "502", "missing port"},
		{"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400", "this is a proxy into the cluster"},
		{"\x05\x01\x02", "\x05\xff", ""}, // no way to authenticate that is known
		{"\x05\x01\x00\x05\x02\x00\x01\x0a\x60\x00\x50\x00\x50", "\x05\x00\x05\x07", ""},                          // BIND
		{"\x05\x01\x00\x05\x01\x00\x09", "\x05\x00\x05\x08", ""},                                                  // no kind of address
		{"\x05\x01\x00\x05\x01\x00\x01\x0a\x60\x00\x50\x00\x50GET /\r\n\r\n", "\x05\x00\x05\x00", "HTTP/1.1 400"}, // what follows at once is not lost
	} {
		if got := say(t, at, c.request); !strings.Contains(got, c.status) || !strings.Contains(got, c.text) {
			t.Errorf("%q: got %q, want %q and %q", c.request, got, c.status, c.text)
		}
	}
}

// say sends all of a request, and returns all of the answer.
func say(t *testing.T, at, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, request)
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("%q: %v", request, err)
	}
	return string(got)
}

// The end of one direction is passed on, and the other goes on.
func TestNodeProxyHalfClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() { // ends with its one connection
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c)
		fmt.Fprintf(c, "after %d bytes", len(all))
	}()
	c, err := net.Dial("tcp", newProxy(t, ln.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\nearly ")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(c, "late")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(r); err != nil || string(got) != "after 10 bytes" {
		t.Errorf("got %q, %v", got, err)
	}
}
