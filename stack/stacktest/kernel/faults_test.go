package kernel

import (
	"net"
	"regexp"
	"strings"
	"testing"

	"podgate/stack/link"
	"podgate/stack/link/nstest"
)

// Kernels get a stream whole through a link that loses, repeats, reorders and
// corrupts: what is corrupted has a checksum that says so.
func TestStreamsSurviveABadLink(t *testing.T) {
	eachKind(t, 1500, func(t *testing.T, c *cluster) {
		f, err := link.ParseFaults("loss=1%,duplicate=2%,reorder=2%,corrupt=1%,delay=1ms,jitter=500us,rate=200mbit,direction=both")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.plane.SetFaults("default/b", f); err != nil {
			t.Fatal(err)
		}
		stream(t, c, net.JoinHostPort(vip4, "80"))
		stream(t, c, net.JoinHostPort(vip6, "80"))
		if c.plane.Counters()["fault-injected"] == 0 {
			t.Error("nothing was lost")
		}
		if err := c.plane.SetFaults("default/b", link.Faults{}); err != nil {
			t.Fatal(err)
		}
		stream(t, c, net.JoinHostPort(c.b.v4, "8080"))
	})
}

// Fragments that overtake each other reach the Service's backend all the same.
func TestReorderedFragmentsArrive(t *testing.T) {
	nstest.Need(t, "ping")
	eachKind(t, 1500, func(t *testing.T, c *cluster) {
		f, _ := link.ParseFaults("reorder=40%,direction=from")
		if err := c.plane.SetFaults("default/a", f); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{c.b.v4, c.b.v6} {
			// Until 20 are answered: some may be late on a busy machine, but if order
			// mattered most would not be.
			out, err := c.a.Command("ping", "-q", "-n", "-c", "20", "-i", "0.05", "-w", "60", "-s", "6000", to).CombinedOutput()
			if err != nil || !regexp.MustCompile(`(?m)^\d\d packets transmitted, `).MatchString(string(out)) {
				t.Errorf("ping %s: %v\n%s", to, err, out)
			}
		}
		for name, n := range c.plane.Counters() {
			if n != 0 && strings.HasPrefix(name, "fragment") {
				t.Errorf("%s: %d", name, n)
			}
		}
	})
}
