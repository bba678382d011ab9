package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podgate/kube"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	corev1 "k8s.io/api/core/v1"
)

// One row is one way to say where a request ends that two parsers could read in
// two ways. None reaches an endpoint as a second request, and none is taken.
func TestBadFramingIsRefused(t *testing.T) {
	t.Run("lane", func(t *testing.T) { badFramingIsRefused(t, shop(t, 1)) })
	t.Run("changed on the lane", func(t *testing.T) { badFramingIsRefused(t, changed(t)) })
	t.Run("net/http", func(t *testing.T) { badFramingIsRefused(t, notForTheLane(t)) })
}

// notForTheLane is shop with a route that the lane leaves to net/http.
func notForTheLane(t *testing.T) *kube.State {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "limit-rate: 100000"))
	withService(st, "web", endpointAddr(1))
	return st
}

// changed is shop with a route that changes everything that the lane can change.
func changed(t *testing.T) *kube.State {
	st := state(t, annotated(ingress("shop", "shop.example|ImplementationSpecific|/(.*)|web"), "rewrite-target: /y/$1?z=$1", "enable-cors: true", "upstream-vhost: inner.example", "custom-headers: more"))
	withService(st, "web", endpointAddr(1))
	for name, data := range map[string]map[string]string{
		"more": {"X-More": "1\r\nX-Split: 1", "Content-Length": "1", "Transfer-Encoding": "chunked", "Connection": "close", "X Bad": "1"},
		"sent": {"X-Sent": "1\r\nX-Split: 1", "Content-Length": "1", "Transfer-Encoding": "chunked", "Host": "evil.example", "X Bad": "1"},
	} {
		st.ConfigMaps[kube.Name{Namespace: "ns", Name: name}] = &corev1.ConfigMap{Data: data}
	}
	st.ConfigMaps[controllerConfigs[0]] = &corev1.ConfigMap{Data: map[string]string{"proxy-set-headers": "ns/sent", "hide-headers": "Content-Length,Transfer-Encoding"}}
	return st
}

func badFramingIsRefused(t *testing.T, st *kube.State) {
	var seen atomic.Int64
	f := newFront(t, Config{}, st, map[int]http.Handler{1: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			seen.Add(1)
		}
	})})
	const head = "POST / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n"
	for what, rest := range map[string]string{
		"chunk size with a sign":       "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
		"chunk size in 0x":             "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"chunk size too large":         "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
		"chunk longer than its size":   "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
		"bare LF after the chunk size": "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"chunk without its end":        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
		"chunked not last":             "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
		"a tab before chunked":         "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"a length in hexadecimal":      "Content-Length: 0x5\r\n\r\nhello",
		"a negative length":            "Content-Length: -1\r\n\r\n",
		"two lengths in one field":     "Content-Length: 5, 6\r\n\r\nhello",
		"two lengths in two fields":    "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"a length with a sign":         "Content-Length: +5\r\n\r\nhello",
		"a space before the colon":     "Content-Length : 5\r\n\r\nhello",
		"a field without a name":       ": 5\r\n\r\nhello",
		"two hosts":                    "Host: other.example\r\n\r\n",
		"chunked twice":                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"an unknown coding":            "Transfer-Encoding: identity\r\n\r\n",
		"a fold before the length":     "X-A: b\r\n Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\n",
		"a NUL in a field":             "X-A: a\x00b\r\n\r\n",
		"a CR in a field":              "X-A: a\rb\r\n\r\n",
	} {
		answer, _ := raw(t, f.plain, head+rest)
		if answer.StatusCode/100 == 2 {
			t.Errorf("%s: got %d", what, answer.StatusCode)
		}
	}
	if n := seen.Load(); n != 0 {
		t.Errorf("%d of these reached the endpoint as whole requests", n)
	}
}

// What Connection names is for the next hop, and so are the fields that are by
// name (RFC 9110, section 7.6.1): no endpoint sees them.
func TestHopByHopFieldsStayHere(t *testing.T) {
	for _, st := range []*kube.State{shop(t, 1), notForTheLane(t)} {
		f := newFront(t, Config{}, st, map[int]http.Handler{1: echo})
		_, body := raw(t, f.plain, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close, X-Mine\r\nX-Mine: a\r\nKeep-Alive: timeout=5\r\n"+
			"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTe: gzip\r\nX-Stays: b\r\n\r\n")
		for _, name := range []string{"X-Mine", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Te:", "Connection:"} {
			if strings.Contains(body, name) {
				t.Errorf("the endpoint got %s:\n%s", name, body)
			}
		}
		if !strings.Contains(body, "X-Stays: b") {
			t.Errorf("X-Stays is gone:\n%s", body)
		}
	}
}

// A folded line becomes a space (RFC 9112, section 5.2): the endpoint sees no fold.
func TestFoldedFieldsAreOneLine(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	answer, body := raw(t, f.plain, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nX-A: b\r\n  c\r\n\r\n")
	if answer.StatusCode != 400 && !strings.Contains(body, "X-A: b c\r\n") {
		t.Errorf("got %d %q", answer.StatusCode, body)
	}
}

func TestHeaderLimits(t *testing.T) {
	for _, st := range []*kube.State{shop(t, 1), notForTheLane(t)} {
		headerLimits(t, newFront(t, Config{}, st, map[int]http.Handler{1: echo}))
	}
}

func headerLimits(t *testing.T, f *front) {
	const head = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n"
	var many strings.Builder
	for i := range maxFields + 1 {
		fmt.Fprintf(&many, "X-%d: a\r\n", i)
	}
	for what, rest := range map[string]string{
		"too large": "X-A: " + strings.Repeat("a", 2*maxRequestHeader) + "\r\n\r\n",
		"too many":  many.String() + "\r\n",
	} {
		if answer, _ := raw(t, f.plain, head+rest); answer.StatusCode != 431 {
			t.Errorf("%s: got %d, want 431", what, answer.StatusCode)
		}
	}
}

func TestSlowHeadersAreCut(t *testing.T) {
	f := newFront(t, Config{HeaderTimeout: 50 * time.Millisecond}, shop(t, 1), nil)
	for _, addr := range []string{f.plain, f.tls} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: ")
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("%s: the connection was not closed: %v", addr, err)
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), nil)
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", f.tls, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
		if (err == nil) != want {
			t.Errorf("%s: got %v, accepted should be %v", tls.VersionName(version), err, want)
		}
		if err == nil {
			c.Close()
		}
	}
}

// h2conn is a client that does what no client does.
func h2conn(t *testing.T, f *front) (*tls.Conn, *http2.Framer) {
	t.Helper()
	c, err := tls.Dial("tcp", f.tls, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	return c, fr
}

func fields() []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "shop.example"}, {":path", "/"}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return b.Bytes()
}

// readGoAway reads until the server ends the connection.
func readGoAway(fr *http2.Framer) bool {
	for {
		got, err := fr.ReadFrame()
		if err != nil {
			return !strings.Contains(err.Error(), "timeout")
		}
		if _, ok := got.(*http2.GoAwayFrame); ok {
			return true
		}
	}
}

// CVE-2023-45288: a header that never ends.
func TestContinuationFloodEndsTheConnection(t *testing.T) {
	_, fr := h2conn(t, newFront(t, Config{}, shop(t, 1), nil))
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields()})
	ended := make(chan bool, 1)
	go func() { ended <- readGoAway(fr) }()
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := range 100000 {
		b.Reset()
		enc.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d", i), Value: strings.Repeat("a", 4000)})
		if fr.WriteContinuation(1, false, b.Bytes()) != nil {
			break
		}
	}
	if !<-ended {
		t.Error("the connection goes on")
	}
}

// CVE-2023-44487: requests that are taken back at once, while endpoints still work on them.
func TestRapidResetIsBounded(t *testing.T) {
	var now, most atomic.Int64
	release := make(chan struct{})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		select {
		case <-release:
		case <-r.Context().Done(): // it learns that the request was taken back, as any endpoint may
		}
		now.Add(-1)
	})})
	t.Cleanup(func() { close(release) })
	_, fr := h2conn(t, f)
	ended := make(chan bool, 1)
	go func() { ended <- readGoAway(fr) }()
	for i := range uint32(20000) {
		enc := fields()
		if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: enc, EndStream: true, EndHeaders: true}) != nil ||
			fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel) != nil {
			break
		}
	}
	fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	if n := most.Load(); n > 1000 {
		t.Errorf("%d requests were with the endpoint at once", n)
	}
}

// gRPC is HTTP/2 with trailers, whichever way the endpoint speaks it.
func TestGRPC(t *testing.T) {
	call := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			t.Errorf("the endpoint got %s, TE %q", r.Proto, r.Header.Get("Te"))
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		in := bufio.NewReader(r.Body)
		for { // both ways at once: each line is answered before the next is sent
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			io.WriteString(w, "re: "+line)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	})
	for _, protocol := range []string{"GRPC", "GRPCS"} {
		pod := httptest.NewUnstartedServer(call)
		pod.Config.ErrorLog = unheard
		if pod.EnableHTTP2 = true; protocol == "GRPCS" {
			pod.StartTLS()
		} else {
			pod.Config.Protocols = new(http.Protocols)
			pod.Config.Protocols.SetUnencryptedHTTP2(true)
			pod.Start()
		}
		t.Cleanup(pod.Close)
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "backend-protocol: "+protocol))
		withService(st, "web", endpointAddr(1))
		f := newFront(t, Config{}, st, nil)
		f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, pod.Listener.Addr().String())
		}
		r, w := io.Pipe()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://shop.example/pkg.Service/Method", r)
		req.Header.Set("Te", "trailers")
		go io.WriteString(w, "one\n")
		answer, err := client(t, f.tls).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(answer.Body)
		for _, next := range []string{"two\n", "three\n", ""} {
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatalf("%s: %v", protocol, err)
			}
			io.WriteString(w, next)
		}
		w.Close()
		io.Copy(io.Discard, lines)
		answer.Body.Close()
		if answer.ProtoMajor != 2 || answer.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%s: got %s, trailers %v", protocol, answer.Proto, answer.Trailer)
		}
	}
}

// HTTP/2 by prior knowledge, without TLS.
func TestCleartextHTTP2(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	c := client(t, f.plain, func(tr *http.Transport) {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(true)
	})
	if answer, _ := get(t, c, "http://shop.example/"); answer.ProtoMajor != 2 || answer.StatusCode != 200 {
		t.Errorf("got %s %d", answer.Proto, answer.StatusCode)
	}
}
