package ingress

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// What the filters of routes do to requests and answers.

// edits change the fields of a header.
type edits struct {
	set, add []fieldValue
	remove   []string
}

type fieldValue struct{ name, value string }

// apply changes a header; nil changes nothing.
func (e *edits) apply(h http.Header) {
	if e == nil {
		return
	}
	for _, f := range e.set {
		h[f.name] = []string{f.value}
	}
	for _, f := range e.add {
		if had := h[f.name]; len(had) > 0 && f.name != "Set-Cookie" {
			h[f.name] = []string{strings.Join(had, ",") + "," + f.value}
		} else {
			h[f.name] = append(slices.Clip(had), f.value)
		}
	}
	for _, name := range e.remove {
		delete(h, name)
	}
}

// pathEdit replaces a path, or the prefix that its rule matches.
type pathEdit struct {
	full   bool
	to     string // escaped
	prefix string // of the rule, without its last slash
}

// path is the edited form of an escaped path.
func (p *pathEdit) path(of string) string {
	if p == nil {
		return of
	}
	to := p.to
	if !p.full {
		rest := below(of, strings.Count(p.prefix, "/"))
		to = strings.TrimSuffix(to, "/") + rest
		if rest == "" {
			to = p.to
		}
	}
	if !strings.HasPrefix(to, "/") {
		to = "/" + to
	}
	return to
}

// below is what follows the first elements of a path, with its slash. A path's
// encoding may differ from that of the prefix that matched it.
func below(path string, elements int) string {
	for range elements {
		i := strings.IndexByte(path[1:], '/')
		if i < 0 {
			return ""
		}
		path = path[i+1:]
	}
	return path
}

// apply edits the path of a request for an endpoint; nil edits nothing.
func (p *pathEdit) apply(q *request, u *url.URL) {
	if p == nil {
		return
	}
	setPath(u, p.path(q.path))
}

func setPath(u *url.URL, escaped string) {
	if plain, err := url.PathUnescape(escaped); err == nil {
		u.Path, u.RawPath = plain, escaped
	} else {
		u.Path, u.RawPath = escaped, ""
	}
}

// target is the path and query that endpoints get.
func (q *request) target() string {
	u := url.URL{RawQuery: q.in.URL.RawQuery}
	setPath(&u, q.route.options.path.path(q.path))
	return u.RequestURI()
}

// redirectTo is where a RequestRedirect filter leads.
type redirectTo struct {
	scheme, hostname string // "" the request's
	port             uint16 // 0: that of the scheme, or of the listener
	path             *pathEdit
}

func (r *redirectTo) location(q *request) string {
	scheme, host, port := r.scheme, r.hostname, r.port
	if scheme == "" {
		scheme = q.scheme()
	}
	if host == "" {
		host = q.in.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = strings.Trim(host, "[]")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == 0 {
		if port = wellKnown[scheme]; r.scheme == "" && q.listener != nil {
			port = q.listener.port
		}
		port += q.moved() // what has no place of its own is where all such ports are
	}
	if port != wellKnown[scheme] {
		host += ":" + strconv.Itoa(int(port))
	}
	to := scheme + "://" + host + r.path.path(q.path)
	if q.in.URL.RawQuery != "" {
		to += "?" + q.in.URL.RawQuery
	}
	return to
}

// moved is how far above its listener's port a request arrived: low ports need
// privilege (publish.lowports).
func (q *request) moved() uint16 {
	by := q.cfg.Gateway.LowPorts
	if door := q.entry.door.Port(); q.listener == nil || door >= 1024 || q.local.Port() != door+by {
		return 0
	}
	return by
}

var wellKnown = map[string]uint16{"http": 80, "https": 443}

// corsFilter is the CORS filter of routes. It echoes what was asked for rather
// than a wildcard: so it is right with credentials and without.
type corsFilter struct {
	origins                  []string // "*", or with a wildcard as the first label of the host
	methods, headers, expose []string
	credentials              bool
	maxAge                   string // seconds
}

func (c *corsFilter) admits(origin string) bool {
	if origin == "" {
		return false
	}
	for _, o := range c.origins {
		switch before, after, wild := strings.Cut(withPort(o), "*"); {
		case o == "*":
			return true
		case !wild:
			if strings.EqualFold(withPort(o), withPort(origin)) {
				return true
			}
		default:
			got := strings.ToLower(withPort(origin))
			before, after = strings.ToLower(before), strings.ToLower(after)
			if len(got) > len(before)+len(after) && strings.HasPrefix(got, before) && strings.HasSuffix(got, after) &&
				!strings.ContainsAny(got[len(before):len(got)-len(after)], "/:@") {
				return true
			}
		}
	}
	return false
}

// withPort is an origin with the port that it means.
func withPort(origin string) string {
	scheme, host, ok := strings.Cut(origin, "://")
	if port := wellKnown[strings.ToLower(scheme)]; ok && port != 0 && !strings.Contains(host[strings.LastIndexByte(host, ']')+1:], ":") {
		return origin + ":" + strconv.Itoa(int(port))
	}
	return origin
}

func (c *corsFilter) set(in *http.Request, h http.Header) bool {
	for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers"} {
		h.Del(name) // the endpoint's are not asked
	}
	h.Add("Vary", "Origin")
	origin := in.Header.Get("Origin")
	if !c.admits(origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if c.credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if len(c.expose) > 0 && !(c.credentials && slices.Contains(c.expose, "*")) {
		h.Set("Access-Control-Expose-Headers", strings.Join(c.expose, ", "))
	}
	return true
}

func (c *corsFilter) preflight(in *http.Request, h http.Header) bool {
	method := in.Header.Get("Access-Control-Request-Method")
	if in.Method != http.MethodOptions || method == "" || in.Header.Get("Origin") == "" {
		return false
	}
	if c.set(in, h) {
		allow(h, "Access-Control-Allow-Methods", c.methods, method)
		allow(h, "Access-Control-Allow-Headers", c.headers, strings.Join(in.Header.Values("Access-Control-Request-Headers"), ", "))
		h.Set("Access-Control-Max-Age", c.maxAge)
	}
	return true
}

// allow says what is allowed, if it was asked for; a wildcard allows what was.
func allow(h http.Header, name string, allowed []string, asked string) {
	switch {
	case len(allowed) == 0 || asked == "":
	case slices.Contains(allowed, "*"):
		h.Set(name, asked)
	default:
		h.Set(name, strings.Join(allowed, ", "))
	}
}
