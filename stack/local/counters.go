package local

import "sync/atomic"

type counter = atomic.Uint64

// counters are the Stack's; the names in Counters say what each counts.
type counters struct {
	tcpDials, tcpRefused, tcpFailed, tcpOverLimit counter
	udpFlows, udpRefused, udpEvicted              counter
	echoRequests, echoRefused, echoDropped        counter
	icmpErrors                                    counter
	published, publishedFailed, proxyInvalid      counter
}

// Counters are totals since New, by metric name.
func (s *Stack) Counters() map[string]uint64 {
	c := &s.count
	m := make(map[string]uint64)
	for name, v := range map[string]*counter{
		"local_frames_dropped_total":           &s.device.count.dropped,
		"local_frames_malformed_total":         &s.device.count.malformed,
		"egress_tcp_connections_total":         &c.tcpDials,
		"egress_tcp_refused_total":             &c.tcpRefused,
		"egress_tcp_failed_total":              &c.tcpFailed,
		"egress_tcp_over_limit_total":          &c.tcpOverLimit,
		"egress_udp_flows_total":               &c.udpFlows,
		"egress_udp_refused_total":             &c.udpRefused,
		"egress_udp_evicted_total":             &c.udpEvicted,
		"egress_echo_requests_total":           &c.echoRequests,
		"egress_echo_refused_total":            &c.echoRefused,
		"egress_echo_dropped_total":            &c.echoDropped,
		"egress_icmp_errors_total":             &c.icmpErrors,
		"published_connections_total":          &c.published,
		"published_connections_failed_total":   &c.publishedFailed,
		"published_proxy_header_invalid_total": &c.proxyInvalid,
	} {
		m[name] = v.Load()
	}
	return m
}

// Limits bound what one Stack holds; 0 means the default.
type Limits struct {
	// Dials is how many TCP connections to the outside may be in the making
	// (1024), DialsPerSource how many of one pod's address (256). More are not
	// answered: the pod's kernel tries again.
	Dials, DialsPerSource int
	// Connections is how many TCP connections to the outside, and as many to
	// published ports, may be open (16384).
	Connections int
	// UDPFlows is how many UDP flows to the outside, and as many clients of
	// published ports, are remembered (4096); the least recently used makes room.
	UDPFlows int
	// Pings is how many ICMP echo conversations to the outside are remembered (256).
	Pings int
}

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		v   *int
		def int
	}{{&l.Dials, 1024}, {&l.DialsPerSource, 256}, {&l.Connections, 16384}, {&l.UDPFlows, 4096}, {&l.Pings, 256}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
}
