package dns

import "podgate/kube"

// Zone is everything that is known about the cluster's names, immutable.
type Zone struct{ domain string }

// Compile makes the Zone of a state. What did not change since prev, which may
// be nil, is shared with it.
func Compile(prev *Zone, st *kube.State, cfg Config) *Zone {
	return &Zone{domain: cfg.withDefaults().Domain}
}
