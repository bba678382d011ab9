package ingress

import (
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"podgate/kube"
)

// Annotations about which requests go where: redirects, patterns, other names,
// pages for errors, copies.

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
		if pattern, ok := strings.CutPrefix(name, "~"); ok {
			re, err := regexp.Compile("(?i)" + strings.TrimPrefix(pattern, "*"))
			if err != nil {
				r.bad("server-alias", "%v", err)
				continue
			}
			o.patterns = append(o.patterns, re)
			continue
		}
		o.aliases = append(o.aliases, strings.ToLower(name))
	}
	o.host = r.template("upstream-vhost")
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
	r.o.ownErrors = r.flag("disable-proxy-intercept-errors", false)
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
	if m.backend == nil {
		r.bad("mirror-target", "%q is not a Service of this cluster", target)
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
