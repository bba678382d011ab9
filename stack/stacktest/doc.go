// Package stacktest is the World: a cluster in memory, with the production data
// plane, compilers and store, pods at the ends of pipes, a clock that stands
// still until told otherwise, and a worker that is polled until it is quiet.
// Whole paths run in microseconds, as scripts: see Run.
//
// The package starts no goroutines.
package stacktest
