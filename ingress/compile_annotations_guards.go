package ingress

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// Annotations about who may come in.

// ranges reads prefixes and addresses; nothing readable in a list that is there
// denies all.
func (r *reader) ranges(names ...string) (out []netip.Prefix) {
	v := r.annotation(names...)
	for s := range strings.SplitSeq(v, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		p, err := parseRange(s)
		if err != nil {
			r.deny(names[0], "%q is neither an address nor a prefix", s)
			continue
		}
		out = append(out, p)
	}
	return out
}

// parseRange reads a prefix or an address.
func parseRange(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

func (r *reader) addresses() {
	r.o.allow = r.ranges("whitelist-source-range", "allowlist-source-range")
	r.o.deny = r.ranges("denylist-source-range", "blacklist-source-range")
	switch v := r.annotation("satisfy"); v {
	case "", "all":
	case "any":
		r.o.satisfyAny = true
	default:
		r.bad("satisfy", "%q is neither all nor any", v)
	}
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

// askedFor reads auth-url and its family: the Ingress's, else that of all, which
// the ConfigMap has under names that begin with "global-".
func (r *reader) askedFor() {
	prefix := "auth-"
	if r.annotation("auth-url") == "" && r.flag("enable-global-auth", true) && r.config["global-auth-url"] != "" {
		prefix = "global-auth-"
	}
	value := func(name string) string {
		if v := r.annotation("auth-" + name); prefix == "auth-" {
			return v
		}
		return strings.TrimSpace(r.config[prefix+name])
	}
	target := value("url")
	for _, name := range []string{"keepalive", "keepalive-requests", "keepalive-timeout", "keepalive-share-vars"} {
		r.annotation("auth-" + name) // connections are kept anyway
	}
	a := &authRequest{
		method: strings.ToUpper(value("method")), redirect: r.parse(prefix+"request-redirect", value("request-redirect")),
		signin: r.parse(prefix+"signin", value("signin")), param: value("signin-redirect-param"), told: r.configMap("auth-proxy-set-headers"),
		always: value("always-set-cookie") == "true",
	}
	for name := range strings.SplitSeq(value("response-headers"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			a.fields = append(a.fields, http.CanonicalHeaderKey(name))
		}
	}
	if a.param == "" {
		a.param = "rd"
	}
	if a.method == "" {
		a.method = http.MethodGet
	}
	key, durations := r.parse(prefix+"cache-key", value("cache-key")), value("cache-duration")
	if durations == "" {
		durations = "200 202 401 5m"
	}
	if target == "" {
		return
	}
	if key != nil {
		valid, err := validFor(durations)
		if err != nil {
			r.bad(prefix+"cache-duration", "%v", err)
		}
		a.cache = &decisions{key: key, valid: valid, kept: map[string]*decision{}}
	}
	var err error
	if a.remote, err = r.remote(target); err != nil {
		r.deny(prefix+"url", "%v", err)
		return
	}
	r.o.auth = a
}

// validFor reads times as nginx's proxy_cache_valid has them, with commas between:
// "200 202 10m, 401 5m". A time alone is for 200, 301 and 302, and "any" for all.
func validFor(list string) (map[int]time.Duration, error) {
	valid := map[int]time.Duration{}
	for one := range strings.SplitSeq(list, ",") {
		words := strings.Fields(one)
		if len(words) == 0 {
			continue
		}
		d, err := parseSeconds(words[len(words)-1])
		if err != nil {
			return nil, fmt.Errorf("%q is not a time", words[len(words)-1])
		}
		codes := words[:len(words)-1]
		if len(codes) == 0 {
			codes = []string{"200", "301", "302"}
		}
		for _, code := range codes {
			n, err := strconv.Atoi(code)
			if err != nil && code != "any" {
				return nil, fmt.Errorf("%q is not a status", code)
			}
			valid[n] = d
		}
	}
	return valid, nil
}

// remote is where a URL leads: a Service, a host outside, or a host of ours.
type remote struct {
	backend   *backend // nil: a host of ours
	host      string   // "": the one that the client asked for
	uri       template
	encrypted bool // https
}

// remote finds what a URL names: a Service, as "name[.namespace[.svc[.domain]]]",
// "$host" or a host that an Ingress has rules for, else what is outside, if there
// is a way.
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
	from := 0
	for _, own := range []string{"$host", "$http_host", "$best_http_host"} {
		if strings.HasPrefix(rest, own) {
			from = len(own)
		}
	}
	if i := strings.IndexAny(rest[from:], "/$?"); i >= 0 {
		host, uri = rest[:from+i], rest[from+i:]
	}
	t, err := compileTemplate(uri)
	if err != nil {
		return nil, err
	}
	to := &remote{host: host, uri: t, encrypted: w.protocol == https}
	if from > 0 {
		to.host = ""
		return to, nil
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
	switch {
	case (len(labels) <= 2 || labels[2] == "svc") && r.state.Services[of] != nil:
		to.backend = r.backendOf(of, port, w)
	case r.hasRules(name):
	case len(labels) > 2 && labels[2] != "svc" && r.source.cfg.out:
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a port", port)
		}
		k := poolKey{name: strings.ToLower(name), addr: netip.AddrPortFrom(netip.Addr{}, uint16(n)), wire: w}
		k.wire.tls = tlsKey{name: k.name, sni: true}
		to.backend = &backend{port: host, endpoints: []*endpoint{r.endpoint(k)}, next: new(atomic.Uint32)}
	case len(labels) > 2 && labels[2] != "svc":
		return nil, fmt.Errorf("%q is not a Service of this cluster, and there is no way out", name)
	default:
		return nil, fmt.Errorf("no Service %q in namespace %q", of.Name, of.Namespace)
	}
	return to, nil
}

// hasRules reports whether an Ingress of ours is for this very host.
func (r *reader) hasRules(host string) bool {
	if r.names == nil {
		r.names = map[string]bool{}
		for _, ing := range r.state.Ingresses {
			if r.notOurs(ing).Err == "" {
				for _, rule := range ing.Spec.Rules {
					r.names[strings.ToLower(rule.Host)] = true
				}
			}
		}
	}
	return r.names[strings.ToLower(host)]
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
	case "optional_no_ca":
		c.optional, c.unsigned = true, true
	default:
		r.deny("auth-tls-verify-client", "podgate does not have %q: on, off, optional or optional_no_ca", verify)
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
