package ingress

import (
	"fmt"
	"html"
	"net/http"
	"strings"
)

// maxListed bounds the routes that a page lists.
const maxListed = 40

// page answers with an error of our own. A client on this host is told what is
// known: it is the person who runs podgate. Others learn the status only.
func (q *request) page(w http.ResponseWriter, status int, err error) {
	if q.route != nil {
		q.dress(w.Header())
		if answer := q.errorPage(status); answer != nil {
			writeAnswer(w, answer)
			return
		}
	}
	if isGRPC(q.in) {
		grpcStatus(w, status, err)
		return
	}
	var lines []string
	if q.client.IsLoopback() {
		lines = q.reasons(status, err)
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	var body string
	if strings.Contains(q.in.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		body = htmlPage(title, lines)
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = strings.Join(append([]string{title}, lines...), "\n") + "\n"
	}
	w.WriteHeader(status)
	if q.in.Method != http.MethodHead {
		fmt.Fprint(w, body)
	}
}

// isGRPC reports whether a request is a call of gRPC.
func isGRPC(in *http.Request) bool {
	kind := in.Header.Get("Content-Type")
	return in.ProtoMajor == 2 && (kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+"))
}

// grpcStatus answers a call with an error, as an answer without messages.
func grpcStatus(w http.ResponseWriter, status int, err error) {
	code, ok := grpcCodes[status]
	if !ok {
		code = "2" // unknown
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", code)
	message := http.StatusText(status)
	if status == http.StatusGatewayTimeout && err != nil {
		message = "the deadline of the route has passed"
	}
	h.Set("Grpc-Message", message)
	w.WriteHeader(http.StatusOK)
}

// grpcCodes are the codes of gRPC that statuses of ours are.
var grpcCodes = map[int]string{
	http.StatusBadRequest: "13", http.StatusUnauthorized: "16", http.StatusForbidden: "7", http.StatusNotFound: "12",
	http.StatusRequestEntityTooLarge: "8", http.StatusTooManyRequests: "8", http.StatusInternalServerError: "14",
	http.StatusBadGateway: "14", http.StatusServiceUnavailable: "14", http.StatusGatewayTimeout: "4",
}

// reasons says why a request is answered with this status.
func (q *request) reasons(status int, err error) []string {
	switch {
	case q.route == nil && status == http.StatusBadRequest:
		return []string{"podgate does not proxy such a request target."}
	case q.route == nil && status == http.StatusRequestHeaderFieldsTooLarge:
		return []string{fmt.Sprintf("A request has at most %d header fields.", maxFields)}
	case q.route == nil && q.listener != nil:
		return []string{fmt.Sprintf("No route of listener %s of Gateway %s matches.", q.listener.name, q.listener.gateway)}
	case q.route == nil && !q.entry.ingress():
		return []string{fmt.Sprintf("No listener of a Gateway at %s is for host %q.", q.entry.door, q.host)}
	case q.route == nil:
		what := fmt.Sprintf("No Ingress has rules for host %q.", q.host)
		if q.table != nil {
			what = fmt.Sprintf("No Ingress rule for host %q has path %q.", q.table.name, q.path)
		}
		return append([]string{what}, q.routed()...)
	}
	where := fmt.Sprintf("%s, from %s (%s)", q.route.backend, q.route.object(), q.route.field)
	if err != nil {
		return []string{where + ":", err.Error() + "."}
	}
	if q.backend != nil {
		return []string{where + ":", q.backend.why + "."}
	}
	return []string{where + "."}
}

// routed lists what would have been answered.
func (q *request) routed() []string {
	entries := q.live.Entries()
	if len(entries) == 0 {
		return []string{"There is no Ingress that podgate serves."}
	}
	lines := []string{"Routed are:"}
	for i, e := range entries {
		if i == maxListed {
			return append(lines, fmt.Sprintf("  and %d more", len(entries)-i))
		}
		scheme, host := "http", e.Host
		if e.TLS {
			scheme = "https"
		}
		if host == "" {
			host = "any host"
		}
		path := e.Path
		if path == "" {
			path = " otherwise"
		}
		to := (&backend{service: e.Service, port: e.Port}).String()
		if e.Ready == 0 {
			to += " (" + e.Why + ")"
		}
		lines = append(lines, fmt.Sprintf("  %s://%s%s (%s) to %s, Ingress %s", scheme, host, path, e.Type, to, e.Ingress))
	}
	return append(lines, "", "podgate trace http://HOST/PATH says why a request goes where it goes.")
}

const htmlHead = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>%[1]s</title>
<meta name="viewport" content="width=device-width">
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:48rem;margin:15vh auto 0;padding:0 1.5rem;color:#222;background:#fff}
h1{font-size:1.4rem;font-weight:600}pre{font:.9rem/1.6 ui-monospace,monospace;white-space:pre-wrap}
footer{color:#777;font-size:.85rem}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}</style></head>
<body><h1>%[1]s</h1>
`

func htmlPage(title string, lines []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, htmlHead, html.EscapeString(title))
	if len(lines) > 0 {
		fmt.Fprintf(&b, "<pre>%s</pre>\n", html.EscapeString(strings.Join(lines, "\n")))
	}
	b.WriteString("<footer>podgate</footer></body></html>\n")
	return b.String()
}
