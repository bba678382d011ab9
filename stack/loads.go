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

// hold counts one more conversation that rests on d, if its Service wants that,
// and returns where; else nil.
func (l loads) hold(d *deps) *load {
	if d.service == nil || !d.service.LeastConnections || d.backend == nil {
		return nil
	}
	k := loadKey{d.service.ID, d.backend.Addr, d.backend.Port}
	if l[k] == nil {
		l[k] = &load{loadKey: k}
	}
	l[k].n++
	return l[k]
}

// release undoes hold, which returned held.
func (l loads) release(held *load) {
	if held == nil {
		return
	}
	if held.n--; held.n == 0 {
		delete(l, held.loadKey)
	}
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
