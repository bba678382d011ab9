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
// In turn, unless the Ingress wants it otherwise: the one that a cookie stands for,
// the one that a hash prefers (rendezvous: when an endpoint goes only its own
// clients move), or the better of two by latency and load. One that could not
// be connected to three times in a row is passed over for a while, unless there
// is no other.

// endpoint is where requests are sent, with what is known of it. It outlives the
// Routes that name it.
type endpoint struct {
	poolKey
	id      string    // in cookies: tells nothing of the address
	since   time.Time // when it came; zero: it was there at first
	clients clientPools
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
	e.clients.disconnect()
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

// share is the part of its turns that a new endpoint takes: it grows evenly.
func (e *endpoint) share(slowStart time.Duration, now time.Time) float64 {
	if e.since.IsZero() {
		return 1
	}
	return max(leastShare, now.Sub(e.since).Seconds()/slowStart.Seconds())
}

const leastShare = 0.1

func (e *endpoint) load() float64 {
	return (math.Float64frombits(e.latency.Load()) + 1e-4) * float64(e.open.Load()+1)
}

// pick chooses an endpoint that was not tried, nil if there is none.
func (b *backend) pick(q *request, tried []*endpoint) *endpoint {
	o := q.route.options
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
	if o.sticky != nil && len(tried) == 0 {
		if e := o.sticky.choose(q, b, usable); e != nil {
			return e
		}
	}
	ready := func(e *endpoint) bool {
		return usable(e) && (o.slowStart == 0 || rand.Float64() < e.share(o.slowStart, q.now()))
	}
	n := uint32(len(b.endpoints))
	turn := b.next.Add(1) - 1
	var best *endpoint
	switch {
	case o.hash != nil && o.subset > 1:
		best = ofSubset(o.hash.String(q), b.endpoints, o.subset, turn, usable)
	case o.hash != nil:
		best = preferred(o.hash.String(q), b.endpoints, usable)
	case o.least && n > 1:
		for range 2 {
			if e := b.endpoints[rand.Uint32N(n)]; ready(e) && (best == nil || e.load() < best.load()) {
				best = e
			}
		}
	}
	for i := uint32(0); best == nil && i < n; i++ {
		if e := b.endpoints[(turn+i)%n]; ready(e) {
			best = e
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

// preferred is the endpoint that a key's hash prefers among those that are usable.
func preferred(key string, endpoints []*endpoint, usable func(*endpoint) bool) (best *endpoint) {
	var most uint64
	for _, e := range endpoints {
		if sum := e.rank(key); usable(e) && (best == nil || sum > most) {
			best, most = e, sum
		}
	}
	return best
}

// rank is how much a key's hash prefers an endpoint.
func (e *endpoint) rank(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key + "\x00" + e.id))
	return mix(h.Sum64())
}

// ofSubset is one of the n usable endpoints that a key's hash prefers, in turn.
func ofSubset(key string, endpoints []*endpoint, n int, turn uint32, usable func(*endpoint) bool) *endpoint {
	var some []*endpoint
	for _, e := range endpoints {
		if usable(e) {
			some = append(some, e)
		}
	}
	slices.SortFunc(some, func(a, b *endpoint) int { return cmp.Compare(b.rank(key), a.rank(key)) })
	if some = some[:min(n, len(some))]; len(some) == 0 {
		return nil
	}
	slices.SortFunc(some, func(a, b *endpoint) int { return cmp.Compare(a.id, b.id) }) // so that turns are even
	return some[turn%uint32(len(some))]
}

// mix spreads FNV's last bytes over all bits (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
