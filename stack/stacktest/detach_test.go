package stacktest

import (
	"testing"

	"podgate/kube"
	"podgate/stack"
	"podgate/stack/packet"
)

// The last answer of a process that ends, and its pod with it, arrives.
func TestWhatAPodSentBeforeItWasDetachedArrives(t *testing.T) {
	w := New(t, stack.Config{})
	w.Apply(floodShop)
	api, web := w.Pod("api"), w.Pod("web")
	connect(t, w, web, api, 40000)
	var last []packet.Frame
	for range 100 { // more than a batch
		last = append(last, api.segment(web, 80, 40000, packet.ACK))
	}
	last = append(last, api.segment(web, 80, 40000, packet.FIN|packet.ACK))
	if n, err := api.dev.WriteBatch(last); n != len(last) || err != nil {
		t.Fatalf("sent %d of %d frames: %v", n, len(last), err)
	}
	w.Detach(kube.Name{Namespace: "default", Name: "api"})
	w.Poll()
	if got := len(web.Received()); got != len(last) {
		t.Errorf("%d of %d frames came; counters %v", got, len(last), w.Counters())
	}
}
