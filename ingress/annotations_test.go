package ingress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

// app-root is the host's, not the path's, and goes before its rules.
func TestAppRootNeedsNoRuleForTheRoot(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/app|web"), "app-root: /app"))
	c := client(t, frontOf(t, st, nil).plain)
	if answer, _ := get(t, c, "http://shop.example/"); answer.StatusCode != 302 || answer.Header.Get("Location") != "http://shop.example/app" {
		t.Errorf("got %d %v", answer.StatusCode, answer.Header)
	}
	if answer, _ := get(t, c, "http://shop.example/other"); answer.StatusCode != 404 {
		t.Errorf("another path: got %d", answer.StatusCode)
	}
}

// With satisfy any, one of addresses, password and auth-url is enough.
func TestSatisfy(t *testing.T) {
	const password = "Authorization: Basic c2hhOnBhc3N3b3Jk"
	here, elsewhere := "whitelist-source-range: 127.0.0.1", "whitelist-source-range: 192.0.2.0/24"
	basic := []string{"auth-type: basic", "auth-secret: users"}
	for _, test := range []struct {
		satisfy string
		ranges  string
		field   string
		want    int
	}{
		{"all", here, "", 401},
		{"all", here, password, 200},
		{"all", elsewhere, password, 403},
		{"any", here, "", 200},
		{"any", elsewhere, password, 200},
		{"any", elsewhere, "", 401},
	} {
		var fields []string
		if test.field != "" {
			fields = []string{test.field}
		}
		f := annotatedFront(t, nil, append(basic, test.ranges, "satisfy: "+test.satisfy)...)
		if answer, _ := get(t, client(t, f.plain), "http://shop.example/", fields...); answer.StatusCode != test.want {
			t.Errorf("%s, %s, %q: got %d, want %d", test.satisfy, test.ranges, test.field, answer.StatusCode, test.want)
		}
	}
}

// The name and password were for us: the endpoint does not see them.
func TestBasicCredentialsStayHere(t *testing.T) {
	f := annotatedFront(t, nil, "auth-type: basic", "auth-secret: users")
	if _, body := get(t, client(t, f.plain), "http://shop.example/", "Authorization: Basic c2hhOnBhc3N3b3Jk"); strings.Contains(body, "Authorization") {
		t.Errorf("the endpoint got %s", body)
	}
}

// auth-cache-key: who was asked is not asked again while the answer is valid.
func TestAuthCache(t *testing.T) {
	var asked atomic.Int64
	check := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("X-Auth-User", "ada")
		if r.Header.Get("X-Token") != "good" {
			w.WriteHeader(401)
		}
	})
	f := annotatedFront(t, map[int]http.Handler{3: check}, "auth-url: http://auth/check", "auth-cache-key: $http_x_token", "auth-cache-duration: 200 1h, 401 0s",
		"auth-response-headers: X-Auth-User")
	c := client(t, f.plain)
	for range 3 {
		if answer, body := get(t, c, "http://shop.example/", "X-Token: good"); answer.StatusCode != 200 || !strings.Contains(body, "X-Auth-User: ada") {
			t.Errorf("got %d %s", answer.StatusCode, body)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	for range 2 {
		if answer, _ := get(t, c, "http://shop.example/", "X-Token: bad"); answer.StatusCode != 401 {
			t.Errorf("got %d, want 401", answer.StatusCode)
		}
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times, want 3: refusals are not kept", n)
	}
}

// What auth-url leads to may be a path of the same host, as oauth2-proxy is set up.
func TestAuthURLOfTheSameHost(t *testing.T) {
	check := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/oauth2/auth" || r.Header.Get("X-Original-Url") != "http://shop.example/x?y" {
			w.WriteHeader(500)
			return
		}
		if r.Header.Get("Cookie") != "session=1" {
			w.WriteHeader(401)
		}
	})
	st := state(t,
		annotated(ingress("shop", "shop.example|Prefix|/|web"), "auth-url: https://$host/oauth2/auth", "auth-signin: https://$host/oauth2/start?rd=$escaped_request_uri"),
		ingress("oauth2", "shop.example|Prefix|/oauth2|auth"))
	c := client(t, frontOf(t, st, map[int]http.Handler{3: check}).plain)
	if answer, body := get(t, c, "http://shop.example/x?y", "Cookie: session=1"); answer.StatusCode != 200 {
		t.Errorf("with a session: got %d %s", answer.StatusCode, body)
	}
	if answer, _ := get(t, c, "http://shop.example/x?y"); answer.StatusCode != 302 || answer.Header.Get("Location") != "https://shop.example/oauth2/start?rd=%2Fx%3Fy" {
		t.Errorf("without: got %d %v", answer.StatusCode, answer.Header)
	}
}

// One that asks itself whether one may ask it is refused, not asked for ever.
func TestAuthURLThatLeadsToItself(t *testing.T) {
	f := annotatedFront(t, nil, "auth-url: http://shop.example/check")
	if answer, _ := get(t, client(t, f.plain), "http://shop.example/"); answer.StatusCode != 500 {
		t.Errorf("got %d, want 500", answer.StatusCode)
	}
}

// Cookies of auth-url come with answers to which nginx adds fields, or always.
func TestAuthCookies(t *testing.T) {
	check := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Set-Cookie", "session=1") })
	missing := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
		}
	})
	for annotation, want := range map[string][2]string{"auth-always-set-cookie: false": {"session=1", ""}, "auth-always-set-cookie: true": {"session=1", "session=1"}} {
		c := client(t, annotatedFront(t, map[int]http.Handler{1: missing, 3: check}, "auth-url: http://auth/", annotation).plain)
		for i, path := range []string{"/", "/missing"} {
			if answer, _ := get(t, c, "http://shop.example"+path); answer.Header.Get("Set-Cookie") != want[i] {
				t.Errorf("%s, %s: got %q, want %q", annotation, path, answer.Header.Get("Set-Cookie"), want[i])
			}
		}
	}
}

// What an endpoint says of its own place is changed as asked.
func TestCookieAndLocationEdits(t *testing.T) {
	moved := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("Set-Cookie", "a=1; Path=/inner/x; Domain=.inner.example; HttpOnly")
		w.Header().Add("Set-Cookie", "b=2; Path=/other; Domain=else.example")
		w.Header().Set("Location", "http://inner.example/inner/y")
		w.WriteHeader(302)
	})
	for _, test := range []struct {
		annotations    []string
		first, second  string
		location, says string
	}{
		{[]string{"proxy-cookie-domain: inner.example shop.example", "proxy-cookie-path: /inner/ /"}, "a=1; Path=/x; Domain=shop.example; HttpOnly", "b=2; Path=/other; Domain=else.example", "http://inner.example/inner/y", "text"},
		{[]string{"proxy-cookie-path: ~^/(inner|other).* /$1/"}, "a=1; Path=/inner/; Domain=.inner.example; HttpOnly", "b=2; Path=/other/; Domain=else.example", "http://inner.example/inner/y", "pattern"},
		{[]string{"proxy-cookie-domain: off", "proxy-redirect-from: http://inner.example/inner/", "proxy-redirect-to: /"}, "a=1; Path=/inner/x; Domain=.inner.example; HttpOnly", "b=2; Path=/other; Domain=else.example", "/y", "redirect"},
		{[]string{"proxy-redirect-from: off", "proxy-redirect-to: /"}, "a=1; Path=/inner/x; Domain=.inner.example; HttpOnly", "b=2; Path=/other; Domain=else.example", "http://inner.example/inner/y", "off"},
	} {
		answer, _ := get(t, client(t, annotatedFront(t, map[int]http.Handler{1: moved}, test.annotations...).plain), "http://shop.example/")
		cookies := append(answer.Header.Values("Set-Cookie"), "", "")
		if cookies[0] != test.first || cookies[1] != test.second || answer.Header.Get("Location") != test.location {
			t.Errorf("%s: got %q %q %q", test.says, cookies[0], cookies[1], answer.Header.Get("Location"))
		}
	}
}

// A default backend that stands in for a Service without endpoints is told why.
func TestDefaultBackendIsToldWhy(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|empty"), "default-backend: other"))
	withService(st, "empty")
	_, body := get(t, client(t, frontOf(t, st, nil).plain), "http://shop.example/x", "Accept: text/css")
	for _, want := range []string{"X-Code: 503", "X-Format: text/css", "X-Namespace: ns", "X-Ingress-Name: shop", "X-Service-Name: empty", "X-Service-Port: 80"} {
		if !strings.Contains(body, want+"\r\n") {
			t.Errorf("no %q in %s", want, body)
		}
	}
}

// One that has endpoints of its own is not, though it be the same Service.
func TestDefaultBackendThatIsTheRoutesOwn(t *testing.T) {
	f := annotatedFront(t, nil, "default-backend: web")
	if _, body := get(t, client(t, f.plain), "http://shop.example/"); strings.Contains(body, "X-Code") {
		t.Errorf("got %s", body)
	}
}

// custom-http-errors without a default backend of its own takes that of all.
func TestCustomErrorsOfTheClassesDefaultBackend(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "custom-http-errors: 404"))
	withService(st, "web", endpointAddr(1))
	withService(st, "err", endpointAddr(4))
	f := newFront(t, Config{}, st, map[int]http.Handler{1: http.NotFoundHandler(), 4: tagged("err")})
	r, _ := Compile(nil, st, Config{DefaultBackend: "ns/err"})
	f.SetRoutes(r)
	if answer, body := get(t, client(t, f.plain), "http://shop.example/", "Accept-Language: de"); answer.Header.Get("X-Service") != "err" || !strings.Contains(body, "X-Code: 404") || !strings.Contains(body, "Accept-Language: de") {
		t.Errorf("got %v %s", answer.Header, body)
	}
}

// Proofs for certificate authorities are fetched by plain HTTP and without a password.
func TestACMEIsOpen(t *testing.T) {
	doc := annotated(ingress("acme", "shop.example|Prefix|/.well-known/acme-challenge/x|other", "shop.example|Prefix|/|web"), "force-ssl-redirect: true", "auth-type: basic", "auth-secret: users")
	c := client(t, frontOf(t, state(t, doc), nil).plain)
	if answer, _ := get(t, c, "http://shop.example/.well-known/acme-challenge/x"); answer.Header.Get("X-Service") != "other" {
		t.Errorf("the proof: got %d", answer.StatusCode)
	}
	if answer, _ := get(t, c, "http://shop.example/"); answer.StatusCode != 308 {
		t.Errorf("the rest: got %d", answer.StatusCode)
	}
}

func TestPersistentAffinity(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "affinity: cookie", "affinity-mode: persistent"))
	withService(st, "web", endpointAddr(1))
	all := map[int]http.Handler{1: named("one"), 2: named("two"), 3: named("three")}
	f := newFront(t, Config{}, st, all)
	c := client(t, f.plain)
	answer, _ := get(t, c, "http://shop.example/")
	cookie, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
	withService(st, "web", endpointAddr(1), endpointAddr(2), endpointAddr(3))
	more := *st
	f.set(&more)
	for range 4 {
		if _, body := get(t, c, "http://shop.example/", "Cookie: "+cookie); body != "one" {
			t.Errorf("got %s: a persistent session has moved", body)
		}
	}
}

// With the balanced mode a cookie leads to somebody else when its endpoint is gone,
// to the same one each time, and need not be changed for that.
func TestBalancedAffinityOutlivesItsEndpoint(t *testing.T) {
	doc := annotated(ingress("shop", "shop.example|Prefix|/|web"), "affinity: cookie")
	st := state(t, doc)
	withService(st, "web", endpointAddr(1), endpointAddr(2), endpointAddr(3))
	f := newFront(t, Config{}, st, map[int]http.Handler{1: named("one"), 2: named("two"), 3: named("three")})
	c := client(t, f.plain)
	answer, first := get(t, c, "http://shop.example/")
	cookie, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
	less := state(t, doc)
	numbers := map[string]int{"one": 1, "two": 2, "three": 3}
	n := 0
	for name, number := range numbers {
		if name != first {
			withService(less, "web", endpointAddr(number))
			n++
		}
	}
	f.set(less)
	second := ""
	for range 5 {
		answer, body := get(t, c, "http://shop.example/", "Cookie: "+cookie)
		if second == "" {
			second = body
		}
		if body != second || answer.Header.Get("Set-Cookie") != "" {
			t.Errorf("got %s, want %s and no new cookie", body, second)
		}
	}
}

// A session that began with the canary stays there, and one that did not does not
// go there, unless the behaviour is legacy.
func TestAffinityAndCanary(t *testing.T) {
	docs := func(behavior string, weight int) []string {
		return []string{
			annotated(ingress("main", "shop.example|Prefix|/|web"), "affinity: cookie", "affinity-canary-behavior: "+behavior),
			annotated(ingress("next", "shop.example|Prefix|/|other"), "canary: true", "canary-by-header: X-Next", fmt.Sprintf("canary-weight: %d", weight)),
		}
	}
	for behavior, want := range map[string][2]string{"sticky": {"other", "web"}, "legacy": {"web", "other"}} {
		f := frontOf(t, state(t, docs(behavior, 0)...), nil)
		c := client(t, f.plain)
		session := func(field string) string {
			answer, _ := get(t, c, "http://shop.example/", field)
			cookie, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
			return "Cookie: " + cookie
		}
		canary, main := session("X-Next: always"), session("X-Next: never")
		if answer, _ := get(t, c, "http://shop.example/", canary); answer.Header.Get("X-Service") != want[0] {
			t.Errorf("%s: the canary's session went to %s, want %s", behavior, answer.Header.Get("X-Service"), want[0])
		}
		if answer, _ := get(t, c, "http://shop.example/", main, "X-Next: always"); answer.Header.Get("X-Service") != want[1] {
			t.Errorf("%s: the other session went to %s, want %s", behavior, answer.Header.Get("X-Service"), want[1])
		}
	}
}

func TestSameSiteNoneIsNotForBrowsersThatMisreadIt(t *testing.T) {
	c := client(t, annotatedFront(t, nil, "affinity: cookie", "session-cookie-samesite: None", "session-cookie-conditional-samesite-none: true").plain)
	for agent, want := range map[string]bool{
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36":                                          true,
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/60.0.3112.113 Safari/537.36":                                      false,
		"Mozilla/5.0 (iPhone; CPU iPhone OS 12_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.1.2 Mobile/15E148 Safari/604.1":      false,
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_14_6) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.1.2 Safari/605.1.15":                        false,
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Safari/605.1.15":                          true,
		"Mozilla/5.0 (Linux; U; Android 9) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/57.0.2987.108 UCBrowser/12.13.0.1207 Mobile Safari": false,
	} {
		answer, _ := get(t, c, "http://shop.example/", "User-Agent: "+agent)
		if got := strings.Contains(answer.Header.Get("Set-Cookie"), "SameSite=None"); got != want {
			t.Errorf("%s: got %q", agent, answer.Header.Get("Set-Cookie"))
		}
	}
}

// Keys of the controller's ConfigMap that have no annotation.
func TestConfigMapOfTheController(t *testing.T) {
	hides := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Internal", "1")
		echo(w, r)
	})
	check := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) })
	for _, test := range []struct {
		data        map[string]string
		annotations []string
		fields      []string
		status      int
		want        string // in the answer; "!" not
	}{
		{map[string]string{"block-cidrs": "127.0.0.0/8"}, nil, nil, 403, ""},
		{map[string]string{"block-cidrs": "192.0.2.1"}, nil, nil, 200, ""},
		{map[string]string{"block-user-agents": "~*bad.*,other"}, nil, []string{"User-Agent: A Bad One"}, 403, ""},
		{map[string]string{"block-user-agents": "~*bad.*,other"}, nil, []string{"User-Agent: another"}, 200, ""},
		{map[string]string{"block-referers": "~evil"}, nil, []string{"Referer: https://evil.example/"}, 403, ""},
		{map[string]string{"hide-headers": "x-internal"}, nil, nil, 200, "!X-Internal"},
		{map[string]string{"proxy-add-original-uri-header": "true"}, nil, nil, 200, "X-Original-Uri: /x"},
		{map[string]string{"use-forwarded-headers": "true"}, nil, []string{"X-Forwarded-For: 192.0.2.7"}, 200, "X-Real-Ip: 192.0.2.7"},
		{map[string]string{"use-forwarded-headers": "true", "proxy-real-ip-cidr": "192.0.2.0/24"}, nil, []string{"X-Forwarded-For: 192.0.2.7"}, 200, "X-Real-Ip: 127.0.0.1"},
		{map[string]string{"global-auth-url": "http://auth.ns/check"}, nil, nil, 401, ""},
		{map[string]string{"global-auth-url": "http://auth.ns/check", "global-auth-signin": "http://sign.example/"}, nil, nil, 302, "Location: http://sign.example/?rd="},
		{map[string]string{"global-auth-url": "http://auth.ns/check"}, []string{"enable-global-auth: false"}, nil, 200, ""},
		{map[string]string{"no-auth-locations": "/", "global-auth-url": "http://auth.ns/check"}, nil, nil, 200, ""},
		{map[string]string{"no-tls-redirect-locations": "/", "force-ssl-redirect": "true"}, nil, nil, 200, ""},
		{map[string]string{"proxy-cookie-path": "off", "server-tokens": "false"}, nil, nil, 200, ""},
	} {
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), test.annotations...))
		name := kube.Name{Namespace: "ingress-nginx", Name: "ingress-nginx-controller"}
		st.ConfigMaps[name] = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Data: test.data}
		f := frontOf(t, st, map[int]http.Handler{1: hides, 3: check})
		answer, body := get(t, client(t, f.plain), "http://shop.example/x", test.fields...)
		var head strings.Builder
		answer.Header.Write(&head)
		all := strings.ReplaceAll(head.String()+body, "\r\n", "\n")
		not, negated := strings.CutPrefix(test.want, "!")
		if answer.StatusCode != test.status || strings.Contains(all, not) == negated {
			t.Errorf("%v %v: got %d %s", test.data, test.annotations, answer.StatusCode, all)
		}
		if _, problems := Compile(nil, st, Config{}); len(problems) > 0 {
			t.Errorf("%v: %s", test.data, notes(problems))
		}
	}
}

// A new endpoint gets a small share at first; the first ones have theirs at once.
func TestSlowStart(t *testing.T) {
	doc := annotated(ingress("shop", "shop.example|Prefix|/|web"), "slow-start: 1h")
	st := state(t, doc)
	withService(st, "web", endpointAddr(1))
	f := newFront(t, Config{}, st, map[int]http.Handler{1: named("old"), 2: named("new")})
	c := client(t, f.plain)
	if _, body := get(t, c, "http://shop.example/"); body != "old" {
		t.Errorf("got %s", body)
	}
	more := state(t, doc)
	withService(more, "web", endpointAddr(1), endpointAddr(2))
	f.set(more)
	share := func() (n int) {
		for range 400 {
			if _, body := get(t, c, "http://shop.example/"); body == "new" {
				n++
			}
		}
		return n
	}
	if n := share(); n < 1 || n > 100 { // 20 expected: a tenth of its turns
		t.Errorf("the new endpoint got %d of 400 requests, want about 20", n)
	}
	now := time.Now()
	for age, want := range map[time.Duration]float64{0: leastShare, 30 * time.Minute: .5, 2 * time.Hour: 2} {
		if got := (&endpoint{since: now.Add(-age)}).share(time.Hour, now); got != want {
			t.Errorf("after %s of an hour: got a share of %v, want %v", age, got, want)
		}
	}
}

// service-upstream leaves the choice to the Service.
func TestServiceUpstream(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "service-upstream: true"))
	withService(st, "web", endpointAddr(1), endpointAddr(2))
	st.Services[kube.Name{Namespace: "ns", Name: "web"}].Spec.ClusterIP = endpointAddr(3).Addr().String()
	f := newFront(t, Config{}, st, map[int]http.Handler{1: named("one"), 2: named("two"), 3: named("service")})
	if _, body := get(t, client(t, f.plain), "http://shop.example/"); body != "service" {
		t.Errorf("got %s", body)
	}
}

// Requests of one Ingress that are not GETs go to another endpoint when they could
// not be delivered, and never when they may have been, by default.
func TestNonIdempotentRequestsAreNotRepeated(t *testing.T) {
	for annotation, want := range map[string]int{"proxy-next-upstream: error timeout http_503": 503, "proxy-next-upstream: error http_503 non_idempotent": 200} {
		st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), annotation))
		withService(st, "web", endpointAddr(1), endpointAddr(2))
		var first atomic.Bool
		once := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !first.Swap(true) {
				w.WriteHeader(503)
				return
			}
			io.WriteString(w, "ok")
		})
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://shop.example/", nil)
		if answer, _ := do(t, client(t, newFront(t, Config{}, st, map[int]http.Handler{1: once, 2: once}).plain), req); answer.StatusCode != want {
			t.Errorf("%s: got %d, want %d", annotation, answer.StatusCode, want)
		}
	}
}

// A trace says which guards there are, that one is enough, and how endpoints are chosen.
func TestTraceOfGuards(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/.well-known/acme-challenge|web", "shop.example|Prefix|/|web"),
		"satisfy: any", "denylist-source-range: 192.0.2.1", "auth-url: http://$host/check", "slow-start: 10s", "preserve-client-address: true"))
	withService(st, "web", endpointAddr(1))
	r, _ := Compile(nil, st, Config{})
	want := []string{
		"guard: needs an address outside [192.0.2.1/32] (denylist-source-range)",
		"guard: needs the consent of auth-url",
		"guards: of address, password and auth-url one is enough (satisfy: any)",
		"backend Service ns/web port 80: 1 endpoints in turn, new ones at first seldom (slow-start), from the client's own address: 192.0.2.1:80",
	}
	lines := r.Trace("shop.example", "/x", true).Lines
	if diff := cmp.Diff(want, lines[len(lines)-len(want):]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := strings.Join(r.Trace("shop.example", acme+"/x", true).Lines, "\n"); strings.Contains(got, "auth-url\n") {
		t.Errorf("the proof is said to need auth-url:\n%s", got)
	}
}

// With disable-proxy-intercept-errors the pages are for errors of the front door.
func TestCustomErrorsOfOurOwnOnly(t *testing.T) {
	missing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "the pod's", 404) })
	st := state(t,
		annotated(ingress("shop", "shop.example|Prefix|/|web", "shop.example|Prefix|/empty|none"), "custom-http-errors: 404,503", "default-backend: err", "disable-proxy-intercept-errors: true"))
	withService(st, "none")
	f := frontOf(t, st, map[int]http.Handler{1: missing, 4: named("page")})
	if answer, body := get(t, client(t, f.plain), "http://shop.example/"); answer.StatusCode != 404 || body != "the pod's\n" {
		t.Errorf("got %d %q", answer.StatusCode, body)
	}
	if _, body := get(t, client(t, f.plain), "http://shop.example/empty"); body != "page" {
		t.Errorf("got %q", body)
	}
}

// A key stands for some endpoints, the same for each of its requests.
func TestHashBySubset(t *testing.T) {
	st := state(t, annotated(ingress("shop", "shop.example|Prefix|/|web"), "upstream-hash-by: $arg_user", "upstream-hash-by-subset: true", "upstream-hash-by-subset-size: 2"))
	withService(st, "web", endpointAddr(1), endpointAddr(2), endpointAddr(3), endpointAddr(4))
	c := client(t, newFront(t, Config{}, st, map[int]http.Handler{1: named("a"), 2: named("b"), 3: named("c"), 4: named("d")}).plain)
	all := map[string]bool{}
	for user := range 12 {
		seen := map[string]int{}
		for range 8 {
			_, body := get(t, c, fmt.Sprintf("http://shop.example/?user=%d", user))
			seen[body]++
			all[body] = true
		}
		if len(seen) != 2 {
			t.Errorf("user %d went to %v, want two of them", user, seen)
		}
	}
	if len(all) != 4 {
		t.Errorf("12 users went to %v only", all)
	}
}

func TestCipherLists(t *testing.T) {
	for list, want := range map[string]string{
		"DEFAULT":          "",
		"HIGH:!aNULL:!MD5": "",
		"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:!MD5": "ECDHE-RSA-AES128-GCM-SHA256 ECDHE-RSA-AES256-GCM-SHA384 ",
		"TLS_AES_128_GCM_SHA256:AES128-GCM-SHA256":                     "AES128-GCM-SHA256 ",
		"RC4-MD5:ECDHE-RSA-AES128-SHA":                                 "ECDHE-RSA-AES128-SHA ",
	} {
		if got, err := readCiphers(list); got != want || err != nil {
			t.Errorf("%s: got %q, %v", list, got, err)
		}
	}
	k := tlsKey{ciphers: "ECDHE-RSA-AES128-SHA AES128-GCM-SHA256 "}
	if got := k.config().CipherSuites; len(got) != 2 || got[1] != tls.TLS_RSA_WITH_AES_128_GCM_SHA256 {
		t.Errorf("got %v", got)
	}
}

// A client that names no host means the address that it came to.
func TestNoHost(t *testing.T) {
	st := state(t, ingress("any", "|Prefix|/|web"))
	f := frontOf(t, st, nil)
	for _, request := range []string{"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"} {
		status, body := dialFront(t, f.plain).ask(t, request)
		if status != 200 || !strings.Contains(body, "\nhost: "+f.plain+"\n") || !strings.Contains(body, "X-Forwarded-Host: "+f.plain+"\r\n") {
			t.Errorf("%q: got %d %q", request, status, body)
		}
	}
}
