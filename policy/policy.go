// Package policy turns NetworkPolicy objects into per-pod rule tables: a pure
// compile step from kube.State, and verdicts that the data path asks for once a flow.
package policy

// Direction is that of a policy rule, seen from the pod that it selects.
type Direction uint8

const (
	Ingress Direction = iota
	Egress
)
