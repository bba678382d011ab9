package stack

import (
	"bytes"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"podgate/stack/packet"
)

// Theory of operation
//
// Who sets up an interface of a pod knows its addresses. A virtual machine does
// not, and asks: the gateway answers DHCP (RFC 2131) on every port with the one
// IPv4 address that the port has, and router solicitations (RFC 4861) with the
// segment's prefix where the port's IPv6 address is the one that the machine will
// make of that prefix and its MAC (RFC 4862, EUI-64 identifiers). Elsewhere there
// is no router to advertise: pods are told theirs, and would come to use an
// address that is not their own.
//
// Nothing is leased or remembered: an address belongs to its port. So any server's
// answer is right at any time, also after a restart of the gateway.

// leaseTime is what clients hear: the address stays for as long as the port does.
const leaseTime = 24 * time.Hour

// dhcp answers what a port sends to a DHCP server.
func (w *worker) dhcp(in *port, p *packet.Packet) {
	req, err := dhcpv4.FromBytes(p.UDPData())
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || p.SrcPort != dhcpClient {
		w.drop(in, p, BadDHCP)
		return
	}
	if !bytes.Equal(req.ClientHWAddr, in.MAC[:]) || !p.Src.IsUnspecified() && !in.has(p.Src) {
		w.drop(in, p, SpoofedDHCP)
		return
	}
	reply := w.dhcpReply(in, req)
	if reply == nil {
		w.drop(in, p, DHCPIgnored)
		return
	}
	t := packet.Tuple{Src: w.snap.gatewayOf(in.attachment, in.addrOf(ip4Any)), Proto: packet.UDP, SrcPort: dhcpServer, DstPort: dhcpClient}
	dst := in.MAC
	switch {
	case !req.ClientIPAddr.IsUnspecified() && reply.MessageType() == dhcpv4.MessageTypeAck:
		t.Dst = p.Src
	case req.IsBroadcast() || reply.MessageType() == dhcpv4.MessageTypeNak:
		t.Dst = packet.AddrFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}))
		dst = packet.MulticastMAC(t.Dst)
	default:
		t.Dst = in.addrOf(ip4Any)
	}
	w.answer(in, DHCPAnswered, packet.BuildUDP(w.made.next(), w.snap.gatewayMAC, dst, t, reply.ToBytes()))
}

var ip4Any = packet.AddrFrom(netip.IPv4Unspecified())

// dhcpReply is what a request gets, nil if nothing (RFC 2131, 4.3).
func (w *worker) dhcpReply(in *port, req *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	own := in.addrOf(ip4Any)
	seg := w.snap.segment(in.segment)
	if own == (packet.Addr{}) || seg.gateway4 == (packet.Addr{}) {
		return nil
	}
	gateway, mine := net.IP(seg.gateway4[12:]), net.IP(own[12:])
	if id := req.ServerIdentifier(); id != nil && !id.Equal(gateway) {
		return nil // another server's
	}
	mods := []dhcpv4.Modifier{dhcpv4.WithServerIP(gateway), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(gateway))}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithYourIP(mine), dhcpv4.WithLeaseTime(uint32(leaseTime.Seconds())))
	case dhcpv4.MessageTypeRequest:
		wanted := req.RequestedIPAddress()
		if wanted == nil {
			wanted = req.ClientIPAddr
		}
		if !wanted.Equal(mine) {
			reply, err := dhcpv4.NewReplyFromRequest(req, append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak))...)
			if err != nil {
				return nil
			}
			return reply
		}
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck), dhcpv4.WithYourIP(mine), dhcpv4.WithLeaseTime(uint32(leaseTime.Seconds())))
	case dhcpv4.MessageTypeInform:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck))
	default:
		return nil // DECLINE, RELEASE: there is no lease to end
	}
	for _, p := range seg.Prefixes {
		if p.Addr().Is4() {
			mods = append(mods, dhcpv4.WithNetmask(net.CIDRMask(p.Bits(), 32)))
		}
	}
	mods = append(mods, dhcpv4.WithRouter(gateway), dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(in.MTU >> 8), byte(in.MTU)}), dhcpv4.WithOption(dhcpv4.OptHostName(in.Pod.Name)))
	var servers []net.IP
	for _, a := range w.cfg.Nameservers {
		if a.Is4() {
			servers = append(servers, a.AsSlice())
		}
	}
	if len(servers) > 0 {
		mods = append(mods, dhcpv4.WithDNS(servers...))
	}
	if d := w.cfg.Domain; d != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptDomainName(d)),
			dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{in.Pod.Namespace + ".svc." + d, "svc." + d, d}})))
	}
	reply, err := dhcpv4.NewReplyFromRequest(req, mods...)
	if err != nil {
		return nil
	}
	return reply
}

// advertise answers a router solicitation, and says whether there is an answer.
func (w *worker) advertise(in *port, p *packet.Packet) bool {
	own := in.addrOf(packet.Addr{0: 0xfd})
	for _, prefix := range w.snap.segment(in.segment).Prefixes {
		if prefix.Bits() != 64 || packet.EUI64(prefix.Addr(), in.MAC) != own {
			continue
		}
		var servers []packet.Addr
		for _, a := range w.cfg.Nameservers {
			if a.Is6() {
				servers = append(servers, packet.AddrFrom(a))
			}
		}
		w.answer(in, NDAnswered, packet.BuildRA(w.made.next(), p, w.snap.gatewayMAC, prefix, in.MTU, servers))
		return true
	}
	return false
}
