package policy

import "podgate/kube"

type inputs struct{}

// Compile makes the Table for st. See the package's doc for what is shared with prev.
func Compile(prev *Table, st *kube.State, cfg Config) (*Table, []kube.Problem) {
	return &Table{}, nil
}
