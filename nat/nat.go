// Package nat turns Services into backends: a pure compile step from
// kube.State to a Table, and lookups on it that the data path makes once a flow.
package nat

import (
	"podgate/kube"
	"podgate/stack/packet"
)

// Backend is one endpoint that a Service port may choose. Backends are shared
// between successive Tables while they are unchanged, so pointer equality means
// unchanged.
type Backend struct {
	Addr packet.Addr
	Port uint16
	Pod  kube.Name // zero for an endpoint that is not a pod
	Node string
}

// Outcome says what a Table knows of a destination.
type Outcome uint8

const (
	NotService  Outcome = iota // no Service address: route it
	Translate                  // a backend was chosen
	NoEndpoints                // known port, nobody behind it: reject
	UnknownPort                // a Service address, but not this port: reject
	NoLocal                    // traffic policy Local without a local endpoint: drop
	NotAllowed                 // outside loadBalancerSourceRanges: drop
	Unallocated                // inside the Service range, but nobody's: drop
)
