package ingress

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"podgate/kube"
)

// Annotations about the fields of requests and answers.

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
	for name := range strings.SplitSeq(r.annotation("hide-headers"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			r.o.hidden = append(r.o.hidden, name)
		}
	}
	r.o.originalURI = r.flag("proxy-add-original-uri-header", false)
	domain, path := r.replacement("proxy-cookie-domain", true), r.replacement("proxy-cookie-path", false)
	if domain != nil || path != nil {
		r.o.cookies = &cookieEdits{domain, path}
	}
	from, to := r.annotation("proxy-redirect-from"), r.annotation("proxy-redirect-to")
	if from != "" && from != "off" && from != "default" && to != "off" {
		if to == "" {
			r.bad("proxy-redirect-from", "needs proxy-redirect-to")
		} else if r.o.location, _ = newTextEdit(from, to, false); r.o.location == nil {
			r.bad("proxy-redirect-from", "%q is no pattern", from)
		}
	}
	r.o.silent = r.flag("disable-access-log", false) || !r.flag("enable-access-log", true)
}

// replacement reads "FROM TO", nil for "off".
func (r *reader) replacement(name string, whole bool) *textEdit {
	v := r.annotation(name)
	if v == "" || v == "off" {
		return nil
	}
	words := strings.Fields(v)
	if len(words) != 2 {
		r.bad(name, "%q is not what is replaced and by what", v)
		return nil
	}
	e, err := newTextEdit(words[0], words[1], whole)
	if err != nil {
		r.bad(name, "%v", err)
	}
	return e
}
