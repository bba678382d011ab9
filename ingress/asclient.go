package ingress

import (
	"net/http"
	"net/netip"
	"sync"
)

// preserve-client-address: the endpoint sees the client as its peer, so a
// connection carries the requests of one client alone.

// clientPools are the connections to an endpoint, by client.
type clientPools struct {
	mu   sync.Mutex
	pool map[netip.Addr]*http.Transport
}

const maxClientPools = 4096 // of an endpoint

// through is the connections that a request goes through.
func (q *request) through(e *endpoint) *http.Transport {
	if !e.wire.asClient || q.cfg.DialAs == nil || e.name != "" {
		return q.transport(e)
	}
	client, p := q.origin(), &e.clients
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.pool[client]; t != nil {
		return t
	}
	for other, t := range p.pool {
		if len(p.pool) < maxClientPools {
			break
		}
		t.CloseIdleConnections() // what is in use ends with its request, or idle
		delete(p.pool, other)
	}
	if p.pool == nil {
		p.pool = map[netip.Addr]*http.Transport{}
	}
	t := q.newPool(e.poolKey, client)
	p.pool[client] = t
	return t
}

// disconnect closes what is idle.
func (p *clientPools) disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.pool {
		t.CloseIdleConnections()
	}
	p.pool = nil
}
