package dns

import (
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// told lets Config.Told know what an answer, as it is about to be sent, says of
// the addresses of the name that was asked for: those at the end of its chain of
// aliases, for as long as the first record of the chain to end.
func (s *Server) told(client netip.Addr, wire []byte) {
	if s.cfg.Told == nil || len(wire) < headerSize || wire[3]&0xf != dns.RcodeSuccess {
		return
	}
	var m dns.Msg
	if m.Unpack(wire) != nil || len(m.Question) != 1 {
		return
	}
	s.teach(client, m.Question[0].Name, m.Answer)
}

// teach is told about the records of an answer to a name.
func (s *Server) teach(client netip.Addr, name string, answer []dns.RR) {
	if s.cfg.Told == nil {
		return
	}
	at := strings.ToLower(name)
	ttl := ^uint32(0)
	for range answer { // a chain is no longer than the answer
		next := ""
		for _, rr := range answer {
			if c, ok := rr.(*dns.CNAME); ok && strings.ToLower(c.Hdr.Name) == at {
				next, ttl = strings.ToLower(c.Target), min(ttl, c.Hdr.Ttl)
				break
			}
		}
		if next == "" {
			break
		}
		at = next
	}
	var addrs []netip.Addr
	for _, rr := range answer {
		if a, ok := addressOf(rr); ok && strings.ToLower(rr.Header().Name) == at {
			addrs, ttl = append(addrs, a), min(ttl, rr.Header().Ttl)
		}
	}
	if len(addrs) > 0 {
		s.cfg.Told(client, name, addrs, time.Duration(ttl)*time.Second)
	}
}
