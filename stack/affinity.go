package stack

import (
	"podgate/nat"
	"podgate/stack/packet"
)

// affinity remembers which backend a client was given (sessionAffinity:
// ClientIP). It belongs to the worker: decisions read it, commit writes it. As
// with kube-proxy's nftables mode the time counts from the client's last new
// conversation.
type affinity struct {
	clients map[clientKey]client
}

type clientKey struct {
	addr    packet.Addr
	service uint64 // ServicePort.ID, which outlives its pointer
}

type client struct {
	backend *nat.Backend
	until   int64
}

// maxClients bounds the table; when it is full new clients are hashed to a
// backend, which is the same one as long as the backends stay.
const maxClients = 1 << 16

func newAffinity() *affinity { return &affinity{clients: map[clientKey]client{}} }

// recall returns the client's backend, or nil. sp decides whether it still is one.
func (a *affinity) recall(addr packet.Addr, sp *nat.ServicePort, now int64) *nat.Backend {
	if a == nil || sp.AffinityTimeout == 0 {
		return nil
	}
	c := a.clients[clientKey{addr, sp.ID}]
	if now >= c.until {
		return nil
	}
	return c.backend
}

func (a *affinity) record(addr packet.Addr, sp *nat.ServicePort, b *nat.Backend, now int64) {
	k := clientKey{addr, sp.ID}
	if _, known := a.clients[k]; known || len(a.clients) < maxClients {
		a.clients[k] = client{b, now + int64(sp.AffinityTimeout)}
	}
}

// expire looks at some clients, in the map's random order, and forgets those
// whose time is over.
func (a *affinity) expire(now int64) {
	left := 1000
	for k, c := range a.clients {
		if now >= c.until {
			delete(a.clients, k)
		}
		if left--; left == 0 {
			return
		}
	}
}
