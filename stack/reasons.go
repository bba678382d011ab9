package stack

import (
	"sync/atomic"

	"podgate/stack/packet"
)

// Reason names what became of a frame that was not simply forwarded, or of a
// flow that ended before its time. docs/reasons.md explains each; a test keeps
// the page and this list equal.
type Reason uint8

// Reasons are grouped by the stage that gives them.
const (
	None Reason = iota // forwarded

	// Answered by the gateway itself.
	ARPAnswered
	NDAnswered
	EchoAnswered
	DNSAnswered
	DHCPAnswered

	// Told by another frame.
	AckSuperseded

	// Classify.
	SpoofedMAC
	SpoofedIP
	SpoofedARP
	SpoofedND
	ARPIgnored
	ARPUnknown
	NDIgnored
	NDUnknown
	WrongMAC
	BadDHCP
	SpoofedDHCP
	DHCPIgnored
	MulticastNotServed
	MulticastLimited
	FragmentOrphan
	FragmentOverlap
	FragmentsFull
	ICMPErrorUnmatched
	ResetUnmatched

	// Decide.
	ServiceNoEndpoints
	ServiceUnknownPort
	ServiceNoLocal
	ServiceSourceDenied
	ServiceUnallocated
	PolicyEgressDenied
	PolicyIngressDenied
	UplinkFiltered
	NoSuchPod
	PodAwaited
	GatewayNotServed
	NoRoute
	EgressForbidden
	EgressOff
	PortLoop

	// Commit.
	SourcePortsExhausted
	FlowTableFull
	FlowShareFull

	// Replay.
	TTLExpired
	TooBig
	DeviceFull
	FaultInjected
	ErrorsLimited

	// Flows ended or changed by configuration.
	FlowCutByPolicy
	FlowCutByRoute
	FlowCutByDetach
	FlowMoved
	FlowDrained

	// Conversations that a policy in audit mode would have denied.
	PolicyEgressAudited
	PolicyIngressAudited

	// A Decode fault f is the Reason malformed+f.
	malformed

	numReasons = int(malformed) + packet.NumFaults
)

// class says what kind of thing a Reason counts.
type class uint8

const (
	answered  class = iota + 1 // the gateway gave the answer itself
	dropped                    // discarded without a word
	rejected                   // discarded, the sender is told
	limited                    // an answer of ours that the rate limit withheld
	flowEvent                  // not a frame: a flow cut or moved
	merged                     // a frame whose message goes with a later one
)

func (c class) String() string {
	return [...]string{"", "answered", "dropped", "rejected", "withheld", "flow", "merged"}[c]
}

// say is how a rejection is told to the sender.
type say uint8

const (
	sayNothing    say = iota
	sayPort           // RST for TCP, else port unreachable
	sayHost           // RST for TCP, else host (address) unreachable
	sayNet            // RST for TCP, else no route
	sayProhibited     // RST for TCP, else administratively prohibited
	sayTTL            // time exceeded
	sayTooBig         // fragmentation needed, packet too big
)

var reasons = [malformed]struct {
	name  string
	class class
	say   say
}{
	ARPAnswered:          {"arp-answered", answered, 0},
	NDAnswered:           {"nd-answered", answered, 0},
	EchoAnswered:         {"echo-answered", answered, 0},
	DNSAnswered:          {"dns-answered", answered, 0},
	DHCPAnswered:         {"dhcp-answered", answered, 0},
	AckSuperseded:        {"ack-superseded", merged, 0},
	SpoofedMAC:           {"spoofed-mac", dropped, 0},
	SpoofedIP:            {"spoofed-ip", dropped, 0},
	SpoofedARP:           {"spoofed-arp", dropped, 0},
	SpoofedND:            {"spoofed-nd", dropped, 0},
	ARPIgnored:           {"arp-ignored", dropped, 0},
	ARPUnknown:           {"arp-unknown", dropped, 0},
	NDIgnored:            {"nd-ignored", dropped, 0},
	NDUnknown:            {"nd-unknown", dropped, 0},
	WrongMAC:             {"wrong-mac", dropped, 0},
	BadDHCP:              {"bad-dhcp", dropped, 0},
	SpoofedDHCP:          {"spoofed-dhcp", dropped, 0},
	DHCPIgnored:          {"dhcp-ignored", dropped, 0},
	MulticastNotServed:   {"multicast-not-served", dropped, 0},
	MulticastLimited:     {"multicast-limited", dropped, 0},
	FragmentOrphan:       {"fragment-orphan", dropped, 0},
	FragmentOverlap:      {"fragment-overlap", dropped, 0},
	FragmentsFull:        {"fragments-full", dropped, 0},
	ICMPErrorUnmatched:   {"icmp-error-unmatched", dropped, 0},
	ResetUnmatched:       {"reset-unmatched", dropped, 0},
	ServiceNoEndpoints:   {"service-no-endpoints", rejected, sayPort},
	ServiceUnknownPort:   {"service-unknown-port", rejected, sayPort},
	ServiceNoLocal:       {"service-no-local-endpoint", dropped, 0},
	ServiceSourceDenied:  {"service-source-denied", dropped, 0},
	ServiceUnallocated:   {"service-unallocated", dropped, 0},
	PolicyEgressDenied:   {"policy-egress-denied", dropped, sayProhibited},
	PolicyIngressDenied:  {"policy-ingress-denied", dropped, sayProhibited},
	UplinkFiltered:       {"uplink-filtered", dropped, 0},
	NoSuchPod:            {"no-such-pod", rejected, sayHost},
	PodAwaited:           {"pod-awaited", dropped, 0},
	GatewayNotServed:     {"gateway-not-served", rejected, sayPort},
	NoRoute:              {"no-route", rejected, sayNet},
	EgressForbidden:      {"egress-forbidden", rejected, sayProhibited},
	EgressOff:            {"egress-off", rejected, sayProhibited},
	PortLoop:             {"port-loop", dropped, 0},
	SourcePortsExhausted: {"source-ports-exhausted", dropped, 0},
	FlowTableFull:        {"flow-table-full", dropped, 0},
	FlowShareFull:        {"flow-share-full", dropped, 0},
	TTLExpired:           {"ttl-expired", rejected, sayTTL},
	TooBig:               {"too-big", rejected, sayTooBig},
	DeviceFull:           {"device-full", dropped, 0},
	FaultInjected:        {"fault-injected", dropped, 0},
	ErrorsLimited:        {"errors-limited", limited, 0},
	FlowCutByPolicy:      {"flow-cut-by-policy", flowEvent, 0},
	FlowCutByRoute:       {"flow-cut-by-route", flowEvent, 0},
	FlowCutByDetach:      {"flow-cut-by-detach", flowEvent, 0},
	FlowMoved:            {"flow-moved", flowEvent, 0},
	FlowDrained:          {"flow-drained", flowEvent, 0},
	PolicyEgressAudited:  {"policy-egress-audited", flowEvent, 0},
	PolicyIngressAudited: {"policy-ingress-audited", flowEvent, 0},
}

// refusal is the verdict on what came from a port and has this Reason. What
// policies deny is dropped without a word, but the gateway's own stack is told:
// the front door's kept connections and host ports end at once, and not when
// somebody's patience does.
func (r Reason) refusal(from *attachment) Verdict {
	if r.class() == rejected || from.Local && (r == PolicyEgressDenied || r == PolicyIngressDenied) {
		return Reject
	}
	return Drop
}

// fromFault is the Reason for a frame that Decode refused.
func fromFault(f packet.Fault) Reason { return malformed + Reason(f) }

// String is the kebab-case name, as it appears in counters and on the page.
func (r Reason) String() string {
	switch {
	case r == None:
		return "none"
	case r < malformed:
		return reasons[r].name
	default:
		return packet.Fault(r - malformed).String()
	}
}

func (r Reason) class() class {
	if r < malformed {
		return reasons[r].class
	}
	return dropped
}

func (r Reason) say() say {
	if r < malformed {
		return reasons[r].say
	}
	return sayNothing
}

// Reasons lists every Reason but None, in the order of the packet's way.
func Reasons() []Reason {
	var all []Reason
	for r := range Reason(numReasons) {
		if r != None && r != malformed {
			all = append(all, r)
		}
	}
	return all
}

// counter has one writer, the worker, and any number of readers.
type counter struct{ n atomic.Uint64 }

func (c *counter) add(n uint64) { c.n.Store(c.n.Load() + n) }
func (c *counter) load() uint64 { return c.n.Load() }
