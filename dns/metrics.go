package dns

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// What scrapers read
//
// Names, labels and buckets are CoreDNS's where the meaning is. An answer of the
// data path takes a few atomic additions and no clock: it is known to be among
// the fastest, and counts as one that took no time.

// countedTypes are the types that CoreDNS's metrics tell apart.
var countedTypes = [...]uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeCNAME, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypeHTTPS,
	dns.TypeSVCB, dns.TypeDNSKEY, dns.TypeDS, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG, dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR,
}

// Who made an answer, in CoreDNS's words.
const (
	byNobody = iota // the server itself: refusals, failures
	byZone
	byCache
	byUpstream
	makers
)

var makerNames = [makers]string{"", "kubernetes", "cache", "forward"}

// tally counts requests and answers as CoreDNS's metrics do.
type tally struct {
	requests  [2][2][len(countedTypes) + 1]atomic.Uint64 // UDP, TCP; IPv4, IPv6
	responses [makers][24]atomic.Uint64                  // by rcode
}

func (t *tally) add(udp bool, client netip.Addr, qtype uint16, maker, rcode int) {
	proto, family := 0, 0
	if !udp {
		proto = 1
	}
	if client.Is6() {
		family = 1
	}
	kind := slices.Index(countedTypes[:], qtype)
	if kind < 0 {
		kind = len(countedTypes)
	}
	t.requests[proto][family][kind].Add(1)
	t.responses[maker][min(rcode, len(t.responses[maker])-1)].Add(1)
}

// Upper bounds of CoreDNS's buckets, in bytes and in nanoseconds.
var (
	sizeBuckets = []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
	timeBuckets = doubled(250*time.Microsecond, 16)
)

func doubled(first time.Duration, n int) (all []float64) {
	for i := range n {
		all = append(all, float64(first<<i))
	}
	return all
}

// histogram counts values by the bucket that they are in.
type histogram struct {
	counts [17]atomic.Uint64 // the last beyond all bounds that there are
	sum    atomic.Uint64
}

func (h *histogram) add(bounds []float64, v int) {
	i := 0
	for i < len(bounds) && float64(v) > bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(uint64(v))
}

// write writes the histogram; a unit of the metric is so many of its values.
func (h *histogram) write(w io.Writer, name, labels string, bounds []float64, unit float64) {
	total := uint64(0)
	for i, bound := range bounds {
		total += h.counts[i].Load()
		fmt.Fprintf(w, "%s_bucket{%s,le=\"%g\"} %d\n", name, labels, bound/unit, total)
	}
	total += h.counts[len(bounds)].Load()
	fmt.Fprintf(w, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_sum{%s} %g\n%s_count{%s} %d\n", name, labels, total,
		name, labels, float64(h.sum.Load())/unit, name, labels, total)
}

// measures are the sizes of messages, over UDP and TCP, and how long answers take.
type measures struct {
	asked, answered [2]histogram
	took            histogram
}

// add takes note of an answer: the bytes of question and answer.
func (m *measures) add(udp bool, asked, answered int, took time.Duration) {
	proto := 0
	if !udp {
		proto = 1
	}
	m.asked[proto].add(sizeBuckets, asked)
	m.answered[proto].add(sizeBuckets, answered)
	m.took.add(timeBuckets, int(took))
}

func (m *measures) write(w io.Writer, head func(name, kind, help string), labels string) {
	const took = "coredns_dns_request_duration_seconds"
	head(took, "histogram", "Times from a request to its response in seconds.")
	m.took.write(w, took, labels, timeBuckets, float64(time.Second))
	for _, size := range []struct {
		name, help string
		of         *[2]histogram
	}{
		{"coredns_dns_request_size_bytes", "Sizes of requests in bytes.", &m.asked},
		{"coredns_dns_response_size_bytes", "Sizes of responses in bytes.", &m.answered},
	} {
		head(size.name, "histogram", size.help)
		for p, proto := range protos {
			size.of[p].write(w, size.name, labels+`,proto="`+proto+`"`, sizeBuckets, 1)
		}
	}
}

var protos = [2]string{"udp", "tcp"}

func (s *Server) writeMetrics(w io.Writer) {
	var b strings.Builder
	head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	const server = `server="dns://:53",zone=".",view=""`
	head("coredns_dns_requests_total", "counter", "Counter of DNS requests made per zone, protocol and family.")
	for p, proto := range protos {
		for family := range 2 {
			for kind := range len(countedTypes) + 1 {
				name := "other"
				if kind < len(countedTypes) {
					name = dns.TypeToString[countedTypes[kind]]
				}
				if n := s.tally.requests[p][family][kind].Load(); n > 0 {
					fmt.Fprintf(&b, "coredns_dns_requests_total{%s,proto=%q,family=\"%d\",type=%q} %d\n", server, proto, family+1, name, n)
				}
			}
		}
	}
	head("coredns_dns_responses_total", "counter", "Counter of response status codes.")
	for maker := range makers {
		for rcode := range s.tally.responses[maker] {
			if n := s.tally.responses[maker][rcode].Load(); n > 0 {
				fmt.Fprintf(&b, "coredns_dns_responses_total{%s,rcode=%q,plugin=%q} %d\n", server, dns.RcodeToString[rcode], makerNames[maker], n)
			}
		}
	}
	s.measures.write(&b, head, server)
	head("coredns_autopath_success_total", "counter", "Counter of requests that did autopath.")
	fmt.Fprintf(&b, "coredns_autopath_success_total{server=\"dns://:53\"} %d\n", s.autopathed.Load())
	counters := s.Counters()
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		fmt.Fprintf(&b, "# TYPE podgate_%s counter\npodgate_%s %d\n", name, name, counters[name])
	}
	io.WriteString(w, b.String())
}
