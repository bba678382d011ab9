package ingress

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"

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
