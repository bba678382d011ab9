// Package stack is the data plane: what happens to a frame between the device
// that it came from and the one that it leaves by. docs/packet-walk.md draws it.
//
//	worker.go      the step function: classify, flow, replay, flush
//	decide.go      what shall happen to a flow's first packet
//	commit.go      making the flow of a decision
//	routes.go      networks behind pods
//	replay.go      the hit path
//	mtu.go         what is too long for its way out
//	revalidate.go  flows and new configurations
//	refuse.go      drops, rejections, their counters
//	arp_nd.go, icmp.go, fragments.go, multicast.go, autoconf.go: the exceptions
//	faults.go      ports with a bad link
//	capture.go     copies of frames for who watches
//	plane.go, ports.go, run.go: the plane from outside, and its loop
//
// The package starts no goroutines. Plane.Run is one, the worker;
// whoever called it stops it by its context and waits for it to return.
package stack
