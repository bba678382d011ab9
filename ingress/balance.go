package ingress

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// Choosing an endpoint
//
// In turn, unless the Ingress wants it otherwise: the one that a cookie names,
// the one that a hash prefers (rendezvous: when an endpoint goes only its own
// clients move), or the better of two by latency and load. One that could not
// be connected to three times in a row is passed over for a while, unless there
// is no other.

// endpoint is where requests are sent, with what is known of it. It outlives the
// Routes that name it.
type endpoint struct {
	poolKey
	id      string // in cookies: tells nothing of the address
	pool    atomic.Pointer[http.Transport]
	idle    idle          // the lane's connections
	open    atomic.Int32  // requests in progress
	latency atomic.Uint64 // float64 bits, seconds until the header, a moving average
	failed  atomic.Int32  // connections in a row
	outTill atomic.Int64  // Unix nanoseconds until when it is passed over
}

// poolKey is an endpoint and how it is spoken to.
type poolKey struct {
	name string         // of a host outside, "" for endpoints in the cluster
	addr netip.AddrPort // or its port alone
	wire wire
}

const (
	ejectAfter = 3
	ejectFor   = 10 * time.Second
)

func newEndpoint(k poolKey) *endpoint {
	sum := sha256.Sum256([]byte("podgate endpoint " + k.String()))
	return &endpoint{poolKey: k, id: hex.EncodeToString(sum[:16])}
}

// dialTimeout is how long a connection may take.
func (e *endpoint) dialTimeout(cfg Config) time.Duration {
	return cmp.Or(e.wire.connect, cfg.DialTimeout)
}

// answerTimeout is how long the header of an answer may take.
func (e *endpoint) answerTimeout(cfg Config) time.Duration {
	return cmp.Or(e.wire.answer, cfg.AnswerTimeout)
}

// disconnect closes what is idle; for good if the endpoint is gone.
func (e *endpoint) disconnect(gone bool) {
	if pool := e.pool.Load(); pool != nil {
		pool.CloseIdleConnections()
	}
	e.idle.end(gone)
}

// String is where the endpoint is: "address:port" or "name:port".
func (k poolKey) String() string {
	if k.name != "" {
		return net.JoinHostPort(k.name, strconv.Itoa(int(k.addr.Port())))
	}
	return k.addr.String()
}

// connected notes how an attempt to reach the endpoint ended.
func (e *endpoint) connected(ok bool, now time.Time) {
	if ok {
		if e.failed.Load() != 0 {
			e.failed.Store(0)
			e.outTill.Store(0)
		}
	} else if e.failed.Add(1) >= ejectAfter {
		e.outTill.Store(now.Add(ejectFor).UnixNano())
	}
}

// answered enters how long a response header took.
func (e *endpoint) answered(d time.Duration) {
	old := math.Float64frombits(e.latency.Load())
	e.latency.Store(math.Float64bits(old + (d.Seconds()-old)/8))
}

func (e *endpoint) load() float64 {
	return (math.Float64frombits(e.latency.Load()) + 1e-4) * float64(e.open.Load()+1)
}

// pick chooses an endpoint that was not tried, nil if there is none.
func (b *backend) pick(q *request, tried []*endpoint) *endpoint {
	o := q.route.options
	if o.sticky != nil && len(tried) == 0 {
		if e := o.sticky.find(q.in, b); e != nil {
			return e
		}
	}
	now := int64(0)
	usable := func(e *endpoint) bool {
		if len(tried) > 0 && slices.Contains(tried, e) {
			return false
		}
		if e.outTill.Load() == 0 {
			return true
		}
		if now == 0 {
			now = q.now().UnixNano()
		}
		return now >= e.outTill.Load()
	}
	n := uint32(len(b.endpoints))
	turn := b.next.Add(1) - 1
	var best *endpoint
	switch {
	case o.hash != nil:
		var most uint64
		key := o.hash.String(q)
		for _, e := range b.endpoints {
			h := fnv.New64a()
			h.Write([]byte(key + "\x00" + e.id))
			if sum := mix(h.Sum64()); usable(e) && (best == nil || sum > most) {
				best, most = e, sum
			}
		}
	case o.least && n > 1:
		for range 2 {
			if e := b.endpoints[rand.Uint32N(n)]; usable(e) && (best == nil || e.load() < best.load()) {
				best = e
			}
		}
	}
	for i := uint32(0); best == nil && i < n; i++ {
		if e := b.endpoints[(turn+i)%n]; usable(e) {
			best = e
		}
	}
	for i := uint32(0); best == nil && i < n; i++ { // all that are left are out: one of them all the same
		if e := b.endpoints[(turn+i)%n]; !slices.Contains(tried, e) {
			best = e
		}
	}
	return best
}

// mix spreads FNV's last bytes over all bits (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// sticky is affinity by cookie.
type sticky struct {
	name, path, domain string
	maxAge, expires    int // seconds, 0 none
	sameSite           http.SameSite
	secure             *bool // nil: where the client's connection is encrypted
	change             bool  // the cookie follows when another endpoint had to answer
}

// find returns the endpoint that a request's cookie names, nil if it is gone.
func (s *sticky) find(in *http.Request, b *backend) *endpoint {
	c, err := in.Cookie(s.name)
	if err != nil {
		return nil
	}
	for _, e := range b.endpoints {
		if e.id == c.Value {
			return e
		}
	}
	return nil
}

// set gives the client its cookie, unless it has one that still leads somewhere.
func (s *sticky) set(q *request, b *backend, e *endpoint, h http.Header) {
	if had := s.find(q.in, b); had == e || had != nil && !s.change {
		return
	}
	c := http.Cookie{Name: s.name, Value: e.id, Path: s.path, Domain: s.domain, HttpOnly: true, MaxAge: s.maxAge, SameSite: s.sameSite, Secure: q.secure()}
	if c.Path == "" {
		c.Path = q.route.path
	}
	if c.Path == "" || q.route.pattern != nil && s.path == "" {
		c.Path = "/"
	}
	if s.secure != nil {
		c.Secure = *s.secure
	}
	if s.expires > 0 {
		c.Expires = q.now().Add(time.Duration(s.expires) * time.Second)
	}
	h.Add("Set-Cookie", c.String())
}
