package main

import (
	"strings"

	mdns "github.com/miekg/dns"
)

// intended says why podgate's answer may differ from CoreDNS's, "" if it may not.
func intended(q mdns.Question, theirs, ours *mdns.Msg) string {
	name := strings.ToLower(q.Name)
	nodata := func(m *mdns.Msg) bool { return m.Rcode == mdns.RcodeSuccess && len(m.Answer) == 0 }
	denied := func(m *mdns.Msg) bool { return m.Rcode == mdns.RcodeNameError && len(m.Answer) == 0 }
	reverse := strings.HasSuffix(name, ".arpa.")
	switch {
	case q.Qtype == mdns.TypeSOA && nodata(theirs) && denied(ours):
		return "SOA of a name that does not exist: CoreDNS does not look and says NODATA (RFC 2308: NXDOMAIN)"
	case denied(theirs) && nodata(ours) && reverse:
		return "a reverse name has no data of that type, or is part of one: CoreDNS denies that it exists (RFC 8020: NODATA)"
	case denied(theirs) && nodata(ours) && q.Qtype == mdns.TypeTXT:
		return "TXT of a name that exists: CoreDNS denies that it exists (RFC 2308: NODATA)"
	case denied(theirs) && nodata(ours) && (name == "dns-version.cluster.local." || name == "dns.cluster.local." || strings.HasPrefix(name, "_")):
		return "a name that longer ones end in, or dns-version: CoreDNS denies that it exists (RFC 8020: NODATA)"
	case strings.HasPrefix(name, "ext.") && len(ours.Answer) == 1 && len(theirs.Answer) == 1 && len(ours.Ns) == 1:
		return "ExternalName without an address of that family: podgate passes the SOA on, for negative caching (RFC 2308, 2.2)"
	case strings.HasPrefix(name, "ext") && strings.HasSuffix(name, ".shop.svc.cluster.local.") && len(ours.Answer) > 0 && ours.Answer[0].Header().Rrtype == mdns.TypeCNAME:
		switch {
		case nodata(theirs):
			return "ExternalName: its CNAME answers every type (RFC 1034, 3.6.2); CoreDNS's only A, AAAA and CNAME"
		case ours.Rcode == mdns.RcodeNameError && theirs.Rcode == mdns.RcodeSuccess:
			return "ExternalName of a name that does not exist: the code is that of the last name (RFC 6604); CoreDNS says NOERROR"
		}
	case strings.HasPrefix(name, "ext-loop."):
		return "ExternalName that leads to itself: SERVFAIL; CoreDNS ends with what it has"
	case strings.HasPrefix(name, "_http.tcp.") || strings.HasPrefix(name, "http._tcp.") || strings.HasPrefix(name, "_._tcp."):
		if denied(ours) && theirs.Rcode == mdns.RcodeSuccess {
			return "a port's name has both underscores, and a port without a name has none (specification, 2.3.2): CoreDNS does not insist"
		}
	case q.Qclass != mdns.ClassINET && ours.Rcode == mdns.RcodeRefused:
		return "classes other than IN are refused: CoreDNS answers them as IN where it forwards"
	case q.Qtype == mdns.TypeANY && len(theirs.Answer) == 0 && len(ours.Answer) > 0 && ours.Rcode == mdns.RcodeSuccess:
		return "ANY of a name that has data: podgate says some of it (RFC 8482, 4.1); CoreDNS that there is none"
	case (q.Qtype == mdns.TypeAXFR || q.Qtype == mdns.TypeIXFR) && ours.Rcode == mdns.RcodeRefused:
		return "zone transfers are refused at once, and never forwarded"
	case reverse && q.Qtype == mdns.TypePTR && denied(theirs) && len(ours.Answer) == 1 && strings.HasSuffix(name, ".192.in-addr.arpa."):
		return "an endpoint outside of the cluster's addresses: podgate knows its name without serving its zone"
	case q.Qtype == mdns.TypeNS && nodata(theirs) && len(ours.Answer) == 1,
		strings.HasPrefix(name, "ns.dns.") && (nodata(theirs) || denied(theirs)):
		return "the name server: podgate's is the DNS Service; CoreDNS's would be the Service of its own pod, and here it is in none"
	case strings.HasPrefix(name, "x.") && strings.HasSuffix(name, ".pod.cluster.local.") && denied(ours):
		return "a name below a pod's: CoreDNS answers as if it were the pod's; the specification has no such names"
	case reverse && q.Qtype == mdns.TypePTR && len(theirs.Answer) == 1 && strings.Contains(theirs.Answer[0].String(), ".stray."):
		return "an endpoint of no Service: CoreDNS points to a name that it denies"
	}
	return ""
}
