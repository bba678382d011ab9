package dns

import (
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// Resolve returns the addresses of a name, IPv4 first, as pods are told them.
// It is for connections that the gateway makes in the cluster's name.
func (s *Server) Resolve(name string) (addrs []netip.Addr) {
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m := question(dns.Fqdn(name), qtype)
		wire, err := m.Pack()
		if err != nil {
			return nil
		}
		out := make([]byte, maxTCP)
		if n, _, _ := s.Responder().reply(out, wire); n > 0 {
			out = out[:n]
		} else {
			answer, later := s.decide(&query{Msg: m, silent: true}, out)
			if later != nil {
				answer = later()
			}
			out = answer
		}
		var a dns.Msg
		if a.Unpack(out) != nil {
			continue
		}
		for _, rr := range a.Answer {
			if addr, ok := addressOf(rr); ok {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// addressOf is that of an address record.
func addressOf(rr dns.RR) (netip.Addr, bool) {
	var ip net.IP
	switch rr := rr.(type) {
	case *dns.A:
		ip = rr.A
	case *dns.AAAA:
		ip = rr.AAAA
	}
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}
