package nat

import (
	"math"
	"testing"
)

func TestWeightsShareNewConversations(t *testing.T) {
	for _, n := range []int{4, 200} { // compared one by one, and by table
		g := group{backends: backends(n)}
		total := 0
		for i := range n {
			w := uint8(1 + 3*(i%2)) // 1, 4, 1, 4, ...
			g.weights = append(g.weights, w)
			total += int(w)
		}
		p := newPool(g)
		const picks = 100000
		heavy := 0
		for i := range picks {
			b := p.pick(mix(uint64(i)+1, seed1) * seed0)
			for j := range g.backends {
				if g.backends[j] == b && j%2 == 1 {
					heavy++
				}
			}
		}
		if got := float64(heavy) / picks; math.Abs(got-0.8) > 0.02 {
			t.Errorf("%d backends: four fifths of the weight got %.3f of the conversations", n, got)
		}
	}
}

func TestWeightAnnotation(t *testing.T) {
	w := newWorld(t)
	w.service("web", 1)
	s := w.slice("web-1", "web", ep("10.244.0.11"))
	w.slice("web-2", "web", ep("10.244.0.12"))
	s.Annotations = map[string]string{annotationWeight: "0"}
	tab, ps := w.compile()
	if got, want := reached(tab, addr("10.96.0.1"), 6, 80, false), "[10.244.0.12:8080]"; got != want || len(ps) != 0 {
		t.Errorf("weight 0: got %s, want %s; problems %v", got, want, ps)
	}
	w.slice("web-1", "web", ep("10.244.0.11")).Annotations = map[string]string{annotationWeight: "many"}
	tab, ps = w.compile()
	if got, want := reached(tab, addr("10.96.0.1"), 6, 80, false), "[10.244.0.11:8080 10.244.0.12:8080]"; got != want {
		t.Errorf("weight that cannot be read: got %s, want %s", got, want)
	}
	if want := `Invalid value: "many": must be a number from 0 to 100`; len(ps) != 1 || ps[0].Err != want || ps[0].Kind != "EndpointSlice" {
		t.Errorf("got problems %v, want %s", ps, want)
	}
	w.slice("web-1", "web", ep("10.244.0.11")).Annotations = map[string]string{annotationWeight: "3"}
	tab, _ = w.compile()
	if e := tab.Service(kubeName("web")).Ports[0].Endpoints; e[0].Weight != 3 || e[1].Weight != 1 {
		t.Errorf("got weights %d, %d, want 3, 1", e[0].Weight, e[1].Weight)
	}
}
