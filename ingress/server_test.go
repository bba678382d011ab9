package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podgate/kube"
)

// front is a Server on loopback whose endpoints, 192.0.2.N:80, are test servers.
type front struct {
	*Server
	plain, tls string // listeners
	dialed     sync.Map
}

// newFront serves the Ingresses of docs. Dialling 192.0.2.N:80 reaches
// backends[N]; other addresses refuse.
func newFront(t *testing.T, cfg Config, st *kube.State, backends map[int]http.Handler) *front {
	t.Helper()
	f := &front{}
	cfg.Dial = f.reach(t, backends)
	f.Server = NewServer(cfg)
	f.set(st)
	f.plain, f.tls = f.listen(t, f.Serve, netip.AddrPort{}), f.listen(t, f.ServeTLS, netip.AddrPort{})
	return f
}

// reach makes a test server of each backend, and dials them.
func (f *front) reach(t *testing.T, backends map[int]http.Handler) func(ctx context.Context, network, addr string) (net.Conn, error) {
	to := map[string]string{}
	for n, h := range backends {
		b := httptest.NewServer(h)
		t.Cleanup(b.Close)
		to[endpointAddr(n).String()] = b.Listener.Addr().String()
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		count, _ := f.dialed.LoadOrStore(addr, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		real, ok := to[addr]
		if !ok {
			return nil, errors.New("connection refused")
		}
		return new(net.Dialer).DialContext(ctx, network, real)
	}
}

// listen serves at a port of its own, which is at a Gateway's door if there is
// one, until the test ends. It returns when serving has begun: redirects need to
// know the port.
func (f *front) listen(t *testing.T, serve func(net.Listener) error, door netip.AddrPort) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	begun := &beginning{Listener: l, accepts: make(chan struct{})}
	l = begun
	if door.IsValid() {
		l = At(l, door, false)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := f.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	<-begun.accepts
	return addr
}

// beginning is a listener that says when somebody accepts from it.
type beginning struct {
	net.Listener
	once    sync.Once
	accepts chan struct{} // closed then
}

func (b *beginning) Accept() (net.Conn, error) {
	b.once.Do(func() { close(b.accepts) })
	return b.Listener.Accept()
}

func (f *front) set(st *kube.State) {
	r, _ := Compile(f.live.Load(), st, Config{})
	f.SetRoutes(r)
}

func (f *front) dials(n int) int64 {
	count, ok := f.dialed.Load(endpointAddr(n).String())
	if !ok {
		return 0
	}
	return count.(*atomic.Int64).Load()
}

// unheard is the log of servers whose clients break handshakes off on purpose.
var unheard = log.New(io.Discard, "", 0)

func endpointAddr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 80)
}

// shop is an Ingress for shop.example with Service web on these endpoints.
func shop(t *testing.T, endpoints ...int) *kube.State {
	t.Helper()
	st := state(t, ingress("shop", "shop.example|Prefix|/|web"))
	var addrs []netip.AddrPort
	for _, n := range endpoints {
		addrs = append(addrs, endpointAddr(n))
	}
	withService(st, "web", addrs...)
	return st
}

// client sends every request to addr, whatever its URL says, and follows nothing.
func client(t *testing.T, addr string, edit ...func(*http.Transport)) *http.Client {
	t.Helper()
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
	}
	for _, e := range edit {
		e(tr)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport: tr, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get fetches a URL with these header fields ("Name: value").
func get(t *testing.T, c *http.Client, url string, fields ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Add(name, value)
	}
	return do(t, c, req)
}

func do(t *testing.T, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	answer, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

// echo answers with the request as it came.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s %s\nhost: %s\n", r.Method, r.RequestURI, r.Proto, r.Host)
	r.Header.Write(w)
	io.Copy(w, r.Body)
})

func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
}

func TestRequestReachesTheEndpointAsAsked(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	c := client(t, f.plain)
	for target, want := range map[string]string{
		"/":                    "/",
		"/a//b?x=1;y=2&z=%zz":  "/a//b?x=1;y=2&z=%zz",
		"//a":                  "//a",
		"/a%2Fb/caf%C3%A9?":    "/a%2Fb/caf%C3%A9?",
		"/a/../b%20c/./d?q=..": "/b%20c/d?q=..",
		"/%2e%2e/x":            "/x",
	} {
		answer, body := rawGet(t, f.plain, target)
		if want := "GET " + want + " HTTP/1.1\nhost: Shop.Example:8080\n"; answer.StatusCode != 200 || !strings.HasPrefix(body, want) {
			t.Errorf("%s: got %d\n%s\nwant\n%s", target, answer.StatusCode, body, want)
		}
	}
	req, _ := http.NewRequestWithContext(t.Context(), "PATCH", "http://shop.example/", strings.NewReader("some body"))
	if _, body := do(t, c, req); !strings.HasPrefix(body, "PATCH / ") || !strings.HasSuffix(body, "some body") {
		t.Errorf("got %s", body)
	}
	if _, body := get(t, c, "http://shop.example/"); strings.Contains(body, "Accept-Encoding: gzip") != true {
		t.Errorf("the client's Accept-Encoding was lost: %s", body)
	}
}

// rawGet sends a request target that net/url would not leave as it is.
func rawGet(t *testing.T, addr, target string) (*http.Response, string) {
	t.Helper()
	return raw(t, addr, "GET "+target+" HTTP/1.1\r\nHost: Shop.Example:8080\r\nConnection: close\r\n\r\n")
}

// raw sends bytes and reads one answer.
func raw(t *testing.T, addr, request string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func TestForwardedFields(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	claims := []string{
		"X-Forwarded-For: 203.0.113.7, 10.1.1.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: fake.example",
		"X-Forwarded-Port: 1", "X-Real-IP: 203.0.113.8", "X-Request-ID: r1", "X-Forwarded-Prefix: /p",
		"X_Forwarded_For: 203.0.113.9", "Forwarded: for=203.0.113.7",
		"Connection: X-Forwarded-For, X-Hop", "X-Hop: 1", "Te: trailers", "Keep-Alive: 1", "Proxy-Authorization: x",
	}
	var seen http.Header
	backend := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Clone() })
	for _, test := range []struct {
		who     string
		trusted []netip.Prefix
		want    map[string]string
	}{
		{"untrusted", nil, map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example",
			"X-Forwarded-Port": "PORT", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Prefix": "", "X_Forwarded_For": "",
		}},
		{"trusted", loopback, map[string]string{
			"X-Forwarded-For": "203.0.113.7, 10.1.1.1, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "fake.example",
			"X-Forwarded-Port": "1", "X-Real-Ip": "203.0.113.7", "X-Request-Id": "r1", "X-Forwarded-Prefix": "/p",
		}},
	} {
		f := newFront(t, Config{TrustedProxies: test.trusted}, shop(t, 1), map[int]http.Handler{1: backend})
		get(t, client(t, f.plain), "http://shop.example/", claims...)
		for name, want := range test.want {
			if want == "PORT" {
				want = fmt.Sprint(netip.MustParseAddrPort(f.plain).Port())
			}
			if got := strings.Join(seen[name], " | "); got != want {
				t.Errorf("%s: %s: got %q, want %q", test.who, name, got, want)
			}
		}
		for _, name := range []string{"Connection", "X-Hop", "Keep-Alive", "Proxy-Authorization", "Forwarded"} {
			if got, ok := seen[name]; ok {
				t.Errorf("%s: %s reached the endpoint: %q", test.who, name, got)
			}
		}
		if id := seen.Get("X-Request-Id"); test.trusted == nil && len(id) != 32 {
			t.Errorf("%s: X-Request-Id: got %q, want one of ours", test.who, id)
		}
	}
}

func TestRoundRobinAndRetry(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1, 2), map[int]http.Handler{1: named("one"), 2: named("two")})
	c := client(t, f.plain)
	count := map[string]int{}
	for range 10 {
		_, body := get(t, c, "http://shop.example/")
		count[body]++
	}
	if count["one"] != 5 || count["two"] != 5 {
		t.Errorf("got %v, want 5 each", count)
	}
	if f.dials(1) != 1 || f.dials(2) != 1 {
		t.Errorf("dialled %d and %d times, want the connections kept", f.dials(1), f.dials(2))
	}

	f.set(shop(t, 2, 3)) // 3 refuses
	for range 6 {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example/", strings.NewReader("body"))
		if answer, body := do(t, c, req); answer.StatusCode != 200 || body != "two" {
			t.Errorf("got %d %q, want the endpoint that answers", answer.StatusCode, body)
		}
	}
	if f.dials(3) != 3 || f.Counters()["ingress_retries_total"] != 3 {
		t.Errorf("the dead endpoint was dialled %d times, %v", f.dials(3), f.Counters())
	}

	f.set(shop(t, 3, 4, 5)) // all refuse: three are tried
	answer, body := get(t, c, "http://shop.example/")
	if answer.StatusCode != http.StatusBadGateway || !strings.Contains(body, "connection refused") {
		t.Errorf("got %d %q, want 502 with the reason", answer.StatusCode, body)
	}
	if n := f.dials(3) - 3 + f.dials(4) + f.dials(5); n != 3 {
		t.Errorf("dialled %d times, want 3", n)
	}
}

// What may have reached an endpoint is not sent again.
func TestNoRetryAfterConnecting(t *testing.T) {
	var requests atomic.Int64
	abort := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		requests.Add(1)
		panic(http.ErrAbortHandler)
	})
	f := newFront(t, Config{}, shop(t, 1, 2), map[int]http.Handler{1: abort, 2: abort})
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example/", strings.NewReader("order"))
	if answer, _ := do(t, client(t, f.plain), req); answer.StatusCode != http.StatusBadGateway || requests.Load() != 1 {
		t.Errorf("got %d after %d requests, want 502 after 1", answer.StatusCode, requests.Load())
	}
}

func TestPages(t *testing.T) {
	st := state(t, ingress("shop", "shop.example|Prefix|/cart|web", "shop.example|Prefix|/none|none"))
	withService(st, "web", endpointAddr(1))
	withService(st, "none")
	f := newFront(t, Config{AnswerTimeout: 50 * time.Millisecond}, st, map[int]http.Handler{
		1: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
	})
	c := client(t, f.plain)
	for _, test := range []struct {
		url, accept string
		status      int
		contains    []string
	}{
		{"http://nowhere.example/", "", 404, []string{"404 Not Found\n", `No Ingress has rules for host "nowhere.example"`, "http://shop.example/cart (Prefix) to Service ns/web port 80"}},
		{"http://shop.example/x<y", "text/html,*/*", 404, []string{"<h1>404 Not Found</h1>", "has path &#34;/x%3Cy&#34;"}},
		{"http://shop.example/none", "", 503, []string{"Service ns/none port 80", "it has no endpoints"}},
		{"http://shop.example/cart", "", 504, []string{"504 Gateway Timeout", "Service ns/web"}},
	} {
		var fields []string
		if test.accept != "" {
			fields = []string{"Accept: " + test.accept}
		}
		answer, body := get(t, c, test.url, fields...)
		if answer.StatusCode != test.status {
			t.Errorf("%s: got %d, want %d", test.url, answer.StatusCode, test.status)
		}
		for _, want := range test.contains {
			if !strings.Contains(body, want) {
				t.Errorf("%s: %q is not in\n%s", test.url, want, body)
			}
		}
	}
	// Others than the person at this machine are told the status.
	for _, remote := range []string{"192.0.2.99:1234", "[2001:db8::9]:1234"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "http://nowhere.example/", nil)
		r.RemoteAddr = remote
		f.serve(w, r)
		if w.Code != 404 || w.Body.String() != "404 Not Found\n" {
			t.Errorf("%s: got %d %q", remote, w.Code, w.Body)
		}
	}
}

func TestTLSBySNI(t *testing.T) {
	doc := ingress("i", "a.example|Prefix|/|web", "b.example|Prefix|/|web", "x.wild.example|Prefix|/|web") + `  tls:
  - {hosts: [a.example], secretName: a}
  - {hosts: [b.example], secretName: b}
  - {hosts: ["*.wild.example"], secretName: wild}`
	st := state(t, doc)
	withService(st, "web", endpointAddr(1))
	certs := map[string]*x509.Certificate{
		"a.example": secret(t, st, "a", "a.example"), "b.example": secret(t, st, "b", "b.example"),
		"x.wild.example": secret(t, st, "wild", "*.wild.example"),
	}
	f := newFront(t, Config{}, st, map[int]http.Handler{1: echo})
	verified := func(name string) error {
		roots := x509.NewCertPool()
		roots.AddCert(certs[name])
		c, err := tls.Dial("tcp", f.tls, &tls.Config{ServerName: name, RootCAs: roots})
		if err == nil {
			c.Close()
		}
		return err
	}
	for name := range certs {
		if err := verified(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	answer, body := get(t, client(t, f.tls), "https://a.example/")
	if answer.ProtoMajor != 2 || !strings.Contains(body, "X-Forwarded-Proto: https") {
		t.Errorf("got %s, want HTTP/2 from the client and https for the endpoint:\n%s", answer.Proto, body)
	}
	answer, _ = get(t, client(t, f.tls, func(tr *http.Transport) {
		tr.ForceAttemptHTTP2, tr.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
	}), "https://a.example/")
	if answer.ProtoMajor != 1 {
		t.Errorf("got %s, want HTTP/1.1 for who asks for it", answer.Proto)
	}
	for _, name := range []string{"unknown.example", "y.x.wild.example", ""} {
		c, err := tls.Dial("tcp", f.tls, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; !strings.Contains(got, "self-signed") {
			t.Errorf("%q: got certificate of %q, want the self-signed one", name, got)
		}
		c.Close()
	}

	certs["a.example"] = secret(t, st, "a", "a.example")
	rotated := *st
	rotated.Secrets = maps.Clone(st.Secrets)
	f.set(&rotated)
	if err := verified("a.example"); err != nil {
		t.Errorf("after rotation: %v", err)
	}
}

func TestRedirectToHTTPS(t *testing.T) {
	doc := ingress("i", "tls.example|Prefix|/|web", "plain.example|Prefix|/|web") + "  tls: [{hosts: [tls.example], secretName: s}]\n"
	other := strings.Replace(ingress("j", "tls.example|Prefix|/open|web"), "namespace: ns}",
		`namespace: ns, annotations: {nginx.ingress.kubernetes.io/ssl-redirect: "false"}}`, 1)
	st := state(t, doc, other)
	withService(st, "web", endpointAddr(1))
	secret(t, st, "s", "tls.example")
	f := newFront(t, Config{}, st, map[int]http.Handler{1: named("web")})
	port := fmt.Sprint(netip.MustParseAddrPort(f.tls).Port())
	c := client(t, f.plain)
	for _, test := range []struct {
		url, location string // "": no redirect
	}{
		{"http://tls.example/a%2Fb/../c?x=1", "https://tls.example/c?x=1"},
		{"http://tls.example:8080/", "https://tls.example:" + port + "/"},
		{"http://tls.example/open/x", ""},
		{"http://plain.example/", ""},
	} {
		answer, body := get(t, c, test.url)
		if test.location == "" {
			if answer.StatusCode != 200 || body != "web" {
				t.Errorf("%s: got %d %q", test.url, answer.StatusCode, body)
			}
			continue
		}
		if got := answer.Header.Get("Location"); answer.StatusCode != http.StatusPermanentRedirect || got != test.location {
			t.Errorf("%s: got %d to %q, want 308 to %q", test.url, answer.StatusCode, got, test.location)
		}
	}
	if answer, body := get(t, client(t, f.tls), "https://tls.example/"); answer.StatusCode != 200 || body != "web" {
		t.Errorf("over TLS: got %d %q", answer.StatusCode, body)
	}
}

func TestWebSocketIsPassedThrough(t *testing.T) {
	upgrade := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			http.Error(w, "no upgrade", http.StatusBadRequest)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
		io.Copy(c, rw)
	})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: upgrade})
	c, err := net.Dial("tcp", f.plain)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: shop.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\n\r\n")
	r := bufio.NewReader(c)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v", answer, err)
	}
	f.set(shop(t, 2)) // new Routes do not cut what is open
	for _, frame := range []string{"\x81\x05hello", "\x82\x03\x00\x01\x02"} {
		io.WriteString(c, frame)
		got := make([]byte, len(frame))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != frame {
			t.Fatalf("got %q, %v, want %q back", got, err, frame)
		}
	}
	if err := f.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection outlived Shutdown")
	}
}

func TestStreamingAndTrailers(t *testing.T) {
	next := make(chan string)
	events := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Trailer", "X-Sum")
		for e := range next {
			fmt.Fprintf(w, "data: %s\n\n", e)
			http.NewResponseController(w).Flush()
		}
		w.Header().Set("X-Sum", "3")
	})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: events})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://shop.example/events", nil)
	go func() { next <- "0" }()
	answer, err := client(t, f.plain).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for i := range 3 {
		if i > 0 {
			next <- fmt.Sprint(i) // only after the event before has arrived
		}
		if lines.Scan(); lines.Text() != fmt.Sprintf("data: %d", i) {
			t.Fatalf("event %d: got %q, %v", i, lines.Text(), lines.Err())
		}
		lines.Scan()
	}
	close(next)
	io.Copy(io.Discard, answer.Body)
	if got := answer.Trailer.Get("X-Sum"); got != "3" {
		t.Errorf("trailer: got %q, want 3", got)
	}
}

func TestRequestTrailers(t *testing.T) {
	backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, r.Trailer.Get("X-Sum"))
	})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: backend})
	answer, body := raw(t, f.plain, "POST / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTrailer: X-Sum\r\n"+
		"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n")
	if answer.StatusCode != 200 || body != "5" {
		t.Errorf("got %d %q, want the trailer's value", answer.StatusCode, body)
	}
}

func TestExpectContinue(t *testing.T) {
	var accept atomic.Bool
	backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if accept.Load() {
			io.Copy(w, r.Body)
			return
		}
		w.WriteHeader(http.StatusExpectationFailed)
	})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: backend})
	for _, ok := range []bool{true, false} {
		accept.Store(ok)
		c, err := net.Dial("tcp", f.plain)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		r := bufio.NewReader(c)
		first, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			if first.StatusCode != http.StatusExpectationFailed {
				t.Errorf("refused: got %d before the body was sent", first.StatusCode)
			}
			continue
		}
		if first.StatusCode != http.StatusContinue {
			t.Fatalf("got %d, want 100", first.StatusCode)
		}
		io.WriteString(c, "body")
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "body" {
			t.Errorf("got %q, %v", body, err)
		}
	}
}

func TestH2CEndpoint(t *testing.T) {
	st := shop(t, 1)
	h2c := "kubernetes.io/h2c"
	st.Services[kube.Name{Namespace: "ns", Name: "web"}].Spec.Ports[0].AppProtocol = &h2c
	backend := httptest.NewUnstartedServer(echo)
	backend.Config.Protocols = new(http.Protocols)
	backend.Config.Protocols.SetUnencryptedHTTP2(true)
	backend.Start()
	t.Cleanup(backend.Close)
	f := newFront(t, Config{}, st, nil)
	f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, backend.Listener.Addr().String())
	}
	if _, body := get(t, client(t, f.plain), "http://shop.example/"); !strings.HasPrefix(body, "GET / HTTP/2.0") {
		t.Errorf("got %s, want HTTP/2", body)
	}
}

// What two parsers could understand differently is refused or made unambiguous.
func TestSmuggling(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	const host = "Host: shop.example\r\nConnection: close\r\n"
	for what, request := range map[string]string{
		"two lengths":             "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"a length that is none":   "POST / HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\nabc",
		"another coding":          "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n",
		"two codings":             "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
		"space before the colon":  "GET / HTTP/1.1\r\n" + host + "X-A : b\r\n\r\n",
		"a folded field":          "GET / HTTP/1.1\r\n" + host + "X-A: b\r\n\u00a0c\r\n\r\n",
		"no host":                 "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
		"two hosts":               "GET / HTTP/1.1\r\n" + host + "Host: other.example\r\n\r\n",
		"a control in the target": "GET /a\x01b HTTP/1.1\r\n" + host + "\r\n",
		"CONNECT":                 "CONNECT shop.example:80 HTTP/1.1\r\n" + host + "\r\n",
	} {
		answer, body := raw(t, f.plain, request)
		if answer.StatusCode/100 == 2 {
			t.Errorf("%s: got %d %s", what, answer.StatusCode, body)
		}
	}
	// Chunked wins over a length, and the length does not reach the endpoint.
	answer, body := raw(t, f.plain, "POST / HTTP/1.1\r\n"+host+"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	if answer.StatusCode != 200 || !strings.HasSuffix(body, "hello") || strings.Contains(body, "Content-Length") {
		t.Errorf("chunked with a length: got %d %s", answer.StatusCode, body)
	}
}

func TestSetRoutesUnderLoadLosesNothing(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: named("one"), 2: named("two")})
	c := client(t, f.plain)
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 8
	var failed atomic.Int64
	answered := make(chan struct{}) // one for each request
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				answer, err := c.Get("http://shop.example/")
				if err != nil {
					failed.Add(1)
					t.Log(err)
				} else {
					body, err := io.ReadAll(answer.Body)
					answer.Body.Close()
					if err != nil || answer.StatusCode != 200 || string(body) != "one" && string(body) != "two" {
						failed.Add(1)
						t.Logf("%d %q %v", answer.StatusCode, body, err)
					}
				}
				select {
				case answered <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	states := []*kube.State{shop(t, 1), shop(t, 2), shop(t, 1, 2)}
	for i := range 1000 {
		f.set(states[i%len(states)])
		if i%20 == 0 {
			<-answered
		}
	}
	close(stop)
	load.Wait()
	if n := failed.Load(); n != 0 {
		t.Errorf("%d requests failed", n)
	}
}

func TestIdleConnectionsOfGoneEndpointsAreClosed(t *testing.T) {
	closed := make(chan struct{})
	var once sync.Once
	backend := httptest.NewUnstartedServer(named("one"))
	backend.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			once.Do(func() { close(closed) })
		}
	}
	backend.Start()
	t.Cleanup(backend.Close)
	f := newFront(t, Config{}, shop(t, 1), nil)
	f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, backend.Listener.Addr().String())
	}
	get(t, client(t, f.plain), "http://shop.example/")
	f.set(shop(t, 2))
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Error("the connection to an endpoint that is gone is still open")
	}
}
