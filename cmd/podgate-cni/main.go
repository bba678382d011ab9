// Command podgate-cni is the CNI plugin of podgate: the type "podgate-cni" in a
// network configuration. A gateway has to run; see docs/kubernetes.md.
package main

import (
	"os"

	"podgate/cni"
)

func main() { os.Exit(cni.Main("podgate-cni: attaches containers to a podgate gateway (CNI plugin)")) }
