package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"podgate/kube"
)

// Annotations
//
// An Ingress's annotations are read by name, each by the group that it belongs
// to; a name that nobody read is one that podgate does not have, and is
// reported, as is a value that makes no sense. Where an Ingress says nothing the
// controller's ConfigMap does, under the same name. A guard (addresses,
// passwords, certificates) that is asked for and cannot be had denies all: what
// was meant to be closed is not open.

// Annotations are looked for under each of these, in this order.
var annotationPrefixes = []string{"podgate.dev/", "nginx.ingress.kubernetes.io/"}

// controllerConfigs are where the settings for all Ingresses are, the first that exists.
var controllerConfigs = []kube.Name{
	{Namespace: "podgate-system", Name: "podgate-ingress"},
	{Namespace: "ingress-nginx", Name: "ingress-nginx-controller"},
}

// globals are the settings that every Ingress takes from the ConfigMap.
var globals = []string{
	"add-headers", "custom-http-errors", "denylist-source-range", "disable-access-log", "force-ssl-redirect",
	"global-allowed-response-headers", "hsts", "hsts-include-subdomains", "hsts-max-age", "hsts-preload",
	"http-redirect-code", "limit-conn-status-code", "limit-req-status-code", "load-balance", "proxy-body-size",
	"proxy-connect-timeout", "proxy-next-upstream", "proxy-next-upstream-timeout", "proxy-next-upstream-tries",
	"proxy-read-timeout", "proxy-send-timeout", "proxy-set-headers", "ssl-redirect", "whitelist-source-range",
}

// reader reads one Ingress's annotations.
type reader struct {
	*compiler
	ing    *networkingv1.Ingress
	known  map[string]bool // names that were read
	o      *options
	failed bool // a value of the group that is read makes no sense
}

// options reads what an Ingress asks for.
func (c *compiler) options(ing *networkingv1.Ingress) *options {
	asks := false
	for key := range ing.Annotations {
		for _, prefix := range annotationPrefixes {
			asks = asks || strings.HasPrefix(key, prefix)
		}
	}
	if !asks && c.defaults != nil {
		return c.defaults
	}
	o := plain
	r := &reader{compiler: c, ing: ing, known: map[string]bool{}, o: &o}
	for _, group := range []func(){
		r.redirects, r.paths, r.upstream, r.balancing, r.addresses, r.limits, r.passwords, r.askedFor,
		r.certificates, r.endpointTLS, r.crossOrigin, r.fields, r.errors, r.copies,
	} {
		r.failed = false
		group()
	}
	for _, key := range slices.Sorted(maps.Keys(ing.Annotations)) {
		for _, prefix := range annotationPrefixes {
			if name, ok := strings.CutPrefix(key, prefix); ok && !r.known[name] {
				c.warn(ing, "metadata.annotations["+key+"]", "has no effect: podgate does not have this")
			}
		}
	}
	if !asks {
		c.defaults = &o
	}
	return &o
}

// noteConfig reports the ConfigMap's keys that have no effect.
func (c *compiler) noteConfig() {
	for _, name := range controllerConfigs {
		if m := c.state.ConfigMaps[name]; m != nil {
			c.config, c.configName = m.Data, name
			break
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.config)) {
		if !slices.Contains(globals, key) {
			c.problems = append(c.problems, kube.Problem{
				Severity: kube.Warning, Kind: "ConfigMap", Object: c.configName,
				Field: "data[" + key + "]", Err: "has no effect: podgate does not have this",
			})
		}
	}
}

// annotation returns the value of the first of these names that is there, of the
// Ingress or else of the ConfigMap.
func (r *reader) annotation(names ...string) string {
	value, found := "", false
	for _, name := range names {
		r.known[name] = true
		for _, prefix := range annotationPrefixes {
			if v, ok := r.ing.Annotations[prefix+name]; ok && !found {
				value, found = strings.TrimSpace(v), true
			}
		}
	}
	if !found && slices.Contains(globals, names[0]) {
		value = strings.TrimSpace(r.config[names[0]])
	}
	return value
}

// bad reports a value that makes no sense.
func (r *reader) bad(name, format string, args ...any) {
	r.failed = true
	key := "data[" + name + "] of ConfigMap " + r.configName.String()
	for _, prefix := range slices.Backward(annotationPrefixes) {
		if _, ok := r.ing.Annotations[prefix+name]; ok {
			key = "metadata.annotations[" + prefix + name + "]"
		}
	}
	r.warn(r.ing, key, format, args...)
}

func (r *reader) flag(name string, otherwise bool) bool {
	v := r.annotation(name)
	if v == "" {
		return otherwise
	}
	switch v {
	case "on":
		return true
	case "off":
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		r.bad(name, "%q is neither true nor false", v)
		return otherwise
	}
	return b
}

func (r *reader) number(name string, otherwise int) int {
	v := r.annotation(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		r.bad(name, "%q is not a number", v)
		return otherwise
	}
	return n
}

// seconds reads a duration as nginx does: a number of seconds, or with a unit.
func (r *reader) seconds(name string) time.Duration {
	v := r.annotation(name)
	if v == "" {
		return 0
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Duration(n) * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		r.bad(name, "%q is not a number of seconds", v)
	}
	return max(d, 0)
}

func (r *reader) template(name string) template {
	t, err := compileTemplate(r.annotation(name))
	if err != nil {
		r.bad(name, "%v", err)
		return nil
	}
	return t
}

// deny closes the Ingress: a guard cannot be had.
func (r *reader) deny(name, format string, args ...any) {
	r.bad(name, format, args...)
	r.o.denied = name + ": " + fmt.Sprintf(format, args...)
}

func (r *reader) redirects() {
	o := r.o
	o.sslRedirect = r.flag("ssl-redirect", true)
	o.forceSSL = r.flag("force-ssl-redirect", false)
	o.code = r.status("http-redirect-code", http.StatusPermanentRedirect, 300, 308)
	if o.appRoot = r.annotation("app-root"); o.appRoot != "" && !strings.HasPrefix(o.appRoot, "/") {
		r.bad("app-root", "%q does not begin with a slash", o.appRoot)
		o.appRoot = ""
	}
	permanent, temporal := r.annotation("permanent-redirect"), r.annotation("temporal-redirect")
	permanentCode := r.status("permanent-redirect-code", http.StatusMovedPermanently, 300, 308)
	temporalCode := r.status("temporal-redirect-code", http.StatusFound, 300, 308)
	switch {
	case temporal != "":
		o.redirect = r.redirection("temporal-redirect", temporalCode)
	case permanent != "":
		o.redirect = r.redirection("permanent-redirect", permanentCode)
	}
	o.www = r.flag("from-to-www-redirect", false)
	if r.flag("hsts", false) {
		age := r.annotation("hsts-max-age")
		if age == "" {
			age = "31536000"
		}
		o.hsts = "max-age=" + age
		if r.flag("hsts-include-subdomains", true) {
			o.hsts += "; includeSubDomains"
		}
		if r.flag("hsts-preload", false) {
			o.hsts += "; preload"
		}
	}
}

func (r *reader) status(name string, otherwise, least, most int) int {
	n := r.number(name, otherwise)
	if n < least || n > most {
		r.bad(name, "%d is not a status from %d to %d", n, least, most)
		return otherwise
	}
	return n
}

func (r *reader) redirection(name string, code int) *redirection {
	to := r.template(name)
	if u, err := url.Parse(r.annotation(name)); to == nil || err == nil && u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		if to != nil {
			r.bad(name, "%q is not a URL of http or https", r.annotation(name))
		}
		return nil
	}
	return &redirection{code, to}
}

func (r *reader) paths() {
	o := r.o
	o.useRegex = r.flag("use-regex", false)
	o.rewrite = r.annotation("rewrite-target")
	o.prefix = r.annotation("x-forwarded-prefix")
	for name := range strings.FieldsFuncSeq(r.annotation("server-alias"), func(c rune) bool { return c == ',' || c == ' ' }) {
		if strings.HasPrefix(name, "~") {
			r.bad("server-alias", "%q is a regular expression: podgate does not have these here", name)
			continue
		}
		o.aliases = append(o.aliases, strings.ToLower(name))
	}
	o.host = r.template("upstream-vhost")
}

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
	o.retry.tries = r.number("proxy-next-upstream-tries", 3)
	o.retry.timeout = r.seconds("proxy-next-upstream-timeout")
	o.passthrough = r.flag("ssl-passthrough", false)
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
	kind := r.annotation("affinity")
	r.annotation("affinity-mode")
	cookie := &sticky{
		name: r.annotation("session-cookie-name"), path: r.annotation("session-cookie-path"), domain: r.annotation("session-cookie-domain"),
		maxAge: r.number("session-cookie-max-age", 0), expires: r.number("session-cookie-expires", 0),
		change: r.flag("session-cookie-change-on-failure", false),
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
	switch kind {
	case "":
	case "cookie":
		o.sticky = cookie
	default:
		r.bad("affinity", "%q is not cookie", kind)
	}
	weight, total := r.number("canary-weight", 0), r.number("canary-weight-total", 100)
	c := &canary{
		ingress: kube.Name{Namespace: r.ing.Namespace, Name: r.ing.Name},
		header:  r.annotation("canary-by-header"), value: r.annotation("canary-by-header-value"), cookie: r.annotation("canary-by-cookie"),
		weight: weight, total: max(total, 1),
	}
	if v := r.annotation("canary-by-header-pattern"); v != "" && c.value == "" {
		re, err := regexp.Compile(v)
		if err != nil {
			r.bad("canary-by-header-pattern", "%v", err)
		}
		c.pattern = re
	}
	if r.flag("canary", false) {
		o.canary = c
	}
}

// ranges reads prefixes and addresses; nothing readable in a list that is there
// denies all.
func (r *reader) ranges(names ...string) (out []netip.Prefix) {
	v := r.annotation(names...)
	for s := range strings.SplitSeq(v, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				r.deny(names[0], "%q is neither an address nor a prefix", s)
				continue
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out
}

func (r *reader) addresses() {
	r.o.allow = r.ranges("whitelist-source-range", "allowlist-source-range")
	r.o.deny = r.ranges("denylist-source-range")
}

func (r *reader) limits() {
	want := limits{
		rps: r.number("limit-rps", 0), rpm: r.number("limit-rpm", 0), connections: r.number("limit-connections", 0),
		burst: r.number("limit-burst-multiplier", 5), except: r.annotation("limit-whitelist", "limit-allowlist"),
		rateStatus: r.status("limit-req-status-code", 503, 400, 599), status: r.status("limit-conn-status-code", 503, 400, 599),
	}
	exempt := r.ranges("limit-whitelist", "limit-allowlist")
	if want.rps == 0 && want.rpm == 0 && want.connections == 0 {
		return
	}
	name := kube.Name{Namespace: r.ing.Namespace, Name: r.ing.Name}
	if old := r.prev.limiters[name]; old != nil && old.limits == want {
		r.o.limit = old
	} else {
		r.o.limit = &limit{limits: want, exempt: exempt, clients: map[netip.Addr]*usage{}}
	}
	r.limiters[name] = r.o.limit
}

// object reads a name with or without a namespace. As in ingress-nginx, one of
// another namespace is not taken.
func (r *reader) object(name, value string) (kube.Name, bool) {
	ns, n, ok := strings.Cut(value, "/")
	if !ok {
		return kube.Name{Namespace: r.ing.Namespace, Name: value}, true
	}
	if ns != r.ing.Namespace {
		r.deny(name, "%q is in another namespace", value)
		return kube.Name{}, false
	}
	return kube.Name{Namespace: ns, Name: n}, true
}

func (r *reader) secret(name string) *corev1.Secret {
	of, ok := r.object(name, r.annotation(name))
	if !ok {
		return nil
	}
	s := r.state.Secrets[of]
	if s == nil {
		r.deny(name, "no Secret %q in namespace %q", of.Name, of.Namespace)
	}
	return s
}

func (r *reader) passwords() {
	kind, from, realm := r.annotation("auth-type"), r.annotation("auth-secret"), r.annotation("auth-realm")
	format := r.annotation("auth-secret-type")
	if kind == "" {
		return
	}
	if kind != "basic" {
		r.deny("auth-type", "podgate does not have %q", kind)
		return
	}
	if from == "" {
		r.deny("auth-type", "needs auth-secret")
		return
	}
	s := r.secret("auth-secret")
	if s == nil {
		return
	}
	if realm == "" {
		realm = "Authentication Required"
	}
	b := &basicAuth{realm: realm, users: map[string]string{}}
	switch format {
	case "", "auth-file":
		file, ok := s.Data["auth"]
		if !ok {
			r.deny("auth-secret", "Secret %q has no key auth", s.Name)
			return
		}
		b.users = parseUsers(file)
	case "auth-map":
		for name, hash := range s.Data {
			b.users[name] = strings.TrimSpace(string(hash))
		}
	default:
		r.deny("auth-secret-type", "%q is neither auth-file nor auth-map", format)
		return
	}
	r.o.basic = b
}

func (r *reader) askedFor() {
	target := r.annotation("auth-url")
	a := &authRequest{
		method: strings.ToUpper(r.annotation("auth-method")), redirect: r.template("auth-request-redirect"),
		param: r.annotation("auth-signin-redirect-param"),
	}
	for name := range strings.SplitSeq(r.annotation("auth-response-headers"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			a.fields = append(a.fields, http.CanonicalHeaderKey(name))
		}
	}
	a.signin = r.template("auth-signin")
	if a.param == "" {
		a.param = "rd"
	}
	if a.method == "" {
		a.method = http.MethodGet
	}
	if target == "" {
		return
	}
	var err error
	if a.remote, err = r.remote(target); err != nil {
		r.deny("auth-url", "%v", err)
		return
	}
	r.o.auth = a
}

// remote is a URL in the cluster.
type remote struct {
	backend *backend
	host    string
	uri     template
}

// remote finds the Service that a URL names, "http://name[.namespace[.svc[.domain]]]...".
func (r *reader) remote(target string) (*remote, error) {
	rest, ok := strings.CutPrefix(target, "http://")
	w := wire{protocol: http1}
	if !ok {
		if rest, ok = strings.CutPrefix(target, "https://"); !ok {
			return nil, fmt.Errorf("%q is not a URL of http or https", target)
		}
		w.protocol = https
	}
	host, uri := rest, "/"
	if i := strings.IndexAny(rest, "/$?"); i >= 0 {
		host, uri = rest[:i], rest[i:]
	}
	name, port, ok := strings.Cut(host, ":")
	if !ok {
		port = map[protocol]string{http1: "80", https: "443"}[w.protocol]
	}
	labels := strings.Split(name, ".")
	of := kube.Name{Namespace: r.ing.Namespace, Name: labels[0]}
	if len(labels) > 1 {
		of.Namespace = labels[1]
	}
	if len(labels) > 2 && labels[2] != "svc" {
		return nil, fmt.Errorf("%q is not a Service of this cluster: others are not asked", name)
	}
	if r.state.Services[of] == nil {
		return nil, fmt.Errorf("no Service %q in namespace %q", of.Name, of.Namespace)
	}
	t, err := compileTemplate(uri)
	if err != nil {
		return nil, err
	}
	return &remote{r.backendOf(of, port, w), host, t}, nil
}

func (r *reader) certificates() {
	from, page := r.annotation("auth-tls-secret"), r.annotation("auth-tls-error-page")
	verify, cn := r.annotation("auth-tls-verify-client"), r.annotation("auth-tls-match-cn")
	c := &clientTLS{depth: r.number("auth-tls-verify-depth", 1), page: page, pass: r.flag("auth-tls-pass-certificate-to-upstream", false)}
	if from == "" || verify == "off" {
		return
	}
	switch verify {
	case "", "on":
	case "optional":
		c.optional = true
	default:
		r.deny("auth-tls-verify-client", "podgate does not have %q: on, off or optional", verify)
		return
	}
	if cn != "" {
		var err error
		if c.subject, err = regexp.Compile(cn); err != nil {
			r.deny("auth-tls-match-cn", "%v", err)
			return
		}
	}
	s := r.secret("auth-tls-secret")
	if s == nil {
		return
	}
	c.roots = x509.NewCertPool()
	if !c.roots.AppendCertsFromPEM(s.Data["ca.crt"]) {
		r.deny("auth-tls-secret", "Secret %q has no certificates in ca.crt", s.Name)
		return
	}
	r.o.client = c
}

func (r *reader) endpointTLS() {
	from := r.annotation("proxy-ssl-secret")
	verify := r.flag("proxy-ssl-verify", false)
	if v := r.annotation("proxy-ssl-verify"); r.failed && v != "" {
		r.o.denied = "proxy-ssl-verify is neither on nor off"
	}
	name, sni := r.annotation("proxy-ssl-name"), r.flag("proxy-ssl-server-name", false)
	versions := map[string]uint16{"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}
	key := tlsKey{name: name, sni: sni}
	for v := range strings.FieldsSeq(r.annotation("proxy-ssl-protocols")) {
		if n := versions[v]; n != 0 && (key.version == 0 || n < key.version) {
			key.version = n
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

func (r *reader) crossOrigin() {
	c := &cors{
		methods: r.annotation("cors-allow-methods"), headers: r.annotation("cors-allow-headers"), expose: r.annotation("cors-expose-headers"),
		credentials: r.flag("cors-allow-credentials", true), maxAge: strconv.Itoa(r.number("cors-max-age", 1728000)),
	}
	origins := r.annotation("cors-allow-origin")
	if !r.flag("enable-cors", false) {
		return
	}
	if c.methods == "" {
		c.methods = "GET, PUT, POST, DELETE, PATCH, OPTIONS"
	}
	if c.headers == "" {
		c.headers = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,Authorization"
	}
	for origin := range strings.SplitSeq(origins, ",") {
		if origin = strings.TrimSpace(origin); origin != "" {
			c.origins = append(c.origins, origin)
		}
	}
	c.any = len(c.origins) == 0 || slices.Contains(c.origins, "*")
	r.o.cors = c
}

// configMap reads header fields from a ConfigMap that an annotation names.
func (r *reader) configMap(name string) http.Header {
	v := r.annotation(name)
	if v == "" {
		return nil
	}
	ns, n, ok := strings.Cut(v, "/")
	if !ok {
		ns, n = r.ing.Namespace, v
	}
	m := r.state.ConfigMaps[kube.Name{Namespace: ns, Name: n}]
	if m == nil {
		r.bad(name, "no ConfigMap %q in namespace %q", n, ns)
		return nil
	}
	h := http.Header{}
	for k, v := range m.Data {
		h.Set(k, v)
	}
	return h
}

func (r *reader) fields() {
	h := r.configMap("add-headers")
	if h == nil {
		h = http.Header{}
	}
	var allowed []string
	for name := range strings.SplitSeq(r.annotation("global-allowed-response-headers"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			allowed = append(allowed, http.CanonicalHeaderKey(name))
		}
	}
	for name, v := range r.configMap("custom-headers") {
		if len(allowed) > 0 && !slices.Contains(allowed, name) {
			r.bad("custom-headers", "%s is not in global-allowed-response-headers", name)
			continue
		}
		h[name] = v
	}
	if len(h) > 0 {
		r.o.responseHeaders = h
	}
	r.o.requestHeaders = r.configMap("proxy-set-headers")
	r.o.silent = r.flag("disable-access-log", false) || !r.flag("enable-access-log", true)
}

func (r *reader) errors() {
	for s := range strings.SplitSeq(r.annotation("custom-http-errors"), ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 300 || n > 599 {
			r.bad("custom-http-errors", "%q is not a status from 300 to 599", s)
			continue
		}
		if r.o.intercept == nil {
			r.o.intercept = map[int]bool{}
		}
		r.o.intercept[n] = true
	}
	if name := r.annotation("default-backend"); name != "" {
		of := kube.Name{Namespace: r.ing.Namespace, Name: name}
		if svc := r.state.Services[of]; svc == nil || len(svc.Spec.Ports) == 0 {
			r.bad("default-backend", "no Service %q in namespace %q", name, of.Namespace)
		} else {
			r.o.fallback = r.backendOf(of, strconv.Itoa(int(svc.Spec.Ports[0].Port)), wire{})
		}
	}
}

func (r *reader) copies() {
	target, host, body := r.annotation("mirror-target"), r.annotation("mirror-host"), r.annotation("mirror-request-body")
	if target == "" {
		return
	}
	m, err := r.remote(target)
	if err != nil {
		r.bad("mirror-target", "%v", err)
		return
	}
	if host != "" {
		m.host = host
	}
	r.o.mirrors = []*mirror{{remote: m, body: body != "off"}}
}

// enforcesRegex reports whether all paths of the hosts of an Ingress are regular
// expressions because of it, as in ingress-nginx.
func (o *options) enforcesRegex(rulePath string) bool {
	return o.useRegex || o.rewrite != "" && o.rewrite != rulePath
}

// compileRegex makes the pattern of a path on a host where paths are patterns:
// what begins like this, whatever its case.
func compileRegex(r *route, exactToo bool) (*regexp.Regexp, error) {
	pattern := r.path
	if r.kind == prefixPath && exactToo && !r.options.enforcesRegex(r.path) {
		pattern = strings.TrimSuffix(path.Clean(pattern), "/") + "/"
	}
	return regexp.Compile("(?i)^" + pattern)
}
