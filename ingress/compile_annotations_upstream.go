package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// Annotations about endpoints: how they are spoken to and chosen.

func (r *reader) upstream() {
	o := r.o
	switch v := strings.ToUpper(r.annotation("backend-protocol")); v {
	case "", "HTTP", "AUTO_HTTP":
		if v != "" {
			o.wire.protocol = http1
		}
	case "HTTPS":
		o.wire.protocol = https
	case "GRPC":
		o.wire.protocol = h2c
	case "GRPCS":
		o.wire.protocol = h2
	default:
		r.bad("backend-protocol", "podgate does not speak %q to endpoints: HTTP, HTTPS, GRPC or GRPCS", v)
	}
	o.wire.connect, o.read, o.send = r.seconds("proxy-connect-timeout"), r.seconds("proxy-read-timeout"), r.seconds("proxy-send-timeout")
	o.wire.answer = o.read
	o.bodySize = r.size("proxy-body-size")
	if v := r.annotation("proxy-next-upstream"); v != "" {
		o.retry.on = 0
		for name := range strings.FieldsSeq(v) {
			if c, ok := conditions[name]; ok {
				o.retry.on |= c
			} else if name != "off" {
				r.bad("proxy-next-upstream", "%q is no condition that podgate has", name)
			}
		}
		if slices.Contains(strings.Fields(v), "off") {
			o.retry.on = 0
		}
	}
	if r.flag("retry-non-idempotent", false) {
		o.retry.on |= nonIdempotent
	}
	o.retry.tries = r.number("proxy-next-upstream-tries", 3)
	o.retry.timeout = r.seconds("proxy-next-upstream-timeout")
	o.wire.cluster = r.flag("service-upstream", false)
	o.wire.asClient = r.flag("preserve-client-address", false)
	o.slowStart = r.seconds("slow-start")
	o.passthrough = r.flag("ssl-passthrough", false)
	o.pace = pace{rate: int64(r.number("limit-rate", 0)) << 10, first: int64(r.number("limit-rate-after", 0)) << 10}
	if v := r.annotation("proxy-http-version"); v != "" && v != "1.1" {
		r.bad("proxy-http-version", "podgate does not have %q: 1.1", v)
	}
	if v := r.annotation("connection-proxy-header"); v != "" && !strings.EqualFold(v, "keep-alive") {
		r.bad("connection-proxy-header", "podgate does not have %q: keep-alive", v)
	}
	r.flag("preserve-trailing-slash", true) // redirects keep the path as it is
	r.flag("http2-push-preload", false)     // no client takes pushes any more; the field Link is passed on
	// There are no such buffers: nothing is too large for them.
	r.number("proxy-buffers-number", 0)
	for _, name := range []string{"client-body-buffer-size", "proxy-buffer-size", "proxy-busy-buffers-size", "proxy-max-temp-file-size"} {
		r.size(name)
	}
	for _, name := range []string{"proxy-buffering", "proxy-request-buffering"} {
		if v := r.annotation(name); v != "" && v != "off" {
			r.bad(name, "has no effect: bodies are passed on as they come")
		}
	}
}

// size reads bytes as nginx does: a number, or with k, m or g.
func (r *reader) size(name string) int64 {
	v := strings.ToLower(r.annotation(name))
	if v == "" {
		return 0
	}
	shift := 0
	switch v[len(v)-1] {
	case 'k':
		shift = 10
	case 'm':
		shift = 20
	case 'g':
		shift = 30
	}
	digits := v
	if shift > 0 {
		digits = v[:len(v)-1]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		r.bad(name, "%q is not a size in bytes", v)
		return 0
	}
	return n << shift
}

func (r *reader) balancing() {
	o := r.o
	switch v := r.annotation("load-balance"); v {
	case "", "round_robin":
	case "ewma":
		o.least = true
	default:
		r.bad("load-balance", "podgate does not have %q: round_robin or ewma", v)
	}
	o.hash = r.template("upstream-hash-by")
	size := r.number("upstream-hash-by-subset-size", 3)
	if r.flag("upstream-hash-by-subset", false) {
		o.subset = max(size, 1)
	}
	o.sticky = r.affinity()
	o.canary = r.canary()
}

func (r *reader) affinity() *sticky {
	kind, mode, canaries := r.annotation("affinity"), r.annotation("affinity-mode"), r.annotation("affinity-canary-behavior")
	cookie := &sticky{
		name: r.annotation("session-cookie-name"), path: r.annotation("session-cookie-path"), domain: r.annotation("session-cookie-domain"),
		maxAge: r.number("session-cookie-max-age", 0), expires: r.number("session-cookie-expires", 0),
		change:  r.flag("session-cookie-change-on-failure", false),
		careful: r.flag("session-cookie-conditional-samesite-none", false),
	}
	if cookie.name == "" {
		cookie.name = "INGRESSCOOKIE"
	}
	switch v := r.annotation("session-cookie-samesite"); v {
	case "":
	case "None":
		cookie.sameSite = http.SameSiteNoneMode
	case "Lax":
		cookie.sameSite = http.SameSiteLaxMode
	case "Strict":
		cookie.sameSite = http.SameSiteStrictMode
	default:
		r.bad("session-cookie-samesite", "%q is none of None, Lax, Strict", v)
	}
	if v := r.annotation("session-cookie-secure"); v != "" {
		cookie.secure = new(r.flag("session-cookie-secure", false))
	}
	switch mode {
	case "", "balanced":
	case "persistent":
		cookie.persistent = true
	default:
		r.bad("affinity-mode", "%q is neither balanced nor persistent", mode)
	}
	switch canaries {
	case "", "sticky":
	case "legacy":
		cookie.notCanaries = true
	default:
		r.bad("affinity-canary-behavior", "%q is neither sticky nor legacy", canaries)
	}
	switch kind {
	case "":
		return nil
	case "cookie":
		return cookie
	}
	r.bad("affinity", "%q is not cookie", kind)
	return nil
}

func (r *reader) canary() *canary {
	c := &canary{
		ingress: kube.Name{Namespace: r.ing.Namespace, Name: r.ing.Name},
		header:  r.annotation("canary-by-header"), value: r.annotation("canary-by-header-value"), cookie: r.annotation("canary-by-cookie"),
		weight: r.number("canary-weight", 0), total: max(r.number("canary-weight-total", 100), 100),
		alone: r.annotation("affinity-canary-behavior") == "legacy",
	}
	if v := r.annotation("canary-by-header-pattern"); v != "" && c.value == "" {
		re, err := regexp.Compile(v)
		if err != nil {
			r.bad("canary-by-header-pattern", "%v", err)
			re = nothing
		}
		c.pattern = re
	}
	if !r.flag("canary", false) {
		return nil
	}
	return c
}

// nothing is the pattern that matches nothing.
var nothing = regexp.MustCompile(`[^\s\S]`)

func (r *reader) endpointTLS() {
	from := r.annotation("proxy-ssl-secret")
	verify := r.flag("proxy-ssl-verify", false)
	if v := r.annotation("proxy-ssl-verify"); r.failed && v != "" {
		r.o.denied = "proxy-ssl-verify is neither on nor off"
	}
	name, sni := r.annotation("proxy-ssl-name"), r.flag("proxy-ssl-server-name", false)
	versions := map[string]uint16{"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}
	key := tlsKey{name: name, sni: sni, depth: r.number("proxy-ssl-verify-depth", 1)}
	for v := range strings.FieldsSeq(r.annotation("proxy-ssl-protocols")) {
		if n := versions[v]; n != 0 && (key.version == 0 || n < key.version) {
			key.version = n
		}
	}
	if v := r.annotation("proxy-ssl-ciphers"); v != "" {
		var err error
		if key.ciphers, err = readCiphers(v); err != nil {
			r.bad("proxy-ssl-ciphers", "%v", err)
		}
	}
	if from != "" {
		s := r.secret("proxy-ssl-secret")
		if s == nil {
			return
		}
		if len(s.Data[corev1.TLSCertKey]) > 0 {
			if key.pair = r.pair(s); key.pair.err != nil {
				r.deny("proxy-ssl-secret", "Secret %q %v", s.Name, key.pair.err)
				return
			}
		}
		if verify {
			if key.roots = r.roots(s); key.roots == nil {
				r.deny("proxy-ssl-secret", "Secret %q has no certificates in ca.crt", s.Name)
				return
			}
		}
	} else if verify {
		r.deny("proxy-ssl-verify", "needs proxy-ssl-secret")
		return
	}
	if r.o.wire.protocol == https || r.o.wire.protocol == h2 {
		r.o.wire.tls = key
	}
}

// roots reads a Secret's certificate authorities, once for each Secret.
func (c *compiler) roots(s *corev1.Secret) *x509.CertPool {
	pool := c.prev.pools[s]
	if pool == nil {
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(s.Data["ca.crt"]) {
			return nil
		}
	}
	c.pools[s] = pool
	return pool
}
