package ingress

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"podgate/kube"
)

// What is seen of requests: the access log, and numbers under the names that
// ingress-nginx's dashboards know. Labels are Ingress, Service, method and
// status: as many series as there are manifests, whatever clients send.

// answer is a response that is watched.
type answer struct {
	http.ResponseWriter
	status int
	bytes  int64

	elsewhere string // where HTTP/3 is (Alt-Svc), unless the endpoint says something else
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		a.status = status
		if h := a.Header(); a.elsewhere != "" && h["Alt-Svc"] == nil {
			h.Set("Alt-Svc", a.elsewhere)
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

func (a *answer) Flush() { http.NewResponseController(a.ResponseWriter).Flush() }

// Hijack is for upgrades.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(a.ResponseWriter).Hijack()
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

type statsKey struct{ ingress, service kube.Name }

// stats are the totals of one Ingress and Service. They outlive Routes.
type stats struct {
	statsKey
	counts  sync.Map // series to *atomic.Uint64
	buckets [len(bounds) + 1]atomic.Uint64
	micros  atomic.Uint64 // sum of the durations
	bytes   atomic.Uint64
}

type series struct {
	method string
	status int
}

// bounds of the histogram, in seconds: Prometheus's default ones, as in ingress-nginx.
var bounds = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}

func (c *compiler) stats(r *route) *stats {
	k := statsKey{r.ingress, r.backend.service}
	s := c.seen[k]
	if s == nil {
		if s = c.prev.seen[k]; s == nil {
			s = &stats{statsKey: k}
		}
		c.seen[k] = s
	}
	return s
}

func (s *stats) add(method string, status int, took time.Duration, bytes int64) {
	if !slices.Contains(methods, method) {
		method = "other"
	}
	k := series{method, status}
	n, ok := s.counts.Load(k)
	if !ok {
		n, _ = s.counts.LoadOrStore(k, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
	i, _ := slices.BinarySearch(bounds[:], took.Seconds())
	s.buckets[i].Add(1)
	s.micros.Add(uint64(took.Microseconds()))
	s.bytes.Add(uint64(bytes))
}

// seen notes a request that has been answered.
func (q *request) seen(a *answer) { q.note(q.in.Method, a) }

func (q *request) note(method string, a *answer) {
	took := time.Since(q.began)
	if a.status == 0 {
		a.status = 499 // the client left before there was an answer
	}
	if q.route != nil {
		q.route.stats.add(method, a.status, took, a.bytes)
	}
	if q.cfg.AccessLog != nil && q.in != nil && (q.route == nil || !q.route.options.silent) {
		q.cfg.AccessLog(q.record(a, took))
	}
}

// Access is one request, for the access log.
type Access struct {
	Time      time.Time     `json:"time"`
	Client    string        `json:"client"`
	User      string        `json:"user,omitempty"`
	Method    string        `json:"method"`
	Host      string        `json:"host"`
	Target    string        `json:"target"`
	Proto     string        `json:"proto"`
	Status    int           `json:"status"`
	Bytes     int64         `json:"bytes"`
	Referer   string        `json:"referer,omitempty"`
	UserAgent string        `json:"userAgent,omitempty"`
	Duration  time.Duration `json:"durationNs"`
	Ingress   string        `json:"ingress,omitempty"`
	Service   string        `json:"service,omitempty"`
	Upstream  string        `json:"upstream,omitempty"` // the endpoint's address
	Pod       string        `json:"pod,omitempty"`      // and its pod
	Waited    time.Duration `json:"upstreamNs,omitempty"`
	ID        string        `json:"requestId,omitempty"`
}

func (q *request) record(a *answer, took time.Duration) Access {
	r := Access{
		Time: q.began, Client: q.origin().String(), User: q.user, Method: q.in.Method, Host: q.in.Host, Target: q.in.RequestURI, Proto: q.in.Proto,
		Status: a.status, Bytes: a.bytes, Referer: q.in.Referer(), UserAgent: q.in.UserAgent(), Duration: took, ID: q.requestID,
	}
	if q.route != nil {
		r.Ingress, r.Service = q.route.ingress.String(), q.route.backend.service.String()
	}
	if q.endpoint != nil {
		r.Service, r.Upstream, r.Waited = q.backend.service.String(), q.endpoint.String(), q.waited
		r.Pod = q.live.pods[q.endpoint.addr.Addr()]
	}
	return r
}

// String is the record in the combined format, then the upstream as ingress-nginx
// adds it: what was asked is quoted, so that no client writes lines of its own.
func (r Access) String() string {
	orDash := func(s string) string { return cmp.Or(s, "-") }
	return fmt.Sprintf("%s - %s [%s] %s %d %d %s %s %.3f [%s] [%s] %s %s %.3f %s", r.Client, orDash(quoteless(r.User)), r.Time.Format("02/Jan/2006:15:04:05 -0700"),
		strconv.QuoteToASCII(r.Method+" "+r.Target+" "+r.Proto), r.Status, r.Bytes, strconv.QuoteToASCII(orDash(r.Referer)), strconv.QuoteToASCII(orDash(r.UserAgent)),
		r.Duration.Seconds(), r.Ingress, r.Service, orDash(r.Upstream), orDash(r.Pod), r.Waited.Seconds(), orDash(quoteless(r.ID)))
}

func quoteless(s string) string {
	if s == "" {
		return s
	}
	q := strconv.QuoteToASCII(s)
	return strings.ReplaceAll(q[1:len(q)-1], " ", "\\x20")
}

// WriteMetrics writes the numbers of all Ingresses in Prometheus's text format.
func (s *Server) WriteMetrics(w io.Writer) error {
	live := s.live.Load()
	all := make([]*stats, 0, len(live.seen))
	for _, st := range live.seen {
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b *stats) int {
		return cmp.Or(strings.Compare(a.ingress.String(), b.ingress.String()), strings.Compare(a.service.String(), b.service.String()))
	})
	var b strings.Builder
	head := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP nginx_ingress_controller_%s %s\n# TYPE nginx_ingress_controller_%s %s\n", name, help, name, kind)
	}
	labels := func(st *stats) string {
		return fmt.Sprintf("ingress=%q,namespace=%q,service=%q", st.ingress.Name, st.ingress.Namespace, st.service.Name)
	}
	head("requests", "counter", "Requests that were answered, by Ingress.")
	for _, st := range all {
		var lines []string
		st.counts.Range(func(k, n any) bool {
			lines = append(lines, fmt.Sprintf("nginx_ingress_controller_requests{%s,method=%q,status=\"%d\"} %d\n", labels(st), k.(series).method, k.(series).status, n.(*atomic.Uint64).Load()))
			return true
		})
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	head("request_duration_seconds", "histogram", "Time from a request's header to the end of its answer.")
	for _, st := range all {
		total := uint64(0)
		for i := range st.buckets {
			total += st.buckets[i].Load()
			le := "+Inf"
			if i < len(bounds) {
				le = strconv.FormatFloat(bounds[i], 'g', -1, 64)
			}
			fmt.Fprintf(&b, "nginx_ingress_controller_request_duration_seconds_bucket{%s,le=%q} %d\n", labels(st), le, total)
		}
		fmt.Fprintf(&b, "nginx_ingress_controller_request_duration_seconds_sum{%s} %g\n", labels(st), float64(st.micros.Load())/1e6)
		fmt.Fprintf(&b, "nginx_ingress_controller_request_duration_seconds_count{%s} %d\n", labels(st), total)
	}
	head("bytes_sent_total", "counter", "Bytes of answers' bodies, by Ingress.")
	for _, st := range all {
		fmt.Fprintf(&b, "nginx_ingress_controller_bytes_sent_total{%s} %d\n", labels(st), st.bytes.Load())
	}
	counters := s.Counters()
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range counters {
			if !yield(name) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "# TYPE podgate_%s counter\npodgate_%s %d\n", name, name, counters[name])
	}
	_, err := io.WriteString(w, b.String())
	return err
}
