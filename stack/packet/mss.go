package packet

import "encoding/binary"

// MSS is the longest TCP segment without options that fits an MTU, at least 0.
func MSS(mtu int, v4 bool) uint16 {
	header := ip6Len + tcpLen
	if v4 {
		header = ip4Len + tcpLen
	}
	return uint16(min(max(mtu-header, 0), 0xffff))
}

// Kinds of TCP options (RFC 9293, 3.2).
const (
	optEnd = 0
	optNOP = 1
	optMSS = 2
)

// clampMSS lowers the maximum segment size that p, a SYN, announces to most. A SYN
// without the option is left alone: its default is small. An option may start at
// any byte, so the checksum follows the sum over all of them; one that is partial
// does not cover them yet.
func clampMSS(p *Packet, eth []byte, most uint16) {
	if p.Frag.Offset != 0 || p.Payload > p.End || p.Payload < p.L4+tcpLen {
		return
	}
	options := eth[p.L4+tcpLen : p.Payload]
	for o := options; len(o) > 1 && o[0] != optEnd; {
		n := int(o[1])
		switch {
		case o[0] == optNOP:
			n = 1
		case n < 2 || n > len(o):
			return
		case o[0] == optMSS && n == 4:
			if field := o[2:4]; binary.BigEndian.Uint16(field) > most {
				before := sum(0, options)
				binary.BigEndian.PutUint16(field, most)
				if !p.Partial {
					updateFull(eth[p.L4+16:], add(^before, sum(0, options)))
				}
			}
			return
		}
		o = o[n:]
	}
}
