// Package pod gives every Pod its sandbox (network, UTS and mount namespace),
// runs the commands of its containers in it, probes and restarts them, and
// reports the pod's status.
//
// It is two processes. The Runtime, in the gateway, follows the desired State
// and is what a kubelet would be. The keeper (keeper.go), a child of it, owns
// namespaces and processes and does what the Runtime asks over a socket
// (wire.go). A pod that idles is a few descriptors in the keeper and one
// goroutine here; it has no process.
//
// Goroutines of the Runtime, all but the last awaited by Close:
//
//   - one for each pod (worker.run), from Sync to the end of the pod
//   - one for each running process that copies its output to the log, until the
//     last writer is gone
//   - one for each probe, hook and stop of a run of a container, until the run
//     ends
//   - one that reads from the keeper (client.receive) and one that awaits its
//     end, until the keeper is gone
//   - those of a call of Exec, until it returns
//
// Goroutines of the keeper: one that serves, one that reaps, one for each
// request that is being worked on, with threads of their own for whatever is
// done in a namespace. They end with the process.
package pod
