package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
// in the order of the configuration, beginning with the one that answered last:
// over UDP, and over TCP when that answer is truncated. An answer counts if its
// id and question are those of the query; SERVFAIL, REFUSED and NOTIMP send the
// query on to the next upstream and are passed on only if nobody knows better.
// Each query leaves from a socket of its own with a random id (RFC 5452).

// forwarder asks upstreams.
type forwarder struct {
	cfg    Config
	now    func() time.Time
	cache  cache
	warned sync.Once

	preferred atomic.Uint32 // index of the upstream that answered last

	exchanges, failures, hits, joined atomic.Uint64

	mu     sync.Mutex
	flight map[cacheKey]*exchange
}

// exchange is one query on its way to the upstreams; msg is set when done closes.
type exchange struct {
	done chan struct{}
	msg  *dns.Msg // nil: none of them answered
	err  error    // why
}

const (
	exchangeBudget = 5 * time.Second // resolvers in pods give up then
	upstreamUDP    = 1232            // bytes; what we can take, as an upstream sees it
)

var errNoUpstream = errors.New("no upstream DNS server is configured")

func newForwarder(cfg Config) *forwarder {
	f := &forwarder{
		cfg:    cfg,
		now:    time.Now,
		cache:  cache{size: cfg.CacheSize, max: cfg.CacheTTL},
		flight: map[cacheKey]*exchange{},
	}
	if f.cfg.Exchange == nil {
		f.cfg.Exchange = exchangeBySocket
	}
	return f
}

// exchangeBySocket asks from the gateway's own namespace.
func exchangeBySocket(ctx context.Context, network, server string, m *dns.Msg) (*dns.Msg, error) {
	c := dns.Client{Net: network, UDPSize: upstreamUDP}
	answer, _, err := c.ExchangeContext(ctx, m, server)
	return answer, err
}

// cached returns an answer that is known already; the caller may change it.
func (f *forwarder) cached(name string, k cacheKey) *dns.Msg {
	m, ok := f.cache.get(k, f.now())
	if !ok {
		return nil
	}
	f.hits.Add(1)
	respell(m, name)
	return m
}

// resolve returns an upstream's answer; the caller may change it.
func (f *forwarder) resolve(ctx context.Context, name string, k cacheKey) (*dns.Msg, error) {
	if len(f.cfg.Upstreams) == 0 {
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
		select {
		case <-x.done:
			return x.msg, x.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	x = &exchange{done: make(chan struct{})}
	f.flight[k] = x
	f.mu.Unlock()

	x.msg, x.err = f.exchange(ctx, k)
	if x.err == nil {
		f.cache.put(k, x.msg, f.now())
	} else {
		f.failures.Add(1)
	}
	f.mu.Lock()
	delete(f.flight, k)
	f.mu.Unlock()
	close(x.done)
	return x.msg, x.err
}

// exchange asks the upstreams one after the other, a single one twice.
func (f *forwarder) exchange(ctx context.Context, k cacheKey) (best *dns.Msg, err error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeBudget)
	defer cancel()
	n := len(f.cfg.Upstreams)
	first := int(f.preferred.Load())
	for i := range max(2, n) {
		at := (first + i) % n
		m, askErr := f.ask(ctx, f.cfg.Upstreams[at], k)
		if askErr != nil {
			err = askErr
			if ctx.Err() != nil {
				break
			}
			continue
		}
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

// ask sends one query to one upstream, over TCP if UDP is too short for the answer.
func (f *forwarder) ask(ctx context.Context, upstream netip.AddrPort, k cacheKey) (*dns.Msg, error) {
	for _, network := range []string{"udp", "tcp"} {
		m, err := f.attempt(ctx, network, upstream, k, true)
		if err == nil && m.Rcode == dns.RcodeFormatError { // it does not know EDNS (RFC 6891, section 7)
			m, err = f.attempt(ctx, network, upstream, k, false)
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

func (f *forwarder) attempt(ctx context.Context, network string, upstream netip.AddrPort, k cacheKey, edns bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	q := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: dns.Id(), RecursionDesired: true, CheckingDisabled: k.unproven},
		Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}},
	}
	if edns {
		q.SetEdns0(upstreamUDP, k.dnssec)
	}
	id := q.Id
	f.exchanges.Add(1)
	m, err := f.cfg.Exchange(ctx, network, upstream.String(), q)
	if err != nil {
		return nil, err
	}
	if !answers(m, id, k) {
		return nil, errors.New("the answer is not one to the question")
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == dns.TypeOPT || t == dns.TypeTSIG // between us and the upstream only
	})
	return m, nil
}

// answers reports whether m is the answer to the query with this id and question.
func answers(m *dns.Msg, id uint16, k cacheKey) bool {
	return m != nil && m.Response && m.Id == id && len(m.Question) == 1 &&
		m.Question[0].Qtype == k.qtype && m.Question[0].Qclass == dns.ClassINET &&
		strings.EqualFold(m.Question[0].Name, k.name)
}
