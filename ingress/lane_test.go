package ingress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// scripted serves Ingress shop.example with one endpoint that is script: it gets
// each connection, with its number from 0, and what is read from it.
func scripted(t *testing.T, cfg Config, script func(n int, c net.Conn, in *bufio.Reader)) (f *front, dials *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				script(n, c, bufio.NewReader(c))
			}()
		}
	}()
	f = newFront(t, cfg, shop(t, 1), nil)
	dials = new(atomic.Int64)
	f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	return f, dials
}

// requestHead reads a header and returns it.
func requestHead(in *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := in.ReadString('\n')
		if b.WriteString(line); err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// wireClient is a connection to the front door with its answers.
type wireClient struct {
	net.Conn
	in *bufio.Reader
}

func dialFront(t *testing.T, addr string) *wireClient {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &wireClient{c, bufio.NewReader(c)}
}

func (c *wireClient) ask(t *testing.T, request string) (status int, body string) {
	t.Helper()
	io.WriteString(c, request)
	return c.answer(t, "GET")
}

func (c *wireClient) answer(t *testing.T, method string) (status int, body string) {
	t.Helper()
	res, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

const plainGet = "GET /x?q HTTP/1.1\r\nHost: shop.example\r\nx-lower: a\r\n\r\n"

func TestLanePassesBytesOn(t *testing.T) {
	got := make(chan string, 9)
	f, dials := scripted(t, Config{}, func(_ int, c net.Conn, in *bufio.Reader) {
		for {
			head, err := requestHead(in)
			if err != nil {
				return
			}
			got <- head
			io.WriteString(c, ok)
		}
	})
	c := dialFront(t, f.plain)
	io.WriteString(c, plainGet+plainGet) // a pipeline
	for range 2 {
		if status, body := c.answer(t, "GET"); status != 200 || body != "ok" {
			t.Fatalf("got %d %q", status, body)
		}
		head := <-got
		if !strings.HasPrefix(head, "GET /x?q HTTP/1.1\r\nHost: shop.example\r\nx-lower: a\r\nX-Forwarded-For: 127.0.0.1\r\n") {
			t.Errorf("the endpoint got %q", head)
		}
	}
	// The same connection goes to net/http with a request that is not for the lane, and works on.
	if status, _ := c.ask(t, "GET / HTTP/1.1\r\nHost: shop.example\r\nTE: trailers\r\n\r\n"); status != 200 {
		t.Errorf("got %d", status)
	}
	if status, _ := c.ask(t, plainGet); status != 200 {
		t.Errorf("got %d", status)
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections to the endpoint, want one of the lane's and one of net/http's", n)
	}
}

func TestLaneBodies(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(body)
	})})
	c := dialFront(t, f.plain)
	for _, size := range []int{0, 1, 5000, laneBuffer * 3} {
		body := strings.Repeat("b", size)
		status, got := c.ask(t, fmt.Sprintf("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\n%s", size, body))
		if status != 200 || got != body {
			t.Errorf("%d bytes: got %d and %d bytes", size, status, len(got))
		}
	}
}

func TestLaneAnswers(t *testing.T) {
	long := strings.Repeat("x", 300<<10)
	for name, test := range map[string]struct{ method, answer, want string }{
		"long":           {"GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), long},
		"head":           {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", ""},
		"not modified":   {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", ""},
		"chunked":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", "abc"},
		"early hints":    {"GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, "ok"},
		"bare LF":        {"GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "ok"},
		"no reason":      {"GET", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"until the end":  {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", "all of it"},
		"of HTTP/1.0":    {"GET", "HTTP/1.0 200 OK\r\n\r\nall of it", "all of it"},
		"hop by hop":     {"GET", "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nok", "ok"},
		"endpoint's end": {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "ok"},
	} {
		f, _ := scripted(t, Config{}, func(_ int, c net.Conn, in *bufio.Reader) {
			for {
				if _, err := requestHead(in); err != nil {
					return
				}
				io.WriteString(c, test.answer)
				if strings.HasSuffix(test.answer, "all of it") {
					return
				}
			}
		})
		c := dialFront(t, f.plain)
		for range 2 { // and the connection goes on
			io.WriteString(c, test.method+" / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
			res, err := http.ReadResponse(c.in, &http.Request{Method: test.method})
			if name == "early hints" && err == nil {
				if res.StatusCode != 103 || res.Header.Get("Link") != "</a>" {
					t.Errorf("%s: got %v", name, res)
				}
				res, err = http.ReadResponse(c.in, &http.Request{Method: test.method})
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, err := io.ReadAll(res.Body)
			if err != nil || string(body) != test.want || res.Header.Get("X-Hop") != "" || res.Header.Get("Connection") != "" || res.Header.Get("Date") == "" {
				t.Errorf("%s: got %v, %d bytes, %v", name, res.Header, len(body), err)
			}
			if name == "chunked" && res.Trailer.Get("X-Sum") != "1" {
				t.Errorf("%s: trailers %v", name, res.Trailer)
			}
			if name == "head" && res.Header.Get("Content-Length") != "7" {
				t.Errorf("%s: got %v", name, res.Header)
			}
		}
	}
}

// An endpoint that ends its idle connections costs nobody a request.
func TestLaneReplacesStaleConnections(t *testing.T) {
	closed := make(chan struct{}, 9)
	f, dials := scripted(t, Config{}, func(n int, c net.Conn, in *bufio.Reader) {
		defer func() { closed <- struct{}{} }()
		requestHead(in)
		io.WriteString(c, ok)
		if n == 1 { // ends with the next request, which it does not answer
			requestHead(in)
		}
		c.Close()
	})
	c := dialFront(t, f.plain)
	for i := range 4 {
		if status, _ := c.ask(t, plainGet); status != 200 {
			t.Errorf("request %d: got %d", i, status)
		}
		if i != 1 {
			<-closed
		}
	}
	if n := dials.Load(); n != 4 {
		t.Errorf("%d connections, want 4", n)
	}
}

// What an endpoint says unasked is not the answer to the next request.
func TestLaneDropsConnectionsWithUnaskedBytes(t *testing.T) {
	sent := make(chan struct{})
	f, dials := scripted(t, Config{}, func(n int, c net.Conn, in *bufio.Reader) {
		for {
			if _, err := requestHead(in); err != nil {
				return
			}
			if io.WriteString(c, ok); n == 0 {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
				close(sent)
			}
		}
	})
	c := dialFront(t, f.plain)
	for range 2 {
		if _, body := c.ask(t, plainGet); body != "ok" {
			t.Errorf("got %q", body)
		}
		<-sent
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestLaneEndsWaits(t *testing.T) {
	gone := make(chan struct{}, 1)
	f, _ := scripted(t, Config{AnswerTimeout: 30 * time.Millisecond}, func(_ int, c net.Conn, in *bufio.Reader) {
		requestHead(in)
		io.Copy(io.Discard, in)
		gone <- struct{}{}
	})
	if status, _ := dialFront(t, f.plain).ask(t, plainGet); status != 504 {
		t.Errorf("got %d, want 504", status)
	}
	<-gone
	f.cfg.AnswerTimeout = time.Hour
	c := dialFront(t, f.plain)
	io.WriteString(c, plainGet)
	c.Close()
	<-gone // as the client is
}

// An answer that is cut off is not passed off as whole.
func TestLaneCutsShortAnswers(t *testing.T) {
	f, _ := scripted(t, Config{}, func(_ int, c net.Conn, in *bufio.Reader) {
		requestHead(in)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
	})
	c := dialFront(t, f.plain)
	io.WriteString(c, plainGet)
	all, err := io.ReadAll(c.in)
	if err != nil || !strings.HasSuffix(string(all), "half") {
		t.Errorf("got %q, %v", all, err)
	}
}

func TestOddHeadersAreNetHTTPs(t *testing.T) {
	const host = "Host: shop.example\r\n"
	for request, want := range map[string]form{
		plainGet: plainForm,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc":                          plainForm,
		"GET / HTTP/1.1\r\n" + host:                                                           unfinished,
		"GET / HTTP/1.0\r\n" + host + "\r\n":                                                  odd,
		"get / HTTP/1.1\r\n" + host + "\r\n":                                                  odd,
		"GET  / HTTP/1.1\r\n" + host + "\r\n":                                                 odd,
		"GET http://a/ HTTP/1.1\r\n" + host + "\r\n":                                          odd,
		"GET /a b HTTP/1.1\r\n" + host + "\r\n":                                               odd,
		"GET /% HTTP/1.1\r\n" + host + "\r\n":                                                 odd,
		"GET /\x80 HTTP/1.1\r\n" + host + "\r\n":                                              odd,
		"GET / HTTP/1.1\r\n\r\n":                                                              odd,
		"GET / HTTP/1.1\r\n" + host + host + "\r\n":                                           odd,
		"GET / HTTP/1.1\r\nHost: a b\r\n\r\n":                                                 odd,
		"GET / HTTP/1.1\r\nHost : a\r\n\r\n":                                                  odd,
		"GET / HTTP/1.1\n" + host + "\n":                                                      odd,
		"GET / HTTP/1.1\r\n" + host + "X: a\n\r\n":                                            odd,
		"GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n":                                       odd,
		"GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n":                                     odd,
		"GET / HTTP/1.1\r\n" + host + " folded\r\n\r\n":                                       odd,
		"GET / HTTP/1.1\r\n" + host + "X\r\n\r\n":                                             odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na":       odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na":                           odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\n":                              odd,
		"GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n":                    odd,
		"GET / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n":     odd,
		"GET / HTTP/1.1\r\n" + host + "Connection: X-Forwarded-For\r\n\r\n":                   odd,
		"GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n":     odd,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                                    odd,
		"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: a\r\n", maxFields+1) + "\r\n":        odd,
		"GET / HTTP/1.1\r\n" + host + "X-A: b\r\nX\x7f: a\r\n\r\n":                            odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: 1\r\ncontent-length: 2\r\n\r\nab":      odd,
		"GET / HTTP/1.1\r\n" + host + "X: a\r\n\tfolded\r\n\r\n":                              odd,
		"GET / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n":                   odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: 1,1\r\n\r\na":                          odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n":          odd,
		"GET / HTTP/1.1\r\n" + host + "Content-Length: 0x1\r\n\r\n":                           odd,
		"CONNECT / HTTP/1.1\r\n" + host + "\r\n":                                              odd,
		"OPTIONS * HTTP/1.1\r\n" + host + "\r\n":                                              odd,
		"GET / HTTP/1.1\r\n" + host + "Keep-Alive: 5\r\nConnection: close\r\n\r\n":            plainForm,
		"GET /a%2Fb;v=1/~(x)?a=%zz HTTP/1.1\r\n" + host + "Cookie: a=b; c=\x80\r\n\r\n":       plainForm,
		"GET / HTTP/1.1\r\n" + host + "Connection: keep-alive\r\nConnection: close\r\n\r\nxx": plainForm,
	} {
		var h head
		if got := h.request([]byte(request)); got != want {
			t.Errorf("%q: got %d, want %d", request, got, want)
		}
	}
}

func TestExternalNameIsReachedByTheWayOut(t *testing.T) {
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pod := &http.Server{Handler: echo}
	go pod.Serve(outside)
	t.Cleanup(func() { pod.Close() })
	var asked []string
	cfg := Config{DialOut: func(ctx context.Context, network, addr string) (net.Conn, error) {
		asked = append(asked, addr)
		return new(net.Dialer).DialContext(ctx, network, outside.Addr().String())
	}}
	st := state(t, ingress("i", "a.example|Prefix|/|ext", "b.example|Prefix|/|bare"),
		"kind: Service\nmetadata: {name: ext, namespace: ns}\nspec: {type: ExternalName, externalName: Api.Elsewhere.example., ports: [{port: 80, targetPort: 8081}]}",
		"kind: Service\nmetadata: {name: bare, namespace: ns}\nspec: {type: ExternalName, externalName: other.example}")
	f := newFront(t, cfg, st, nil)
	r, _ := Compile(nil, st, cfg)
	f.SetRoutes(r)
	for _, host := range []string{"a.example", "b.example"} {
		if answer, body := get(t, client(t, f.plain), "http://"+host+"/x"); answer.StatusCode != 200 || !strings.Contains(body, "host: "+host) {
			t.Errorf("%s: got %d %s", host, answer.StatusCode, body)
		}
	}
	if got := strings.Join(asked, " "); got != "api.elsewhere.example:8081 other.example:80" {
		t.Errorf("dialled %s", got)
	}
}

func TestDefaultBackendOfClassAndSettings(t *testing.T) {
	const service = "kind: Service\nmetadata: {name: %s, namespace: ns}\nspec: {ports: [{port: 80}]}"
	class := "kind: IngressClass\napiVersion: networking.k8s.io/v1\nmetadata: {name: c}\nspec: {controller: podgate.dev/ingress, parameters: {kind: %s, name: %s, namespace: ns, scope: Namespace}}"
	for what, test := range map[string]struct {
		class   string
		setting string
		want    string // Service and problem
	}{
		"neither":            {"", "", ""},
		"setting":            {"", "ns/web", "web"},
		"setting with port":  {"", "ns/web:80", "web"},
		"setting, no port":   {"", "ns/web:81", "web no port \"81\""},
		"setting of nothing": {"", "ns/none", "none no Service"},
		"class":              {fmt.Sprintf(class, "Service", "web"), "ns/other", "web"},
		"class of another":   {fmt.Sprintf(class, "ConfigMap", "web"), "", " podgate takes a Service"},
	} {
		docs := []string{ingress("i", "a.example|Prefix|/|web"), fmt.Sprintf(service, "web"), fmt.Sprintf(service, "other")}
		if test.class != "" {
			docs = append(docs, test.class)
		}
		r, problems := Compile(nil, state(t, docs...), Config{DefaultBackend: test.setting})
		got := ""
		if _, rt := r.match("nobody.example", "/"); rt != nil {
			got = rt.backend.service.Name
		}
		want, problem, _ := strings.Cut(test.want, " ")
		found := problem == ""
		for _, p := range problems {
			found = found || strings.Contains(p.Err, problem)
		}
		if got != want || !found {
			t.Errorf("%s: got %q, %v", what, got, problems)
		}
	}
}

func TestSlowBodiesAreCut(t *testing.T) {
	f := newFront(t, Config{BodyTimeout: 50 * time.Millisecond}, shop(t, 1), map[int]http.Handler{1: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })})
	c := dialFront(t, f.plain)
	status, _ := c.ask(t, fmt.Sprintf("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: %d\r\n\r\nbegun", 3*laneBuffer))
	if status != http.StatusRequestTimeout {
		t.Errorf("got %d, want 408", status)
	}
}
