package stack

import "time"

// FlowRecord is one conversation, for people and programs.
type FlowRecord struct {
	Started time.Time     `json:"started"`
	Proto   string        `json:"proto"` // tcp, udp, sctp, icmp, proto-47
	Src     string        `json:"src"`   // address:port as sent
	Dst     string        `json:"dst"`
	SrcPod  string        `json:"srcPod,omitempty"` // namespace/name; "local"
	DstPod  string        `json:"dstPod,omitempty"`
	Service string        `json:"service,omitempty"` // namespace/name:port
	Backend string        `json:"backend,omitempty"` // address:port (namespace/name)
	State   string        `json:"state"`
	Verdict string        `json:"verdict"`
	Age     time.Duration `json:"ageNanoseconds"`
	Idle    time.Duration `json:"idleNanoseconds"`

	Packets      uint64 `json:"packets"` // of the original direction
	Bytes        uint64 `json:"bytes"`
	ReplyPackets uint64 `json:"replyPackets"`
	ReplyBytes   uint64 `json:"replyBytes"`
}

// DropRecord is one frame that was not forwarded.
type DropRecord struct {
	Seq      uint64    `json:"seq"` // counts all drops
	Time     time.Time `json:"time"`
	Proto    string    `json:"proto,omitempty"`
	Src      string    `json:"src,omitempty"`
	Dst      string    `json:"dst,omitempty"`
	Port     string    `json:"port"` // where it arrived
	SrcPod   string    `json:"srcPod,omitempty"`
	DstPod   string    `json:"dstPod,omitempty"`
	Service  string    `json:"service,omitempty"`
	Verdict  string    `json:"verdict"` // drop, reject
	Reason   string    `json:"reason"`
	Policies []string  `json:"policies,omitempty"` // that isolate the pod which denied it
}

// PortRecord is one attachment with its counters.
type PortRecord struct {
	ID    uint16   `json:"id"`
	Pod   string   `json:"pod,omitempty"`
	Name  string   `json:"name"`
	MAC   string   `json:"mac"`
	Addrs []string `json:"addresses"`
	MTU   int      `json:"mtu"`
	Local bool     `json:"local"`

	Network string `json:"network,omitempty"` // a further pod network, namespace/name

	Faults string `json:"faults,omitempty"` // as link.ParseFaults reads them

	RxFrames uint64 `json:"rxFrames"` // from the pod
	RxBytes  uint64 `json:"rxBytes"`
	TxFrames uint64 `json:"txFrames"` // to the pod
	TxBytes  uint64 `json:"txBytes"`
	Dropped  uint64 `json:"dropped"` // of those received
	TxLost   uint64 `json:"txLost"`  // the device's queue was full
}
