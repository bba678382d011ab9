package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"podgate/kube"
)

// Explained is what a client is told to one question, and why.
type Explained struct {
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	Block     string   `json:"block,omitempty"`     // the Corefile's zone whose directives count
	Rewritten string   `json:"rewritten,omitempty"` // the name that is looked up instead
	Zone      string   `json:"zone,omitempty"`      // of ours that the name is in
	Why       string   `json:"why,omitempty"`       // the object that the name is of, or is missing
	Upstreams []string `json:"upstreams,omitempty"` // who resolves the rest
	Cache     string   `json:"cache,omitempty"`     // what is known of upstreams' answer
	From      string   `json:"from"`                // "data path", "zone", "template", "hosts", "cache", "upstream", "autopath"
	Rcode     string   `json:"rcode"`
	Answers   []string `json:"answers,omitempty"`
	Error     string   `json:"error,omitempty"` // the reason that came with the answer
	Micros    int64    `json:"microseconds"`
	Found     bool     `json:"found"` // there is data of that type
}

// Explain answers a client's question as ever, but uncounted, and says why.
func (s *Server) Explain(client netip.Addr, name string, qtype uint16) Explained {
	name = dns.Fqdn(name)
	e := Explained{Name: name, Type: dns.TypeToString[qtype]}
	m := question(name, qtype)
	wire, err := m.Pack()
	if err != nil {
		e.Rcode, e.Error = dns.RcodeToString[dns.RcodeFormatError], err.Error()
		return e
	}
	z, r := s.zone.Load(), s.rules.Load()
	at := r.matching(strings.ToLower(name))
	if z == nil || at < 0 {
		e.Rcode, e.Error = dns.RcodeToString[dns.RcodeRefused], "no block of the Corefile has this name"
		return e
	}
	s.explain(&e, z, r, r.blocks[at], &query{Msg: m, from: client})

	out := make([]byte, maxTCP)
	start := time.Now()
	if n, _, _ := s.Responder().reply(out, wire); n > 0 {
		e.From, out = "data path", out[:n]
	} else {
		m.SetEdns0(uint16(s.cfg.MaxUDP), false) // for the reason of a failure
		q := &query{Msg: m, opt: m.IsEdns0(), from: client, silent: true}
		answer, later := s.decide(q, out)
		if later != nil {
			answer = later()
		}
		out = answer
		if q.path {
			e.From = "autopath"
		}
	}
	e.Micros = time.Since(start).Microseconds()
	var a dns.Msg
	if err := a.Unpack(out); err != nil {
		e.Error = err.Error()
		return e
	}
	e.told(&a, qtype)
	return e
}

// told takes what an answer says.
func (e *Explained) told(a *dns.Msg, qtype uint16) {
	e.Rcode = dns.RcodeToString[a.Rcode]
	for _, rr := range a.Answer {
		e.Answers = append(e.Answers, strings.ReplaceAll(rr.String(), "\t", " "))
		e.Found = e.Found || rr.Header().Rrtype == qtype || qtype == dns.TypeANY
	}
	if opt := a.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				e.Error = ede.ExtraText
			}
		}
	}
}

// explain says what is known before the question is asked.
func (s *Server) explain(e *Explained, z *Zone, r *rules, b ruleZone, q *query) {
	if b.zone != "." || len(r.blocks) > 1 {
		e.Block = b.zone
	}
	name := e.Name
	if to, _ := b.rewritten(name); to != name {
		name, e.Rewritten = to, to
	}
	qtype := q.Question[0].Qtype
	if _, known := b.fromTemplates(z, name, qtype); known {
		e.From, e.Why = "template", "a template of the Corefile"
		return
	}
	if b.hosts != nil {
		if _, known := b.hosts.answer(name, qtype); known {
			e.From, e.Why = "hosts", "the Corefile's hosts table"
			return
		}
	}
	a := b.lookup(z, name, qtype)
	if b.kube {
		if _, soa, ours := z.find(strings.ToLower(name), qtype); ours {
			e.From, e.Why = "zone", z.why(strings.ToLower(name))
			if e.Zone = z.domain; soa != nil {
				e.Zone = soa.Hdr.Name
			}
		}
	}
	if a.chase == "" {
		return
	}
	f := r.route(a.chase)
	if f == nil {
		return
	}
	e.From = "upstream"
	for _, u := range f.upstreams {
		e.Upstreams = append(e.Upstreams, u.state(f.maxFails))
	}
	if e.Cache = f.cache.state(q.keyOf(a.chase), f.now()); strings.HasPrefix(e.Cache, "known") {
		e.From = "cache"
	}
}

// state is an upstream with what is wrong with it.
func (u *upstreamState) state(maxFails int) string {
	switch fails := int(u.fails.Load()); {
	case u.loop.Load():
		return u.String() + " (leads back here)"
	case maxFails > 0 && fails >= maxFails:
		return u.String() + " (does not answer)"
	}
	return u.String()
}

// state says whether an answer is known, and for how long.
func (c *cache) state(k cacheKey, now time.Time) string {
	if c.max < 0 {
		return "off"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.young[k]
	if !ok {
		e, ok = c.old[k]
	}
	switch left := e.to.Sub(now).Truncate(time.Second); {
	case !ok || !now.Before(e.to.Add(c.stale)):
		return "not known"
	case left < 0:
		return "known, stale since " + (-left).String()
	default:
		return "known for " + left.String()
	}
}

// why names the object that a lower-case name of ours belongs to, or that is missing.
func (z *Zone) why(name string) string {
	under, ok := strings.CutSuffix(name, z.domain)
	if !ok {
		addr, _ := parseReverse(name)
		if !addr.IsValid() {
			return "a reverse zone of the cluster"
		}
		var of []string
		ptrs, _ := z.pointers.get(addr)
		for _, p := range ptrs {
			of = append(of, p.target)
		}
		if len(of) == 0 {
			return fmt.Sprintf("no Service has %s, nor has an endpoint of one", addr)
		}
		return fmt.Sprintf("%s is %s", addr, strings.Join(of, ", "))
	}
	under = strings.TrimSuffix(under, ".")
	if path, ok := strings.CutSuffix(under, ".svc"); ok {
		return z.whyService(path)
	}
	if path, ok := strings.CutSuffix(under, ".pod"); ok {
		return z.whyPod(path)
	}
	if z.static[under] != nil {
		return "a name of the zone itself"
	}
	return "no name of a Service or pod: those end in svc." + z.domain + " or pod." + z.domain
}

func (z *Zone) whyService(path string) string {
	labels := strings.Split(path, ".")
	namespace := labels[len(labels)-1]
	missing := ""
	if z.namespace(namespace) == nil {
		missing = fmt.Sprintf("there is no Namespace %s", namespace)
	}
	if len(labels) == 1 {
		if missing != "" {
			return missing
		}
		return "Namespace " + namespace
	}
	name := kube.Name{Namespace: namespace, Name: labels[len(labels)-2]}
	svc, ok := z.services.get(name.Name + "." + namespace)
	if !ok {
		if missing != "" {
			return missing
		}
		return fmt.Sprintf("there is no Service %s", name)
	}
	sub := strings.Join(labels[:len(labels)-2], ".")
	what := map[bool]string{true: "port", false: "endpoint"}[strings.HasPrefix(sub, "_")]
	switch n := svc.node(sub); {
	case n == nil && sub == "":
		return fmt.Sprintf("Service %s has no ready endpoint", name)
	case n == nil:
		return fmt.Sprintf("Service %s has no %s %s", name, what, sub)
	case n.cname != nil:
		return fmt.Sprintf("Service %s, ExternalName %s", name, n.cname.Target)
	case sub == "":
		return fmt.Sprintf("Service %s", name)
	}
	return fmt.Sprintf("%s %s of Service %s", what, sub, name)
}

func (z *Zone) whyPod(path string) string {
	label, namespace, ok := strings.Cut(path, ".")
	switch addr, isAddr := undash(label); {
	case z.pods == Disabled:
		return "names of pods are disabled"
	case z.namespace(namespace) == nil && ok:
		return fmt.Sprintf("there is no Namespace %s", namespace)
	case !ok:
		return "Namespace " + label
	case !isAddr:
		return fmt.Sprintf("%s is no address such as 10-244-0-7", label)
	case z.pods == Verified && z.findPod(path) == nil:
		return fmt.Sprintf("no pod of Namespace %s has %s", namespace, addr)
	default:
		return fmt.Sprintf("the address %s, in Namespace %s", addr, namespace)
	}
}
