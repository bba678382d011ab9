package ingress

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// limit is what one client may take of one Ingress.
type limit struct {
	limits
	exempt  []netip.Prefix // except, parsed
	mu      sync.Mutex
	clients map[netip.Addr]*usage
}

// limits are those that an Ingress asks for; 0 none.
type limits struct {
	rps, rpm, connections int
	burst                 int    // multiplies a rate
	except                string // prefixes, as written
	rateStatus, status    int
}

type usage struct {
	open    int
	perSec  float64 // excess over the rate, as nginx's limit_req counts it
	perMin  float64
	checked time.Time
}

const maxClients = 65536 // whose use of an Ingress is remembered

// take counts a request; a status that is not 0 refuses it.
func (l *limit) take(client netip.Addr, now time.Time) (done func(), status int) {
	if contains(l.exempt, client) {
		return nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.clients[client]
	if u == nil {
		if len(l.clients) >= maxClients {
			l.forget(now)
		}
		u = &usage{checked: now, perSec: -1, perMin: -1}
		l.clients[client] = u
	}
	passed := now.Sub(u.checked).Seconds()
	u.checked = now
	excess := func(have *float64, rate float64, burst int) bool {
		if rate == 0 {
			return true
		}
		next := max(*have-passed*rate, -1) + 1
		if next > float64(burst) {
			*have = next - 1
			return false
		}
		*have = next
		return true
	}
	if !excess(&u.perSec, float64(l.rps), l.rps*l.burst) || !excess(&u.perMin, float64(l.rpm)/60, l.rpm*l.burst) {
		return nil, l.rateStatus
	}
	if l.connections == 0 {
		return nil, 0
	}
	if u.open >= l.connections {
		return nil, l.status
	}
	u.open++
	return func() {
		l.mu.Lock()
		u.open--
		l.mu.Unlock()
	}, 0
}

// forget drops clients that have nothing open and have been quiet for a minute,
// or whoever comes first if there are none.
func (l *limit) forget(now time.Time) {
	for a, u := range l.clients {
		if u.open == 0 && now.Sub(u.checked) > time.Minute {
			delete(l.clients, a)
		}
	}
	for a, u := range l.clients {
		if len(l.clients) < maxClients {
			break
		}
		if u.open == 0 {
			delete(l.clients, a)
		}
	}
}

// basicAuth is names and their passwords, as htpasswd writes them.
type basicAuth struct {
	realm string
	users map[string]string
	known sync.Map // SHA-256 of name and password that were right: bcrypt is slow by design
}

func parseUsers(file []byte) map[string]string {
	users := map[string]string{}
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSpace(line)
		if name, rest, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "#") {
			hash, _, _ := strings.Cut(rest, ":")
			users[name] = hash
		}
	}
	return users
}

func (b *basicAuth) verify(name, password string) bool {
	hash, ok := b.users[name]
	if !ok {
		return false
	}
	sum := sha256.Sum256([]byte(name + "\x00" + password + "\x00" + hash))
	if _, ok := b.known.Load(sum); ok {
		return true
	}
	if !verifyHash(hash, password) {
		return false
	}
	b.known.Store(sum, nil)
	return true
}

func verifyHash(hash, password string) bool {
	equal := func(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	switch {
	case strings.HasPrefix(hash, "$2"):
		return bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil
	case strings.HasPrefix(hash, "$apr1$"):
		salt, _, _ := strings.Cut(hash[len("$apr1$"):], "$")
		return equal(hash, apr1(password, salt))
	case strings.HasPrefix(hash, "{SHA}"):
		sum := sha1.Sum([]byte(password))
		return equal(hash[len("{SHA}"):], base64.StdEncoding.EncodeToString(sum[:]))
	case strings.HasPrefix(hash, "{SSHA}"):
		raw, err := base64.StdEncoding.DecodeString(hash[len("{SSHA}"):])
		if err != nil || len(raw) < sha1.Size {
			return false
		}
		sum := sha1.Sum(append([]byte(password), raw[sha1.Size:]...))
		return equal(string(raw[:sha1.Size]), string(sum[:]))
	case strings.HasPrefix(hash, "{PLAIN}"):
		return equal(hash[len("{PLAIN}"):], password)
	}
	return false
}

// apr1 is Apache's variant of the MD5 crypt, which htpasswd writes by default.
func apr1(password, salt string) string {
	salt = salt[:min(8, len(salt))]
	sum := func(parts ...string) []byte {
		s := md5.Sum([]byte(strings.Join(parts, "")))
		return s[:]
	}
	inner := sum(password, salt, password)
	var b bytes.Buffer
	b.WriteString(password + "$apr1$" + salt)
	for n := len(password); n > 0; n -= 16 {
		b.Write(inner[:min(16, n)])
	}
	for n := len(password); n > 0; n >>= 1 {
		if n&1 == 1 {
			b.WriteByte(0)
		} else {
			b.WriteByte(password[0])
		}
	}
	final := sum(b.String())
	for i := range 1000 {
		var parts []string
		add := func(when bool, s string) {
			if when {
				parts = append(parts, s)
			}
		}
		add(i&1 == 1, password)
		add(i&1 == 0, string(final))
		add(i%3 != 0, salt)
		add(i%7 != 0, password)
		add(i&1 == 1, string(final))
		add(i&1 == 0, password)
		final = sum(parts...)
	}
	const alphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	out := "$apr1$" + salt + "$"
	put := func(v uint32, n int) {
		for range n {
			out += alphabet[v&63 : v&63+1]
			v >>= 6
		}
	}
	for i := range 5 {
		put(uint32(final[i])<<16|uint32(final[i+6])<<8|uint32(final[[]int{12, 13, 14, 15, 5}[i]]), 4)
	}
	put(uint32(final[11]), 2)
	return out
}

// clientTLS is which certificates clients must have.
type clientTLS struct {
	roots    *x509.CertPool
	optional bool // none will do as well
	unsigned bool // and so will one that nobody signed
	depth    int  // certificates between the client's and the root, at most
	subject  *regexp.Regexp
	page     string // where those without are sent
	pass     bool   // the certificate goes to the endpoint

	verified sync.Map // SHA-256 of certificates that were good, until when
}

// refuses verifies what TLS was asked to ask for; nil: the client may pass.
func (c *clientTLS) refuses(q *request) ownAnswer {
	var certs []*x509.Certificate
	if q.tls != nil {
		certs = q.tls.PeerCertificates
	}
	var err error
	switch {
	case len(certs) == 0 && c.optional:
		return nil
	case len(certs) == 0:
		err = fmt.Errorf("no required client certificate was sent")
	default:
		err = c.verify(certs, q.now())
	}
	if c.unsigned && err != nil {
		q.unverified, err = err, nil
	}
	if err == nil && c.subject != nil && !c.subject.MatchString("CN="+certs[0].Subject.CommonName) {
		return q.refusal(http.StatusForbidden, "the client certificate's name does not match auth-tls-match-cn")
	}
	switch {
	case err == nil:
		return nil
	case c.page != "":
		return func(w http.ResponseWriter) { q.refer(w, http.StatusFound, c.page) }
	}
	return func(w http.ResponseWriter) { q.page(w, http.StatusBadRequest, err) }
}

func (c *clientTLS) verify(certs []*x509.Certificate, now time.Time) error {
	sum := sha256.Sum256(certs[0].Raw)
	if until, ok := c.verified.Load(sum); ok && now.Before(until.(time.Time)) {
		return nil
	}
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("the client certificate: %w", err)
	}
	if !withinDepth(chains, c.depth) {
		return fmt.Errorf("the client certificate's chain is longer than auth-tls-verify-depth")
	}
	c.verified.Store(sum, certs[0].NotAfter)
	return nil
}

// withinDepth reports whether one of these has at most that many certificates
// between its first and its root.
func withinDepth(chains [][]*x509.Certificate, depth int) bool {
	return slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool { return len(chain)-2 <= depth })
}

// tell says who the client is, as ingress-nginx does.
func (c *clientTLS) tell(state *tls.ConnectionState, unverified error, h http.Header) {
	for _, name := range []string{"Ssl-Client-Verify", "Ssl-Client-Subject-Dn", "Ssl-Client-Issuer-Dn", "Ssl-Client-Cert"} {
		h.Del(name)
	}
	if state == nil || len(state.PeerCertificates) == 0 {
		h.Set("Ssl-Client-Verify", "NONE")
		return
	}
	cert := state.PeerCertificates[0]
	h.Set("Ssl-Client-Verify", "SUCCESS")
	if unverified != nil {
		h.Set("Ssl-Client-Verify", "FAILED:"+unverified.Error())
	}
	h.Set("Ssl-Client-Subject-Dn", cert.Subject.String())
	h.Set("Ssl-Client-Issuer-Dn", cert.Issuer.String())
	if c.pass {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		h.Set("Ssl-Client-Cert", url.PathEscape(string(text)))
	}
}
