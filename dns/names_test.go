package dns

import "testing"

// A dot that is escaped is part of a label, not between two.
func TestCutZone(t *testing.T) {
	for _, test := range []struct {
		name, labels string
		ok           bool
	}{
		{"cluster.local.", "", true},
		{"web.shop.svc.cluster.local.", "web.shop.svc", true},
		{"xcluster.local.", "", false},
		{"local.", "", false},
		{`svc\.cluster.local.`, "", false},
		{`svc\\.cluster.local.`, `svc\\`, true},
		{`svc\\\.cluster.local.`, "", false},
	} {
		labels, ok := cutZone(test.name, "cluster.local.")
		if ok != test.ok || ok && labels != test.labels {
			t.Errorf("%s: got %q, %v, want %q, %v", test.name, labels, ok, test.labels, test.ok)
		}
	}
}
