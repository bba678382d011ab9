package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// dump is a zone as sorted text.
func dump(z *Zone) string {
	var lines []string
	add := func(name string, n *node) {
		lines = append(lines, name)
		all := slices.Concat(n.a, n.aaaa, n.srv, n.other, n.extra)
		if n.cname != nil {
			all = append(all, n.cname)
		}
		for _, rr := range all {
			lines = append(lines, "  "+name+": "+rr.String())
		}
	}
	for name, n := range z.static {
		add(name, n)
	}
	if z.services.pieces != nil {
		for _, piece := range z.services.pieces {
			for key, svc := range piece {
				if svc.self != nil {
					add(" of "+key, svc.self)
				}
				for _, n := range svc.few {
					add(n.sub+" of "+key, n.node)
				}
				for sub, n := range svc.many {
					add(sub+" of "+key, n)
				}
			}
		}
		for _, piece := range z.pointers.pieces {
			for addr, ptrs := range piece {
				for _, p := range ptrs {
					lines = append(lines, fmt.Sprint(addr, " ", p.target, " ", p.vip))
				}
			}
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// zoneTests are questions with what a cluster's DNS has to say. The answer is
// the records without TTL and class, in any order; "NODATA" and "NXDOMAIN" come
// with the SOA of the zone named after them, "-> name" is a name for an upstream.
var zoneTests = []struct {
	says  string // what the specification or CoreDNS says
	name  string
	qtype uint16
	want  []string
	extra []string
}{
	{"2.2: a TXT record named dns-version.<zone> contains the schema version",
		"dns-version.cluster.local.", dns.TypeTXT, []string{"TXT \"1.1.0\""}, nil},
	{"2.2: other types", "dns-version.cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"2.3.1: Service with ClusterIP has an A record",
		"kubernetes.default.svc.cluster.local.", dns.TypeA, []string{"A 10.96.0.1"}, nil},
	{"2.3.1: and an AAAA record for an IPv6 ClusterIP",
		"web.shop.svc.cluster.local.", dns.TypeAAAA, []string{"AAAA fd00:10:96::14"}, nil},
	{"2.3.1: dual stack", "web.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.96.0.20"}, nil},
	{"2.3.1: no IPv4 ClusterIP: no data", "six.shop.svc.cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"2.1: comparisons are case-insensitive",
		"WEB.shop.SVC.Cluster.Local.", dns.TypeA, []string{"A 10.96.0.20"}, nil},
	{"2.3.2: SRV for a named port",
		"_https._tcp.kubernetes.default.svc.cluster.local.", dns.TypeSRV,
		[]string{"SRV 0 100 443 kubernetes.default.svc.cluster.local."},
		[]string{"kubernetes.default.svc.cluster.local. A 10.96.0.1"}},
	{"2.3.2: the protocol counts",
		"_metrics._udp.web.shop.svc.cluster.local.", dns.TypeSRV,
		[]string{"SRV 0 50 9090 web.shop.svc.cluster.local."},
		[]string{"web.shop.svc.cluster.local. A 10.96.0.20", "web.shop.svc.cluster.local. AAAA fd00:10:96::14"}},
	{"2.3.2: another protocol", "_metrics._tcp.web.shop.svc.cluster.local.", dns.TypeSRV, []string{"NXDOMAIN cluster.local."}, nil},
	{"2.3.2: unnamed ports have no SRV record of their own",
		"_._tcp.unnamed.shop.svc.cluster.local.", dns.TypeSRV, []string{"NXDOMAIN cluster.local."}, nil},
	{"CoreDNS: SRV of the Service lists all ports",
		"unnamed.shop.svc.cluster.local.", dns.TypeSRV,
		[]string{"SRV 0 100 7000 unnamed.shop.svc.cluster.local."}, []string{"unnamed.shop.svc.cluster.local. A 10.96.0.21"}},
	{"CoreDNS: addresses at a port's name",
		"_http._tcp.web.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.96.0.20"}, nil},
	{"2.3.3: PTR for a ClusterIP",
		"1.0.96.10.in-addr.arpa.", dns.TypePTR, []string{"PTR kubernetes.default.svc.cluster.local."}, nil},
	{"2.3.3: IPv6", arpa("fd00:10:96::14"), dns.TypePTR, []string{"PTR web.shop.svc.cluster.local."}, nil},
	{"CoreDNS: endpoints of a Service with ClusterIP have names too",
		"10-244-0-11.web.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.244.0.11"}, nil},
	{"and only those that are ready", "10-244-0-12.web.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},

	{"2.4.1: headless: an A record for each ready endpoint",
		"db.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.244.0.31", "A 10.244.0.32", "A 10.244.0.33"}, nil},
	{"2.4.1: AAAA likewise",
		"db.shop.svc.cluster.local.", dns.TypeAAAA, []string{"AAAA fd00:10:244::31", "AAAA fd00:10:244::33"}, nil},
	{"2.4.1: no ready endpoints: NXDOMAIN", "nobody.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"2.4.1: a ready endpoint with hostname", "db-0.db.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.244.0.31"}, nil},
	{"2.4.1: all of a hostname's addresses", "db-0.db.shop.svc.cluster.local.", dns.TypeAAAA, []string{"AAAA fd00:10:244::31"}, nil},
	{"2.4.1: not ready", "db-3.db.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"2.4.1: without hostname: a system-assigned name", "10-244-0-33.db.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.244.0.33"}, nil},
	{"2.4.1: IPv6", "fd00-10-244--33.db.shop.svc.cluster.local.", dns.TypeAAAA, []string{"AAAA fd00:10:244::33"}, nil},
	{"publishNotReadyAddresses", "peers.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.244.0.41"}, nil},
	{"publishNotReadyAddresses, by hostname", "peer-0.peers.shop.svc.cluster.local.", dns.TypeA, []string{"A 10.244.0.41"}, nil},
	{"no ports: no SRV", "peers.shop.svc.cluster.local.", dns.TypeSRV, []string{"NODATA cluster.local."}, nil},
	{"2.4.2: N endpoints and M named ports: N x M SRV records",
		"_sql._tcp.db.shop.svc.cluster.local.", dns.TypeSRV,
		[]string{
			"SRV 0 20 5432 db-0.db.shop.svc.cluster.local.",
			"SRV 0 20 5432 db-1.db.shop.svc.cluster.local.",
			"SRV 0 20 5432 10-244-0-33.db.shop.svc.cluster.local.",
			"SRV 0 20 5432 fd00-10-244--33.db.shop.svc.cluster.local.",
		},
		[]string{
			"db-0.db.shop.svc.cluster.local. A 10.244.0.31",
			"db-0.db.shop.svc.cluster.local. AAAA fd00:10:244::31",
			"db-1.db.shop.svc.cluster.local. A 10.244.0.32",
			"10-244-0-33.db.shop.svc.cluster.local. A 10.244.0.33",
			"fd00-10-244--33.db.shop.svc.cluster.local. AAAA fd00:10:244::33",
		}},
	{"2.4.3: PTR for an endpoint with hostname", "31.0.244.10.in-addr.arpa.", dns.TypePTR, []string{"PTR db-0.db.shop.svc.cluster.local."}, nil},
	{"2.4.3: and without", "33.0.244.10.in-addr.arpa.", dns.TypePTR, []string{"PTR 10-244-0-33.db.shop.svc.cluster.local."}, nil},
	{"2.4.3: IPv6", arpa("fd00:10:244::31"), dns.TypePTR, []string{"PTR db-0.db.shop.svc.cluster.local."}, nil},

	{"2.5: ExternalName is a CNAME", "outside.shop.svc.cluster.local.", dns.TypeCNAME, []string{"CNAME www.example.com."}, nil},
	{"2.5: with the target's records", "outside.shop.svc.cluster.local.", dns.TypeA, []string{"CNAME www.example.com.", "-> www.example.com."}, nil},
	{"2.5: target in the cluster", "alias.shop.svc.cluster.local.", dns.TypeA,
		[]string{"CNAME web.shop.svc.cluster.local.", "A 10.96.0.20"}, nil},
	{"2.5: a chain", "alias2.shop.svc.cluster.local.", dns.TypeAAAA,
		[]string{"CNAME alias.shop.svc.cluster.local.", "CNAME web.shop.svc.cluster.local.", "AAAA fd00:10:96::14"}, nil},
	{"2.5: target missing in the cluster", "dangling.shop.svc.cluster.local.", dns.TypeA,
		[]string{"CNAME gone.shop.svc.cluster.local.", "NXDOMAIN cluster.local."}, nil},
	{"2.5: its own target", "ring.shop.svc.cluster.local.", dns.TypeA, []string{"SERVFAIL"}, nil},
	{"CoreDNS: an address is no name", "literal.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"CoreDNS: nothing below", "endpoint.outside.shop.svc.cluster.local.", dns.TypeCNAME, []string{"NXDOMAIN cluster.local."}, nil},

	{"2.6: pod records", "10-244-0-9.shop.pod.cluster.local.", dns.TypeA, []string{"A 10.244.0.9"}, nil},
	{"2.6: other type", "10-244-0-9.shop.pod.cluster.local.", dns.TypeAAAA, []string{"NODATA cluster.local."}, nil},
	{"2.6: IPv6", "fd00-10-244--9.shop.pod.cluster.local.", dns.TypeAAAA, []string{"AAAA fd00:10:244::9"}, nil},
	{"2.6: no address", "300-1-1-1.shop.pod.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"2.6: zone identifiers are none", "fe80--1%eth0.shop.pod.cluster.local.", dns.TypeAAAA, []string{"NXDOMAIN cluster.local."}, nil},
	{"2.6: no such namespace", "10-244-0-9.nowhere.pod.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"2.6: nothing below", "a.10-244-0-9.shop.pod.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},

	{"apex: SOA", "cluster.local.", dns.TypeSOA,
		[]string{"SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30"}, nil},
	{"apex: NS with glue", "cluster.local.", dns.TypeNS, []string{"NS ns.dns.cluster.local."},
		[]string{"ns.dns.cluster.local. A 10.96.0.10", "ns.dns.cluster.local. AAAA fd00:10:96::a"}},
	{"apex: no address", "cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"the name server", "ns.dns.cluster.local.", dns.TypeA, []string{"A 10.96.0.10"}, nil},
	{"empty non-terminal", "svc.cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"empty non-terminal", "pod.cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"empty non-terminal", "dns.cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"empty non-terminal", "shop.svc.cluster.local.", dns.TypeNS, []string{"NODATA cluster.local."}, nil},
	{"empty non-terminal", "shop.pod.cluster.local.", dns.TypeA, []string{"NODATA cluster.local."}, nil},
	{"empty non-terminal", "_tcp.web.shop.svc.cluster.local.", dns.TypeSRV, []string{"NODATA cluster.local."}, nil},
	{"no such Service", "gone.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"no such namespace", "web.gone.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"no such namespace", "gone.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"neither svc nor pod", "web.shop.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"too long", "a.b.c.web.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},
	{"no such type", "web.shop.svc.cluster.local.", dns.TypeMX, []string{"NODATA cluster.local."}, nil},
	{"an escaped dot is no dot", "web\\.shop.svc.cluster.local.", dns.TypeA, []string{"NXDOMAIN cluster.local."}, nil},

	{"reverse apex", "244.10.in-addr.arpa.", dns.TypeSOA,
		[]string{"SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30"}, nil},
	{"reverse: part of an address", "0.244.10.in-addr.arpa.", dns.TypePTR, []string{"NODATA 244.10.in-addr.arpa."}, nil},
	{"reverse: nobody's", "200.0.244.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN 244.10.in-addr.arpa."}, nil},
	{"reverse: no address", "300.0.244.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN 244.10.in-addr.arpa."}, nil},
	{"reverse: other spelling", "011.0.244.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN 244.10.in-addr.arpa."}, nil},
	{"reverse: other type", "31.0.244.10.in-addr.arpa.", dns.TypeA, []string{"NODATA 244.10.in-addr.arpa."}, nil},
	{"reverse: above the zone", "10.in-addr.arpa.", dns.TypeNS, []string{"-> 10.in-addr.arpa."}, nil},
	{"reverse: outside", "1.2.0.192.in-addr.arpa.", dns.TypePTR, []string{"-> 1.2.0.192.in-addr.arpa."}, nil},
	{"outside", "www.example.com.", dns.TypeA, []string{"-> www.example.com."}, nil},
	{"outside: a longer last label", "xcluster.local.", dns.TypeA, []string{"-> xcluster.local."}, nil},
	{"outside: the root", ".", dns.TypeNS, []string{"-> ."}, nil},
}

func arpa(addr string) string {
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		panic(err)
	}
	return name
}

func TestZoneAnswers(t *testing.T) {
	z := Compile(nil, loadState(t, "testdata/cluster.yaml"), testConfig)
	for _, test := range zoneTests {
		t.Run(strings.ReplaceAll(test.says+"/"+test.name, " ", "_"), func(t *testing.T) {
			a := z.answer(test.name, test.qtype)
			got := values(a.records)
			switch {
			case a.rcode == dns.RcodeNameError:
				got = append(got, "NXDOMAIN "+a.soa.Header().Name)
			case a.rcode != dns.RcodeSuccess:
				got = append(got, dns.RcodeToString[a.rcode])
			case a.soa != nil:
				got = append(got, "NODATA "+a.soa.Header().Name)
			case a.chase != "":
				got = append(got, "-> "+a.chase)
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(test.want))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", test.name, dns.TypeToString[test.qtype], diff)
			}
			if len(a.records) > 0 && a.records[0].Header().Name != test.name {
				t.Errorf("owner: got %q, want the name as asked, %q", a.records[0].Header().Name, test.name)
			}
			var extra []string
			for _, rr := range a.extra {
				extra = append(extra, rr.Header().Name+" "+values([]dns.RR{rr})[0])
			}
			slices.Sort(extra)
			if diff := cmp.Diff(slices.Sorted(slices.Values(test.extra)), extra); diff != "" {
				t.Errorf("additional records (-want +got):\n%s", diff)
			}
			for _, rr := range slices.Concat(a.records, a.extra) {
				want := uint32(30)
				if rr.Header().Rrtype == dns.TypeTXT {
					want = 28800
				}
				if rr.Header().Ttl != want {
					t.Errorf("TTL of %v: want %d", rr, want)
				}
			}
		})
	}
}

// values are records without owner, TTL and class.
func values(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		fields := strings.Fields(rr.String())
		out = append(out, strings.Join(fields[3:], " "))
	}
	return out
}

func TestPodModes(t *testing.T) {
	st := loadState(t, "testdata/cluster.yaml")
	for _, test := range []struct {
		mode PodMode
		name string
		want string
	}{
		{Insecure, "10-244-0-77.shop.pod.cluster.local.", "A 10.244.0.77"},
		{Insecure, "10-244-0-78.shop.pod.cluster.local.", "A 10.244.0.78"},
		{Verified, "10-244-0-77.shop.pod.cluster.local.", "A 10.244.0.77"},
		{Verified, "10-244-0-78.shop.pod.cluster.local.", "NXDOMAIN"},
		{Verified, "10-244-0-77.default.pod.cluster.local.", "NXDOMAIN"},
		{Disabled, "10-244-0-77.shop.pod.cluster.local.", "NXDOMAIN"},
		{Disabled, "shop.pod.cluster.local.", "NXDOMAIN"},
	} {
		cfg := testConfig
		cfg.Pods = test.mode
		a := Compile(nil, st, cfg).answer(test.name, dns.TypeA)
		got := strings.Join(values(a.records), " ")
		if a.rcode != 0 {
			got = dns.RcodeToString[a.rcode]
		}
		if got != test.want {
			t.Errorf("mode %d, %s: got %s, want %s", test.mode, test.name, got, test.want)
		}
	}
}

func TestReverseApexes(t *testing.T) {
	for prefix, want := range map[string][]string{
		"10.244.0.0/16":    {"244.10.in-addr.arpa."},
		"10.96.0.0/14":     {"96.10.in-addr.arpa.", "97.10.in-addr.arpa.", "98.10.in-addr.arpa.", "99.10.in-addr.arpa."},
		"10.0.0.0/8":       {"10.in-addr.arpa."},
		"192.0.2.254/31":   {"254.2.0.192.in-addr.arpa.", "255.2.0.192.in-addr.arpa."},
		"2001:db8::/32":    {"8.b.d.0.1.0.0.2.ip6.arpa."},
		"2001:db8::/31":    {"8.b.d.0.1.0.0.2.ip6.arpa.", "9.b.d.0.1.0.0.2.ip6.arpa."},
		"fd00:10:96::/112": {arpa("fd00:10:96::")[8:]},
	} {
		if diff := cmp.Diff(want, reverseApexes(netip.MustParsePrefix(prefix))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", prefix, diff)
		}
	}
}
