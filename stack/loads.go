package stack

import (
	"podgate/nat"
	"podgate/stack/packet"
)

// loads counts the conversations of each backend of the Services that choose by
// least connections. It belongs to the worker: decisions read it; what makes,
// endorses and ends flows writes it. A conversation counts from its first packet
// to its last FIN or RST, or until it is forgotten.
type loads map[loadKey]*load

type loadKey struct {
	port uint64 // ServicePort.ID, which outlives its pointer
	addr packet.Addr
	at   uint16
}

type load struct {
	loadKey
	n int
}

// Load implements nat.Loads.
func (l loads) Load(port uint64, b *nat.Backend) int {
	if have := l[loadKey{port, b.Addr, b.Port}]; have != nil {
		return have.n
	}
	return 0
}

// hold counts the conversation of c, if its Service wants that and it is not
// counted yet.
func (l loads) hold(c *cookie) {
	if c.holds != nil || c.service == nil || !c.service.LeastConnections || c.backend == nil {
		return
	}
	k := loadKey{c.service.ID, c.backend.Addr, c.backend.Port}
	if l[k] == nil {
		l[k] = &load{loadKey: k}
	}
	c.holds = l[k]
	c.holds.n++
}

// release undoes hold.
func (l loads) release(c *cookie) {
	if c.holds == nil {
		return
	}
	if c.holds.n--; c.holds.n == 0 {
		delete(l, c.holds.loadKey)
	}
	c.holds = nil
}

// drain sets, or takes back, the end of a TCP conversation whose endpoint has
// left its Service.
func (c *cookie) drain(now int64) {
	switch {
	case c.backend == nil || c.service == nil || !c.service.Drains(c.backend):
		c.drained = 0
	case c.drained == 0:
		c.drained = now + int64(c.service.Drain)
	}
}
