package flow

import (
	"time"

	"podgate/stack/packet"
)

// State is how far a conversation has come. TCP is followed by its flags alone,
// never by sequence numbers: the endpoints judge those, and a flow whose start
// was not seen (the gateway was restarted) goes on.
//
//	          SYN                  SYN ACK (reply)             ACK (orig)
//	(new) -----------> SynSent ------------------> SynRecv -----------------+
//	  |                                               | FIN                 |
//	  | any other         any (reply)                 |                     v
//	  +-----------> PickedUp -------------------------|--------------> Established
//	  |                                               |                     |
//	  |                                               +---------+-----------+ FIN
//	  |                                                         v
//	  |                                  FIN (other)         FinWait
//	  |                           +---------------------------- | other side speaks
//	  |                           v                             v
//	  |        TimeWait <---- LastAck <-------------------- CloseWait
//	  |           |     ACK of            FIN (other)
//	  |           |    last FIN
//	  |           +---- SYN: a new conversation under the same key
//	  |           |
//	  |    (any) -|--RST--> Closed
//	  |
//	  |  not TCP            any (reply)
//	  +-----------> Unreplied ----------> Replied
//
// SynSent, SynRecv, PickedUp and Unreplied are embryonic: their cost to the
// sender is one packet, so a full table forgets them first, then TimeWait and
// Closed, and nothing else.
type State uint8

// The states; a flow is Fresh between Insert and the first Hit.
const (
	Fresh State = iota
	Unreplied
	Replied
	SynSent
	SynRecv
	PickedUp
	Established
	FinWait
	CloseWait
	LastAck
	TimeWait
	Closed
)

var stateNames = [...]string{
	Fresh: "fresh", Unreplied: "unreplied", Replied: "replied",
	SynSent: "syn-sent", SynRecv: "syn-recv", PickedUp: "picked-up",
	Established: "established", FinWait: "fin-wait", CloseWait: "close-wait",
	LastAck: "last-ack", TimeWait: "time-wait", Closed: "closed",
}

func (s State) String() string { return stateNames[s] }

// class is which list of evictable flows a state belongs to.
type class uint8

const (
	embryonic class = iota
	finished
	numClasses
	kept = numClasses // in no list
)

func (s State) class() class {
	switch s {
	case Established, Replied, FinWait, CloseWait, LastAck:
		return kept
	case TimeWait, Closed:
		return finished
	}
	return embryonic
}

// Timeouts are how long a flow may be silent; a field of 0 is its default.
type Timeouts struct {
	TCPSynSent     time.Duration // 2 min; also PickedUp
	TCPSynRecv     time.Duration // 1 min
	TCPEstablished time.Duration // 24 h, as kube-proxy sets conntrack
	TCPFinWait     time.Duration // 2 min
	TCPCloseWait   time.Duration // 1 h, as kube-proxy sets conntrack
	TCPLastAck     time.Duration // 30 s
	TCPTimeWait    time.Duration // 2 min
	TCPClosed      time.Duration // 10 s
	UDP            time.Duration // 30 s, while unreplied
	UDPReplied     time.Duration // 2 min
	ICMP           time.Duration // 30 s
	Other          time.Duration // 10 min
}

func (o Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.TCPSynSent, 2*time.Minute)
	def(&o.TCPSynRecv, time.Minute)
	def(&o.TCPEstablished, 24*time.Hour)
	def(&o.TCPFinWait, 2*time.Minute)
	def(&o.TCPCloseWait, time.Hour)
	def(&o.TCPLastAck, 30*time.Second)
	def(&o.TCPTimeWait, 2*time.Minute)
	def(&o.TCPClosed, 10*time.Second)
	def(&o.UDP, 30*time.Second)
	def(&o.UDPReplied, 2*time.Minute)
	def(&o.ICMP, 30*time.Second)
	def(&o.Other, 10*time.Minute)
	return o
}

// of is the timeout of a flow of that protocol in state s.
func (o *Timeouts) of(proto packet.Proto, s State) time.Duration {
	switch s {
	case SynSent, PickedUp:
		return o.TCPSynSent
	case SynRecv:
		return o.TCPSynRecv
	case Established:
		return o.TCPEstablished
	case FinWait:
		return o.TCPFinWait
	case CloseWait:
		return o.TCPCloseWait
	case LastAck:
		return o.TCPLastAck
	case TimeWait:
		return o.TCPTimeWait
	case Closed:
		return o.TCPClosed
	}
	switch proto {
	case packet.UDP, packet.UDPLite:
		if s == Replied {
			return o.UDPReplied
		}
		return o.UDP
	case packet.ICMP, packet.ICMPv6:
		return o.ICMP
	case packet.TCP:
		return o.TCPSynSent
	}
	return o.Other
}

// next is the state after a packet with TCP flags (0 of other protocols) on
// the Orig or Reply leg.
func (f *Flow) next(reply bool, flags uint8) State {
	if f.Orig.Proto != packet.TCP {
		if reply || f.state == Replied {
			return Replied
		}
		return Unreplied
	}
	switch {
	case flags&packet.RST != 0:
		return Closed
	case flags&packet.FIN != 0:
		return f.afterFIN(reply)
	}
	const syn, ack = packet.SYN, packet.ACK
	switch f.state {
	case Fresh:
		if flags&(syn|ack) == syn {
			return SynSent
		}
		return PickedUp
	case SynSent:
		// A reply without SYN is a challenge to a leftover connection
		// (RFC 9293, 3.10.7.4); one with SYN alone opens from both sides.
		if reply && flags&syn != 0 {
			return SynRecv
		}
	case SynRecv:
		if !reply && flags&(syn|ack) == ack {
			return Established
		}
	case PickedUp:
		if reply && f.fins != 0 {
			return CloseWait
		}
		if reply {
			return Established
		}
	case FinWait:
		if leg(reply) != f.lastFin {
			return CloseWait
		}
	case LastAck:
		if leg(reply) != f.lastFin {
			return TimeWait
		}
	}
	return f.state
}

// afterFIN is next for a FIN, one sent again included.
func (f *Flow) afterFIN(reply bool) State {
	switch f.state {
	case TimeWait, Closed:
		return f.state
	case SynSent:
		if !reply {
			return SynSent
		}
	}
	me := leg(reply)
	if f.fins&(1<<me) == 0 {
		f.fins |= 1 << me
		f.lastFin = me
	}
	switch {
	case f.fins == 3:
		return LastAck
	case !reply && f.state <= PickedUp && f.state != SynRecv:
		return PickedUp // nobody has answered yet
	case f.state == CloseWait:
		return CloseWait
	}
	return FinWait
}

// leg is a leg's number.
func leg(reply bool) uint8 {
	if reply {
		return 1
	}
	return 0
}
