package dns

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Forwarding
//
// A name that is not the cluster's is answered from the cache, else by one
// exchange that all equal queries of the moment share. The upstreams are asked
// in the order of the policy, without one in the order of the configuration,
// beginning with the one that answered last. One that failed too often in a row
// comes last until a probe of it is answered. They are asked over UDP, and over
// TCP when that answer is truncated. An answer counts if its id and question are
// those of the query, and over UDP is waited for when something else comes first.
// SERVFAIL, REFUSED and NOTIMP send the query on to the next upstream and are
// passed on only if nobody knows better.
// Each query leaves from a socket of its own with a random id (RFC 5452), and in
// random case if it is to (an answer that has another is asked for over TCP).

// forwarder asks upstreams.
type forwarder struct {
	cfg        Config
	upstreams  []*upstreamState
	policy     string // "": the one that answered last
	maxFails   int    // in a row, until an upstream is down; 0: never
	check      time.Duration
	tcp        bool
	slots      chan struct{}     // bounds the queries that wait; nil: the server's bound alone
	background func(func()) bool // runs what Shutdown waits for
	ctx        context.Context   // of probes
	now        func() time.Time
	cache      cache
	warned     sync.Once
	strayed    sync.Map // addresses of upstreams that were named for it

	preferred atomic.Uint32 // index of the upstream that answered last
	turn      atomic.Uint32 // of round_robin

	*counters
	loops *loops // of all forwarders of a server

	mu     sync.Mutex
	flight map[cacheKey]*exchange
}

// counters are those of all forwarders of a server.
type counters struct{ exchanges, failures, strays, hits, joined atomic.Uint64 }

// upstreamState is an upstream and how it is.
type upstreamState struct {
	Upstream
	fails     atomic.Int32 // in a row
	probing   atomic.Bool
	loop      atomic.Bool  // it leads back here
	suspected atomic.Int64 // when that was last looked at, in Unix nanoseconds
}

// exchange is one query on its way to the upstreams; msg is set when done closes.
type exchange struct {
	done chan struct{}
	msg  *dns.Msg                      // nil: none of them answered
	err  error                         // why
	asks atomic.Pointer[upstreamState] // whom, at the moment
}

const (
	exchangeBudget = 5 * time.Second // resolvers in pods give up then
	upstreamUDP    = 1232            // bytes; what we can take, as an upstream sees it
)

var errNoUpstream = errors.New("no upstream DNS server is configured")

func newForwarder(cfg Config, upstreams []Upstream) *forwarder {
	f := &forwarder{
		cfg:      cfg,
		maxFails: 2,
		check:    500 * time.Millisecond,
		now:      time.Now,
		counters: &counters{},
		loops:    &loops{},
		cache:    cache{size: cfg.CacheSize, max: cfg.CacheTTL},
		flight:   map[cacheKey]*exchange{},
	}
	for _, u := range upstreams {
		f.upstreams = append(f.upstreams, &upstreamState{Upstream: u})
	}
	if f.cfg.Exchange == nil {
		f.cfg.Exchange = f.exchangeBySocket
	}
	return f
}

// exchangeBySocket asks from the gateway's own namespace. Over UDP what is no
// answer to m is left, for the answer may still come: anybody can send there.
// The socket takes nothing from other addresses or ports.
func (f *forwarder) exchangeBySocket(ctx context.Context, network, server string, m *dns.Msg) (*dns.Msg, error) {
	c := dns.Client{Net: network, UDPSize: upstreamUDP}
	if network != "udp" {
		answer, _, err := c.ExchangeContext(ctx, m, server)
		return answer, err
	}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.UDPSize = upstreamUDP
	asked := cacheKey{name: m.Question[0].Name, qtype: m.Question[0].Qtype}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		b, err := conn.ReadMsgHeader(nil)
		if err != nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, cmp.Or(ctx.Err(), err)
		}
		answer := new(dns.Msg)
		if err == nil && answer.Unpack(b) == nil && answers(answer, m.Id, asked) {
			return answer, nil
		}
		f.strays.Add(1)
		if _, named := f.strayed.LoadOrStore(server, true); !named {
			f.cfg.Log.Warn("upstream DNS server sends what was not asked for, or somebody in its name", "upstream", server)
		}
	}
}

// send asks one upstream.
func (f *forwarder) send(ctx context.Context, u *upstreamState, network string, q *dns.Msg) (*dns.Msg, error) {
	if !u.TLS {
		return f.cfg.Exchange(ctx, network, u.Addr.String(), q)
	}
	c := dns.Client{Net: "tcp-tls", TLSConfig: &tls.Config{ServerName: u.ServerName, RootCAs: f.cfg.UpstreamCAs, MinVersion: tls.VersionTLS12}}
	if u.ServerName == "" {
		c.TLSConfig.ServerName = u.Addr.Addr().String()
	}
	m, _, err := c.ExchangeContext(ctx, q, u.Addr.String())
	return m, err
}

// cached returns an answer that is known already; the caller may change it. One
// that is stale or about to be, and asked for often, is asked for again meanwhile.
func (f *forwarder) cached(ctx context.Context, name string, k cacheKey) *dns.Msg {
	m, again, ok := f.cache.get(k, f.now())
	if !ok {
		return nil
	}
	f.hits.Add(1)
	if again && f.background != nil {
		f.background(func() { f.join(ctx, k) })
	}
	respell(m, name)
	return m
}

// resolve returns an upstream's answer; the caller may change it.
func (f *forwarder) resolve(ctx context.Context, name string, k cacheKey) (*dns.Msg, error) {
	if len(f.upstreams) == 0 {
		f.warned.Do(func() {
			f.cfg.Log.Warn("names outside of the cluster cannot be resolved", "why", errNoUpstream, "first", name)
		})
		return nil, errNoUpstream
	}
	m, err := f.join(ctx, k)
	if err != nil {
		return nil, err
	}
	m = m.Copy()
	respell(m, name)
	return m, nil
}

// join waits for the exchange of k and starts it if there is none.
func (f *forwarder) join(ctx context.Context, k cacheKey) (*dns.Msg, error) {
	f.mu.Lock()
	x, ok := f.flight[k]
	if ok {
		f.mu.Unlock()
		f.joined.Add(1)
		patience := time.After(loopPatient)
		for {
			select {
			case <-x.done:
				return x.msg, x.err
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-patience:
				if u := x.asks.Load(); u != nil {
					f.suspect(u)
				}
			}
		}
	}
	x = &exchange{done: make(chan struct{})}
	f.flight[k] = x
	f.mu.Unlock()

	x.msg, x.err = f.exchange(ctx, k, x)
	if x.err == nil {
		f.cache.put(k, x.msg, f.now())
	} else {
		f.failures.Add(1)
		f.cache.retry(k)
	}
	f.mu.Lock()
	delete(f.flight, k)
	f.mu.Unlock()
	close(x.done)
	return x.msg, x.err
}

// exchange asks the upstreams one after the other, a single one twice.
func (f *forwarder) exchange(ctx context.Context, k cacheKey, x *exchange) (best *dns.Msg, err error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeBudget)
	defer cancel()
	n := len(f.upstreams)
	order := f.order()
	for i := range max(2, n) {
		at := order[i%n]
		u := f.upstreams[at]
		if u.loop.Load() {
			err = cmp.Or(err, errLoop)
			continue
		}
		x.asks.Store(u)
		m, askErr := f.ask(ctx, u, k)
		if askErr != nil {
			err = askErr
			f.failed(u, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		u.fails.Store(0)
		switch m.Rcode {
		case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
			best = m
			if n == 1 {
				return best, nil
			}
		default:
			f.preferred.Store(uint32(at))
			return m, nil
		}
	}
	if best != nil {
		return best, nil
	}
	return nil, err
}

// order is the order in which the upstreams are asked: those that are down last.
func (f *forwarder) order() []int {
	n := len(f.upstreams)
	order := make([]int, n)
	first := 0
	switch f.policy {
	case "":
		first = int(f.preferred.Load())
	case "round_robin":
		first = int(f.turn.Add(1)-1) % n
	}
	for i := range order {
		order[i] = (first + i) % n
	}
	if f.policy == "random" {
		rand.Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(f.downs(a), f.downs(b))
	})
	return order
}

// downs is 1 for an upstream that is down, else 0.
func (f *forwarder) downs(i int) int {
	u := f.upstreams[i]
	if f.maxFails > 0 && int(u.fails.Load()) >= f.maxFails || u.loop.Load() {
		return 1
	}
	return 0
}

// failed notes that an upstream did not answer; if that is once too often it is
// named, and probed until it does.
func (f *forwarder) failed(u *upstreamState, err error) {
	if int(u.fails.Add(1)) != f.maxFails {
		return
	}
	f.cfg.Log.Warn("upstream DNS server does not answer", "upstream", u.String(), "why", err)
	if f.background != nil {
		f.background(func() { f.watch(u) })
	}
}

// ask sends one query to one upstream, over TCP if UDP is too short for the answer.
func (f *forwarder) ask(ctx context.Context, upstream *upstreamState, k cacheKey) (*dns.Msg, error) {
	for _, network := range []string{"udp", "tcp"} {
		if network == "udp" && (f.tcp || upstream.TLS) {
			continue
		}
		m, err := f.attempt(ctx, network, upstream, k, true)
		if err == nil && m.Rcode == dns.RcodeFormatError { // it does not know EDNS (RFC 6891, section 7)
			m, err = f.attempt(ctx, network, upstream, k, false)
		}
		if errors.Is(err, errCase) && network == "udp" {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ask upstream %s over %s: %w", upstream, network, err)
		}
		if !m.Truncated || network == "tcp" {
			return m, nil
		}
	}
	panic("unreachable")
}

func (f *forwarder) attempt(ctx context.Context, network string, upstream *upstreamState, k cacheKey, edns bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	q := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: dns.Id(), RecursionDesired: true, CheckingDisabled: k.unproven},
		Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}},
	}
	if edns {
		q.SetEdns0(upstreamUDP, k.dnssec)
		if k.subnet.asked {
			q.IsEdns0().Option = []dns.EDNS0{k.subnet.option(0)}
		}
	}
	cased := f.cfg.RandomCase && network == "udp"
	if cased {
		q.Question[0].Name = randomCase(k.name)
	}
	asked := q.Question[0].Name
	id := q.Id
	f.exchanges.Add(1)
	m, err := f.send(ctx, upstream, network, q)
	if err != nil {
		return nil, err
	}
	if !answers(m, id, k) {
		return nil, errors.New("the answer is not one to the question")
	}
	if cased && m.Question[0].Name != asked {
		return nil, errCase
	}
	opt := m.IsEdns0()
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == dns.TypeOPT || t == dns.TypeTSIG // between us and the upstream only
	})
	if k.subnet.asked {
		held, ok := k.subnet.heldFor(opt)
		if !ok {
			return nil, errors.New("the answer is for another subnet")
		}
		m.Extra = append(m.Extra, held)
	}
	return m, nil
}

var errCase = errors.New("the answer has not the question's case")

// randomCase is a name with each letter in random case.
func randomCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c >= 'a' && c <= 'z' && rand.Uint32()&1 == 0 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// answers reports whether m is the answer to the query with this id and question.
func answers(m *dns.Msg, id uint16, k cacheKey) bool {
	return m != nil && m.Response && m.Id == id && len(m.Question) == 1 &&
		m.Question[0].Qtype == k.qtype && m.Question[0].Qclass == dns.ClassINET &&
		strings.EqualFold(m.Question[0].Name, k.name)
}
