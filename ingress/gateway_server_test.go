package ingress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// gatewayFront serves the Gateways of a world: each door at a port of its own.
type gatewayFront struct {
	*front
	w     *world
	doors map[netip.AddrPort]string
}

func newGatewayFront(t *testing.T, w *world, backends map[int]http.Handler) *gatewayFront {
	t.Helper()
	g := &gatewayFront{&front{}, w, map[netip.AddrPort]string{}}
	cfg := w.cfg
	cfg.Dial = g.reach(t, backends)
	g.Server = NewServer(cfg)
	g.update(t)
	return g
}

func (g *gatewayFront) update(t *testing.T) {
	t.Helper()
	r := g.w.compile()
	g.SetRoutes(r)
	for _, e := range r.Entrances() {
		if g.doors[e.At] == "" {
			serve := g.Serve
			if e.TLS {
				serve = g.ServeTLS
			}
			g.doors[e.At] = g.listen(t, serve, e.At)
		}
	}
}

func (g *gatewayFront) at(port uint16) string {
	return g.doors[netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)]
}

// oneRule is a world with a Gateway and a route of one rule for everything, and
// Services a, b, c and empty; what endpoints get is echoed.
func oneRule(t *testing.T, rule string) *gatewayFront {
	t.Helper()
	w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{"+rule+"}]"))
	backends := map[int]http.Handler{}
	for i, name := range []string{"a", "b", "c"} {
		w.service("default", name, i+1)
		backends[i+1] = http.HandlerFunc(func(rw http.ResponseWriter, in *http.Request) {
			rw.Header().Set("X-From", name)
			rw.Header().Set("X-Old", "old")
			rw.Header().Set("X-More", "more")
			echo(rw, in)
		})
	}
	w.service("default", "empty", 0)
	return newGatewayFront(t, w, backends)
}

// TestFilters: what filters do to a request and its answer. Wanted are the status
// and lines of the answer's header or body; those after "!" must not be there.
func TestFilters(t *testing.T) {
	const rewrite = "filters: [{type: URLRewrite, urlRewrite: {%s}}], "
	prefix := func(match, replace string) string {
		return "matches: [{path: {value: " + match + "}}], " + fmt.Sprintf(rewrite, "path: {type: ReplacePrefixMatch, replacePrefixMatch: '"+replace+"'}") + to("a")
	}
	redirect := func(r string) string { return "filters: [{type: RequestRedirect, requestRedirect: {" + r + "}}]" }
	for _, c := range []struct {
		name, rule, target string
		fields             []string
		status             int
		want               string
	}{
		{"forwarded as it is", to("a"), "/x?y=z", []string{"X-A: 1"}, 200, "GET /x?y=z HTTP/1.1\nhost: h.example\nX-A: 1"},
		{"no backends", "filters: []", "/", nil, 500, ""},
		{"an invalid backend", to("none"), "/", nil, 500, ""},
		{"a backend without endpoints", to("empty"), "/", nil, 503, ""},
		{"weight 0 alone", "backendRefs: [{name: a, port: 80, weight: 0}]", "/", nil, 500, ""},
		{"an unknown filter", "filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}], " + to("a"), "/", nil, 500, ""},
		{"request fields", "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: X-Add, value: more}, {name: X-New, value: v}], remove: [x-gone]}}], " + to("a"), "/",
			[]string{"X-Set: 1", "X-Set: 2", "X-Add: some", "X-Gone: 1"}, 200, "X-Add: some,more\nX-New: v\nX-Set: new\n!X-Gone"},
		{"answer fields", "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-from, value: nobody}], add: [{name: X-Old, value: new}], remove: [x-more]}}], " + to("a"), "/",
			nil, 200, "X-From: nobody\nX-Old: old,new\n!X-More"},
		{"host", fmt.Sprintf(rewrite, "hostname: b.example") + to("a"), "/x", nil, 200, "GET /x HTTP/1.1\nhost: b.example"},
		{"full path", fmt.Sprintf(rewrite, "path: {type: ReplaceFullPath, replaceFullPath: /one}") + to("a"), "/x/y?z=1", nil, 200, "GET /one?z=1 HTTP/1.1"},
		{"prefix 1", prefix("/foo", "/xyz"), "/foo/bar", nil, 200, "GET /xyz/bar HTTP/1.1"},
		{"prefix 2", prefix("/foo", "/xyz/"), "/foo/bar", nil, 200, "GET /xyz/bar HTTP/1.1"},
		{"prefix 3", prefix("/foo/", "/xyz"), "/foo/bar", nil, 200, "GET /xyz/bar HTTP/1.1"},
		{"prefix 4", prefix("/foo/", "/xyz/"), "/foo/bar", nil, 200, "GET /xyz/bar HTTP/1.1"},
		{"prefix 5", prefix("/foo", "/xyz"), "/foo", nil, 200, "GET /xyz HTTP/1.1"},
		{"prefix 6", prefix("/foo", "/xyz"), "/foo/", nil, 200, "GET /xyz/ HTTP/1.1"},
		{"prefix 7", prefix("/foo", ""), "/foo/bar", nil, 200, "GET /bar HTTP/1.1"},
		{"prefix 8", prefix("/foo", ""), "/foo/", nil, 200, "GET / HTTP/1.1"},
		{"prefix 9", prefix("/foo", ""), "/foo", nil, 200, "GET / HTTP/1.1"},
		{"prefix 10", prefix("/foo", "/"), "/foo/", nil, 200, "GET / HTTP/1.1"},
		{"prefix 11", prefix("/foo", "/"), "/foo", nil, 200, "GET / HTTP/1.1"},
		{"prefix with escapes", prefix("/foo", "/x"), "/f%6Fo/a%2Fb", nil, 200, "GET /x/a%2Fb HTTP/1.1"},
		{"redirect to a host", redirect("hostname: b.example"), "/x?y=1", nil, 302, "Location: http://b.example/x?y=1"},
		{"redirect code 301", redirect("statusCode: 301, hostname: b.example"), "/", nil, 301, "Location: http://b.example/"},
		{"redirect code 303", redirect("statusCode: 303"), "/x", nil, 303, "Location: http://h.example/x"},
		{"redirect code 307", redirect("statusCode: 307"), "/x", nil, 307, "Location: http://h.example/x"},
		{"redirect code 308", redirect("statusCode: 308"), "/x", nil, 308, "Location: http://h.example/x"},
		{"redirect to https", redirect("scheme: https"), "/x", nil, 302, "Location: https://h.example/x"},
		{"redirect to https elsewhere", redirect("scheme: https, port: 8443"), "/x", nil, 302, "Location: https://h.example:8443/x"},
		{"redirect to https at its port", redirect("scheme: https, port: 443"), "/x", nil, 302, "Location: https://h.example/x"},
		{"redirect to a port", redirect("port: 81"), "/x", nil, 302, "Location: http://h.example:81/x"},
		{"redirect to port 80", redirect("port: 80"), "/x", nil, 302, "Location: http://h.example/x"},
		{"redirect to a path", redirect("path: {type: ReplaceFullPath, replaceFullPath: /full}"), "/x", nil, 302, "Location: http://h.example/full"},
		{"redirect below a path", "matches: [{path: {value: /a}}], " + redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}"), "/a/c?d", nil, 302, "Location: http://h.example/b/c?d"},
		{"filters of a backend", "backendRefs: [{name: a, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Own, value: a}]}}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-All, value: b}]}}]", "/", nil, 200, "X-All: b\nX-Own: a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := oneRule(t, c.rule)
			u := "http://h.example" + c.target
			answer, body := get(t, client(t, g.at(80)), u, c.fields...)
			if answer.StatusCode != c.status {
				t.Fatalf("got %d, want %d\n%s", answer.StatusCode, c.status, body)
			}
			var all strings.Builder
			answer.Header.Write(&all)
			text := strings.ReplaceAll(all.String()+body, "\r\n", "\n")
			for line := range strings.Lines(c.want) {
				line = strings.TrimSuffix(line, "\n")
				if absent, not := strings.CutPrefix(line, "!"); not {
					if answer.Header.Get(absent) != "" && absent != "X-Gone" || strings.Contains(body, absent) {
						t.Errorf("there is %s in\n%s", absent, text)
					}
				} else if !strings.Contains("\n"+text, "\n"+line+"\n") {
					t.Errorf("no line %q in\n%s", line, text)
				}
			}
		})
	}
}

func TestWeights(t *testing.T) {
	g := oneRule(t, "backendRefs: [{name: a, port: 80, weight: 7}, {name: b, port: 80, weight: 3}, {name: c, port: 80, weight: 0}, {name: none, port: 80, weight: 10}]")
	got := map[string]int{}
	c := client(t, g.at(80))
	const n = 600
	for range n {
		answer, _ := get(t, c, "http://h/")
		got[answer.Header.Get("X-From")+fmt.Sprint(answer.StatusCode)]++
	}
	// Far outside of what chance allows: six standard deviations.
	for what, share := range map[string]float64{"a200": .35, "b200": .15, "500": .5} {
		if f := float64(got[what]) / n; f < share-.13 || f > share+.13 {
			t.Errorf("%s got %.2f of the requests, want %.2f (%v)", what, f, share, got)
		}
	}
	if got["c200"] > 0 {
		t.Errorf("weight 0 got requests: %v", got)
	}
}

func TestRedirectsNameTheListenersPort(t *testing.T) {
	w := newWorld(t, gw("gw", "{name: a, port: 8080, protocol: HTTP}", "{name: b, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}"),
		httpRoute("r", "rules: [{matches: [{path: {value: /same}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: b.example}}]}, {matches: [{path: {value: /http}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: http}}]}]"))
	w.secret("default", "cert", "h.example")
	g := newGatewayFront(t, w, nil)
	for _, c := range []struct{ addr, url, want string }{
		{g.at(8080), "http://h.example:8080/same", "http://b.example:8080/same"},
		{g.at(8080), "http://h.example:8080/http", "http://h.example/http"},
	} {
		answer, _ := get(t, client(t, c.addr), c.url)
		if got := answer.Header.Get("Location"); got != c.want {
			t.Errorf("%s: got %s, want %s", c.url, got, c.want)
		}
	}
}

func TestMirrorsOfRoutes(t *testing.T) {
	seen := make(chan string, 100)
	note := func(name string) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
			body, _ := io.ReadAll(in.Body)
			seen <- name + " " + in.Method + " " + in.RequestURI + " " + in.Host + " " + in.Header.Get("X-Set") + " " + string(body)
		})
	}
	mirror := func(service, more string) string {
		return "{type: RequestMirror, requestMirror: {backendRef: {name: " + service + ", port: 80}" + more + "}}"
	}
	w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{filters: ["+mirror("b", "")+", "+mirror("c", ", fraction: {numerator: 1, denominator: 1}")+", "+mirror("never", ", percent: 0")+
		", {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: v}]}}, {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}], "+to("a")+"}]"))
	w.service("default", "a", 1)
	w.service("default", "b", 2)
	w.service("default", "c", 3)
	w.service("default", "never", 4)
	g := newGatewayFront(t, w, map[int]http.Handler{1: named("a"), 2: note("b"), 3: note("c"), 4: note("never")})
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://h/x?y", strings.NewReader("text"))
	if _, body := do(t, client(t, g.at(80)), req); body != "a" {
		t.Fatalf("got %q", body)
	}
	got := map[string]bool{<-seen: true, <-seen: true}
	for _, name := range []string{"b", "c"} {
		if want := name + " POST /new?y h v text"; !got[want] {
			t.Errorf("got %v, want %q", got, want)
		}
	}
	if len(seen) > 0 {
		t.Errorf("mirrored also: %s", <-seen)
	}
}

func TestTimeouts(t *testing.T) {
	for _, rule := range []string{"timeouts: {request: 50ms}", "timeouts: {backendRequest: 50ms}", "timeouts: {request: 50ms}, retry: {attempts: 100}"} {
		w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{matches: [{path: {value: /slow}}], "+rule+", "+to("a")+"}, {matches: [{path: {value: /none}}], timeouts: {request: 0s}, "+to("b")+"}]"))
		w.service("default", "a", 1)
		w.service("default", "b", 2)
		g := newGatewayFront(t, w, map[int]http.Handler{1: http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) { <-in.Context().Done() }), 2: named("b")})
		c := client(t, g.at(80))
		if answer, _ := get(t, c, "http://h/slow"); answer.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("%s: got %d, want 504", rule, answer.StatusCode)
		}
		if _, body := get(t, c, "http://h/none"); body != "b" {
			t.Errorf("%s: got %q", rule, body)
		}
	}
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name, rule string
		fail       int // attempts that fail
		status     int // with; 0: the connection is cut
		method     string
		want       int
		attempts   int64
	}{
		{"none asked for", "", 1, 500, "GET", 500, 1},
		{"another code", "retry: {codes: [502], attempts: 3}", 1, 500, "GET", 500, 1},
		{"codes", "retry: {codes: [500], attempts: 3}", 3, 500, "GET", 200, 4},
		{"too few", "retry: {codes: [500], attempts: 2}", 3, 500, "GET", 500, 3},
		{"a default number", "retry: {codes: [503]}", 1, 503, "GET", 200, 2},
		{"with a body", "retry: {codes: [500], attempts: 1}", 1, 500, "POST", 200, 2},
		{"cut connections", "retry: {attempts: 2}", 1, 0, "GET", 200, 2},
		{"backoff", "retry: {codes: [500], attempts: 1, backoff: 10ms}", 1, 500, "GET", 200, 2},
		{"timeouts", "retry: {attempts: 1}, timeouts: {backendRequest: 1s}", 1, -1, "GET", 200, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			var attempts atomic.Int64
			rule := to("a")
			if c.rule != "" {
				rule = c.rule + ", " + rule
			}
			w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{"+rule+"}]"))
			w.service("default", "a", 1)
			g := newGatewayFront(t, w, map[int]http.Handler{1: http.HandlerFunc(func(rw http.ResponseWriter, in *http.Request) {
				body, _ := io.ReadAll(in.Body)
				switch n := attempts.Add(1); {
				case n > int64(c.fail):
					rw.Write(body)
				case c.status == 0:
					panic(http.ErrAbortHandler)
				case c.status < 0:
					<-in.Context().Done()
				default:
					rw.WriteHeader(c.status)
				}
			})})
			var body io.Reader
			if c.method == "POST" {
				body = strings.NewReader("text")
			}
			req, _ := http.NewRequestWithContext(t.Context(), c.method, "http://h/", body)
			answer, text := do(t, client(t, g.at(80)), req)
			if answer.StatusCode != c.want || attempts.Load() != c.attempts || body != nil && text != "text" {
				t.Errorf("got %d %q after %d attempts, want %d after %d", answer.StatusCode, text, attempts.Load(), c.want, c.attempts)
			}
		})
	}
}

// TestCORSFilter: the rules of the filter's fields.
func TestCORSFilter(t *testing.T) {
	const full = "allowOrigins: ['https://www.foo.com', 'https://*.bar.com'], allowMethods: [GET, OPTIONS], allowHeaders: [x-1, x-2], exposeHeaders: [x-3], allowCredentials: true, maxAge: 3600"
	const origin, method, headers = "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"
	for _, c := range []struct {
		name, cors, method string
		fields             []string
		status             int
		want               map[string]string
	}{
		{"preflight", full, "OPTIONS", []string{"Origin: https://www.foo.com", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: x-1"}, 204,
			map[string]string{origin: "https://www.foo.com", method: "GET, OPTIONS", headers: "x-1, x-2", "Access-Control-Expose-Headers": "x-3", "Access-Control-Allow-Credentials": "true", "Access-Control-Max-Age": "3600"}},
		{"preflight by wildcard", full, "OPTIONS", []string{"Origin: https://a.b.bar.com", "Access-Control-Request-Method: GET"}, 204, map[string]string{origin: "https://a.b.bar.com", headers: ""}},
		{"preflight of nobody", full, "OPTIONS", []string{"Origin: https://foobar.com", "Access-Control-Request-Method: GET"}, 204, map[string]string{origin: "", method: "", "Access-Control-Allow-Credentials": ""}},
		{"the default port", full, "OPTIONS", []string{"Origin: https://www.foo.com:443", "Access-Control-Request-Method: GET"}, 204, map[string]string{origin: "https://www.foo.com:443"}},
		{"another port", full, "OPTIONS", []string{"Origin: https://www.foo.com:8443", "Access-Control-Request-Method: GET"}, 204, map[string]string{origin: ""}},
		{"another scheme", full, "OPTIONS", []string{"Origin: http://www.foo.com", "Access-Control-Request-Method: GET"}, 204, map[string]string{origin: ""}},
		{"simple", full, "GET", []string{"Origin: https://www.foo.com"}, 200, map[string]string{origin: "https://www.foo.com", method: "", "Access-Control-Allow-Credentials": "true", "Access-Control-Expose-Headers": "x-3"}},
		{"simple of nobody", full, "GET", []string{"Origin: https://foobar.com"}, 200, map[string]string{origin: ""}},
		{"options that are no preflight", full, "OPTIONS", []string{"Origin: https://www.foo.com"}, 200, map[string]string{origin: "https://www.foo.com"}},
		{"wildcards", "allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*']", "OPTIONS", []string{"Origin: http://x:1", "Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: a, b"}, 204,
			map[string]string{origin: "http://x:1", method: "PUT", headers: "a, b", "Access-Control-Allow-Credentials": "", "Access-Control-Max-Age": "5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := oneRule(t, "filters: [{type: CORS, cors: {"+c.cors+"}}], "+to("a"))
			req, _ := http.NewRequestWithContext(t.Context(), c.method, "http://h/", nil)
			for _, f := range c.fields {
				name, value, _ := strings.Cut(f, ": ")
				req.Header.Add(name, value)
			}
			answer, _ := do(t, client(t, g.at(80)), req)
			if answer.StatusCode != c.status {
				t.Errorf("got %d, want %d", answer.StatusCode, c.status)
			}
			for name, want := range c.want {
				if got := answer.Header.Get(name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

// TestGRPCRoutes: calls of a real client to a real server, by GRPCRoutes.
func TestGRPCRoutes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		grpc.SetHeader(ctx, metadata.Pairs("was-set", strings.Join(md.Get("x-set"), ",")))
		return h(ctx, req)
	}))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go srv.Serve(l)
	defer srv.Stop()
	w := newWorld(t, gw("gw", http80), routeIn("default", "GRPCRoute", "g", `parentRefs: [{name: gw}], hostnames: [h.example], rules: [
		{matches: [{method: {service: grpc.health.v1.Health, method: Check}, headers: [{name: bad, value: all}]}], `+to("none")+`},
		{matches: [{method: {service: grpc.health.v1.Health, method: Check}, headers: [{name: bad, value: empty}]}], `+to("empty")+`},
		{matches: [{method: {service: grpc.health.v1.Health, method: Check}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: v}]}}], `+to("a")+`},
		{matches: [{method: {service: grpc.health.v1.Health, method: Watch}}], `+to("a")+`}]`))
	w.service("default", "a", 1)
	w.service("default", "empty", 0)
	g := newGatewayFront(t, w, nil)
	g.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	dial := func(authority string) healthpb.HealthClient {
		return healthClient(t, g.at(80), authority, insecure.NewCredentials())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := dial("h.example")
	var header metadata.MD
	if answer, err := c.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header)); err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("%v %v", answer, err)
	}
	if got := header.Get("was-set"); len(got) != 1 || got[0] != "v" {
		t.Errorf("got metadata %v", got)
	}
	stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := stream.Recv(); err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("stream: %v %v", answer, err)
	}
	for what, want := range map[string]codes.Code{"all": codes.Unavailable, "empty": codes.Unavailable} {
		_, err := c.Check(metadata.AppendToOutgoingContext(ctx, "bad", what), &healthpb.HealthCheckRequest{})
		if status.Code(err) != want {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	if _, err := c.List(ctx, &healthpb.HealthListRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method without a rule: %v", err)
	}
	if _, err := dial("other.example").Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a host without a route: %v", err)
	}
}

// TestBackendProtocols: h2c and WebSocket by the appProtocol of the port.
func TestBackendProtocols(t *testing.T) {
	w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{matches: [{path: {value: /h2c}}], "+to("two")+"}, {"+to("ws")+"}]"))
	w.service("default", "two", 1, ", appProtocol: kubernetes.io/h2c")
	w.service("default", "ws", 2, ", appProtocol: kubernetes.io/ws")
	proto := http.HandlerFunc(func(rw http.ResponseWriter, in *http.Request) { io.WriteString(rw, in.Proto) })
	g := newGatewayFront(t, w, map[int]http.Handler{2: proto})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: proto, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	defer srv.Close()
	inner := g.cfg.Dial
	g.cfg.Dial = func(ctx context.Context, network, to string) (net.Conn, error) {
		if to == endpointAddr(1).String() {
			return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
		}
		return inner(ctx, network, to)
	}
	c := client(t, g.at(80))
	for path, want := range map[string]string{"/h2c": "HTTP/2.0", "/": "HTTP/1.1"} {
		if _, body := get(t, c, "http://h"+path); body != want {
			t.Errorf("%s: got %s, want %s", path, body, want)
		}
	}
}

// TestDoorSharedWithIngresses: what no route of a Gateway matches goes to the
// Ingresses where both have the door.
func TestDoorSharedWithIngresses(t *testing.T) {
	w := newWorld(t, gw("gw", "{name: a, port: 8080, protocol: HTTP}"), httpRoute("r", "rules: [{matches: [{path: {value: /gw}}], "+to("a")+"}]"),
		"apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec: {rules: [{http: {paths: [{pathType: Prefix, path: /, backend: {service: {name: b, port: {number: 80}}}}]}}]}\n")
	w.service("default", "a", 1)
	w.service("default", "b", 2)
	f := &front{}
	cfg := w.cfg
	cfg.Dial = f.reach(t, map[int]http.Handler{1: named("a"), 2: named("b")})
	f.Server = NewServer(cfg)
	f.SetRoutes(w.compile())
	door := netip.MustParseAddrPort("127.0.0.1:8080")
	both := f.listen(t, func(l net.Listener) error { return f.Serve(At(l, door, true)) }, netip.AddrPort{})
	only := f.listen(t, f.Serve, door)
	for _, c := range []struct {
		addr, path, want string
		status           int
	}{{both, "/gw", "a", 200}, {both, "/", "b", 200}, {only, "/gw", "a", 200}, {only, "/", "", 404}} {
		answer, body := get(t, client(t, c.addr), "http://h"+c.path)
		if answer.StatusCode != c.status || c.want != "" && body != c.want {
			t.Errorf("%s: got %d %q, want %d %q", c.path, answer.StatusCode, body, c.status, c.want)
		}
	}
}

func TestTraceOfGateways(t *testing.T) {
	w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{matches: [{path: {value: /a}, queryParams: [{name: x, value: '1'}]}], "+to("a")+"}, {matches: [{path: {value: /a}}], "+to("none")+"}]"))
	w.service("default", "a", 1)
	w.cfg.Gateway.LowPorts = 10000
	r := w.compile()
	got := r.Trace("h", "/a/b?x=1", false)
	text := strings.Join(got.Lines, "\n")
	for _, want := range []string{"door 127.0.0.1:80: listener http of Gateway default/gw, for every host", `Prefix "/a" of HTTPRoute default/r, spec.rules[0]`, "and parameter x 1", "backend Service default/a port 80: 1 endpoints in turn: 192.0.2.1:80"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if got := r.Trace("h:10080", "/a", false); got.Status != 500 {
		t.Errorf("got %d\n%s", got.Status, strings.Join(got.Lines, "\n"))
	}
	if got := r.Trace("h", "/b", false); got.Status != 404 {
		t.Errorf("got %d\n%s", got.Status, strings.Join(got.Lines, "\n"))
	}
}

// healthClient asks the server at addr by gRPC, under the name of authority.
func healthClient(t *testing.T, addr, authority string, creds credentials.TransportCredentials) healthpb.HealthClient {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithAuthority(authority))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return healthpb.NewHealthClient(c)
}
