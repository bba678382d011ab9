package packet

import "strconv"

// Fault says what is malformed about a frame; OK is none. Each fault is a
// reason to drop the frame, has a name of its own and is counted under it.
type Fault uint8

const (
	// OK means that every offset of the Packet may be trusted.
	OK Fault = iota
	// ShortFrame has no complete vnet and Ethernet header.
	ShortFrame
	// VLANTag carries an 802.1Q or 802.1ad tag: pods have untagged segments.
	VLANTag
	// UnknownEtherType is neither IPv4, IPv6 nor ARP.
	UnknownEtherType
	// GroupSourceMAC has a multicast Ethernet source (IEEE 802.3, 3.2.3).
	GroupSourceMAC
	// BadVnetHdr has checksum or GSO fields that contradict the packet.
	BadVnetHdr
	// ShortIP ends within its IP header.
	ShortIP
	// BadVersion has an IP version that contradicts the EtherType.
	BadVersion
	// BadIHL has an IPv4 header length under 20 bytes.
	BadIHL
	// LyingLength has a total or payload length that the frame does not hold.
	LyingLength
	// BadHeaderChecksum has a wrong IPv4 header checksum (RFC 1812, 5.2.2).
	BadHeaderChecksum
	// BadOption has IPv4 options that do not parse.
	BadOption
	// SourceRoute is loose or strict source routing, or an IPv6 routing header
	// of type 0 or with segments left (RFC 5095, RFC 7126 4.3): its real
	// destination is not the one that policy would judge.
	SourceRoute
	// BadExtension has an IPv6 extension header chain that does not parse, is
	// out of order or is longer than maxExtensions.
	BadExtension
	// Jumbogram is an IPv6 packet longer than 65535 bytes (RFC 2675).
	Jumbogram
	// MartianSource has a source that no host may send from on a wire:
	// loopback, multicast, broadcast, 0.0.0.0/8, ::ffff:0:0/96 in IPv6, or the
	// unspecified address towards a unicast destination.
	MartianSource
	// MartianDestination has a loopback, unspecified, 0.0.0.0/8 or, in IPv6,
	// v4-mapped destination.
	MartianDestination
	// Land has the same address and port at both ends (RFC 1122 does not foresee
	// it, and some stacks answer themselves). Another port alone is the node
	// asking its own node port.
	Land
	// TinyFragment is a first fragment without its whole transport header, or
	// a later one that would overwrite it (RFC 1858, RFC 7112).
	TinyFragment
	// BadFragment is a fragment that reaches past 65535 bytes, is not a
	// multiple of 8 bytes though more follow, or uses offload.
	BadFragment
	// ShortTransport ends within its transport header.
	ShortTransport
	// BadTCPHeader has a TCP data offset that the packet does not hold.
	BadTCPHeader
	// BadTCPFlags has a combination of flags that no TCP sends (SYN with FIN
	// or RST, none at all, ...).
	BadTCPFlags
	// BadUDPLength has a UDP length that the packet does not hold, or a
	// UDP-Lite coverage that is not possible (RFC 3828, 3.1).
	BadUDPLength
	// PortZero is sent to port 0, or from it by a protocol that needs answers.
	PortZero
	// WrongFamily is ICMP over IPv6 or ICMPv6 over IPv4.
	WrongFamily
	// Redirect is an ICMP redirect, which hosts do not send (RFC 1122,
	// 3.2.2.2) and which would have others take a way that nobody judges.
	Redirect
	// BadARP is not Ethernet and IPv4 ARP, or has impossible addresses.
	BadARP
	// BadND is a neighbour discovery message that RFC 4861, 6.1 and 7.1, tell
	// a node to discard.
	BadND
	// BadQuote is an ICMP error that quotes too little to know its flow.
	BadQuote

	// NumFaults is how many Faults there are, OK included.
	NumFaults = int(iota)
)

var faultNames = [NumFaults]string{
	OK:                 "ok",
	ShortFrame:         "short-frame",
	VLANTag:            "vlan-tag",
	UnknownEtherType:   "unknown-ethertype",
	GroupSourceMAC:     "group-source-mac",
	BadVnetHdr:         "bad-vnet-header",
	ShortIP:            "short-ip-header",
	BadVersion:         "bad-ip-version",
	BadIHL:             "bad-ip-header-length",
	LyingLength:        "lying-ip-length",
	BadHeaderChecksum:  "bad-ip-header-checksum",
	BadOption:          "bad-ip-option",
	SourceRoute:        "source-route",
	BadExtension:       "bad-extension-header",
	Jumbogram:          "jumbogram",
	MartianSource:      "martian-source",
	MartianDestination: "martian-destination",
	Land:               "land",
	TinyFragment:       "tiny-fragment",
	BadFragment:        "bad-fragment",
	ShortTransport:     "short-transport-header",
	BadTCPHeader:       "bad-tcp-header",
	BadTCPFlags:        "bad-tcp-flags",
	BadUDPLength:       "bad-udp-length",
	PortZero:           "port-zero",
	WrongFamily:        "icmp-of-wrong-family",
	Redirect:           "icmp-redirect",
	BadARP:             "bad-arp",
	BadND:              "bad-nd",
	BadQuote:           "bad-icmp-quote",
}

// String is the fault's name in kebab case, as counters and docs use it.
func (f Fault) String() string {
	if int(f) < NumFaults {
		return faultNames[f]
	}
	return "fault-" + strconv.Itoa(int(f))
}
