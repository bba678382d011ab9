package ingress

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Affinity by cookie
//
// A cookie is "KEY|BACKEND". The backend's part tells whose session it is: a
// route's or its canary's, where it then stays, whatever the canary's rules say,
// unless affinity-canary-behavior is legacy. In the balanced mode the key is
// random, and the endpoint is the one that its hash prefers: when endpoints come
// some sessions move to them, and when one goes only its own move, with the cookie
// that they have. In the persistent mode the key is the endpoint, and a session
// stays while that is there.

// sticky is affinity by cookie.
type sticky struct {
	name, path, domain string
	maxAge, expires    int // seconds, 0 none
	sameSite           http.SameSite
	secure             *bool // nil: where the client's connection is encrypted
	careful            bool  // SameSite=None is not for browsers that misread it
	change             bool  // the cookie follows when another endpoint had to answer
	persistent         bool
	notCanaries        bool // canaries decide anew for each request
}

// tag names a backend in cookies, and tells nothing of it.
func (b *backend) tag() string {
	sum := sha256.Sum256([]byte("podgate backend " + b.service.String() + " " + b.port))
	return hex.EncodeToString(sum[:8])
}

// key is what the cookie of a request says for a backend; "" if it is no cookie of its.
func (s *sticky) key(in *http.Request, b *backend) string {
	c, err := in.Cookie(s.name)
	if err != nil {
		return ""
	}
	key, tag, _ := strings.Cut(c.Value, "|")
	if tag != b.tag() {
		return ""
	}
	return key
}

// of is the endpoint of a session, nil if it is gone.
func (s *sticky) of(key string, b *backend, usable func(*endpoint) bool) *endpoint {
	if !s.persistent {
		return preferred(key, b.endpoints, usable)
	}
	for _, e := range b.endpoints {
		if e.id == key {
			return e
		}
	}
	return nil
}

func whatever(*endpoint) bool { return true }

// choose returns the endpoint of a request's session or, in the balanced mode, of a
// new one; nil: anyone.
func (s *sticky) choose(q *request, b *backend, usable func(*endpoint) bool) *endpoint {
	if key := s.key(q.in, b); key != "" {
		return s.of(key, b, whatever)
	}
	if s.persistent {
		return nil
	}
	q.session = requestID()
	e := s.of(q.session, b, usable)
	if e != nil && e != s.of(q.session, b, whatever) {
		q.session = "" // it would lead to one that is out
	}
	return e
}

// keyFor makes a key whose endpoint is e; "" if none was found.
func (s *sticky) keyFor(e *endpoint, b *backend) string {
	if s.persistent {
		return e.id
	}
	for range 16 * len(b.endpoints) {
		if key := requestID(); s.of(key, b, whatever) == e {
			return key
		}
	}
	return ""
}

// set gives the client its cookie, unless it has one that still leads somewhere.
func (s *sticky) set(q *request, b *backend, e *endpoint, h http.Header) {
	key := q.session
	if had := s.key(q.in, b); had != "" {
		if now := s.of(had, b, whatever); now == e || now != nil && !s.change {
			return
		}
		key = ""
	}
	if key == "" || s.of(key, b, whatever) != e {
		if key = s.keyFor(e, b); key == "" {
			return
		}
	}
	c := http.Cookie{
		Name: s.name, Value: key + "|" + b.tag(), Path: s.path, Domain: s.domain, HttpOnly: true, MaxAge: s.maxAge, SameSite: s.sameSite, Secure: q.secure(),
	}
	if c.Path == "" {
		c.Path = q.route.path
	}
	if c.Path == "" || q.route.pattern != nil && s.path == "" {
		c.Path = "/"
	}
	if s.secure != nil {
		c.Secure = *s.secure
	}
	if s.careful && c.SameSite == http.SameSiteNoneMode && misreadsNone(q.in.UserAgent()) {
		c.SameSite = 0
	}
	if s.expires > 0 {
		c.Expires = q.now().Add(time.Duration(s.expires) * time.Second)
	}
	h.Add("Set-Cookie", c.String())
}

// takesCanary reports whether a request is the canary's: by its session, else by
// the canary's rules.
func (q *request) takesCanary(c *canary) bool {
	if s := q.route.options.sticky; s != nil && !s.notCanaries && !c.alone {
		if s.key(q.in, q.route.backend) != "" {
			return false
		}
		if s.key(q.in, c.backend) != "" {
			return true
		}
	}
	return c.takes(q.in, rand.IntN)
}

// misreadsNone reports whether a browser takes SameSite=None for Strict or refuses
// it, as the Chromium project lists them: those of iOS 12, Safari of macOS 10.14,
// Chrome 51 to 66, UC Browser before 12.13.2.
func misreadsNone(agent string) bool {
	return strings.Contains(agent, "(iP") && strings.Contains(agent, "OS 12_") ||
		macOS1014.MatchString(agent) && !strings.Contains(agent, "Chrom") ||
		oldChrome.MatchString(agent) && !strings.Contains(agent, "UCBrowser/") ||
		oldUC.MatchString(agent)
}

var (
	macOS1014 = regexp.MustCompile(`\(Macintosh;.*Mac OS X 10_14[_\d]*.*\) (Version/.* Safari/|AppleWebKit/[.\d]+ \(KHTML, like Gecko\)$)`)
	oldChrome = regexp.MustCompile(`Chrom(e|ium)/(5[1-9]|6[0-6])\.`)
	oldUC     = regexp.MustCompile(`UCBrowser/(\d\.|1[01]\.|12\.(\d\.|1[0-2]\.|13\.[01]\.))`)
)
