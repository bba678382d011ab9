// Package nat turns Services into backends: a pure compile step from
// kube.State to a Table, and lookups on it that the data path makes once a flow.
//
// The semantics are kube-proxy's (nftables mode). A Table is immutable and
// shares with its predecessor everything that did not change: the same pointer
// means the same content, and the cost of Compile grows with the change.
//
// The package starts no goroutines.
package nat

import (
	"net/netip"
	"time"

	"podgate/kube"
	"podgate/stack/packet"
)

// Config is where the node stands. The zero value works: no node, no node
// ports, and no address known to be of the Service range.
type Config struct {
	NodeName     string         // decides which endpoints are local
	NodeAddrs    []netip.Addr   // where NodePorts and hostPorts answer
	ServiceCIDRs []netip.Prefix // addresses in here that nobody owns are Unallocated

	// HostIPs are where the host is to listen for NodePorts, for hostPorts that
	// name no hostIP, and for load balancers whose status names no address that
	// the host could listen on. A family without any: its loopback address.
	HostIPs []netip.Addr

	// Pending load balancers are no problem: somebody else gives them addresses,
	// later.
	Pending bool
}

// Backend is one endpoint that a Service port may choose. Backends are shared
// between successive Tables while they are unchanged, so pointer equality means
// unchanged; the readiness of an endpoint is no part of it.
type Backend struct {
	Addr packet.Addr
	Port uint16
	Pod  kube.Name // zero for an endpoint that is not a pod
	Node string
}

// AddrPort is where b listens.
func (b *Backend) AddrPort() netip.AddrPort { return netip.AddrPortFrom(b.Addr.Netip(), b.Port) }

// Outcome says what a Table knows of a destination.
type Outcome uint8

const (
	NotService  Outcome = iota // no Service address: route it
	Translate                  // a backend was chosen, or is to be chosen by Choose
	NoEndpoints                // known port, nobody behind it: reject
	UnknownPort                // a Service address, but not this port: reject
	NoLocal                    // traffic policy Local without a local endpoint: drop
	NotAllowed                 // outside loadBalancerSourceRanges: drop
	Unallocated                // inside the Service range, but nobody's: drop
)

var outcomes = [...]string{"not-service", "translate", "no-endpoints", "unknown-port", "no-local", "not-allowed", "unallocated"}

func (o Outcome) String() string { return outcomes[o] }

// Why says how a backend came to be chosen.
type Why uint8

const (
	ByHash   Why = iota // of the whole tuple
	ByClient            // sessionAffinity ClientIP: of the client's address
	BySticky            // the remembered backend is still eligible
	ByLoad              // it has the fewest conversations
)

var whys = [...]string{"hash", "client-ip", "sticky", "least-connections"}

// Loads knows how many conversations a backend of a port (ServicePort.ID) has.
type Loads interface {
	Load(port uint64, b *Backend) int
}

func (w Why) String() string { return whys[w] }

// Choice is the answer of ServicePort.Choose. Backend is nil unless Outcome is
// Translate.
type Choice struct {
	Outcome Outcome
	Backend *Backend
	Port    *ServicePort
	Why     Why
	Local   bool // a traffic policy kept the choice to this node's endpoints
	From    int  // how many backends there were to choose from
	Leaving bool // none is ready: the choice fell among those that terminate and still serve
	Hinted  bool // topology hints narrowed the choice
}

// ServicePort is one port of one Service in one address family, or the
// hostPort of a pod. A ServicePort that did not change is the same pointer in
// the next Table. All of it is read-only.
type ServicePort struct {
	Service   kube.Name // zero for a hostPort
	Pod       kube.Name // whose hostPort this is; zero for a Service
	Name      string    // spec.ports[].name
	Proto     packet.Proto
	Port      uint16
	NodePort  uint16      // 0: none
	ClusterIP packet.Addr // of this family; zero for a hostPort

	// ID names the port over time, also over a restart: a key for what is
	// remembered about clients (affinity) while the pointer may change.
	ID uint64

	AffinityTimeout time.Duration // 0: no session affinity
	Drain           time.Duration // of TCP conversations with an endpoint that is gone or not ready; 0: without limit
	InternalLocal   bool          // internalTrafficPolicy: Local
	ExternalLocal   bool          // externalTrafficPolicy: Local

	// LastPort, if not 0, makes the port a range: Port to LastPort, at the
	// Service's own addresses, lead to the endpoint's port and those that follow it.
	LastPort uint16

	// LeastConnections: new conversations go to the backend that has the fewest.
	LeastConnections bool

	// Endpoints are all that the EndpointSlices name for this port, chosen
	// from or not, sorted by address and port.
	Endpoints []Endpoint

	external      []packet.Addr  // externalIPs and load balancer addresses
	balancers     []packet.Addr  // load balancer addresses, guarded by sources
	sources       []netip.Prefix // loadBalancerSourceRanges of this family; empty: everybody
	cluster, node *pool          // by traffic policy Cluster and Local
	usable        bool           // some endpoint of the cluster is ready, or serving while it terminates
	hinted        bool           // cluster was narrowed by topology hints
}

// Endpoint is a Backend with its present condition.
type Endpoint struct {
	*Backend
	Ready, Serving, Terminating bool
	Local                       bool  // on this node
	Weight                      uint8 // share of new conversations beside the others; 1 unless annotated, 0: none

	nodeHint, zoneHint hint
}

// hint is what a topology hint says from this node's point of view.
type hint uint8

const (
	noHint hint = iota
	hintElsewhere
	hintHere
)

// Service is a compiled Service, or a pod with hostPorts, for people to look at.
type Service struct {
	Name  kube.Name
	IsPod bool // Name is that of a pod; its hostPorts are the Ports
	Ports []*ServicePort

	healthPort uint16 // healthCheckNodePort; 0: none

	born      int64 // creation time, unix seconds: the older wins a contested address
	fronts    []claim
	published []publication
	problems  []kube.Problem
}

// ExternalAddrs are the addresses besides ClusterIP at which Port answers:
// externalIPs and load balancer addresses of mode VIP.
func (sp *ServicePort) ExternalAddrs() []packet.Addr { return sp.external }

// Publication is a port that the host is to listen on, so that what is outside
// reaches the cluster.
type Publication struct {
	HostIP  netip.Addr
	Proto   packet.Proto // TCP or UDP; host listeners know no SCTP
	Port    uint16
	Target  netip.AddrPort // where in the cluster the conversation continues
	Service kube.Name      // whose NodePort or LoadBalancer port, or zero
	Pod     kube.Name      // whose hostPort, or zero
	Name    string         // of the port
	Sources []netip.Prefix // loadBalancerSourceRanges of the family, checked against the true client; empty: everybody

	// AcceptProxy and SendProxy: connections begin with a PROXY protocol header, as
	// they come and as they go on.
	AcceptProxy, SendProxy bool
	Closed                 bool // no endpoint could be chosen: the host is not to listen
}
