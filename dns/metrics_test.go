package dns

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestMetricsOfSizesAndDurations(t *testing.T) {
	s, addr := serve(t, Config{}, loadState(t, "testdata/cluster.yaml"))
	q := question("web.shop.svc.cluster.local.", dns.TypeA) // 44 bytes
	for _, network := range []string{"udp", "udp", "tcp"} {
		if m, _, err := (&dns.Client{Net: network, Timeout: 20 * time.Second}).Exchange(q, addr); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%s: %v, %v", network, m, err)
		}
	}
	w := httptest.NewRecorder()
	s.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	lines := strings.Split(w.Body.String(), "\n")
	const server = `server="dns://:53",zone=".",view=""`
	for _, want := range []string{
		"# TYPE coredns_dns_request_duration_seconds histogram",
		`coredns_dns_request_duration_seconds_bucket{` + server + `,le="+Inf"} 3`,
		`coredns_dns_request_duration_seconds_count{` + server + `} 3`,
		`coredns_dns_request_size_bytes_bucket{` + server + `,proto="udp",le="0"} 0`,
		`coredns_dns_request_size_bytes_bucket{` + server + `,proto="udp",le="100"} 2`,
		`coredns_dns_request_size_bytes_sum{` + server + `,proto="udp"} 88`,
		`coredns_dns_request_size_bytes_count{` + server + `,proto="tcp"} 1`,
		`coredns_dns_response_size_bytes_bucket{` + server + `,proto="udp",le="64000"} 2`,
		`coredns_dns_response_size_bytes_sum{` + server + `,proto="tcp"} 60`,
		`coredns_dns_requests_total{` + server + `,proto="udp",family="1",type="A"} 2`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("there is no %s in\n%s", want, w.Body)
		}
	}
	for _, bound := range []string{"0.00025", "0.0005", "8.192"} {
		if !strings.Contains(w.Body.String(), `coredns_dns_request_duration_seconds_bucket{`+server+`,le="`+bound+`"} `) {
			t.Errorf("no bucket up to %s s", bound)
		}
	}
}
