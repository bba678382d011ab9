// Package control is the conversation between a running podgate and its
// commands: HTTP and JSON over a unix socket that only the instance's own user
// may open (mode 0600, peer credentials checked).
//
// Goroutines: one a connection, started by net/http, ended by the client going
// away or by Server.Close.
package control

import (
	"encoding/json"
	"time"
)

// Status is what `podgate status` shows.
type Status struct {
	Instance  string            `json:"instance"`
	Version   string            `json:"version"`
	PID       int               `json:"pid"`
	Started   time.Time         `json:"started"`
	Rootless  bool              `json:"rootless"`
	Attach    string            `json:"attach"` // "tap" or "veth"
	Pods      PodCount          `json:"pods"`
	Services  int               `json:"services"`
	Flows     int               `json:"flows"`
	Listeners []Listener        `json:"listeners"`
	Counters  map[string]uint64 `json:"counters"`
	Problems  []string          `json:"problems,omitempty"`
	Resident  int64             `json:"residentBytes"`
	Cluster   *Cluster          `json:"cluster,omitempty"` // nil: what is desired comes from manifests
}

// Cluster is the source of an instance that serves a node of a real cluster.
type Cluster struct {
	Server  string `json:"server"`
	Node    string `json:"node"`
	Trouble string `json:"trouble,omitempty"` // how what is served is not what the API server says now
}

// PodCount says how many pods there are, and how many are ready.
type PodCount struct {
	Total int `json:"total"`
	Ready int `json:"ready"`
}

// Listener is one place on the host where the cluster can be reached.
type Listener struct {
	Address string `json:"address"` // "127.0.0.1:8080/tcp"
	For     string `json:"for"`     // "Ingress (HTTP)"
	Problem string `json:"problem,omitempty"`
}

// File is a manifest as the client read it.
type File struct {
	Name string `json:"name"`
	Data string `json:"data"`
}

// ApplyRequest carries manifests for POST /v1/apply and /v1/delete.
type ApplyRequest struct {
	Files     []File `json:"files"`
	Namespace string `json:"namespace,omitempty"` // for objects that name none
	NoWait    bool   `json:"noWait,omitempty"`    // delete: do not wait until the pods have ended
}

// Change is one line of the answer to apply and delete, in kubectl's words.
type Change struct {
	Text  string `json:"text"`
	Error bool   `json:"error,omitempty"` // Text is a problem: the object was not taken
}

// ApplyResult answers once the data path enforces what changed.
type ApplyResult struct {
	Changes []Change `json:"changes"`
}

// GetRequest asks for objects of one kind.
type GetRequest struct {
	Kind      string `json:"kind"` // plural, lower case: "pods"
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"` // empty: all
	Watch     bool   `json:"watch,omitempty"`     // as the data path has it, once it is past the generation After
	After     uint64 `json:"after,omitempty"`
}

// GetResult carries the objects, each as its API type encodes it.
type GetResult struct {
	Items      []json.RawMessage `json:"items"`
	Generation uint64            `json:"generation"` // of the state that they are of
}

// ExecRequest starts a command in a pod. Stdin, stdout and stderr follow on the
// same connection by SCM_RIGHTS.
type ExecRequest struct {
	Namespace string   `json:"namespace"`
	Pod       string   `json:"pod"`
	Container string   `json:"container,omitempty"`
	Command   []string `json:"command"`
	TTY       bool     `json:"tty,omitempty"`
	Rows      uint16   `json:"rows,omitempty"`
	Cols      uint16   `json:"cols,omitempty"`
	Term      string   `json:"term,omitempty"`
}

// ForwardRequest asks which pod, and which of its ports, `port-forward` leads to.
type ForwardRequest struct {
	Namespace string   `json:"namespace"`
	Target    string   `json:"target"` // NAME, pod/NAME, service/NAME, deployment/NAME and so on
	Ports     []string `json:"ports"`  // numbers, or names of container ports or of the Service's
}

// ForwardTarget answers it, a port for each that was asked for.
type ForwardTarget struct {
	Pod   string        `json:"pod"`
	Ports []ForwardPort `json:"ports"`
}

// ForwardPort is a port by its number as it was asked for, which for a Service is
// the Service's, and on the pod.
type ForwardPort struct {
	Asked uint16 `json:"asked"`
	Port  uint16 `json:"port"`
}

// DialRequest connects to a TCP port of a pod's loopback.
type DialRequest struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Port      uint16 `json:"port"`
}

// ExecResult ends an exec.
type ExecResult struct {
	Exit  int    `json:"exit"`
	Error string `json:"error,omitempty"`
}

// LogsRequest asks for a container's output.
type LogsRequest struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container,omitempty"`
	Follow    bool   `json:"follow,omitempty"`
	Tail      int    `json:"tail"` // lines, -1: all
	Previous  bool   `json:"previous,omitempty"`
}

// TraceRequest asks what would happen to a packet of a pod. Target is an
// address or a name, with a port where the protocol has them.
type TraceRequest struct {
	URL string // of a request to Ingress, instead of the rest

	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Proto     string `json:"proto"` // "tcp", "udp", "icmp"
	Target    string `json:"target"`
	Port      uint16 `json:"port,omitempty"`
	Interface string `json:"interface,omitempty"` // of the pod; empty: as its routes would have it
}

// CaptureRequest asks for live frames as pcapng.
type CaptureRequest struct {
	Pod string `json:"pod,omitempty"` // "namespace/name"; empty: all ports
}

// FaultRequest makes the link of a pod bad.
type FaultRequest struct {
	Pod    string `json:"pod"`    // "namespace/name"
	Faults string `json:"faults"` // "loss=10%,delay=20ms"; empty: none
}

// FlowsRequest asks for conversations or recent drops.
type FlowsRequest struct {
	Dropped bool   `json:"dropped,omitempty"`
	Pod     string `json:"pod,omitempty"` // "namespace/name"
}

// DNSRequest asks what a pod's resolver gets for a name, and why.
type DNSRequest struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Name      string `json:"name"`
	Type      string `json:"type"` // "A"
}

// PolicyRequest asks what policies say.
type PolicyRequest struct {
	What      string `json:"what"` // "matrix", "test", "denials"
	Namespace string `json:"namespace,omitempty"`
	Proto     string `json:"proto,omitempty"` // of a matrix: "tcp", "udp", "sctp"
	Port      uint16 `json:"port,omitempty"`
	Files     []File `json:"files,omitempty"` // to be tested
}
