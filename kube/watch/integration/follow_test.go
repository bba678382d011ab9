package integration

import (
	"fmt"
	"testing"
)

// TestFollow applies the shop with kubectl.
func TestFollow(t *testing.T) {
	c := newControlPlane(t)
	c.addNode("node-1", "127.0.0.1")
	c.kubelet("node-1")
	g := c.gateway("follow", "node-1", "admin")
	g.awaitReady()
	c.applyShop()
	await(t, "pods are known", func() error {
		pods, err := g.get("pods", "-A")
		if err == nil && len(pods) < 5 {
			err = fmt.Errorf("%d pods", len(pods))
		}
		return err
	})
	t.Log(g.log.String())
}
