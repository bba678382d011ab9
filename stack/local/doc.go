// Package local is a TCP/IP stack (gVisor's netstack) as one more link.Device
// of the data plane: the place where flows end. The cluster's DNS and Ingress
// listen on it, probes dial from it, flows to the outside end here and
// are made again from the gateway's own namespace, and connections to published
// host ports continue into pods through it.
//
// Goroutines, all of a Stack's, ended by Close, which waits for them:
//   - one reads netlink for changes of the host's addresses;
//   - one sends ICMP echo requests outside, and one per ping waits for answers;
//   - per UDP flow to the outside: one for each direction;
//   - per published TCP port one that accepts, per connection two that copy;
//   - per published UDP port one that reads, per client one that writes back;
//   - per ICMP error on a datagram socket one that wakes its reader and ends.
//
// TCP connections to the outside have none: package splice.
//
// gVisor adds its own: as many TCP processors as there are CPUs, and timers.
package local
