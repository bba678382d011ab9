// Package pod gives every Pod its sandbox (network, UTS and mount namespace),
// runs the commands of its containers in it, probes and restarts them, and
// reports the pod's status.
package pod
