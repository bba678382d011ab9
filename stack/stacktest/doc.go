// Package stacktest is the World: a cluster in memory, with the production data
// plane, compilers and store, pods at the ends of pipes, a clock that stands
// still until told otherwise, and a worker that is polled until it is quiet.
// Whole paths run in microseconds, as scripts: see Run.
//
// A pod may be given a TCP/IP of its own, gVisor's, to talk real TCP over the
// plane without privileges: see World.Host.
//
// Goroutines: World.Host starts one for the World, which moves frames between
// the hosts and the plane until the test ends, and is waited for then.
package stacktest
