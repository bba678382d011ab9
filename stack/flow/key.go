// Package flow is the memory of conversations: keys, legs, flows and the table
// that finds them.
package flow

import "podgate/stack/packet"

// PortID names an attachment; 0 is none. It is not an L4 port.
type PortID uint16

// Key finds a leg: the tuple as it arrives, and where it arrives.
type Key struct {
	packet.Tuple
	Port PortID
}
