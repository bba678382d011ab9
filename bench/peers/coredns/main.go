// Command coredns is CoreDNS with the plugins of kubeadm's Corefile, as a peer
// for the comparison in this module's test and for `go run ./bench dns`.
package main

import (
	"fmt"
	"os"

	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
)

// `coredns apiserver` is the API server that it asks.
func main() {
	if len(os.Args) > 1 && os.Args[1] == "apiserver" {
		if err := serveAPI(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "apiserver:", err)
			os.Exit(1)
		}
		return
	}
	coremain.Run()
}
