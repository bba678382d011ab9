package ingress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// overQUIC serves HTTP/3 at a port of its own, at a Gateway's door if there is one.
func (f *front) overQUIC(t *testing.T, door netip.AddrPort) (*QUIC, string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q, err := f.ServeQUIC(pc, door, !door.IsValid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q, pc.LocalAddr().String()
}

// client3 asks addr by HTTP/3, whatever the URL says.
func client3(t *testing.T, addr string, cfg *tls.Config) *http.Client {
	t.Helper()
	tr := &http3.Transport{
		TLSClientConfig: cfg,
		Dial: func(ctx context.Context, _ string, tlsCfg *tls.Config, cfg *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, addr, tlsCfg, cfg)
		},
	}
	t.Cleanup(func() { tr.Close() })
	return &http.Client{
		Transport: tr, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var anybody = &tls.Config{InsecureSkipVerify: true}

func TestHTTP3ReachesTheEndpoint(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	f := newFront(t, Config{AccessLog: func(r Access) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, r.Proto+" "+r.Target+" "+strconv.Itoa(r.Status))
	}}, shop(t, 1), map[int]http.Handler{1: echo})
	_, addr := f.overQUIC(t, netip.AddrPort{})
	_, port, _ := net.SplitHostPort(addr)
	answer, body := get(t, client3(t, addr, anybody), "https://shop.example/a%2Fb?q=1", "X-Forwarded-For: 203.0.113.9", "Proxy: x")
	if answer.StatusCode != 200 || answer.ProtoMajor != 3 {
		t.Fatalf("got %s by %s", answer.Status, answer.Proto)
	}
	for _, want := range []string{"GET /a%2Fb?q=1 HTTP/1.1\nhost: shop.example\n", "X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-Proto: https\r\n", "X-Forwarded-Port: " + port + "\r\n", "X-Real-Ip: 127.0.0.1\r\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("the endpoint got no %q:\n%s", want, body)
		}
	}
	if strings.Contains(body, "Proxy:") || answer.Header.Get("Alt-Svc") != "" {
		t.Errorf("got %v\n%s", answer.Header, body)
	}
	if answer, _ = get(t, client3(t, addr, anybody), "https://nobody.example/"); answer.StatusCode != 404 {
		t.Errorf("a host that no rule is for: got %s", answer.Status)
	}
	eventually(t, "both requests are logged", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(lines) == 2 && lines[0] == "HTTP/3.0 /a%2Fb?q=1 200"
	})
}

func TestHTTP3CertificatesBySNI(t *testing.T) {
	doc := ingress("i", "a.example|Prefix|/|web", "b.example|Prefix|/|web") + `  tls:
  - {hosts: [a.example], secretName: a}
  - {hosts: [b.example], secretName: b}`
	st := state(t, doc, annotated(ingress("through", "through.example|Prefix|/|web"), "ssl-passthrough: true"))
	withService(st, "web", endpointAddr(1))
	certs := map[string]*x509.Certificate{"a.example": secret(t, st, "a", "a.example"), "b.example": secret(t, st, "b", "b.example")}
	f := newFront(t, Config{}, st, map[int]http.Handler{1: echo})
	_, addr := f.overQUIC(t, netip.AddrPort{})
	verified := func(name string) error {
		roots := x509.NewCertPool()
		roots.AddCert(certs[name])
		_, err := client3(t, addr, &tls.Config{RootCAs: roots}).Get("https://" + name + "/")
		return err
	}
	for name := range certs {
		if err := verified(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	answer, _ := get(t, client3(t, addr, anybody), "https://unknown.example/")
	if got := answer.TLS.PeerCertificates[0].Subject.CommonName; !strings.Contains(got, "self-signed") {
		t.Errorf("an unknown name: got the certificate of %q", got)
	}
	if answer, err := client3(t, addr, anybody).Get("https://through.example/"); err == nil {
		t.Errorf("TLS of an endpoint was ours: got %s", answer.Status)
	}
	certs["a.example"] = secret(t, st, "a", "a.example")
	rotated := *st
	rotated.Secrets = maps.Clone(st.Secrets)
	f.set(&rotated)
	if err := verified("a.example"); err != nil {
		t.Errorf("after rotation: %v", err)
	}
}

func TestHTTP3BodiesAndTrailers(t *testing.T) {
	const size = 20 << 20
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/up":
			sum := sha256.New()
			n, err := io.Copy(sum, r.Body)
			fmt.Fprintf(w, "%d %x %v %s", n, sum.Sum(nil), err, r.Trailer.Get("Said"))
		case "/down":
			w.Header().Set("Trailer", "Sum")
			sum := sha256.New()
			part := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
			for n := 0; n < size; n += len(part) {
				io.MultiWriter(w, sum).Write(part)
			}
			w.Header().Set("Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		}
	})})
	_, addr := f.overQUIC(t, netip.AddrPort{})
	c := client3(t, addr, anybody)
	sum := sha256.New()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://shop.example/up", io.TeeReader(io.LimitReader(zeros{}, size), sum))
	req.Trailer = http.Header{"Said": {"all"}}
	if _, body := do(t, c, req); body != fmt.Sprintf("%d %x <nil> all", size, sum.Sum(nil)) {
		t.Errorf("upload: the endpoint got %q", body)
	}
	answer, body := get(t, c, "https://shop.example/down")
	if got := fmt.Sprintf("%x", sha256.Sum256([]byte(body))); len(body) != size || answer.Trailer.Get("Sum") != got {
		t.Errorf("download: got %d bytes and trailers %v, want Sum %s", len(body), answer.Trailer, got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHTTP3CancelledRequestsEndAtTheEndpoint(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/wait" {
			return
		}
		close(began)
		<-r.Context().Done()
		close(ended)
	})})
	_, addr := f.overQUIC(t, netip.AddrPort{})
	c := client3(t, addr, anybody)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://shop.example/wait", nil)
	if _, err := c.Do(req); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended
	if answer, _ := get(t, c, "https://shop.example/"); answer.StatusCode != 200 {
		t.Errorf("the next request of the connection: got %s", answer.Status)
	}
}

func TestHTTP3Limits(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "proxy-body-size: 1k"))
	withService(st, "web", endpointAddr(1))
	f := newFront(t, Config{BodyTimeout: 100 * time.Millisecond}, st, map[int]http.Handler{1: echo})
	_, addr := f.overQUIC(t, netip.AddrPort{})
	c := client3(t, addr, anybody)
	many := make([]string, maxFields+1)
	for i := range many {
		many[i] = fmt.Sprintf("X-%d: x", i)
	}
	if answer, _ := get(t, c, "https://shop.example/", many...); answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d fields: got %s", len(many), answer.Status)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://shop.example/", nil)
	req.Header.Set("X-Long", strings.Repeat("x", maxRequestHeader))
	if answer, err := c.Do(req); err == nil && answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of more than %d bytes: got %s", maxRequestHeader, answer.Status)
	}
	post := func(body io.Reader) *http.Response {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://shop.example/", body)
		answer, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer
	}
	if answer := post(strings.NewReader(strings.Repeat("x", 2000))); answer.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body that says that it is too long: got %s", answer.Status)
	}
	if answer := post(io.LimitReader(zeros{}, 2000)); answer.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body that is too long: got %s", answer.Status)
	}
	slow, pen := io.Pipe()
	defer pen.Close()
	go io.WriteString(pen, "x")
	if answer := post(slow); answer.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a body that stands still: got %s", answer.Status)
	}
	if answer, _ := get(t, c, "https://shop.example/"); answer.StatusCode != 200 {
		t.Errorf("after all that: got %s", answer.Status)
	}
}

func TestHTTP3ClientsThatKeepNoHeaderAreLeft(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	q, addr := f.overQUIC(t, netip.AddrPort{})
	cfg := anybody.Clone()
	cfg.NextProtos = []string{http3.NextProtoH3}
	conn, err := quic.DialAddr(t.Context(), addr, cfg, &quic.Config{KeepAlivePeriod: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseWithError(0, "")
	str, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	str.Write([]byte{1, 20}) // HEADERS, of which nothing follows
	var c *quicConn
	eventually(t, "the connection is there", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		for c = range q.conns {
		}
		return c != nil
	})
	c.timer.Reset(time.Millisecond) // as if it had been there for clientIdle
	c.mu.Lock()
	c.since = c.since.Add(-clientIdle)
	c.mu.Unlock()
	<-conn.Context().Done()
	var end *quic.ApplicationError
	if err := context.Cause(conn.Context()); !errors.As(err, &end) || !end.Remote || http3.ErrCode(end.ErrorCode) != http3.ErrCodeNoError {
		t.Errorf("got %v", err)
	}
}

func TestHTTP3IsAnnounced(t *testing.T) {
	st := state(t, ingress("shop", "shop.example|Prefix|/|web"), annotated(ingress("odd", "odd.example|Prefix|/|web"), "custom-http-errors: 500"))
	withService(st, "web", endpointAddr(1))
	f := newFront(t, Config{}, st, map[int]http.Handler{1: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/own" {
			w.Header().Set("Alt-Svc", "clear")
		}
		if r.URL.Path == "/chunked" {
			http.NewResponseController(w).Flush()
		}
		io.WriteString(w, "x")
	})})
	at := netip.MustParseAddrPort(f.tls)
	pc, err := net.ListenPacket("udp", f.tls)
	if err != nil {
		t.Fatal(err)
	}
	q, err := f.ServeQUIC(pc, netip.AddrPort{}, true)
	if err != nil {
		t.Fatal(err)
	}
	one := func(tr *http.Transport) {
		tr.ForceAttemptHTTP2, tr.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	want := fmt.Sprintf(`h3=":%d"; ma=86400`, at.Port())
	check := func(c *http.Client, url, want string) {
		t.Helper()
		answer, _ := get(t, c, url)
		if got := strings.Join(answer.Header.Values("Alt-Svc"), "|"); got != want {
			t.Errorf("%s by %s: got Alt-Svc %q, want %q", url, answer.Proto, got, want)
		}
	}
	for _, host := range []string{"shop", "odd"} { // by the lane, and not
		for _, c := range []*http.Client{client(t, f.tls), client(t, f.tls, one)} {
			check(c, "https://"+host+".example/", want)
			check(c, "https://"+host+".example/chunked", want)
			check(c, "https://"+host+".example/own", "clear")
		}
		check(client(t, f.plain), "http://"+host+".example/", "")
	}
	check(client(t, f.tls), "https://nobody.example/", want)
	q.Close()
	for _, c := range []*http.Client{client(t, f.tls), client(t, f.tls, one)} {
		check(c, "https://shop.example/", "")
	}
}

func TestHTTP3EndsWithGoAway(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(began)
			<-finish
		}
		io.WriteString(w, "done")
	})})
	q, addr := f.overQUIC(t, netip.AddrPort{})
	c := client3(t, addr, anybody)
	idle := client3(t, addr, anybody)
	get(t, idle, "https://shop.example/")
	answered := make(chan string, 1)
	go func() {
		answer, err := c.Get("https://shop.example/wait")
		if err != nil {
			answered <- err.Error()
			return
		}
		body, _ := io.ReadAll(answer.Body)
		answered <- string(body)
	}()
	<-began
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		ended <- q.end(ctx)
	}()
	eventually(t, "the idle connection ends", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.conns) == 1
	})
	close(finish)
	if got := <-answered; got != "done" {
		t.Errorf("the request in progress: got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	pc.Close()
}

func TestHTTP3AsksForProofUnderLoad(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	q, addr := f.overQUIC(t, netip.AddrPort{})
	for n := range maxUnproved + 1 {
		if got, want := q.doubtsAt(0), n == maxUnproved; got != want {
			t.Fatalf("client %d of a second: has to prove its address: %v", n, got)
		}
	}
	if q.doubtsAt(1) {
		t.Error("the first client of the next second has to prove its address")
	}
	q.mu.Lock()
	q.second, q.unproved = time.Now().Unix(), maxUnproved
	q.mu.Unlock()
	if answer, _ := get(t, client3(t, addr, anybody), "https://shop.example/"); answer.StatusCode != 200 {
		t.Errorf("who proves it: got %s", answer.Status)
	}
	f.quicConns.Add(maxQUIC)
	_, err := client3(t, addr, anybody).Get("https://shop.example/")
	f.quicConns.Add(-maxQUIC)
	var refused *quic.TransportError
	if !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused {
		t.Errorf("with too many connections: got %v", err)
	}
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}
