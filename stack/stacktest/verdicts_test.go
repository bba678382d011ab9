package stacktest

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"podgate/stack"
	"podgate/stack/packet"
)

const verdictPods = `
apiVersion: v1
kind: Pod
metadata: {name: api, labels: {app: api}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-only}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 80}]
`

// verdictLine is a line of the log, as its readers know it.
type verdictLine struct {
	Verdict, Direction, Proto, Src, Dst, SrcPod, DstPod string
	Policies, Rules                                     []string
	LeftOut                                             int
}

// verdicts is the log of a World, behind a gate.
type verdicts struct {
	*World
	lines chan verdictLine
	gate  chan struct{} // each line waits for it to be open, that is, closed
	port  uint16
}

func (v *verdicts) Write(line []byte) (int, error) {
	<-v.gate
	var l verdictLine
	if err := json.NewDecoder(bytes.NewReader(line)).Decode(&l); err != nil {
		return 0, err
	}
	v.lines <- l
	return len(line), nil
}

// logVerdicts starts the log, and waits until it is there.
func logVerdicts(t *testing.T, all bool) *verdicts {
	t.Helper()
	v := &verdicts{World: New(t, stack.Config{}), lines: make(chan verdictLine, 10_000), gate: make(chan struct{}), port: 1024}
	v.Apply(verdictPods)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Plane.LogVerdicts(ctx, v, all) }()
	close(v.gate)
	t.Cleanup(func() {
		stop()
		<-ended
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		v.open("other", 80)
		select {
		case <-v.lines:
			v.open("other", 9) // the others may still be on the way to the log
			for !strings.HasSuffix(v.next(t).Dst, ":9") {
			}
			v.Advance(2 * time.Second) // may write as much as at the start
			return v
		case <-time.After(time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("no verdict was written")
			}
		}
	}
}

// open sends the first packet of a further conversation with api.
func (v *verdicts) open(from string, port uint16) {
	src, dst := v.Pod(from), v.Pod("api")
	v.port++
	v.Send(src, Packet{
		Tuple:  packet.Tuple{Src: packet.AddrFrom(src.IP()), Dst: packet.AddrFrom(dst.IP()), SrcPort: v.port, DstPort: port, Proto: packet.TCP},
		SrcMAC: src.MAC, DstMAC: dst.MAC, TCPFlags: packet.SYN,
	}.Frame())
}

func (v *verdicts) next(t *testing.T) verdictLine {
	t.Helper()
	select {
	case l := <-v.lines:
		return l
	case <-time.After(30 * time.Second):
		t.Fatal("no line was written")
		panic("unreachable")
	}
}

func TestVerdictLogHasDenials(t *testing.T) {
	v := logVerdicts(t, false)
	v.open("web", 80)
	v.open("web", 81)
	l := v.next(t)
	if l.Verdict != "deny" || l.Direction != "ingress" || l.Proto != "tcp" || l.SrcPod != "default/web" || l.DstPod != "default/api" ||
		!slices.Equal(l.Policies, []string{"default/web-only"}) || l.Rules != nil {
		t.Errorf("got %+v", l)
	}
}

func TestVerdictLogHasAll(t *testing.T) {
	v := logVerdicts(t, true)
	v.open("web", 80)
	if l := v.next(t); l.Verdict != "allow" || l.SrcPod != "default/web" || !slices.Equal(l.Rules, []string{"policy default/web-only rule ingress[0]"}) || l.Policies != nil {
		t.Errorf("allowed: got %+v", l)
	}
	v.open("other", 80)
	if l := v.next(t); l.Verdict != "deny" || l.SrcPod != "default/other" || !slices.Equal(l.Policies, []string{"default/web-only"}) {
		t.Errorf("denied: got %+v", l)
	}
	v.Delete("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web-only}")
	v.open("other", 80) // no rule has anything to do with it
	v.Apply(verdictPods)
	v.open("web", 81)
	if l := v.next(t); l.Verdict != "deny" || l.SrcPod != "default/web" {
		t.Errorf("after a conversation without policies: got %+v", l)
	}
}

// The log has a thousand lines a second; the next line says how many more there
// would have been.
func TestVerdictLogIsLimited(t *testing.T) {
	v := logVerdicts(t, false)
	for range 1500 {
		v.open("other", 80)
	}
	v.Advance(100 * time.Millisecond) // is worth a hundred
	for range 150 {
		v.open("other", 80)
	}
	v.Advance(time.Second)
	v.open("other", 80)
	left := 0
	for i := range 1101 {
		l := v.next(t)
		left += l.LeftOut
		if want := map[int]int{1000: 500, 1100: 50}[i]; l.LeftOut != want {
			t.Fatalf("line %d: %d left out, want %d", i, l.LeftOut, want)
		}
	}
	if len(v.lines) > 0 || left != 550 {
		t.Errorf("%d further lines, %d left out, want 0 and 550", len(v.lines), left)
	}
}

// Nobody waits for who writes the log down: what does not fit is left out.
func TestVerdictLogMayBlock(t *testing.T) {
	v := logVerdicts(t, false)
	v.gate = make(chan struct{})
	const sent = 3 * 900
	for range 3 {
		for range sent / 3 {
			v.open("other", 80)
		}
		v.Advance(time.Second)
	}
	close(v.gate)
	seen, left := 0, 0
	for seen+left < sent+1 {
		if seen == 1024 {
			v.open("other", 80)
		}
		l := v.next(t)
		seen, left = seen+1, left+l.LeftOut
	}
	if seen < 1025 || seen > 1026 { // one may have been in the writer's hand
		t.Errorf("%d lines and %d left out, want 1024 that waited and one after", seen, left)
	}
}
