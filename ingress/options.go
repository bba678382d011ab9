package ingress

import (
	"crypto/x509"
	"net/http"
	"net/netip"
	"regexp"
	"time"

	"podgate/kube"
)

// options are what an Ingress asks of its requests besides where they go. They
// are made of annotations once, when Routes are compiled, and immutable: what
// counts over time (limits) is behind pointers that outlive them.
type options struct {
	sslRedirect bool // to HTTPS where the host has TLS
	forceSSL    bool // to HTTPS in any case
	code        int  // of redirects to HTTPS and between hosts

	useRegex bool   // paths are regular expressions
	rewrite  string // "$1" and so on are the groups of the path
	prefix   string // X-Forwarded-Prefix of what is rewritten
	appRoot  string
	redirect *redirection
	aliases  []string
	patterns []*regexp.Regexp // that further names match
	www      bool             // the host with "www." is redirected here, or the one without

	wire      wire
	bodySize  int64         // bytes of a request's body, 0 any
	pace      pace          // of answers' bodies; rate 0: any
	read      time.Duration // between two reads from an endpoint, 0 the default, for the header only
	send      time.Duration // between two writes to an endpoint, 0 any
	retry     retry
	intercept map[int]bool // statuses that the default backend answers instead
	ownErrors bool         // those of endpoints stay as they are
	fallback  *backend     // default backend by annotation
	hash      template
	subset    int // endpoints that a hash stands for; 0: one
	sticky    *sticky
	slowStart time.Duration // until a new endpoint gets its whole share, 0 at once
	least     bool          // prefers endpoints that are fast and have little to do

	allow, deny []netip.Prefix
	limit       *limit
	basic       *basicAuth
	satisfyAny  bool // one of addresses, password and auth-url is enough
	auth        *authRequest
	client      *clientTLS
	cors        crossOrigin
	canary      *canary

	host            template    // the Host that endpoints get
	responseHeaders http.Header // added to answers
	requestHeaders  http.Header // added to requests
	hsts            string
	hidden          []string     // fields of answers that clients do not get
	cookies         *cookieEdits // of answers' cookies; nil: none
	location        *textEdit    // of Location and Refresh; nil: none
	originalURI     bool         // endpoints get X-Original-Uri
	mirrors         []*mirror
	requestEdits    *edits        // of the request's fields, last
	answerEdits     *edits        // of the answer's
	path            *pathEdit     // of the path that endpoints get
	within          time.Duration // of the whole request, 0 any
	attempt         time.Duration // of each attempt with an endpoint until its answer has ended, 0 any
	silent          bool          // not in the access log
	passthrough     bool          // TLS is the endpoint's
	denied          string        // why all is answered with 503: a guard that was asked for cannot be had
}

// plain are the options of an Ingress that asks for nothing.
var plain = options{sslRedirect: true, code: http.StatusPermanentRedirect, retry: retry{on: onError | onTimeout, tries: 3}}

// wire is how endpoints are spoken to. The zero value is HTTP/1.1, or what the
// port's appProtocol says.
type wire struct {
	protocol protocol
	connect  time.Duration // 0 the server's
	answer   time.Duration // until the header, 0 the server's
	tls      tlsKey
	cluster  bool // by the Service's own address: service-upstream
	asClient bool // from the client's address: preserve-client-address
}

type protocol uint8

const (
	byPort protocol = iota // HTTP/1.1 unless the Service's port says otherwise
	http1
	https
	h2c // HTTP/2 without TLS: gRPC
	h2  // HTTP/2 with TLS: gRPC
)

func (p protocol) String() string { return [...]string{"HTTP", "HTTP", "HTTPS", "GRPC", "GRPCS"}[p] }

// tlsKey is what a connection to an endpoint presents and demands.
type tlsKey struct {
	pair    *pair          // certificate of ours; nil none
	roots   *x509.CertPool // who may sign the endpoint's; nil: it is not verified
	name    string         // whose certificate it has to be
	names   string         // whose it has to be instead, one of several, see subjectNames
	sni     bool           // tell it the name
	ciphers string         // suites of TLS 1.2, by OpenSSL's names with spaces between; "" the usual ones
	version uint16         // least
	depth   int            // certificates between the endpoint's and the root, at most
}

// retry is when another endpoint is asked.
type retry struct {
	on      condition
	tries   int           // in all; 0 as many as there are endpoints
	timeout time.Duration // for all of them, 0 none

	codes   map[int]bool  // statuses besides those of on
	same    bool          // an endpoint may be asked again
	backoff time.Duration // between two attempts
}

type condition uint16

const (
	onError condition = 1 << iota
	onTimeout
	onInvalidHeader
	on403
	on404
	on429
	on500
	on502
	on503
	on504
	nonIdempotent
)

var conditions = map[string]condition{
	"error": onError, "timeout": onTimeout, "invalid_header": onInvalidHeader, "non_idempotent": nonIdempotent,
	"http_403": on403, "http_404": on404, "http_429": on429,
	"http_500": on500, "http_502": on502, "http_503": on503, "http_504": on504,
}

var statusConditions = map[int]condition{403: on403, 404: on404, 429: on429, 500: on500, 502: on502, 503: on503, 504: on504}

// redirection answers instead of a backend.
type redirection struct {
	code int
	to   template
}

// crossOrigin answers what browsers ask before they let a page of another origin
// use an answer: annotations and HTTPRoutes say it differently.
type crossOrigin interface {
	set(in *http.Request, h http.Header) bool       // adds the fields to an answer, if the origin is admitted
	preflight(in *http.Request, h http.Header) bool // makes those of the answer, if in is a preflight
}

// canary is a second backend for some requests of a route.
type canary struct {
	ingress kube.Name
	backend *backend
	header  string
	value   string         // of the header: these only
	pattern *regexp.Regexp // of the header: these only
	cookie  string
	weight  int
	total   int
	alone   bool // decides anew for each request, whatever session it is of
}

// takes reports whether a request is the canary's: by header, then cookie, then weight.
func (c *canary) takes(in *http.Request, dice func(n int) int) bool {
	if c.header != "" {
		if vs := in.Header.Values(c.header); len(vs) > 0 {
			switch v := vs[0]; {
			case c.value != "":
				if v == c.value {
					return true
				}
			case c.pattern != nil:
				if c.pattern.MatchString(v) {
					return true
				}
			case v == "always":
				return true
			case v == "never":
				return false
			}
		}
	}
	if c.cookie != "" {
		if k, err := in.Cookie(c.cookie); err == nil {
			switch k.Value {
			case "always":
				return true
			case "never":
				return false
			}
		}
	}
	return c.weight > 0 && dice(c.total) < c.weight
}
