package stack

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"podgate/kube"
	"podgate/policy"
	"podgate/stack/flow"
	"podgate/stack/packet"
)

// Theory of operation
//
// What policies deny is counted by whose denial it was (a pod that several
// policies isolate is denied by all of them), and under audit what would have
// been. The worker owns the counts; who is new is bounded, and after that peers
// are no longer told apart.
//
// The verdict log leaves the worker as values in a channel that is never waited
// for: names and JSON are made by its reader. A token bucket, and the channel's
// length, limit it; what was left out is said in the next line.

// maxDenials is how many denials are told apart.
const maxDenials = 4096

// maxBlamed is how many policies one denial is counted under, the first by name.
const maxBlamed = 64

// denial says whose denial it was, and of what.
type denial struct {
	reason Reason // direction, and whether it was an audit
	policy kube.Name
	rule   int // of a cluster policy that has a rule to deny; -1: isolated
	pod    kube.Name
	peer   kube.Name   // the other end, if it is a pod
	addr   packet.Addr // or else its address; zero: others
}

type denials struct {
	packets uint64
	last    int64
}

// DenialRecord counts what one policy denied of one pod and one peer.
type DenialRecord struct {
	Policy    string    `json:"policy"`    // namespace/name, or the name of a ClusterNetworkPolicy
	By        string    `json:"by"`        // "default deny by shop/deny-all", or the rule
	Direction string    `json:"direction"` // ingress, egress
	Pod       string    `json:"pod"`
	Peer      string    `json:"peer"`            // a pod, an address, or "others"
	Audit     bool      `json:"audit,omitempty"` // nothing was denied: the policy only audits; conversations, not packets
	Packets   uint64    `json:"packets"`
	Last      time.Time `json:"last"`
}

func compareDenials(a, b DenialRecord) int {
	return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.By, b.By), cmp.Compare(a.Direction, b.Direction),
		cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Peer, b.Peer), cmp.Compare(fmt.Sprint(a.Audit), fmt.Sprint(b.Audit)))
}

func (d denial) record(n *denials) DenialRecord {
	r := DenialRecord{
		Policy: d.policy.String(), By: "default deny by " + d.policy.String(), Direction: policy.Ingress.String(),
		Pod: d.pod.String(), Peer: "others", Packets: n.packets, Last: time.Unix(0, n.last),
	}
	if d.reason == PolicyEgressDenied || d.reason == PolicyEgressAudited {
		r.Direction = policy.Egress.String()
	}
	r.Audit = d.reason == PolicyEgressAudited || d.reason == PolicyIngressAudited
	switch {
	case d.rule < 0 && d.policy.Namespace == "":
		r.By = "cluster policy " + d.policy.Name
	case d.rule >= 0:
		r.By = fmt.Sprintf("cluster policy %s rule %s[%d]", d.policy, r.Direction, d.rule)
	}
	switch {
	case d.peer != kube.Name{}:
		r.Peer = d.peer.String()
	case d.addr != packet.Addr{}:
		r.Peer = d.addr.String()
	}
	return r
}

// tally counts a denial under each policy that it is by, within maxBlamed.
func (w *worker) tally(r Reason, by []*policy.Policy, d *decision) {
	dir, subject, peer := policy.Ingress, d.dstPod, d.to.Src
	if r == PolicyEgressDenied || r == PolicyEgressAudited {
		dir, subject, peer = policy.Egress, d.srcPod, d.to.Dst
	}
	k := denial{reason: r, rule: -1, pod: subject.Name, addr: peer}
	if at := w.snap.owner[peer]; at != nil && at.Pod.Name != "" {
		k.peer, k.addr = at.Pod, packet.Addr{}
	}
	if rule := d.judged[dir].By; rule != nil && !d.judged[dir].Allowed {
		k.rule = rule.Index
	}
	for _, p := range by[:min(len(by), maxBlamed)] {
		k.policy = p.Name
		n := w.denials[k]
		if n == nil && len(w.denials) >= maxDenials {
			k.peer, k.addr = kube.Name{}, packet.Addr{}
			n = w.denials[k]
		}
		if n == nil {
			n = &denials{}
			w.denials[k] = n
		}
		n.packets++
		n.last = w.now
	}
}

// judged notes what policies said of a conversation that was let through, and
// says whether any in audit mode would not have.
func (w *worker) judged(in *attachment, t packet.Tuple, d *decision) (audited bool) {
	for dir, r := range [...]Reason{policy.Ingress: PolicyIngressAudited, policy.Egress: PolicyEgressAudited} {
		if by := d.judged[dir].Audited; by != nil {
			audited = true
			w.reasons[r].add(1)
			w.tally(r, by, d)
			w.verdicts.say(w, in, t, d, r)
		}
	}
	return audited
}

// allowed notes a conversation that rules of policies let begin.
func (l *verdictLog) allowed(w *worker, in *attachment, t packet.Tuple, d *decision) {
	if l != nil && l.all && (d.judged[policy.Ingress].By != nil || d.judged[policy.Egress].By != nil) {
		l.say(w, in, t, d, None)
	}
}

// CutRecord is a conversation that a policy would end.
type CutRecord struct {
	FlowRecord
	Reason   string   `json:"reason"`
	Policies []string `json:"policies"`
}

// wouldCut judges a conversation by another snapshot.
func (w *worker) wouldCut(s *Snapshot, f *flow.Flow) (CutRecord, bool) {
	c := w.cookie(f)
	if c.cut != nil || f.Expired(w.now) {
		return CutRecord{}, false
	}
	d := decision{to: f.Orig.Rewrite.Tuple(), deps: c.deps}
	if s.own[d.to.Src] && !s.own[f.Orig.Src] { // a hairpin
		return CutRecord{}, false
	}
	v := w.view(nil, 0)
	q := query{Tuple: f.Orig.Tuple, port: s.port(f.Orig.Port)}
	r := s.judge(policy.Egress, &q, &v, &d)
	if r == None {
		r = s.judge(policy.Ingress, &q, &v, &d)
	}
	if r == None {
		return CutRecord{}, false
	}
	d.reason = r
	rec := CutRecord{FlowRecord: w.record(f), Reason: r.String()}
	for _, p := range d.denying() {
		rec.Policies = append(rec.Policies, p.Name.String())
	}
	return rec, true
}

// verdictLog is the way of verdicts to who writes them down. A nil one leads nowhere.
type verdictLog struct {
	entries chan verdictEntry
	all     bool

	// The worker's.
	rate bucket
	left uint64 // out, since the last entry
}

// verdictRate is how many verdicts a second are written down.
const verdictRate = 1000

type verdictEntry struct {
	dropEntry
	verdict string
	dir     string
	rules   []*policy.Rule // that allowed
	snap    *Snapshot
	left    uint64
}

// say hands a verdict over, or leaves it out. Reason None means allowed.
func (l *verdictLog) say(w *worker, in *attachment, t packet.Tuple, d *decision, r Reason) {
	if l == nil {
		return
	}
	if len(l.entries) == cap(l.entries) || !l.rate.take(w.now, verdictRate) {
		l.left++
		return
	}
	e := verdictEntry{dropEntry: dropEntry{at: w.now, in: in, tuple: t, to: d.to, service: d.service, reason: r}, snap: w.snap, left: l.left}
	switch r {
	case None:
		e.verdict = "allow"
		for _, dir := range [...]policy.Direction{policy.Egress, policy.Ingress} {
			if by := d.judged[dir].By; by != nil {
				e.rules = append(e.rules, by)
			}
		}
	case PolicyEgressAudited, PolicyIngressAudited:
		e.verdict, e.dir = "audit", policy.Egress.String()
		e.denying = d.judged[policy.Egress].Audited
		if r == PolicyIngressAudited {
			e.dir, e.denying = policy.Ingress.String(), d.judged[policy.Ingress].Audited
		}
	default:
		e.verdict, e.dir, e.denying = "deny", policy.Egress.String(), d.denying()
		if r == PolicyIngressDenied {
			e.dir = policy.Ingress.String()
		}
	}
	l.left = 0
	l.entries <- e // has room: nobody else writes
}

// verdictLine is one line of the log.
type verdictLine struct {
	Time      time.Time `json:"time"`
	Verdict   string    `json:"verdict"` // deny, audit (would be denied), allow
	Direction string    `json:"direction,omitempty"`
	Proto     string    `json:"proto"`
	Src       string    `json:"src"`
	Dst       string    `json:"dst"` // as sent; a Service's address where there is one
	SrcPod    string    `json:"srcPod,omitempty"`
	DstPod    string    `json:"dstPod,omitempty"`
	Service   string    `json:"service,omitempty"`
	Policies  []string  `json:"policies,omitempty"` // that deny or would
	Rules     []string  `json:"rules,omitempty"`    // that allow
	LeftOut   uint64    `json:"leftOut,omitempty"`  // verdicts since the last line
}

func (e *verdictEntry) line() verdictLine {
	d := e.record(e.snap)
	l := verdictLine{Time: d.Time, Verdict: e.verdict, Direction: e.dir, Proto: d.Proto, Src: d.Src, Dst: d.Dst,
		SrcPod: d.SrcPod, DstPod: d.DstPod, Service: d.Service, Policies: d.Policies, LeftOut: e.left}
	for _, r := range e.rules {
		l.Rules = append(l.Rules, r.String())
	}
	return l
}

func (l *verdictLog) run(ctx context.Context, out io.Writer) error {
	enc := json.NewEncoder(out)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-l.entries:
			if err := enc.Encode(e.line()); err != nil {
				return fmt.Errorf("verdict log: %w", err)
			}
		}
	}
}
