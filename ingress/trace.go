package ingress

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Trace is what happens to a request, and why.
type Trace struct {
	Lines  []string `json:"lines"`
	Status int      `json:"status"` // that podgate answers itself; 0: the request goes to an endpoint
}

func (t *Trace) say(format string, args ...any) {
	t.Lines = append(t.Lines, fmt.Sprintf(format, args...))
}

// maxOthers bounds the rules of which a Trace says why they did not match.
const maxOthers = 12

// Trace says in sentences what happens to a GET request, by the routing that
// requests get. The host may have a port, the path is as in a URL.
func (r *Routes) Trace(hostname, path string, tls bool) *Trace {
	path, query, _ := strings.Cut(path, "?")
	if t := r.traceGateways(hostname, path, query, tls); t != nil {
		return t
	}
	t := &Trace{}
	scheme := "http"
	if tls {
		scheme = "https"
	}
	name, clean := matchHost(hostname), cleanPath(path)
	t.say("request %s://%s%s", scheme, hostname, path)
	if clean != path {
		t.say("path is taken as %s", clean)
	}
	if tls {
		t.say("certificate: %s", r.certs.describe(name))
	}
	h, rt := r.match(name, matchPath(clean))
	switch {
	case h == nil:
		t.say("host %q: no rule is for it", name)
	case h.name == "":
		t.say("host %q: rules without host", name)
	case h.name == name:
		t.say("host %q: rules of its own", name)
	default:
		t.say("host %q: rules for %q", name, h.name)
	}
	switch {
	case rt == nil:
		t.say("path %q: no rule matches and no Ingress has a default backend", clean)
	case rt.kind == defaultBackend:
		t.say("path %q: no rule matches; default backend of %s", clean, rt.object())
	case rt.pattern != nil:
		t.say("path %q: pattern %q of %s, %s", clean, rt.path, rt.object(), rt.field)
	default:
		t.say("path %q: %s %q of %s, %s", clean, rt.kind, rt.path, rt.object(), rt.field)
	}
	if h != nil {
		t.others(h, rt, matchPath(clean))
	}
	if rt == nil {
		t.Status = http.StatusNotFound
		t.say("answered 404 by podgate")
		return t
	}
	t.answer(r, rt, name, clean, tls)
	return t
}

// others says why the other rules of a host do not count for a path.
func (t *Trace) others(h *host, taken *route, path string) {
	all := slices.AppendSeq(slices.Collect(maps.Values(h.exact)), maps.Values(h.prefix))
	for _, r := range all {
		for next := r.next; next != nil; next = next.next {
			all = append(all, next)
		}
	}
	all = append(all, h.regexes...)
	slices.SortStableFunc(all, func(a, b *route) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.kind, b.kind))
	})
	said := 0
	for _, r := range all {
		if r == taken {
			continue
		}
		if said++; said > maxOthers {
			t.say("not %d more", len(all)-said)
			return
		}
		why := "the path is another"
		prefix := strings.TrimSuffix(matchPath(r.path), "/")
		switch below := path == prefix || strings.HasPrefix(path, prefix+"/"); {
		case r.pattern != nil && r.pattern.MatchString(decoded(path)):
			why = "a shorter pattern"
		case r.pattern != nil, h.patterns != nil:
			why = "the path does not match the pattern"
		case r.kind == exactPath:
		case r.when != nil && (r.kind == exactPath && path == matchPath(r.path) || r.kind == prefixPath && below):
			why = "it needs " + r.when.String() + ", or goes after"
		case below && taken != nil && taken.kind == exactPath:
			why = "an exact path goes before"
		case below:
			why = "a shorter prefix"
		default:
			why = "the path is not below it"
		}
		t.say("not %s %q of %s: %s", r.kind, r.path, r.object(), why)
	}
}

// answer follows the order in which requests are answered.
func (t *Trace) answer(r *Routes, rt *route, name, path string, tls bool) {
	o := rt.options
	end := func(status int, format string, args ...any) {
		t.Status = status
		t.say("answered %d by podgate: "+format, append([]any{status}, args...)...)
	}
	switch {
	case o.denied != "":
		end(http.StatusServiceUnavailable, "closed, as %s", o.denied)
		return
	case o.appRoot != "" && path == "/":
		end(http.StatusFound, "redirect to %s (annotation app-root)", o.appRoot)
		return
	case o.redirect != nil:
		end(o.redirect.code, "redirect by annotation")
		return
	case !tls && o.forceSSL && !rt.clear:
		end(o.code, "redirect to https (annotation force-ssl-redirect)")
		return
	case !tls && r.redirects(rt, name):
		end(o.code, `redirect to https, as the host has TLS (annotation ssl-redirect: "false" turns it off)`)
		return
	}
	for _, guard := range []struct {
		there bool
		what  string
	}{
		{o.client != nil, "a client certificate (auth-tls-secret)"}, {o.limit != nil, "limits (limit-rps, limit-rpm, limit-connections)"},
		{len(o.deny) > 0, "an address outside " + fmt.Sprint(o.deny) + " (denylist-source-range)"}, {len(o.allow) > 0, "an address in " + fmt.Sprint(o.allow) + " (whitelist-source-range)"},
		{o.basic != nil && !rt.open, "a name and password (auth-type basic)"}, {o.auth != nil && !rt.open, "the consent of auth-url"},
	} {
		if guard.there {
			t.say("guard: needs %s", guard.what)
		}
	}
	if o.satisfyAny {
		t.say("guards: of address, password and auth-url one is enough (satisfy: any)")
	}
	if c := rt.canary; c != nil {
		t.say("canary of Ingress %s: %s, for %d of %d and those who ask for it", c.ingress, c.backend, c.weight, c.total)
	}
	if o.rewrite != "" && rt.pattern != nil {
		t.say("path is rewritten to %s", expand(o.rewrite, rt.pattern.FindStringSubmatch(decoded(matchPath(path)))))
	}
	b := rt.backend
	if len(b.endpoints) == 0 && o.fallback != nil {
		t.say("backend %s: %s", b, b.why)
		b = o.fallback
	}
	if len(b.endpoints) == 0 {
		t.say("backend %s: %s", b, b.why)
		t.Status = http.StatusServiceUnavailable
		t.say("answered 503 by podgate")
		return
	}
	how := "in turn"
	switch {
	case o.sticky != nil:
		how = "by cookie " + o.sticky.name
	case o.hash != nil:
		how = "by hash"
	case o.least:
		how = "by latency and load"
	}
	if o.slowStart > 0 {
		how += ", new ones at first seldom (slow-start)"
	}
	if b.wire.asClient {
		how += ", from the client's own address"
	}
	t.say("backend %s: %d endpoints %s: %s", b, len(b.endpoints), how, join(b.endpoints, 8))
}

// join lists at most n of the addresses.
func join(addrs []*endpoint, n int) string {
	var s []string
	for i, a := range addrs {
		if i == n {
			s = append(s, fmt.Sprintf("and %d more", len(addrs)-n))
			break
		}
		s = append(s, a.String())
	}
	return strings.Join(s, ", ")
}
