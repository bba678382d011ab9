package ingress

import "podgate/kube"

// Routes is where every request goes, immutable.
type Routes struct{}

// Compile makes the Routes of a state. What did not change since prev, which
// may be nil, is shared with it. Problems are Ingresses that are ignored or
// refer to what does not exist.
func Compile(prev *Routes, st *kube.State, cfg Config) (*Routes, []kube.Problem) {
	return &Routes{}, nil
}

// Explain says in sentences what happens to a request, for `podgate trace`.
func (r *Routes) Explain(host, path string, tls bool) []string { return nil }
