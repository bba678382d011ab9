package ingress

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// exchange is what became of one request: what the endpoint got and what the
// client did, without what is new in each.
type exchange struct {
	Endpoint string
	Status   int
	Header   http.Header
	Body     string
}

// exchanged sends a request without its last empty line, by the lane or, with a
// field that is not for it, by net/http.
func exchanged(t *testing.T, f *front, head, body string, lane bool) exchange {
	t.Helper()
	if !lane {
		head += "Proxy-Connection: keep-alive\r\n"
	}
	c := dialFront(t, f.plain)
	io.WriteString(c, head+"\r\n"+body)
	method, _, _ := strings.Cut(head, " ")
	res, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	all, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	f.mu.Lock()
	onLane := len(f.onLane)
	f.mu.Unlock()
	if lane && onLane == 0 {
		t.Errorf("%q: not on the lane", head)
	}
	res.Header.Del("Date")
	e := exchange{Endpoint: res.Header.Get("X-Got"), Status: res.StatusCode, Header: res.Header, Body: string(all)}
	res.Header.Del("X-Got")
	for _, cookie := range res.Header["Set-Cookie"] {
		name, rest, _ := strings.Cut(cookie, "=")
		_, rest, _ = strings.Cut(rest, ";")
		res.Header["Set-Cookie"] = []string{name + rest}
	}
	return e
}

// whatCame answers with the request in X-Got.
func whatCame(w http.ResponseWriter, r *http.Request) {
	var got strings.Builder
	r.Header.Del("X-Request-Id")
	if r.ContentLength == 0 {
		r.Header.Del("Content-Length") // net/http does not say that there is no body
	}
	fmt.Fprintf(&got, "%s %s %s ", r.Method, r.RequestURI, r.Host)
	r.Header.Write(&got)
	body, _ := io.ReadAll(r.Body)
	h := w.Header()
	h.Set("X-Got", strings.ReplaceAll(got.String(), "\r\n", ", ")+string(body))
	h.Set("Content-Type", "text/plain")
	h.Set("X-Hide", "1")
	h.Set("Location", "http://inner.example/x")
	h.Add("Set-Cookie", "own=1; Path=/x; Domain=inner.example")
	io.WriteString(w, "answer")
}

// Whatever a route changes, it changes the same on the lane as by net/http.
func TestBothWaysChangeTheSame(t *testing.T) {
	for name, annotations := range map[string][]string{
		"nothing":          nil,
		"rewrite":          {"rewrite-target: /new/$1", "x-forwarded-prefix: /p"},
		"rewrite, query":   {"rewrite-target: /new?all=$1&x", "upstream-vhost: a.$namespace"},
		"addresses":        {"whitelist-source-range: 127.0.0.0/8", "limit-rps: 10000", "limit-connections: 100"},
		"refused":          {"denylist-source-range: 127.0.0.1", "enable-cors: true"},
		"closed":           {"whitelist-source-range: nobody"},
		"limited":          {"limit-connections: 1", "limit-rps: 1", "limit-burst-multiplier: 0", "limit-whitelist: 127.0.0.1"},
		"password":         {"auth-type: basic", "auth-secret: users"},
		"password or":      {"auth-type: basic", "auth-secret: users", "satisfy: any", "whitelist-source-range: 127.0.0.1"},
		"cors":             {"enable-cors: true", "cors-allow-origin: https://a.example"},
		"redirect":         {"permanent-redirect: https://new.example$request_uri"},
		"app-root":         {"app-root: /start"},
		"to HTTPS":         {"force-ssl-redirect: true"},
		"answers":          {"custom-headers: added", "proxy-cookie-path: /x /y", "proxy-cookie-domain: inner.example outer.example", "proxy-redirect-from: http://inner.example", "proxy-redirect-to: https://outer.example"},
		"vhost":            {"upstream-vhost: $arg_host"},
		"vhost that isn't": {"upstream-vhost: $http_x_host"},
		"affinity":         {"affinity: cookie", "session-cookie-samesite: Lax"},
		"hash":             {"upstream-hash-by: $request_uri$cookie_a"},
	} {
		path := rule("shop.example|Prefix|/|web")
		if strings.HasPrefix(name, "rewrite") {
			path = "shop.example|ImplementationSpecific|/(.*)|web"
		}
		st := state(t, annotated(ingress("shop", path), annotations...))
		f := frontOf(t, st, map[int]http.Handler{1: http.HandlerFunc(whatCame)})
		for _, request := range []struct{ line, fields, body string }{
			{"GET /", "", ""},
			{"HEAD /x?", "", ""},
			{"GET /a%20b/%26c%2Fd%0d%0aX:%20y//../z?q=1&host=inner.example", "Origin: https://a.example\r\nCookie: a=b; INGRESSCOOKIE=x|y\r\n", ""},
			{"OPTIONS /x", "Origin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n", ""},
			{"POST /x?host=", "Authorization: Basic cGxhaW46b3Blbg==\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Prefix: /evil\r\nContent-Length: 4\r\n", "body"},
			{"DELETE /x?host=a%20b", "Content-Length: 0\r\nX-Host: a b\r\nAuthorization: Basic eDp5\r\n", ""},
		} {
			head := request.line + " HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\n" + request.fields
			if diff := cmp.Diff(exchanged(t, f, head, request.body, false), exchanged(t, f, head, request.body, true)); diff != "" {
				t.Errorf("%s: %s: net/http's - and the lane's + differ:\n%s", name, request.line, diff)
			}
		}
	}
}

// The same of what filters of HTTPRoutes change, and of routes that look at more
// than the path.
func TestBothWaysFilterTheSame(t *testing.T) {
	for name, rule := range map[string]string{
		"request fields": "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: v}, {name: host, value: other.example}], add: [{name: X-Mine, value: more}, {name: X-Add, value: a}], remove: [x-gone]}}], " + to("a"),
		"answer fields":  "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Hide, value: v}], add: [{name: X-Add, value: a}], remove: [Location]}}], " + to("a"),
		"rewrite":        "matches: [{path: {type: PathPrefix, value: /x}}], filters: [{type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /y z}}}], " + to("a"),
		"redirect":       "filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example, statusCode: 302, path: {type: ReplaceFullPath, replaceFullPath: /n}}}]",
		"CORS":           "filters: [{type: CORS, cors: {allowOrigins: ['https://a.example'], allowMethods: [PUT], allowHeaders: [X-A]}}], " + to("a"),
		"matches":        "matches: [{method: GET, headers: [{name: X-Mine, value: a}], queryParams: [{name: q, value: '1'}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: v}]}}], " + to("a"),
		"no backend":     "backendRefs: [{name: none, port: 80}]",
		"several":        "backendRefs: [{name: a, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: v}]}}]}, {name: a, port: 80, weight: 0}]",
	} {
		w := newWorld(t, gw("gw", http80), httpRoute("r", "rules: [{"+rule+"}]"), httpRoute("z", "rules: [{matches: [{path: {type: PathPrefix, value: /}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Other, value: v}]}}], "+to("a")+"}]"))
		w.service("default", "a", 1)
		g := newGatewayFront(t, w, map[int]http.Handler{1: http.HandlerFunc(whatCame)})
		g.plain = g.at(80)
		for _, head := range []string{
			"GET /x/a%20b?q=1", "GET /x?q=2", "OPTIONS /x", "POST /x/y",
		} {
			head += " HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\nX-Mine: a\r\nX-Gone: b\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n"
			if diff := cmp.Diff(exchanged(t, g.front, head, "", false), exchanged(t, g.front, head, "", true)); diff != "" {
				t.Errorf("%s: %s: net/http's - and the lane's + differ:\n%s", name, head, diff)
			}
		}
	}
}

// Whatever ConfigMaps and patterns say, an endpoint gets one request and the
// client one answer, framed as they are.
func TestChangesDoNotReframe(t *testing.T) {
	f := newFront(t, Config{}, changed(t), map[int]http.Handler{1: http.HandlerFunc(whatCame)})
	c := dialFront(t, f.plain)
	for range 3 { // on one connection, so that anything left over is seen
		io.WriteString(c, "POST /a%20HTTP/1.1%0dHost:%20evil%26b HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\n\r\nbody")
		res, err := http.ReadResponse(c.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		got := res.Header.Get("X-Got")
		if err != nil || string(body) != "answer" || res.ContentLength != 6 || res.Header.Get("X-Split") != "" || res.Header.Get("X-More") == "" || res.Close {
			t.Errorf("the client got %v, %q, %v", res.Header, body, err)
		}
		if !strings.HasPrefix(got, "POST /y/a%20HTTP/1.1%0DHost:%20evil&b?z=a+HTTP/1.1%0DHost%3A+evil%26b inner.example ") || !strings.HasSuffix(got, "body") ||
			!strings.Contains(got, "Content-Length: 4,") || strings.Contains(got, "X-Split: 1,") && !strings.Contains(got, "X-Sent: 1  X-Split: 1,") {
			t.Errorf("the endpoint got %s", got)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.onLane) == 0 {
		t.Error("not on the lane")
	}
}

// A fault of ours costs the connection that had it, and no other.
func TestLaneSurvives(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1), map[int]http.Handler{1: echo})
	dial, broken := f.cfg.Dial, true
	f.cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if broken {
			broken = false
			panic("a broken invariant")
		}
		return dial(ctx, network, addr)
	}
	c := dialFront(t, f.plain)
	io.WriteString(c, plainGet)
	if _, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("got %v, want the connection's end", err)
	}
	if status, _ := dialFront(t, f.plain).ask(t, plainGet); status != 200 {
		t.Errorf("afterwards: got %d", status)
	}
}

// FuzzCompose: of a request that is for the lane, and of anything that a route
// might make of it, comes one request with that body, or none.
func FuzzCompose(f *testing.F) {
	f.Add([]byte(plainGet), "/y/$1?z=$1", "inner.example", "X-Set", "v")
	f.Add([]byte("POST /a%20b%0d%0a;v=1?x HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 3\r\nConnection: close\r\nX-A:\t b\x80 \r\n\r\nabc"), "/ $1\r\n?\r\n$1 ", "a b", "Content-Length", "1\r\nX: y")
	f.Add([]byte("PUT /a?b HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nContent-Length: 1\r\n\r\na"), "$1#", "", "X\r\n", "")
	server := NewServer(Config{})
	conn, _ := net.Pipe()
	f.Fuzz(func(t *testing.T, b []byte, rewrite, host, name, value string) {
		l := lane{Server: server, from: []byte("X-Real-Ip: 192.0.2.1\r\n"), conn: conn}
		if l.in.request(b) != plainForm || len(b) < l.in.size+int(l.in.length) {
			return
		}
		b = b[:l.in.size+int(l.in.length)]
		path, query, has := strings.Cut(string(l.in.target), "?")
		if has {
			query = "?" + query
		}
		path = cleanPath(path)
		o := &options{
			rewrite: rewrite, prefix: value, host: template{{text: host}},
			requestHeaders: http.Header{name: {value}}, requestEdits: &edits{add: []fieldValue{{name, value}}},
		}
		for _, o.basic = range []*basicAuth{nil, {}} {
			l.q = request{
				Server: l.Server, live: l.live.Load(), path: path, match: matchPath(path), host: matchHost(string(l.in.host)), client: netip.IPv6Loopback(),
				route: &route{options: o, pattern: regexp.MustCompile("(?i)^/(.*)"), backend: nobody}, backend: nobody,
			}
			l.buf = b
			for _, compose := range []func(string) error{l.compose, l.recompose} {
				if l.q.in = l.parsed(); l.q.in == nil {
					t.Fatalf("%q: net/http takes it for none", b)
				}
				if compose(query) != nil {
					continue
				}
				r := bufio.NewReader(bytes.NewReader(l.out))
				got, err := http.ReadRequest(r)
				if err != nil {
					t.Fatalf("%q became %q: %v", b, l.out, err)
				}
				body, err := io.ReadAll(got.Body)
				if err != nil || !bytes.Equal(body, b[l.in.size:]) || r.Buffered() > 0 || got.Method != string(l.in.method) || got.TransferEncoding != nil {
					t.Fatalf("%q became %q", b, l.out)
				}
				if _, err := url.ParseRequestURI(got.RequestURI); err != nil || strings.ContainsAny(got.RequestURI, " \r\n\t") {
					t.Fatalf("%q became %q", b, l.out)
				}
				if got.Host != host && got.Host != string(l.in.host) {
					t.Fatalf("%q became %q", b, l.out)
				}
			}
		}
	})
}
