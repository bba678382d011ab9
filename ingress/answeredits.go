package ingress

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// What proxy-cookie-domain, proxy-cookie-path and proxy-redirect change in answers:
// places that an endpoint names by its own view of the world.

// textEdit replaces the beginning of a text or, with a pattern, the whole of what matches.
type textEdit struct {
	from    string
	pattern *regexp.Regexp // nil: from
	to      string         // with $1 to $9 for a pattern's groups
	whole   bool           // from is all of the text, or all after a dot: a domain
}

// newTextEdit reads "~pattern", "~*pattern" or a text.
func newTextEdit(from, to string, whole bool) (*textEdit, error) {
	e := &textEdit{from: from, to: to, whole: whole}
	pattern, ok := strings.CutPrefix(from, "~*")
	if ok {
		pattern = "(?i)" + pattern
	} else if pattern, ok = strings.CutPrefix(from, "~"); !ok {
		return e, nil
	}
	if whole {
		pattern = "(?i)" + pattern
	}
	var err error
	if e.pattern, err = regexp.Compile(pattern); err != nil {
		return nil, fmt.Errorf("%q is no pattern: %w", from, err)
	}
	return e, nil
}

// apply returns the text as clients get it.
func (e *textEdit) apply(text string) string {
	switch {
	case e == nil:
	case e.pattern != nil:
		if groups := e.pattern.FindStringSubmatch(text); groups != nil {
			return expand(e.to, groups)
		}
	case e.whole:
		if strings.EqualFold(strings.TrimPrefix(text, "."), strings.TrimPrefix(e.from, ".")) {
			return e.to
		}
	case strings.HasPrefix(text, e.from):
		return e.to + text[len(e.from):]
	}
	return text
}

// applyTo changes the fields that send a client elsewhere.
func (e *textEdit) applyTo(h http.Header) {
	if e == nil {
		return
	}
	if v := h.Get("Location"); v != "" {
		h.Set("Location", e.apply(v))
	}
	if before, target, ok := strings.Cut(h.Get("Refresh"), "url="); ok {
		h.Set("Refresh", before+"url="+e.apply(target))
	}
}

// cookieEdits change the attributes of an endpoint's cookies.
type cookieEdits struct{ domain, path *textEdit }

func (c *cookieEdits) apply(h http.Header) {
	if c == nil {
		return
	}
	for i, cookie := range h["Set-Cookie"] {
		parts := strings.Split(cookie, ";")
		for j, part := range parts[1:] {
			name, value, ok := strings.Cut(part, "=")
			edit := map[string]*textEdit{"domain": c.domain, "path": c.path}[strings.ToLower(strings.TrimSpace(name))]
			if ok && edit != nil {
				parts[1+j] = name + "=" + edit.apply(strings.TrimSpace(value))
			}
		}
		h["Set-Cookie"][i] = strings.Join(parts, ";")
	}
}
