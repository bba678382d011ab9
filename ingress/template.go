package ingress

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// template is text with nginx's variables, compiled.
type template []part

type part struct {
	text string
	of   func(q *request) string // nil: the text
}

// variables are those that have one name.
var variables = map[string]func(q *request) string{
	"host":                  func(q *request) string { return q.host },
	"http_host":             func(q *request) string { return q.in.Host },
	"best_http_host":        func(q *request) string { return q.in.Host },
	"uri":                   func(q *request) string { return q.decoded() },
	"request_uri":           func(q *request) string { return q.in.URL.RequestURI() },
	"escaped_request_uri":   func(q *request) string { return url.QueryEscape(q.in.URL.RequestURI()) },
	"args":                  func(q *request) string { return q.in.URL.RawQuery },
	"query_string":          func(q *request) string { return q.in.URL.RawQuery },
	"request_method":        func(q *request) string { return q.in.Method },
	"request_id":            func(q *request) string { return q.id() },
	"remote_addr":           func(q *request) string { return q.origin().String() },
	"binary_remote_addr":    func(q *request) string { return q.origin().String() },
	"remote_user":           func(q *request) string { return q.user },
	"server_name":           func(q *request) string { return q.route.host },
	"namespace":             func(q *request) string { return q.route.ingress.Namespace },
	"ingress_name":          func(q *request) string { return q.route.ingress.Name },
	"service_name":          func(q *request) string { return q.route.backend.service.Name },
	"service_port":          func(q *request) string { return q.route.backend.port },
	"scheme":                func(q *request) string { return q.scheme() },
	"pass_access_scheme":    func(q *request) string { return q.scheme() },
	"http_x_forwarded_for":  func(q *request) string { return q.in.Header.Get("X-Forwarded-For") },
	"is_args":               func(q *request) string { return map[bool]string{true: "?"}[q.in.URL.RawQuery != ""] },
	"proxy_host":            func(q *request) string { return q.route.backend.service.Name },
	"location_path":         func(q *request) string { return q.route.path },
	"server_protocol":       func(q *request) string { return q.in.Proto },
	"http_x_forwarded_host": func(q *request) string { return q.in.Header.Get("X-Forwarded-Host") },
}

// compileTemplate reads text with "$name" and "${name}".
func compileTemplate(text string) (template, error) {
	var t template
	for text != "" {
		plain, rest, ok := strings.Cut(text, "$")
		if plain != "" {
			t = append(t, part{text: plain})
		}
		if !ok {
			break
		}
		var name string
		if braced, found := strings.CutPrefix(rest, "{"); found {
			if name, rest, found = strings.Cut(braced, "}"); !found {
				return nil, fmt.Errorf("%q lacks its closing brace", "${"+braced)
			}
		} else {
			end := strings.IndexFunc(rest, func(r rune) bool {
				return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
			})
			if end < 0 {
				end = len(rest)
			}
			name, rest = rest[:end], rest[end:]
		}
		of := variable(name)
		if of == nil {
			return nil, fmt.Errorf("podgate does not have the variable %q", "$"+name)
		}
		t, text = append(t, part{of: of}), rest
	}
	return t, nil
}

func variable(name string) func(q *request) string {
	if of := variables[name]; of != nil {
		return of
	}
	if field, ok := strings.CutPrefix(name, "http_"); ok {
		field = http.CanonicalHeaderKey(strings.ReplaceAll(field, "_", "-"))
		return func(q *request) string { return q.in.Header.Get(field) }
	}
	if field, ok := strings.CutPrefix(name, "cookie_"); ok {
		return func(q *request) string {
			if c, err := q.in.Cookie(field); err == nil {
				return c.Value
			}
			return ""
		}
	}
	if field, ok := strings.CutPrefix(name, "arg_"); ok {
		return func(q *request) string { return q.in.URL.Query().Get(field) }
	}
	return nil
}

// fixed reports whether it is the same for all requests.
func (t template) fixed() bool {
	return !slices.ContainsFunc(t, func(p part) bool { return p.of != nil })
}

func (t template) String(q *request) string {
	if len(t) == 1 && t[0].of == nil {
		return t[0].text
	}
	var b strings.Builder
	for _, p := range t {
		if p.of == nil {
			b.WriteString(p.text)
		} else {
			b.WriteString(p.of(q))
		}
	}
	return b.String()
}
