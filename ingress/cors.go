package ingress

import (
	"net/http"
	"strings"
)

// cors is enable-cors and its family.
type cors struct {
	any                              bool // every origin
	origins                          []string
	methods, headers, expose, maxAge string
	credentials                      bool
}

// set adds the fields to an answer, if the client's origin is one of ours.
func (c *cors) set(in *http.Request, h http.Header) bool {
	origin := "*"
	if !c.any {
		if origin = in.Header.Get("Origin"); !c.admits(origin) {
			return false
		}
		h.Add("Vary", "Origin")
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if c.credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	h.Set("Access-Control-Allow-Methods", c.methods)
	h.Set("Access-Control-Allow-Headers", c.headers)
	if c.expose != "" {
		h.Set("Access-Control-Expose-Headers", c.expose)
	}
	h.Set("Access-Control-Max-Age", c.maxAge)
	return true
}

func (c *cors) admits(origin string) bool {
	for _, o := range c.origins {
		before, after, wild := strings.Cut(o, "*")
		if !wild && strings.EqualFold(o, origin) {
			return true
		}
		// "https://*.example.com" is one label, as in ingress-nginx.
		if wild && len(origin) > len(before)+len(after) && strings.HasPrefix(origin, before) && strings.HasSuffix(origin, after) &&
			!strings.ContainsAny(origin[len(before):len(origin)-len(after)], "./:@") {
			return true
		}
	}
	return false
}

// preflight answers OPTIONS as ingress-nginx does.
func (c *cors) preflight(in *http.Request, h http.Header) bool {
	if in.Method != http.MethodOptions || !c.set(in, h) {
		return false
	}
	h.Set("Content-Type", "text/plain charset=UTF-8")
	h.Set("Content-Length", "0")
	return true
}
