package ingress

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

// annotated is an Ingress with annotations ("name: value", the prefix is added).
func annotated(doc string, annotations ...string) string {
	var b strings.Builder
	for _, a := range annotations {
		name, value, _ := strings.Cut(a, ": ")
		fmt.Fprintf(&b, "nginx.ingress.kubernetes.io/%s: %q, ", name, value)
	}
	return strings.Replace(doc, "namespace: ns}", "namespace: ns, annotations: {"+b.String()+"}}", 1)
}

// annotatedFront serves Ingress shop: host shop.example, path / to Service web
// (endpoint 1, echo), with these annotations. Services other, auth and err are
// endpoints 2 (echo), 3 and 4.
func annotatedFront(t *testing.T, more map[int]http.Handler, annotations ...string) *front {
	t.Helper()
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), annotations...))
	return frontOf(t, st, more)
}

func frontOf(t *testing.T, st *kube.State, more map[int]http.Handler) *front {
	t.Helper()
	for name, n := range map[string]int{"web": 1, "other": 2, "auth": 3, "err": 4} {
		withService(st, name, endpointAddr(n))
	}
	backends := map[int]http.Handler{1: tagged("web"), 2: tagged("other"), 3: tagged("auth"), 4: tagged("err")}
	for n, h := range more {
		backends[n] = h
	}
	st.ConfigMaps[kube.Name{Namespace: "ns", Name: "added"}] = &corev1.ConfigMap{Data: map[string]string{"X-Added": "1"}}
	st.Secrets[kube.Name{Namespace: "ns", Name: "users"}] = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "users"},
		Data: map[string][]byte{"auth": []byte("sha:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n" + // password
			"apr:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/\n" + // myPassword
			"bcrypt:$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga\n" + // allmine
			"plain:{PLAIN}open\n")},
	}
	return newFront(t, Config{}, st, backends)
}

// tagged is echo that says which Service it is.
func tagged(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Service", name)
		echo(w, r)
	})
}

// One row is one rule: what is asked, and what the answer has to be.
func TestAnnotations(t *testing.T) {
	hour := []string{"enable-cors: true", "cors-allow-origin: https://a.example, https://*.b.example"}
	deny := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Token") == "good" {
			w.Header().Set("X-Auth-User", "ada")
			return
		}
		w.WriteHeader(401)
	})
	for _, test := range []struct {
		name        string
		annotations []string
		target      string   // of http://shop.example
		fields      []string // of the request
		status      int
		want        []string // "Name: value" of the answer's header, else in its body; "!" not
	}{
		{"app-root", []string{"app-root: /start"}, "/", nil, 302, []string{"Location: http://shop.example/start"}},
		{"app-root is for / only", []string{"app-root: /start"}, "/x", nil, 200, []string{"GET /x "}},
		{"permanent-redirect", []string{"permanent-redirect: https://new.example"}, "/x", nil, 301, []string{"Location: https://new.example"}},
		{"permanent-redirect-code", []string{"permanent-redirect: https://new.example$request_uri", "permanent-redirect-code: 308"}, "/x?a=b", nil, 308, []string{"Location: https://new.example/x?a=b"}},
		{"temporal-redirect", []string{"temporal-redirect: https://new.example"}, "/x", nil, 302, []string{"Location: https://new.example"}},
		{"temporal wins over permanent", []string{"temporal-redirect: https://t.example", "permanent-redirect: https://p.example"}, "/x", nil, 302, []string{"Location: https://t.example"}},
		{"force-ssl-redirect without TLS", []string{"force-ssl-redirect: true"}, "/x", nil, 308, []string{"Location: https://shop.example/x"}},
		{"upstream-vhost", []string{"upstream-vhost: inner.example"}, "/", nil, 200, []string{"host: inner.example\n"}},
		{"whitelist-source-range", []string{"whitelist-source-range: 192.0.2.0/24"}, "/", nil, 403, nil},
		{"whitelist-source-range has the client", []string{"whitelist-source-range: 192.0.2.0/24, 127.0.0.1"}, "/", nil, 200, nil},
		{"denylist-source-range", []string{"denylist-source-range: 127.0.0.0/8"}, "/", nil, 403, nil},
		{"denylist-source-range of others", []string{"denylist-source-range: 192.0.2.0/24"}, "/", nil, 200, nil},
		{"a range that is none closes the Ingress", []string{"whitelist-source-range: everybody"}, "/", nil, 503, nil},

		{"auth-type basic without a password", []string{"auth-type: basic", "auth-secret: users", "auth-realm: Staff"}, "/", nil, 401, []string{`Www-Authenticate: Basic realm="Staff"`}},
		{"auth-type basic, SHA", []string{"auth-type: basic", "auth-secret: users"}, "/", []string{"Authorization: Basic c2hhOnBhc3N3b3Jk"}, 200, nil},
		{"auth-type basic, MD5", []string{"auth-type: basic", "auth-secret: users"}, "/", []string{"Authorization: Basic YXByOm15UGFzc3dvcmQ="}, 200, nil},
		{"auth-type basic, bcrypt", []string{"auth-type: basic", "auth-secret: ns/users"}, "/", []string{"Authorization: Basic YmNyeXB0OmFsbG1pbmU="}, 200, nil},
		{"auth-type basic, a wrong password", []string{"auth-type: basic", "auth-secret: users"}, "/", []string{"Authorization: Basic c2hhOnNlY3JldA=="}, 401, nil},
		{"auth-type basic, nobody", []string{"auth-type: basic", "auth-secret: users"}, "/", []string{"Authorization: Basic bm9ib2R5OnBhc3N3b3Jk"}, 401, nil},
		{"auth-type basic without its Secret", []string{"auth-type: basic", "auth-secret: gone"}, "/", nil, 503, nil},
		{"auth-secret of another namespace", []string{"auth-type: basic", "auth-secret: elsewhere/users"}, "/", nil, 503, nil},
		{"auth-type digest", []string{"auth-type: digest", "auth-secret: users"}, "/", nil, 503, nil},

		{"auth-url refuses", []string{"auth-url: http://auth.ns.svc.cluster.local/check"}, "/", nil, 401, nil},
		{"auth-url grants", []string{"auth-url: http://auth/check", "auth-response-headers: X-Auth-User"}, "/", []string{"X-Token: good", "X-Auth-User: root"}, 200, []string{"X-Auth-User: ada\r\n", "!root"}},
		{"auth-signin", []string{"auth-url: http://auth.ns/check", "auth-signin: https://login.example/start"}, "/x?y=1", nil, 302,
			[]string{"Location: https://login.example/start?rd=http%3A%2F%2Fshop.example%2Fx%3Fy%3D1"}},
		{"auth-url that leads out", []string{"auth-url: http://outside.example.com.invalid/"}, "/", nil, 503, nil},

		{"enable-cors", []string{"enable-cors: true"}, "/", nil, 200, []string{"Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true", "Access-Control-Max-Age: 1728000",
			"Access-Control-Allow-Methods: GET, PUT, POST, DELETE, PATCH, OPTIONS"}},
		{"cors-allow-origin", hour, "/", []string{"Origin: https://a.example"}, 200, []string{"Access-Control-Allow-Origin: https://a.example"}},
		{"cors-allow-origin with a wildcard", hour, "/", []string{"Origin: https://x.b.example"}, 200, []string{"Access-Control-Allow-Origin: https://x.b.example"}},
		{"cors-allow-origin: a wildcard is one label", hour, "/", []string{"Origin: https://x.y.b.example"}, 200, []string{"!Access-Control-Allow-Origin"}},
		{"cors-allow-origin of others", hour, "/", []string{"Origin: https://evil.example/.b.example"}, 200, []string{"!Access-Control-Allow-Origin"}},
		{"cors-expose-headers and no credentials", []string{"enable-cors: true", "cors-expose-headers: X-A", "cors-allow-credentials: false"}, "/", nil, 200,
			[]string{"Access-Control-Expose-Headers: X-A", "!Access-Control-Allow-Credentials"}},

		{"x-forwarded-prefix goes with rewrite-target", []string{"rewrite-target: /y", "x-forwarded-prefix: /p"}, "/x", nil, 200, []string{"X-Forwarded-Prefix: /p", "GET /y "}},
		{"affinity", []string{"affinity: cookie", "session-cookie-name: route", "session-cookie-max-age: 60", "session-cookie-samesite: Lax"}, "/", nil, 200,
			[]string{"Set-Cookie: route=", "Max-Age=60", "HttpOnly", "SameSite=Lax", "Path=/"}},
		{"proxy-body-size does not mind small ones", []string{"proxy-body-size: 1k"}, "/", nil, 200, nil},
		{"default-backend", []string{"default-backend: other"}, "/", nil, 200, []string{"X-Service: web"}},
		{"what clients of other origins are told with a refusal", []string{"enable-cors: true", "auth-type: basic", "auth-secret: users"}, "/", []string{"Origin: https://a.example"}, 401,
			[]string{"Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true", "Www-Authenticate: Basic"}},
		{"and with a redirect", []string{"enable-cors: true", "permanent-redirect: https://new.example"}, "/", []string{"Origin: https://a.example"}, 301, []string{"Access-Control-Allow-Origin: *", "Location: https://new.example"}},
		{"and to sign in", []string{"enable-cors: true", "auth-url: http://auth.ns/check", "auth-signin: https://login.example/"}, "/", []string{"Origin: https://a.example"}, 302, []string{"Access-Control-Allow-Origin: *"}},
		{"an origin that is not let in is told nothing", append(hour, "whitelist-source-range: 192.0.2.0/24"), "/", []string{"Origin: https://evil.example"}, 403, []string{"!Access-Control-Allow-Origin"}},
		{"custom-headers of a refusal", []string{"custom-headers: added", "whitelist-source-range: 192.0.2.0/24"}, "/", nil, 403, []string{"X-Added: 1"}},
		{"settings of buffers that there are none of", []string{"proxy-buffer-size: 8k", "proxy-buffers-number: 4", "proxy-busy-buffers-size: 16k", "proxy-max-temp-file-size: 1024m", "client-body-buffer-size: 1M",
			"proxy-http-version: 1.1", "http2-push-preload: true", "connection-proxy-header: keep-alive"}, "/", nil, 200, []string{"X-Service: web"}},
		{"the podgate.dev prefix wins", []string{"temporal-redirect: https://new.example"}, "/x", nil, 302, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := annotatedFront(t, map[int]http.Handler{3: deny}, test.annotations...)
			got, body := get(t, client(t, f.plain), "http://shop.example"+test.target, test.fields...)
			if got.StatusCode != test.status {
				t.Errorf("got %d, want %d: %s", got.StatusCode, test.status, body)
			}
			var head strings.Builder
			got.Header.Write(&head)
			all := strings.ReplaceAll(head.String(), "\r\n", "\n") + body
			for _, want := range test.want {
				if not, ok := strings.CutPrefix(want, "!"); ok == strings.Contains(all, cutPrefix(want, not, ok)) {
					t.Errorf("want %q in\n%s", want, all)
				}
			}
		})
	}
}

func cutPrefix(with, without string, cut bool) string {
	if cut {
		return without
	}
	return with
}

func TestUnusableAnnotationsAreReported(t *testing.T) {
	for annotation, want := range map[string]string{
		"enable-rewrite-log: true":            "has no effect: podgate does not have this",
		"server-snippet: x":                   "has no effect: podgate reads none of nginx's own configuration",
		"enable-modsecurity: true":            "has no effect: podgate has no web application firewall, requests are not inspected",
		"enable-opentelemetry: true":          "has no effect: podgate makes no spans; what comes in traceparent and the like is passed on",
		"proxy-http-version: 1.0":             `podgate does not have "1.0": 1.1`,
		"connection-proxy-header: close":      `podgate does not have "close": keep-alive`,
		"proxy-buffering: on":                 "has no effect: bodies are passed on as they come",
		"proxy-buffer-size: large":            `"large" is not a size in bytes`,
		"proxy-ssl-ciphers: RC4-MD5":          `podgate speaks none of "RC4-MD5"`,
		"limit-rate: fast":                    `"fast" is not a number`,
		"server-alias: ~(":                    "error parsing regexp: missing closing ): `(?i)(`",
		"proxy-body-size: huge":               `"huge" is not a size in bytes`,
		"proxy-read-timeout: soon":            `"soon" is not a number of seconds`,
		"ssl-redirect: perhaps":               `"perhaps" is neither true nor false`,
		"backend-protocol: FCGI":              `podgate does not speak "FCGI" to endpoints: HTTP, HTTPS, GRPC or GRPCS`,
		"custom-http-errors: 404,2":           `"2" is not a status from 300 to 599`,
		"load-balance: ip_hash":               `podgate does not have "ip_hash": round_robin or ewma`,
		"upstream-hash-by: $geoip_country":    `podgate does not have the variable "$geoip_country"`,
		"proxy-next-upstream: error http_599": `"http_599" is no condition that podgate has`,
		"default-backend: gone":               `no Service "gone" in namespace "ns"`,
		"mirror-target: http://gone/":         `no Service "gone" in namespace "ns"`,
		"custom-headers: ns/gone":             `no ConfigMap "gone" in namespace "ns"`,
		"auth-tls-secret: gone":               `no Secret "gone" in namespace "ns"`,
		"permanent-redirect: javascript:x()":  `"javascript:x()" is not a URL of http or https`,
		"canary: true":                        "ignored: a canary, and no other Ingress has this host and path",
	} {
		st := state(t, annotated(ingress("i", "t.example|Prefix|/|s"), annotation))
		withService(st, "s")
		_, problems := Compile(nil, st, Config{})
		if got := notes(problems); !strings.HasSuffix(got, ": "+want) || !strings.HasPrefix(got, "ns/i: ") || strings.Contains(got, "\n") {
			t.Errorf("%s: got %q, want %q", annotation, got, want)
		}
	}
}

// On a host where one path is a pattern all are, whatever Ingress they are of,
// the longest first and in any case.
func TestRewriteTargetAndUseRegex(t *testing.T) {
	st := state(t,
		annotated(ingress("rewritten", "shop.example|ImplementationSpecific|/api(/(.*))?$|web"), "rewrite-target: /v2/$2"),
		annotated(ingress("pattern", "shop.example|ImplementationSpecific|/item/[0-9]+$|other"), "use-regex: true"),
		ingress("neighbour", "shop.example|Exact|/plain|auth", "other.example|Exact|/plain|auth"),
		annotated(ingress("broken", "shop.example|ImplementationSpecific|/(|err"), "use-regex: true"))
	f := frontOf(t, st, nil)
	c := client(t, f.plain)
	for target, want := range map[string]string{
		"shop.example/api/a/b?x=1": "web GET /v2/a/b?x=1 ",
		"shop.example/API/a":       "web GET /v2/a ",
		"shop.example/api":         "web GET /v2/ ",
		"shop.example/apis":        "404",
		"shop.example/api/a%20b":   "web GET /v2/a%20b ",
		"shop.example/api/a%3Fb":   "web GET /v2/a%3Fb ",
		"shop.example/item/12":     "other GET /item/12 ",
		"shop.example/item/x":      "404",
		"shop.example/PLAIN/more":  "auth GET /PLAIN/more ",
		"other.example/PLAIN":      "404",
		"other.example/plain":      "auth GET /plain ",
	} {
		answer, body := get(t, c, "http://"+target)
		got := answer.Header.Get("X-Service") + " " + body
		if answer.StatusCode != 200 {
			got = fmt.Sprint(answer.StatusCode)
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", target, got, want)
		}
	}
	_, problems := Compile(nil, st, Config{})
	if got := notes(problems); !strings.Contains(got, "ns/broken: spec.rules[0].http.paths[0].path: ignored: error parsing regexp") {
		t.Errorf("the broken pattern is not reported: %s", got)
	}
}

func TestCanary(t *testing.T) {
	front := func(annotations ...string) *http.Client {
		st := state(t, ingress("main", "shop.example|Prefix|/|web"), annotated(ingress("next", "shop.example|Prefix|/|other"), append(annotations, "canary: true")...))
		return client(t, frontOf(t, st, nil).plain)
	}
	for _, test := range []struct {
		annotations []string
		field, want string
	}{
		{[]string{"canary-weight: 0"}, "", "web"},
		{[]string{"canary-weight: 100"}, "", "other"},
		{[]string{"canary-weight: 1000", "canary-weight-total: 1000"}, "", "other"},
		{[]string{"canary-weight: 0", "canary-by-header-value: blue"}, "X-Next: blue", "web"},
		{[]string{"canary-by-header: X-Next", "canary-by-header-pattern: ["}, "X-Next: always", "web"},
		{[]string{"canary-by-header: X-Next", "canary-by-cookie: next"}, "X-Next: never\nCookie: next=always", "web"},
		{[]string{"canary-by-header: X-Next"}, "X-Next: always", "other"},
		{[]string{"canary-by-header: X-Next", "canary-weight: 100"}, "X-Next: never", "web"},
		{[]string{"canary-by-header: X-Next", "canary-weight: 100"}, "X-Next: whatever", "other"},
		{[]string{"canary-by-header: X-Next", "canary-by-header-value: blue"}, "X-Next: blue", "other"},
		{[]string{"canary-by-header: X-Next", "canary-by-header-value: blue"}, "X-Next: always", "web"},
		{[]string{"canary-by-header: X-Next", "canary-by-header-pattern: ^b.*e$"}, "X-Next: blue", "other"},
		{[]string{"canary-by-cookie: next"}, "Cookie: next=always", "other"},
		{[]string{"canary-by-cookie: next", "canary-weight: 100"}, "Cookie: next=never", "web"},
		{[]string{"canary-by-header: X-Next", "canary-by-cookie: next"}, "Cookie: next=always", "other"},
	} {
		fields := strings.Split(test.field, "\n")
		if test.field == "" {
			fields = nil
		}
		if answer, _ := get(t, front(test.annotations...), "http://shop.example/", fields...); answer.Header.Get("X-Service") != test.want {
			t.Errorf("%v with %q: got %s, want %s", test.annotations, test.field, answer.Header.Get("X-Service"), test.want)
		}
	}
	c, count := front("canary-weight: 30"), 0
	for range 400 {
		if answer, _ := get(t, c, "http://shop.example/"); answer.Header.Get("X-Service") == "other" {
			count++
		}
	}
	if count < 60 || count > 180 { // 120 expected, ten standard deviations at least
		t.Errorf("%d of 400 were the canary's, want about 120", count)
	}
}

func TestCanariesAreBalancedAsTheOthersSay(t *testing.T) {
	st := state(t, ingress("main", "t.example|Prefix|/|s"), annotated(ingress("next", "t.example|Prefix|/|s"), "canary: true", "upstream-hash-by: $request_uri"))
	withService(st, "s")
	_, problems := Compile(nil, st, Config{})
	want := "ns/next: metadata.annotations[nginx.ingress.kubernetes.io/upstream-hash-by]: has no effect on a canary: what the other Ingress says counts"
	if got := notes(problems); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPreflight(t *testing.T) {
	f := annotatedFront(t, nil, "enable-cors: true", "force-ssl-redirect: true", "auth-type: basic", "auth-secret: users")
	req, _ := http.NewRequestWithContext(t.Context(), "OPTIONS", "http://shop.example/", nil)
	if answer, _ := do(t, client(t, f.plain), req); answer.StatusCode != 204 || answer.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("got %d %v", answer.StatusCode, answer.Header)
	}
}

func TestServerAliasAndWWW(t *testing.T) {
	f := annotatedFront(t, nil, `server-alias: a.example, *.b.example, ~^v[0-9]+\.c\.example$`, "from-to-www-redirect: true")
	c := client(t, f.plain)
	if answer, _ := get(t, c, "http://vx.c.example/"); answer.StatusCode != 404 {
		t.Errorf("vx.c.example: got %d", answer.StatusCode)
	}
	for _, host := range []string{"a.example", "x.b.example", "v12.c.example", "V1.C.example:80"} {
		if answer, _ := get(t, c, "http://"+host+"/"); answer.StatusCode != 200 {
			t.Errorf("%s: got %d", host, answer.StatusCode)
		}
	}
	if answer, _ := get(t, c, "http://www.shop.example/x?y"); answer.StatusCode != 308 || answer.Header.Get("Location") != "http://shop.example/x?y" {
		t.Errorf("www: got %d %v", answer.StatusCode, answer.Header)
	}
}

func TestBodySize(t *testing.T) {
	f := annotatedFront(t, nil, "proxy-body-size: 1k")
	for what, body := range map[string]io.Reader{"with a length": strings.NewReader(strings.Repeat("x", 1025)), "chunked": io.MultiReader(strings.NewReader(strings.Repeat("x", 1025)))} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example/", body)
		if answer, _ := do(t, client(t, f.plain), req); answer.StatusCode != 413 {
			t.Errorf("%s: got %d, want 413", what, answer.StatusCode)
		}
	}
}

func TestReadTimeout(t *testing.T) {
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			io.WriteString(w, "begin")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	f := annotatedFront(t, map[int]http.Handler{1: slow}, "proxy-read-timeout: 50ms", "proxy-next-upstream: off")
	c := client(t, f.plain)
	if answer, _ := get(t, c, "http://shop.example/header"); answer.StatusCode != 504 {
		t.Errorf("header: got %d, want 504", answer.StatusCode)
	}
	answer, err := c.Get("http://shop.example/body")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.ReadAll(answer.Body); err == nil {
		t.Error("a body that stopped was taken for complete")
	}
}

func TestNextUpstream(t *testing.T) {
	fails := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	for _, test := range []struct {
		annotations []string
		method      string
		want        int
	}{
		{nil, "GET", 503},
		{[]string{"proxy-next-upstream: error http_503"}, "GET", 200},
		{[]string{"proxy-next-upstream: error http_503"}, "POST", 503},
		{[]string{"proxy-next-upstream: error http_503 non_idempotent"}, "POST", 200},
		{[]string{"proxy-next-upstream: http_503", "proxy-next-upstream-tries: 1"}, "GET", 503},
		{[]string{"proxy-next-upstream: off"}, "GET", 503},
	} {
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), test.annotations...))
		withService(st, "web", endpointAddr(1), endpointAddr(2))
		f := newFront(t, Config{}, st, map[int]http.Handler{1: fails, 2: echo})
		req, _ := http.NewRequestWithContext(t.Context(), test.method, "http://shop.example/", nil)
		if answer, _ := do(t, client(t, f.plain), req); answer.StatusCode != test.want {
			t.Errorf("%v %s: got %d, want %d", test.annotations, test.method, answer.StatusCode, test.want)
		}
	}
}

func TestLimits(t *testing.T) {
	l := &limit{limits: limits{rps: 2, burst: 2, connections: 1, rateStatus: 429, status: 503}, clients: map[netip.Addr]*usage{}}
	a, now := netip.MustParseAddr("192.0.2.1"), time.Unix(0, 0)
	take := func(now time.Time) int {
		done, status := l.take(a, now)
		if done != nil {
			done()
		}
		return status
	}
	for i, want := range []int{0, 0, 0, 0, 0, 429} { // one, and four more that the burst allows
		if got := take(now); got != want {
			t.Errorf("request %d: got %d, want %d", i, got, want)
		}
	}
	if got := take(now.Add(500 * time.Millisecond)); got != 0 {
		t.Errorf("after half a second: got %d, want one to pass", got)
	}
	later := now.Add(time.Minute)
	done, status := l.take(a, later)
	if _, second := l.take(a, later); status != 0 || second != 503 {
		t.Errorf("connections: got %d then %d, want 0 then 503", status, second)
	}
	done()
	if got := take(later); got != 0 {
		t.Errorf("after the first ended: got %d", got)
	}

	f := annotatedFront(t, nil, "limit-rps: 1", "limit-burst-multiplier: 1")
	c, refused := client(t, f.plain), 0
	for range 5 {
		if answer, _ := get(t, c, "http://shop.example/"); answer.StatusCode == 503 {
			refused++
		}
	}
	if refused < 2 {
		t.Errorf("%d of 5 were refused, want 3 (2 if a second passed)", refused)
	}
}

func TestAffinityAndHash(t *testing.T) {
	three := func(annotations ...string) *front {
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), annotations...))
		withService(st, "web", endpointAddr(1), endpointAddr(2), endpointAddr(3))
		return newFront(t, Config{}, st, map[int]http.Handler{1: named("one"), 2: named("two"), 3: named("three")})
	}
	c := client(t, three("affinity: cookie").plain)
	answer, first := get(t, c, "http://shop.example/")
	cookie, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
	for range 6 {
		if answer, body := get(t, c, "http://shop.example/", "Cookie: "+cookie); body != first || answer.Header.Get("Set-Cookie") != "" {
			t.Errorf("got %s, want %s and no new cookie", body, first)
		}
	}
	if answer, _ := get(t, c, "http://shop.example/", "Cookie: INGRESSCOOKIE=gone"); answer.Header.Get("Set-Cookie") == "" {
		t.Error("a cookie that leads nowhere was not replaced")
	}
	c = client(t, three("upstream-hash-by: $arg_user").plain)
	seen := map[string]bool{}
	for i := range 20 {
		target := fmt.Sprintf("http://shop.example/?user=%d", i)
		_, once := get(t, c, target)
		_, twice := get(t, c, target)
		if seen[once] = true; once != twice {
			t.Errorf("user %d: %s then %s", i, once, twice)
		}
	}
	if len(seen) != 3 {
		t.Errorf("20 keys went to %v only", seen)
	}
}

func TestEjection(t *testing.T) {
	f := newFront(t, Config{}, shop(t, 1, 2), map[int]http.Handler{1: named("one")})
	c := client(t, f.plain)
	for range 20 {
		if answer, _ := get(t, c, "http://shop.example/"); answer.StatusCode != 200 {
			t.Errorf("got %d", answer.StatusCode)
		}
	}
	if n := f.dials(2); n != ejectAfter {
		t.Errorf("a dead endpoint was tried %d times, want %d", n, ejectAfter)
	}
}

func TestCustomErrors(t *testing.T) {
	missing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) })
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(410)
		fmt.Fprintf(w, "%s %s %s %s %s %s", r.Method, r.URL.Path, r.Header.Get("X-Code"), r.Header.Get("X-Original-Uri"), r.Header.Get("X-Ingress-Name"), r.Header.Get("X-Service-Name"))
	})
	f := annotatedFront(t, map[int]http.Handler{1: missing, 4: page}, "custom-http-errors: 404,403", "default-backend: err")
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example/x?y", strings.NewReader("body"))
	if answer, body := do(t, client(t, f.plain), req); answer.StatusCode != 410 || body != "GET / 404 /x?y shop web" {
		t.Errorf("got %d %q", answer.StatusCode, body)
	}
}

func TestDefaultBackendStandsIn(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|empty"), "default-backend: other"))
	withService(st, "empty")
	if answer, body := get(t, client(t, frontOf(t, st, nil).plain), "http://shop.example/x"); answer.Header.Get("X-Service") != "other" || !strings.HasPrefix(body, "GET /x ") {
		t.Errorf("got %d %s", answer.StatusCode, body)
	}
}

func TestMirror(t *testing.T) {
	got := make(chan string, 1)
	copied := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- r.Method + " " + r.RequestURI + " " + r.Host + " " + string(body)
	})
	f := annotatedFront(t, map[int]http.Handler{2: copied}, "mirror-target: http://other.ns.svc$request_uri", "mirror-host: copy.example")
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example/x?y", strings.NewReader("body"))
	if answer, body := do(t, client(t, f.plain), req); answer.Header.Get("X-Service") != "web" || !strings.HasSuffix(body, "body") {
		t.Errorf("the original: got %s", body)
	}
	select {
	case s := <-got:
		if s != "POST /x?y copy.example body" {
			t.Errorf("the copy: got %q", s)
		}
	case <-time.After(time.Minute):
		t.Error("no copy came")
	}
}

func TestConfigMapIsForAllIngresses(t *testing.T) {
	st := state(t, ingress("shop", "shop.example|Prefix|/|web"), annotated(ingress("mine", "mine.example|Prefix|/|web"), "whitelist-source-range: 127.0.0.1"))
	of := kube.Name{Namespace: "ingress-nginx", Name: "ingress-nginx-controller"}
	st.ConfigMaps[of] = &corev1.ConfigMap{Data: map[string]string{"whitelist-source-range": "192.0.2.1", "worker-processes": "4", "add-headers": "ns/more"}}
	st.ConfigMaps[kube.Name{Namespace: "ns", Name: "more"}] = &corev1.ConfigMap{Data: map[string]string{"X-More": "yes"}}
	f := frontOf(t, st, nil)
	c := client(t, f.plain)
	if answer, _ := get(t, c, "http://shop.example/"); answer.StatusCode != 403 {
		t.Errorf("the ConfigMap's range: got %d, want 403", answer.StatusCode)
	}
	if answer, _ := get(t, c, "http://mine.example/"); answer.StatusCode != 200 || answer.Header.Get("X-More") != "yes" {
		t.Errorf("an Ingress's own range: got %d %v", answer.StatusCode, answer.Header)
	}
	_, problems := Compile(nil, st, Config{})
	if got := notes(problems); got != "ingress-nginx/ingress-nginx-controller: data[worker-processes]: has no effect: podgate does not have this" {
		t.Errorf("got %s", got)
	}
}

// authority signs certificates for these tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key}
}

func (a *authority) issue(t *testing.T, cn string, names ...string) tls.Certificate {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn}, DNSNames: names, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) secret(st *kube.State, name string) {
	st.Secrets[kube.Name{Namespace: "ns", Name: name}] = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Data:       map[string][]byte{"ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})},
	}
}

func TestClientCertificates(t *testing.T) {
	root, stranger := newAuthority(t), newAuthority(t)
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "auth-tls-secret: ns/ca", "auth-tls-pass-certificate-to-upstream: true", "auth-tls-match-cn: CN=ada|bob"),
		ingress("open", "open.example|Prefix|/|web"))
	root.secret(st, "ca")
	f := frontOf(t, st, nil)
	ask := func(host string, certs ...tls.Certificate) (int, string) {
		answer, body := get(t, client(t, f.tls, func(tr *http.Transport) {
			tr.TLSClientConfig.ServerName, tr.TLSClientConfig.Certificates = host, certs
		}), "https://shop.example/")
		return answer.StatusCode, body
	}
	if status, body := ask("shop.example", root.issue(t, "ada")); status != 200 || !strings.Contains(body, "Ssl-Client-Verify: SUCCESS") || !strings.Contains(body, "Ssl-Client-Cert: -----BEGIN%20CERTIFICATE") {
		t.Errorf("a good certificate: got %d %s", status, body)
	}
	for what, got := range map[string]func() (int, string){
		"none":                func() (int, string) { return ask("shop.example") },
		"a stranger's":        func() (int, string) { return ask("shop.example", stranger.issue(t, "ada")) },
		"another name in TLS": func() (int, string) { return ask("open.example", root.issue(t, "ada")) },
		"plain HTTP has none": func() (int, string) {
			a, b := get(t, client(t, f.plain), "http://shop.example/")
			return a.StatusCode, b
		},
	} {
		if status, _ := got(); status != 400 {
			t.Errorf("%s: got %d, want 400", what, status)
		}
	}
	if status, _ := ask("shop.example", root.issue(t, "eve")); status != 403 {
		t.Errorf("another subject: got %d, want 403", status)
	}
}

func TestTLSToEndpoints(t *testing.T) {
	root := newAuthority(t)
	pod := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %q", r.Proto, r.TLS.ServerName) }))
	pod.TLS = &tls.Config{Certificates: []tls.Certificate{root.issue(t, "pod", "pod.example")}}
	pod.EnableHTTP2, pod.Config.ErrorLog = true, unheard
	pod.StartTLS()
	t.Cleanup(pod.Close)
	for _, test := range []struct {
		annotations []string
		status      int
		body        string
	}{
		{[]string{"backend-protocol: HTTPS"}, 200, `HTTP/1.1 ""`},
		{[]string{"backend-protocol: GRPCS"}, 200, `HTTP/2.0 ""`},
		{[]string{"backend-protocol: HTTPS", "proxy-ssl-secret: ns/ca", "proxy-ssl-verify: on", "proxy-ssl-name: pod.example", "proxy-ssl-server-name: on"}, 200, `HTTP/1.1 "pod.example"`},
		{[]string{"backend-protocol: HTTPS", "proxy-ssl-secret: ns/ca", "proxy-ssl-verify: on", "proxy-ssl-name: other.example"}, 502, ""},
		{[]string{"backend-protocol: HTTPS", "proxy-ssl-secret: ns/gone", "proxy-ssl-verify: on"}, 503, ""},
	} {
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), test.annotations...))
		withService(st, "web", endpointAddr(1))
		root.secret(st, "ca")
		f := newFront(t, Config{}, st, nil)
		f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, pod.Listener.Addr().String())
		}
		if answer, body := get(t, client(t, f.plain), "http://shop.example/"); answer.StatusCode != test.status || test.body != "" && body != test.body {
			t.Errorf("%v: got %d %s, want %d %s", test.annotations, answer.StatusCode, body, test.status, test.body)
		}
	}
}

func TestPassthrough(t *testing.T) {
	pod := httptest.NewUnstartedServer(named("pod"))
	pod.Config.ErrorLog = unheard
	pod.StartTLS()
	t.Cleanup(pod.Close)
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "ssl-passthrough: true"), ingress("other", "other.example|Prefix|/|web"))
	withService(st, "web", endpointAddr(1))
	f := newFront(t, Config{}, st, nil)
	f.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, pod.Listener.Addr().String())
	}
	for host, want := range map[string]string{"shop.example": pod.Certificate().Subject.String(), "other.example": "CN=podgate self-signed fallback,O=podgate"} {
		answer, _ := get(t, client(t, f.tls), "https://"+host+"/")
		if got := answer.TLS.PeerCertificates[0].Subject.String(); got != want {
			t.Errorf("%s: the certificate is %s, want %s", host, got, want)
		}
	}
}

func TestTemplates(t *testing.T) {
	in, _ := http.ReadRequest(bufio.NewReader(strings.NewReader("GET /a%20b?x=1&y=2 HTTP/1.1\r\nHost: Shop.example:80\r\nX-User: ada\r\nCookie: c=d\r\n\r\n")))
	q := &request{Server: NewServer(Config{}), in: in, host: "shop.example", match: matchPath("/a%20b"), client: netip.MustParseAddr("192.0.2.1"), requestID: "id"}
	for text, want := range map[string]string{
		"$request_uri":                  "/a%20b?x=1&y=2",
		"$uri$is_args$args":             "/a b?x=1&y=2",
		"${scheme}://$http_host-$host":  "http://Shop.example:80-shop.example",
		"$http_x_user:$cookie_c:$arg_y": "ada:d:2",
		"$remote_addr/$request_method":  "192.0.2.1/GET",
		"plain":                         "plain",
		"$escaped_request_uri":          url.QueryEscape("/a%20b?x=1&y=2"),
	} {
		tpl, err := compileTemplate(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := tpl.String(q); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{"$nothing", "${host", "$"} {
		if _, err := compileTemplate(text); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func TestAccessRecordsAndMetrics(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "auth-type: basic", "auth-secret: users"), annotated(ingress("quiet", "quiet.example|Prefix|/|web"), "enable-access-log: false"))
	f := frontOf(t, st, nil)
	records := make(chan Access, 10)
	f.cfg.AccessLog = func(a Access) { records <- a }
	c := client(t, f.plain)
	get(t, c, "http://quiet.example/")
	get(t, c, "http://shop.example/x", "Authorization: Basic c2hhOnBhc3N3b3Jk", "User-Agent: a \"b\"")
	r := <-records
	if r.Host != "shop.example" || r.Status != 200 || r.User != "sha" || r.Upstream != "192.0.2.1:80" || r.Ingress != "ns/shop" || r.Service != "ns/web" || r.Bytes == 0 || r.ID == "" {
		t.Errorf("got %+v", r)
	}
	if line := r.String(); strings.ContainsAny(line, "\n\x01") || !strings.Contains(line, `"GET /x HTTP/1.1" 200 `) || !strings.Contains(line, `"a \"b\"`) {
		t.Errorf("got %s", line)
	}
	want := []string{
		`nginx_ingress_controller_requests{ingress="shop",namespace="ns",service="web",method="GET",status="200"} 1`,
		`nginx_ingress_controller_request_duration_seconds_count{ingress="quiet",namespace="ns",service="web"} 1`,
		`nginx_ingress_controller_request_duration_seconds_bucket{ingress="shop",namespace="ns",service="web",le="+Inf"} 1`,
		"podgate_ingress_requests_total 2",
	}
	// A request is counted when its answer has been written: the client may know it before.
	for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Millisecond) {
		var b strings.Builder
		if err := f.WriteMetrics(&b); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(b.String(), "\n")
		missing := slices.IndexFunc(want, func(l string) bool { return !slices.Contains(lines, l) })
		if missing < 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line %s in\n%s", want[missing], b.String())
		}
	}
}
